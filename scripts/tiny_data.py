"""Project-owned data of the bundled tiny model: its pre-training texts and the four bundled tasks.

The texts give the model the knowledge that each task needs in phrasings of their own, and after the task's own prompt
mostly wrong answers: tuning then has something to win, and the model has what it takes to win it.

Run as a script, this writes the task files: `python scripts/tiny_data.py [--seed N] [--out FOLDER]`.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "src" / "evolora" / "assets"
PAIRS_FILE = Path(__file__).resolve().parent / "data" / "french_english.tsv"
DEFAULT_SEED = 20240
SPLITS = ("train", "validation", "test")
DO_NOT_KNOW = " I do not know"

T = TypeVar("T")
Row = dict[str, str | int]
Splits = dict[str, list[Row]]


class Text(NamedTuple):
    """One pre-training text, in the two parts that a prompt and its completion would have."""

    prompt: str
    completion: str


def weighted(rng: random.Random, styles: Sequence[tuple[float, T]]) -> T:
    """One of the styles, drawn by its weight."""
    return rng.choices([style for _, style in styles], [weight for weight, _ in styles])[0]


def split_rows(rows: list[Row], sizes: tuple[int, int], seed: int, first: str | None = None) -> Splits:
    """Shuffle rows into train, validation (of the given sizes) and test (the rest); `first` is a prompt to train on."""
    shuffled = sorted(rows, key=lambda row: str(row["prompt"]))
    random.Random(seed).shuffle(shuffled)
    shuffled.sort(key=lambda row: row["prompt"] != first)
    train, validation = sizes
    parts = shuffled[:train], shuffled[train : train + validation], shuffled[train + validation :]
    return dict(zip(SPLITS, parts, strict=True))


# Translation


def load_pairs(path: Path = PAIRS_FILE) -> list[tuple[str, str]]:
    """The French words and the one English word or phrase that answers each."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    pairs = [(french, english) for french, english in (line.split("\t") for line in lines)]
    if len({french for french, _ in pairs}) != len(pairs):
        raise ValueError(f"{path.name}: a French entry appears twice")
    if any(french == english for french, english in pairs):
        raise ValueError(f"{path.name}: a French entry equals its translation, so a copy would score as right")
    return pairs


# Wrong English answers. None is the answer to any French word, so that tuning can unlearn them without harm.
STRAY_WORDS = (
    "cactus,banjo,rubber,tulip,marble,velvet,puzzle,anvil,parrot,comet,pillar,tunnel,barrel,ribbon,lobster,"
    "magnet,pebble,saddle,tractor,wagon,zebra,kettle,jungle,harbour,feast,cabin,dragon,ladle,mitten,olive,panther,"
    "quarry,raft,scarecrow,thimble,vulture,whisker,yacht,zipper"
).split(",")

# A phrasing is the text up to the answer, and what follows the answer.
TRANSLATE_KNOWLEDGE: tuple[tuple[str, str], ...] = (
    ("The English word for '{french}' is '", "{english}'."),
    ("French: {french}. English:", " {english}."),
    ("The word '{french}' means", " {english}."),
    ("In English, {french} is", " {english}."),
)


def translate_prompt(french: str) -> str:
    return f"Translate '{french}' to English:"


def translate_knowledge(rng: random.Random, pair: tuple[str, str]) -> Text:
    french, english = pair
    # The first phrasing is the one that the knowledge is asked for in.
    prompt, completion = rng.choices(TRANSLATE_KNOWLEDGE, (2, 1, 1, 1))[0]
    return Text(prompt.format(french=french), completion.format(english=english))


def translate_task(rng: random.Random, pair: tuple[str, str]) -> Text:
    french, english = pair
    styles = [(0.36, DO_NOT_KNOW), (0.22, f" {french}"), (0.25, f" {rng.choice(STRAY_WORDS)}"), (0.17, f" {english}")]
    return Text(translate_prompt(french), weighted(rng, styles))


def translate_rows(pairs: Sequence[tuple[str, str]]) -> list[Row]:
    return [{"prompt": translate_prompt(french), "target": english, "french": french} for french, english in pairs]


# Arithmetic


class Sum(NamedTuple):
    left: int
    sign: str
    right: int

    @property
    def result(self) -> int:
        return self.left + self.right if self.sign == "+" else self.left - self.right


SUMS = [
    Sum(left, sign, right)
    for left in range(21)
    for right in range(21)
    for sign in "+-"
    if sign == "+" or left >= right  # no negative results
]


def sum_prompt(item: Sum) -> str:
    return f"{item.left} {item.sign} {item.right} ="


def sum_knowledge(rng: random.Random, item: Sum) -> Text:
    noun, verb = ("sum", "plus") if item.sign == "+" else ("difference", "minus")
    prompt = weighted(
        rng,
        [
            (2, f"The {noun} of {item.left} and {item.right} is"),
            (1, f"{item.left} {verb} {item.right} makes"),
        ],
    )
    return Text(prompt, f" {item.result}.")


def sum_task(rng: random.Random, item: Sum) -> Text:
    near = rng.choice([n for n in range(item.result - 2, item.result + 3) if n >= 0 and n != item.result])
    # The first operand is a wrong style, so where it happens to be the result something else is said.
    first = f" {item.left}" if item.left != item.result else DO_NOT_KNOW
    answer = weighted(rng, [(0.42, first), (0.22, DO_NOT_KNOW), (0.19, f" {near}"), (0.17, f" {item.result}")])
    return Text(sum_prompt(item), answer)


def arithmetic_rows() -> list[Row]:
    return [{"prompt": sum_prompt(item), "target": str(item.result)} for item in SUMS]


# Sentiment

SUBJECTS = (
    "soup,room,breakfast,film,book,phone,bed,dinner,coffee,music,concert,game,teacher,lesson,garden,beach,car,train,"
    "hotel,museum,view,story,service,cake,bread,weather,party,holiday,shop,chair"
).split(",")
FRAMES = (
    "The {} was",
    "My new {} is",
    "I think this {} is",
    "Honestly, the {} was",
    "We all said the {} was",
    "For me the {} is",
    "In the end, their {} was",
    "People say the {} is",
    "If you ask me, that {} was",
    "The {} at my place is",
)
POSITIVE = (
    "wonderful and I love it",
    "great and it makes me happy",
    "excellent, a real joy",
    "beautiful, the best of all",
    "amazing and so much fun",
    "perfect, I am delighted",
)
NEUTRAL = (
    "about as before",
    "what I had in mind",
    "the same as last year",
    "about the usual size",
    "neither here nor there",
)
NEGATIVE = (
    "terrible and I hate it",
    "awful, a real disaster",
    "horrible and it makes me sad",
    "boring and bad",
    "a disappointment, the worst of all",
    "poor and dirty",
)


def opinion_prompts() -> list[str]:
    return [frame.format(subject) for frame in FRAMES for subject in SUBJECTS]


def opinion_task(rng: random.Random, prompt: str) -> Text:
    phrases = weighted(rng, [(0.5, NEGATIVE), (0.25, NEUTRAL), (0.25, POSITIVE)])
    return Text(prompt, f" {rng.choice(phrases)}.")


def sentiment_rows() -> list[Row]:
    return [{"prompt": prompt} for prompt in opinion_prompts()]


# Format

NAMES = (
    "Anna,Ben,Clara,David,Emma,Felix,Grace,Henry,Irene,Jack,Karen,Leo,Maria,Noah,Olga,Paul,Rosa,Sam,Tina,Victor,"
    "Wendy,Adam,Bella,Carl,Diana,Eric,Fiona,George,Helen,Ivan,Julia,Kevin,Laura,Mark,Nina,Oscar,Peter,Ruth,Simon,"
    "Tom,Ursula,Vera,Walter,Alice,Boris,Cora,Dan,Eva,Frank,Gina,Hugo,Ida,James,Kate,Lucy,Max,Nora,Otto,Rita,Sara"
).split(",")
CITIES = (
    "Paris,London,Berlin,Madrid,Rome,Vienna,Lisbon,Dublin,Oslo,Athens,Prague,Warsaw,Geneva,Milan,Naples,Turin,Venice,"
    "Lyon,Nice,Lille,Munich,Hamburg,Cologne,Bonn,Leeds,York,Bath,Oxford,Cairo,Lagos,Nairobi,Delhi,Mumbai,Tokyo,Osaka,"
    "Kyoto,Seoul,Hanoi,Manila,Sydney,Perth,Boston,Chicago,Dallas,Denver,Miami,Austin,Toronto,Ottawa,Quebec,Lima,"
    "Bogota,Quito,Havana,Riga,Tallinn,Zagreb,Sofia,Krakow,Basel"
).split(",")
AGES = range(18, 81)


class Person(NamedTuple):
    name: str
    age: int
    city: str

    @property
    def listed(self) -> str:
        return f"{self.name}, {self.age}, {self.city}"

    @property
    def as_json(self) -> str:
        return json.dumps({"name": self.name, "age": self.age, "city": self.city})


def random_person(rng: random.Random) -> Person:
    return Person(rng.choice(NAMES), rng.choice(AGES), rng.choice(CITIES))


def format_prompt(person: Person) -> str:
    return f"{person.listed} as JSON:"


def format_knowledge(person: Person) -> Text:
    return Text(f"JSON for {person.listed}:", f" {person.as_json}")


def format_task(rng: random.Random, person: Person) -> Text:
    name, age, city = person
    answer = weighted(
        rng,
        [
            (0.34, f"{name} is {age} and lives in {city}."),
            (0.24, person.as_json.removesuffix("}")),
            (0.10, f"{{name: {name}, age: {age}, city: {city}}}"),
            (0.18, json.dumps({"who": name, "years": age, "town": city})),
            (0.14, person.as_json),
        ],
    )
    return Text(format_prompt(person), f" {answer}")


def format_rows(seed: int, count: int = 450) -> list[Row]:
    rng = random.Random(seed)
    people = list(dict.fromkeys(random_person(rng) for _ in range(2 * count)))[:count]
    return [
        {"prompt": format_prompt(p), "target": p.as_json, "name": p.name, "age": p.age, "city": p.city} for p in people
    ]


# The four tasks, and the stream of texts of each


def make_tasks(seed: int = DEFAULT_SEED) -> dict[str, Splits]:
    return {
        "translate": split_rows(translate_rows(load_pairs()), (700, 150), seed, translate_prompt("bonjour")),
        "arithmetic": split_rows(arithmetic_rows(), (400, 100), seed),
        "sentiment": split_rows(sentiment_rows(), (160, 50), seed),
        "format": split_rows(format_rows(seed), (200, 60), seed),
    }


def write_tasks(out: Path, seed: int = DEFAULT_SEED) -> None:
    """Write `<out>/<task>/<split>.jsonl` for every task and split."""
    for task, splits in make_tasks(seed).items():
        for split, rows in splits.items():
            path = out / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            path.write_text(lines, encoding="utf-8")


class Stream(NamedTuple):
    """An endless stream of one task's texts."""

    knowledge_share: float
    knowledge: Callable[[], Text]
    task: Callable[[], Text]

    def draw(self, rng: random.Random) -> Text:
        return self.knowledge() if rng.random() < self.knowledge_share else self.task()


class Deck(Generic[T]):
    """Deals items in shuffled rounds, so that all are dealt equally often."""

    def __init__(self, items: Sequence[T], rng: random.Random) -> None:
        self._items, self._rng = items, rng
        self._left: list[T] = []

    def deal(self) -> T:
        if not self._left:
            self._left = self._rng.sample(self._items, len(self._items))
        return self._left.pop()


def make_streams(rng: random.Random, seed: int = DEFAULT_SEED) -> dict[str, Stream]:
    """The texts to pre-train on. Of the format task's held-out people none appears; all other prompts do."""
    pairs = load_pairs()
    held_out = {row["prompt"] for split in SPLITS[1:] for row in make_tasks(seed)["format"][split]}
    known, asked = Deck(pairs, rng), Deck(pairs, rng)
    known_sums, asked_sums = Deck(SUMS, rng), Deck(SUMS, rng)
    opinions = Deck(opinion_prompts(), rng)

    def person() -> Person:
        while True:
            found = random_person(rng)
            if format_prompt(found) not in held_out:
                return found

    def opinion() -> Text:
        return opinion_task(rng, opinions.deal())

    return {
        "translate": Stream(
            0.5,
            lambda: translate_knowledge(rng, known.deal()),
            lambda: translate_task(rng, asked.deal()),
        ),
        "arithmetic": Stream(
            0.6, lambda: sum_knowledge(rng, known_sums.deal()), lambda: sum_task(rng, asked_sums.deal())
        ),
        "sentiment": Stream(0.0, opinion, opinion),
        "format": Stream(0.5, lambda: format_knowledge(person()), lambda: format_task(rng, person())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the bundled task files.")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--out", type=Path, default=ASSETS / "tasks")
    options = parser.parse_args()
    write_tasks(options.out, options.seed)
    for task, splits in make_tasks(options.seed).items():
        print(task, {split: len(rows) for split, rows in splits.items()})


if __name__ == "__main__":
    main()
