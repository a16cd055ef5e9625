"""The memory that a run will take at its peak, from its parts: said before its first generation."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from evolora.engine.calibration import (
    MOST_ROWS_BY_PANELS,
    MOST_ROWS_DECODED,
    bytes_a_row,
    bytes_a_token_kept,
    bytes_of_a_chunk,
    free_memory,
    is_small,
)
from evolora.population.options import RolloutOptions
from evolora.runs.assembly import Parts
from evolora.runs.memory import rows_of_an_update

_GIB = 2**30


@dataclass(frozen=True)
class Footprint:
    """Bytes: what the process has `now`, the model and what Python takes; the population; the largest batch that is
    written, and the largest update; what is `free` beside that."""

    now: int
    population: int
    written: int
    update: int
    free: int

    @property
    def needed(self) -> int:
        """At the peak: nobody writes during an update."""
        return self.now + self.population + max(self.written, self.update)

    def lines(self) -> list[str]:
        """What is told to the user."""
        parts = {"now": self.now, "population": self.population, "writing": self.written, "an update": self.update}
        said = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in parts.items())
        lines = [f"memory: about {self.needed / _GIB:.2f} GiB at most ({said}), {self.free / _GIB:.2f} GiB are free"]
        if (more := self.needed - self.now) > self.free:
            lines.append(
                f"This may be too little memory: {more / _GIB:.2f} GiB more are needed than the run has now; "
                "--gradient-checkpointing on, --update-tokens and --rows-per-slice take less"
            )
        return lines


def footprint(parts: Parts) -> Footprint:
    """Of a run of these parts: an estimate, with completions of full length."""
    config, model, device = parts.config, parts.base.model, parts.base.model.device
    engine, evolution = config.engine, config.evolution
    read = parts.base.tokenizer([example.prompt for example in parts.task.train])["input_ids"]
    prompt, new = sum(map(len, read)) // len(read), parts.max_new_tokens
    individuals = evolution.pop if config.strategy.type != "none" else 1
    threads = engine.threads if device.type == "cpu" else 1
    task = parts.task
    rows = max(
        individuals * min(evolution.eval_prompts, len(task.train)),
        evolution.finalists * len(task.validation),
        2 * len(task.test),  # the base's and the winner's
    )
    refined, tokens = 0, 0
    if isinstance(config.refiner, RolloutOptions):
        refined, prompts = evolution.refine, config.refiner.rollout_prompts
        rows = max(rows, rows_of_an_update(config))
        tokens = refined * prompts * (prompt + config.refiner.rollout_samples * new)  # what is shared is read once
    rows = min(rows, engine.rows_per_slice or rows)
    if threads > 1 and not is_small(model):
        rows = min(rows, threads * MOST_ROWS_DECODED)
    kept = min(tokens, threads * (engine.update_tokens or tokens))
    checkpointing = engine.gradient_checkpointing
    assert checkpointing != "auto", "assembled parts have what it comes to"
    update = kept * bytes_a_token_kept(model, prompt + new, checkpointing) if refined else 0
    genome = parts.layout.genome_length * 4
    written = bytes_a_row(model, prompt + new, prompt) * rows
    if engine.products == "compiled" and not is_small(model):  # few rows are multiplied by a second copy of the weights
        weights = sum(each.nbytes for each in model.parameters())
        written = max(written, bytes_a_row(model, prompt + new, prompt) * min(rows, MOST_ROWS_BY_PANELS) + weights)
    return Footprint(
        taken_memory(device),
        # The population, its refined and its children, the finalists; Adam's moments and the gradient of the refined.
        genome * (2 * individuals + evolution.finalists + 4 * refined),
        written,
        update + threads * bytes_of_a_chunk(model, kept // threads) if refined else 0,
        free_memory(device),
    )


def taken_memory(device: torch.device) -> int:
    """Bytes that this process has there now; 0 where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # a system that does not say
        return 0
