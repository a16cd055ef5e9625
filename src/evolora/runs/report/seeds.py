"""`report.html` of a run under several seeds: what they came to together, and the way to each one's own page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from evolora.errors import CheckpointError
from evolora.files import read_checked, write_text
from evolora.masking import mask
from evolora.runs.report.charts import Line, chart
from evolora.runs.report.data import RunRecord, number, read_run
from evolora.runs.report.page import REPORT, figure, rendered, signed, with_checksum
from evolora.runs.seeds.folder import read_seeds, seed_folder
from evolora.runs.seeds.summary import base_name, over_seeds, row_of, t_interval
from evolora.runs.summary import SUMMARY

# As many curves can be told apart.
_COLORS = ("blue", "violet", "grey")
# The interval of two is 13 times as wide as they are apart, and would be all that the chart shows.
_ENOUGH = 3


def write_seeds_report(folder: Path) -> Path:
    """Write `report.html` of the run under several seeds in `folder`, finished or not."""
    write_text(folder / REPORT, with_checksum(seeds_html(folder)))
    return folder / REPORT


def seeds_html(folder: Path) -> str:
    """The page."""
    seeds = read_seeds(folder)
    runs = {seed: read_run(seed_folder(folder, seed)) for seed in seeds.begun(folder)}
    some: RunRecord | None = next(iter(runs.values()), None)
    rows: list[dict[str, Any]] = [
        row_of(seed, run.summary) if run.summary is not None else {"seed": seed, "generations": len(run.metrics)}
        for seed, run in runs.items()
    ]
    for row in rows:
        page = f"seed-{row['seed']}/{REPORT}"
        row["link"] = page if (folder / page).is_file() else None
    finished = [row for row in rows if "winner" in row]
    known: Mapping[str, Any] = {} if some is None else some.summary or {}
    summary = _summary(folder)
    return rendered(
        "seeds.html",
        figure=figure,
        signed=signed,
        name=folder.absolute().name,
        model=known.get("model") or (some and some.option("model", "name")) or "a model",
        task=known.get("task") or (some and (some.option("task", "name") or some.option("task", "data"))) or "its task",
        reward=mask(str(known.get("reward") or (some and some.option("reward", "name")) or "a reward")),
        prompts=known.get("test_prompts"),
        held_out=known.get("held_out"),
        seeds=seeds.seeds,
        base_name=base_name(known),
        whole=summary is not None and len(finished) == len(seeds.seeds),
        best=None if summary is None else summary["best"],
        rows=rows,
        waiting=[seed for seed in seeds.seeds if seed not in runs],
        base=over_seeds([row["base"]["reward"] for row in finished]),
        winner=over_seeds([row["winner"]["reward"] for row in finished]),
        gain=over_seeds([row["gain"] for row in finished]),
        better=sum((row["gain"] or 0) > 0 for row in finished),
        measured=sum(row["gain"] is not None for row in finished),
        seconds=sum(row["seconds"] for row in finished),
        tokens=sum(row["tokens"] for row in finished),
        validation=_validation_chart(runs),
        warnings=_warnings(runs, summary),
        options={} if some is None else some.options,
    )


def _summary(folder: Path) -> dict[str, Any] | None:
    try:
        return read_checked(folder / SUMMARY)
    except CheckpointError:  # which `verify` says
        return None


def _validation_chart(runs: Mapping[int, RunRecord]) -> Markup | None:
    """Each seed's curve, and their mean with its interval over the seeds that have got so far."""
    curves = {
        seed: {int(line["generation"]): number(line.get("validation")) for line in run.metrics}
        for seed, run in runs.items()
    }
    generations = sorted({generation for curve in curves.values() for generation in curve})
    mean, low, high = _band([[curve.get(generation) for curve in curves.values()] for generation in generations])
    lines = [
        Line(f"seed {seed}", [curve.get(generation) for generation in generations], _COLORS[place % len(_COLORS)])
        for place, (seed, curve) in enumerate(curves.items())
    ]
    base = next((value for value in map(_base_validation, runs.values()) if value is not None), None)
    lines.append(Line("mean", mean, "green"))
    if base is not None:
        lines.append(Line("base", [base] * len(generations), "red", dashed=True))
    band = ("95% interval of the mean over seeds", low, high) if any(edge is not None for edge in low) else None
    return chart(generations, lines, x_name="generation", band=band)


def _band(columns: Sequence[Sequence[float | None]]) -> tuple[list[float | None], ...]:
    """Mean and interval of the values of each generation."""
    cells: list[tuple[float | None, ...]] = []
    for column in columns:
        known = [value for value in column if value is not None]
        edges = (None, None) if len(known) < _ENOUGH else t_interval(known)
        cells.append((float(np.mean(known)) if known else None, *edges))
    return tuple([cell[place] for cell in cells] for place in range(3))


def _base_validation(run: RunRecord) -> float | None:
    measures = {} if run.base is None else run.base.fitness
    return next((value for (_, stage), value in measures.items() if stage == "validation"), None)


def _warnings(runs: Mapping[int, RunRecord], summary: Mapping[str, Any] | None) -> list[str]:
    found = [f"not the same in every seed: {each}" for each in (summary or {}).get("differ", [])]
    for seed, run in runs.items():
        known = (run.summary or {}).get("inspection", {}).get("warnings", [])
        found += [f"seed {seed}: {each}" for each in (*known, *run.unread)]
    return found
