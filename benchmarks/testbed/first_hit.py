"""When a run first wrote what is wanted, sampled or greedy, on whatever prompt."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from evolora.population.writing import Writer, Written
from evolora.tasks.task import columns_of
from testbed.tasks import BedTask


@dataclass
class FirstHit:
    """Completions and tokens so far, and what they and the seconds were at the first hit; None before it."""

    started: float = field(default_factory=time.perf_counter)
    completions: int = 0
    tokens: int = 0
    hits: int = 0
    at: dict[str, float] | None = None

    def note(self, task: BedTask, written: Written) -> None:
        hits = task.hits(written.texts, columns_of(list(written.examples) * written.count))
        self.completions += len(hits)
        self.tokens += written.cost.tokens
        self.hits += sum(hits)
        if self.at is None and any(hits):
            seconds = round(time.perf_counter() - self.started, 1)
            self.at = {"seconds": seconds, "completions": self.completions, "tokens": self.tokens}

    def as_json(self) -> dict[str, Any]:
        return {"first": self.at, "completions": self.completions, "tokens": self.tokens, "hits": self.hits}


@contextmanager
def watched(task: BedTask) -> Iterator[FirstHit]:
    """Inside, all that any run of this process writes is looked at."""
    found, original = FirstHit(), Writer._written

    def noted(self: Writer, *arguments: Any, **keywords: Any) -> Written:
        written = original(self, *arguments, **keywords)
        found.note(task, written)
        return written

    Writer._written = noted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Writer._written = original  # type: ignore[method-assign]
