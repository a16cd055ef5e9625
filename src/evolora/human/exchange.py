"""A run's votes as files that TRL's reward and DPO trainers read, and back."""

from collections.abc import Callable
from pathlib import Path

from evolora.errors import InputError
from evolora.human.preferences import Preference, read_preferences, write_preferences
from evolora.human.votes import VOTES_FILE, VoteStore
from evolora.lock import owned


def export_votes(run: Path, to: Path) -> int:
    """Write the run's decided votes to a JSONL file of prompt, chosen and rejected; returns how many. Ties have no
    place in that form. Raises InputError for a run without votes and a file that is there already."""
    if to.exists():
        raise InputError(f"--to {to}: exists already, expected a new file")
    preferences = [one for one in run_votes(run) if not one.tie]
    to.parent.mkdir(parents=True, exist_ok=True)
    write_preferences(to, preferences)
    return len(preferences)


def import_votes(run: Path, file: Path, *, say: Callable[[str], None] = print) -> int:
    """Add the preferences of a JSONL file to the run's votes, each once however often it is imported; returns how many
    were new. Raises InputError for a folder that is no run or that another process works on, and for a bad file with
    its line."""
    preferences = read_preferences(file)
    if not (run / "config.toml").is_file():
        raise InputError(f"{run}: found no config.toml, expected the folder of a run")
    with owned(run, say):
        store = VoteStore(run / VOTES_FILE)
        try:
            return store.add_preferences(preferences)
        finally:
            store.close()


def run_votes(run: Path) -> list[Preference]:
    """All votes of a run, ties among them. Raises InputError for a folder without any store of votes."""
    file = run / VOTES_FILE
    if not file.is_file():
        raise InputError(f"{run}: found no {VOTES_FILE}, expected the folder of a run with --reward human")
    store = VoteStore(file)
    try:
        return store.preferences()
    finally:
        store.close()
