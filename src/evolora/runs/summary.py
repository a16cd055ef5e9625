"""`summary.json`: what a run came to, and the folders that belong to it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evolora.errors import CheckpointError
from evolora.files import MANIFEST, file_sha256, read_checked, verify, write_checked
from evolora.models.cards import CARD

SUMMARY = "summary.json"


def measured_by(summary: Mapping[str, Any]) -> str:
    """What selection, winner and report went by."""
    return "fitness" if "fitness" in summary else "reward"


def worth(test: Mapping[str, Any]) -> float | None:
    """What an individual is worth by its figures on the test split: its fitness, where that is not its mean reward."""
    found = test.get("fitness", test.get("reward"))
    return None if found is None else float(found)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of the run in `folder`; None where there is none. Raises CheckpointError when it is altered."""
    return read_checked(folder / SUMMARY)


def write_summary(folder: Path, summary: Mapping[str, Any], belonging: Iterable[str]) -> dict[str, Any]:
    """Write the summary with the checksums of the folders that belong to it, `best` and perhaps `merged`: the whole."""
    whole = {**summary, "sealed": {name: file_sha256(folder / name / MANIFEST) for name in belonging}}
    write_checked(folder / SUMMARY, whole)
    return whole


def check_belonging(run: Path, name: str, summary: Mapping[str, Any]) -> None:
    """Raise CheckpointError when the run's folder `name`, `best` or `merged`, is incomplete, altered, or not the one
    that the summary is of. Its model card is the user's to edit."""
    folder = run / name
    verify(folder, besides=[CARD])
    if file_sha256(folder / MANIFEST) != summary["sealed"].get(name):
        raise CheckpointError(f"{folder}: is not of the same winner as {run / SUMMARY}")
