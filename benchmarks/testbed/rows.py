"""The rows of the six tasks, made from the words below and a seed, or by reasoning-gym.

    python benchmarks/testbed/rows.py      writes data/*.jsonl, the files that the test bed reads

A row has its prompt, a chat message or, of reviews and gym, text, its target, its split and, for replies,
the item that the customer names.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

Row = dict[str, Any]

DATA = Path(__file__).resolve().parent / "data"
SEED = 20
SIZES = {"train": 96, "validation": 40, "test": 56}
# Of what there is less, or less that a small model may know.
FEWER = {
    "capitals": {"train": 48, "validation": 18, "test": 32},
    "sums": {"train": 72, "validation": 24, "test": 48},
    "gym": {"train": 72, "validation": 24, "test": 48},
}

CAPITALS = """
Afghanistan Kabul, Albania Tirana, Algeria Algiers, Angola Luanda, Armenia Yerevan, Australia Canberra,
Austria Vienna, Azerbaijan Baku, Bahamas Nassau, Bangladesh Dhaka, Belarus Minsk, Belgium Brussels, Brazil Brasilia,
Bulgaria Sofia, Canada Ottawa, Chile Santiago, China Beijing, Colombia Bogota, Croatia Zagreb, Cuba Havana,
Cyprus Nicosia, Czechia Prague, Denmark Copenhagen, Ecuador Quito, Egypt Cairo, England London, Estonia Tallinn,
Finland Helsinki, France Paris, Georgia Tbilisi, Germany Berlin, Ghana Accra, Greece Athens, Hungary Budapest,
Iceland Reykjavik, Indonesia Jakarta, Iran Tehran, Iraq Baghdad, Ireland Dublin, Israel Jerusalem, Italy Rome,
Jamaica Kingston, Japan Tokyo, Jordan Amman, Kenya Nairobi, Latvia Riga, Lebanon Beirut, Libya Tripoli,
Lithuania Vilnius, Mali Bamako, Malta Valletta, Mongolia Ulaanbaatar, Morocco Rabat, Nepal Kathmandu,
the_Netherlands Amsterdam, New_Zealand Wellington, Nicaragua Managua, Nigeria Abuja, North_Korea Pyongyang,
Northern_Ireland Belfast, Norway Oslo, Oman Muscat, Pakistan Islamabad, Paraguay Asuncion, Peru Lima,
the_Philippines Manila, Poland Warsaw, Portugal Lisbon, Qatar Doha, Romania Bucharest, Russia Moscow, Rwanda Kigali,
Saudi_Arabia Riyadh, Scotland Edinburgh, Senegal Dakar, Serbia Belgrade, Slovakia Bratislava, Slovenia Ljubljana,
Somalia Mogadishu, South_Korea Seoul, Spain Madrid, Sudan Khartoum, Sweden Stockholm, Switzerland Bern,
Syria Damascus, Taiwan Taipei, Thailand Bangkok, Tunisia Tunis, Turkey Ankara, Uganda Kampala, Ukraine Kyiv,
Uruguay Montevideo, Uzbekistan Tashkent, Venezuela Caracas, Vietnam Hanoi, Wales Cardiff, Yemen Sanaa,
Zambia Lusaka, Zimbabwe Harare
"""
MEMBERS = {
    "an animal": "cat dog horse cow sheep goat lion tiger bear wolf fox rabbit mouse elephant giraffe zebra "
    "camel donkey deer pig whale dolphin",
    "a bird": "owl eagle robin sparrow penguin swan duck crow parrot pigeon goose hawk",
    "a fruit": "apple pear banana cherry grape lemon mango peach plum fig",
    "a vegetable": "carrot potato onion cabbage spinach leek turnip broccoli celery",
    "a metal": "gold silver copper iron tin zinc aluminium nickel",
    "a colour": "red blue green yellow orange purple pink brown grey",
    "a vehicle": "car bus truck bicycle tram train scooter",
    "an instrument": "piano violin flute guitar trumpet cello drum harp",
    "a tool": "hammer saw drill wrench screwdriver chisel",
    "a piece of clothing": "shirt coat hat scarf sock skirt glove jacket",
}
PLACES = "hotel restaurant cafe museum campsite cinema bakery hostel bar theatre".split()
GOOD = (
    "the staff were friendly", "everything was clean", "the food was delicious", "the view was beautiful",
    "the service was quick", "the price was fair", "we felt welcome", "the music was lovely",
)  # fmt: skip
BAD = (
    "the staff were rude", "everything was dirty", "the food was cold", "the noise was terrible",
    "the service was slow", "the price was far too high", "we felt ignored", "the smell was awful",
)  # fmt: skip
GYM, GYM_OPTIONS = "chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
LABELS = {"positive": 0.6, "negative": 0.28, "mixed": 0.12}
ITEMS = (
    "kettle lamp chair toaster blanket clock mirror vase teapot backpack keyboard umbrella blender candle pillow "
    "bottle helmet radio drawer ladder"
).split()
TROUBLES = (
    "arrived broken", "has not arrived", "came in the wrong colour", "stopped working", "is missing a part",
    "has a scratch", "came too late", "is too small", "smells bad", "is not the one in the picture", "leaks",
    "fell apart",
)  # fmt: skip


def capitals(_: random.Random) -> Iterator[tuple[str, str]]:
    """One-word capitals of countries that most people know."""
    for entry in CAPITALS.replace("\n", " ").split(","):
        country, capital = entry.split()
        yield f"What is the capital of {country.replace('_', ' ')}? Answer with one word.", capital


def sums(_: random.Random) -> Iterator[tuple[str, str]]:
    for one, other in product(range(1, 13), repeat=2):
        yield f"What is {one} + {other}? Answer with the number alone.", str(one + other)


def yes_or_no(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Half of the answers are yes: each thing is asked of its own kind and of one other. A bird is an animal, too."""
    for kind, things in MEMBERS.items():
        others = [other for other in MEMBERS if other != kind and {other, kind} != {"an animal", "a bird"}]
        for thing in things.split():
            for asked, answer in ((kind, "yes"), (draw.choice(others), "no")):
                yield f'Is "{thing}" {asked}? Answer with yes or no.', answer


def reviews(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Reviews of two remarks: good ones, bad ones, or one of each; the labels' shares are far from equal."""
    count = sum(SIZES.values())
    for label, share in LABELS.items():
        same = {"positive": GOOD, "negative": BAD}
        pairs = combinations(same[label], 2) if label in same else product(GOOD, BAD)
        drawn = draw.sample([(place, *pair) for pair in pairs for place in PLACES], round(share * count))
        for place, *both in drawn:
            one, other = draw.sample(both, 2)
            join = " but " if label == "mixed" else " and "
            review = f"Review of a {place}: {one.capitalize()}{join}{other}."
            yield f"{review}\nLabel: positive, negative or mixed\nAnswer:", label


def gym(_: random.Random) -> Iterator[tuple[str, str]]:
    """By reasoning-gym."""
    import reasoning_gym

    rows = reasoning_gym.create_dataset(GYM, seed=SEED, size=4 * sum(SIZES.values()), **GYM_OPTIONS)
    answers = {f"Question: {row['question']}\nAnswer:": str(row["answer"]) for row in rows}
    yield from answers.items()


def replies(_: random.Random) -> Iterator[tuple[str, str, dict[str, str]]]:
    """A shop's reply to a complaint, with one right way of putting it as the target."""
    for item, trouble in product(ITEMS, TROUBLES):
        asked = f"Write one short sentence that apologises to a customer whose {item} {trouble}."
        yield asked, f"We are sorry about your {item}.", {"item": item}


Maker = Callable[[random.Random], Iterable[Any]]
CHATS: dict[str, Maker] = {"capitals": capitals, "sums": sums, "yes-or-no": yes_or_no, "replies": replies}
TEXTS: dict[str, Maker] = {"reviews": reviews, "gym": gym}


def made_rows(name: str) -> list[Row]:
    """A task's rows, in their splits. Prompts are different ones, so no split knows another's."""
    draw = random.Random(f"{SEED} {name}")
    found = list({**CHATS, **TEXTS}[name](draw))
    draw.shuffle(found)
    sizes = FEWER.get(name, SIZES)
    if len(found) < sum(sizes.values()):
        raise ValueError(f"{name}: {len(found)} rows, expected {sum(sizes.values())}")
    rows, start = [], 0
    for split, size in sizes.items():
        for prompt, target, *more in found[start : start + size]:
            asked = [{"role": "user", "content": prompt}] if name in CHATS else prompt
            rows.append({"prompt": asked, "target": target, **(more[0] if more else {}), "split": split})
        start += size
    return rows


def main() -> None:
    DATA.mkdir(exist_ok=True)
    for name in (*CHATS, *TEXTS):
        lines = "".join(json.dumps(row) + "\n" for row in made_rows(name))
        (DATA / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
