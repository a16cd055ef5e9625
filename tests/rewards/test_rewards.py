import functools
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evolora.errors import InputError, RewardError
from evolora.rewards import (
    BUILTIN_REWARDS,
    Reward,
    RewardScorer,
    Scores,
    check_signature,
    exact,
    json_object,
    load_reward,
    loading,
    register_reward,
    reward_name,
    sentiment,
    similarity,
)

PROMPTS = ["p0", "p1", "p2"]
COMPLETIONS = ["c0", "c1", "c2"]
COLUMNS = {"target": ["t0", "t1", "t2"]}
IDS = [[0], [1], [2]]


def score(reward: Reward, **options: Any) -> Scores:
    return RewardScorer(reward, **options).score(PROMPTS, COMPLETIONS, COLUMNS, IDS)


def one_sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and "expected" in message
    return message


# --- the built-in rewards --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=5))
def test_similarity_is_difflibs_ratio_of_the_stripped_texts(texts: list[tuple[str, str]]) -> None:
    found = similarity([c for c, _ in texts], target=[t for _, t in texts])
    assert found == [SequenceMatcher(None, c.strip(), t.strip()).ratio() for c, t in texts]


@given(st.text(max_size=30))
def test_equal_texts_are_similar_and_exact(text: str) -> None:
    assert similarity([f" {text}\n"], target=[text]) == exact([f" {text}\n"], target=[text]) == [1.0]


def test_text_rewards_on_known_values() -> None:
    assert similarity(["abcd", "", "abc", "x"], target=["bcde", "a", "xyz", None]) == [0.75, 0.0, 0.0, None]
    assert exact(["4 ", "4.0", "Four", "", "x"], target=[4, 4.0, "four", "", None]) == [1.0, 1.0, 0.0, 1.0, None]


@pytest.mark.parametrize("reward", [similarity, exact])
@pytest.mark.parametrize("target", [True, ["a"], {"a": 1}])
def test_text_rewards_refuse_a_target_that_is_no_text(reward: Reward, target: object) -> None:
    with pytest.raises(TypeError, match="expected text or a number"):
        reward(completions=["a"], target=[target])


def test_sentiment_orders_texts_and_stays_in_range() -> None:
    texts = ["This is wonderful, I love it!", "This is good.", "The door is made of wood.", "", "This is horrible!"]
    great, good, plain, empty, bad = sentiment(texts)
    assert 1 >= great > good > plain == empty == 0.5 > bad >= 0


def test_json_without_a_target_is_validity() -> None:
    good = ["{}", ' {"a": [1, {"b": null}]}\n', '{"a": 1e3}']
    bad = ["", "[]", "3", "null", "{'a': 1}", '{"a": 1', '{"a": 1} x', '{"a": NaN}', '{"a": -Infinity}', "[" * 100_000]
    bad.append('{"a": ' + "9" * 5000 + "}")  # more digits than Python turns into a number
    assert json_object(good) == [1.0] * len(good)
    assert json_object(bad) == [0.0] * len(bad)


@pytest.mark.parametrize(
    ("completion", "target", "expected"),
    [
        ('{"a": 1, "b": [2, true]}', '{"b": [2, true], "a": 1.0}', 1.0),
        ("{}", "{}", 1.0),
        ("{}", '{"a": 1}', 0.2),
        ('{"a": 1}', "{}", 0.2),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.6),
        ('{"a": 1, "c": 3}', '{"a": 1, "b": 3}', 0.2 + 0.8 / 3),
        ('{"a": 1}', '{"a": true}', 0.2),
        ('{"a": {"b": [0]}}', '{"a": {"b": [false]}}', 0.2),
        ('{"a": {"b": [0]}}', '{"a": {"b": [0, 1]}}', 0.2),
        ('{"a": null}', '{"b": null}', 0.2),
        ("[1]", '{"a": 1}', 0.0),
        ('{"a": 1}', {"a": 1}, 1.0),
        ('{"a": 1}', None, 1.0),
    ],
)
def test_json_gives_partial_credit(completion: str, target: object, expected: float) -> None:
    assert json_object([completion], target=[target]) == [pytest.approx(expected)]


@pytest.mark.parametrize("target", ["[1]", "no", 3])
def test_json_refuses_a_target_that_is_no_object(target: object) -> None:
    with pytest.raises(ValueError, match="expected a JSON object"):
        json_object(["{}"], target=[target])


flat = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2) | st.booleans() | st.none())


@given(flat, flat)
def test_json_credit_is_symmetric_and_full_only_for_equal_objects(a: dict[str, object], b: dict[str, object]) -> None:
    left, right = json.dumps(a, sort_keys=True), json.dumps(b, sort_keys=True)
    (found,) = json_object([left], target=[right])
    assert json_object([right], target=[left]) == [found]
    assert 0.2 <= found <= 1 and (found == 1) == (left == right)


def test_builtin_rewards_can_be_scored_with_any_further_columns() -> None:
    columns: dict[str, list[object]] = {"target": ['{"a": 1}'], "topic": ["x"], "level": [3]}
    for name in ("similarity", "exact", "sentiment", "json"):
        reward = load_reward(name)
        check_signature(reward, columns)
        scores = RewardScorer(reward).score(["p"], ['{"a": 1}'], columns, [[1, 2]])
        assert scores.rewards == ([0.5] if name == "sentiment" else [1.0])


@pytest.mark.parametrize("name", ["similarity", "exact"])
def test_text_rewards_need_a_target_column(name: str) -> None:
    with pytest.raises(InputError) as error:
        check_signature(load_reward(name), ["topic"])
    message = one_sentence(error)
    assert name in message and "'target'" in message and "(topic)" in message


# --- how a reward is called ------------------------------------------------------------------------------------


# These are written as TRL's documentation writes them, with its signatures and idioms.
def reward_func(completions, **kwargs):  # type: ignore[no-untyped-def]
    """Reward function that gives higher scores to longer completions."""
    return [float(len(completion)) for completion in completions]


def reward_by_ids(completion_ids, **kwargs):  # type: ignore[no-untyped-def]
    return [len(ids) for ids in completion_ids]


def reward_with_ground_truth(prompts, completions, completion_ids, ground_truth, **kwargs):  # type: ignore[no-untyped-def]
    matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth, strict=True)]


def math_reward_func(prompts, completions, task, **kwargs):  # type: ignore[no-untyped-def]
    rewards = []
    for prompt, completion, t in zip(prompts, completions, task, strict=True):
        rewards.append((1.0 if prompt + completion == "1+1=2" else -1.0) if t == "math" else None)
    return rewards


def test_reward_functions_written_for_trl_run_unchanged() -> None:
    columns = {"ground_truth": ["2", "3"], "task": ["math", "coding"]}
    expected: list[tuple[Reward, list[float]]] = [
        (reward_func, [10.0, 1.0]),
        (reward_by_ids, [3.0, 1.0]),
        (reward_with_ground_truth, [1.0, 0.0]),
        (math_reward_func, [-1.0, math.nan]),
    ]
    for function, rewards in expected:
        check_signature(function, columns)
        scorer = RewardScorer(function)
        scores = scorer.score(["1+1=", "1+2="], [r"\boxed{2}!", "3"], columns, [[1, 2, 3], [4]])
        np.testing.assert_array_equal(scores.rewards, rewards)
        assert scores.rewards.dtype == np.float64 and not scores.failed.any()
    assert scorer.unscored == 1 and scorer.failed == 0


def test_a_function_gets_only_the_keywords_that_it_names() -> None:
    seen: list[object] = []

    def some(completions: list[str], *, target: list[object], weight: float = 2.0) -> list[float]:
        seen.append((completions, target, weight))
        return [weight] * len(completions)

    class Object:
        def __call__(self, prompts: list[str]) -> list[float]:
            seen.append(prompts)
            return [0.0] * 3

    def everything(**kwargs: object) -> list[float]:
        seen.append(kwargs)
        return [0.0] * 3

    for function in (some, Object(), everything, functools.partial(some, weight=3.0)):
        check_signature(function, COLUMNS)
        score(function)
    extras = {"trainer_state", "log_extra", "log_metric"}
    assert isinstance(seen[2], dict)
    assert {name: seen[2].pop(name) for name in extras}.keys() == extras
    assert seen == [
        (COMPLETIONS, COLUMNS["target"], 2.0),
        PROMPTS,
        {"prompts": PROMPTS, "completions": COMPLETIONS, "completion_ids": IDS, **COLUMNS},
        (COMPLETIONS, COLUMNS["target"], 3.0),
    ]
    RewardScorer(everything).score(PROMPTS, COMPLETIONS, {})
    assert isinstance(seen[-1], dict) and seen[-1].keys() == {"prompts", "completions", *extras}


def test_a_function_cannot_change_the_callers_lists() -> None:
    def greedy(completions: list[str], target: list[object]) -> list[float]:
        target.clear()
        return [float(len(completions.pop())) for _ in range(3)]

    assert score(greedy).rewards.tolist() == [2.0] * 3
    assert COMPLETIONS == ["c0", "c1", "c2"] and COLUMNS == {"target": ["t0", "t1", "t2"]}


def test_an_empty_batch_calls_nothing() -> None:
    def never(**kwargs: object) -> list[float]:
        raise AssertionError

    scores = RewardScorer(never).score([], [], {"target": []}, [])
    assert scores.rewards.shape == scores.failed.shape == (0,)


def test_a_batch_of_unequal_columns_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match=r"'target': 2"):
        RewardScorer(reward_func).score(["p"], ["c"], {"target": ["a", "b"]})


def by_position(completions: list[str], /) -> list[float]:
    return [0.0] * len(completions)


def wants_environments(completions: list[str], environments: object) -> list[float]:
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (by_position, ("by_position", "'completions'", "position")),
        (wants_environments, ("wants_environments", "'environments'", "(target)")),
        (reward_with_ground_truth, ("reward_with_ground_truth", "'ground_truth'", "(target)")),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_any_work(function: Any, named: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        check_signature(function, COLUMNS)
    message = one_sentence(error)
    assert all(name in message for name in named), message


# --- what comes back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "returned",
    [
        (1, 0.5, None),
        [True, 0.5, None],
        [np.float32(1), np.array(0.5), None],
        [torch.tensor(1), torch.tensor(0.5, dtype=torch.bfloat16), None],
        [np.bool_(True), Fraction(1, 2), None],
    ],
)
def test_all_usual_numbers_are_taken_and_none_is_not_scored(returned: Any) -> None:
    scorer = RewardScorer(lambda **_: returned)
    scores = scorer.score(PROMPTS, COMPLETIONS, COLUMNS)
    np.testing.assert_array_equal(scores.rewards, [1.0, 0.5, math.nan])
    assert not scores.failed.any() and (scorer.completions, scorer.failed, scorer.unscored) == (3, 0, 1)


@pytest.mark.parametrize(
    "returned", [np.arange(3), torch.arange(3.0), torch.arange(3.0, requires_grad=True), range(3), iter([0, 1, 2])]
)
def test_arrays_tensors_and_iterators_are_taken(returned: Any) -> None:
    assert score(lambda **_: returned).rewards.tolist() == [0.0, 1.0, 2.0]


WRONG_BATCHES = [
    (None, "returned None"),
    (1.0, "returned 1.0"),
    ("abc", "returned 'abc'"),
    ({"c0": 1, "c1": 1, "c2": 1}, "returned {'c0'"),
    ({0.0, 1.0, 2.0}, "returned {"),
    ([], "0 values for 3"),
    ([1.0, 2.0], "2 values for 3"),
    ([1.0] * 4, "4 values for 3"),
    (np.float64(1), "returned np.float64(1.0)"),
    (torch.tensor(1.0), "returned tensor(1.)"),
]

WRONG_VALUES = [
    (math.nan, "nan"),
    (math.inf, "inf"),
    (-math.inf, "-inf"),
    (np.float32("nan"), "nan"),
    (torch.tensor(math.inf), "inf"),
    (10**400, "inf"),
    ("1.0", "'1.0'"),
    (1j, "1j"),
    ([1.0], "[1.0]"),
    (torch.tensor([1.0]), "tensor([1.])"),
    ({}, "{}"),
]


@pytest.mark.parametrize(("returned", "found"), WRONG_BATCHES)
def test_what_is_no_list_of_the_right_length_is_an_error(returned: Any, found: str) -> None:
    calls = []

    def wrong(completions: list[str]) -> Any:
        calls.append(completions)
        return returned

    with pytest.raises(RewardError) as error:
        score(wrong)
    message = str(error.value)
    assert message.startswith("reward wrong returned ") and found in message and "expected" in message
    assert "prompt: 'p0'" in message and "completion: 'c0'" in message
    assert calls == [COMPLETIONS]  # called again only to find what raises


@pytest.mark.parametrize(("value", "found"), WRONG_VALUES)
def test_a_wrong_value_is_an_error_that_names_its_completion(value: Any, found: str) -> None:
    with pytest.raises(RewardError) as error:
        score(lambda **_: [1.0, value, 2.0])
    message = str(error.value)
    assert f"returned {found}, expected" in message
    assert "prompt: 'p1'" in message and "completion: 'c1'" in message


@pytest.mark.parametrize(("value", "found"), WRONG_VALUES)
def test_skipping_fails_only_the_completion_with_the_wrong_value(value: Any, found: str) -> None:
    calls = []

    def wrong(completions: list[str]) -> list[Any]:
        calls.append(completions)
        return [1.0, value, None]

    scorer = RewardScorer(wrong, on_error="skip", failed_reward=-2.0)
    scores = scorer.score(PROMPTS, COMPLETIONS, COLUMNS)
    np.testing.assert_array_equal(scores.rewards, [1.0, -2.0, math.nan])
    assert scores.failed.tolist() == [False, True, False]
    assert (scorer.completions, scorer.failed, scorer.unscored) == (3, 1, 1) and scorer.failed_share == 1 / 3
    assert scorer.last_error is not None and found in scorer.last_error and "'c1'" in scorer.last_error
    assert len(calls) == 1


def picky(completions: list[str], **kwargs: object) -> list[float]:
    return [_parse(completion) for completion in completions]


def _parse(text: str) -> float:
    if text == "c1":
        raise ZeroDivisionError("cannot parse it")
    return float(text[1:])


def test_an_exception_is_shown_with_the_functions_traceback_and_the_offender() -> None:
    calls = []

    def spied(completions: list[str], **kwargs: object) -> list[float]:
        calls.append(completions)
        return picky(completions, **kwargs)

    with pytest.raises(RewardError) as error:
        score(spied)
    message = str(error.value)
    assert message.startswith("reward spied raised ZeroDivisionError: cannot parse it\n")
    frames = re.findall(r'File "(.*)", line \d+, in (\S+)', message)
    assert [name for _, name in frames] == ["spied", "picky", "<listcomp>", "_parse"] or [
        name for _, name in frames
    ] == ["spied", "picky", "_parse"]
    assert {file for file, _ in frames} == {__file__}
    assert "prompt: 'p1'" in message and "completion: 'c1'" in message and "c0'" not in message
    assert calls == [COMPLETIONS, ["c0"], ["c1"]]
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_an_exception_of_the_batch_alone_says_so() -> None:
    def crowded(completions: list[str]) -> list[float]:
        if len(completions) > 1:
            raise MemoryError("too many")
        return [1.0]

    with pytest.raises(RewardError, match="none of which raises alone"):
        score(crowded)
    scorer = RewardScorer(crowded, on_error="skip")
    scores = scorer.score(PROMPTS, COMPLETIONS, {})
    assert scores.rewards.tolist() == [1.0] * 3 and scorer.failed == 0
    assert scorer.last_error is not None and "too many" in scorer.last_error


def test_a_generator_that_raises_is_shown_from_its_own_frame() -> None:
    def lazy(completions: list[str]) -> Iterator[float]:
        for completion in completions:
            yield _parse(completion)

    with pytest.raises(RewardError) as error:
        score(lazy)  # type: ignore[arg-type]
    assert re.findall(r"line \d+, in (\S+)", str(error.value)) == ["lazy", "_parse"]
    assert "completion: 'c1'" in str(error.value)


def test_a_call_that_python_refuses_is_a_reward_error() -> None:
    with pytest.raises(RewardError, match=r"missing 1 required positional argument: 'gold'"):
        score(lambda gold: [1.0])


def test_skipping_a_batch_that_raises_keeps_the_other_rewards() -> None:
    scorer = RewardScorer(picky, on_error="skip", failed_reward=-1.0)
    scores = scorer.score(PROMPTS, COMPLETIONS, COLUMNS, IDS)
    assert scores.rewards.tolist() == [0.0, -1.0, 2.0] and scores.failed.tolist() == [False, True, False]
    assert scorer.last_error is not None and "cannot parse it" in scorer.last_error
    scorer.score(["p"], ["c7"], {"target": ["t"]}, [[1]])
    assert (scorer.failed, scorer.completions, scorer.failed_share) == (1, 4, 0.25)


@pytest.mark.parametrize("returned", [value for value, _ in WRONG_BATCHES if not isinstance(value, list)])
def test_skipping_a_function_that_never_works_fails_everything(returned: Any) -> None:
    scorer = RewardScorer(lambda **_: returned, on_error="skip")
    scores = scorer.score(PROMPTS, COMPLETIONS, COLUMNS)
    assert scores.failed.all() and scores.rewards.tolist() == [0.0] * 3 and scorer.failed_share == 1.0


def test_skipping_a_wrong_count_scores_one_at_a_time() -> None:
    def deduplicated(completions: list[str], target: list[object]) -> list[float]:
        assert len(target) == len(completions)
        return [float(text[1:]) for text in sorted(set(completions))]

    scorer = RewardScorer(deduplicated, on_error="skip")
    scores = scorer.score(PROMPTS, ["c1", "c2", "c1"], COLUMNS)
    assert scores.rewards.tolist() == [1.0, 2.0, 1.0] and not scores.failed.any()


def test_an_interrupt_passes_through() -> None:
    def interrupted(**kwargs: object) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(interrupted, on_error="skip")


@pytest.mark.parametrize("options", [{"on_error": "ignore"}, {"failed_reward": math.nan}, {"failed_reward": math.inf}])
def test_a_scorers_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        RewardScorer(reward_func, **options)
    assert next(iter(options)) in one_sentence(error)


def test_a_long_completion_is_cut_in_the_message() -> None:
    with pytest.raises(RewardError) as error:
        RewardScorer(lambda **_: [math.nan]).score(["p"], ["x" * 100_000], {})
    assert len(str(error.value)) < 2500


# --- finding rewards -------------------------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_registered", {})


def test_builtin_names_load() -> None:
    functions = {"similarity": similarity, "exact": exact, "sentiment": sentiment, "json": json_object}
    assert functions.keys() < set(BUILTIN_REWARDS)
    assert all(load_reward(name) is reward for name, reward in functions.items())


@pytest.mark.usefixtures("registry")
def test_a_registered_reward_loads_and_keeps_its_name_to_itself() -> None:
    @register_reward("mine")
    def mine(completions: list[str]) -> list[float]:
        return [0.0] * len(completions)

    assert load_reward("mine") is mine and mine(["a"]) == [0.0]
    assert register_reward("other", reward_func) is reward_func is load_reward("other")
    for name in ("mine", "exact"):
        with pytest.raises(InputError) as error:
            register_reward(name, reward_func)
        assert f"'{name}' is already taken" in one_sentence(error)
    for name in ("", "a:b"):
        with pytest.raises(InputError) as error:
            register_reward(name)
        assert repr(name) in one_sentence(error)
    assert load_reward("mine") is mine and "mine" not in BUILTIN_REWARDS


def test_a_file_can_import_its_neighbours(tmp_path: Path) -> None:
    for folder, value in (("one", 1.0), ("two", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"neighbour_{folder}.py").write_text(f"VALUE = {value}\n")
        (tmp_path / folder / "json.py").write_text(  # the name of a module that is already imported
            "from __future__ import annotations\nimport dataclasses\n"
            f"from neighbour_{folder} import VALUE\n"
            "@dataclasses.dataclass\nclass C:\n    x: int\n"
            "def f(completions):\n    return [VALUE] * len(completions)\n"
        )
    path_before, json_before = list(sys.path), sys.modules["json"]
    first, second = (load_reward(f"{tmp_path / folder / 'json.py'}:f") for folder in ("one", "two"))
    assert (first(completions=["a"]), second(completions=["a"])) == ([1.0], [2.0])
    assert sys.path == path_before and sys.modules["json"] is json_before
    assert sys.modules[first.__module__].f is first


def test_a_module_is_found_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pkg_of_rewards").mkdir()
    (tmp_path / "pkg_of_rewards" / "mine.py").write_text("def f(completions):\n    return [3.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    assert load_reward("pkg_of_rewards.mine:f")(completions=["a"]) == [3.0]
    assert load_reward("pkg_of_rewards/mine.py:f")(completions=["a"]) == [3.0]
    assert load_reward("evolora.rewards:exact") is exact


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("nice", ("'nice'", *BUILTIN_REWARDS, "path.py:function")),
        ("", ("''", "path.py:function")),
        (":f", ("':f'",)),
        ("good.py", ("'good.py'", "path.py:function")),
        ("good.py:", ("'good.py:'",)),
        ("gone.py:f", ("no file at", "gone.py")),
        ("notes/n.txt:f", ("another kind", "notes/n.txt")),
        ("notes/gone:f", ("no file", "notes/gone")),
        ("good.py:g", ("'g'", "good.py")),
        ("good.py:NUMBER", ("NUMBER", "int")),
        ("raises.py:f", ("raises.py", "RuntimeError: two lines")),
        ("syntax.py:f", ("SyntaxError", "syntax.py, line 2")),
        ("leaves.py:f", ("SystemExit: 3",)),
        ("no_such_package.module:f", ("ModuleNotFoundError", "no_such_package")),
        ("evolora.rewards:nothing", ("'nothing'", "evolora.rewards")),
        ("..relative:f", ("..relative",)),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, named: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "n.txt").touch()
    (tmp_path / "good.py").write_text("NUMBER = 3\ndef f(completions): return []\n")
    (tmp_path / "raises.py").write_text("raise RuntimeError('two\\nlines')\n")
    (tmp_path / "syntax.py").write_text("x = 1\ndef (:\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    before = list(sys.path)
    with pytest.raises(InputError) as error:
        load_reward(spec)
    message = one_sentence(error)
    assert "reward" in message and all(name in message for name in named), message
    assert sys.path == before and not any("raises" in name for name in sys.modules if name.startswith("evolora_"))


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (similarity, "similarity"),
        (functools.partial(functools.partial(similarity), target=["a"]), "similarity"),
        (SimpleNamespace(), "SimpleNamespace"),
    ],
)
def test_reward_names(reward: Callable[..., Any], name: str) -> None:
    assert reward_name(reward) == name
