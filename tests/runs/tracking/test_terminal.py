"""The live screen: what stays above it, what becomes of printed text, and how it leaves."""

import io
import os
import re
import sys
from typing import Any

import pytest
from rich.console import Console

from evolora.runs.tracking import choice
from evolora.runs.tracking.choice import choose_view
from evolora.runs.tracking.plain import PlainView
from evolora.runs.tracking.terminal import LiveView
from evolora.runs.tracking.view import Silence
from evolora.signals import leaving


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def opened(width: int = 80) -> tuple[LiveView, Console, Screen]:
    screen = Screen()
    console = Console(file=screen, force_terminal=True, width=width, height=40, highlight=False)
    return LiveView(console), console, screen


def above(screen: Screen) -> str:
    """What was printed, without colours; what is erased and drawn again is among it."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())


@pytest.mark.parametrize("width", [62, 80, 130])
def test_one_line_a_generation_stays(story: Any, width: int) -> None:
    told = story()
    view, _, screen = opened(width)
    try:
        told.loads(view)
        for number in range(1, 6):
            told.generation(view, number)
    finally:
        view.close()
    lines = [line.rstrip() for line in above(screen).splitlines() if line.startswith("gen ")]
    assert [line.split()[1] for line in lines] == ["1/20", "2/20", "3/20", "4/20", "5/20"]
    assert all(len(line) <= width and "validation 0." in line for line in lines)
    assert ("by ppo" in lines[0], "evolution" in lines[0]) == {62: (False, False), 80: (False, True)}.get(
        width, (True, True)
    )


def test_printed_text_goes_above_it_and_streams_are_given_back(story: Any) -> None:
    before = sys.stdout, sys.stderr
    view, _, screen = opened()
    try:
        told = story()
        told.loads(view)
        print("printed by a callback")
        view.say("[bold] is no markup")
    finally:
        view.close()
    view.close()
    assert "printed by a callback" in above(screen) and "[bold] is no markup" in above(screen)
    assert (sys.stdout, sys.stderr) == before and not leaving
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l"), "the cursor is back"


def test_a_narrower_terminal_is_erased_whole(story: Any) -> None:
    told = story()
    view, console, screen = opened(120)
    try:
        told.loads(view)
        told.generation(view, 1)
        view._live.refresh()
        drawn = view._live._widths
        console.width = 61
        start = len(screen.getvalue())
        view._live.refresh()
        rows = sum(max(1, -(-width // 61)) for width in drawn)
        assert rows > len(drawn)
        assert screen.getvalue()[start:].count("\x1b[1A") == rows - 1
    finally:
        view.close()


def test_inside_a_pause_nothing_is_drawn(story: Any) -> None:
    view, _, screen = opened()
    try:
        with view.paused():
            before = screen.getvalue()
            view.progress("evaluating", 1, 2)
            assert screen.getvalue() == before and not leaving
        view._live.refresh()
        assert "evaluating 1 of 2" in screen.getvalue()[len(before) :]
    finally:
        view.close()


def test_the_view_is_by_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choose_view(), PlainView) and isinstance(choose_view("quiet"), Silence)
    monkeypatch.setattr(choice, "Screen", lambda stream: Screen())
    monkeypatch.setattr("evolora.runs.tracking.terminal.Screen", lambda stream: Screen())
    monkeypatch.setitem(os.environ, "TERM", "dumb")
    assert isinstance(choose_view(), PlainView)
    monkeypatch.setitem(os.environ, "TERM", "xterm")
    view = choose_view()
    view.close()
    assert isinstance(view, LiveView)
