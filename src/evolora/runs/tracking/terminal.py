"""A run on a terminal: a line a generation that stays, and below them what is going on, drawn anew a few times a
second."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleRenderable, Group, RenderableType
from rich.live import Live
from rich.text import Text

from evolora.runs.tracking.drawing import ASCII, FANCY, draw, generation_line
from evolora.runs.tracking.shown import Showing
from evolora.screen import Screen
from evolora.signals import leaving

_TIMES_A_SECOND = 4
_SHOW_CURSOR = "\x1b[?25h\n"


class _Picture(Live):
    """What `draw` gives for a width and a height, below all that is printed. It is erased whole, also where the
    terminal has become narrower and broken its lines."""

    def __init__(self, console: Console, draw: Callable[[int, int], list[Text]]) -> None:
        self._draw = draw
        self._widths, self._before = list[int](), list[int]()
        super().__init__(
            console=console,
            refresh_per_second=_TIMES_A_SECOND,
            transient=True,
            redirect_stderr=Screen(sys.stderr).isatty(),
        )

    def get_renderable(self) -> RenderableType:
        width, height = self.console.size
        lines = self._draw(width, height - 1)
        self._widths = [line.cell_len for line in lines]
        return Group(*lines)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        width = self.console.width
        if self._before:
            self._live_render._shape = width, sum(max(1, math.ceil(each / width)) for each in self._before)
        self._before = self._widths
        return super().process_renderables(renderables)


class LiveView(Showing):
    """The live screen. It is drawn by a thread of its own, from what it has been told."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Console(file=cast(TextIO, Screen(sys.stdout)), highlight=False)
        self._glyphs = ASCII if self._console.options.ascii_only else FANCY
        self._start()

    def _start(self) -> None:
        leaving.append(_SHOW_CURSOR)
        self._live = _Picture(self._console, lambda width, height: draw(self._shown, width, height, self._glyphs))
        self._live.start(refresh=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def generation(self, metrics: dict[str, Any], gens: int | None, done: float) -> None:
        self._shown.generation(metrics, gens, done)
        self._console.print(generation_line(self._shown, self._console.width), no_wrap=True)

    def close(self) -> None:
        self._live.stop()
        if _SHOW_CURSOR in leaving:
            leaving.remove(_SHOW_CURSOR)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing is drawn."""
        self.close()
        yield
        self._start()
