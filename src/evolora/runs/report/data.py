"""What a run's files say, as one plain structure: all that the report shows, finished or not."""

import math
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evolora.errors import CheckpointError, InputError
from evolora.files import check_regular
from evolora.masking import mask
from evolora.population.lineage import raise_if_elsewhere
from evolora.reading import read_text
from evolora.runs.identity import read_identity
from evolora.runs.recovery import LINEAGE, METRICS
from evolora.runs.summary import read_summary
from evolora.runs.tracking.metrics_log import MetricsLog
from evolora.strategies.operators import CROSSOVERS

Measure = tuple[int, str]
"""A generation and a stage."""


@dataclass(frozen=True)
class Member:
    """An individual: its parents, the generation it was born in, its fitness by generation and stage, and what it has
    of its own beside its weights."""

    id: int
    born: int
    operator: str
    parents: tuple[int, ...]
    fitness: Mapping[Measure, float | None]
    genes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    generation: int
    individual: int
    prompt: str
    completion: str
    reward: float | None


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder has it. `summary` is None before the end, also where a finished run goes on; `options` is
    the text of each table of `config.toml`, without keys; `unread` says what could not be read."""

    folder: Path
    summary: Mapping[str, Any] | None
    metrics: Sequence[Mapping[str, Any]]
    members: Mapping[int, Member]
    validation: Sequence[Sample]
    test: Sequence[Sample]
    options: Mapping[str, str]
    fingerprint: Mapping[str, Mapping[str, Any]]
    unread: Sequence[str]

    @property
    def base(self) -> Member | None:
        return next((member for member in self.members.values() if member.operator == "base"), None)

    @property
    def task(self) -> str:
        return str(self._told("task") or self.option("task", "name") or self.option("task", "data") or "one prompt")

    @property
    def model(self) -> str:
        return str(self._told("model") or self.option("model", "name") or "a model")

    def _told(self, name: str) -> object:
        return (self.summary or {}).get(name)

    @property
    def refiner(self) -> str | None:
        """The prefix of its figures; None without one."""
        name = self.option("refiner", "type")
        return None if name == "none" else name

    @property
    def reference(self) -> str:
        """What the KL is measured from."""
        return "the base model" if self.option("lora", "init") is None else "the adapter that it started from"

    def kind(self, operator: str) -> str:
        """What kind of operator it is."""
        if operator == "base":
            return "base"
        if operator == self.refiner:
            return "RL"
        if operator in ("average", "soup", "copy", "migration"):
            return "other"
        return "crossover" if "crossover" in operator or operator.split("+")[0] in CROSSOVERS else "mutation or sample"

    def option(self, part: str, name: str) -> str | None:
        """An option as `config.toml` has it."""
        found = re.search(rf"^{name} = (.*)$", self.options.get(part, ""), re.MULTILINE)
        return found[1].strip('"') if found else None


def number(value: object) -> float | None:
    """A finite number, or None for whatever else a file holds."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None  # type: ignore[arg-type]


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder. Raises InputError for a folder that is no run; what is missing or damaged in one is left out
    and named in `unread`."""
    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder}: found no config.toml, expected the folder of a run")
    check_regular(folder)
    unread: list[str] = []
    summary, fingerprint = None, {}
    try:
        summary = read_summary(folder)
    except CheckpointError as fault:
        unread.append(str(fault))
    try:
        fingerprint = dict(read_identity(folder).fingerprint)
    except InputError as fault:
        unread.append(str(fault))
    try:
        options = _tables(mask(read_text(folder / "config.toml")))
    except (OSError, UnicodeDecodeError) as fault:
        options = {}
        unread.append(f"{folder / 'config.toml'}: {fault}")
    metrics = [line for line in MetricsLog(folder / METRICS, "").read() if isinstance(line.get("generation"), int)]
    if summary is not None and metrics and metrics[-1]["generation"] > summary.get("generations", math.inf):
        summary = None
    members: dict[int, Member] = {}
    samples: dict[str, list[Sample]] = {"validation": [], "test": []}
    try:
        members, samples = _lineage(folder / LINEAGE)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as fault:
        if (folder / LINEAGE).exists():
            raise_if_elsewhere(fault)
        unread.append(f"{folder / LINEAGE}: missing or damaged ({' '.join(str(fault).split())})")
    return RunRecord(
        folder, summary, metrics, members, samples["validation"], samples["test"], options, fingerprint, unread
    )


def _tables(text: str) -> dict[str, str]:
    """The lines below each `[table]`, without the checksum."""
    pieces = re.split(r"^\[(\w+)\]$", re.sub(r"^# sha256 .*$", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    return {name: lines.strip() for name, lines in zip(pieces[1::2], pieces[2::2], strict=True)}


def _lineage(path: Path) -> tuple[dict[int, Member], dict[str, list[Sample]]]:
    # Read only: a run may be writing it.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        parents: dict[int, list[int]] = {}
        for child, parent in connection.execute("SELECT child, parent FROM parents ORDER BY child, position"):
            parents.setdefault(child, []).append(parent)
        fitness: dict[int, dict[Measure, float | None]] = {}
        for generation, individual, stage, value in connection.execute(
            "SELECT generation, individual, stage, fitness FROM fitness ORDER BY generation"
        ):
            fitness.setdefault(individual, {})[generation, stage] = number(value)
        genes: dict[int, dict[str, float]] = {}
        # An older version's has no such table.
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'genes'").fetchone():
            for individual, name, value in connection.execute("SELECT individual, name, value FROM genes"):
                genes.setdefault(individual, {})[name] = value
        members = {
            id: Member(id, born, operator, tuple(parents.get(id, ())), fitness.get(id, {}), genes.get(id, {}))
            for id, born, operator in connection.execute("SELECT id, generation, operator FROM individuals ORDER BY id")
        }
        samples = {
            stage: [
                Sample(generation, individual, prompt, completion, number(reward))
                for generation, individual, prompt, completion, reward in connection.execute(
                    "SELECT generation, individual, prompt, completion, reward FROM samples WHERE stage = ? "
                    "ORDER BY rowid",
                    (stage,),
                )
            ]
            for stage in ("validation", "test")
        }
    return members, samples
