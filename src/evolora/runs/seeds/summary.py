"""What a run under several seeds came to: means over the seeds, each with its interval."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evolora.errors import CheckpointError, InputError
from evolora.files import file_sha256, read_checked, without_nan
from evolora.runs.config_file import read_run_config
from evolora.runs.identity import but_for_seed, differences, read_identity
from evolora.runs.options import make_options
from evolora.runs.seeds.folder import Seeds, read_seeds, seed_folder
from evolora.runs.summary import SUMMARY, read_summary, worth

_SAME = (
    "version", "model", "revision", "task", "reward", "fitness", "strategy", "refiner", "held_out", "test_prompts",
    "init",
)  # fmt: skip


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The interval of a mean by Student's t (1908), which is wide where values are few; NaN for fewer than two.

    >>> [round(edge, 3) for edge in t_interval([0.8, 0.9, 1.0])]
    [0.652, 1.148]
    """
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(count)
    half = t_quantile((1 + level) / 2, count - 1) * error
    return mean - half, mean + half


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile above a half of Student's t with whole degrees of freedom, by bisection of its distribution function
    (Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4).

    >>> round(t_quantile(0.975, 4), 4)
    2.7764
    """
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """The probability of less than t either way, where `angle` is the arc tangent of t / sqrt(freedom)."""
    odd = freedom % 2
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = cosine if odd else 1.0, 0.0
    for step in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (step - 1) / step
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


def summed_up(folder: Path, seeds: Seeds) -> dict[str, Any]:
    """The summary of a run all of whose seeds are finished. Raises CheckpointError where one's summary is altered."""
    summaries = {seed: read_summary(seed_folder(folder, seed)) or {} for seed in seeds.seeds}
    rows = [row_of(seed, summary) for seed, summary in summaries.items()]
    first = summaries[seeds.seeds[0]]
    gains = [row["gain"] for row in rows if row["gain"] is not None]
    summary = {
        "run": seeds.run,
        **{name: first[name] for name in _SAME if name in first},
        "interval": "95%, Student's t over seeds",
        "base": over_seeds([row["base"]["reward"] for row in rows]),
        "winner": over_seeds([row["winner"]["reward"] for row in rows]),
        "gain": over_seeds(gains),
        "better": sum(gain > 0 for gain in gains) / len(gains) if gains else None,
        "best": best_of(rows),
        "seconds": sum(row["seconds"] for row in rows),
        **{measure: _summed(list(summaries.values()), measure) for measure in ("tokens", "flops")},
        "seeds": rows,
        "differ": differing(folder, seeds.seeds),
        "sealed": {name: file_sha256(folder / name / SUMMARY) for name in (row["folder"] for row in rows)},
    }
    return dict(without_nan(summary))


def row_of(seed: int, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The run of one seed, from its own summary, in a few figures; the intervals are over prompts."""
    base, winner = summary["base"]["test"], summary["winner"]["test"]
    before, after = worth(base), worth(winner)
    return {
        "seed": seed,
        "folder": f"seed-{seed}",
        "base": {"reward": before, "ci95": base["ci95"]},
        "winner": {
            **{name: summary["winner"][name] for name in ("id", "operator", "validation")},
            "reward": after,
            "ci95": winner["ci95"],
        },
        "gain": None if before is None or after is None else after - before,
        "generations": summary["generations"],
        "tokens": sum(summary["tokens"].values()),
        "seconds": summary["seconds"],
    }


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """The mean over the seeds that have a value, and its interval, which two seeds are needed for."""
    known = [value for value in values if value is not None]
    return {
        "reward": float(np.mean(known)) if known else None,
        "ci95": [None if math.isnan(edge) else edge for edge in t_interval(known)],
        "seeds": len(known),
    }


def best_of(rows: Sequence[Mapping[str, Any]]) -> int:
    """The seed whose winner is best on the validation split: the test is not for choosing."""

    def validation(row: Mapping[str, Any]) -> float:
        found = row["winner"]["validation"]
        return -math.inf if found is None else float(found)

    return int(max(rows, key=validation)["seed"])


def best_run(folder: Path) -> tuple[Path, str]:
    """The run of the seed that is best on validation, and what is said of the choice. Raises InputError where no seed
    is finished."""
    seeds = read_seeds(folder)
    found = {seed: read_summary(seed_folder(folder, seed)) for seed in seeds.begun(folder)}
    rows = [row_of(seed, summary) for seed, summary in found.items() if summary is not None]
    if not rows:
        raise InputError(f"{folder}: found no seed that is finished, expected 'evolora resume {folder}' first")
    best = best_of(rows)
    of = f"{len(rows)} seeds" if len(rows) == len(seeds.seeds) else f"the {len(rows)} seeds that are finished"
    return seed_folder(folder, best), f"{seed_folder(folder, best)}: taken, the best of {of} on validation"


def differing(folder: Path, seeds: Sequence[int]) -> list[str]:
    """How the runs of later seeds differ from the first one's in what should be the same: some were resumed by
    themselves, or with accepted changes."""
    known: dict[int, Mapping[str, Mapping[str, Any]]] = {}
    for seed in seeds:
        run = seed_folder(folder, seed)
        options = make_options(read_run_config(run))
        limits = {"--gens": options.most_gens, **{f"--budget-{name}": each for name, each in options.budget}}
        limits |= {"--until": options.evolution.until, "--patience": options.evolution.patience}
        known[seed] = {**but_for_seed(read_identity(run).fingerprint), "limit": limits}
    first = known[seeds[0]]
    return [
        f"seed {seed}: {each.removeprefix('limit ')}" for seed in seeds[1:] for each in differences(first, known[seed])
    ]


def _summed(summaries: Sequence[Mapping[str, Any]], measure: str) -> dict[str, float]:
    purposes = dict.fromkeys(purpose for summary in summaries for purpose in summary[measure])
    return {purpose: sum(summary[measure].get(purpose, 0) for summary in summaries) for purpose in purposes}


def check_sealed(folder: Path) -> None:
    """Raise CheckpointError where the summary is altered, or a seed's run has another end than the one it has."""
    summary = read_checked(folder / SUMMARY) or {}
    for name, sha256 in summary["sealed"].items():
        path = folder / name / SUMMARY
        if not path.is_file() or file_sha256(path) != sha256:
            raise CheckpointError(
                f"{folder / SUMMARY}: is of another end of {name}; 'evolora resume {folder}' sums up anew"
            )


def base_name(summary: Mapping[str, Any]) -> str:
    """What the winner is compared with: the base model, or the adapter that the run started from."""
    return str(summary.get("init", ["base model"])[0])


def the_base(name: str) -> str:
    """The same in a sentence."""
    return "the base" if name == "base model" else name


def lines(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """What is said of it at the end."""
    rows, gain, better = summary["seeds"], summary["gain"], summary["better"]
    base = base_name(summary)
    width = max(10, len(base), *(len(f"seed {row['seed']}") for row in rows))
    tokens, flops = summary["tokens"], summary["flops"]
    operations = sum(flops.values()) - flops["test"]
    return [
        f"{summary['task']}, {'held-out ' if summary['held_out'] else ''}test prompts: {summary['test_prompts']}; "
        "95% intervals, of each seed over prompts",
        *(
            f"  {'seed ' + str(row['seed']):<{width}} {_interval(row['winner'])}  individual {row['winner']['id']}, by "
            f"{row['winner']['operator']}, validation {_figure(row['winner']['validation'])}"
            for row in rows
        ),
        f"over {len(rows)} seeds, by Student's t:",
        f"  {base:<{width}} {_interval(summary['base'])}",
        f"  {'winner':<{width}} {_interval(summary['winner'])}",
        f"  {'gain':<{width}} {_interval(gain, sign='+')}",
        *([] if better is None else [f"{better * gain['seeds']:.0f} of {gain['seeds']} seeds beat {the_base(base)}"]),
        *(f"not the same in every seed: {each}" for each in summary["differ"]),
        f"{sum(row['generations'] for row in rows)} generations in {summary['seconds']:.1f} s, "
        f"{tokens['evaluation']:,} tokens for evaluation and {tokens['rollout']:,} for rollouts, "
        f"{operations:.2g} FLOPs",
        f"adapter: {seed_folder(folder, summary['best']) / 'best'} (seed {summary['best']}, the best on validation)",
    ]


def _interval(figures: Mapping[str, Any], sign: str = "") -> str:
    low, high = figures["ci95"]
    if figures["reward"] is None:
        return "- (nothing was scored)"
    if low is None or high is None:
        return _figure(figures["reward"], sign)
    if "seeds" in figures and high - low < 1e-9:
        return f"{_figure(figures['reward'], sign)} (the same in every seed)"
    return f"{_figure(figures['reward'], sign)} (95% {_figure(low, sign)} to {_figure(high, sign)})"


def _figure(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"
