"""Whether every file of a run is whole, and of this run."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from evolora.errors import CheckpointError, InputError
from evolora.files import check_regular, checkpoints, verify
from evolora.human.votes import VOTES_FILE
from evolora.runs.config_file import check_config
from evolora.runs.fingerprint import given_files
from evolora.runs.identity import IDENTITY, Identity, check_run, read_identity
from evolora.runs.initial import INIT, kept_adapter
from evolora.runs.mutation_scale import MUTATION_SCALE, check_mutation_scale
from evolora.runs.recovery import LINEAGE, METRICS, check_lineage
from evolora.runs.report.page import REPORT, check_report
from evolora.runs.snapshot import check_checkpoint
from evolora.runs.summary import SUMMARY, check_belonging, read_summary
from evolora.runs.tracking.chain import check_chain


def verify_run(folder: Path) -> dict[str, str | None]:
    """What is wrong with each file of the run in `folder`, None where it is whole and of this run; the folders of
    checkpoints, of the winner and of the merged model as one each. Raises InputError for a folder that is no run."""
    if not any((folder / name).is_file() for name in ("config.toml", IDENTITY)):
        raise InputError(f"{folder}: found no config.toml, expected the folder of a run")
    check_regular(folder)
    try:
        identity = read_identity(folder)
    except InputError as error:  # nothing can be said to belong to it
        return {IDENTITY: str(error), "config.toml": _fault(partial(check_config, folder))}
    return {name: _fault(check) for name, check in _checks(folder, identity)}


def _checks(folder: Path, identity: Identity) -> Iterator[tuple[str, Callable[[], object]]]:
    run = identity.run
    yield IDENTITY, partial(read_identity, folder)
    yield "config.toml", partial(check_config, folder)
    for name, sha256 in identity.fingerprint["file"].items():
        yield name, partial(_check_given, folder, name, sha256)
    for number in range(sum(name.startswith("init ") for name in identity.fingerprint.get("LoRA", {}))):
        yield f"{INIT}/{number}", partial(kept_adapter, folder, number)
    generations = 0
    for checkpoint in checkpoints(folder):
        generations = int(checkpoint.name.removeprefix("gen"))
        yield f"checkpoints/{checkpoint.name}", partial(check_checkpoint, checkpoint, run)
    summary: dict[str, Any] | None = None
    if (folder / SUMMARY).exists():
        try:
            summary = _summary(folder, run)
            generations = max(generations, summary["generations"])
        except (CheckpointError, InputError):
            pass
        yield SUMMARY, partial(_summary, folder, run)
        if not checkpoints(folder):
            yield "checkpoints", partial(_no_checkpoint, folder)
    for name in ("best", "merged"):
        if (folder / name).exists() or (summary is not None and name in summary["sealed"]):
            yield name, partial(_check_sealed, folder, name, summary)
    yield METRICS, partial(check_chain, folder / METRICS, run, generations)
    yield LINEAGE, partial(check_lineage, folder / LINEAGE, run, generations)
    if (folder / MUTATION_SCALE).exists():
        yield MUTATION_SCALE, partial(check_mutation_scale, folder, run)
    if (folder / REPORT).exists():
        yield REPORT, partial(check_report, folder / REPORT)
    if (folder / VOTES_FILE).exists():
        yield VOTES_FILE, partial(_check_votes, folder / VOTES_FILE)


def _no_checkpoint(folder: Path) -> None:
    raise CheckpointError(f"{folder / 'checkpoints'}: has none, the run cannot go on from here")


def _fault(check: Callable[[], object]) -> str | None:
    try:
        check()
    except (CheckpointError, InputError) as fault:
        return str(fault)
    return None


def _check_given(folder: Path, name: str, sha256: str) -> None:
    if given_files(folder).get(name) != sha256:
        raise CheckpointError(f"{folder / name}: missing or altered, its checksum differs")


def _summary(folder: Path, run: str) -> dict[str, Any]:
    summary = read_summary(folder) or {}
    check_run(folder / SUMMARY, summary.get("run"), run)
    return summary


def _check_sealed(folder: Path, name: str, summary: dict[str, Any] | None) -> None:
    verify(folder / name)  # the card too
    if summary is not None:
        check_belonging(folder, name, summary)


def _check_votes(path: Path) -> None:
    try:
        with closing(sqlite3.connect(path)) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict != "ok":
        raise CheckpointError(f"{path}: altered: {verdict}")
