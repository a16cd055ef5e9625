"""What is damaged beside a run's checkpoints."""

import sqlite3
from pathlib import Path

import pytest

from evolora.errors import CheckpointError
from evolora.population.lineage import Lineage
from evolora.rewards.cache import CachedReward
from evolora.runs.recovery import REWARDS, recover
from evolora.runs.tracking.metrics_log import MetricsLog


def lengths(completions: list[str], **columns: object) -> list[float]:
    return [float(len(text)) for text in completions]


def cached(path: Path) -> CachedReward:
    return CachedReward(lengths, path, name="lengths", version="1")


def test_a_damaged_cache_of_rewards_is_set_aside_and_begun_again(tmp_path: Path) -> None:
    path, said = tmp_path / REWARDS, list[str]()
    for number in (1, 2):
        path.write_text("no database, but long enough to be one " * 99)
        recover(tmp_path, 0, "0" * 32, said.append)
        assert (
            said[-1].startswith(f"{path}: damaged (") and f"{REWARDS}.damaged-{number}; rewards are asked" in said[-1]
        )
        reward = cached(path)
        assert reward(prompts=["p"], completions=["four"]) == [4.0]
        reward.close()
    recover(tmp_path, 0, "0" * 32, said.append)
    assert len(said) == 2 and (tmp_path / f"{REWARDS}.damaged-2").exists()


def test_damaged_votes_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    path.write_text("no database, but long enough to be one " * 99)
    with pytest.raises(CheckpointError, match=r"votes\.sqlite: damaged"):
        recover(tmp_path, 0, "0" * 32, print)
    assert [entry.name for entry in tmp_path.iterdir()] == ["votes.sqlite"]


def test_a_lineage_that_another_process_holds_is_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "lineage.sqlite"
    Lineage(path).close()
    other = sqlite3.connect(path, timeout=0)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            recover(tmp_path, 1, "0" * 32, print)
    finally:
        other.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["lineage.sqlite"]


def test_what_is_whole_of_damaged_metrics_is_kept(tmp_path: Path) -> None:
    """Where no checkpoint has a copy."""
    run, path, said = "0" * 32, tmp_path / "metrics.jsonl", list[str]()
    log = MetricsLog(path, run)
    for generation in (1, 2, 3):
        log.append({"generation": generation, "fitness.best": 0.5})
    whole = path.read_text()
    path.write_text(whole.replace('3, "fitness.best": 0.5', '3, "fitness.best": 0.9'))
    recover(tmp_path, 3, run, said.append)
    assert said[0] == (
        f"{path}: line 3 is altered, or one is missing before it, set aside as metrics.jsonl.damaged-1, "
        "begun again with what is left"
    )
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:2])
