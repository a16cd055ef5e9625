"""What a run says before it begins and when it ends, with the real command."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from said import Said

from evolora import evolve, resume

# Never given by a random model.
NEVER = """
def never(completions, **columns):
    return [0.0 for _ in completions]
"""


def run_of(toy: Any, folder: Path, **options: Any) -> tuple[dict[str, Any], list[str]]:
    view = Said()
    options = {"model": toy.model, "data": toy.data, "gens": 2, "pop": 4, "rl_steps": 1, "out": folder} | options
    return evolve(**options, view=view).summary, view.lines


def written(folder: Path, code: str, name: str) -> str:
    (folder / f"{name}.py").write_text(code)
    return f"{folder / f'{name}.py'}:{name}"


@pytest.fixture(scope="module")
def cold(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    folder = tmp_path_factory.mktemp("cold")
    return folder / "run", *run_of(toy, folder / "run", reward=written(folder, NEVER, "never"))


def test_a_cold_run_is_warned_of_before_it_begins(cold: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, _, lines = cold
    (warning,) = [line for line in lines if line.startswith("Warning: all 56 completions")]
    assert "on 14 training prompts earn 0. Under 5.2% of them earn anything else, at 95% confidence" in warning
    assert "expect at most 3 among a generation's 64 samples" in warning and "What helps: a term" in warning


def test_a_cold_run_ends_with_the_base_and_says_why(cold: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, summary, lines = cold
    assert (summary["winner"]["id"], summary["winner"]["operator"]) == (0, "base")
    nothing, zero = summary["endings"][:2]
    assert nothing == "Nothing beat the base on the validation prompts: best/ is the base, unchanged."
    assert zero == "All rewards of the run were 0: there was nothing to learn from."
    assert {nothing, zero} <= set(lines)
    card, report = (folder / "best" / "README.md").read_text(), (folder / "report.html").read_text()
    assert zero in card and "this is the unchanged base" in card and nothing in report and zero in report


def test_the_warning_changes_no_bits_and_is_silent_where_rewards_differ(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, lines = run_of(toy, tmp_path / "one", gens=1)
    # The toy's rewards differ; where the base's greedy ones do not, it looks, and stops at once.
    looked: list[bool] = []
    monkeypatch.setattr(
        "evolora.evolution.loop.Evolution._note_earned",
        lambda self, rewards: setattr(self, "earned", (0.5, 0.5)),
    )
    monkeypatch.setattr("evolora.runs.outlook._warning", lambda *found: looked.append(True))
    again, _ = run_of(toy, tmp_path / "two", gens=1)
    assert not looked and not [line for line in lines if line.startswith("Warning: all")]
    assert again["winner"]["genome_sha256"] == summary["winner"]["genome_sha256"]


def test_a_hacked_reward_is_told_while_it_rises_and_at_the_end(tmp_path: Path) -> None:
    view = Said()
    summary = evolve(
        task="translate",
        reward="length(8)",
        fitness="exact",
        fitness_first=False,  # or RL would follow the fitness where it can
        gens=1,
        pop=4,
        out=tmp_path / "run",
        view=view,
    ).summary
    (line,) = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert line["validation.reward"] > line["validation.base_reward"] and line["validation"] <= line["validation.base"]
    during, after = [line for line in view.lines if "fitness did not: what RL follows is not what is wanted" in line]
    assert re.match(r"generation 1: The reward rose on the validation prompts, from 0\.\d+ to 0\.\d+, and", during)
    assert after in summary["endings"] and summary["winner"]["id"] == 0


def test_until_and_patience_end_a_run_and_it_goes_on_when_told(toy: Any, tmp_path: Path) -> None:
    summary, lines = run_of(toy, tmp_path / "run", gens=4, until=-1.0)
    assert summary["generations"] == 1 and "generation 1 is the last: validation" in " ".join(lines)
    view = Said()
    assert resume(tmp_path / "run", gens=3, view=view).summary["generations"] == 1
    assert any(line.startswith("the run is over: validation") for line in view.lines)
    on = resume(tmp_path / "run", until=None, gens=2, view=None).summary
    whole, _ = run_of(toy, tmp_path / "whole", gens=2)
    assert on["generations"] == 2 and on["winner"]["genome_sha256"] == whole["winner"]["genome_sha256"]
    flat, _ = run_of(toy, tmp_path / "flat", gens=6, patience=2, reward=written(tmp_path, NEVER, "never"))
    assert flat["generations"] == 2


def test_a_single_pair_ends_when_it_is_solved(tmp_path: Path, evolora: Any) -> None:
    pair = ("--prompt", "Translate 'bonjour' to English:", "--target", "hello")
    code, out, err = evolora("train", *pair, "--pop", "4", "--out", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert code == 0 and not err
    assert summary["generations"] < 20 and summary["winner"]["validation"] == 1.0
    assert "is the last: validation 1.000 has reached --until 1" in out
