"""Pictures of the screen for the docs: `python scripts/screen.py` begins a run of the demo and writes into docs/
screen-62.svg, screen-80.svg and screen-130.svg, as they are in the middle of its sixth generation."""

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from evolora import evolve
from evolora.engine.progress import Sample
from evolora.runs.tracking.drawing import draw, generation_line
from evolora.runs.tracking.shown import Shown
from evolora.runs.tracking.view import Outset, Silence

DOCS = Path(__file__).parents[1] / "docs"
WIDTHS = (62, 80, 130)
GENERATION, PHASE = 6, "update"


class Pictured(Silence):
    """Takes the pictures once, when it comes to that phase of that generation."""

    def __init__(self) -> None:
        self.shown = Shown()
        self.lines: dict[int, list[Text]] = {width: [] for width in WIDTHS}
        self.taken = False

    def progress(self, what: str, done: int, total: int) -> None:
        self.shown.progress(what, done, total)
        if what == PHASE and done * 2 > total and len(self.shown.curve) == GENERATION - 1 and not self.taken:
            self.taken = True
            for width in WIDTHS:
                self.take(width)

    def wrote(self, who: str, reward: float, samples: Sequence[Sample]) -> None:
        self.shown.wrote(who, reward, samples)

    def begin(self, outset: Outset) -> None:
        self.shown.begin(outset)

    def generation(self, metrics: dict[str, Any], gens: int | None, done: float) -> None:
        self.shown.generation(metrics, gens, done)
        for width, lines in self.lines.items():
            lines.append(generation_line(self.shown, width))

    def take(self, width: int) -> None:
        console = Console(record=True, file=io.StringIO(), width=width, force_terminal=True, highlight=False)
        for line in (*self.lines[width], *draw(self.shown, width, 40)):
            console.print(line, no_wrap=True)
        console.save_svg(str(DOCS / f"screen-{width}.svg"), title="evolora train --gens 20 --pop 8")


def enough(metrics: dict[str, Any]) -> None:
    if metrics["generation"] == GENERATION:
        raise KeyboardInterrupt


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        evolve(gens=20, pop=8, out=f"{folder}/run", view=Pictured(), callbacks=[enough])
