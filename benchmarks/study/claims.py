"""The four claims, each computed from the raw rows: the figures, and whether it holds.

`holds` is null, with the reason, as long as runs are missing; the figures are those of the runs that are there. The
definitions below were fixed before the study was run, and stand in the file beside the figures.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from study.methods import ABLATIONS, DEFAULT_LR, METHODS, SINGLE_METHODS
from study.results import Results
from study.statistics import Scores, mean_difference, probability_of_improvement, stratified_interval
from study.tasks import TASKS

Floats = npt.NDArray[np.float64]
Figures = dict[str, Any]

MIN_SEEDS = 8
NOT_BEHIND, AHEAD = 0.5, 0.75
AT_THE_TOP = 0.995  # normalised
KEPT = 0.9
LEAST_GAIN = 0.05  # normalised
SOUP = "hybrid-no-soup"  # whose worth the curves cannot show

DEFINITIONS = {
    "ahead_of_single_methods": (
        f"Single methods: {', '.join(SINGLE_METHODS)}. On each task the best of them is the one with the largest mean "
        f"lead over the hybrid, on the same seeds. The claim holds when the hybrid's probability of improvement over "
        f"it (ties count half) is at least {NOT_BEHIND} on every task and at least {AHEAD} on at least half of them, "
        "both at equal seconds (test reward at the end of the budget) and at equal FLOPs (each pair compared at the "
        "most FLOPs that all its runs reached: the test reward of the adapter that was best on validation by then)."
    ),
    "worst_seed": (
        "The claim holds when on every task the worst of the hybrid's seeds is better than the worst of the same seeds "
        f"of each single method, or both are at the top (normalised score of at least {AT_THE_TOP}), where nothing "
        "better is left."
    ),
    "learning_rate": (
        f"Gain: mean test reward minus the untouched base's. At ten times and a tenth of the default learning rate "
        f"({DEFAULT_LR:g}) a method holds its reward on a task when it keeps at least {KEPT:.0%} of its gain at the "
        f"default. The claim holds when, at each of the two rates, the hybrid holds it on every task and PPO alone (no "
        f"search) does not on more than half of them. A task where the gain at the default is below {LEAST_GAIN} of "
        "the way from base to top says nothing about that method and is left out for it; at least half of the tasks "
        "must remain."
    ),
    "ablations": (
        "Ingredients: what the hybrid has and PPO alone has not. Cost of one: normalised score of the hybrid minus "
        "that without it, at the default learning rate, but at ten times that for the rate that is led by its "
        "updates, which guards against a wrong one. The soup comes after the loop: an ingredient of the loop is left "
        "out where there is no soup; the lineage's average, whose work the soup might do, also where there is. It "
        "costs something to remove when the 95% stratified bootstrap interval of the mean over tasks lies above 0, or "
        "that of a single task at 95% divided among the tasks (Bonferroni). The claim holds when that is so for every "
        "ingredient. `equal_flops`, the cost at equal FLOPs as in the first claim, is shown and decides nothing; the "
        "curves end before the soup, so it has none."
    ),
}


def claims(results: Results, *, min_seeds: int = MIN_SEEDS, tasks: Sequence[str] = tuple(TASKS)) -> Figures:
    """All four claims, as JSON can hold them."""
    return {
        "budget": results.budget.name,
        "min_seeds": min_seeds,
        "made_with_other_options_than_todays": results.stale,
        "claims": {
            "ahead_of_single_methods": _ahead(results, tasks, min_seeds),
            "worst_seed": _worst_seed(results, tasks, min_seeds),
            "learning_rate": _learning_rate(results, tasks, min_seeds),
            "ablations": _ablations(results, tasks, min_seeds),
        },
    }


def _claim(name: str, holds: bool, reasons: list[str], **figures: Any) -> Figures:
    return {
        "definition": DEFINITIONS[name],
        "holds": None if reasons else bool(holds),
        "reason": "; ".join(reasons) or None,
        **figures,
    }


def _missing(results: Results, tasks: Sequence[str], methods: Sequence[str], min_seeds: int) -> list[str]:
    """Why a claim cannot be decided yet."""
    reasons = []
    if results.budget.seconds is None:
        reasons.append("the runs were not made at equal cost")
    short: dict[str, list[str]] = {}
    for method in methods:
        missing = [task for task in tasks if len(results.seeds(task, "hybrid", method)) < min_seeds]
        if missing:
            short.setdefault("any task" if len(missing) == len(tasks) else ", ".join(missing), []).append(method)
    for where, names in short.items():
        reasons.append(f"fewer than {min_seeds} seeds on {where}: {', '.join(names)}")
    return reasons


# --- 1 -----------------------------------------------------------------------------------------------------------


def _ahead(results: Results, tasks: Sequence[str], min_seeds: int) -> Figures:
    reasons = _missing(results, tasks, ("hybrid", *SINGLE_METHODS), min_seeds)
    by_task: dict[str, Figures] = {}
    for task in tasks:
        pairs = [(method, seeds) for method in SINGLE_METHODS if (seeds := results.seeds(task, "hybrid", method))]
        at_seconds, at_flops = {}, {}
        for method, seeds in pairs:
            at_seconds[method] = _pair(results.tests(task, "hybrid", seeds), results.tests(task, method, seeds))
            level = results.shared_flops(task, ("hybrid", method), seeds)
            if level is None:
                continue
            hybrid, other = (results.tests_at_flops(task, name, seeds, level) for name in ("hybrid", method))
            at_flops[method] = _pair(hybrid, other) | {"flops": level}
        if len(at_flops) < len(pairs):
            reasons.append(f"{task}: runs without a count of FLOPs")
        by_task[task] = {"equal_seconds": _best(at_seconds), "equal_flops": _best(at_flops)}
    found = {
        cost: [
            figures[cost]["probability_of_improvement"] if figures[cost] is not None else float("nan")
            for figures in by_task.values()
        ]
        for cost in ("equal_seconds", "equal_flops")
    }
    holds = all(
        all(p >= NOT_BEHIND for p in values) and 2 * sum(p >= AHEAD for p in values) >= len(values)
        for values in found.values()
    )
    return _claim("ahead_of_single_methods", holds, reasons, tasks=by_task)


def _pair(hybrid: Floats, other: Floats) -> Figures:
    return {
        "hybrid_mean": float(hybrid.mean()),
        "mean": float(other.mean()),
        "seeds": len(hybrid),
        "probability_of_improvement": probability_of_improvement(hybrid, other),
    }


def _best(pairs: dict[str, Figures]) -> Figures | None:
    """The hybrid against the best single method, and against all."""
    if not pairs:
        return None
    # Of equals the one that the hybrid has it harder with.

    def lead(name: str) -> tuple[float, float]:
        pair = pairs[name]
        return pair["mean"] - pair["hybrid_mean"], -pair["probability_of_improvement"]

    best = max(pairs, key=lead)
    return {"best_single": best, **pairs[best], "all": pairs}


# --- 2 -----------------------------------------------------------------------------------------------------------


def _worst_seed(results: Results, tasks: Sequence[str], min_seeds: int) -> Figures:
    reasons = _missing(results, tasks, ("hybrid", *SINGLE_METHODS), min_seeds)
    by_task: dict[str, Figures] = {}
    for task in tasks:
        against = {}
        for method in SINGLE_METHODS:
            if not (seeds := results.seeds(task, "hybrid", method)):
                continue
            hybrid, other = (float(results.tests(task, name, seeds).min()) for name in ("hybrid", method))
            top = float(results.normalised(task, np.array([hybrid, other])).min()) >= AT_THE_TOP
            against[method] = {"hybrid": hybrid, "method": other, "better": hybrid > other or top}
        by_task[task] = {"against": against, "better_than_all": all(pair["better"] for pair in against.values())}
    holds = all(figures["better_than_all"] for figures in by_task.values())
    return _claim("worst_seed", holds, reasons, tasks=by_task)


# --- 3 -----------------------------------------------------------------------------------------------------------


def _learning_rate(results: Results, tasks: Sequence[str], min_seeds: int) -> Figures:
    names = {
        "hybrid": ("hybrid", "hybrid-lr-high", "hybrid-lr-low"),
        "ppo": ("ppo-default", "ppo-lr-high", "ppo-lr-low"),
    }
    reasons = _missing(results, tasks, [name for group in names.values() for name in group], min_seeds)
    by_task: dict[str, Figures] = {}
    for task in tasks:
        by_task[task] = {}
        for who, group in names.items():
            seeds = results.seeds(task, *group)
            if not seeds:
                continue
            base = results.base(task)
            gains = [float(results.tests(task, name, seeds).mean()) - base for name in group]
            says = gains[0] >= LEAST_GAIN * (TASKS[task].top - base)
            by_task[task][who] = {
                "gain": gains[0],
                "kept_high": gains[1] / gains[0] if says else None,
                "kept_low": gains[2] / gains[0] if says else None,
            }
    rates: dict[str, Figures] = {}
    for rate in ("kept_high", "kept_low"):
        kept = {
            who: [
                figures[who][rate] for figures in by_task.values() if who in figures and figures[who][rate] is not None
            ]
            for who in names
        }
        for who, values in kept.items():
            if not reasons and 2 * len(values) < len(tasks):
                reasons.append(f"{who}: gains too little at the default rate on more than half of the tasks")
        rates[rate] = {
            "hybrid_holds": sum(share >= KEPT for share in kept["hybrid"]),
            "hybrid_tasks": len(kept["hybrid"]),
            "ppo_fails": sum(share < KEPT for share in kept["ppo"]),
            "ppo_tasks": len(kept["ppo"]),
        }
    holds = all(
        figures["hybrid_holds"] == figures["hybrid_tasks"] and 2 * figures["ppo_fails"] > figures["ppo_tasks"]
        for figures in rates.values()
    )
    return _claim("learning_rate", holds, reasons, rates=rates, tasks=by_task)


# --- 4 -----------------------------------------------------------------------------------------------------------


def _ablations(results: Results, tasks: Sequence[str], min_seeds: int) -> Figures:
    beside = {METHODS[name].beside for name in ABLATIONS}
    reasons = _missing(results, tasks, sorted(beside.union(ABLATIONS)), min_seeds)
    ingredients: dict[str, Figures] = {}
    for method in ABLATIONS:
        whole, without = results.side_by_side(method, tasks)
        if not whole:
            continue
        overall = mean_cost(whole, without)
        low, high = overall["ci95"]
        by_task: dict[str, Figures] = {}
        for task in whole:
            one = {task: whole[task]}, {task: without[task]}
            task_low, task_high = stratified_interval(mean_difference, *one, level=1 - 0.05 / len(tasks))
            by_task[task] = {"cost": mean_difference(*one), "interval": [task_low, task_high]}
        fewest = min(len(whole.get(task, ())) for task in tasks)
        costs = low > 0 or any(figures["interval"][0] > 0 for figures in by_task.values())
        ingredients[method] = {
            "title": METHODS[method].title,
            "runs": sum(map(len, without.values())),
            **overall,
            "excludes_zero": low > 0 or high < 0,
            # The interval of one or two seeds is none.
            "costs": costs if fewest >= min_seeds else None,
            "equal_flops": None if method == SOUP else _at_equal_flops(results, method, tasks),
            "tasks": by_task,
        }
    holds = all(figures["costs"] for figures in ingredients.values())
    return _claim("ablations", holds, reasons, ingredients=ingredients)


def _at_equal_flops(results: Results, method: str, tasks: Sequence[str]) -> Figures | None:
    whole, without = results.side_by_side_at_flops(method, tasks)
    return mean_cost(whole, without) if whole else None


def mean_cost(whole: Scores, without: Scores) -> Figures:
    """How much `whole` is ahead: the mean over tasks, and its 95% interval."""
    return {
        "cost": mean_difference(whole, without),
        "ci95": list(stratified_interval(mean_difference, whole, without)),
    }
