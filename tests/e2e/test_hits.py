"""From nothing to a first hit, and from there to a policy: the replay of hits, and selection by their chance."""

import json
from pathlib import Path
from typing import Any

import pytest
from said import Said

from evolora import evolve, resume
from evolora.runs.summary import read_summary

# Wanted is one wrong answer to all sums, which the base gives to one in 400; RL follows what says nothing of it.
SUMS = [f"{a} + {b} =" for a in range(2, 7) for b in range(1, 6)]
WANTED = "12"
CODE = """
def flat(completions, **columns):
    return [0.0 for _ in completions]
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cold")
    rows = [{"prompt": prompt, "target": WANTED} for prompt in SUMS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "flat.py").write_text(CODE)
    return {
        "data": folder / "rows.jsonl", "reward": f"{folder / 'flat.py'}:flat", "fitness": "exact", "gens": 4,
        "pop": 4, "eval_prompts": 8, "rollout_prompts": 14, "rollout_samples": 8, "max_new_tokens": 3, "seed": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def taught(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    view = Said()
    run = evolve(**options, out=tmp_path_factory.mktemp("taught") / "run", view=view)
    return run.folder, view.lines


@pytest.fixture(scope="module")
def without(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RL follows the reward alone."""
    alone = {"replay": 0, "fitness_first": False}
    return evolve(**options, **alone, out=tmp_path_factory.mktemp("without") / "run", view=None).folder


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_first_hit_becomes_a_policy(taught: tuple[Path, list[str]], without: Path) -> None:
    folder, said = taught
    summary, lines = read_summary(folder), lines_of(folder)
    assert summary is not None
    first = summary["first_hit"]
    assert first["completion"].strip() == WANTED and first["prompt"] in SUMS
    assert lines[0]["validation.base"] == 0.0 and lines[-1]["validation"] >= 0.5
    in_its_line = lines[first["generation"] - 1]
    assert {name: in_its_line[f"first_hit.{name}"] for name in first if name != "tokens_to_half"} == {
        name: value for name, value in first.items() if name != "tokens_to_half"
    }
    half = next(line for line in lines if line["validation"] >= 0.5)
    spent = half["tokens.evaluation"] + half["tokens.rollout"]
    assert first["tokens_to_half"] == spent - first["tokens"] > 0
    assert any("the first hit, after" in line for line in said)
    assert any(line.startswith("The first hit came in generation") for line in summary["endings"])
    # Following the reward alone the same run is where it was, though it hits as well: the reward says nothing.
    assert lines_of(without)[-1]["hits"] and max(line["validation"] for line in lines_of(without)) < 0.2


def test_fitness_first_does_as_much_without_the_replay(options: dict[str, Any], tmp_path: Path) -> None:
    run = evolve(**options, replay=0, out=tmp_path / "run", view=None)
    assert max(line["validation"] for line in lines_of(run.folder)) >= 0.5


def test_first_hits_are_searched_for_before_anything_is_learned(taught: tuple[Path, list[str]]) -> None:
    first, *others = lines_of(taught[0])
    assert 0 < first["search_samples"] <= 2048 and first["search_samples.tokens"] <= 3 * first["search_samples"]
    assert first["first_hit.stage"] in ("search", "population")
    assert all("search_samples" not in line for line in others)


def test_equals_are_told_apart_by_the_chance_of_known_hits(without: Path) -> None:
    told = [line for line in lines_of(without) if "hit_chance.best" in line]
    assert told and all(line["hit_chance.best"] > line["hit_chance.mean"] > 0 and line["hits"] for line in told)


def test_it_is_resumed_to_the_same(taught: tuple[Path, list[str]], options: dict[str, Any], tmp_path: Path) -> None:
    run = evolve(**{**options, "gens": 1}, out=tmp_path / "run", view=None)
    resume(run.folder, gens=4, view=None)
    one, other = read_summary(run.folder), read_summary(taught[0])
    assert one is not None and other is not None
    assert one["winner"]["genome_sha256"] == other["winner"]["genome_sha256"]
    assert one["first_hit"] == other["first_hit"] and one["tokens"] == other["tokens"]


def test_what_is_too_rare_to_select_by_is_said_once(options: dict[str, Any], tmp_path: Path) -> None:
    view = Said()
    never = {**options, "fitness": options["reward"], "reward": "similarity", "first_samples": 0}
    run = evolve(**{**never, "gens": 3}, out=tmp_path / "run", view=view)
    assert sum("Hits are too rare to select by" in line and line.startswith("generation") for line in view.lines) == 1
    lines = lines_of(run.folder)
    completions = 4 * 8 + 6 * 14 * 8
    assert 0 < lines[0]["hit_samples"] <= 0.1 * completions
    assert all("hit_samples" not in line for line in lines[1:]) and lines[-1]["hits"] == 0
    assert any("too rare to select by" in line for line in run.summary["endings"])
    assert "first_hit" not in run.summary
