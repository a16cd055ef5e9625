"""Which view a run has."""

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol, runtime_checkable

from evolora.runs.tracking.view import Silence, View
from evolora.screen import Screen

Shows = Literal["auto", "quiet", "json"]
SHOWN_BY: Mapping[str, Shows] = {"--quiet": "quiet", "--json-lines": "json"}
"""The options of a command that say so."""


@runtime_checkable
class Pausing(Protocol):
    """A view that something else can be shown in the place of."""

    def paused(self) -> AbstractContextManager[None]:
        """Inside, nothing is drawn."""
        ...


def choose_view(shows: Shows = "auto") -> View:
    """The one for where it runs: a live screen on a terminal and in a notebook, lines elsewhere; or the one that is
    asked for."""
    if shows == "quiet":
        return Silence()
    if shows == "json":
        from evolora.runs.tracking.plain import JsonLines

        return JsonLines()
    if _in_a_notebook():
        from evolora.runs.tracking.notebook import NotebookView

        return NotebookView()
    if Screen(sys.stdout).isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        from evolora.runs.tracking.terminal import LiveView

        return LiveView()
    from evolora.runs.tracking.plain import PlainView

    return PlainView()


def _in_a_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")
