"""What a run will cost in memory and time: estimated before its first generation, by loading its parts."""

import time
from dataclasses import dataclass

import torch

from evolora.engine.calibration import bytes_a_row
from evolora.models.cost import ModelSize
from evolora.refiners.options import PolicyGradientConfig
from evolora.runs.assembly import assemble
from evolora.runs.given import Given
from evolora.runs.options import RunOptions
from evolora.runs.tracking.terminal import Silence

_MEASURED_SECONDS = 0.5
_SIDE = 1024  # of the square matrices whose product is timed
_GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """The options as the machine and the task resolve them, and what a run of them takes: bytes, nominal operations a
    generation at most, and how many of those a second the device's matrix products reach."""

    options: RunOptions
    model_bytes: int
    genome_bytes: int
    slice_bytes: int
    flops: float
    flops_a_second: float

    def lines(self) -> list[str]:
        """What is told to the user."""
        total = self.model_bytes + self.genome_bytes + self.slice_bytes
        seconds, gens = self.flops / self.flops_a_second, self.options.most_gens
        within = f", {_duration(seconds * gens)} for {gens} generations" if gens is not None else ""
        return [
            "An estimate, as if all completions had full length:",
            f"memory: {total / _GIB:.2f} GiB and what Python takes: model {self.model_bytes / _GIB:.2f}, population "
            f"{self.genome_bytes / _GIB:.2f}, a slice of {self.options.engine.rows_per_slice} rows at most "
            f"{self.slice_bytes / _GIB:.2f}",
            f"time: about {_duration(seconds)} a generation{within}: {self.flops:.2g} operations each, at the "
            f"{self.flops_a_second / 1e9:.0f} GFLOP/s that a large matrix product reaches here now",
            "Shorter completions take less, models too small for that rate more; the reward's own time comes on top.",
        ]


def estimate(options: RunOptions) -> Estimate:
    """Load the parts of a run, leaving nothing behind, and estimate it. Raises InputError as a run would."""
    parts = assemble(options.replaced({"run": {"out": None}}), Given(), Silence())
    config = parts.config.replaced({"run": {"out": options.run.out}})
    parts.scorer.close()
    size = ModelSize.of(parts.base.model, adapter=parts.layout.genome_length)
    prompts = parts.base.tokenizer([example.prompt for example in parts.task.train])["input_ids"]
    length = sum(map(len, prompts)) // len(prompts) + parts.max_new_tokens
    evolution, refiner = config.evolution, config.refiner
    population = evolution.pop if config.strategy.type != "none" else 1
    prompts_a_generation = min(evolution.eval_prompts, len(parts.task.train))
    checked = min(evolution.validation_prompts, len(parts.task.validation))
    refined = evolution.refine if isinstance(refiner, PolicyGradientConfig) else 0
    read = (population + refined) * prompts_a_generation + checked
    flops = size.forward([length]) * read
    if isinstance(refiner, PolicyGradientConfig):
        written = refined * refiner.rl_steps * refiner.rollout_prompts * refiner.rollout_samples
        both = size.forward([length]) + size.backward([length])
        flops += written * (size.forward([length]) + refiner.epochs * both)
    genome = parts.layout.genome_length * 4
    rows = min(config.engine.rows_per_slice or 1, max(read, 1))
    weights = sum(each.numel() * each.element_size() for each in parts.base.model.parameters())
    return Estimate(
        config,
        # Compiled products keep the weights a second time, in their own order.
        weights * (2 if config.engine.products == "compiled" else 1),
        # The population, its refined and its children, the finalists; Adam's moments and the gradient of the refined.
        genome * (2 * population + evolution.finalists + 4 * refined),
        bytes_a_row(parts.base.model, length) * rows,
        float(flops),
        _flops_a_second(parts.base.model.device, parts.base.model.dtype, config.engine.threads),
    )


def _flops_a_second(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """What a large matrix product reaches, within half a second."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    left, right = (torch.ones(_SIDE, _SIDE, device=device, dtype=dtype) for _ in range(2))
    try:
        float((left @ right)[0, 0])
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < _MEASURED_SECONDS:
            float((left @ right)[0, 0])
            count += 1
        return count * 2 * _SIDE**3 / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
