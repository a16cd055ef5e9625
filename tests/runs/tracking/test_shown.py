"""What is kept of a run to be shown, and the time that it will still take."""

import math
from typing import Any

import pytest

from evolora.engine.progress import Sample
from evolora.runs.tracking import figures
from evolora.runs.tracking.shown import SAVING, Shown
from evolora.runs.tracking.view import Outset


def test_an_estimate_is_there_in_the_first_generation(story: Any) -> None:
    told = story()
    shown = Shown(told.clock)
    told.loads(shown_view(shown))
    assert math.isnan(shown.left), "nothing is done yet, and nobody can know"
    shown.progress("evaluating", 2, 4)
    # 1 and a half of 6 phases of the first of 20 generations took a second.
    assert shown.share == pytest.approx(1.5 / 6 / 20)
    assert shown.left == pytest.approx(1 / shown.share - 1)
    assert shown.elapsed == 4


def test_from_the_second_generation_on_phases_count_what_they_took(story: Any) -> None:
    told = story()
    shown = Shown(told.clock)
    view = shown_view(shown)
    told.loads(view)
    told.now += 3
    told.generation(view, 1)
    view.progress(SAVING, 0, 0)
    told.now += 5
    view.progress("evaluating", 0, 0)
    assert shown.share == pytest.approx(1 / 20)
    view.progress("rollout 1 of 1", 0, 0)
    before = shown.share
    view.progress("update", 0, 0)
    assert before < shown.share < 2 / 20
    view.progress("update: rewarding", 0, 0)
    again = shown.share
    view.progress("update", 0, 0)
    assert shown.share == again, "a part is no phase"


def test_an_address_in_a_phase_stays_whole(story: Any) -> None:
    shown = Shown(story().clock)
    shown.progress("votes at http://127.0.0.1:41265/?token=x", 2, 8)
    assert figures.phase(shown) == "votes at http://127.0.0.1:41265/?token=x 2 of 8"
    shown.progress("rollout 1 of 6: rewarding", 3, 4)
    assert figures.phase(shown) == "rollout 1 of 6 3 of 4: rewarding"


@pytest.mark.parametrize(
    ("limits", "gens", "done", "left"),
    [
        ({"seconds": 60.0}, None, 0.1, 54.0),  # 6 of 60 seconds are used
        ({"tokens": 100.0}, None, 0.5, 6.0),
        ({"tokens": 100.0}, 20, 1.25, math.nan),  # that was the last one, and only the test comes
    ],
)
def test_the_limit_that_is_nearest_counts(story: Any, limits: Any, gens: Any, done: float, left: float) -> None:
    told = story(gens=gens, limits=limits)
    shown = Shown(told.clock)
    told.loads(shown_view(shown))
    told.generation(shown_view(shown), 1, done=done)
    assert shown.share == pytest.approx(min(done, 1.0))
    assert shown.left == pytest.approx(left if done < 1 else 0.0)


def test_a_resumed_run_goes_on_with_its_curve_and_its_sums(story: Any) -> None:
    first = Shown(story().clock)
    told = story()
    told.loads(shown_view(first))
    history = []
    for number in (1, 2, 3):
        told.generation(shown_view(first), number)
        history.append(dict(first.metrics))
    again = Shown(told.clock)
    again.begin(Outset("", 20, {}, 0.15, 5, history))
    assert again.curve == first.curve and len(again.curve) == 3
    assert again.added == first.added == {"ppo": 1.5, "evolution": 0.375}
    again.progress("evaluating", 0, 0)
    told.now += 1
    again.progress("rollout 1 of 1", 0, 0)
    assert again.left == pytest.approx(1 / (0.2 / 20) * (1 - again.share), rel=0.01), "by what this process has seen"


def test_the_prompt_is_the_one_that_the_base_does_worst() -> None:
    shown = Shown()
    base = [Sample(name, None, "?", reward) for name, reward in (("a", 0.5), ("b", 0.0), ("c", math.nan))]
    shown.wrote("base", 0.25, base)
    shown.wrote("ppo", 0.2, [sample._replace(completion="worse") for sample in base])
    assert shown.base == base[1] and shown.best == base[1], "the best so far is the base"
    shown.wrote("ppo", 0.75, [sample._replace(completion="better") for sample in base])
    assert shown.best is not None and (shown.best.prompt, shown.best.completion) == ("b", "better")


def shown_view(shown: Shown) -> Any:
    """What is shown, as something that says nothing."""
    shown.say = lambda text: None  # type: ignore[attr-defined]
    return shown
