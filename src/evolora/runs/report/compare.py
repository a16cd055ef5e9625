"""Several runs side by side: on the terminal, and as a page with their curves over what they cost."""

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evolora.errors import InputError
from evolora.files import write_text
from evolora.runs.report import series, texts
from evolora.runs.report.charts import Figure, Line, short
from evolora.runs.report.data import RunRecord, number, read_run
from evolora.runs.report.page import figure, gain, rendered, signed
from evolora.runs.report.statistics import bootstrap_interval
from evolora.runs.seeds.folder import is_seeds
from evolora.runs.summary import worth

PAGE = "compare.html"
_COLORS = ("blue", "red", "green", "violet", "orange", "teal", "brown", "grey")
_MEASURES = {"tokens": "tokens generated", "flops": "FLOPs", "seconds": "seconds"}
_HEADS = ("Run", "Generations", "Base model", "Winner", "Gain", "Against the first", "Tokens", "FLOPs", "Seconds")
# What differs from run to run and says nothing.
_OWN = {"run.out", "engine.update_tokens"}
_NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Comparison:
    """Runs under names of their own: a `table` with a row a run, `settings` that are not the same in all, each with the
    run's values, and `cautions` about what cannot be compared."""

    runs: dict[str, RunRecord]
    table: list[list[str]]
    settings: list[tuple[str, list[str]]]
    cautions: list[str]

    def show(self, console: Console) -> None:
        """On the terminal."""
        for caution in self.cautions:
            console.print(f"caution: {caution}", markup=False, highlight=False)
        figures = [(head, list(cells)) for head, cells in zip(_HEADS, zip(*self.table, strict=True), strict=True)]
        for head, rows in (("", figures[1:]), ("Settings that differ", self.settings)):
            drawn = Table(box=None, pad_edge=False, header_style="bold")
            for name in (head, *self.runs):
                drawn.add_column(escape(name), overflow="fold")
            for name, values in rows:
                drawn.add_row(escape(name), *map(escape, values))
            console.print(drawn if rows else "No setting differs.", highlight=False)
            console.print()

    def html(self) -> str:
        """As a page."""
        return rendered(
            "compare.html",
            heads=_HEADS,
            table=self.table,
            names=list(self.runs),
            settings=self.settings,
            cautions=self.cautions,
            charts=[_curves(self.runs, measure).html() for measure in _MEASURES],
        )


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Compare the runs in these folders, finished or not. Raises InputError for fewer than two, or no runs."""
    if len(folders) < 2:
        raise InputError(f"compare: found {len(folders)} run, expected two or more")
    for folder in filter(is_seeds, folders):
        raise InputError(
            f"compare: {folder} has several seeds, expected the folders of single ones, such as seed-0 in it"
        )
    records = [read_run(folder) for folder in folders]
    runs = dict(zip(_names([record.folder.absolute() for record in records]), records, strict=True))
    first = records[0]
    table = [_row(name, run, first) for name, run in runs.items()]
    return Comparison(runs, table, _settings(records), _cautions(records))


def write_comparison(comparison: Comparison, to: Path) -> None:
    """Write its page. Raises InputError where `to` cannot be written."""
    try:
        write_text(to, comparison.html())
    except OSError as error:
        raise InputError(f"--to {to}: cannot be written ({error.strerror}), expected a file's name") from None


def _names(folders: Sequence[Path]) -> list[str]:
    """Each folder's name, with as much of the path before it as tells it from the others."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    counted = Counter[Path]()
    numbered = []
    for folder in folders:  # the same run twice
        counted[folder] += 1
        numbered.append(f"{folder.name} ({counted[folder]})" if counted[folder] > 1 else folder.name)
    return numbered


def _row(name: str, run: RunRecord, first: RunRecord) -> list[str]:
    line = run.metrics[-1] if run.metrics else {}
    spent = [series.spent(line, measure) for measure in _MEASURES]
    added, interval, _ = gain(run)
    done = f"{len(run.metrics)}" if run.summary is not None else f"{len(run.metrics)}, not finished"
    return [
        name, done, _tested(run, "base"), _tested(run, "winner"), _with_interval(added, interval),
        _NONE if run is first else _difference(run, first),
        *(_NONE if value is None else short(value, digits=3) for value in spent),
    ]  # fmt: skip


def _tested(run: RunRecord, who: str) -> str:
    test: dict[str, Any] = (run.summary or {}).get(who, {}).get("test", {})
    low, high = map(number, test.get("ci95", (None, None)))
    known = worth(test)
    return _NONE if known is None else f"{figure(known)} ({figure(low)} to {figure(high)})"


def _with_interval(value: float | None, interval: tuple[float | None, float | None]) -> str:
    return _NONE if value is None else f"{signed(value)} ({signed(interval[0])} to {signed(interval[1])})"


def _difference(run: RunRecord, first: RunRecord) -> str:
    """The winner's test reward minus that of the first run's winner, by the paired differences, where both met the same
    prompts."""
    own, other = texts.sides(run)[1], texts.sides(first)[1]
    if not own or [sample.prompt for sample in own] != [sample.prompt for sample in other]:
        return _NONE
    if any("fitness" in (each.summary or {}) for each in (run, first)):  # what a prompt is worth need not say it
        a, b = (None if each.summary is None else worth(each.summary["winner"]["test"]) for each in (run, first))
        return _NONE if a is None or b is None else signed(a - b)
    gaps = np.array(
        [a.reward - b.reward for a, b in zip(own, other, strict=True) if a.reward is not None and b.reward is not None]
    )
    low, high = bootstrap_interval(gaps, seed=0)
    return _with_interval(float(gaps.mean()), (number(low), number(high))) if len(gaps) else _NONE


def _settings(runs: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    every = [_set(run) for run in runs]
    names = sorted({name for each in every for name in each} - _OWN)
    rows = [(name, [each.get(name, _NONE) for each in every]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _set(run: RunRecord) -> dict[str, str]:
    """Each option of `config.toml`, and what the run depended on beside them."""
    found: dict[str, str] = {}
    for part, text in run.options.items():
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            raise InputError(f"{run.folder / 'config.toml'}: altered, [{part}] cannot be read") from None
        found |= {f"{part}.{name}": str(value) for name, value in values.items()}
    for part, known in run.fingerprint.items():
        if part != "option":
            found |= {f"{part}: {name}": str(value)[:16] for name, value in known.items()}
    return found


def _cautions(runs: Sequence[RunRecord]) -> list[str]:
    found = []
    for what, told in (
        ("the runs have different tasks", [run.task for run in runs]),
        ("the runs have different rewards", [run.option("reward", "name") for run in runs]),
        ("the runs have different fitness", [run.option("evolution", "fitness") for run in runs]),
        ("the winners met different test prompts", [[sample.prompt for sample in texts.sides(run)[1]] for run in runs
                                                    if run.summary is not None]),
    ):  # fmt: skip
        if any(each != told[0] for each in told):
            found.append(f"{what}: their figures are of different things")
    return [*found, *(fault for run in runs for fault in run.unread)]


def _curves(runs: dict[str, RunRecord], measure: str) -> Figure:
    """Validation of each run over what it had cost by then, from the base on."""
    lines = []
    for index, (name, run) in enumerate(runs.items()):
        known = [(0.0, series.base_validation(run))]
        for line in run.metrics:
            known.append((series.spent(line, measure) or 0.0, number(line.get("validation"))))
        color, again = _COLORS[index % len(_COLORS)], index >= len(_COLORS)
        lines.append(Line(name, [y for _, y in known], color, dashed=again, x=[x for x, _ in known]))
    return Figure(measure, f"Over {_MEASURES[measure]}", _MEASURES[measure], "mean reward on validation", [], lines)
