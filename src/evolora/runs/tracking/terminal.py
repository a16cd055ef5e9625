"""What a run tells: metrics as JSON lines, and a view of its progress on the terminal or as plain lines."""

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evolora.files import without_nan, write_text
from evolora.runs.tracking.chain import chained, check_chain, unchained
from evolora.screen import Screen

# Between lines of one thing's progress in a log.
_SECONDS_A_LINE = 5.0


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
        """The whole lines so far; a line that a kill cut short is left out."""
        return [content for _, content, _ in self._lines()]

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


class View(Protocol):
    """Where a run shows itself."""

    def say(self, text: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None:
        """`what` is under way: so many are done. The last call is with all."""
        ...

    def generation(self, metrics: dict[str, Any], gens: int | None, done: float) -> None:
        """A generation has ended; there will be `gens` of them unless a budget ends the run before, and the share
        `done` of generations or budget is used, whichever is nearer its end."""
        ...

    def close(self) -> None: ...


class Silence:
    """Shows nothing."""

    def say(self, text: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def generation(self, metrics: dict[str, Any], gens: int | None, done: float) -> None: ...

    def close(self) -> None: ...


class PlainView:
    """A line a generation, for logs and pipes."""

    def __init__(self) -> None:
        self._clock = _Clock()
        # Kept: while a reward is called, what is printed goes elsewhere, and Ctrl-C is answered even then.
        self._stream = cast(TextIO, Screen(sys.stdout))
        self._told = -math.inf

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """A line now and then."""
        now = time.perf_counter()
        if done in (0, total) or now - self._told >= _SECONDS_A_LINE:
            self._told = now
            self.say(f"{what}: {done} of {total}")

    def generation(self, metrics: dict[str, Any], gens: int | None, done: float) -> None:
        cells = _cells(metrics, gens, done)
        left = self._clock.left(done)
        words = [f"{name} {value}" for name, value in cells.items()]
        self.say("  ".join([*words, f"{_duration(left)} left"]))

    def close(self) -> None: ...


class LiveView:
    """A table of the last generations that redraws itself, for terminals."""

    ROWS = 12

    def __init__(self) -> None:
        self._console = Console(file=cast(TextIO, Screen(sys.stdout)))
        self._clock = _Clock()
        self._rows: list[dict[str, str]] = []
        self._live: Live | None = None
        self._status: Live | None = None

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def progress(self, what: str, done: int, total: int) -> None:
        """A line that changes in its place, and goes when all is done."""
        if self._status is None:
            self._status = Live(console=self._console, auto_refresh=False, transient=True)
            self._status.start()
        self._status.update(Text(f"{what}: {done} of {total}"), refresh=True)
        if done == total:
            self._status.stop()
            self._status = None

    def generation(self, metrics: dict[str, Any], gens: int | None, done: float) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._rows = [*self._rows, _cells(metrics, gens, done)][-self.ROWS :]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in self._rows[-1]:
            table.add_column(name, justify="right", style="bold green" if name == "validation" else None)
        for row in self._rows:
            table.add_row(*row.values())
        left = self._clock.left(done)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=1, completed=min(done, 1), width=40), Text(f"{_duration(left)} left"))
        self._live.update(Group(table, Text(), bar), refresh=True)

    def close(self) -> None:
        for live in (self._live, self._status):
            if live is not None:
                live.stop()
        self._live = self._status = None


def choose_view() -> View:
    """The live table on a terminal, plain lines elsewhere."""
    return LiveView() if Screen(sys.stdout).isatty() else PlainView()


class _Clock:
    """The time left, from the share of the run that this process has seen done."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def left(self, done: float) -> float:
        if done >= 1:
            return 0.0
        now = time.perf_counter()
        if self._first is None:
            self._first = (done, now)
            return math.nan
        first, start = self._first
        return (now - start) / (done - first) * (1 - done) if done > first else math.nan


def _cells(metrics: dict[str, Any], gens: int | None, done: float) -> dict[str, str]:
    generation = metrics["generation"]
    cells = {
        "gen": f"{generation} ({done:.0%})" if gens is None else f"{generation:>{len(str(gens))}}/{gens}",
        "best": _fitness(metrics["fitness.best"]),
        "mean": _fitness(metrics["fitness.mean"]),
        "validation": _fitness(metrics["validation"]),
    }
    refiner = next((name.removesuffix(".gain") for name in metrics if name.endswith(".gain")), None)
    if refiner is not None:
        gain, accepted, refined = (metrics[f"{refiner}.{name}"] for name in ("gain", "accepted", "refined"))
        cells[refiner] = f"{gain:+.3f} ({accepted}/{refined} in)"
        kl = metrics.get(f"{refiner}.kl")
        if kl is not None:  # it is measured where it is penalised
            cells["kl"] = f"{kl:.2f}"
    cells["by"] = metrics["best.operator"] or "-"
    cells["tok/s"] = f"{metrics['time.tokens_per_second']:,.0f}"
    return cells


def _fitness(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {seconds:02d}s" if minutes else f"{seconds}s"
