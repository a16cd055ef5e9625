"""A run as a view is told it, without a run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from evolora.engine.progress import Sample
from evolora.runs.tracking.view import Outset, View

PHASES = ("evaluating", "rollout 1 of 1", "update", "evaluating the refined", "validating")
PROMPT = "You are asked in many words, " * 30 + "and in the end: what is 'chat' in English?"


def metrics_of(generation: int, refiner: str = "ppo", **more: Any) -> dict[str, Any]:
    return {
        "generation": generation,
        "fitness.best": 0.05 * generation,
        "fitness.mean": 0.04 * generation,
        "validation": 0.045 * generation,
        "best.operator": refiner,
        f"{refiner}.gain": 0.01,
        f"{refiner}.added": 0.5,
        f"{refiner}.lr": 1e-3,
        f"{refiner}.equal_groups": 0.25,
        "evolution.added": 0.125,
        "clipped_ratio": 0.03,
        "tokens.evaluation": 1000 * generation,
        "tokens.rollout": 2000 * generation,
        "flops.evaluation": 10**9,
        "flops.rollout": 10**9,
        "flops.update": 10**9,
        "time.loop": 2.0 * generation,
        "time.memory": 3 * 2**29,
        "time.tokens_per_second": 1234.0,
        **more,
    }


@dataclass
class Story:
    """What happens, a second a phase, and a clock that knows when."""

    now: float = 100.0
    gens: int | None = 20
    limits: dict[str, float] = field(default_factory=dict)

    def clock(self) -> float:
        return self.now

    def loads(self, view: View) -> None:
        view.progress("loading torch and transformers", 0, 0)
        self.now += 3
        view.say("run folder: runs/translate")
        view.begin(Outset("translate, tiny-gpt2", self.gens, self.limits, 0.0, 1 + len(PHASES)))
        view.progress("base on validation", 0, 64)
        self.now += 1
        view.wrote("base", 0.02, [Sample(PROMPT, "cat", "I do\nnot \x1b[2Jknow", 0.0)])

    def generation(self, view: View, number: int, *, done: float | None = None, **more: Any) -> None:
        for phase in PHASES:
            view.progress(phase, 0, 4)
            self.now += 1
        view.wrote("ppo", 0.045 * number, [Sample(PROMPT, "cat", "cat", 1.0)])
        share = number / (self.gens or 20) if done is None else done
        view.generation(metrics_of(number, **more), self.gens, share)


@pytest.fixture
def story() -> Callable[..., Story]:
    return Story
