"""What is said at the end of a run, from its figures."""

from typing import Any

import pytest

from evolora.runs.report.endings import Ending


def said(
    *,
    id: int = 3,
    base: float | None = 0.5,
    winner: float | None = 0.75,
    clipped: float = 0.0,
    fitness: bool = False,
    earned: tuple[float, float] | None = (0.0, 1.0),
    **more: Any,
) -> list[str]:
    def test(value: float | None) -> dict[str, Any]:
        own = {"reward": 9.0, "fitness": value} if fitness else {"reward": value}
        return {**own, "clipped_ratio": clipped}

    summary: dict[str, Any] = {
        "base": {"test": test(base)},
        "winner": {"id": id, "validation": 0.5, "test": test(winner)},
        **({"fitness": "macro-f1"} if fitness else {}),
        **more.pop("summary", {}),
    }
    known = {"fitter": True, "rewards": (0.1, 0.2) if fitness else None, "has_interval": True, "max_new_tokens": 16}
    return Ending(summary, earned, **{**known, **more}).sentences()


def test_a_plain_success_says_nothing() -> None:
    assert said() == said(fitness=True) == []


@pytest.mark.parametrize(
    ("facts", "begins"),
    [
        ({"id": 0, "winner": 0.5}, "Nothing beat the base on the validation prompts: best/ is the base, unchanged."),
        (
            {"id": 0, "winner": 0.5, "summary": {"init": ["mine"]}},
            "Nothing beat the adapter that the run started from on the validation prompts",
        ),
        ({"earned": (0.0, 0.0)}, "All rewards of the run were 0: "),
        ({"fitness": True, "fitter": False}, "The reward rose on the validation prompts, from 0.100 to 0.200, and the"),
        ({"winner": 0.25}, "The lucky finalist lost on the test split: reward 0.250, the base's 0.500; "),
        ({"winner": 0.25, "fitness": True}, "The lucky finalist lost on the test split: fitness 0.250, the base's 0.5"),
        (
            {"fitness": True, "has_interval": False},
            "The fitness macro-f1 is not recomputed on other prompts, so it has",
        ),
        (
            {"clipped": 0.51},
            "Warning: 51% of the winner's test completions were cut off at 16 tokens; where they should end",
        ),
    ],
)
def test_what_figures_do_not_say_is_said(facts: dict[str, Any], begins: str) -> None:
    (sentence,) = said(**facts)
    assert sentence.startswith(begins)


@pytest.mark.parametrize(
    "facts",
    [
        {"base": None, "winner": None},
        {"earned": None},
        {"clipped": 0.5},
        {"fitness": True, "fitter": False, "rewards": (0.2, 0.2)},
        {"fitness": True, "rewards": (0.1, 0.2)},  # what is wanted rose as well
        {"winner": 0.5},
    ],
)
def test_nothing_is_said_that_is_not_so(facts: dict[str, Any]) -> None:
    assert said(**facts) == []


def test_a_base_that_was_never_scored_is_not_said_to_have_won() -> None:
    assert said(id=0, base=None, winner=None, summary={"winner": {"id": 0, "validation": None, "test": TEST}}) == []


TEST = {"reward": None, "clipped_ratio": 0.0}
