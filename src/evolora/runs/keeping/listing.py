"""Runs as text: a table of several, or one of them on a screen."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from evolora.errors import InputError
from evolora.masking import mask
from evolora.runs.keeping.entry import Entry
from evolora.runs.keeping.names import find_run
from evolora.runs.options import RunOptions, make_options
from evolora.runs.speech import Speech
from evolora.runs.summary import worth

# Where they lie is said elsewhere, and the commit that a model came to follows from its name.
_UNSHOWN = {("run", "out"), ("model", "revision")}
# What a narrow terminal can do without, the first first.
_SPARE = ("size", "model", "method", "task", "made")


def table(entries: Sequence[Entry], width: int | None) -> Iterator[str]:
    """A line each, within a `width` where there is one; below it what is damaged in them."""
    rows = [row for entry in entries for row in _rows(entry)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for name in _SPARE:
        if width is not None and sum(widths.values()) + 2 * (len(widths) - 1) > width:
            del widths[name]
    for row in [{name: name for name in widths}, *rows]:
        yield "  ".join(row[name].ljust(size) for name, size in widths.items()).rstrip()
    for entry in entries:
        for one in (entry, *entry.seeds):
            yield from (f"{one.name}: {fault}" for fault in one.faults)


def _rows(entry: Entry, indent: str = "") -> Iterator[dict[str, str]]:
    cells = {"name": indent + entry.name, "made": f"{entry.made:%Y-%m-%d %H:%M}"}
    if entry.seeds:
        done = sum(one.state == "finished" for one in entry.seeds)
        yield cells | {
            "task": entry.seeds[0].task, "model": entry.seeds[0].model, "method": _method(entry.seeds[0]), "gen": "",
            "state": f"{done} of {len(entry.seeds)} finished", "reward": _mean(entry.seeds),
            "size": megabytes(entry.size),
        }  # fmt: skip
        for one in entry.seeds:
            yield from _rows(one, "  ")
        return
    yield cells | {
        "task": entry.task, "model": entry.model, "method": _method(entry), "gen": _generations(entry, "/"),
        "state": entry.state, "reward": _reward(entry), "size": megabytes(entry.size),
    }  # fmt: skip


def shown(entry: Entry) -> Iterator[str]:
    """One run: what it is, what it came to, where its files are, and what can be done next."""
    yield f"{entry.name}, {entry.state}" + (f" by {entry.holder}" if entry.holder else "")
    facts = {
        "folder": str(entry.folder),
        "made": f"{entry.made:%Y-%m-%d %H:%M}, seed {entry.options.get('run.seed', '-')}",
        "task": f"{entry.task}, reward {mask(str(entry.summary.get('reward', entry.option('reward.name'))))}"
        + (f", fitness {mask(str(entry.summary['fitness']))}" if "fitness" in entry.summary else ""),
        "model": entry.option("model.name"),
        "method": f"{_method(entry)}, generation {_generations(entry, ' of ')}",
        "result": _result(entry),
        **_settings(entry.options),
        "took": _cost(entry),
        "files": _files(entry.folder),
    }
    for name, text in facts.items():
        if text:
            yield f"  {name:<9} {text}"
    yield from (f"  damaged   {fault}" for fault in entry.faults)
    for text, command in _next(entry):
        yield f"  {text:<9} {command}"


def _method(entry: Entry) -> str:
    parts = [entry.option(f"{part}.type") for part in ("strategy", "refiner")]
    return "+".join(part for part in parts if part != "none")


def _generations(entry: Entry, of: str) -> str:
    return f"{entry.generation}{of}{entry.generations}" if entry.generations is not None else str(entry.generation)


def _reward(entry: Entry) -> str:
    if entry.state == "finished":
        return " -> ".join(map(_figure, entry.rewards))
    return f"validation {_figure(entry.last['validation.best'])}" if "validation.best" in entry.last else "-"


def _mean(entries: Sequence[Entry]) -> str:
    """Over the runs of all seeds, where all are finished."""
    pairs = [entry.rewards for entry in entries]
    means = [mean(known) if len(known := [x for x in side if x is not None]) == len(pairs) else None
             for side in zip(*pairs, strict=True)]  # fmt: skip
    return " -> ".join(map(_figure, means)) if None not in means else ""


def _result(entry: Entry) -> str:
    if entry.state != "finished":
        return _reward(entry).removeprefix("-")
    base, winner = entry.summary["base"]["test"], entry.summary["winner"]["test"]
    ends = [f"{_figure(worth(one))} (95% {' to '.join(map(_figure, one['ci95']))})" for one in (base, winner)]
    return f"{ends[0]} -> {ends[1]} on {entry.summary['test_prompts']} test prompts"


def _figure(value: Any) -> str:
    known = isinstance(value, (int, float)) and not math.isnan(value)
    return f"{value:.3f}" if known else "-"


def _settings(options: Mapping[str, Any]) -> dict[str, str]:
    """The options that are not the defaults, as they would be typed; those that a run chooses by its machine apart."""
    try:
        kinds = {part: options[f"{part}.type"] for part in ("strategy", "refiner")}
        usual = make_options(kinds)
    except (KeyError, InputError):
        return {}
    said = {"settings": "", "machine": ""}
    for part, values in usual.parts().items():
        for name, default in values.items():
            value = options.get(f"{part}.{name}")
            value = None if value == "none" else value
            if value != default and value is not None and (part, name) not in _UNSHOWN:
                kind = "machine" if part == "engine" or default == "auto" else "settings"
                said[kind] += f" {_option(usual, part, name, value)}"
    types = "".join(f" --{part} {kind}" for part, kind in kinds.items() if kind != getattr(make_options(), part).type)
    return {"settings": mask(f"{types}{said['settings']}".strip()), "machine": mask(said["machine"].strip())}


def _option(usual: RunOptions, part: str, name: str, value: Any) -> str:
    speech, word = Speech("cli"), usual.vocabulary.word(part, name)
    return f"--no-{speech.name(word)[2:]}" if value is False else speech.valued(word, value)


def _cost(entry: Entry) -> str:
    if entry.state == "finished":
        tokens = entry.summary["tokens"]
        return f"{entry.summary['seconds']:.1f} s, {sum(tokens.values()):,} tokens; {megabytes(entry.size)} on the disk"
    seconds = entry.last.get("time.total")
    return ("" if seconds is None else f"{seconds:.1f} s; ") + f"{megabytes(entry.size)} on the disk"


def _files(folder: Path) -> str:
    named = {"best": "best/, the adapter", "merged": "merged/, the merged model", "report.html": "report.html"}
    found = [text for name, text in named.items() if (folder / name).exists()]
    checkpoints = sorted(path.name for path in folder.glob("checkpoints/gen*"))
    return ", ".join([*found, *(["checkpoints " + " ".join(checkpoints)] if checkpoints else [])])


def _next(entry: Entry) -> Iterator[tuple[str, str]]:
    run = entry.name
    try:
        if find_run(run) != entry.folder:
            run = str(entry.folder)
    except InputError:  # several are called so
        run = str(entry.folder)
    if entry.state == "damaged":
        yield "check", f"evolora verify {run}"
    if entry.state == "finished":
        yield "try", f"evolora generate {run} 'a prompt'"
        yield "use", f"evolora export {run} --to DIR"
    if entry.state in ("finished", "stopped"):
        more = f" --gens {2 * entry.generation}" if entry.state == "finished" else ""
        yield "go on", f"evolora resume {run}{more}"
    yield "report", f"evolora report {run}"


def megabytes(size: int) -> str:
    """A size on the disk."""
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"
