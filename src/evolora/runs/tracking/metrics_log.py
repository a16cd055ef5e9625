"""`metrics.jsonl`, the run's figures by generation."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from evolora.files import without_nan, write_text
from evolora.runs.tracking.chain import chained, check_chain, unchained

# What runs of older versions call by another name.
_RENAMED = {"cut": "clipped_ratio"}


class MetricsLog:
    """`metrics.jsonl`: one line a generation of the run whose id is `run`, on disk before the next begins. Everything
    but the `time.` entries is the same in every repetition. The lines are chained, which `read` takes off again."""

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        self.run = run
        self._last = ""

    def append(self, metrics: dict[str, Any]) -> None:
        """After `rewind`, which finds the line that it follows."""
        line, self._last = chained(without_nan(metrics), self.run, self._last)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """The whole lines so far, by today's names; a line that a kill cut short is left out."""
        return [{_RENAMED.get(name, name): value for name, value in content.items()} for _, content, _ in self._lines()]

    def check(self, generations: int) -> None:
        """Raise CheckpointError or InputError unless the first `generations` lines are whole and of this run."""
        check_chain(self.path, self.run, generations)

    def rewind(self, generation: int) -> None:
        """Forget the lines after `generation`."""
        kept = [line for line in self._lines() if line[1]["generation"] <= generation]
        self._last = kept[-1][2] if kept else ""
        write_text(self.path, "".join(f"{text}\n" for text, _, _ in kept))

    def _lines(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Each whole line: as it is written, what it says, its check."""
        if self.path.exists():
            for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, KeyError, TypeError, RecursionError):
                    yield text, *unchained(text)
