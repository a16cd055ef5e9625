"""Checkpoints, metrics and lineage: what is written is whole, and what is broken is named."""

import json
import math
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evolora.errors import CheckpointError, InputError
from evolora.files import (
    check_regular,
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
from evolora.runs.tracking.metrics_log import MetricsLog


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


RUN = "0" * 32


def metrics_of(folder: Path, generations: int, run: str = RUN) -> MetricsLog:
    folder.mkdir(exist_ok=True)
    log = MetricsLog(folder / "metrics.jsonl", run)
    log.rewind(0)
    for generation in range(1, generations + 1):
        log.append({"generation": generation, "fitness.best": 0.81, "ppo.gain": math.nan})
    return log


def test_metrics_rewind_and_survive_a_line_cut_short(tmp_path: Path) -> None:
    log, more = metrics_of(tmp_path, 4), {"fitness.best": 0.81, "ppo.gain": None}
    with log.path.open("a") as file:
        file.write('{"generation": 5, "fit')
    assert [line["generation"] for line in log.read()] == [1, 2, 3, 4]
    log.check(4)
    log.rewind(2)
    assert log.read() == [{"generation": 1, **more}, {"generation": 2, **more}]
    for line in log.path.read_text().splitlines():
        assert json.loads(line, parse_constant=pytest.fail)["run"] == RUN
    log.append({"generation": 3})
    again = MetricsLog(log.path, RUN)
    again.rewind(3)
    again.append({"generation": 4, "cut": 0.5})  # as older versions wrote it
    again.check(4)
    assert again.read()[-1] == {"generation": 4, "clipped_ratio": 0.5}


def flipped(line: int) -> Callable[[list[str]], list[str]]:
    return lambda lines: [text.replace("0.81", "0.91") if at == line else text for at, text in enumerate(lines)]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (flipped(0), "line 1 is altered"),
        (flipped(2), "line 3 is altered"),
        (lambda lines: [lines[0], *lines[2:]], "line 2 is altered, or one is missing before it"),
        (lambda lines: lines[1:], "line 1 is altered, or one is missing before it"),
        (lambda lines: lines[:2], "no line of generation 3, expected 3 generations"),
        (lambda lines: [*lines[:2], lines[2][:-9]], "line 3 is altered"),
        (lambda lines: [lines[0], lines[2], lines[1]], "line 2 is altered"),
    ],
)
def test_metrics_that_are_not_what_was_written_are_found(
    damage: Callable[[list[str]], list[str]], named: str, tmp_path: Path
) -> None:
    log = metrics_of(tmp_path, 3)
    log.path.write_text("\n".join(damage(log.path.read_text().splitlines())))
    with pytest.raises(CheckpointError, match=named):
        log.check(3)


def test_metrics_of_another_run_are_found(tmp_path: Path) -> None:
    log = metrics_of(tmp_path, 2, run="1" * 32)
    with pytest.raises(InputError, match=f"metrics.jsonl: is of run {'1' * 32}, expected what belongs to run {RUN}"):
        MetricsLog(log.path, RUN).check(2)


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


def family(path: Path, run: str = RUN) -> Lineage:
    """Of three generations."""
    lineage = Lineage(path, run)
    lineage.born(person(0, 0), torch.zeros(4))
    for generation in (1, 2, 3):
        child = person(generation, generation, (generation - 1,))
        lineage.born(child, torch.full((4,), float(generation)))
        lineage.measured(generation, "population", [child], [0.81])
        lineage.sampled(generation, child, "validation", ["p"], ["c"], [0.81])
        lineage.commit()
    return lineage


def test_a_whole_lineage_stays_whole_when_it_is_rewound(tmp_path: Path) -> None:
    lineage = family(tmp_path / "lineage.sqlite")
    lineage.measured(3, "test", [person(0, 0)], [0.5])
    lineage.commit()
    lineage.check(3)
    lineage.rewind(2)
    lineage.check(2)
    assert Lineage(tmp_path / "lineage.sqlite", "1" * 32).run == RUN
    with pytest.raises(CheckpointError, match="no entries of generation 3"):
        lineage.check(3)
    lineage.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE fitness SET fitness = 0.91 WHERE generation = 2",
        "UPDATE samples SET completion = 'd' WHERE generation = 2",
        "UPDATE individuals SET mutation_scale = 0.03 WHERE generation = 2",
        "UPDATE parents SET parent = 0 WHERE child = 2",
        "DELETE FROM samples WHERE generation = 2",
        "UPDATE checksums SET sha256 = 'a' WHERE generation = 2",
    ],
)
def test_altered_entries_of_the_lineage_are_found(sql: str, tmp_path: Path) -> None:
    family(tmp_path / "lineage.sqlite").close()
    with sqlite3.connect(tmp_path / "lineage.sqlite") as connection:
        connection.execute(sql)
    connection.close()
    lineage = Lineage(tmp_path / "lineage.sqlite", RUN)
    lineage.check(1)
    with pytest.raises(CheckpointError, match="the entries of generation 2 are altered"):
        lineage.check(3)
    lineage.close()


def test_no_flipped_bit_of_the_lineage_is_taken_for_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "lineage.sqlite"
    lineage = family(path)
    tables = ("individuals", "parents", "fitness", "samples", "run")

    def rows(lineage: Lineage) -> list[list[tuple[object, ...]]]:
        return [lineage.query(f"SELECT * FROM {table}") for table in tables]

    whole = rows(lineage)
    lineage.close()
    data, found = path.read_bytes(), 0
    for at in range(0, len(data), 61):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        try:
            lineage = Lineage(path, RUN)
            lineage.check(3)
        except CheckpointError as error:
            assert str(path) in str(error)
            found += 1
            continue
        assert rows(lineage) == whole, at
        lineage.close()
    assert found > 20


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


def test_a_pipe_or_a_device_in_a_runs_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "best" / "file")
    check_regular(tmp_path)
    for name, make in (
        ("pipe", os.mkfifo),
        ("device", lambda path: Path(path).symlink_to("/dev/zero")),
        ("lost", lambda path: Path(path).symlink_to(tmp_path / "nowhere")),
    ):
        path = tmp_path / "best" / name
        make(path)
        with pytest.raises(InputError, match=name):
            check_regular(tmp_path)
        path.unlink()
