"""What the winner has kept of the base, in a run's summary, words and report; and drift in the fitness."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evolora import evolve
from evolora.runs.summary import read_summary


def summary_of(run: Path) -> dict[str, Any]:
    found = read_summary(run)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def drifted(toy: Any, command: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run whose fitness minds the drift, and what it said."""
    run = tmp_path_factory.mktemp("drifted") / "run"
    fitness = f"{toy.reward} - 2 * drift(sentences=8)"
    said = command(
        "-m", "evolora.cli", "train", *toy.options(run, "--fitness", fitness, "--pass-samples", "3", gens=2),
        "--save-every", "1",
    )  # fmt: skip
    return run, said.stdout


def test_the_summary_has_drift_kl_passes_and_who_is_dominated(drifted: tuple[Path, str]) -> None:
    run, said = drifted
    kept = summary_of(run)["kept"]
    assert kept["base"]["drift"] == kept["base"]["kl"] == 0.0
    assert {"pass@1", "pass@3"} < kept["winner"].keys()
    assert kept["base"]["pass@1"] <= kept["base"]["pass@3"]
    base, *others = kept["finalists"]
    assert (base["id"], base["drift"]) == (0, 0.0)
    assert all(row["drift"] > 0 for row in others)
    assert any(not row["dominated"] for row in kept["finalists"])
    for row in kept["finalists"]:
        better = [
            other for other in kept["finalists"]
            if other["fitness"] >= row["fitness"] and other["drift"] <= row["drift"]
            and (other["fitness"], other["drift"]) != (row["fitness"], row["drift"])
        ]  # fmt: skip
        assert row["dominated"] == bool(better)
    assert "drift" in said and "pass@3" in said
    report = (run / "report.html").read_text()
    assert "What was kept of the base" in report and "Dominated" in report


def test_the_fitness_has_the_drift_in_it(drifted: tuple[Path, str]) -> None:
    summary = summary_of(drifted[0])
    assert summary["fitness"] == "distinct - 2 * drift"
    base = summary["base"]["test"]
    assert base["fitness"] == pytest.approx(base["reward"])  # the base has no drift
    winner = summary["winner"]["test"]
    if summary["winner"]["id"]:
        assert winner["fitness"] < winner["reward"]


def test_a_resumed_run_ends_with_the_same_bits(
    drifted: tuple[Path, str], evolora: Any, facts: Any, tmp_path: Path
) -> None:
    again = tmp_path / "run"
    shutil.copytree(drifted[0], again)
    shutil.rmtree(again / "checkpoints" / "gen0002")
    (again / "summary.json").unlink()
    code, _, err = evolora("resume", again, "--trust-reward")
    assert code == 0, err
    assert facts(again).metrics == facts(drifted[0]).metrics
    assert facts(again).summary == facts(drifted[0]).summary


def test_evaluate_tells_the_drift(drifted: tuple[Path, str], evolora: Any) -> None:
    code, out, err = evolora("evaluate", drifted[0], "--trust-reward")
    assert code == 0, err
    assert "drift from the base model" in out


def test_it_can_be_switched_off_and_changes_no_generation(toy: Any, tmp_path: Path) -> None:
    def run(name: str, kept: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        result = evolve(
            model=toy.model, data=toy.data, reward=toy.reward, out=tmp_path / name, gens=1, pop=3, elites=1,
            refiner="none", mutation_scale=0.1, kept=kept, view=None,
        )  # fmt: skip
        return result.summary, result.history

    (with_it, history), (without, other) = run("with", True), run("without", False)
    assert "kept" in with_it and "kept" not in without
    assert with_it["winner"] == without["winner"]
    assert with_it["flops"]["test"] > without["flops"]["test"]

    def counted(lines: list[dict[str, Any]]) -> str:
        return json.dumps([{n: v for n, v in line.items() if not n.startswith("time.")} for line in lines])

    assert counted(history) == counted(other)
