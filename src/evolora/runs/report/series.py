"""A run's numbers by generation and by phase: what its charts, tables and files show."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from evolora.runs.report.charts import Figure, Line
from evolora.runs.report.data import RunRecord, number

Column = list[float | None]
PHASES = ("evaluation", "rollout", "update", "test")
_MEASURES = ("tokens", "flops", "time")


def generations(run: RunRecord) -> list[int]:
    return [int(line["generation"]) for line in run.metrics]


def column(run: RunRecord, name: str) -> Column:
    """A metric by generation."""
    return [number(line.get(name)) for line in run.metrics]


def quartiles(run: RunRecord) -> tuple[Column, Column, Column]:
    """The population's, as it was evaluated: the lower, the median and the upper one."""
    found: dict[int, list[float]] = {}
    for member in run.members.values():
        for (generation, stage), value in member.fitness.items():
            if stage == "population" and value is not None:
                found.setdefault(generation, []).append(value)
    cuts = [
        [None] * 3 if not (values := found.get(generation)) else np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        for generation in generations(run)
    ]
    low, middle, high = ([cut[index] for cut in cuts] for index in range(3))
    return low, middle, high


def base_validation(run: RunRecord) -> float | None:
    """The base on the prompts of `validation`."""
    measures = {} if run.base is None else run.base.fitness
    return next((value for (_, stage), value in measures.items() if stage == "validation"), None)


def spent(line: Mapping[str, Any], measure: str) -> float | None:
    """Tokens generated, FLOPs or seconds up to the generation of this line of metrics."""
    if measure == "seconds":
        return number(line.get("time.loop"))
    kinds = ("evaluation", "rollout") if measure == "tokens" else ("evaluation", "rollout", "update")
    known = [number(line.get(f"{measure}.{kind}")) for kind in kinds]
    return None if None in known else sum(value for value in known if value is not None)


def of_fitness(run: RunRecord) -> str:
    """What the fitness is."""
    return "fitness" if run.option("evolution", "fitness") else "mean reward"


def fitness_figure(run: RunRecord) -> Figure:
    low, middle, high = quartiles(run)
    base, x = base_validation(run), generations(run)
    lines = [
        Line("best", column(run, "fitness.best"), "blue"),
        Line("median", middle, "grey"),
        Line("validation", column(run, "validation"), "green"),
        *([] if base is None else [Line("base model on validation", [base] * len(x), "red", dashed=True)]),
    ]
    band = ("middle half of the population", low, high)
    return Figure("fitness", "Fitness by generation", "generation", of_fitness(run), x, lines, band)


def reward_figure(run: RunRecord) -> Figure:
    """Of a fitness beside the reward, both on validation."""
    rewards, x = column(run, "validation.reward"), generations(run)
    lines = [
        Line("fitness", column(run, "validation"), "green"),
        Line("reward", rewards, "orange"),
        Line("reward of the base model", column(run, "validation.base_reward"), "red", dashed=True),
    ]
    known = any(value is not None for value in rewards)
    return Figure("reward", "Fitness and reward on validation", "generation", "", x, lines if known else [])


def gains_figure(run: RunRecord) -> Figure:
    lines = [Line("evolution", column(run, "evolution.added"), "blue")]
    if run.refiner is not None:
        lines.append(Line(run.refiner.upper(), column(run, f"{run.refiner}.added"), "red"))
    title = "What evolution and RL added"
    return Figure("gains", title, "generation", f"added to the best's {of_fitness(run)}", generations(run), lines)


def diversity_figures(run: RunRecord) -> tuple[Figure, Figure]:
    written = Line("two individuals write differently", column(run, "diversity.completions"), "violet")
    weights = Line("distance of two individuals", column(run, "diversity.distance"), "violet")
    x = generations(run)
    return (
        Figure("diversity-completions", "Diversity of completions", "generation", "share of pairs", x, [written]),
        Figure("diversity-weights", "Diversity of weights", "generation", "root mean square a weight", x, [weights]),
    )


def kl_figure(run: RunRecord) -> Figure:
    names = (f"{run.refiner}.kl", f"{run.refiner}.reward")
    points = [
        (kl, reward, generation)
        for kl, reward, generation in zip(*(column(run, name) for name in names), generations(run), strict=True)
        if kl is not None and reward is not None
    ]
    line = Line("a generation's samples", [reward for _, reward, _ in points], "blue")
    title, x_name = f"Reward against KL to {run.reference}", f"KL to {run.reference}, nats a completion"
    labels = [f"generation {generation}" for *_, generation in points]
    x = [kl for kl, *_ in points]
    return Figure("kl", title, x_name, "mean reward of samples", x, [line], labels=labels)


# In the order in which a chart has its lines.
_COLORS = ("blue", "red", "green", "orange", "violet", "grey")


def gene_names(run: RunRecord) -> list[str]:
    """What individuals have of their own beside their weights; the weights of the reward's summands last."""
    return [name.removeprefix("gene.") for name in (run.metrics[-1] if run.metrics else {}) if name.startswith("gene.")]


def weights_figure(run: RunRecord) -> Figure:
    """The population's mean weight of each summand of the reward, those that are highest at the end where there are
    many."""
    names = [name for name in gene_names(run) if name.startswith("weight.")]
    columns = {name: column(run, f"gene.{name}") for name in names}
    last = {name: [value for value in values if value is not None][-1:] for name, values in columns.items()}
    shown = sorted(names, key=lambda name: last[name], reverse=True)[: len(_COLORS)]
    lines = [
        Line(name.removeprefix("weight."), columns[name], color) for name, color in zip(shown, _COLORS, strict=False)
    ]
    title = "Weights of the reward's summands"
    return Figure("weights", title, "generation", "mean weight, 1 at first", generations(run), lines)


def figures(run: RunRecord) -> list[Figure]:
    """All that have something to show."""
    every = (
        fitness_figure(run),
        reward_figure(run),
        gains_figure(run),
        weights_figure(run),
        *diversity_figures(run),
        kl_figure(run),
    )
    return [figure for figure in every if not figure.empty]


def costs(run: RunRecord) -> list[dict[str, Any]]:
    """A row a phase: tokens, FLOPs, seconds and memory, each with its share of all or, of memory, of the most."""
    last = run.metrics[-1] if run.metrics else {}
    rows: dict[str, dict[str, float | None]] = {}
    for measure in _MEASURES:
        said = (run.summary or {}).get(measure) or {phase: last.get(f"{measure}.{phase}") for phase in PHASES}
        for phase in PHASES:
            rows.setdefault(phase, {})[measure] = number(said.get(phase))
    total = {measure: sum(row[measure] or 0.0 for row in rows.values()) or None for measure in _MEASURES}
    tested = (run.summary or {}).get("time") or {}
    found = {"test": tested.get("memory.test"), **{phase: last.get(f"time.memory.{phase}") for phase in PHASES[:-1]}}
    memory = {phase: number(found[phase]) or None for phase in PHASES}
    if known := [value for value in memory.values() if value is not None]:
        total["memory"] = max(known)
        for phase, row in rows.items():
            row["memory"] = memory[phase]
    return [
        {"phase": phase, "cells": [(name, row[name], (row[name] or 0.0) / whole if whole else 0.0)
                                   for name, whole in total.items()]}
        for phase, row in [*rows.items(), ("together", total)]
    ]  # fmt: skip
