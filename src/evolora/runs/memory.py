"""Whether a run's options ask for many times the memory that the machine has: looked at before it is taken."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from evolora.errors import InputError
from evolora.population.options import RolloutOptions
from evolora.reading import read_text
from evolora.runs.options import RunOptions

# Bounds from below are rough, and a system may lend more than it has; what is this much above is a slip of the keys.
_TIMES = 4
_GIB = 2**30


def check_memory(options: RunOptions, model: Any) -> None:
    """Raise InputError where the options, with the configuration of a model, take far more than this machine's memory:
    the population with one adapted layer at least, and the tokens of the rollouts; and where completions are longer
    than the model has room for."""
    text = model.get_text_config(decoder=True)
    _check(options, getattr(text, "hidden_size", None), getattr(text, "max_position_embeddings", None))


def check_at_once(options: RunOptions) -> None:
    """The same before torch is loaded, where the model is in a folder and calls its sizes as most do."""
    bundled = Path(__file__).parents[1] / "assets" / options.model.name
    values: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):  # which loading it will say
        values = json.loads(read_text((bundled if bundled.is_dir() else Path(options.model.name)) / "config.json"))
    values = values if isinstance(values, dict) else {}
    width = values.get("hidden_size", values.get("n_embd"))
    room = values.get("max_position_embeddings", values.get("n_positions"))
    _check(options, *(size if type(size) is int and size > 0 else None for size in (width, room)))


def _check(options: RunOptions, width: int | None, room: int | None) -> None:
    tokens = options.completion.max_new_tokens
    if room is not None and tokens is not None and tokens >= room:
        raise InputError(f"--max-new-tokens {tokens}: expected fewer than the model's {room} positions")
    check_population(options, 2 * options.lora.r * (width or 1))
    refiner = options.refiner
    if isinstance(refiner, RolloutOptions):
        _refuse(
            f"--rollout-prompts {refiner.rollout_prompts} with --rollout-samples {refiner.rollout_samples}",
            8 * rows_of_an_update(options) * (tokens or 1),
            "of tokens",
        )


def rows_of_an_update(options: RunOptions) -> int:
    """Completions whose gradient is taken together, at most."""
    refiner = options.refiner
    if not isinstance(refiner, RolloutOptions):
        return 0
    return options.evolution.refine * refiner.rollout_prompts * refiner.rollout_samples


def check_population(options: RunOptions, genome_length: int) -> None:
    """Raise InputError where genomes of that length take far more than this machine's memory."""
    pop = options.evolution.pop
    # Parents and children at once, in float32.
    _refuse(f"--pop {pop} with --lora-r {options.lora.r}", 4 * 2 * pop * genome_length, "of LoRA weights")


def check_samples(samples: int, tokens: int) -> None:
    """Raise InputError where so many completions take far more than this machine's memory."""
    # As Python's objects: a list of numbers and a text each.
    _refuse(f"--samples {samples}", samples * (1024 + 48 * tokens), "of completions")


def _refuse(subject: str, needed: int, what: str) -> None:
    memory = _machine()
    if memory is not None and needed > _TIMES * memory:
        raise InputError(
            f"{subject}: found {needed / _GIB:,.0f} GiB {what}, expected what fits into this machine's "
            f"{memory / _GIB:,.0f} GiB"
        )


def _machine() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return None
