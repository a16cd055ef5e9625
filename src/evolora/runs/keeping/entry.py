"""How a run stands, by what its folder holds, whole or damaged. Reads little, and needs no torch."""

import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from evolora.errors import CheckpointError, InputError
from evolora.files import read_checked
from evolora.lock import holder
from evolora.masking import mask
from evolora.runs.config_file import check_config, read_run_config
from evolora.runs.identity import IDENTITY, SEEDS, check_run, read_identity
from evolora.runs.keeping.names import named_time, run_name
from evolora.runs.summary import worth
from evolora.runs.tracking.chain import chain_of

CONFIG, SUMMARY, METRICS = "config.toml", "summary.json", "metrics.jsonl"

State = Literal["running", "finished", "stopped", "damaged"]


@dataclass(frozen=True)
class Entry:
    """A run: its options by `part.name`, its metrics' last line, and its summary where it has been finished. `faults`
    name what is damaged; `seeds` are the runs of a run under several seeds."""

    name: str
    folder: Path
    made: datetime
    size: int
    holder: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    last: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    seeds: tuple["Entry", ...] = ()

    @property
    def generation(self) -> int:
        return int(self.last.get("generation", 0))

    @property
    def generations(self) -> int | None:
        """After how many it ends; None where a budget says so."""
        said = self.options.get("evolution.gens")
        budget = any(name.startswith("budget.") for name in self.options)
        return said if isinstance(said, int) else None if budget else 20

    @property
    def state(self) -> State:
        if self.holder is not None:
            return "running"
        if self.faults:
            return "damaged"
        return "finished" if self.summary.get("generations") == self.generation else "stopped"

    def option(self, name: str) -> str:
        return mask(str(self.options.get(name, "-")))

    @property
    def task(self) -> str:
        if "task.data" in self.options:
            return Path(self.option("task.data")).stem
        return "prompt" if "task.prompt" in self.options else self.option("task.name")

    @property
    def model(self) -> str:
        name = self.option("model.name")
        return Path(name).name if name.startswith(("/", "<")) else name

    @property
    def rewards(self) -> tuple[float | None, float | None]:
        """Of the base and of the winner, on the test split; nothing before the end."""
        known = self.summary if self.state == "finished" else {}
        base, winner = (worth(known.get(who, {}).get("test", {})) for who in ("base", "winner"))
        return base, winner

    def as_dict(self) -> dict[str, Any]:
        """What is listed, for other programs."""
        base, winner = self.rewards
        own: dict[str, Any] = {"name": self.name, "folder": str(self.folder), "made": self.made.isoformat()}
        own |= {"bytes": self.size}
        if self.seeds:
            return own | {"seeds": [entry.as_dict() for entry in self.seeds]}
        return own | {
            "state": self.state, "task": self.task, "model": self.option("model.name"),
            "strategy": self.option("strategy.type"), "refiner": self.option("refiner.type"),
            "seed": self.options.get("run.seed"), "generation": self.generation, "generations": self.generations,
            "base": base, "winner": winner, "validation": self.last.get("validation.best"),
            "faults": list(self.faults),
        }  # fmt: skip


def is_run(folder: Path) -> bool:
    """Whether a run lies there, or what is left of one."""
    return (folder / IDENTITY).is_file() or ((folder / CONFIG).is_file() and (folder / "checkpoints").is_dir())


def read_entry(folder: Path) -> Entry | None:
    """The run in `folder`, or the runs of one under several seeds; None for any other folder."""
    if (folder / SEEDS).is_file():
        inner = sorted(folder.glob("seed-*"), key=lambda path: (len(path.name), path.name))
        seeds = tuple(entry for path in inner if path.is_dir() and (entry := read_entry(path)) is not None)
        if seeds:
            began = min(entry.made for entry in seeds)
            return Entry(run_name(folder), folder, began, _size(folder), holder(folder), seeds=seeds)
        if (said := _said_of_seeds(folder)) is not None:  # a kill came before the first of them began
            return Entry(run_name(folder), folder, _when(folder), _size(folder), holder(folder), said)
    if not is_run(folder):
        return None
    faults: list[str] = []
    options, last, summary = {}, {}, {}
    made, run = None, None
    try:
        for path in (folder / IDENTITY, folder / CONFIG, folder / METRICS, folder / SUMMARY):
            _regular(path)
        try:
            identity = read_identity(folder)
            run, made = identity.run, identity.made
        except InputError as fault:
            faults.append(str(fault))
        try:
            options = dict(read_run_config(folder).words)
            check_config(folder)
        except (InputError, CheckpointError) as fault:
            faults.append(str(fault))
        summary = read_checked(folder / SUMMARY) or {}
        if run is not None and summary:
            check_run(folder / SUMMARY, summary.get("run"), run)
        if (folder / METRICS).exists():
            *_, last = [{}, *chain_of(folder / METRICS)]
        if (expected := summary.get("generations", 0)) > last.get("generation", 0):
            raise CheckpointError(f"{folder / METRICS}: has no line of generation {expected}")
    except (CheckpointError, InputError) as fault:
        faults.append(str(fault))
    except OSError as fault:
        faults.append(f"{fault.filename or folder}: {fault.strerror}")
    return Entry(
        run_name(folder), folder, made or _when(folder), _size(folder), holder(folder), options, last, summary,
        tuple(map(mask, faults)),
    )  # fmt: skip


def _said_of_seeds(folder: Path) -> Mapping[str, Any] | None:
    """The options of a run under several seeds; None where it is no such file of ours."""
    try:
        known = (read_checked(folder / SEEDS) or {})["options"]
        return {f"{part}.{name}": value for part, values in known.items() for name, value in values.items()}
    except (CheckpointError, InputError, KeyError, AttributeError, TypeError):
        return None


def read_entries(folder: Path) -> list[Entry]:
    """The run in `folder`, or those in its folders, the newest last. Raises InputError where it is no folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: found no folder there, expected one with runs")
    if (own := read_entry(folder)) is not None:
        return [own]
    found = []
    for path in folder.iterdir():
        try:
            entry = read_entry(path) if path.is_dir() else None
        except OSError as fault:  # one that may not be looked into
            made = datetime.fromtimestamp(path.lstat().st_mtime).astimezone()
            entry = Entry(run_name(path), path, made, 0, faults=(f"{fault.filename or path}: {fault.strerror}",))
        found += [] if entry is None else [entry]
    return sorted(found, key=lambda entry: entry.made)


def _regular(path: Path) -> None:
    """Raise InputError for what is there and no file: reading it may never end."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: found no regular file, expected what a run leaves")


def _when(folder: Path) -> datetime:
    """When a run of an older version was made, as far as is known."""
    if (named := named_time(folder)) is not None:
        return datetime.fromtimestamp(time.mktime(named)).astimezone()
    known = [path.stat().st_mtime for name in (IDENTITY, CONFIG, SEEDS) if (path := folder / name).exists()]
    return datetime.fromtimestamp(min(known, default=0)).astimezone()


def _size(folder: Path) -> int:
    """The bytes of all its files; what links lead to is not its own."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(place) / name).lstat().st_size
            except OSError:  # it is gone: a run is writing
                continue
    return total
