import ast
import importlib.util
import inspect
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolora.errors import InputError
from evolora.rewards import check_signature
from evolora.rewards.verifiable import _EVALUATING, _SYMBOLIC, _dataset, is_formula, make_verifiable
from evolora.tasks import gym_process as gym_items
from evolora.tasks.gym import SIZES, TEMPLATE, gym_rows, parse_gym
from evolora.tasks.gym_process import dump_entry, load_entry
from evolora.tasks.task import Task, load_task

reasoning_gym = pytest.importorskip("reasoning_gym")
factory = importlib.import_module("reasoning_gym.factory")

SMALL = "train=12, validation=4, test=6"


def load(spec: str, seed: int = 0, reward: str | None = None) -> Task:
    return load_task(task=spec, seed=seed, reward=reward)


def entry_of(name: str, index: int = 0, **options: Any) -> tuple[dict[str, Any], str]:
    """An item and its entry."""
    item = reasoning_gym.create_dataset(name, **{"seed": 7, "size": 20, **options})[index]
    options.pop("size", None)
    return item, dump_entry(name, options, item)


def score(completion: str, entry: str, **options: Any) -> float | None:
    scores: list[float | None] = make_verifiable(**options)(completions=[completion], entry=[entry])  # type: ignore[assignment]
    return scores[0]


# --- gym:NAME(...) -----------------------------------------------------------------------------------------------


def test_a_name_alone_has_the_defaults() -> None:
    spec = parse_gym(" gym:gcd ")
    assert (spec.name, spec.options, spec.sizes, spec.template) == ("gcd", {}, SIZES, TEMPLATE)
    assert parse_gym("gym:gcd()") == spec


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-3", -3), ("0.5", 0.5), ("-1e-3", -0.001), ("true", True), ("False", False), ("abc", "abc"),
        ("two words", "two words"), ("'3'", "3"), ('"a, (b) = [c]"', "a, (b) = [c]"), ("''", ""), ("'a\\nb'", "a\nb"),
        ("[1, x, 'y z']", [1, "x", "y z"]), ("[]", []), ("[+, -]", ["+", "-"]), ("1.2.3", "1.2.3"), ("+", "+"),
    ],
)  # fmt: skip
def test_values(text: str, value: object) -> None:
    options = parse_gym(f"gym:gcd( a = {text} ,b={text})").options
    assert options == {"a": value, "b": value} and type(options["a"]) is type(value)


@pytest.mark.parametrize(
    "spec",
    [
        "gym:", "gym:(", "gym:gcd(", "gym:gcd)", "gym:gcd(a)", "gym:gcd(a=)", "gym:gcd(a=1", "gym:gcd(a=1,",
        "gym:gcd(a=1 b=2)x", "gym:gcd(a=1))", "gym:gcd(a=1,a=2)", "gym:gcd(a=[1)", "gym:gcd(a='x)", "gym:gcd(a=1,,b=2)",
        "gym:gcd(a==1)", "gym:gcd(=1)", "gym:g-cd", "gym:gcd a",
        "gym:gcd(train=0)", "gym:gcd(test=x)", "gym:gcd(validation=true)",
        "gym:gcd(template='no question')", "gym:gcd(template=3)", "gym:gcd(a='x'y)",
    ],
)  # fmt: skip
def test_bad_specs_are_refused(spec: str) -> None:
    with pytest.raises(InputError, match="expected") as caught:
        parse_gym(spec)
    assert spec in str(caught.value) and str(caught.value).endswith(".")


@given(st.text(alphabet="gcd()[]=,'\"1a \\", max_size=12))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_gym(f"gym:{text}")
    except InputError as error:
        assert "expected" in str(error)


# --- the questions -----------------------------------------------------------------------------------------------


def test_a_task_has_its_splits_prompts_and_columns() -> None:
    task = load(f"gym:gcd({SMALL}, template='{{question}} ->')")
    assert (len(task.train), len(task.validation), len(task.test)) == (12, 4, 6)
    assert task.held_out and task.reward == "verifiable" and task.columns == ("target", "entry")
    assert all(e.prompt.startswith("Find the Greatest Common") and e.prompt.endswith(" ->") for e in task.test)
    check_signature(make_verifiable(), task.columns)
    for example in task.test:
        numbers = example.prompt.split(":")[1].split(".")[0].split(",")
        assert example.columns["target"] == str(math.gcd(*map(int, numbers)))
    scores = make_verifiable()(
        completions=[f" {e.columns['target']}\n" for e in task.test], entry=[e.columns["entry"] for e in task.test]
    )
    assert scores == [1.0] * 6
    assert load(f"gym:gcd({SMALL})", reward="exact").reward == "exact"


def test_no_question_is_in_two_splits_even_where_there_are_few() -> None:
    task = load("gym:chain_sum(min_terms=2, max_terms=2, min_digits=1, max_digits=1, train=60, validation=20, test=30)")
    prompts = [e.prompt for e in (*task.train, *task.validation, *task.test)]
    assert len(set(prompts)) == len(prompts) == 110


def test_the_seed_decides_and_the_test_split_does_not_depend_on_the_others_sizes() -> None:
    spec = f"gym:gcd({SMALL})"
    assert load(spec) == load(spec)
    other, larger = load(spec, seed=1), load("gym:gcd(train=30, validation=4, test=6)")
    assert not {e.prompt for e in other.test} & {e.prompt for e in load(spec).test}
    assert [(e.prompt, e.columns) for e in larger.test] == [(e.prompt, e.columns) for e in load(spec).test]


def test_questions_do_not_depend_on_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    # It iterates over sets of strings, whose order the hash seed decides.
    name, generated, plain = "isomorphic_strings", [], []
    request = {"name": name, "options": {}, "splits": [["test", 3, 4]]}
    for hash_seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        generated.append([*gym_rows(f"gym:{name}(train=2, validation=1, test=3)", seed=3)])
        arguments = [sys.executable, "-P", gym_items.__file__]
        done = subprocess.run(arguments, input=json.dumps(request), capture_output=True, text=True, check=True)
        plain.append(done.stdout)
    assert generated[0] == generated[1]
    assert plain[0] != plain[1], "or this test could not fail"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gym:gdc", "gcd"),
        ("gym:chainsum", "chain_sum"),
        ("gym:qqqqqq", "chain_sum"),
        ("gym:gcd(max_val=3)", "max_value"),
        ("gym:gcd(seed=3)", "--seed"),
        ("gym:gcd(max_value=x)", "a whole number"),
        ("gym:gcd(max_value=true)", "a whole number"),
        ("gym:basic_arithmetic(allow_negation=1)", "true or false"),
        ("gym:basic_arithmetic(operators=5)", "list"),
        ("gym:gcd(min_numbers=5, max_numbers=2)", "max_numbers must be >= min_numbers"),
        ("gym:gcd(max_value=2)", "different questions"),
        ("gym:composite", "at least one dataset"),
    ],
)
def test_what_cannot_be_generated_is_refused(spec: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load(spec)
    message = str(caught.value)
    assert message.startswith(f"--task {spec} ") and said in message and "\n" not in message and len(message) < 500


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (lambda: load("gym:gcd"), make_verifiable):
        with pytest.raises(InputError, match=r"pip install 'evolora\[verifiable\]'"):
            call()


# --- entries -----------------------------------------------------------------------------------------------------

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["answer", "metadata"]), _VALUES))
def test_an_entry_keeps_tuples_and_keys(item: dict[str, Any]) -> None:
    assert load_entry(dump_entry("gcd", {"max_value": 3}, item)) == ("gcd", {"max_value": 3}, item)


def test_sets_are_kept_and_other_text_is_no_entry() -> None:
    assert load_entry(dump_entry("gcd", {}, {"metadata": {1, 2}}))[2] == {"metadata": {1, 2}}
    for bad in ("", "3", "{}", "[]", '{"dataset": "gcd"}'):
        with pytest.raises(ValueError, match="expected the JSON"):
            load_entry(bad)
    with pytest.raises(TypeError, match="expected text"):
        make_verifiable()(completions=["1"], entry=[3])


# A few seconds for one question.
SLOW = ("knight_swap", "futoshiki", "composite")


@pytest.mark.parametrize("name", sorted({*factory.DATASETS} - {*SLOW}))
def test_every_data_set_scores_the_same_by_the_entry(name: str) -> None:
    item, entry = entry_of(name, size=1)
    dataset = reasoning_gym.create_dataset(name, seed=7)
    if item["answer"] is not None:
        assert score(item["answer"], entry) == 1.0
    if name not in _SYMBOLIC:
        for answer in ("wrong", "[[1, 2], [3, 4]]", "True"):
            try:
                expected = dataset.score_answer(answer, item)
            except Exception:
                expected = 0.0
            assert score(answer, entry) == pytest.approx(expected)


# --- scores ------------------------------------------------------------------------------------------------------


def test_partial_credit_below_the_threshold_is_nothing() -> None:
    item, entry = entry_of("countdown")
    numbers = [str(number) for number in item["metadata"]["numbers"]]
    # Of what is no formula and of a formula that misses the target, reasoning-gym thinks a little.
    assert score("no idea", entry) == 0.01 and score(" + ".join(numbers), entry) == 0.05
    assert score("no idea", entry, threshold=0.02) == 0 and score("1 + 1", entry, threshold=0.06) == 0
    assert score(item["answer"], entry, threshold=1.0) == 1.0
    item, entry = entry_of("chain_sum")
    wordy = f"It is {item['answer']}"
    assert score(wordy, entry) == pytest.approx(len(item["answer"]) / len(wordy))
    assert score(wordy, entry, threshold=1.0) == 0


def test_the_answer_may_be_taken_from_its_tags() -> None:
    answer, entry = (lambda pair: (pair[0]["answer"], pair[1]))(entry_of("chain_sum"))
    told = f"Let me see.\n<answer>no</answer> rather <answer>\n {answer} </answer>, I think"
    assert score(told, entry, extract=True) == 1.0
    extracted = reasoning_gym.utils.extract_answer(told)
    assert extracted == answer
    assert score(answer, entry, extract=True) == 0 and score("<answer></answer>", entry, extract=True) == 0


def test_what_a_data_set_cannot_read_is_wrong_and_no_entry_is_not_scored() -> None:
    item, entry = entry_of("prime_factorization")
    with pytest.raises(ValueError, match="invalid literal"):
        reasoning_gym.create_dataset("prime_factorization", seed=7).score_answer("x", item)
    assert make_verifiable()(completions=["x", item["answer"], "y"], entry=[entry, entry, None]) == [0.0, 1.0, None]


@given(st.text())
def test_scores_are_in_range_whatever_is_written(text: str) -> None:
    for name in ("countdown", "complex_arithmetic", "palindrome_generation", "string_insertion", "dice"):
        value = score(text, ENTRIES[name])
        assert value is not None and 0 <= value <= 1


ENTRIES = {
    name: entry_of(name)[1]
    for name in (
        "complex_arithmetic", "palindrome_generation", "dice", *_EVALUATING, *_SYMBOLIC,
    )
}  # fmt: skip


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold"):
        make_verifiable(threshold=threshold)


def test_the_version_tells_parameters_and_package_apart() -> None:
    versions = {make_verifiable(**options).version for options in ({}, {"threshold": 0.5}, {"extract": True})}  # type: ignore[attr-defined]
    assert len(versions) == 3 and all(importlib.metadata.version("reasoning-gym") in text for text in versions)


# --- no answer is run --------------------------------------------------------------------------------------------


def reads_answers_with(call: Callable[[ast.Call], bool]) -> set[str]:
    """The data sets whose `score_answer` hands the answer to such a call."""
    found = set()
    for name, (kind, _) in factory.DATASETS.items():
        source = ast.parse(inspect.getsource(kind.score_answer).lstrip().replace("\n    ", "\n"))
        if any(isinstance(node, ast.Call) and call(node) for node in ast.walk(source)):
            found.add(name)
    return found


def test_every_data_set_that_evaluates_answers_is_known() -> None:
    def is_named(node: ast.Call, name: str) -> bool:
        return name in (getattr(node.func, "id", None), getattr(node.func, "attr", None))

    def of_the_answer(node: ast.Call) -> bool:
        return any(isinstance(part, ast.Name) and part.id == "answer" for part in node.args)

    assert reads_answers_with(lambda node: is_named(node, "eval") and of_the_answer(node)) == set(_EVALUATING)
    assert reads_answers_with(lambda node: is_named(node, "parse_expr")) == set(_SYMBOLIC)
    assert reads_answers_with(lambda node: is_named(node, "exec") or is_named(node, "sympify")) == set()


@pytest.mark.parametrize("name", [*_EVALUATING, *_SYMBOLIC])
def test_no_answer_is_run_as_code(name: str, tmp_path: Path) -> None:
    target = tmp_path / "written"
    for code in (
        f"open({str(target)!r}, 'w').close()",
        f"__import__('pathlib').Path({str(target)!r}).touch()",
        f"[open({str(target)!r}, 'w')]",
        f"exec(\"open({str(target)!r}, 'w')\")",
    ):
        assert score(code, ENTRIES[name]) in (0.0, 0.01)
        assert not target.exists()


def test_literals_are_still_read() -> None:
    item, entry = entry_of("spiral_matrix")
    as_list = f"[{', '.join(item['answer'].split())}]"
    assert score(as_list, entry) == 0.1 and score(item["answer"], entry) == 1.0
    assert _dataset.cache_info().currsize > 0


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9", "(9**9)**9", "2**1000", "x**(9*99)", "1 if x else 2", "x.real", "[1]", "f(1)", "lambda: 1", "'a'",
        "1" * 2000, "", "a b", "(" * 500, "x := 1", "sqrt.x", "Integral(x, x)", "sin(x, evaluate=1)", "1e999",
    ],
)  # fmt: skip
def test_what_is_no_formula(text: str) -> None:
    assert not is_formula(text)


@pytest.mark.parametrize("name", _SYMBOLIC)
def test_right_answers_are_right(name: str) -> None:
    for index in range(8):
        item, entry = entry_of(name, index)
        assert score(item["answer"], entry) == 1.0
        # Even where the rest would be refused: reasoning-gym itself answers with an integral that it cannot solve.
        assert is_formula(item["answer"]) or "Integral" in item["answer"]
