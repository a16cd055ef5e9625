"""The results page, of two screens, and claims_testbed.json: all from the raw rows and what was fixed before them."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study.measure import Row
from study.report import rounded, table

from testbed.arms import ABLATIONS, ARMS, BUDGET_SECONDS, SINGLE, TERMS
from testbed.claims import REACHED, Bed, claims, collect, interval
from testbed.in_words import in_words, interval_in_words
from testbed.plan import Planned
from testbed.tasks import TASKS

PAGE, CLAIMS = "testbed.md", "claims_testbed.json"
TITLES = {
    "A": "cold: ahead of every single arm",
    "B": "warm and rugged: behind the best single arm on none, ahead on one",
    "C": "genes, selection by fitness, mutation with crossover: each costs something when taken away",
    "D": "at equal fitness pass@16 and drift are no worse than GRPO's",
    "E": "keeps 90% of its best over learning rates of a factor of 30; GRPO alone does not",
    "F": "the demo and the tiny study are no worse than before",
}
WORDS = {True: "yes", False: "**no**", None: "open"}
LONGEST = 100  # of a reason, in characters
CHANGED = (
    "What was changed after the first runs, all of seed 0: the arm without selection by fitness got generations of the "
    "hybrid's shape; a population's search for first hits may take two fifths of the budget in the place of one, by "
    "the arithmetic in [algorithms](../algorithms.md); and the search over single terms draws them for each task anew, "
    "not for all alike. The nine runs that this concerns are made anew; the old ones are in the raw rows, under "
    "another phase."
)

Rates = dict[str, dict[str, Any]]


def write_report(
    rows: Iterable[Row],
    plan: Sequence[Planned],
    rates: Rates,
    folder: Path,
    before: Iterable[Row],
    after: Iterable[Row],
) -> None:
    """Write the page and the claims' figures into `folder`."""
    bed = collect(rows, plan)
    found = claims(bed, before, after)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CLAIMS).write_text(json.dumps(rounded(found), indent=1) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page(bed, found, rates, plan), encoding="utf-8")


def page(bed: Bed, found: dict[str, Any], rates: Rates, plan: Sequence[Planned]) -> str:
    parts = [_opening(bed, plan), CHANGED, _tasks_table(rates), _claims_table(found)]
    if bed.runs:
        parts += [_fitness_table(bed, rates), _parts_table(found), _kept_table(bed), _hits_table(bed), _searched(bed)]
    parts.append(_missing(bed))
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(bed: Bed, plan: Sequence[Planned]) -> str:
    text = (
        "# What evolution earns on a real model\n\n`make results` writes this page from the raw rows; edits "
        f"are lost. SmolLM2-135M-Instruct, {BUDGET_SECONDS:g} s of one thread a run, searches included, two side by "
        f"side; {len(plan)} runs were listed before the first was made, and {len(plan) - len(bed.missing)} are here. "
        "Every arm but supervised tuning follows the same ten terms, or the fitness alone; what is wanted is the "
        f"fitness, on held-out rows. The terms: `{'`, `'.join(TERMS)}`."
    )
    if bed.elsewhere:
        text += f" {_elsewhere(bed.elsewhere)}"
    if bed.errors:
        text += f" {bed.errors} failed attempts are in the raw rows and count for nothing."
    return text


def _elsewhere(rows: Sequence[Row]) -> str:
    sets = Counter((row["task"], row["seed"], row["processor"], row["budget"]) for row in rows)
    told = "; ".join(f"{task}, seed {seed}: {where}, {budget}" for task, seed, where, budget in sets)
    return (
        f"{len(rows)} of them were made on another processor than the others, as theirs could not be had any more, in "
        f"float32, as it has no bfloat16, and with seconds for about the same work; they are compared only with each "
        f"other ({told})."
    )


def _tasks_table(rates: Rates) -> str:
    rows = []
    for name, task in TASKS.items():
        own = rates.get(name)
        cells = ["", "", "", ""]
        if own:
            cells = [f"{own['fitness']:.3f}", f"{own['hits']} of {own['samples']}"]
            cells += [f"{own['best_of_16']:.3f}", f"{own['three_examples']:.3f}"]
        rows.append([name, task.kind, task.what, *cells])
    head = [
        "task",
        "kind",
        "wanted",
        "base, greedy",
        "its samples that hit",
        "best of 16 samples †",
        "three examples †",
    ]
    note = "The tasks, and the untouched base on their test rows (†: a reference, nothing is tuned):"
    return f"{note}\n\n{table(head, rows)}"


def _claims_table(found: dict[str, Any]) -> str:
    rows = [
        [f"{name}. {TITLES[name]}", WORDS[claim["holds"]], in_words(name, claim), _shortened(claim["reason"])]
        for name, claim in found.items()
    ]
    head = [f"claim (definitions and all figures: [{CLAIMS}]({CLAIMS}))", "holds", "found", "open because"]
    if all(claim["holds"] is not None for claim in found.values()):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return table(head, rows)


def _shortened(reason: str) -> str:
    return reason if len(reason) <= LONGEST else f"{reason[: LONGEST - 3]}..."


def _fitness_table(bed: Bed, rates: Rates) -> str:
    """Mean test fitness, and its interval over seeds, by task and arm."""
    rows = []
    for arm, own in ARMS.items():
        cells = [_mean(bed, task, arm) for task in TASKS]
        if any(cells):
            rows.append([own.title, *cells])
    base = [bed.base(task) for task in TASKS]
    rows.insert(0, ["untouched base", *("" if value is None else f"{value:.3f}" for value in base)])
    if rates:
        for title, name in (("best of 16 samples †", "best_of_16"), ("three worked examples †", "three_examples")):
            rows.append([title, *(f"{rates[task][name]:.3f}" if task in rates else "" for task in TASKS)])
    note = "Test fitness: mean over seeds, 95% bootstrap interval over seeds, and how many."
    return f"{note}\n\n{table(['arm', *TASKS], rows)}"


def _mean(bed: Bed, task: str, arm: str) -> str:
    seeds = bed.shared(task, arm)
    if not seeds:
        return ""
    found = interval(bed.figures(task, arm, seeds))
    low, high = found["ci95"]
    between = f" ({low:.2f} to {high:.2f})" if len(seeds) > 1 else ""
    return f"{found['mean']:.3f}{between}, {len(seeds)}"


def _parts_table(found: dict[str, Any]) -> str:
    parts = found["C"]["parts"]
    rows = []
    for arm in ABLATIONS:
        if arm in parts:
            own = parts[arm]
            cells = [f"{own['tasks'][task]:+.3f}" if task in own["tasks"] else "" for task in TASKS]
            rows.append([ARMS[arm].title, interval_in_words(own), str(own["pairs"]), *cells])
    if not rows:
        return ""
    note = "What a part is worth: normalised fitness of the hybrid minus that of the hybrid without it."
    return f"{note}\n\n{table(['', 'cost', 'pairs', *TASKS], rows)}"


def _kept_table(bed: Bed) -> str:
    """What was kept; * where no other arm is better in fitness or one of these and as good in the others."""
    arms = [arm for arm in ("hybrid", *SINGLE, "supervised") if any(bed.shared(task, arm) for task in TASKS)]
    cells: dict[str, list[str]] = {arm: [] for arm in arms}
    for task in TASKS:
        points = {
            arm: [float(bed.figures(task, arm, seeds, name).mean()) for name in _KEPT]
            for arm in arms
            if (seeds := bed.shared(task, arm))
        }
        for arm in arms:
            values = points.get(arm)
            best = values is not None and not any(_dominates(other, values) for other in points.values())
            cells[arm].append(
                "" if values is None else f"{values[1]:.2f}, {values[2]:.3f}, {values[3]:.3f}{' *' * best}"
            )
    note = (
        "What was kept: pass@16, drift (KL from the base, a token, on 200 neutral sentences) and KL on the task's own "
        "prompts, means over seeds; * is on the Pareto front of fitness, pass@16 and drift."
    )
    return f"{note}\n\n{table(['arm', *TASKS], [[ARMS[arm].title, *own] for arm, own in cells.items()])}"


_KEPT = ("test", "pass_16", "drift", "kl")


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """In fitness and pass@16, the more the better, and drift, the less the better.

    >>> _dominates([0.5, 0.6, 0.1, 0.0], [0.5, 0.5, 0.1, 0.0]), _dominates([0.5, 0.6, 0.2, 0.0], [0.5, 0.5, 0.1, 0.0])
    (True, False)
    """
    signs = np.array([1, 1, -1])
    gap = np.round(signs * (np.array(one[:3]) - np.array(other[:3])), 4)  # rows have five digits
    return bool((gap >= 0).all() and (gap > 0).any())


def _hits_table(bed: Bed) -> str:
    """When the first completion came that was all that is wanted, and how soon half of the prompts were right."""
    rows = []
    for arm in ("hybrid", *SINGLE):
        cells = [_hits(bed, task, arm) for task in TASKS]
        if any(cells):
            rows.append([ARMS[arm].title, *cells])
    note = (
        "Completions until the first that was all that is wanted, on any prompt; then tokens from there until a "
        f"generation ended with a best validation fitness of at least {REACHED} (not of a search, which is several "
        "runs): medians of the seeds that came so far."
    )
    return f"{note}\n\n{table(['arm', *TASKS], rows)}"


def _hits(bed: Bed, task: str, arm: str) -> str:
    rows = [bed.runs[task, arm][seed] for seed in bed.shared(task, arm)]
    if not rows:
        return ""
    hit = [row for row in rows if row["hits"]["first"]]
    first = _median([row["hits"]["first"]["completions"] for row in hit], len(rows))
    if ARMS[arm].kind == "search" or not hit:
        return first
    half = [(row, _tokens_to_half(row)) for row in hit]
    left = [max(0, tokens - row["hits"]["first"]["tokens"]) for row, tokens in half if tokens is not None]
    return f"{first}; {_median(left, len(rows))}"


def _tokens_to_half(row: Row) -> int | None:
    return next((point["tokens"] for point in row["curve"] if (point["validation"] or 0.0) >= REACHED), None)


def _median(values: Sequence[int], of: int) -> str:
    return f"{int(np.median(values)):,} ({len(values)} of {of})" if values else f"never ({of})"


def _searched(bed: Bed) -> str:
    """Which terms the searches chose."""
    chosen = []
    for task in TASKS:
        rows = bed.runs.get((task, "grpo-searched"), {}).values()
        counts = Counter(row["searched"]["best"] for row in rows)
        if counts:
            chosen.append(f"{task}: " + ", ".join(f"`{term}` {count}" for term, count in counts.most_common()))
    return f"What the searches chose, by seeds: {'; '.join(chosen)}." if chosen else ""


def _missing(bed: Bed) -> str:
    if not bed.missing:
        return ""
    counts = Counter((run["task"], run["arm"]) for run in bed.missing)
    by_task = {task: [f"{arm} {counts[task, arm]}" for arm in ARMS if counts[task, arm]] for task in TASKS}
    lines = [f"- {task}: {', '.join(arms)}" for task, arms in by_task.items() if arms]
    return "Runs of the list that are missing, by task and arm:\n\n" + "\n".join(lines)
