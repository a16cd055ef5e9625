"""The claims, each computed from the raw rows: the figures, and whether it holds.

`holds` is null, with the reason, as long as runs are missing that it hangs on; the figures are those of the runs that
are there. The definitions were fixed before the first run, and stand in the file beside the figures.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from study.measure import Row
from study.runner import of_processor
from study.tasks import TASKS as TINY_TASKS

from testbed.arms import ABLATIONS, ARMS, BUDGET_SECONDS, RATES, options_sha256, singles_on
from testbed.plan import (
    ABLATION_SEEDS,
    COLD_SEEDS,
    ELSEWHERE,
    OTHER_SEEDS,
    PHASE,
    RATE_ARMS,
    RATE_TASKS,
    Planned,
)
from testbed.tasks import COLD, OTHERS, TASKS, in_float32

Floats = npt.NDArray[np.float64]
Figures = dict[str, Any]
_Newest = dict[tuple[Any, ...], Row]

RESAMPLES = 10_000
REACHED = 0.5
EQUAL = 0.1  # fitness, of two runs that are compared for what they kept
LEAST_GAIN = 0.05  # fitness
LEAST_PAIRS = 6
KEPT = 0.9
GRPO = ("grpo-fitness", "grpo-terms", "grpo-searched")
TINY_SECONDS, DEMO_GENS, TINY_SEEDS = 20.0, 20, 4

DEFINITIONS = {
    "A": (
        "Cold. Difference: test fitness of the hybrid minus that of a single arm with the same seed, after equal "
        "seconds of one thread, searches included. Its mean over the seeds has a 95% percentile bootstrap interval "
        "over the seeds; equal runs differ by 0. Ahead on a task: the mean difference from every single arm is above "
        "0. The claim holds when the hybrid is ahead on all three cold tasks, and on at least two of them with an "
        f"interval above 0 against every single arm. The share of seeds with a test fitness of at least {REACHED} "
        "stands beside it."
    ),
    "B": (
        "Warm and rugged. The best single arm of a task is the one with the largest mean test fitness over the seeds "
        "that it shares with the hybrid. Differences and intervals as in A. Behind: the interval against it lies "
        "below 0; ahead: it lies above 0. The claim holds when the hybrid is behind on none of the three tasks and "
        "ahead on one."
    ),
    "C": (
        "Cost of a part: normalised test fitness (the untouched base has 0, 1 is the most) of the hybrid minus that "
        "without the part, of the same task and seed. Its mean over all pairs of all six tasks has a 95% percentile "
        "bootstrap interval, pairs drawn with replacement. The claim holds when that lies above 0 for genes, selection "
        "by fitness, and mutation with crossover."
    ),
    "D": (
        f"Pairs: the hybrid and GRPO alone ({', '.join(GRPO)}) on the same task and seed whose test fitness differs "
        f"by at most {EQUAL} and is at least {LEAST_GAIN} above the base's in both. The mean difference over pairs "
        "has a 95% percentile bootstrap interval. The claim holds when that of pass@16 does not lie below 0 and that "
        f"of the drift (KL a token on neutral sentences) does not lie above 0. Fewer than {LEAST_PAIRS} pairs decide "
        "nothing."
    ),
    "E": (
        f"Learning rates {RATES[0]:g}, the default and {RATES[1]:g}, one seed, on {' and '.join(RATE_TASKS)}. Gain: "
        "test fitness minus the untouched base's. A method keeps its best when the least of its three gains is at "
        f"least {KEPT:.0%} of the largest. The claim holds when the hybrid does on both tasks and GRPO alone on all "
        f"terms does not on one or both. A task where the largest gain is below {LEAST_GAIN} says nothing about a "
        "method; where no task says anything about one of them, nothing is decided."
    ),
    "F": (
        f"The tiny model's study, hybrid only, {TINY_SECONDS:g} s a run on eight tasks, and the demo's {DEMO_GENS} "
        f"generations on translate, {TINY_SEEDS} seeds, before and after on one processor. The claim holds when every "
        "mean after is at least the lower end of the 95% percentile bootstrap interval of the mean before."
    ),
}


@dataclass(frozen=True)
class Bed:
    """The rows that count: `runs[task, arm][seed]`, and those of the learning rates, `rates[task, arm][lr]`.
    `elsewhere` are those of them that another processor made."""

    runs: dict[tuple[str, str], dict[int, Row]]
    rates: dict[tuple[str, str], dict[float, Row]]
    missing: list[Planned]
    errors: int
    elsewhere: list[Row]

    def shared(self, task: str, *arms: str) -> list[int]:
        """The seeds that all these arms were run with."""
        return sorted(set.intersection(*(set(self.runs.get((task, arm), {})) for arm in arms)))

    def figures(self, task: str, arm: str, seeds: Sequence[int], name: str = "test") -> Floats:
        return np.array([self.runs[task, arm][seed][name] for seed in seeds], dtype=float)

    def base(self, task: str) -> float | None:
        """The untouched base's test fitness."""
        found = (row["base"] for (own, _), rows in self.runs.items() if own == task for row in rows.values())
        value = next(found, None)
        return None if value is None else float(value)


def collect(rows: Iterable[Row], plan: Sequence[Planned]) -> Bed:
    """The runs of the plan that count: of the processor and the base model that have made most, with today's options,
    the newest of each. Where these lack all runs of a task and seed, those of another processor count, if one has made
    them all: they are compared only with each other."""
    rows = [row for row in rows if row["task"] in TASKS and row["method"] in ARMS]
    others = [row for row in rows if row["phase"] == ELSEWHERE and "error" not in row]
    rows = [row for row in rows if row["phase"] == PHASE]
    whole = [row for row in rows if "error" not in row and row["budget"] == f"{BUDGET_SECONDS:g} s"]
    if whole:
        processor = Counter(row["processor"] for row in whole).most_common(1)[0][0]
        whole = of_processor(whole, processor)
        known = {task: Counter(row["task_sha256"] for row in whole if row["task"] == task) for task in TASKS}
        whole = [row for row in whole if row["task_sha256"] == known[row["task"]].most_common(1)[0][0]]
    newest: _Newest = {}
    for row in whole:
        if row["options_sha256"] == options_sha256(ARMS[row["method"]], TASKS[row["task"]], row["setting"]):
            newest[_key(row["task"], row["method"], row["setting"], row["seed"])] = row
    elsewhere = _made_elsewhere(newest, others, plan)
    newest |= elsewhere
    runs: dict[tuple[str, str], dict[int, Row]] = {}
    rates: dict[tuple[str, str], dict[float, Row]] = {}
    missing: list[Planned] = []
    for run in plan:
        found = newest.get(_key(run["task"], run["arm"], run["setting"], run["seed"]))
        where = run["task"], run["arm"]
        if found is None:
            missing.append(run)
        elif run["setting"]:
            rates.setdefault(where, {})[run["setting"]["lr"]] = found
        else:
            runs.setdefault(where, {})[run["seed"]] = found
    return Bed(runs, rates, missing, sum("error" in row for row in rows), list(elsewhere.values()))


def _made_elsewhere(newest: _Newest, others: Iterable[Row], plan: Sequence[Planned]) -> _Newest:
    """Whole sets of a task and a seed that `newest` lacks, each of one processor, budget and model."""
    groups: dict[tuple[Any, ...], _Newest] = {}
    for row in others:
        if row["options_sha256"] == options_sha256(ARMS[row["method"]], in_float32(TASKS[row["task"]]), row["setting"]):
            together = row["task"], row["seed"], row["processor"], row["budget"], row["task_sha256"]
            key = _key(row["task"], row["method"], row["setting"], row["seed"])
            groups.setdefault(together, {})[key] = row
    found: _Newest = {}
    for (task, seed, *_), group in groups.items():
        planned = {
            _key(run["task"], run["arm"], run["setting"], run["seed"])
            for run in plan
            if (run["task"], run["seed"]) == (task, seed)
        }
        if planned == set(group) and not planned & set(newest):
            found |= group
    return found


def _key(task: str, arm: str, setting: dict[str, Any], seed: int) -> tuple[Any, ...]:
    return task, arm, tuple(sorted(setting.items())), seed


def claims(bed: Bed, before: Iterable[Row] = (), after: Iterable[Row] = ()) -> Figures:
    """All claims, as JSON can hold them."""
    found = {
        "A": _cold(bed),
        "B": _warm(bed),
        "C": _parts(bed),
        "D": _kept(bed),
        "E": _rates(bed),
        "F": _tiny(list(before), list(after)),
    }
    if not bed.runs:
        found |= {name: (False, ["no run has been made yet"], found[name][2]) for name in "ABCDE"}
    return {
        name: {
            "definition": DEFINITIONS[name],
            "holds": None if reasons else holds,
            "reason": "; ".join(reasons),
            **more,
        }
        for name, (holds, reasons, more) in found.items()
    }


Found = tuple[bool, list[str], Figures]


def interval(differences: Floats) -> Figures:
    """The mean over pairs, and its 95% percentile bootstrap interval.

    >>> interval(np.array([0.25, 0.25, 0.25]))
    {'mean': 0.25, 'ci95': [0.25, 0.25], 'pairs': 3}
    """
    drawn = np.random.default_rng(0).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.quantile(differences[drawn].mean(1), [0.025, 0.975])
    return {"mean": float(differences.mean()), "ci95": [float(low), float(high)], "pairs": len(differences)}


def _short_of(bed: Bed, task: str, arms: Iterable[str], seeds: int) -> list[str]:
    """Which arms have too few seeds in common with the hybrid."""
    return [
        f"{task}: {arm} has {found} of {seeds} seeds"
        for arm in arms
        if (found := len(bed.shared(task, "hybrid", arm))) < seeds
    ]


def _against(bed: Bed, task: str) -> dict[str, Figures]:
    """The hybrid minus each single arm, on the seeds that they share."""
    found = {}
    for arm in singles_on(task):
        if seeds := bed.shared(task, "hybrid", arm):
            hybrid, other = (bed.figures(task, name, seeds) for name in ("hybrid", arm))
            found[arm] = {"hybrid": float(hybrid.mean()), "arm": float(other.mean()), **interval(hybrid - other)}
    return found


# --- A, B --------------------------------------------------------------------------------------------------------


def _cold(bed: Bed) -> Found:
    reasons: list[str] = []
    tasks: dict[str, Figures] = {}
    for task in COLD:
        reasons += _short_of(bed, task, singles_on(task), COLD_SEEDS)
        against = _against(bed, task)
        reached = {
            arm: float((bed.figures(task, arm, seeds) >= REACHED).mean())
            for arm in ("hybrid", *singles_on(task))
            if (seeds := bed.shared(task, arm))
        }
        tasks[task] = {
            "ahead": bool(against) and all(pair["mean"] > 0 for pair in against.values()),
            "excludes_zero": bool(against) and all(pair["ci95"][0] > 0 for pair in against.values()),
            "reached": reached,
            "against": against,
        }
    holds = (
        all(found["ahead"] for found in tasks.values()) and sum(found["excludes_zero"] for found in tasks.values()) >= 2
    )
    # Where one arm has all its seeds and the hybrid is not ahead of it, no other run can save the claim.
    lost = any(
        pair["pairs"] == COLD_SEEDS and pair["mean"] <= 0
        for found in tasks.values()
        for pair in found["against"].values()
    )
    return holds, [] if lost else reasons, {"tasks": tasks}


def _warm(bed: Bed) -> Found:
    reasons: list[str] = []
    tasks: dict[str, Figures] = {}
    for task in OTHERS:
        reasons += _short_of(bed, task, singles_on(task), OTHER_SEEDS)
        against = _against(bed, task)
        if not against:
            continue
        best = max(against, key=lambda arm: against[arm]["arm"])
        low, high = against[best]["ci95"]
        tasks[task] = {"best_single": best, "behind": high < 0, "ahead": low > 0, "against": against}
    holds = not any(found["behind"] for found in tasks.values()) and any(found["ahead"] for found in tasks.values())
    return holds, reasons, {"tasks": tasks}


# --- C, D --------------------------------------------------------------------------------------------------------


def _parts(bed: Bed) -> Found:
    reasons: list[str] = []
    parts: dict[str, Figures] = {}
    for arm in ABLATIONS:
        differences: list[float] = []
        by_task: dict[str, float] = {}
        for task, own in TASKS.items():
            reasons += _short_of(bed, task, [arm], ABLATION_SEEDS[own.kind])
            seeds, base = bed.shared(task, "hybrid", arm), bed.base(task)
            if seeds and base is not None:
                cost = (bed.figures(task, "hybrid", seeds) - bed.figures(task, arm, seeds)) / (1 - base)
                differences += cost.tolist()
                by_task[task] = float(cost.mean())
        if differences:
            found = interval(np.array(differences))
            parts[arm] = {**found, "costs": found["ci95"][0] > 0, "tasks": by_task}
    return bool(parts) and all(found["costs"] for found in parts.values()), reasons, {"parts": parts}


def _kept(bed: Bed) -> Found:
    differences: dict[str, list[float]] = {"pass_16": [], "drift": []}
    for task in TASKS:
        base = bed.base(task)
        for arm in GRPO:
            for seed in bed.shared(task, "hybrid", arm):
                own, other = bed.runs[task, "hybrid"][seed], bed.runs[task, arm][seed]
                learnt = base is not None and min(own["test"], other["test"]) >= base + LEAST_GAIN
                if learnt and abs(own["test"] - other["test"]) <= EQUAL:
                    for name, values in differences.items():
                        values.append(own[name] - other[name])
    count = len(differences["drift"])
    reasons = [f"{len(bed.missing)} runs are missing"] if bed.missing else []
    if count < LEAST_PAIRS:
        reasons.append(f"{count} pairs of equal fitness, expected {LEAST_PAIRS}")
    found = {name: interval(np.array(values)) for name, values in differences.items() if values}
    holds = bool(found) and found["pass_16"]["ci95"][1] >= 0 and found["drift"]["ci95"][0] <= 0
    return holds, reasons, found


# --- E, F --------------------------------------------------------------------------------------------------------


def _rates(bed: Bed) -> Found:
    reasons: list[str] = []
    tasks: dict[str, Figures] = {}
    for task in RATE_TASKS:
        for arm in RATE_ARMS:
            found = bed.rates.get((task, arm), {})
            default = bed.runs.get((task, arm), {}).get(0)
            base = bed.base(task)
            if default is None or base is None or not all(rate in found for rate in RATES):
                reasons.append(f"{task}: {arm} has not been run at all rates")
                continue
            gains = [row["test"] - base for row in (found[RATES[0]], default, found[RATES[1]])]
            says = max(gains) >= LEAST_GAIN
            tasks.setdefault(task, {})[arm] = {
                "gains": gains,
                "keeps": min(gains) >= KEPT * max(gains) if says else None,
            }
    said = {arm: [own[arm]["keeps"] for own in tasks.values() if arm in own] for arm in RATE_ARMS}
    for arm, values in said.items():
        if not reasons and all(value is None for value in values):
            reasons.append(f"{arm} gains less than {LEAST_GAIN} at every rate")
    hybrid, grpo = (said[arm] for arm in RATE_ARMS)
    return all(value is True for value in hybrid) and any(value is False for value in grpo), reasons, {"tasks": tasks}


def _tiny(before: list[Row], after: list[Row]) -> Found:
    whole = [row for row in (*before, *after) if "error" not in row]
    reasons: list[str] = []
    if len({row["processor"] for row in whole}) > 1:
        reasons.append("before and after were not made on one processor")
    figures: dict[str, Figures] = {}
    wanted = [(task, f"{TINY_SECONDS:g} s") for task in TINY_TASKS] + [("translate", f"{DEMO_GENS} generations")]
    for task, budget in wanted:
        old, new = (
            np.array(
                [row["test"] for row in rows if "error" not in row and (row["task"], row["budget"]) == (task, budget)]
            )
            for rows in (before, after)
        )
        name = task if "s" in budget.split()[1:] else "demo"
        if min(len(old), len(new)) < TINY_SEEDS:
            reasons.append(f"{name}: {len(old)} and {len(new)} of {TINY_SEEDS} seeds")
        if len(old) and len(new):
            known = interval(old)
            figures[name] = {
                "before": known,
                "after": float(new.mean()),
                "holds": float(new.mean()) >= known["ci95"][0],
            }
    return bool(figures) and all(found["holds"] for found in figures.values()), reasons, {"tasks": figures}
