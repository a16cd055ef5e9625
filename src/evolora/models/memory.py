"""The memory that a process takes while something is done."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# Between two looks: what is shorter is seen at its beginning and its end.
_SECONDS = 0.05


class Peak:
    """The most bytes that were seen."""

    bytes: int = 0

    def look(self) -> None:
        self.bytes = max(self.bytes, _taken())


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """The most that this process, or torch on a GPU that it uses, has within the block, by looking at it 20 times a
    second; 0 on a system that does not say. The operating system's own peak is left alone, whoever reads it."""
    peak, over = Peak(), threading.Event()

    def watch() -> None:
        while not over.wait(_SECONDS):
            peak.look()

    peak.look()
    watching = threading.Thread(target=watch, name="evolora-memory", daemon=True)
    watching.start()
    try:
        yield peak
    finally:
        over.set()
        watching.join()
        peak.look()


def _taken() -> int:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.memory_allocated())
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
