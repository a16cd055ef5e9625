"""When a run is over: its generations, its budget, and what is good enough."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evolora.models.cost import Costs
from evolora.runs.options import RunOptions


def progress(config: RunOptions, metrics: Mapping[str, float]) -> float:
    """The share of the run that is done, by whichever limit is nearest; the run ends when it is 1 or more."""
    costs = Costs.from_metrics(metrics)
    shares = [
        used / limit
        for used, limit in (
            (metrics["generation"], config.most_gens),
            (costs.generated_tokens, config.budget.tokens),
            (metrics["time.loop"], config.budget.seconds),
            (costs.flops, config.budget.flops),
        )
        if limit is not None
    ]
    return max(shares)


def enough(config: RunOptions, history: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a run ends before its limits, after the generations of these metrics; None where it goes on."""
    if not history:
        return None
    best = _known(history[-1]["validation.best"])
    until, patience = config.evolution.until, config.evolution.patience
    if until is not None and best >= until:
        return f"validation {best:.3f} has reached --until {until:g}"
    if patience is None:
        return None
    before = [_known(history[0].get("validation.base")), *(_known(line["validation.best"]) for line in history[:-1])]
    waited = next((ago for ago, known in enumerate(reversed(before)) if known < best), len(history))
    return None if waited < patience else f"no better validation in {waited} generations, --patience {patience}"


def _known(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value
