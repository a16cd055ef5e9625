"""Slow rewards are asked once for what they depend on, over runs and processes; failures and noise are not kept."""

import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evolora.errors import RewardError
from evolora.rewards import RewardContext, RewardScorer, ScoringOptions, function_scorer, make_scorer, parse_reward
from evolora.rewards.base import FailedReward
from evolora.rewards.cache import CachedReward


class Counting:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, object]] = []

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], target: Sequence[object], **_: object
    ) -> list[object]:
        self.asked += zip(prompts, completions, target, strict=True)
        values: dict[str, object] = {"none": None, "nan": math.nan, "failed": FailedReward("was ill")}
        return [values.get(text, float(len(text))) for text in completions]


class Narrow(Counting):
    """Takes only what it names."""

    def __call__(self, completions: Sequence[str]) -> list[object]:  # type: ignore[override]
        self.asked += [("", text, "") for text in completions]
        return [float(len(text)) for text in completions]


def cached(reward: Any, path: Path, version: str = "1", name: str = "counting") -> CachedReward:
    return CachedReward(reward, path, name=name, version=version)


def test_it_is_asked_once_for_what_it_depends_on(tmp_path: Path) -> None:
    reward = Counting()
    store = cached(reward, tmp_path / "rewards.sqlite")
    given = {"prompts": ["p", "p", "q", "p"], "completions": ["a", "ab", "a", "a"], "target": [1, 1, 1, 2]}
    assert store(**given) == [1.0, 2.0, 1.0, 1.0]
    assert len(reward.asked) == 4
    assert store(**given, completion_ids=[[1], [2], [3], [4]]) == [1.0, 2.0, 1.0, 1.0]
    assert len(reward.asked) == 4 and (store.hits, store.misses) == (4, 4)
    store.close()
    # Another process, or a resumed run, opens the same file.
    again = Counting()
    assert cached(again, tmp_path / "rewards.sqlite")(**given) == [1.0, 2.0, 1.0, 1.0] and not again.asked
    for changed in ({"version": "2"}, {"name": "x"}):
        asked = len(again.asked)
        other = cached(again, tmp_path / "rewards.sqlite", **changed)
        assert other(**given) == [1.0, 2.0, 1.0, 1.0] and len(again.asked) == asked + 4


def test_equal_completions_of_a_batch_are_asked_once(tmp_path: Path) -> None:
    reward = Counting()
    store = cached(reward, tmp_path / "rewards.sqlite")
    assert store(prompts=["p"] * 3, completions=["a", "b", "a"], target=[1] * 3) == [1.0] * 3
    assert [text for _, text, _ in reward.asked] == ["a", "b"]


def test_columns_that_it_does_not_take_do_not_matter(tmp_path: Path) -> None:
    reward = Narrow()
    store = cached(reward, tmp_path / "rewards.sqlite")
    assert store(prompts=["p"], completions=["a"], topic=["x"]) == [1.0]
    assert store(prompts=["p"], completions=["a"], topic=["y"]) == [1.0]
    assert len(reward.asked) == 1


def test_none_is_kept_and_failures_are_not(tmp_path: Path) -> None:
    reward = Counting()
    store = cached(reward, tmp_path / "rewards.sqlite")
    given = {"prompts": ["p"] * 3, "completions": ["none", "nan", "failed"], "target": [0] * 3}
    for _ in range(2):
        none, nan, failed = store(**given)
        assert none is None and isinstance(nan, FailedReward) and failed == FailedReward("was ill")
    assert [text for _, text, _ in reward.asked] == ["none", "nan", "failed", "nan", "failed"]
    assert sqlite3.connect(tmp_path / "rewards.sqlite").execute("SELECT reward FROM scores").fetchall() == [(None,)]


def test_what_raises_raises_and_keeps_what_was_there(tmp_path: Path) -> None:
    calls = []

    def fragile(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        calls.append(list(completions))
        if "bad" in completions:
            raise KeyError("bad")
        return [1.0] * len(completions)

    scorer = RewardScorer(cached(fragile, tmp_path / "rewards.sqlite"), on_error="skip")
    assert scorer.score(["p"] * 2, ["a", "b"], {}).rewards.tolist() == [1.0, 1.0]
    scores = scorer.score(["p"] * 3, ["a", "bad", "c"], {})
    assert scores.rewards.tolist() == [1.0, 0.0, 1.0] and scores.failed.tolist() == [False, True, False]
    assert calls[0] == ["a", "b"] and all("a" not in call for call in calls[1:])
    stopping = RewardScorer(cached(fragile, tmp_path / "rewards.sqlite"))
    with pytest.raises(RewardError, match="KeyError"):
        stopping.score(["p"], ["bad"], {})


def test_only_a_reward_that_has_a_version_is_kept(tmp_path: Path) -> None:
    options = ScoringOptions(cache=tmp_path / "rewards.sqlite")
    plain, versioned, compared = Counting(), Counting(), Counting()
    versioned.version = "1"  # type: ignore[attr-defined]
    compared.version, compared.compares = "1", True  # type: ignore[attr-defined]
    for reward, asked in ((plain, 2), (versioned, 1), (compared, 2)):
        for _ in range(2):
            scorer = function_scorer(reward, ["target"], options)
            assert scorer.score(["p"], ["abc"], {"target": [1]}, groups=[0]).rewards.tolist() == [3.0]
            scorer.close()
        assert len(reward.asked) == asked


def test_a_function_of_a_file_says_so_itself(tmp_path: Path) -> None:
    """`python(..., cache=true)`: the file's content is the version."""
    own = tmp_path / "own.py"
    log = tmp_path / "asked"
    source = f"def f(completions, **_):\n    open({str(log)!r}, 'a').write('x')\n    return [%s] * len(completions)\n"
    options = ScoringOptions(cache=tmp_path / "rewards.sqlite")

    def score(text: str) -> float:
        scorer = make_scorer(parse_reward(text), [], options, RewardContext())
        value = float(scorer.score(["p"], ["a"], {}).rewards[0])
        scorer.close()
        return value

    own.write_text(source % 1.0)
    assert [score(f"python({own}:f, cache=true)") for _ in range(3)] == [1.0] * 3 and log.read_text() == "x"
    own.write_text(source % 2.0)
    assert [score(f"python({own}:f, cache=true)") for _ in range(3)] == [2.0] * 3 and log.read_text() == "xx"
    assert [score(f"{own}:f") for _ in range(2)] == [2.0] * 2 and log.read_text() == "xxxx"
    np.testing.assert_equal(score(f"0.5 * python({own}:f, cache=true) + {own}:f"), 3.0)


@pytest.mark.parametrize("damage", ["value", "file"])
def test_what_is_altered_on_disk_is_asked_again(damage: str, tmp_path: Path) -> None:
    path, given = tmp_path / "rewards.sqlite", {"prompts": ["p", "p"], "completions": ["a", "ab"], "target": [1, 1]}
    first = cached(Counting(), path)
    assert first(**given) == [1.0, 2.0]
    first.close()
    if damage == "value":
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE scores SET reward = 3 WHERE reward = 2")
        connection.close()
    else:
        path.write_bytes(b"no database, and longer than a header of one" * 99)
    again = Counting()
    store = cached(again, path)
    assert store(**given) == [1.0, 2.0] and len(again.asked) == (1 if damage == "value" else 2)
    assert store(**given) == [1.0, 2.0] and (store.hits, store.misses) == (4 - len(again.asked), len(again.asked))
    store.close()
