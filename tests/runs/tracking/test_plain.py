"""A run in lines, for people and for programs."""

import json
import math
from typing import Any

import pytest

from evolora.runs.tracking.figures import duration, gain, reward
from evolora.runs.tracking.plain import JsonLines, PlainView


def test_a_line_a_generation_whose_columns_stay(story: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told = story()
    view = PlainView(told.clock)
    told.loads(view)
    for number in (1, 2, 10):
        told.generation(view, number, **{"fitness.best": math.nan} if number == 2 else {})
    first, *said = capsys.readouterr().out.splitlines()
    assert first == "loading torch and transformers", "at once"
    lines = [line for line in said if line.startswith("gen ")]
    assert lines[0] == (
        "gen  1/20  best 0.050  mean 0.040  validation 0.045  ppo +0.500  evolution +0.125  tok/s  1,234"
        "   1m 54s left  by ppo"
    )
    assert len({line.index("  by ") for line in lines}) == 1 and "best     -" in lines[1]


def test_what_takes_long_is_said_now_and_then(story: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told = story()
    view = PlainView(told.clock)
    told.loads(view)
    capsys.readouterr()
    for done in range(20):
        view.progress("evaluating", done, 20)
        told.now += 1
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "evaluating 4 of 20", "evaluating 9 of 20", "evaluating 14 of 20", "evaluating 19 of 20",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gens", "done", "generation", "left"),
    [
        (20, (0.05, 0.1), "gen  2/20", "1m 39s left"),
        (20, (0.25, 0.5), "gen  2/20", "11s left"),  # a budget is nearer than the last generation
        (None, (0.25, 0.5), "gen 2 (50%)", "11s left"),
        (None, (0.5, 1.25), "gen 2 (100%)", "0s left"),
    ],
)
def test_progress_is_by_the_limit_that_is_nearest(
    story: Any, gens: Any, done: tuple[float, float], generation: str, left: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = story(gens=gens)
    view = PlainView(told.clock)
    told.loads(view)
    for number, share in enumerate(done, 1):
        told.generation(view, number, done=share)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{generation}  ") and f" {left}  " in line


def test_the_refiner_gives_the_column_its_name(story: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told = story()
    told.generation(PlainView(told.clock), 1, refiner="grpo")
    assert "  grpo +0.500  evolution +0.125  " in capsys.readouterr().out


def test_every_event_is_a_json_object(story: Any, capsys: pytest.CaptureFixture[str]) -> None:
    told = story(limits={"seconds": math.inf})
    view = JsonLines()
    told.loads(view)
    told.generation(view, 1, validation=math.nan)
    view.close()
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [event["event"] for event in events]
    assert names[:4] == ["progress", "say", "begin", "progress"] and names[-1] == "generation"
    assert events[2]["gens"] == 20 and events[2]["limits"] == {"seconds": None}
    assert events[-1]["metrics"]["validation"] is None and events[-1]["metrics"]["generation"] == 1
    assert next(event for event in events if event["event"] == "wrote")["samples"][0]["target"] == "cat"
    assert all(event["elapsed"] >= 0 for event in events)


def test_a_figure_has_one_width() -> None:
    values = [0, -0.0, 0.12345, 9.9999, -9.9999, 99.5, -123.4, 12345.6, 1e15, math.nan, math.inf]
    assert {len(reward(value)) for value in values} == {5} and {len(gain(value)) for value in values} == {6}
    assert [duration(seconds) for seconds in (0.4, 75, 3700, math.nan)] == ["0s", "1m 15s", "1h 01m", "-"]
