"""The text rewards: the packages' own figures, the formulas in plain code, and what holds for any text."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from evolora.errors import InputError
from evolora.rewards import RewardScorer, load_reward
from evolora.rewards.diversity import Diversity

TEXT = st.text(max_size=30) | st.text("ab cd.", max_size=30)
WITH_TARGET = (
    "similarity", "edit", "exact", "contains", "bleu", "bleu(max_order=2, smoothing=floor)", "chrf",
    "chrf(word_order=2)", "rouge", "rouge(rouge1)",
)  # fmt: skip
ALONE = ("contains(text=a)", "regex('a+b')", "length(3)", "length(target=10, unit=characters)", "brevity", "diversity")


def score(spec: str, *completions: str, **columns: Any) -> list[float | None]:
    given = {"prompts": [f"prompt {row}" for row in range(len(completions))], **columns}
    return list(load_reward(spec)(completions=list(completions), **given))


@pytest.mark.parametrize("spec", WITH_TARGET)
@settings(max_examples=30)
@given(texts=st.lists(TEXT, min_size=1, max_size=4), wanted=TEXT)
def test_a_score_against_a_target_is_within_bounds_and_each_completions_own(
    spec: str, texts: list[str], wanted: str
) -> None:
    together = score(spec, *texts, target=[wanted] * len(texts))
    assert all(value is not None and 0 <= value <= 1 for value in together)
    assert together == [score(spec, text, target=[wanted])[0] for text in texts]
    assert score(spec, *texts, target=[None] * len(texts)) == [None] * len(texts)


@pytest.mark.parametrize("spec", WITH_TARGET)
@given(words=st.lists(st.sampled_from("cat dog house tree".split()), min_size=4, max_size=8))
def test_the_target_itself_earns_all(spec: str, words: list[str]) -> None:
    text = " ".join(words)
    assert score(spec, f" {text} ", target=[text]) == [pytest.approx(1.0)]


@pytest.mark.parametrize("spec", ALONE)
@given(texts=st.lists(TEXT, min_size=1, max_size=5))
def test_a_score_without_a_target_is_within_bounds(spec: str, texts: list[str]) -> None:
    assert all(value is None or 0 <= value <= 1 for value in score(spec, *texts))


def subsequence(a: str, b: str) -> int:
    """The longest common subsequence, by its recursion."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row[:]
        for at, y in enumerate(b, 1):
            row[at] = before[at - 1] + 1 if x == y else max(before[at], row[at - 1])
    return row[-1]


@given(a=st.text("abc", max_size=12), b=st.text("abc", max_size=12))
def test_edit_is_the_longest_common_subsequence(a: str, b: str) -> None:
    expected = 2 * subsequence(a, b) / (len(a) + len(b)) if a or b else 1.0
    assert score("edit", a, target=[b]) == [pytest.approx(expected)] == score("edit", b, target=[a])


PAIRS = [
    ("the cat sat on the mat", "the cat is on the mat"),
    ("hello there", "hello"),
    ("", "cat"),
    ("x", "the cat sat"),
]


@pytest.mark.parametrize(("text", "wanted"), PAIRS)
def test_overlap_is_the_packages(text: str, wanted: str) -> None:
    bleu = sacrebleu.sentence_bleu(text, [wanted], smooth_method="exp", use_effective_order=True).score / 100
    assert score("bleu", text, target=[wanted]) == [pytest.approx(bleu)]
    assert score("chrf", text, target=[wanted]) == [pytest.approx(sacrebleu.sentence_chrf(text, [wanted]).score / 100)]
    plus = sacrebleu.sentence_chrf(text, [wanted], word_order=2).score / 100
    assert score("chrf(word_order=2)", text, target=[wanted]) == [pytest.approx(plus)]
    for kind in ("rouge1", "rougeL"):
        figure = RougeScorer([kind]).score(wanted, text)[kind].fmeasure
        assert score(f"rouge(type={kind})", text, target=[wanted]) == [pytest.approx(figure)]


def test_of_several_references_the_best_counts() -> None:
    wanted = ["a cat sat down", "the cat sat on the mat"]
    for spec in ("bleu", "chrf", "rouge"):
        assert score(spec, "the cat sat on the mat", target=[wanted]) == [pytest.approx(1.0)]
    assert score("bleu", "one two", target=[[]]) == [None]
    with pytest.raises(TypeError, match="expected text, a number, or a list"):
        score("chrf", "one", target=[{"a": 1}])


def test_contains() -> None:
    assert score("contains", "A Cat!", "dog", target=["cat", "cat"]) == [1.0, 0.0]
    assert score("contains(ignore_case=false)", "A Cat!", target=["cat"]) == [0.0]
    assert score("contains", "cats and dogs", target=[["cat", "cow", "dog", 5]]) == [0.5]
    assert score("contains('very good')", "That is VERY GOOD.", "very, good") == [1.0, 0.0]
    assert score("contains", "x", "y", target=[None, []]) == [None, None]


def test_regex() -> None:
    assert score(r"regex('\d+')", "12 apples", "apples") == [1.0, 0.0]
    assert score(r"regex('\d+', full=true)", "12 apples", " 12 ") == [0.0, 1.0]
    assert score("regex", "ab", "b", "c", pattern=["^a", "^a", None]) == [1.0, 0.0, None]
    with pytest.raises(re.error):
        score("regex", "a", pattern=["("])


@given(st.text(max_size=40))
def test_length_and_brevity(text: str) -> None:
    words, characters = len(text.split()), len(text.strip())
    assert score("length(5)", text) == [pytest.approx(max(0, 1 - abs(words - 5) / 5))]
    assert score("length(8, unit=characters, width=4)", text) == [pytest.approx(max(0, 1 - abs(characters - 8) / 4))]
    assert score("brevity(limit=10)", text) == [pytest.approx(max(0, 1 - words / 10))]
    assert score("brevity(4, unit=tokens)", text, completion_ids=[[1, 2, 3]]) == [0.25]


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_json_schema(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    texts = {
        '{"name": "Ada", "age": 36}': 1.0,
        '{"name": "Ada", "age": -1}': 0.6,
        '{"name": "Ada"}': 0.6,
        '{"name": 3, "age": "x"}': 0.2,
        '{"name": "Ada", "age": 36, "extra": 1}': 0.2 + 0.8 * 2 / 3,
        "[]": 0.2,
        '{"name": NaN}': 0.0,
        "Ada": 0.0,
        "[" * 100_000: 0.0,
    }
    assert score(f"json-schema({file})", *texts) == pytest.approx(list(texts.values()))
    # A column has one for each completion, as an object or its text.
    found = score("json-schema", "3", "3", "3", schema=[{"type": "integer"}, '{"type": "string"}', None])
    assert found == [1.0, 0.2, None]
    with pytest.raises(ValueError, match=r"not of type|is not valid"):
        score("json-schema", "3", schema=[{"type": 7}])


def slow_diversity(order: int, prompts: list[str], texts: list[str]) -> list[float | None]:
    """The definition, n-gram by n-gram."""

    def grams(text: str) -> list[tuple[str, ...]]:
        words = text.lower().split()
        found = [tuple(words[at : at + order]) for at in range(len(words) - order + 1)]
        return found if len(words) >= order else [tuple(words)]

    values: list[float | None] = []
    for prompt, text in zip(prompts, texts, strict=True):
        others = sorted(set(prompts) - {prompt})
        if not others:
            values.append(None)
            continue
        written = {
            other: {g for p, t in zip(prompts, texts, strict=True) if p == other for g in grams(t)} for other in others
        }
        counts = Counter(grams(text))
        shares = [sum(gram in written[other] for other in others) / len(others) for gram in counts.elements()]
        values.append(1 - sum(shares) / len(shares))
    return values


@given(
    order=st.integers(1, 3),
    rows=st.lists(st.tuples(st.sampled_from("pqr"), st.text("ab ", max_size=8), st.integers(0, 1)), max_size=8),
)
def test_diversity_is_its_definition_within_each_individual(order: int, rows: list[tuple[str, str, int]]) -> None:
    prompts, texts, groups = ([row[place] for row in rows] for place in range(3))
    found = Diversity(order)(prompts=prompts, completions=texts, groups=groups)
    for group in (0, 1):
        members = [row for row, one in enumerate(groups) if one == group]
        expected = slow_diversity(order, [prompts[row] for row in members], [texts[row] for row in members])
        assert [found[row] for row in members] == pytest.approx(expected)


def test_diversity_does_not_punish_others_for_ones_collapse() -> None:
    texts = ["same old text"] * 3 + ["one thing here", "another there", "and a third"]
    prompts = ["p", "q", "r"] * 2
    scorer = RewardScorer(load_reward("diversity"))
    scores = scorer.score(prompts, texts, {}, groups=[0, 0, 0, 1, 1, 1])
    assert scores.rewards.tolist() == [0.0] * 3 + [1.0] * 3 and scorer.varies


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("contains(text='')", "text is empty"),
        ("regex('(')", "expected a regular expression"),
        ("length(0)", "target is 0"),
        ("length(3, width=0)", "width is 0"),
        ("length(3, unit=pages)", "unit is 'pages', expected one of words"),
        ("brevity(limit=-1)", "limit is -1"),
        ("bleu(max_order=0)", "max_order is 0"),
        ("bleu(smoothing=much)", "expected one of exp"),
        ("chrf(beta=1.5)", "beta is 1.5"),
        ("rouge(rouge9)", "expected one of rouge1"),
        ("diversity(order=0)", "order is 0"),
        ("json-schema(gone.json)", "expected a file"),
    ],
)
def test_bad_options_are_refused(spec: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        load_reward(spec)
    assert said in str(error.value) and "\n" not in str(error.value)
