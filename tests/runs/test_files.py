"""Checkpoints, metrics and lineage: what is written is whole, and what is broken is named."""

import json
import math
import sqlite3
from pathlib import Path

import pytest
import torch

from evolora.errors import CheckpointError
from evolora.files import (
    checkpoint_folder,
    newest_checkpoint,
    read_state,
    seal,
    temporary_folder,
    verify,
    write_folder,
    write_state,
    write_text,
)
from evolora.population.lineage import Lineage
from evolora.population.population import Individual
from evolora.runs.tracking.terminal import MetricsLog, PlainView


def make_checkpoint(run: Path, generation: int, value: float = 0.1) -> Path:
    target = checkpoint_folder(run, generation)
    temporary = temporary_folder(target)
    write_state(temporary, {"genomes": torch.full((2, 3), value), "generation": generation, "seconds": value})
    seal(temporary)
    write_folder(target, temporary)
    return target


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state = {"genomes": torch.randn(3, 5), "fitness": [0.1, 1 / 3, 1e-300], "names": {"a": [1, 2]}}
    write_state(tmp_path, state)
    back = read_state(tmp_path)
    assert torch.equal(back["genomes"], state["genomes"])  # type: ignore[arg-type]
    assert (back["fitness"], back["names"]) == (state["fitness"], state["names"])


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path: Path, name: str, damage: str) -> None:
    older, newer = make_checkpoint(tmp_path, 5), make_checkpoint(tmp_path, 10)
    assert newest_checkpoint(tmp_path) == (newer, [])
    path = newer / ("manifest.json" if damage == "manifest" else name)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=path.name):
        verify(newer)
    found, faults = newest_checkpoint(tmp_path)
    assert found == older
    assert len(faults) == 1
    assert path.name in faults[0]
    (older / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        newest_checkpoint(tmp_path)


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == (None, [])


def test_a_folder_that_was_never_finished_is_no_checkpoint(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)
    temporary = temporary_folder(checkpoint_folder(tmp_path, 10))
    (temporary / "state.json").write_text("{")
    assert newest_checkpoint(tmp_path)[0] == checkpoint_folder(tmp_path, 5)
    # The next attempt starts from an empty folder.
    assert list(temporary_folder(checkpoint_folder(tmp_path, 10)).iterdir()) == []


def test_a_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5, value=0.1)
    folder = make_checkpoint(tmp_path, 5, value=0.2)
    assert read_state(folder)["seconds"] == 0.2
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["gen0005"]


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_metrics_rewind_and_survive_a_line_cut_short(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for generation in range(1, 5):
        log.append({"generation": generation, "ppo.gain": math.nan})
    with log.path.open("a") as file:
        file.write('{"generation": 5, "fit')
    assert [line["generation"] for line in log.read()] == [1, 2, 3, 4]
    log.rewind(2)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in log.path.read_text().splitlines()]
    assert lines == [{"generation": 1, "ppo.gain": None}, {"generation": 2, "ppo.gain": None}]


def test_the_progress_line_names_the_refiner(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"generation": 1, "fitness.best": 0.5, "fitness.mean": 0.25, "validation": 0.4, "best.operator": "grpo"}
    metrics |= {"grpo.gain": 0.1, "grpo.accepted": 1, "grpo.refined": 2, "grpo.kl": 0.3, "time.tokens_per_second": 9.0}
    PlainView().generation(metrics, 2, 0.5)
    assert "  grpo +0.100 (1/2 in)  kl 0.30  by grpo  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gens", "done", "generation", "shown"),
    [
        (20, (0.05, 0.1), "gen  2/20", "18s left"),
        (20, (0.25, 0.5), "gen  2/20", "2s left"),  # a budget is nearer than the last generation
        (None, (0.25, 0.5), "gen 2 (50%)", "2s left"),
        (None, (0.5, 1.25), "gen 2 (125%)", "0s left"),
    ],
)
def test_progress_is_by_the_limit_that_is_nearest(
    gens: int | None,
    done: tuple[float, float],
    generation: str,
    shown: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second passes between the first generation and the second."""
    moments = iter([10.0, 11.0, 12.0])
    monkeypatch.setattr("evolora.runs.tracking.terminal.time.perf_counter", lambda: next(moments))
    view = PlainView()
    metrics = {"fitness.best": 0.5, "fitness.mean": 0.25, "validation": 0.4, "best.operator": "ppo"}
    for number, share in enumerate(done, 1):
        view.generation({**metrics, "generation": number, "time.tokens_per_second": 9.0}, gens, share)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("- left")
    assert second.startswith(generation) and second.endswith(f"  {shown}")


def person(number: int, born: int, parents: tuple[int, ...] = ()) -> Individual:
    return Individual(id=number, parents=parents, operator="gaussian", born=born, mutation_scale=0.02)


def test_the_lineage_rewinds_to_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "lineage.sqlite"

    def rows() -> list[list[tuple[object, ...]]]:
        connection = sqlite3.connect(path)
        tables = ("individuals", "parents", "fitness", "samples")
        found = [sorted(connection.execute(f"SELECT * FROM {table}").fetchall()) for table in tables]
        connection.close()
        return found

    lineage = Lineage(path)
    lineage.born(person(0, 0), torch.zeros(4))
    lineage.born(person(1, 1, (0,)), torch.ones(4))
    lineage.measured(1, "population", [person(0, 0), person(1, 1, (0,))], [0.5, math.nan])
    lineage.commit()
    before = rows()
    assert (1, 1, "population", None) in before[2]
    lineage.born(person(2, 2, (0, 1)), torch.ones(4))
    lineage.measured(2, "population", [person(2, 2)], [0.7])
    lineage.measured(1, "soup", [person(2, 2)], [0.6])
    lineage.measured(1, "test", [person(0, 0)], [0.5])
    lineage.sampled(2, person(2, 2), "validation", ["p"], ["c"], [1.0])
    lineage.commit()
    assert rows() != before
    lineage.rewind(1)
    assert rows() == before
    lineage.born(person(2, 2, (1,)), torch.zeros(4))
    lineage.commit()
    assert (2, 0, 1) in rows()[1]
    lineage.close()


def test_what_was_not_committed_is_not_there(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "lineage.sqlite")
    lineage.born(person(0, 0), torch.zeros(4))
    reader = sqlite3.connect(tmp_path / "lineage.sqlite")
    assert reader.execute("SELECT COUNT(*) FROM individuals").fetchone() == (0,)
    lineage.commit()
    assert reader.execute("SELECT COUNT(*) FROM individuals").fetchone() == (1,)


def test_a_copy_of_the_lineage_lacks_the_generation_under_way(tmp_path: Path) -> None:
    lineage = Lineage(tmp_path / "lineage.sqlite")
    lineage.born(person(0, 0), torch.zeros(4))
    lineage.commit()
    lineage.born(person(1, 1, (0,)), torch.zeros(4))
    lineage.copy(tmp_path / "copy.sqlite")
    lineage.close()
    copy = Lineage(tmp_path / "copy.sqlite")
    assert copy.query("SELECT id FROM individuals") == [(0,)]
    copy.close()
