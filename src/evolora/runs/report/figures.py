"""A report's charts as files, SVG and PNG, and its numbers as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evolora.errors import InputError
from evolora.files import write_text
from evolora.runs.report import series, texts
from evolora.runs.report.charts import Figure
from evolora.runs.report.data import RunRecord, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_COLORS = {
    "blue": "#3d5bd9", "green": "#12805c", "red": "#c2334d", "violet": "#8a3fc4", "grey": "#77778c",
    "orange": "#b35900", "teal": "#0b7a8c", "brown": "#80604d",
}  # fmt: skip
_INK, _GRID = "#1b1b25", "#dcdce6"


def write_figures(folder: Path, to: Path) -> list[Path]:
    """Write the figures of the run in `folder` as `NAME.svg` and `NAME.png` into the folder `to`, and their numbers
    beside them: `generations.csv`, `individuals.csv` and `prompts.csv`. Returns what was written. Raises InputError
    without matplotlib, for a folder that is no run, or where `to` cannot be written."""
    if find_spec("matplotlib") is None:
        raise InputError("--figures: found no package matplotlib, expected it: pip install 'evolora[figures]'.")
    run = read_run(folder)
    tables = {"generations": _generations(run), "individuals": _individuals(run), "prompts": _prompts(run)}
    written = []
    try:
        to.mkdir(parents=True, exist_ok=True)
        for figure in series.figures(run):
            drawing = _drawn(figure)
            for ending in ("svg", "png"):
                written.append(to / f"{figure.name}.{ending}")
                _save(drawing, written[-1])
        for name, rows in tables.items():
            written.append(to / f"{name}.csv")
            write_text(written[-1], _csv(rows))
    except OSError as error:
        raise InputError(f"--figures {to}: cannot be written ({error.strerror}), expected a folder") from None
    return written


def _drawn(figure: Figure) -> "Drawing":
    """By matplotlib, for paper: light, with its fonts as outlines."""
    from matplotlib.figure import Figure as Drawing
    from matplotlib.ticker import MaxNLocator

    drawing = Drawing(figsize=(7, 4), layout="constrained")
    axes = drawing.subplots()
    if figure.band is not None:
        name, low, high = figure.band
        axes.fill_between(figure.x, _known(low), _known(high), color=_COLORS["grey"], alpha=0.22, lw=0, label=name)
    for line in figure.lines:
        style = "--" if line.dashed else "none" if line.dots else "-"
        marked = line.dots or (len(line.values) <= 60 and not line.dashed)
        axes.plot(
            figure.x if line.x is None else line.x, _known(line.values), color=_COLORS[line.color], linestyle=style,
            marker="o" if marked else None, markersize=3.5, linewidth=1.6, label=line.name,
        )  # fmt: skip
    axes.set_title(figure.title, loc="left", color=_INK, fontweight="bold")
    axes.set_xlabel(figure.x_name)
    axes.set_ylabel(figure.y_name)
    axes.grid(axis="y", color=_GRID)
    axes.spines[["top", "right"]].set_visible(False)
    if figure.x_name == "generation":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawing.legend(loc="outside lower center", ncols=3, frameon=False)
    return drawing


def _save(drawing: "Drawing", path: Path) -> None:
    """The same bytes for the same figure."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "evolora"}):
        drawing.savefig(path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})


def _known(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)  # what was not measured stays empty
    return text.getvalue()


def _generations(run: RunRecord) -> list[Sequence[Any]]:
    """Every metric, and what the charts make of the lineage."""
    names = list(dict.fromkeys(name for line in run.metrics for name in line))
    made = dict(zip(("lower_quartile", "median", "upper_quartile"), series.quartiles(run), strict=True))
    lines = [[*(line.get(name) for name in names), *values]
             for line, *values in zip(run.metrics, *made.values(), strict=True)]  # fmt: skip
    return [[*names, *made], *lines]


def _individuals(run: RunRecord) -> list[Sequence[Any]]:
    """A row for each time that an individual was measured."""
    rows: list[Sequence[Any]] = [["id", "operator", "born", "parents", "generation", "stage", "fitness"]]
    for member in run.members.values():
        parents = " ".join(map(str, member.parents))
        for (generation, stage), value in member.fitness.items():
            rows.append([member.id, member.operator, member.born, parents, generation, stage, value])
    return rows


def _prompts(run: RunRecord) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = [["prompt", "base_completion", "winner_completion", "base_reward", "winner_reward"]]
    return rows + [[a.prompt, a.completion, b.completion, a.reward, b.reward] for a, b in texts.pairs(run)]
