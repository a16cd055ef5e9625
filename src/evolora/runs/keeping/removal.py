"""The end of a run's folder: what the run made is taken away, and nothing else."""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from evolora.errors import InputError
from evolora.lock import LOCK, owned
from evolora.runs.identity import IDENTITY, SEEDS
from evolora.runs.keeping.entry import CONFIG, Entry, read_entry

# All that a run, or one under several seeds, may leave.
_OWN = re.compile(
    r"(config\.toml|identity\.json|summary\.json|metrics\.jsonl|seeds\.json|trackers\.json|data\.jsonl"
    r"|peft_config\.json|reward\.log|report\.html|(lineage|rewards|votes)\.sqlite)(-\w+)?(\.damaged-\d+)?(-journal)?"
    r"|checkpoints|best|merged|init|figures|tensorboard|wandb|\..+\.(partial|old)"
)
# What a folder is known by as a run: the last to go, so that what is left of one can be removed.
_LAST = (CONFIG, IDENTITY, SEEDS)


def removable(folder: Path) -> Entry:
    """The run in `folder`. Raises InputError where there is none, only a link to one, or a process works on it."""
    if folder.is_symlink():
        raise InputError(f"{folder}: found a link, expected the folder of a run itself")
    entry = read_entry(folder) if folder.is_dir() else None
    if entry is None:
        raise InputError(f"{folder}: found no run in it, expected the folder of a run")
    for one in (entry, *entry.seeds):
        if one.holder is not None:
            raise InputError(f"{one.folder}: in use by {one.holder}, expected a run that has ended")
    return entry


def remove(entry: Entry, say: Callable[[str], None]) -> Sequence[str]:
    """Remove what the run has made: the names of what else is in its folder, and stays."""
    for one in entry.seeds:
        remove(one, say)
    folder = entry.folder
    with owned(folder, say):
        own = [path for path in folder.iterdir() if _OWN.fullmatch(path.name)]
        for path in sorted(own, key=lambda path: path.name in _LAST):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    left = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if not left:
        folder.rmdir()
    return left
