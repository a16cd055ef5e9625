"""A run in lines: for logs and pipes, and as JSON for programs."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TextIO, cast

from evolora.engine.progress import Sample
from evolora.runs.tracking import figures
from evolora.runs.tracking.shown import Clock, Showing
from evolora.runs.tracking.view import Outset
from evolora.screen import Screen

# Between lines of what is under way.
_SECONDS_A_LINE = 5.0


class PlainView(Showing):
    """A line a generation, and where one takes long, now and then one of what is under way."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        super().__init__(clock)
        # Kept: while a reward is called, what is printed goes elsewhere, and Ctrl-C is answered even then.
        self._stream = cast(TextIO, Screen(sys.stdout))
        self._told = -math.inf

    def say(self, text: str) -> None:
        self._told = self._shown.clock()
        print(text, file=self._stream, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        super().progress(what, done, total)
        if self._shown.clock() - self._told >= _SECONDS_A_LINE:
            left = "" if math.isnan(self._shown.left) else f"  {figures.duration(self._shown.left)} left"
            self.say(figures.phase(self._shown) + left)

    def generation(self, metrics: dict[str, Any], gens: int | None, done: float) -> None:
        self._shown.generation(metrics, gens, done)
        self.say("  ".join(f"{cell.label} {cell.value}" for cell in figures.cells(self._shown, left=True)))

    def close(self) -> None: ...


class JsonLines:
    """An object a line: whatever a view is told, its `event` by the method's name, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._stream = cast(TextIO, Screen(_stdout_alone()))

    def tell(self, event: str, content: Mapping[str, Any]) -> None:
        """A line; a number that JSON has not is null."""
        line = {"event": event, "elapsed": round(time.perf_counter() - self._began, 3), **content}
        print(json.dumps(_plain(line), allow_nan=False), file=self._stream, flush=True)

    def say(self, text: str) -> None:
        self.tell("say", {"text": text})

    def progress(self, what: str, done: int, total: int) -> None:
        self.tell("progress", {"what": what, "done": done, "total": total})

    def wrote(self, who: str, reward: float, samples: Sequence[Sample]) -> None:
        self.tell("wrote", {"who": who, "reward": reward, "samples": [sample._asdict() for sample in samples]})

    def begin(self, outset: Outset) -> None:
        self.tell("begin", asdict(outset))

    def generation(self, metrics: dict[str, Any], gens: int | None, done: float) -> None:
        self.tell("generation", {"gens": gens, "done": done, "metrics": metrics})

    def close(self) -> None: ...


def _stdout_alone() -> TextIO:
    """What the process calls stdout, for these lines alone: what others write to its file descriptor, such as a
    reward's own programs, goes where errors go."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream of Python's own, or closed
        if sys.stdout.fileno() == 1:
            own = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
            os.dup2(2, 1)
            return own
    return sys.stdout


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
