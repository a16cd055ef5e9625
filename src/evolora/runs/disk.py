"""What a run takes of the disk: which checkpoints stay, and whether there is room for the next."""

import errno
import math
import shutil
from pathlib import Path

from evolora.errors import InputError
from evolora.files import checkpoint_folder, checkpoints
from evolora.runs.assembled import Parts
from evolora.runs.initial import INIT
from evolora.runs.recovery import METRICS
from evolora.runs.tracking.metrics_log import MetricsLog

# What is text in a checkpoint takes less than the weights of most models, and a small model's take less than this.
_MARGIN, _LEAST = 1.25, 2**20


def keep_checkpoints(folder: Path, keep: int, run: str) -> None:
    """Delete all checkpoints but the newest `keep` and the first that has the best individual; none where `keep` is 0.
    For when the newest is whole."""
    found = checkpoints(folder)
    if not keep or len(found) <= keep:
        return
    lines = MetricsLog(folder / METRICS, run).read()
    worth = {checkpoint_folder(folder, line["generation"]): line.get("validation.best") for line in lines}
    best = max(found, key=lambda path: -math.inf if (known := worth.get(path)) is None else float(known))
    for path in found[:-keep]:
        if path != best:
            doomed = path.with_name(f".{path.name}.old")  # half of it must not be taken for a checkpoint
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def need_room(folder: Path, weights: int) -> None:
    """Raise OSError where there is no room for a checkpoint with so many bytes of weights."""
    needed, free = _needed(weights), shutil.disk_usage(folder).free
    if free < needed:
        what = f"no room for a checkpoint, which takes about {_megabytes(needed)} of {_megabytes(free)} that are free"
        raise OSError(errno.ENOSPC, what, str(folder))


def need_room_for_run(folder: Path, parts: Parts) -> None:
    """Raise InputError where there is no room for what a run of these parts will keep: checkpoints, its winner, the
    merged model, and the adapters that it starts from."""
    config = parts.config
    individuals = config.evolution.pop + config.evolution.finalists + 2  # the base and the best of all
    each = _needed(4 * parts.layout.genome_length * individuals)
    # The kept, the best, and the one that is being written. How many there will be without a limit, nobody knows.
    count = max(1, (config.run.keep or 1) + 2 - len(checkpoints(folder)))
    merged = sum(one.numel() * one.element_size() for one in parts.base.model.parameters()) if config.run.merge else 0
    begun_from = 0 if parts.initial is None or (folder / INIT).exists() else parts.initial.numel()
    needed = count * each + _needed(4 * (parts.layout.genome_length + begun_from) + merged)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if (free := shutil.disk_usage(there).free) < needed:
        raise InputError(
            f"--out {folder}: found {_megabytes(free)} free on its disk, expected at least {_megabytes(needed)} for "
            f"{count} checkpoints and the winner{' and what it starts from' if begun_from else ''}"
        )


def _needed(weights: int) -> int:
    return int(_MARGIN * weights) + _LEAST


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
