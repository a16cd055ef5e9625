"""The report: a page of tables, its plots, and claims.json; all from the raw rows."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from study.budget import Budget
from study.claims import claims, mean_cost
from study.measure import Row
from study.methods import ABLATIONS, BESIDE, MAIN_METHODS, METHODS, SINGLE_METHODS, VARIANTS
from study.results import Results, collect
from study.statistics import interquartile_mean, mean_probability_of_improvement, stratified_interval

PAGE = "study.md"
OPENING = """\
# The study: tables and plots

`make results` writes this page from the raw rows; edits are lost. docs/log/2026-11-28-study.md says what follows from
it, and docs/log/study/protocol.md how the runs are made."""
USES_REWARD = " †"


def write_report(rows: Iterable[Row], budget: Budget, folder: Path) -> None:
    """Write study.md, claims.json and the plots into `folder`."""
    results = collect(rows, budget)
    folder.mkdir(parents=True, exist_ok=True)
    found = claims(results)
    (folder / "claims.json").write_text(json.dumps(rounded(found), indent=1) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(f"{OPENING}\n\n{section(results, found, folder)}\n", encoding="utf-8")


def section(results: Results, found: dict[str, Any], plots: Path) -> str:
    """The page below its opening; draws its plots into `plots`."""
    if not results.runs:
        return "No run has been made yet: `make study`."
    parts = [_opening(results), _claims_table(found), _rewards_table(results)]
    # Over all tasks those are compared that have run on all.
    shown = [name for name in MAIN_METHODS if all(name in results.runs[task] for task in results.tasks())]
    parts += [_lead_table(found, results.methods()), _overall_table(results, shown), _plots(results, shown, plots)]
    parts += [_settings_table(results), _rates_table(found)]
    parts += [_variants_table(results), _ablation_table(found)]
    return "\n\n".join(part for part in parts if part)


def _opening(results: Results) -> str:
    rows = [row for methods in results.runs.values() for seeds in methods.values() for row in seeds.values()]
    text = (
        f"Made by `make results` from {len(rows)} runs of {results.budget.name} on one thread each, two side by side. "
        "Rewards are noise-free, on held-out test prompts."
    )
    if results.errors:
        text += f" {results.errors} failed attempts are in the raw rows and count for nothing."
    if results.stale:
        text += f" **Made with other options or data than today's: {', '.join(results.stale)}.**"
    return text


def _claims_table(found: dict[str, Any]) -> str:
    words = {True: "yes", False: "**no**", None: "open"}
    titles = {
        "ahead_of_single_methods": "not behind the best single method on any task, ahead on half",
        "worst_seed": "worst seed better than each single method's, on every task",
        "learning_rate": "holds its reward at ten times and a tenth of the learning rate, where PPO alone does not",
        "ablations": "each ingredient costs something to remove",
    }
    rows = [
        [titles[name], words[claim["holds"]], _shortened(claim["reason"])] for name, claim in found["claims"].items()
    ]
    return table(["claim (definitions and figures: [claims.json](claims.json))", "holds", "open because"], rows)


def _shortened(reason: str | None) -> str:
    return "" if reason is None else reason if len(reason) <= 160 else f"{reason[:157]}..."


def _rewards_table(results: Results) -> str:
    """Mean (worst seed) by task and method."""
    tasks, rows = results.tasks(), []
    rows.append(["untouched base", *(f"{results.base(task):.3f}" for task in tasks)])
    for name in results.methods():
        if name in (*ABLATIONS, *BESIDE, *VARIANTS):
            continue
        cells = [_mean_and_worst(results, task, name, results.seeds(task, name)) for task in tasks]
        rows.append([_title(name), *cells])
    note = (
        f"Test reward after {results.budget.name}: mean over seeds (worst seed). † asks the reward on the test prompts "
        "themselves: a reference, not a competitor."
    )
    return f"{note}\n\n{table(['method', *tasks], rows)}"


def _mean_and_worst(results: Results, task: str, method: str, seeds: Sequence[int]) -> str:
    tests = results.tests(task, method, seeds)
    return f"{tests.mean():.3f} ({tests.min():.3f})" if len(tests) else ""


def _title(method: str) -> str:
    return METHODS[method].title + USES_REWARD * (METHODS[method].kind == "best-of-n")


def _lead_table(found: dict[str, Any], methods: Sequence[str]) -> str:
    """The hybrid against the best single method of each task, at equal seconds and at equal FLOPs."""
    by_task = found["claims"]["ahead_of_single_methods"]["tasks"]
    tasks = [task for task, figures in by_task.items() if any(figures.values())]
    if not tasks:
        return ""
    rows = []
    for cost, words in (("equal_seconds", "equal seconds"), ("equal_flops", "equal FLOPs")):
        pairs = [by_task[task][cost] for task in tasks]
        rows.append([words, *(_lead(pair) for pair in pairs)])
    note = (
        "The hybrid against the best single method of each task: probability that the hybrid is better, that method, "
        "and the means of the two (hybrid first)."
    )
    if missing := [_title(name) for name in SINGLE_METHODS if name not in methods]:
        note += f" **Not among them, as they have not run: {', '.join(missing)}.**"
    return f"{note}\n\n{table(['at', *tasks], rows)}"


def _lead(pair: dict[str, Any] | None) -> str:
    if pair is None:
        return ""
    title = METHODS[pair["best_single"]].title
    return f"**{pair['probability_of_improvement']:.2f}** {title} ({pair['hybrid_mean']:.3f}, {pair['mean']:.3f})"


def _overall_table(results: Results, shown: Sequence[str]) -> str:
    rows, tasks = [], results.tasks()
    hybrid = results.scores("hybrid", tasks)
    for name in shown:
        scores = results.scores(name, tasks)
        low, high = stratified_interval(interquartile_mean, scores)
        better = ""
        common = [task for task in scores if task in hybrid]
        if name != "hybrid" and common:
            pair = {task: hybrid[task] for task in common}, {task: scores[task] for task in common}
            p_low, p_high = stratified_interval(mean_probability_of_improvement, *pair)
            better = f"{mean_probability_of_improvement(*pair):.2f} ({p_low:.2f} to {p_high:.2f})"
        runs = sum(map(len, scores.values()))
        rows.append([_title(name), f"{interquartile_mean(scores):.3f} ({low:.3f} to {high:.3f})", better, str(runs)])
    note = (
        "Over all tasks, scores normalised so that the untouched base has 0 and the most that can be earned is 1; 95% "
        "stratified bootstrap intervals (Agarwal et al., 2021, arXiv 2108.13264)."
    )
    head = ["method", "interquartile mean", "probability that the hybrid is better", "runs"]
    return f"{note}\n\n{table(head, rows)}"


def _plots(results: Results, shown: Sequence[str], folder: Path) -> str:
    from study import plots  # matplotlib, which the rest does without

    lines, lined = [], shown[: plots.MOST_LINES]
    for cost, words in plots.COSTS.items():
        if plots.learning_curves(results, lined, cost, folder / f"curves-{cost}.png"):
            lines.append(f"![Learning curves over {words}](curves-{cost}.png)")
    scores = {name: results.scores(name, results.tasks()) for name in shown}
    plots.interquartile_means(scores, folder / "interquartile-means.png")
    plots.performance_profiles({name: scores[name] for name in lined}, folder / "performance-profiles.png")
    lines.append("![Interquartile means](interquartile-means.png)")
    lines.append("![Performance profiles](performance-profiles.png)")
    note = (
        "Learning curves: test reward, on the first 128 test prompts, of the adapter that was best on validation so "
        "far (the soup comes after them); mean over seeds, and the band from the worst to the best."
    )
    if len(lined) < len(shown):
        note += f" Curves and profiles are those of the first {len(lined)} methods."
    return "\n\n".join([note, *lines])


def _settings_table(results: Results) -> str:
    if not results.settings:
        return ""
    tasks, methods = results.tasks(), list(dict.fromkeys(method for _, method in results.settings))
    rows = []
    for method in methods:
        found = [results.settings.get((task, method)) for task in tasks]
        rows.append([_title(method), *(f"{s['lr']:g}, {s['kl_weight']:g}" if s else "" for s in found)])
    return f"Learning rate and KL weight that the searches chose:\n\n{table(['method', *tasks], rows)}"


def _rates_table(found: dict[str, Any]) -> str:
    tasks = found["claims"]["learning_rate"]["tasks"]
    rows = [
        [title, *(_share(tasks[task].get(who, {}).get(rate)) for task in tasks)]
        for who, rate, title in (
            ("hybrid", "kept_high", "hybrid, rate x 10"),
            ("hybrid", "kept_low", "hybrid, rate / 10"),
            ("ppo", "kept_high", "PPO alone, rate x 10"),
            ("ppo", "kept_low", "PPO alone, rate / 10"),
        )
    ]
    if not any(any(row[1:]) for row in rows):
        return ""
    return f"Share of the gain at the default learning rate that is kept:\n\n{table(['', *tasks], rows)}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _ablation_table(found: dict[str, Any]) -> str:
    ingredients = found["claims"]["ablations"]["ingredients"]
    if not ingredients:
        return ""
    tasks = list(dict.fromkeys(task for figures in ingredients.values() for task in figures["tasks"]))
    rows, words = [], {True: "yes", False: "no", None: "open"}
    for figures in ingredients.values():
        decided = figures["costs"] is not None
        cells = [_cost(figures["tasks"].get(task), starred=decided) for task in tasks]
        overall = _interval(figures, shown=decided)
        answer, flops = words[figures["costs"]], _interval(figures["equal_flops"], shown=decided)
        rows.append([figures["title"], str(figures["runs"]), overall, answer, *cells, flops])
    note = (
        "What an ingredient is worth: normalised score of the hybrid minus that of the hybrid without it, with the 95% "
        "interval over all tasks; * where a single task's interval, corrected for their number, excludes 0. Open, and "
        "without intervals, where seeds are missing. The last column is over all tasks at equal FLOPs, which the claim "
        "does not ask for."
    )
    return f"{note}\n\n{table(['changed', 'runs', 'cost', 'costs something', *tasks, 'at equal FLOPs'], rows)}"


def _interval(figures: dict[str, Any] | None, *, shown: bool) -> str:
    if figures is None:
        return ""
    low, high = figures["ci95"]
    return f"{figures['cost']:+.3f}" + f" ({low:+.3f} to {high:+.3f})" * shown


def _variants_table(results: Results) -> str:
    """Other ways for evolution to meet RL: what each changes, over all tasks and on each."""
    tasks, rows = results.tasks(), []
    for name in VARIANTS:
        hybrid, variant = results.side_by_side(name, tasks)
        if not variant:
            continue
        shared = results.shared_seeds(name, tasks)
        cells = [_mean_and_worst(results, task, name, shared.get(task, [])) for task in tasks]
        # One run a task has no interval.
        difference = _interval(mean_cost(variant, hybrid), shown=min(map(len, variant.values())) > 2)
        rows.append([_title(name), str(sum(map(len, variant.values()))), difference, *cells])
    if not rows:
        return ""
    note = (
        "Other ways for evolution to meet RL: normalised score minus the hybrid's on the same seeds (without the soup "
        "where the variant is), with the 95% interval over all tasks, and test rewards, mean (worst seed)."
    )
    return f"{note}\n\n{table(['variant', 'runs', 'difference', *tasks], rows)}"


def _cost(figures: dict[str, Any] | None, *, starred: bool) -> str:
    if figures is None:
        return ""
    low, high = figures["interval"]
    return f"{figures['cost']:+.3f}{'*' if starred and (low > 0 or high < 0) else ''}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join(
        f"|{'|'.join(line)}|" if index == 1 else f"| {' | '.join(line)} |" for index, line in enumerate(lines)
    )


def rounded(value: Any) -> Any:
    """Four decimals of a small number, five digits of a large one."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 4) if abs(value) < 1e4 else float(f"{value:.5g}")
    return value
