"""When a run ends, what it has cost so far, and the learning curve that comes of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

POINTS = 20  # of a curve


@dataclass(frozen=True)
class Budget:
    """A run's end: seconds in its loop, or generations (for a quick look; no comparison is at equal cost then)."""

    seconds: float | None = None
    gens: int | None = None

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.gens is None):
            raise ValueError("expected seconds or generations")

    def over(self, generation: int, seconds: float) -> bool:
        return generation >= self.gens if self.gens is not None else seconds >= (self.seconds or 0)

    def options(self) -> dict[str, Any]:
        """As options of a run."""
        return {"gens": self.gens} if self.gens is not None else {"budget_seconds": self.seconds}

    @property
    def name(self) -> str:
        return f"{self.gens} generations" if self.gens is not None else f"{self.seconds:g} s"


@dataclass(frozen=True)
class Point:
    """What a run had cost after a generation, and the best adapter (a genome) or test reward that it had by then."""

    seconds: float
    tokens: int
    flops: float | None
    validation: float | None = None
    genome: Tensor | None = None
    test: float | None = None


@dataclass
class Meter:
    """Counts the cost of a loop that is not the library's."""

    model: nn.Module
    started: float = field(default_factory=time.perf_counter)
    tokens: int = 0
    flops: float = 0.0

    def generated(self, prompt_tokens: int, new_tokens: int) -> None:
        """With a cache each token goes through the model once."""
        self.tokens += new_tokens
        self.flops += self._forward(prompt_tokens + new_tokens)

    def trained(self, tokens: int) -> None:
        """A backward pass is two forward passes (Kaplan et al., 2020, arXiv 2001.08361)."""
        self.flops += 3 * self._forward(tokens)

    def _forward(self, tokens: int) -> float:
        """Two operations a weight and token."""
        return 2.0 * tokens * sum(weight.numel() for weight in self.model.parameters())

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def cost_of(metrics: Mapping[str, Any]) -> tuple[float, int, float]:
    """Seconds, generated tokens and FLOPs of a run up to a generation, from its metrics.

    >>> flops = {f"flops.{name}": 10 for name in ("evaluation", "rollout", "update")}
    >>> cost_of({"time.loop": 2.0, "tokens.evaluation": 3, "tokens.rollout": 4, **flops})
    (2.0, 7, 30)
    """
    flops = sum(metrics[f"flops.{name}"] for name in ("evaluation", "rollout", "update"))
    return metrics["time.loop"], metrics["tokens.evaluation"] + metrics["tokens.rollout"], flops


def thinned(points: list[Point], count: int = POINTS) -> list[Point]:
    """At most `count` of the points, evenly spaced, the last among them."""
    if not points:
        return []
    indices = np.unique(np.linspace(0, len(points) - 1, min(count, len(points))).round().astype(int))
    return [points[index] for index in indices]
