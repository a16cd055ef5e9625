"""`report.html`: a run on one page that needs nothing beside it."""

import base64
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from evolora.errors import CheckpointError
from evolora.files import write_text
from evolora.masking import mask
from evolora.runs.report import ancestry, series, texts
from evolora.runs.report.charts import short
from evolora.runs.report.data import RunRecord, number, read_run
from evolora.runs.report.statistics import bootstrap_interval
from evolora.runs.summary import measured_by, worth

REPORT = "report.html"
_SUM = "\n<!-- sha256 "


@dataclass(frozen=True)
class Going:
    """How far a run has come that goes on: the share that is `done`, of how many generations, where that is known, the
    seconds that are `left` and those until the page may be written again; `written` is the time now."""

    done: float
    gens: int | None
    left: float | None
    again: float
    written: float


def write_report(folder: Path, going: Going | None = None) -> Path:
    """Write `report.html` of the run in `folder`, which may be still `going`. Raises InputError for a folder that is no
    run."""
    write_text(folder / REPORT, with_checksum(report_html(read_run(folder), going)))
    return folder / REPORT


def check_report(path: Path) -> None:
    """Raise CheckpointError when a report is not as it was written."""
    whole = path.read_bytes().decode("utf-8", errors="replace")
    if whole != with_checksum(whole.rpartition(_SUM)[0]):
        raise CheckpointError(f"{path}: altered, its checksum differs; 'evolora report {path.parent}' writes it anew")


def with_checksum(page: str) -> str:
    """The page with the comment that vouches for it."""
    return f"{page}{_SUM}{hashlib.sha256(page.encode()).hexdigest()} -->\n"


def report_html(run: RunRecord, going: Going | None = None) -> str:
    """The page."""
    run = run if going is None else replace(run, summary=None)
    summary = run.summary or {}
    diversity = series.diversity_figures(run)
    return rendered(
        "report.html",
        run=run,
        summary=summary,
        going=going,
        name=run.folder.absolute().name,
        task=run.task,
        model=run.model,
        fitness_name=mask(str(summary.get("fitness") or run.option("evolution", "fitness") or "")),
        reward=mask(str(summary.get("reward") or run.option("reward", "name") or "a reward")),
        result=_result(run),
        generations=series.generations(run),
        so_far=_so_far(run),
        fitness=series.fitness_figure(run).html(),
        beside=series.reward_figure(run).html(),
        gains=series.gains_figure(run).html(),
        diversity=[figure.html() for figure in diversity if not figure.empty],
        kl=series.kl_figure(run).html(),
        genes=ancestry.genes(run),
        weights=series.weights_figure(run).html(),
        figures=_figures(run),
        costs=series.costs(run),
        film=texts.film(run),
        rows=texts.rows(run),
        operators=ancestry.operators(run),
        family=ancestry.family(run),
        warnings=_warnings(run),
    )


def rendered(template: str, **values: Any) -> str:
    """A page of this package, with the style and the script that all its pages have."""
    assets = _assets()
    hashed = base64.b64encode(hashlib.sha256(assets["script"].encode()).digest()).decode()
    return _environment().get_template(template).render(**assets, script_hash=hashed, **values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evolora.runs.report"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "figure": figure,
        "signed": signed,
        "significant": significant,
        "count": _count,
        "duration": _duration,
    }
    environment.filters |= {"size": _size, "worth": worth}
    return environment


@functools.cache
def _assets() -> Mapping[str, Markup]:
    static = resources.files("evolora.runs.report") / "static"
    return {name: Markup((static / file).read_text(encoding="utf-8"))
            for name, file in (("style", "report.css"), ("script", "report.js"))}  # fmt: skip


def figure(value: object, digits: int = 3) -> str:
    """A figure; a dash where there is none."""
    known = number(value)
    return "\N{EN DASH}" if known is None else f"{known:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: object) -> str:
    """A gain; a dash where there is none."""
    known = number(value)
    return "\N{EN DASH}" if known is None else f"{known:+.3f}".replace("-", "\N{MINUS SIGN}")


def significant(value: object) -> str:
    """A figure to three digits that count; a dash where there is none."""
    known = number(value)
    return "\N{EN DASH}" if known is None else f"{known:.3g}"


def _count(value: object) -> str:
    """A count or a size, to three digits where it is large."""
    known = number(value)
    return "\N{EN DASH}" if known is None else short(known, digits=3)


def _size(value: object) -> str:
    """Bytes in GiB."""
    known = number(value)
    return figure(None if known is None else known / 2**30, 2)


def _duration(seconds: object) -> str:
    known = number(seconds)
    if known is None:
        return "\N{EN DASH}"
    minutes, rest = divmod(round(known), 60)
    hours, of_hour = divmod(minutes, 60)
    if hours:
        return f"{hours} h {of_hour} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if known >= 10 else f"{known:.1f} s"


def gain(run: RunRecord) -> tuple[float | None, tuple[float | None, float | None], int]:
    """The winner's gain on the test split, with the interval of the paired differences, and how many there are; None
    where the winner is the base, or there is no test."""
    if (known := (run.summary or {}).get("gain")) is not None:
        is_base = run.summary is not None and run.summary["winner"]["id"] == 0
        low, high = map(number, known["ci95"])
        n = int((run.summary or {})["test_prompts"])
        return (None, (None, None), n) if is_base else (number(known["fitness"]), (low, high), n)
    rewards = [(a.reward, b.reward) for a, b in zip(*texts.sides(run), strict=False)]
    gains = np.array([b - a for a, b in rewards if a is not None and b is not None], np.float64)
    is_base = run.base is not None and (run.summary or {}).get("winner", {}).get("id") == run.base.id
    if not len(gains) or is_base:
        return None, (None, None), len(gains)
    low, high = bootstrap_interval(gains, seed=0)
    return float(gains.mean()), (number(low), number(high)), len(gains)


def _result(run: RunRecord) -> dict[str, Any] | None:
    """What the test says; None before the end."""
    if run.summary is None:
        return None
    base, winner = run.summary["base"]["test"], run.summary["winner"]["test"]
    added, (low, high), n = gain(run)
    if worth(winner) is None:
        verdict = "nothing was scored on the test split, so that nothing can be said of the winner"
    elif run.base is not None and run.summary["winner"]["id"] == run.base.id:
        verdict = "nobody beat the base model, which is the winner"
    elif low is None or high is None:
        verdict = (
            "the winner's prompts cannot be paired with the base model's"
            if "gain" not in run.summary
            else "the winner's fitness has no interval, so that chance cannot be told from gain"
        )
    elif low > 0:
        verdict = "the winner is better than the base model"
    elif high < 0:
        verdict = "the winner is worse than the base model"
    else:
        verdict = "the test prompts cannot tell the winner from the base model"
    name = "Base model"
    if "init" in run.summary:
        name = run.summary["init"][0]
        verdict = verdict.replace("base model", "adapter that the run started from")
    return {
        "verdict": verdict,
        "base": base,
        "name": name,
        "winner": winner,
        "gain": added,
        "interval": (low, high),
        "n": n,
        "endings": run.summary.get("endings", []),
        "measure": measured_by(run.summary),
    }


def _so_far(run: RunRecord) -> dict[str, float | None]:
    """Before the test: the base on validation, and the best there."""
    best = series.column(run, "validation.best")
    return {"base": series.base_validation(run), "best": best[-1] if best else None}


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
    if silent := [line["generation"] for line in run.metrics if number(line.get("fitness.best")) is None]:
        found.append(f"the reward scored nothing in {len(silent)} of {len(run.metrics)} generations")
    return [*found, *run.unread]


def _figures(run: RunRecord) -> list[list[str]]:
    """The charts as numbers."""
    columns = [
        series.column(run, "fitness.best"), *reversed(series.quartiles(run)), series.column(run, "validation"),
        series.column(run, "diversity.completions"),
    ]  # fmt: skip
    gains = [series.column(run, name) for name in ("evolution.added", f"{run.refiner}.added")]
    table = zip(series.generations(run), zip(*columns, strict=True), zip(*gains, strict=True), strict=True)
    return [[str(generation), *map(figure, row), *map(signed, gain)] for generation, row, gain in table]
