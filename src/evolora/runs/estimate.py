"""What a run will cost in memory and time: estimated before its first generation, by loading its parts and letting the
base write and learn for some seconds."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from evolora.engine.base import Scoring
from evolora.models.cost import ModelSize
from evolora.population.writing import Writer, Written
from evolora.refiners.options import PolicyGradientConfig
from evolora.runs.assembled import Parts
from evolora.runs.assembly import assemble
from evolora.runs.footprint import Footprint, footprint
from evolora.runs.given import Given
from evolora.runs.options import RunOptions
from evolora.runs.tracking.view import Silence

# About as long as each of the two measurements takes at most, where a few rows take less.
_SECONDS = 5.0
_FEW = 4


@dataclass(frozen=True)
class Estimate:
    """The options as the machine and the task resolve them, and what a run of them takes: memory, nominal operations a
    generation at most, and seconds a generation."""

    options: RunOptions
    memory: Footprint
    flops: float
    seconds: float

    def lines(self) -> list[str]:
        """What is told to the user."""
        gens = self.options.most_gens
        within = f", {_duration(self.seconds * gens)} for {gens} generations" if gens is not None else ""
        return [
            *self.memory.lines(),
            f"time: about {_duration(self.seconds)} a generation{within}, with completions as long as the base writes "
            f"them now, and at most {self.flops:.2g} operations each, with completions of full length",
            "The time of the reward comes on top, and at the end that of the validation and test splits.",
            *self._of_seeds(),
        ]

    def _of_seeds(self) -> list[str]:
        run, gens = self.options.run, self.options.most_gens
        if not run.each_seed:
            return []
        count = len(run.each_seed)
        at_once = min(run.seed_workers or 1, count)
        how = "one after another"
        if at_once > 1:
            how = f"{at_once} at a time, which take {at_once} times the memory and share the cores"
        total = "" if gens is None else f": {_duration(self.seconds * gens * math.ceil(count / at_once))} in all"
        return [f"seeds: {count}, each as above, {how}{total}" + (" at the least" if total and at_once > 1 else "")]


def estimate(options: RunOptions) -> Estimate:
    """Load the parts of a run, leaving nothing behind, and estimate it. Raises InputError as a run would."""
    if options.run.each_seed:
        options = options.replaced({"run": {"seed": options.run.each_seed[0]}})
    alone = {"count": 0 if options.workers.asked else None, "ray": None}  # what it takes here is what can be measured
    parts = assemble(options.replaced({"run": {"out": None}, "workers": alone}), Given(), Silence())
    config = parts.config.replaced({"run": {"out": options.run.out}})
    memory = footprint(parts)
    parts.close()
    size = ModelSize.of(parts.base.model, adapter=parts.layout.genome_length)
    prompts = parts.base.tokenizer([example.prompt for example in parts.task.train])["input_ids"]
    length = sum(map(len, prompts)) // len(prompts) + parts.max_new_tokens
    evolution, refiner = config.evolution, config.refiner
    population = evolution.pop if config.strategy.type != "none" else 1
    prompts_a_generation = evolution.fitness_samples * min(evolution.eval_prompts, len(parts.task.train))
    checked = evolution.fitness_samples * min(evolution.validation_prompts, len(parts.task.validation))
    refined = evolution.refine if isinstance(refiner, PolicyGradientConfig) else 0
    read = (population + refined) * prompts_a_generation + checked
    flops = size.forward([length]) * read
    asked = _Rows(population, prompts_a_generation)
    seconds = read * _seconds_to_write(parts, asked, seeds=False)
    if isinstance(refiner, PolicyGradientConfig) and refined:
        drawn = _Rows(refined, refiner.rollout_prompts * refiner.rollout_samples)
        written = drawn.count * refiner.rl_steps
        both = size.forward([length]) + size.backward([length])
        flops += written * (size.forward([length]) + refiner.epochs * both)
        a_row = _seconds_to_write(parts, drawn, seeds=True) + refiner.epochs * _seconds_to_learn(parts, drawn)
        seconds += written * a_row
    parts.engine.close()
    return Estimate(config, memory, float(flops), seconds)


@dataclass(frozen=True)
class _Rows:
    """A batch: so many individuals with so many prompts each."""

    individuals: int
    prompts: int

    @property
    def count(self) -> int:
        return self.individuals * self.prompts

    def within(self, most: int) -> "_Rows":
        """Of the same kind, of at most about so many rows."""
        individuals = max(1, min(self.individuals, most))
        return _Rows(individuals, max(1, min(self.prompts, most // individuals)))


def _seconds_to_write(parts: Parts, rows: _Rows, *, seeds: bool) -> float:
    """What a row of a batch of the founder's completions takes; sampled ones with `seeds`."""

    def write(some: _Rows) -> float:
        start = time.perf_counter()
        _written(parts, some, seeds=seeds)
        return time.perf_counter() - start

    return _seconds_a_row(rows, write)


def _seconds_to_learn(parts: Parts, rows: _Rows) -> float:
    """What the gradient of a row of such a batch takes."""
    how = Scoring(gradient=True, dropout=parts.lora.lora_dropout)

    def learn(some: _Rows) -> float:
        written = _written(parts, some, seeds=True)
        assert written.completions is not None
        start = time.perf_counter()
        seeded = replace(how, dropout_seeds=np.arange(some.individuals, dtype=np.uint64))
        scored = parts.engine.score(_founders(parts, some), written.prompts, written.completions, seeded)
        scored.backward(torch.ones_like(scored.log_probs))
        return time.perf_counter() - start

    return _seconds_a_row(rows, learn)


def _seconds_a_row(rows: _Rows, seconds: Callable[[_Rows], float]) -> float:
    """Measured on a few rows, to warm up and to see how long they take, and then on as many as take some seconds."""
    few = rows.within(_FEW)
    seconds(few)
    some = rows.within(max(_FEW, int(_SECONDS / seconds(few) * few.count)))
    return seconds(some) / some.count


def _written(parts: Parts, rows: _Rows, *, seeds: bool) -> Written:
    examples = list(itertools.islice(itertools.cycle(parts.task.train), rows.prompts))
    drawn = np.arange(rows.count, dtype=np.uint64) if seeds else None
    return Writer(parts.engine, parts.text).write(_founders(parts, rows), examples, parts.max_new_tokens, seeds=drawn)


def _founders(parts: Parts, rows: _Rows) -> Tensor:
    return parts.founder.expand(rows.individuals, -1).contiguous()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
