"""The plots: learning curves over seconds, tokens and FLOPs, the interquartile means, the performance profiles."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from study.methods import METHODS
from study.results import Results
from study.statistics import Scores, interquartile_mean, performance_profile, stratified_interval

COSTS = {"seconds": "seconds", "tokens": "generated tokens", "flops": "FLOPs"}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "font.size": 8,
    "legend.frameon": False,
    "savefig.dpi": 110,
    "savefig.bbox": "tight",
}
# Okabe and Ito's colours, which colour-blind readers can tell apart, and greys; the hybrid stands out.
_PALETTE = "#D55E00 #0072B2 #009E73 #56B4E9 #E69F00 #CC79A7 #117733 #882255 #999933 #777777 #bbbbbb".split()


# As many lines as there are colours: more could not be told apart.
MOST_LINES = len(_PALETTE)


def colour(method: str, methods: Sequence[str]) -> str:
    """A method's colour, by its place among those shown; the last grey beyond the palette, where names stand beside."""
    return _PALETTE[min(list(methods).index(method), MOST_LINES - 1)]


def learning_curves(results: Results, methods: Sequence[str], cost: str, path: Path) -> bool:
    """Test reward of the best adapter so far over a cost: mean over seeds, the band from the worst to the best.

    Returns false, and draws nothing, where no run has counted that cost.
    """
    drawn = False
    with plt.rc_context(STYLE):
        tasks = results.tasks()
        rows = (len(tasks) + 3) // 4
        figure, axes = plt.subplots(rows, 4, figsize=(11, 2.5 * rows), squeeze=False)
        for axis, task in zip(axes.flat, tasks, strict=False):
            for method in methods:
                drawn |= _curve(axis, results, task, method, cost, colour(method, methods))
            axis.set_title(task)
            axis.set_xlabel(COSTS[cost])
        for axis in axes[:, 0]:
            axis.set_ylabel("test reward")
        for axis in axes.flat[len(tasks) :]:
            axis.set_visible(False)
        handles = [plt.Line2D([], [], color=colour(name, methods), label=METHODS[name].title) for name in methods]
        figure.legend(handles=handles, loc="upper center", ncols=6, bbox_to_anchor=(0.5, 0.0))
        figure.tight_layout()
        if drawn:
            figure.savefig(path)
        plt.close(figure)
    return drawn


def _curve(axis: Axes, results: Results, task: str, method: str, cost: str, shade: str) -> bool:
    runs = results.runs[task].get(method, {}).values()
    curves = [row["curve"] for row in runs if row["curve"][cost] is not None]
    if not curves:
        return False
    grid = np.linspace(0, min(curve[cost][-1] for curve in curves), 60)
    values = np.array([np.interp(grid, curve[cost], curve["test"]) for curve in curves])
    front = method == "hybrid"
    axis.plot(grid, values.mean(0), color=shade, linewidth=2 if front else 1.1, zorder=3 if front else 2)
    axis.fill_between(grid, values.min(0), values.max(0), color=shade, alpha=0.12, linewidth=0)
    return True


def interquartile_means(scores: Mapping[str, Scores], path: Path) -> None:
    """A method's interquartile mean over all tasks with its 95% interval."""
    with plt.rc_context(STYLE):
        names = list(scores)
        figure, axis = plt.subplots(figsize=(6, 0.32 * len(names) + 0.8))
        for place, name in enumerate(reversed(names)):
            low, high = stratified_interval(interquartile_mean, scores[name])
            shade = colour(name, names)
            axis.barh(place, high - low, left=low, height=0.6, color=shade, alpha=0.35)
            axis.plot([interquartile_mean(scores[name])] * 2, [place - 0.3, place + 0.3], color=shade, linewidth=2)
        axis.set_yticks(range(len(names)), [METHODS[name].title for name in reversed(names)])
        axis.set_xlabel("interquartile mean of the normalised score, 95% interval")
        figure.savefig(path)
        plt.close(figure)


def performance_profiles(scores: Mapping[str, Scores], path: Path) -> None:
    """The share of runs with more than a normalised score."""
    thresholds = np.linspace(-0.1, 1.1, 121)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6, 3.4))
        for name, runs in scores.items():
            front = name == "hybrid"
            axis.plot(
                thresholds,
                performance_profile(runs, thresholds),
                color=colour(name, list(scores)),
                linewidth=2 if front else 1.1,
                zorder=3 if front else 2,
                label=METHODS[name].title,
            )
        axis.set_xlabel("normalised score")
        axis.set_ylabel("share of runs above it")
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(path)
        plt.close(figure)
