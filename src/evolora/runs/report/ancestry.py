"""Who came from whom: what each operator made, and the winner's family."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from markupsafe import Markup

from evolora.runs.report import series
from evolora.runs.report.charts import tree
from evolora.runs.report.data import Member, RunRecord

# What bounds the picture and the table of ancestors.
_ANCESTORS = 200
COLORS = {"base": "grey", "RL": "red", "crossover": "blue", "mutation or sample": "green", "other": "violet"}
_SAME_PROMPTS = {stage: stages for stages in (("population", "refined"), ("final", "soup")) for stage in stages}
_WORDS = {
    "base": "the untouched base model",
    "average": "running average of the lineage that RL refines",
    "soup": "average of the finalists' weights, made at the end of the run",
    "copy": "an unchanged copy",
    "migration": "a copy of another island's best",
}
_KINDS = {"RL": "refined by RL from one parent", "crossover": "two parents mixed", "mutation or sample": "noise added"}


def operators(run: RunRecord) -> list[dict[str, Any]]:
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
        {"operator": name, "means": _means(name, run.kind(name)), "color": COLORS[run.kind(name)], "made": made[name],
         "parents": fertile[name], "lived": lived[name], "best": best[name], "share": fertile[name] / made[name]}
        for name in made
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row["best"], -row["parents"]))


def _means(operator: str, kind: str) -> str:
    """What an operator does, for whoever has not read the documentation."""
    if kind == "crossover" and "+" in operator:
        return f"{_KINDS[kind]}, then {_KINDS['mutation or sample']}"
    return _WORDS.get(operator) or _KINDS.get(kind, "")


def family(run: RunRecord) -> dict[str, Any] | None:
    """The winner's line back to the base, at each step by the fitter parent, and all its ancestors as a picture. Of a
    run that is not finished, of its last generation's best."""
    last = run.metrics[-1].get("best.id") if run.metrics else None
    winner = run.members.get((run.summary or {}).get("winner", {}).get("id", last if run.summary is None else -1))
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
        "colors": {
            kind: color for kind, color in COLORS.items() if kind in {run.kind(m.operator) for m in drawn.values()}
        },
    }


def genes(run: RunRecord) -> list[dict[str, Any]]:
    """A row for each thing that individuals have of their own beside their weights: what the run began with, the mean
    of the last population, and the winner's, or the last generation's best one's."""
    names, last = series.gene_names(run), run.metrics[-1] if run.metrics else {}
    winner = run.members.get((run.summary or {}).get("winner", {}).get("id", last.get("best.id")))
    begun, own = ({} if member is None else member.genes for member in (run.base, winner))
    return [
        {"name": name, "begun": begun.get(name), "mean": last.get(f"gene.{name}"), "winner": own.get(name)}
        for name in names
    ]


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
    return {"member": member, "color": COLORS[run.kind(member.operator)], "fitness": fitness, "gain": gain}


def _picture(run: RunRecord, line: Sequence[Member], drawn: Mapping[int, Member]) -> Markup:
    main, rows = {member.id for member in line}, Counter[int]()
    places: dict[int, tuple[float, float, str, str]] = {}
    for member in sorted(drawn.values(), key=lambda member: member.id):
        # To the right of parents that are as old.
        peers = [places[id][0] + 0.35 for id in member.parents if id in places and drawn[id].born == member.born]
        rows[member.born] += member.id not in main
        y = 0 if member.id in main else rows[member.born]
        title = f"{member.id}: {member.operator}, generation {member.born}"
        places[member.id] = (max([float(member.born), *peers]), y, COLORS[run.kind(member.operator)], title)
    index = {id: at for at, id in enumerate(places)}
    edges = [
        (index[member.id], index[parent]) for member in drawn.values() for parent in member.parents if parent in index
    ]
    return tree(list(places.values()), edges, "generation of birth")
