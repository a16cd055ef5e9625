"""The memory that a run will take at its peak, from its parts: said before its first generation."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from evolora.engine.calibration import (
    MOST_ROWS_BY_PANELS,
    MOST_ROWS_DECODED,
    bytes_a_row,
    bytes_of_an_update,
    bytes_of_holes,
    free_memory,
    is_small,
)
from evolora.population.options import RolloutOptions
from evolora.runs.assembled import Parts
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
    greedy = evolution.fitness_samples * max(
        individuals * min(evolution.eval_prompts, len(task.train)),
        evolution.finalists * len(task.validation),
        2 * len(task.test),  # the base's and the winner's
    )
    refined, tokens, sampled = 0, 0, 0
    if isinstance(config.refiner, RolloutOptions):
        refined, prompts = evolution.refine, config.refiner.rollout_prompts
        sampled = rows_of_an_update(config)
        own = prompts * (prompt + config.refiner.rollout_samples * new)  # what is shared is read once
        width = max(prompt + new, model.config.get_text_config(decoder=True).hidden_size // 2)  # of a pack
        tokens = refined * (own if own <= width else -(-own // width) * width)
    kept = min(tokens, threads * (engine.update_tokens or tokens))
    checkpointing = engine.gradient_checkpointing
    assert checkpointing != "auto", "assembled parts have what it comes to"
    of_thread = model, prompt + new, kept // threads, checkpointing
    compiled = engine.type == "cpu"
    update = threads * (bytes_of_an_update(*of_thread, compiled=compiled) + bytes_of_holes(*of_thread))
    genome = parts.layout.genome_length * 4

    def written(most: int) -> int:
        """By batches of up to so many rows."""
        # Of the logits that a token is sampled from torch makes copies.
        kinds = ((greedy, 1), (sampled, 1 if compiled else 4))
        return max(min(rows, most) * bytes_a_row(model, prompt + new, prompt, logits) for rows, logits in kinds)

    most = engine.rows_per_slice or max(greedy, sampled)
    if threads > 1 and not is_small(model):
        most = min(most, threads * MOST_ROWS_DECODED)
    # Few rows, or packs, are multiplied by further copies of a large model's weights, which many rows let go of.
    held, copies = parts.copies
    few = min(most, MOST_ROWS_BY_PANELS)
    return Footprint(
        max(0, taken_memory(device) - held),
        # The population, its refined and its children, the finalists; Adam's moments and the gradient of the refined.
        genome * (2 * individuals + evolution.finalists + 4 * refined),
        max(written(most) + (copies if is_small(model) else 0), written(few) + copies),
        update + copies if refined else 0,
        free_memory(device) + held,
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
