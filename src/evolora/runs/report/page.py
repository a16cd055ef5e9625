"""`report.html`: a run on one page that needs nothing beside it."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from evolora.errors import CheckpointError
from evolora.files import write_text
from evolora.masking import mask
from evolora.runs.report.charts import Line, chart, tree
from evolora.runs.report.data import Member, RunRecord, Sample, number, read_run
from evolora.runs.report.statistics import bootstrap_interval
from evolora.strategies.operators import CROSSOVERS

REPORT = "report.html"
_SUM = "\n<!-- sha256 "

# What bounds the page: rows of prompts, frames of the film, ancestors in the picture, bytes of text in the first two.
_ROWS, _FRAMES, _ANCESTORS = 400, 100, 200
_ROW_BYTES, _FILM_BYTES = 350_000, 200_000
_COLORS = {"base": "grey", "RL": "red", "crossover": "blue", "mutation or sample": "green", "other": "violet"}
_SAME_PROMPTS = {stage: stages for stages in (("population", "refined"), ("final", "soup")) for stage in stages}


def write_report(folder: Path) -> Path:
    """Write `report.html` of the run in `folder`. Raises InputError for a folder that is no run."""
    write_text(folder / REPORT, _with_checksum(report_html(read_run(folder))))
    return folder / REPORT


def check_report(path: Path) -> None:
    """Raise CheckpointError when a report is not as it was written."""
    whole = path.read_bytes().decode("utf-8", errors="replace")
    if whole != _with_checksum(whole.rpartition(_SUM)[0]):
        raise CheckpointError(f"{path}: altered, its checksum differs; 'evolora report {path.parent}' writes it anew")


def _with_checksum(page: str) -> str:
    return f"{page}{_SUM}{hashlib.sha256(page.encode()).hexdigest()} -->\n"


def report_html(run: RunRecord) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("evolora.runs.report"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"figure": _figure, "signed": _signed, "count": _count}
    static = resources.files("evolora.runs.report") / "static"
    script = (static / "report.js").read_text(encoding="utf-8")
    summary = run.summary or {}
    generations = [int(line["generation"]) for line in run.metrics]
    return environment.get_template("report.html").render(
        run=run,
        summary=summary,
        name=run.folder.absolute().name,
        task=summary.get("task") or run.option("task", "name") or run.option("task", "data") or "one prompt",
        model=summary.get("model") or run.option("model", "name") or "a model",
        reward=mask(str(summary.get("reward") or run.option("reward", "name") or "a reward")),
        result=_result(run),
        style=Markup((static / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        generations=generations,
        fitness=_fitness_chart(run, generations),
        gains=_gains_chart(run, generations),
        kl=_kl_chart(run),
        figures=_figures(run),
        costs=_costs(run),
        film=_film(run),
        rows=_rows(run),
        operators=_operators(run),
        family=_family(run),
        warnings=_warnings(run),
    )


def _figure(value: object, digits: int = 3) -> str:
    known = number(value)
    return "\N{EN DASH}" if known is None else f"{known:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _signed(value: object) -> str:
    known = number(value)
    return "\N{EN DASH}" if known is None else f"{known:+.3f}".replace("-", "\N{MINUS SIGN}")


def _count(value: object) -> str:
    """A count or a size, to three digits where it is large."""
    known = number(value)
    if known is None:
        return "\N{EN DASH}"
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if known >= size:
            return f"{known / min(size, 1e3 if unit == 'k' else size):.3g} {unit}"
    return f"{known:,.0f}" if known >= 100 or known == int(known) else f"{known:.2g}"


# --- the result -----------------------------------------------------------------------------------------------------


def _sides(run: RunRecord) -> tuple[list[Sample], list[Sample]]:
    """What base and winner wrote on the test split, prompt by prompt; of one whole where the winner is the base."""
    last = max((sample.generation for sample in run.test), default=0)
    base, winner = run.base, (run.summary or {}).get("winner", {}).get("id")
    tested = [sample for sample in run.test if sample.generation == last]
    before = [sample for sample in tested if base is not None and sample.individual == base.id]
    return before, [sample for sample in tested if sample.individual == winner]


def _result(run: RunRecord) -> dict[str, Any] | None:
    """The gain on the test split, with the interval of the paired differences; None before the end."""
    if run.summary is None:
        return None
    base, winner = run.summary["base"]["test"], run.summary["winner"]["test"]
    pairs = [(a.reward, b.reward) for a, b in zip(*_sides(run), strict=False)]
    gains = np.array([b - a for a, b in pairs if a is not None and b is not None], np.float64)
    is_base = run.base is not None and run.summary["winner"]["id"] == run.base.id
    gain = float(gains.mean()) if len(gains) and not is_base else None
    low, high = (None, None) if gain is None else map(number, bootstrap_interval(gains, seed=0))
    if number(winner["reward"]) is None:
        verdict = "nothing was scored on the test split, so that nothing can be said of the winner"
    elif is_base:
        verdict = "nobody beat the base model, which is the winner"
    elif low is None or high is None:
        verdict = "the winner's prompts cannot be paired with the base model's"
    elif low > 0:
        verdict = "the winner is better than the base model"
    elif high < 0:
        verdict = "the winner is worse than the base model"
    else:
        verdict = "the test prompts cannot tell the winner from the base model"
    if "init" in run.summary:
        verdict = verdict.replace("base model", "adapter that the run started from")
    name = run.summary.get("init", ["Base model"])[0]
    return {
        "verdict": verdict,
        "base": base,
        "name": name,
        "winner": winner,
        "gain": gain,
        "interval": (low, high),
        "n": len(gains),
    }


def _warnings(run: RunRecord) -> list[str]:
    summary, last = run.summary or {}, run.metrics[-1] if run.metrics else {}
    found = list(summary.get("inspection", {}).get("warnings", []))
    found += [
        "changed during the run, as accepted: " + ", ".join(f"{name} {each}" for name, each in change.items())
        for change in summary.get("changed", [])
    ]
    if summary and not summary.get("held_out", True):
        found.append("the test prompts were not held out: the tuning saw them too")
    if failed := number(last.get("failed_completions")):
        found.append(f"the reward function failed on {failed:,.0f} completions")
    return [*found, *run.unread]


# --- by generation --------------------------------------------------------------------------------------------------


def _column(run: RunRecord, name: str) -> list[float | None]:
    return [number(line.get(name)) for line in run.metrics]


def _quartiles(run: RunRecord, generations: Sequence[int]) -> tuple[list[float | None], ...]:
    """The population's quartiles, as it was evaluated."""
    found: dict[int, list[float]] = {}
    for member in run.members.values():
        for (generation, stage), value in member.fitness.items():
            if stage == "population" and value is not None:
                found.setdefault(generation, []).append(value)
    cuts = [
        [None] * 3 if not (values := found.get(generation)) else np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        for generation in generations
    ]
    return tuple([cut[index] for cut in cuts] for index in range(3))


def _base_validation(run: RunRecord) -> float | None:
    """The base on the prompts of `validation`."""
    measures = {} if run.base is None else run.base.fitness
    return next((value for (_, stage), value in measures.items() if stage == "validation"), None)


def _evolution_gains(run: RunRecord, generations: Sequence[int]) -> list[float | None]:
    """By generation: the fittest whom an operator of evolution made for it, minus the fittest of the others, who were
    there before or whom RL made, on the same prompts."""
    best: dict[tuple[int, bool], float] = {}
    for member in run.members.values():
        for (generation, stage), value in member.fitness.items():
            if stage == "population" and value is not None:
                new = member.born == generation and _kind(member.operator, run.refiner) in (
                    "mutation or sample",
                    "crossover",
                )
                best[generation, new] = max(value, best.get((generation, new), value))
    return [
        best[each, True] - best[each, False] if (each, True) in best and (each, False) in best else None
        for each in generations
    ]


def _fitness_chart(run: RunRecord, generations: Sequence[int]) -> Markup | None:
    low, middle, high = _quartiles(run, generations)
    base = _base_validation(run)
    lines = [
        Line("best", _column(run, "fitness.best"), "blue"),
        Line("median", middle, "grey"),
        Line("validation", _column(run, "validation"), "green"),
        *([] if base is None else [Line("base on validation", [base] * len(generations), "red", dashed=True)]),
    ]
    return chart(generations, lines, x_name="generation", band=("middle half of the population", low, high))


def _gains_chart(run: RunRecord, generations: Sequence[int]) -> Markup | None:
    lines = [Line("evolution", _evolution_gains(run, generations), "blue")]
    if run.refiner is not None:
        lines.append(Line(run.refiner.upper(), _column(run, f"{run.refiner}.gain"), "red"))
    return chart(generations, lines, x_name="generation")


def _kl_chart(run: RunRecord) -> Markup | None:
    if run.refiner is None:
        return None
    pairs = zip(_column(run, f"{run.refiner}.kl"), _column(run, f"{run.refiner}.reward"), strict=True)
    points = [(kl, reward) for kl, reward in pairs if kl is not None and reward is not None]
    line = Line("reward of a generation's samples", [reward for _, reward in points], "blue", dots=True)
    return chart([kl for kl, _ in points], [line], x_name="KL to the base, nats a completion")


def _figures(run: RunRecord) -> list[list[str]]:
    """The charts as numbers."""
    generations = [int(line["generation"]) for line in run.metrics]
    columns = [
        _column(run, "fitness.best"), *reversed(_quartiles(run, generations)), _column(run, "validation"),
    ]  # fmt: skip
    gains = [_evolution_gains(run, generations), _column(run, f"{run.refiner}.gain")]
    table = zip(generations, zip(*columns, strict=True), zip(*gains, strict=True), strict=True)
    return [[str(number), *map(_figure, row), *map(_signed, gain)] for number, row, gain in table]


def _costs(run: RunRecord) -> list[dict[str, Any]]:
    """A row a phase: tokens, FLOPs and seconds, each with its share."""
    last = run.metrics[-1] if run.metrics else {}
    rows: dict[str, dict[str, float | None]] = {}
    for measure in ("tokens", "flops", "time"):
        said = (run.summary or {}).get(measure) or {
            phase: last.get(f"{measure}.{phase}") for phase in ("evaluation", "rollout", "update")
        }
        for phase in ("evaluation", "rollout", "update", "test"):
            rows.setdefault(phase, {})[measure] = number(said.get(phase))
    total = {
        measure: sum(row[measure] or 0.0 for row in rows.values()) or None for measure in ("tokens", "flops", "time")
    }
    return [
        {"phase": phase, "cells": [(row[name], (row[name] or 0.0) / whole if whole else 0.0)
                                   for name, whole in total.items()]}
        for phase, row in [*rows.items(), ("together", total)]
    ]  # fmt: skip


# --- texts ----------------------------------------------------------------------------------------------------------


def _cut(text: str, limit: int) -> str:
    """Its two ends where it is too long: what matters is seldom in the middle."""
    if len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head]} […{len(text) - limit:,} characters…] {text[head - limit :]}"


def _limit(texts: Sequence[str], size: Callable[[str], int], budget: int) -> int:
    """How many characters of each fit into the budget."""
    limit = 4000
    while limit > 30 and sum(size(_cut(text, limit)) for text in texts) > budget:
        limit //= 2
    return limit


def _rows(run: RunRecord) -> dict[str, Any]:
    """The test prompts with what base and winner wrote, the winner's worst first."""
    pairs = list(zip(*_sides(run), strict=False))
    pairs.sort(key=lambda pair: (pair[1].reward is None, pair[1].reward or 0.0, -(pair[0].reward or 0.0)))
    shown = pairs[:_ROWS]
    texts = [text for a, b in shown for text in (a.prompt, a.completion, b.completion)]
    limit = _limit(texts, lambda text: len(escape(text).encode()), _ROW_BYTES)
    rows = [
        {
            "before": a.reward, "after": b.reward,
            "gain": None if a.reward is None or b.reward is None else b.reward - a.reward,
            "prompt": _cut(a.prompt, limit), "base": _cut(a.completion, limit), "winner": _cut(b.completion, limit),
        }
        for a, b in shown
    ]  # fmt: skip
    return {"rows": rows, "total": len(pairs)}


def _film(run: RunRecord) -> list[dict[str, Any]]:
    """Each validation prompt that was kept, with what was written to it: the base, then generation by generation."""
    prompts: dict[str, list[Sample]] = {}
    base = None if run.base is None else run.base.id
    for sample in sorted(run.validation, key=lambda sample: (sample.generation, sample.individual != base)):
        prompts.setdefault(sample.prompt, []).append(sample)
    thinned = {prompt: _thinned(samples, _FRAMES) for prompt, samples in list(prompts.items())[:12]}
    texts = [text for prompt, samples in thinned.items() for text in (prompt, *(each.completion for each in samples))]
    limit = _limit(texts, lambda text: len(json.dumps(text)), _FILM_BYTES)
    return [
        {
            "prompt": _cut(prompt, limit),
            "frames": [
                {
                    "who": "base model" if each.individual == base
                    else f"generation {each.generation}, individual {each.individual}",
                    "text": _cut(each.completion, limit),
                    "reward": "not scored" if each.reward is None else _figure(each.reward),
                }
                for each in samples
            ],
        }
        for prompt, samples in thinned.items()
    ]  # fmt: skip


def _thinned(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most so many, evenly, the first and the last among them."""
    if len(samples) <= count:
        return list(samples)
    return [samples[round(index * (len(samples) - 1) / (count - 1))] for index in range(count)]


# --- who came from whom ---------------------------------------------------------------------------------------------


def _kind(operator: str, refiner: str | None) -> str:
    if operator == "base":
        return "base"
    if operator == refiner:
        return "RL"
    if operator in ("average", "soup", "copy", "migration"):
        return "other"
    return "crossover" if "crossover" in operator or operator in CROSSOVERS else "mutation or sample"


def _operators(run: RunRecord) -> list[dict[str, Any]]:
    """How many each operator made, how many of them had children, and how many lived on into a later generation."""
    parents = {parent for member in run.members.values() for parent in member.parents}
    made, fertile, lived = Counter[str](), Counter[str](), Counter[str]()
    for member in run.members.values():
        made[member.operator] += 1
        fertile[member.operator] += member.id in parents
        stages = ((generation, stage) for generation, stage in member.fitness if stage == "population")
        lived[member.operator] += any(generation > member.born for generation, _ in stages)
    best = Counter(line.get("best.operator") for line in run.metrics)
    rows = [
        {"operator": name, "made": made[name], "parents": fertile[name], "lived": lived[name], "best": best[name],
         "share": fertile[name] / made[name]}
        for name in made
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row["best"], -row["parents"]))


def _family(run: RunRecord) -> dict[str, Any] | None:
    """The winner's line back to the base, at each step by the fitter parent, and all its ancestors as a picture."""
    winner = run.members.get((run.summary or {}).get("winner", {}).get("id", -1))
    if winner is None:
        return None
    ancestors, waiting = {winner.id: winner}, [winner]
    while waiting:
        for parent in (run.members.get(id) for id in waiting.pop().parents):
            if parent is not None and parent.id not in ancestors:
                ancestors[parent.id] = parent
                waiting.append(parent)
    line, seen = [winner], {winner.id}
    while parents := [run.members[id] for id in line[-1].parents if id in run.members and id not in seen]:
        line.append(max(parents, key=_latest))
        seen.add(line[-1].id)
    steps = [_step(run, member, parent) for member, parent in zip_longest(line, line[1:])]
    drawn = ancestors if len(ancestors) <= _ANCESTORS else {member.id: member for member in line[:_ANCESTORS]}
    return {
        "steps": steps[:_ANCESTORS],
        "length": len(steps),
        "ancestors": len(ancestors),
        "whole": drawn is ancestors,
        "picture": _picture(run, line, drawn),
        "colors": _COLORS,
    }


def _latest(member: Member) -> float:
    known = [value for value in member.fitness.values() if value is not None]
    return known[-1] if known else -np.inf


def _step(run: RunRecord, member: Member, parent: Member | None) -> dict[str, Any]:
    """A step of the line; its gain where both were measured on the same prompts."""
    known = [(measure, value) for measure, value in member.fitness.items() if value is not None]
    gains = [
        (value, value - before)
        for (generation, stage), value in known
        for each in _SAME_PROMPTS.get(stage, ())
        if parent is not None and (before := parent.fitness.get((generation, each))) is not None
    ]
    fitness, gain = gains[0] if gains else (known[0][1] if known else None, None)
    color = _COLORS[_kind(member.operator, run.refiner)]
    return {"member": member, "color": color, "fitness": fitness, "gain": gain}


def _picture(run: RunRecord, line: Sequence[Member], drawn: Mapping[int, Member]) -> Markup:
    main, rows = {member.id for member in line}, Counter[int]()
    places: dict[int, tuple[float, float, str, str]] = {}
    for member in sorted(drawn.values(), key=lambda member: member.id):
        # To the right of parents that are as old.
        peers = [places[id][0] + 0.35 for id in member.parents if id in places and drawn[id].born == member.born]
        rows[member.born] += member.id not in main
        y = 0 if member.id in main else rows[member.born]
        title = f"{member.id}: {member.operator}, generation {member.born}"
        places[member.id] = (max([float(member.born), *peers]), y, _COLORS[_kind(member.operator, run.refiner)], title)
    index = {id: at for at, id in enumerate(places)}
    edges = [
        (index[member.id], index[parent]) for member in drawn.values() for parent in member.parents if parent in index
    ]
    return tree(list(places.values()), edges, "generation of birth")
