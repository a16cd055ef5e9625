"""Genes beyond the weights, with real runs: which evolve, that they survive a resumed run, and that they pay."""

import json
import sqlite3
import tomllib
from pathlib import Path
from typing import Any

import pytest

from evolora import evolve, resume
from evolora.errors import InputError
from evolora.runs.options import make_options

LENGTHS = """
def characters(completions, **kwargs):
    return [len(text) / 40 for text in completions]
"""


@pytest.fixture(scope="module")
def words(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("lengths") / "lengths.py"
    file.write_text(LENGTHS)
    return {
        "model": toy.model,
        "data": toy.data,
        "reward": f"{toy.reward} + 0.5 * {file}:characters",
        "fitness": toy.reward,
        "pop": 4,
        "rl_steps": 1,
        "save_every": 1,
        "view": None,
    }


@pytest.fixture(scope="module")
def finished(words: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evolve(**words, gens=2, out=tmp_path_factory.mktemp("genes") / "run").folder


def lines(run: Path) -> list[dict[str, Any]]:
    kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if not name.startswith("time.") and name not in ("run", "check")}
        for line in kept
    ]


def test_they_are_in_metrics_summary_lineage_and_report(finished: Path) -> None:
    summary, last = json.loads((finished / "summary.json").read_text()), lines(finished)[-1]
    begun = {"lr": 1e-3, "kl_weight": 0.0, "temperature": 1.0, "weight.distinct": 1.0, "weight.characters": 1.0}
    assert summary["genes"]["begun"] == begun and summary["genes"]["winner"].keys() == begun.keys()
    assert all(isinstance(last[f"gene.{name}"], float) for name in begun)
    assert last["gene.weight.distinct"] + last["gene.weight.characters"] == pytest.approx(2)
    with sqlite3.connect(finished / "lineage.sqlite") as database:
        own = database.execute("SELECT name, value FROM genes WHERE individual = 1").fetchall()
        born, known = database.execute("SELECT max(id), count(*) FROM individuals").fetchone()
        assert database.execute("SELECT count(DISTINCT individual) FROM genes").fetchone()[0] == known <= born + 1
    assert {name for name, _ in own} == begun.keys()
    report = (finished / "report.html").read_text()
    assert "What survived beside the weights" in report and "weight.characters" in report
    kept = tomllib.loads((finished / "config.toml").read_text())
    assert kept["strategy"]["genes"] == ["lr", "kl-weight", "temperature", "reward-weights"]


def test_a_resumed_run_is_the_same(words: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    run = evolve(**words, gens=1, out=tmp_path / "run").folder
    resume(run, gens=2, view=None)
    assert lines(run) == lines(finished)
    summaries = [json.loads((each / "summary.json").read_text()) for each in (run, finished)]
    assert summaries[0]["winner"] == summaries[1]["winner"] and summaries[0]["genes"] == summaries[1]["genes"]


@pytest.mark.parametrize(
    ("said", "refine"),
    [
        ({}, (1, "lineage", 6)),
        ({"fitness": "exact", "reward": "similarity"}, (2, "best", 3)),
        ({"fitness": "exact", "reward": "similarity", "pop": 16}, (4, "best", 3)),
        ({"fitness": "exact", "reward": "similarity", "genes": None}, (1, "lineage", 6)),
        ({"genes": "lr", "pop": 6}, (2, "best", 3)),
        ({"genes": ["lr"], "refine_whom": "lineage"}, (1, "lineage", 6)),
        ({"genes": ["lr"], "refine": 2, "rl_steps": 5}, (2, "best", 5)),
    ],
)
def test_with_genes_several_are_refined_side_by_side(said: dict[str, Any], refine: tuple[int, str, int]) -> None:
    options = make_options(said)
    evolution: Any = options.evolution
    assert (evolution.refine, evolution.refine_whom, getattr(options.refiner, "rl_steps", None)) == refine


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (
            {"genes": ["lr", "reward-weights"]},
            "genes=reward-weights with reward=similarity: expected a sum of at least two rewards",
        ),
        ({"genes": ["lr"], "refiner": "none"}, "genes=lr with refiner=none: expected a refiner, whose settings"),
        (
            {"genes": ["kl-weight"], "kl_target": 3, "kl_weight": 0.1},
            "genes=kl-weight with kl_target=3.0: expected one",
        ),
        ({"genes": ["auto", "lr"]}, "genes=auto lr: expected auto alone"),
        ({"genes": ["speed"]}, "should be 'auto', 'lr'"),
    ],
)
def test_what_means_nothing_is_refused(toy: Any, tmp_path: Path, said: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError) as refused:
        evolve(model=toy.model, data=toy.data, **{"reward": "similarity", **said}, out=tmp_path / "run", view=None)
    assert fault in str(refused.value)


MISLEADING = """
def letters(completions, **kwargs):
    return [sum(map(str.isalpha, text)) / max(len(text), 1) for text in completions]
"""


def test_the_term_that_leads_to_what_is_wanted_is_found(tmp_path: Path) -> None:
    """Of a sum of a useful term and one that leads away, which outweighs it (sums are wanted, and letters are paid); at
    the same seed, without replay, and not fitness first, which would follow what is wanted by themselves."""
    (tmp_path / "misleading.py").write_text(MISLEADING)
    words: dict[str, Any] = {
        "task": "arithmetic",
        "reward": f"similarity + 2 * {tmp_path / 'misleading.py'}:letters",
        "fitness": "exact",
        "gens": 3,
        "pop": 6,
        "replay": 0,
        "fitness_first": False,
        "validation_prompts": 32,
        "max_validation_prompts": 64,
        "max_test_prompts": 100,
        "canary": False,
        "view": None,
    }
    with_genes = evolve(**words, out=tmp_path / "with").summary
    without = evolve(**words, genes=None, out=tmp_path / "without").summary
    assert with_genes["genes"]["winner"]["weight.similarity"] > 1 > with_genes["genes"]["winner"]["weight.letters"]
    assert "genes" not in without
    assert with_genes["winner"]["test"]["fitness"] > without["winner"]["test"]["fitness"]
