"""A run in a notebook: what is going on in one output that changes in its place, and the lines below it."""

import contextvars
import io
import threading
from typing import Any

from IPython.display import HTML, display
from rich.console import Console, Group

from evolora.runs.tracking.drawing import draw
from evolora.runs.tracking.plain import PlainView

_SECONDS = 0.5
_WIDTH, _HEIGHT = 100, 40
_PRE = '<pre style="font-family:monospace;line-height:1.2;white-space:pre">{code}</pre>'


class NotebookView(PlainView):
    """The lines of `PlainView`, and above them what a terminal shows, drawn by a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._handle: Any = display(HTML(self._html()), display_id=True)  # type: ignore[no-untyped-call]
        self._closed = threading.Event()
        # The notebook finds the cell that it belongs to by the context.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._redraw,), name="evolora-view", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            self._shown.progress("ended", 0, 0)  # what stays is no phase that goes on
            self._handle.update(HTML(self._html()))  # type: ignore[no-untyped-call]

    def _redraw(self) -> None:
        while not self._closed.wait(_SECONDS):
            self._handle.update(HTML(self._html()))  # type: ignore[no-untyped-call]

    def _html(self) -> str:
        console = Console(record=True, file=io.StringIO(), width=_WIDTH, force_jupyter=False, highlight=False)
        console.print(Group(*draw(self._shown, _WIDTH, _HEIGHT)))
        return console.export_html(inline_styles=True, code_format=_PRE)
