"""What lies in a run's folder beside its checkpoints: damaged, it is named, set aside and made again."""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

from evolora.errors import CheckpointError
from evolora.files import checkpoint_folder
from evolora.human.votes import VOTES_FILE
from evolora.population.lineage import Lineage, raise_if_elsewhere
from evolora.runs.identity import check_run
from evolora.runs.tracking.chain import check_chain, whole_lines

METRICS, LINEAGE, REWARDS = "metrics.jsonl", "lineage.sqlite", "rewards.sqlite"
# What the reward prints.
REWARD_LOG = "reward.log"
# A checkpoint's own copies of the first two, which are no part of its adapter.
COPIES = {METRICS: "state.metrics.jsonl", LINEAGE: "state.lineage.sqlite"}
# sqlite's own words about what is damaged may be damaged too.
_UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)


def check_ledgers(folder: Path, generation: int, run: str) -> None:
    """Raise CheckpointError where metrics or lineage are not whole up to `generation`, InputError where they are of
    another run than the one whose id is `run`."""
    check_chain(folder / METRICS, run, generation)
    check_lineage(folder / LINEAGE, run, generation)


def check_lineage(path: Path, run: str, generation: int) -> None:
    """`check_ledgers` for the lineage alone."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    with contextlib.closing(Lineage(path)) as lineage:
        if lineage.run is None:
            raise CheckpointError(f"{path}: empty, it does not say of which run it is")
        check_run(path, lineage.run, run)
        lineage.check(generation)


def recover(folder: Path, generation: int, run: str, say: Callable[[str], None]) -> None:
    """Make metrics and lineage whole up to `generation`, with what the checkpoint after it holds, and take away what a
    kill has left half done. Raises CheckpointError for damaged votes, which nobody can make again, InputError for files
    of another run."""
    for leftover in [path for place in (".*", "checkpoints/.*") for path in folder.glob(place)]:
        if leftover.name.endswith((".partial", ".old")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    checkpoint = checkpoint_folder(folder, generation)
    for name, check in ((METRICS, check_chain), (LINEAGE, check_lineage)):
        path = folder / name
        if generation or path.exists():
            _mend(path, checkpoint / COPIES[name], partial(check, run=run, generation=generation), say)
    if fault := _database_fault(folder / REWARDS):
        aside = set_aside(folder / REWARDS)
        say(f"{folder / REWARDS}: {fault}, set aside as {aside.name}; rewards are asked for again")
    if fault := _database_fault(folder / VOTES_FILE):
        raise CheckpointError(f"{folder / VOTES_FILE}: {fault}, expected the run's votes: put a copy of them there")


def _mend(path: Path, copy: Path, check: Callable[[Path], None], say: Callable[[str], None]) -> None:
    try:
        check(path)
        return
    except CheckpointError as fault:
        words = [str(fault)]
    damaged = set_aside(path) if path.exists() else None
    if damaged is not None:
        words.append(f"set aside as {damaged.name}")
    try:
        check(copy)
        shutil.copyfile(copy, path)
        words.append(f"made again from {copy.parent.name}")
    except CheckpointError:  # it was damaged before the checkpoint was made
        if path.name == METRICS and damaged is not None:
            path.write_bytes(whole_lines(damaged))
        words.append("begun again with what is left")
    say(", ".join(words))


def copy_beside(folder: Path, checkpoint: Path, lineage: Lineage) -> None:
    """Let a checkpoint hold what `recover` makes metrics and lineage again from. Who is damaged is not worth it: what
    else the checkpoint holds is."""
    if (folder / METRICS).is_file():
        shutil.copyfile(folder / METRICS, checkpoint / COPIES[METRICS])
    try:
        lineage.copy(checkpoint / COPIES[LINEAGE])
    except sqlite3.DatabaseError as error:
        raise_if_elsewhere(error)
        (checkpoint / COPIES[LINEAGE]).unlink(missing_ok=True)


def _database_fault(path: Path) -> str | None:
    """What is wrong with a database that is there, if anything is."""
    if not path.exists():
        return None
    connection = sqlite3.connect(path)
    try:
        (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except _UNREADABLE as error:
        raise_if_elsewhere(error)
        said = str(error)
    finally:
        connection.close()
    return None if said == "ok" else f"damaged ({' '.join(str(said).split())})"


def set_aside(path: Path) -> Path:
    """Rename a file to the first `*.damaged-N` that is free, and what belongs to it as a database."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    journal = path.with_name(f"{path.name}-journal")
    if journal.exists():  # it would be played back into the new one
        journal.rename(aside.with_name(f"{aside.name}-journal"))
    return aside
