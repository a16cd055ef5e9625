"""What lies in a run's folder beside its checkpoints: damaged, it is named, set aside and made again."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evolora.errors import CheckpointError
from evolora.files import checkpoint_folder, write_text
from evolora.human.votes import VOTES_FILE
from evolora.population.lineage import Lineage
from evolora.runs.tracking.terminal import metrics_line

METRICS, LINEAGE, SUMMARY, REWARDS = "metrics.jsonl", "lineage.sqlite", "summary.json", "rewards.sqlite"
# A checkpoint's own copies of the first two, which are no part of its adapter.
COPIES = {METRICS: "state.metrics.jsonl", LINEAGE: "state.lineage.sqlite"}
# sqlite's own words about what is damaged may be damaged too.
_UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)
_ELSEWHERE = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM,
}  # fmt: skip


def read_summary(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The summary of a run that is finished and whole up to it, else None; a damaged one is set aside."""
    path = folder / SUMMARY
    if not path.exists():
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        generations = int(summary["generations"])
        if not {"base", "winner", "tokens", "flops"} <= summary.keys():
            raise KeyError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        say(f"{path}: damaged, set aside as {_set_aside(path).name}; it is made again from the last checkpoint")
        return None
    whole = not any(damage.mended for damage in _damages(folder, generations))
    return summary if whole else None


def recover(folder: Path, generation: int, say: Callable[[str], None]) -> None:
    """Make metrics and lineage whole up to `generation`, with what the checkpoint after it holds, and take away what a
    kill has left half done. Raises CheckpointError for damaged votes, which nobody can make again."""
    for leftover in [path for place in (".*", "checkpoints/.*") for path in folder.glob(place)]:
        if leftover.name.endswith((".partial", ".old")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for damage in _damages(folder, generation):
        damage.mend(say)
    if fault := _database_fault(folder / REWARDS):
        aside = _set_aside(folder / REWARDS)
        say(f"{folder / REWARDS}: {fault}, set aside as {aside.name}; rewards are asked for again")
    if fault := _database_fault(folder / VOTES_FILE):
        raise CheckpointError(f"{folder / VOTES_FILE}: {fault}, expected the run's votes: put a copy of them there")


def copy_beside(folder: Path, checkpoint: Path, lineage: Lineage) -> None:
    """Let a checkpoint hold what `recover` makes metrics and lineage again from. Who is damaged is not worth it: what
    else the checkpoint holds is."""
    if (folder / METRICS).is_file():
        shutil.copyfile(folder / METRICS, checkpoint / COPIES[METRICS])
    try:
        lineage.copy(checkpoint / COPIES[LINEAGE])
    except sqlite3.DatabaseError as error:
        _raise_if_elsewhere(error)
        (checkpoint / COPIES[LINEAGE]).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Damage:
    """What is wrong with a file; whether it is `mended`, by setting it aside and `write`, from its `copy` in a
    checkpoint; and which generations are `lost` even so."""

    path: Path
    fault: str
    copy: Path
    lost: list[int]
    mended: bool
    write: Callable[[], object]

    def mend(self, say: Callable[[str], None]) -> None:
        words = [f"{self.path}: {self.fault}"]
        if self.mended and self.path.exists():
            words.append(f"set aside as {_set_aside(self.path).name}")
        if self.mended:
            self.write()
            words.append(
                f"made again from {self.copy.parent.name}" if self.copy.exists() else "begun again with what is left"
            )
        if self.lost:
            words.append(f"nobody knows generation {_spans(self.lost)}")
        say(", ".join(words))


def _damages(folder: Path, generation: int) -> Iterator[_Damage]:
    """The damages of metrics and lineage, which should know the generations up to this one."""
    for name, find in ((METRICS, _metrics_damage), (LINEAGE, _lineage_damage)):
        copy = checkpoint_folder(folder, generation) / COPIES[name]
        if (damage := find(folder / name, copy, generation)) is not None:
            yield damage


def _metrics_damage(path: Path, copy: Path, generation: int) -> _Damage | None:
    (lines, rubbish), (known, _) = _lines(path), _lines(copy)
    best = {**lines, **known}
    lost = [number for number in range(1, generation + 1) if number not in lines or lines[number] != best[number]]
    gone = _missing(best, generation)
    if not lost and not rubbish:
        return None
    text = "".join(best[number] + "\n" for number in range(1, generation + 1) if number in best)
    fault = f"generation {_spans(lost)} missing or damaged" if lost else "has lines that are none"
    return _Damage(path, fault, copy, gone, rubbish or lost != gone, lambda: write_text(path, text))


def _lineage_damage(path: Path, copy: Path, generation: int) -> _Damage | None:
    broken, usable = _database_fault(path), copy.exists() and not _database_fault(copy)
    lost = list(range(1, generation + 1)) if broken else _unrecorded(path, generation)
    gone = [number for number in lost if not usable or number in _unrecorded(copy, generation)]
    altered = usable and not broken and not (path.exists() and _holds(path, copy, generation))
    if not broken and not lost and not altered:
        return None
    fault = broken or (f"generation {_spans(lost)} missing" if lost else f"not what it was in {copy.parent.name}")
    write = partial(shutil.copyfile, copy, path) if usable else lambda: None
    return _Damage(path, fault, copy, gone, altered or bool(broken), write)


def _holds(path: Path, copy: Path, generation: int) -> bool:
    """Whether a lineage has all that its copy has of the generations up to this one, the final tests aside."""
    then = f"generation <= {generation}"
    ours = f"{then} AND stage NOT IN ('final', 'soup', 'test')"
    born = f"child IN (SELECT id FROM copy.individuals WHERE {then})"
    connection = sqlite3.connect(path)
    try:
        connection.execute("ATTACH ? AS copy", (str(copy),))
        return not any(
            connection.execute(
                f"SELECT EXISTS (SELECT * FROM copy.{table} WHERE {where} EXCEPT SELECT * FROM main.{table})"
            ).fetchone()[0]
            for table, where in (("individuals", then), ("parents", born), ("fitness", ours), ("samples", ours))
        )
    except _UNREADABLE as error:
        _raise_if_elsewhere(error)
        return False
    finally:
        connection.close()


def _lines(path: Path) -> tuple[dict[int, str], bool]:
    """The whole lines of a metrics file, as they are, by generation; and whether there are others, but for the last,
    which a kill may have cut short."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    read = [metrics_line(line) for line in lines]
    found = {one["generation"]: line.decode() for one, line in zip(read, lines, strict=True) if one is not None}
    return found, None in read[:-1]


def _missing(found: Iterable[int], generation: int) -> list[int]:
    return sorted(set(range(1, generation + 1)) - set(found))


def _unrecorded(path: Path, generation: int) -> list[int]:
    """The generations up to this one that a lineage does not know."""
    if not path.exists():
        return list(range(1, generation + 1))
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT DISTINCT generation FROM fitness WHERE stage = 'population'").fetchall()
    except _UNREADABLE as error:
        _raise_if_elsewhere(error)
        rows = []
    finally:
        connection.close()
    return _missing((number for (number,) in rows), generation)


def _database_fault(path: Path) -> str | None:
    """What is wrong with a database that is there, if anything is."""
    if not path.exists():
        return None
    connection = sqlite3.connect(path)
    try:
        (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except _UNREADABLE as error:
        _raise_if_elsewhere(error)
        said = str(error)
    finally:
        connection.close()
    return None if said == "ok" else f"damaged ({' '.join(str(said).split())})"


def _raise_if_elsewhere(error: sqlite3.DatabaseError | UnicodeDecodeError) -> None:
    """Where it is not the file that is at fault, but who else holds it, the disk, or the memory."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _ELSEWHERE:
        raise error


def _set_aside(path: Path) -> Path:
    """Rename a file to the first `*.damaged-N` that is free, and what belongs to it as a database."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    journal = path.with_name(f"{path.name}-journal")
    if journal.exists():  # it would be played back into the new one
        journal.rename(aside.with_name(f"{aside.name}-journal"))
    return aside


def _spans(numbers: list[int]) -> str:
    """Numbers in few words.

    >>> _spans([1, 2, 3, 7])
    '1 to 3, 7'
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in spans)
