"""The rewards that read text and nothing else: parity with the packages' own functions and with naive ones, their
properties, and what they refuse."""

import builtins
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from evolora.errors import InputError
from evolora.rewards import Reward, RewardScorer, exact, json_object, reward_name, sentiment, similarity
from evolora.rewards.diversity import make_diversity
from evolora.rewards.json_object import make_json
from evolora.rewards.json_schema import make_json_schema
from evolora.rewards.length import make_brevity, make_length
from evolora.rewards.overlap import make_bleu, make_chrf, make_rouge
from evolora.rewards.registry import BUILTIN_REWARDS, builtin_factory
from evolora.rewards.sentiment import make_sentiment
from evolora.rewards.targets import target_text, target_texts
from evolora.rewards.text import make_contains, make_edit, make_exact, make_regex, make_similarity

any_text = st.text(max_size=25)
words = st.text(alphabet="abc", min_size=1, max_size=3)
sentence = st.lists(words, min_size=1, max_size=8).map(" ".join)
near_sentences = st.tuples(sentence, sentence) | sentence.map(lambda text: (text, text + " a"))

AGAINST_TARGET: dict[str, Reward] = {
    "similarity": make_similarity(),
    "exact": make_exact(),
    "edit": make_edit(),
    "edit indel": make_edit(distance="indel"),
    "contains": make_contains(),
    "bleu": make_bleu(),
    "bleu 2 floor": make_bleu(order=2, smooth_method="floor", smooth_value=1.0),
    "bleu add-k": make_bleu(smooth_method="add-k"),
    "bleu none": make_bleu(smooth_method="none", tokenize="intl"),
    "chrf": make_chrf(),
    "chrf++": make_chrf(word_order=2),
    "rouge1": make_rouge(type="rouge1"),
    "rougeL": make_rouge(),
    "rougeLsum": make_rouge(type="rougeLsum", stem=True),
}
WITH_REFERENCES = [name for name in AGAINST_TARGET if name.startswith(("bleu", "chrf", "rouge", "contains"))]
TEXT_ALONE: dict[str, Reward] = {
    "contains": make_contains(text="a"),
    "regex": make_regex(pattern="a+b"),
    "length": make_length(target=3),
    "length characters": make_length(target=5, unit="characters", width=2.5),
    "brevity": make_brevity(limit=4),
    "sentiment": make_sentiment(),
    "json": make_json(),
    "diversity": make_diversity(),
}


def one_sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and "expected" in message
    return message


# --- what holds for all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGAINST_TARGET)
@given(near_sentences)
@settings(max_examples=50)
def test_a_target_reward_is_in_range_and_1_when_equal(name: str, texts: tuple[str, str]) -> None:
    reward = AGAINST_TARGET[name]
    completion, target = texts
    (found,) = reward(completions=[completion], target=[target])
    assert found is not None and 0 <= found <= 1
    (equal,) = reward(completions=[f" {target}\n"], target=[target])
    assert equal == pytest.approx(1, abs=1e-12) and equal <= 1


@pytest.mark.parametrize("name", AGAINST_TARGET)
@given(any_text, any_text.filter(lambda text: re.search("[a-z0-9]", text.lower()) is not None))
@settings(max_examples=50)
def test_a_target_reward_of_any_text_is_in_range(name: str, completion: str, target: str) -> None:
    (found,) = AGAINST_TARGET[name](completions=[completion], target=[target])
    assert found is not None and 0 <= found <= 1


@pytest.mark.parametrize("name", TEXT_ALONE)
@given(st.lists(any_text, min_size=2, max_size=4))
@settings(max_examples=50)
def test_a_reward_of_text_alone_is_in_range(name: str, completions: list[str]) -> None:
    found = TEXT_ALONE[name](prompts=[str(i) for i in range(len(completions))], completions=completions)
    assert len(found) == len(completions)
    assert all(value is not None and 0 <= value <= 1 for value in found)


@pytest.mark.parametrize("name", AGAINST_TARGET)
def test_no_target_is_not_scored(name: str) -> None:
    assert AGAINST_TARGET[name](completions=["a", "b b"], target=[None, "b b"])[0] is None


@pytest.mark.parametrize("name", AGAINST_TARGET)
@given(st.lists(near_sentences, min_size=1, max_size=4))
@settings(max_examples=20)
def test_a_completion_is_scored_by_itself(name: str, rows: list[tuple[str, str]]) -> None:
    reward = AGAINST_TARGET[name]
    together = reward(completions=[c for c, _ in rows], target=[t for _, t in rows])
    assert together == [reward(completions=[c], target=[t])[0] for c, t in rows]


@pytest.mark.parametrize("name", AGAINST_TARGET)
def test_a_number_is_a_target(name: str) -> None:
    assert AGAINST_TARGET[name](completions=["42"], target=[42]) == [pytest.approx(1)]


@pytest.mark.parametrize("name", AGAINST_TARGET)
@pytest.mark.parametrize("target", [True, {"a": 1}, ["a", None], [["a"]]])
def test_a_target_of_another_kind_is_refused(name: str, target: object) -> None:
    with pytest.raises(TypeError, match=r"the target is .*, expected"):
        AGAINST_TARGET[name](completions=["a"], target=[target])


@pytest.mark.parametrize("name", WITH_REFERENCES)
def test_an_empty_list_of_references_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="empty list, expected at least one"):
        AGAINST_TARGET[name](completions=["a"], target=[[]])


@pytest.mark.parametrize("name", ["similarity", "exact", "edit"])
def test_one_text_is_compared_with_one(name: str) -> None:
    with pytest.raises(TypeError, match="expected text or a number"):
        AGAINST_TARGET[name](completions=["a"], target=[["a", "b"]])


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (make_edit, {"distance": "hamming"}, "reward edit: distance is 'hamming', expected one of levenshtein, indel."),
        (make_contains, {"text": ""}, "reward contains: text is empty, expected text to look for."),
        (make_regex, {"pattern": "(a"}, "reward regex: pattern is '(a' (missing ), unterminated subpattern"),
        (make_regex, {"pattern": "a{99999999999}"}, "expected a regular expression of Python's re."),
        (make_length, {"target": 0}, "reward length: target is 0, expected a positive number."),
        (make_length, {"target": 3, "width": 0.0}, "reward length: width is 0.0, expected a positive number."),
        (make_length, {"target": 3, "width": math.nan}, "reward length: width is nan"),
        (make_length, {"target": 3, "width": math.inf}, "reward length: width is inf"),
        (make_length, {"target": 3, "unit": "lines"}, "reward length: unit is 'lines', expected one of words,"),
        (make_brevity, {"limit": 0}, "reward brevity: limit is 0, expected a positive number."),
        (make_brevity, {"unit": "lines"}, "reward brevity: unit is 'lines'"),
        (make_bleu, {"order": 0}, "reward bleu: order is 0, expected a number from 1 to 100."),
        (make_bleu, {"smooth_method": "exponential"}, "reward bleu: smooth_method is 'exponential', expected one of"),
        (make_bleu, {"smooth_value": 0.5}, "smooth_value is given with smooth_method 'exp', expected it with floor"),
        (
            make_bleu,
            {"smooth_method": "floor", "smooth_value": 2.0},
            "smooth_value is 2.0, expected a number in (0, 1]",
        ),
        (make_bleu, {"smooth_method": "add-k", "smooth_value": math.nan}, "smooth_value is nan, expected"),
        (make_bleu, {"tokenize": "spm"}, "reward bleu: tokenize is 'spm', expected one of 13a,"),
        (make_chrf, {"char_order": 0}, "reward chrf: char_order is 0, expected a number from 1 to 100."),
        (make_chrf, {"word_order": -1}, "reward chrf: word_order is -1, expected a number from 0 to 100."),
        (make_chrf, {"beta": 0}, "reward chrf: beta is 0, expected a number from 1 to 100."),
        (make_rouge, {"type": "rouge0"}, "reward rouge: type is 'rouge0', expected rouge1 to rouge9"),
        (make_rouge, {"type": "rougeW"}, "reward rouge: type is 'rougeW'"),
        (make_diversity, {"n": 0}, "reward diversity: n is 0, expected a positive number."),
        (make_diversity, {"unit": "tokens"}, "reward diversity: unit is 'tokens', expected one of words, characters."),
        (make_json_schema, {"schema": "/nowhere.json"}, "/nowhere.json cannot be read (No such file or directory)"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(
    factory: Callable[..., Reward], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        factory(**options)
    assert message in one_sentence(error)


MODULES = {"text", "json_object", "json_schema", "length", "overlap", "diversity", "sentiment"}
NAMES = [name for name, place in BUILTIN_REWARDS.items() if place.split(":")[0].rpartition(".")[2] in MODULES]


@pytest.mark.parametrize("name", NAMES)
def test_the_table_finds_each_factory(name: str) -> None:
    reward = builtin_factory(name)(**({"target": 3} if name == "length" else {}))
    scorer = RewardScorer(reward)
    columns = {"target": ['{"a": 1}'] * 2, "pattern": ["a"] * 2, "schema": [True] * 2}
    scores = scorer.score(["p", "q"], ['{"a": 1}', "b"], columns, [[1, 2], [3]])
    assert scores.rewards[0] > scores.rewards[1] or name in ("length", "brevity", "diversity", "sentiment")
    assert not scores.failed.any()
    expected = {"json": "json_object", "json-schema": "json_schema"}
    assert reward_name(reward) == expected.get(name, name)


def test_the_first_rewards_are_what_they_were() -> None:
    assert (make_similarity(), make_exact(), make_json(), make_sentiment()) == (
        similarity,
        exact,
        json_object,
        sentiment,
    )


def test_targets_as_text() -> None:
    assert target_texts((" a", 3, 2.5)) == ["a", "3", "2.5"]
    assert target_text("\t") == ""


# --- edit ------------------------------------------------------------------------------------------------------------


def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def longest_common_subsequence(a: Any, b: Any) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before, row = row, [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[-1]))
    return row[-1]


pairs = st.tuples(st.text("abc", max_size=12), st.text("abc", max_size=12)) | st.tuples(any_text, any_text)


@given(pairs)
def test_edit_is_the_distance_by_its_definition(texts: tuple[str, str]) -> None:
    a, b = (text.strip() for text in texts)
    longest, total = max(len(a), len(b)), len(a) + len(b)
    wanted = 1 - levenshtein(a, b) / longest if longest else 1.0
    assert make_edit()(completions=[texts[0]], target=[texts[1]]) == [pytest.approx(wanted)]
    wanted = 2 * longest_common_subsequence(a, b) / total if total else 1.0
    assert make_edit(distance="indel")(completions=[texts[0]], target=[texts[1]]) == [pytest.approx(wanted)]


@given(pairs)
def test_edit_is_symmetric_and_indel_bounds_difflib(texts: tuple[str, str]) -> None:
    a, b = texts
    for distance in ("levenshtein", "indel"):
        reward = make_edit(distance=distance)
        assert reward(completions=[a], target=[b]) == reward(completions=[b], target=[a])
        assert (reward(completions=[a], target=[b]) == [1.0]) == (a.strip() == b.strip())
    (indel,) = make_edit(distance="indel")(completions=[a], target=[b])
    assert indel is not None and indel >= SequenceMatcher(None, a.strip(), b.strip()).ratio() - 1e-12


# --- contains, regex -------------------------------------------------------------------------------------------------


@given(st.text("aAbßS ", max_size=12), st.lists(st.text("aAbßS", min_size=1, max_size=2), min_size=1, max_size=4))
def test_contains_counts_the_texts_that_are_there(completion: str, targets: list[str]) -> None:
    (found,) = make_contains(ignore_case=False)(completions=[completion], target=[targets])
    assert found == pytest.approx(sum(one in completion for one in targets) / len(targets))
    (folded,) = make_contains()(completions=[completion], target=[targets])
    assert folded == make_contains()(completions=[completion.upper()], target=[[one.lower() for one in targets]])[0]
    assert folded is not None and found is not None and folded >= found
    (one,) = make_contains(text=targets[0], ignore_case=False)(completions=[completion])
    assert one == make_contains(ignore_case=False)(completions=[completion], target=[targets[0]])[0]


def test_contains_takes_its_text_as_it_is_and_needs_no_target() -> None:
    assert make_contains(text=" red ")(completions=["A Red rose", "scattered", "reds"]) == [1.0, 0.0, 0.0]
    RewardScorer(make_contains(text="a")).score(["p"], ["a"], {})


@pytest.mark.parametrize("target", ["", " \n", ["a", ""]])
def test_contains_refuses_an_empty_target(target: object) -> None:
    with pytest.raises(ValueError, match="not empty text"):
        make_contains()(completions=["a"], target=[target])


@pytest.mark.parametrize(
    ("pattern", "completion", "searched", "whole"),
    [
        ("[0-9]+", " 12\n", 1, 1),
        ("[0-9]+", "at 12", 1, 0),
        ("^at", " at 12", 1, 0),
        ("(?i)AT.*", "at 12", 1, 1),
        ("cat|category", "category", 1, 1),
        (".*", "two\nlines", 1, 0),
        ("", "", 1, 1),
        ("x", "", 0, 0),
    ],
)
def test_regex_searches_or_matches_the_whole(pattern: str, completion: str, searched: int, whole: int) -> None:
    for full, wanted in ((False, searched), (True, whole)):
        assert make_regex(pattern=pattern, full=full)(completions=[completion]) == [wanted]
        assert make_regex(full=full)(completions=[completion], pattern=[pattern]) == [wanted]


def test_regex_takes_each_rows_pattern() -> None:
    assert make_regex()(completions=["a", "a", "a"], pattern=["a", "b", None]) == [1.0, 0.0, None]
    with pytest.raises(ValueError, match=r"the pattern is '\(' .* expected a regular expression"):
        make_regex()(completions=["a"], pattern=["("])
    with pytest.raises(TypeError, match="the pattern is 3, expected text"):
        make_regex()(completions=["a"], pattern=[3])


# --- length ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "lengths"), [("words", [0, 2, 3]), ("characters", [0, 8, 5]), ("tokens", [1, 4, 2])])
def test_length_and_brevity_count_their_unit(unit: str, lengths: list[int]) -> None:
    batch: dict[str, Any] = {"completions": [" ", " two\n abc", "a b c"], "completion_ids": [[0], [5, 6, 7, 0], [8, 0]]}
    assert make_length(target=3, unit=unit, width=10)(**batch) == [1 - abs(n - 3) / 10 for n in lengths]
    assert make_brevity(limit=10, unit=unit)(**batch) == [1 - n / 10 for n in lengths]


@given(st.integers(1, 30), st.floats(0.1, 40), st.integers(0, 80), st.integers(0, 80))
def test_length_falls_with_the_distance_and_brevity_with_the_length(target: int, width: float, a: int, b: int) -> None:
    texts = ["w " * a, "w " * b]
    near, far = make_length(target=target, width=width)(completions=texts)
    assert near is not None and far is not None
    assert (near >= far) if abs(a - target) <= abs(b - target) else (near <= far)
    assert (near == 1) == (a == target) and (near == 0) == (abs(a - target) >= width)
    short, long = make_brevity(limit=target)(completions=texts)
    assert short is not None and long is not None
    assert (short >= long) if a <= b else (short <= long)
    assert (short == 1) == (a == 0) and (short == 0) == (a >= target)


def test_length_goes_to_0_at_nothing_and_twice_the_target() -> None:
    assert make_length(target=2)(completions=["", "a", "a b", "a b c", "a b c d"]) == [0.0, 0.5, 1.0, 0.5, 0.0]


# --- BLEU, chrF, ROUGE -----------------------------------------------------------------------------------------------

references = st.lists(sentence, min_size=1, max_size=3)


@given(sentence, references, st.sampled_from([1, 2, 4]), st.sampled_from(["exp", "floor", "add-k", "none"]))
def test_bleu_is_sacrebleus(completion: str, targets: list[str], order: int, smooth: str) -> None:
    (found,) = make_bleu(order=order, smooth_method=smooth)(completions=[completion], target=[targets])
    metric = sacrebleu.BLEU(max_ngram_order=order, smooth_method=smooth, effective_order=True)
    corpus = metric.corpus_score([completion], [[target] for target in targets])
    assert found == pytest.approx(corpus.score / 100)
    if order == 4:
        assert found == pytest.approx(sacrebleu.sentence_bleu(completion, targets, smooth_method=smooth).score / 100)


def naive_bleu(completion: list[str], target: list[str]) -> float:
    """BLEU-4 of one sentence with NIST's smoothing: the k-th order without a match counts 1 / 2^k."""
    logs, without = [], 0
    for n in range(1, min(4, len(completion)) + 1):
        grams, wanted = (
            Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for text in (completion, target)
        )
        matched = (grams & wanted).total()
        if n == 1 and not any(word in target for word in completion):
            return 0.0
        without += matched == 0
        logs.append(math.log((matched or 2.0**-without) / grams.total()))
    penalty = min(0.0, 1 - len(target) / len(completion))
    return math.exp(penalty + sum(logs) / len(logs))


@given(near_sentences)
def test_bleu_is_its_formula(texts: tuple[str, str]) -> None:
    completion, target = texts
    wanted = naive_bleu(completion.split(), target.split())
    assert make_bleu()(completions=[completion], target=[target]) == [pytest.approx(wanted)]


@given(sentence, references, st.sampled_from([1, 3, 6]), st.sampled_from([0, 1, 2]), st.sampled_from([1, 2, 3]))
def test_chrf_is_sacrebleus(completion: str, targets: list[str], chars: int, n_words: int, beta: int) -> None:
    reward = make_chrf(char_order=chars, word_order=n_words, beta=beta)
    (found,) = reward(completions=[completion], target=[targets])
    sacre = sacrebleu.sentence_chrf(completion, targets, char_order=chars, word_order=n_words, beta=beta)
    assert found == pytest.approx(sacre.score / 100)
    singles = [reward(completions=[completion], target=[target])[0] for target in targets]
    assert found == max(single for single in singles if single is not None)


def naive_chrf(completion: str, target: str) -> float:
    precisions, recalls = [], []
    a, b = completion.replace(" ", ""), target.replace(" ", "")
    for n in range(1, min(6, len(a), len(b)) + 1):
        grams, wanted = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (a, b))
        matched = (grams & wanted).total()
        precisions.append(matched / grams.total())
        recalls.append(matched / wanted.total())
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


@given(near_sentences)
def test_chrf_is_its_formula(texts: tuple[str, str]) -> None:
    assert make_chrf()(completions=[texts[0]], target=[texts[1]]) == [pytest.approx(naive_chrf(*texts))]


@given(sentence, references, st.sampled_from(["rouge1", "rouge2", "rougeL", "rougeLsum"]), st.booleans())
def test_rouge_is_rouge_scores(completion: str, targets: list[str], kind: str, stem: bool) -> None:
    (found,) = make_rouge(type=kind, stem=stem)(completions=[completion], target=[targets])
    scorer = RougeScorer([kind], use_stemmer=stem)
    assert found == pytest.approx(max(scorer.score(target, completion)[kind].fmeasure for target in targets))


@given(near_sentences)
def test_rouge_is_its_formula_and_symmetric(texts: tuple[str, str]) -> None:
    a, b = (text.split() for text in texts)
    wanted = 2 * longest_common_subsequence(a, b) / (len(a) + len(b))
    assert make_rouge()(completions=[texts[0]], target=[texts[1]]) == [pytest.approx(wanted)]
    for kind in ("rouge1", "rouge2", "rougeL"):
        reward = make_rouge(type=kind)
        (there,) = reward(completions=[texts[0]], target=[texts[1]])
        assert reward(completions=[texts[1]], target=[texts[0]]) == [pytest.approx(there)]


@pytest.mark.parametrize("name", [name for name in WITH_REFERENCES if name != "contains"])
def test_overlap_with_nothing_is_0(name: str) -> None:
    reward = AGAINST_TARGET[name]
    assert reward(completions=["", " ", "a", ""], target=["a b", "a", "", ""]) == [0.0] * 4


def test_case_counts_unless_ignored() -> None:
    for factory in (make_bleu, make_chrf):
        assert factory()(completions=["THE CAT"], target=["the cat"]) == [0.0]
        assert factory(ignore_case=True)(completions=["THE CAT"], target=["the cat"]) == [pytest.approx(1)]
    assert make_rouge()(completions=["THE CAT"], target=["the cat"]) == [1.0]


def test_bleus_tokenizer_parts_punctuation_or_does_not() -> None:
    assert make_bleu(order=1)(completions=["a cat."], target=["a cat ."]) == [pytest.approx(1)]
    assert make_bleu(order=1, tokenize="none")(completions=["a cat."], target=["a cat ."])[0] < 0.5
    assert make_bleu(tokenize="char")(completions=["你好吗"], target=["你好嘛"])[0] > 0.3


def test_rouge_refuses_a_target_that_it_cannot_read() -> None:
    with pytest.raises(ValueError, match="the target is '你好', expected words in a-z and 0-9"):
        make_rouge()(completions=["你好"], target=["你好"])


def test_rouge_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import_one = builtins.__import__

    def without_rouge(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("rouge_score"):
            raise ImportError("No module named 'rouge_score'")
        return import_one(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_rouge)
    with pytest.raises(InputError, match=re.escape("pip install 'evolora[rouge]'.")) as error:
        make_rouge()
    one_sentence(error)


# --- JSON Schema -----------------------------------------------------------------------------------------------------

PERSON: dict[str, Any] = {
    "type": "object",
    "required": ["name", "age"],
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}, "city": {"type": "string"}},
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}
OPEN = {**PERSON, "additionalProperties": True}


@pytest.mark.parametrize(
    ("schema", "completion", "expected"),
    [
        (PERSON, '{"name": "Ada", "age": 36}', 1),
        (PERSON, ' {"age": 36.0, "name": "Ada", "city": "London"}\n', 1),
        (PERSON, "Ada, 36", 0),
        (PERSON, '{"name": "Ada", "age": 36} and so on', 0),
        (PERSON, '{"name": "Ada", "age": NaN}', 0),
        (PERSON, "[" * 100_000, 0),
        (PERSON, "", 0),
        (PERSON, "3", 0.2),
        (PERSON, "{}", 0.2),
        (PERSON, '{"name": "Ada"}', 0.5),
        (PERSON, '{"name": "Ada", "age": -1}', 0.5),
        (PERSON, '{"name": "Ada", "age": "36", "city": "London"}', 0.6),
        (PERSON, '{"name": "Ada", "age": 36, "x": 1}', 0.6),
        (PERSON, '{"name": "Ada", "age": 36, "x": 1, "y": 2}', 0.5),
        (OPEN, '{"name": "Ada", "age": 36, "x": 1}', 1),
        (OPEN, '{"name": "Ada", "x": 1, "y": 2, "z": 3}', 0.5),
        ({**OPEN, "minProperties": 3}, '{"name": "Ada", "age": 36}', 0.8),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, "[1, 2]", 1),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, '[1, "2"]', 0.2),
        ({"type": "array"}, '{"a": 1}', 0.2),
        ({"type": "object", "patternProperties": {"^n_": {"type": "integer"}}}, '{"n_a": 1, "n_b": "x"}', 0.2),
        (True, "null", 1),
        (False, "null", 0.2),
        ({"const": 1}, "true", 0.2),
        ({"type": "integer", "maximum": 5}, "1e400", 0.2),
        ({"format": "ipv4"}, '"no address"', 1),
    ],
)
def test_json_schema_gives_partial_credit(schema: Any, completion: str, expected: float, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    wanted = [pytest.approx(expected)]
    assert make_json_schema(schema=str(path))(completions=[completion]) == wanted
    assert make_json_schema()(completions=[completion], schema=[schema]) == wanted
    assert make_json_schema()(completions=[completion], schema=[json.dumps(schema)]) == wanted


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=6,
)
types = st.sampled_from(["object", "array", "string", "integer", "null", "boolean", "number"])
schemas = st.fixed_dictionaries(
    {},
    optional={
        "type": types,
        "required": st.lists(st.sampled_from("abc"), unique=True),
        "properties": st.dictionaries(st.sampled_from("abc"), st.fixed_dictionaries({"type": types}) | st.booleans()),
        "additionalProperties": st.booleans(),
        "minProperties": st.integers(0, 3),
        "maxItems": st.integers(0, 2),
    },
)


@given(schemas, values)
@settings(max_examples=300)
def test_json_schema_is_1_exactly_for_what_jsonschema_calls_valid(schema: dict[str, Any], value: object) -> None:
    (found,) = make_json_schema()(completions=[json.dumps(value)], schema=[schema])
    valid = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert found is not None
    assert (found == 1) == valid
    assert valid or 0.2 <= found <= 0.8 + 1e-12


@given(schemas, st.dictionaries(st.sampled_from("abcd"), values, max_size=3))
@settings(max_examples=300)
def test_json_schema_does_not_pay_for_names_nobody_asked_for(schema: dict[str, Any], value: dict[str, Any]) -> None:
    schema["type"] = "string"  # so that no object is valid and all is partial credit
    reward = make_json_schema()
    bare, padded = reward(
        completions=[json.dumps(value), json.dumps({**value, "junk": 1, "more": 2})], schema=[schema, schema]
    )
    assert bare is not None and padded is not None and padded <= bare


def test_json_schema_follows_the_draft_that_the_schema_names() -> None:
    tuple_of = {"items": [{"type": "integer"}]}  # a list of schemas means something in draft 7 and is wrong in 2020-12
    draft7 = {"$schema": "http://json-schema.org/draft-07/schema#", **tuple_of}
    assert make_json_schema()(completions=['["a"]', "[1]"], schema=[draft7, draft7]) == [0.2, 1.0]
    with pytest.raises(ValueError, match="is no JSON Schema"):
        make_json_schema()(completions=["[1]"], schema=[tuple_of])
    draft3 = {"$schema": "http://json-schema.org/draft-03/schema#", "properties": {"a": {"type": "string"}}}
    assert make_json_schema()(completions=['{"a": 1}', '{"a": "b"}'], schema=[draft3, draft3]) == [0.2, 1.0]


def test_json_schema_may_refer_to_the_standards_own() -> None:
    schema = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    completions = ['{"type": "object"}', '{"type": "thing"}']
    assert make_json_schema()(completions=completions, schema=[schema] * 2) == [1.0, 0.2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"a": NaN}', "is not JSON"),
        ("[1]", "is neither an object nor true or false"),
        ('{"type": "thing"}', "is no JSON Schema ('thing' is not valid under any of the given schemas at $.type)"),
        ('{"pattern": "("}', "is no JSON Schema"),
        ('{"$schema": "http://example.org/own"}', "names the unknown draft 'http://example.org/own'"),
        ('{"$schema": 3}', "names the unknown draft 3"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_json_schema_refuses_a_bad_schema_at_once(text: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        make_json_schema(schema=str(path))
    assert f"reward json-schema: {path} {message}" in one_sentence(error)
    if isinstance(text, str):
        with pytest.raises(ValueError, match=f"which {re.escape(message)}"):
            make_json_schema()(completions=["{}"], schema=[text])


def test_json_schema_column_without_a_schema_is_not_scored() -> None:
    assert make_json_schema()(completions=["{}", "{}"], schema=[None, {}]) == [None, 1.0]


def test_json_schema_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []  # what is raised in there ends as "leads nowhere" too, so it is written down
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: asked.append(args))
    for reference in ("http://example.org/schema.json", "#/$defs/missing", "other.json"):
        with pytest.raises(ValueError, match=r"\$ref leads nowhere"):
            make_json_schema()(completions=["1"], schema=[{"$ref": reference}])
    assert asked == []


def test_json_schema_with_recursion() -> None:
    tree = {"type": "array", "items": {"$ref": "#"}}
    nested = [json.dumps([[[]], []]), "[[3]]", "[" * 400 + "]" * 400]
    assert make_json_schema()(completions=nested, schema=[tree] * 3) == [1.0, 0.2, 0.2]
    with pytest.raises(ValueError, match="leads back to itself"):
        make_json_schema()(completions=["1"], schema=[{"$ref": "#"}])


# --- diversity -------------------------------------------------------------------------------------------------------


def naive_diversity(
    prompts: list[str], completions: list[str], groups: list[int], n: int, unit: str
) -> list[float | None]:
    def grams(text: str) -> set[tuple[str, ...]]:
        parts = text.lower().split() if unit == "words" else list(" ".join(text.lower().split()))
        size = min(n, len(parts))
        return {tuple(parts[i : i + size]) for i in range(len(parts) - size + 1)} if parts else set()

    rewards: list[float | None] = []
    for i, mine in enumerate(map(grams, completions)):
        others = [
            grams(completions[j])
            for j in range(len(completions))
            if groups[j] == groups[i] and prompts[j] != prompts[i]
        ]
        alike = [len(mine & other) / len(mine | other) if mine | other else 1.0 for other in others]
        rewards.append((1 - sum(alike) / len(alike) if mine else 0.0) if others else None)
    return rewards


batches = st.lists(
    st.tuples(
        st.sampled_from("pqr"),
        st.lists(st.sampled_from("a A b c".split()), max_size=5).map(" ".join),
        st.integers(0, 2),
    ),
    max_size=9,
)


@given(batches, st.integers(1, 3), st.sampled_from(["words", "characters"]))
@settings(max_examples=200)
def test_diversity_is_its_formula_in_any_order(batch: list[tuple[str, str, int]], n: int, unit: str) -> None:
    prompts, completions, groups = ([row[k] for row in batch] for k in range(3))
    reward = make_diversity(n=n, unit=unit)
    found = reward(prompts=prompts, completions=completions, groups=groups)
    assert found == [
        value if value is None else pytest.approx(value, abs=1e-12)
        for value in naive_diversity(prompts, completions, groups, n, unit)
    ]
    backwards = reward(prompts=prompts[::-1], completions=completions[::-1], groups=groups[::-1])
    assert backwards[::-1] == [value if value is None else pytest.approx(value, abs=1e-12) for value in found]


def test_diversity_tells_collapse_from_variety() -> None:
    prompts = ["a", "b", "c", "d"]
    same, different = ["I do not know."] * 4, ["It rains.", "Red, I think.", "Four of them", "Nobody was there"]
    reward = make_diversity()
    assert reward(prompts=prompts, completions=same) == [0.0] * 4
    assert reward(prompts=prompts, completions=different) == [1.0] * 4
    half = reward(prompts=prompts, completions=same[:2] + different[:2])
    assert half == [pytest.approx(2 / 3)] * 2 + [1.0] * 2


def test_diversity_does_not_compare_answers_to_one_prompt_or_of_two_individuals() -> None:
    reward = make_diversity()
    assert reward(prompts=["p", "p"], completions=["a b", "a b"]) == [None, None]
    assert reward(prompts=["p", "q"], completions=["a b", "a b"], groups=[0, 1]) == [None, None]
    prompts, completions = ["p", "q", "p", "q"], ["a b", "c d", "a b", "a b"]
    assert reward(prompts=prompts, completions=completions, groups=[0, 0, 1, 1]) == [1.0, 1.0, 0.0, 0.0]


def test_diversity_does_not_pay_for_silence() -> None:
    assert make_diversity()(prompts=["a", "b", "c"], completions=["", "a b", " \n"]) == [0.0, 1.0, 0.0]


def test_diversity_says_that_it_compares() -> None:
    reward: Any = make_diversity()
    assert reward.compares is True and not hasattr(reward, "version")
    assert make_diversity()(prompts=[], completions=[]) == []
