"""The mutation scale that suits a model: found before the first generation, on a few training prompts."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from evolora.errors import CheckpointError
from evolora.files import read_checked, write_checked
from evolora.models.cost import Cost
from evolora.population.writing import Writer
from evolora.rng import keyed_generator
from evolora.runs.assembled import Parts
from evolora.runs.identity import check_run
from evolora.strategies.operators import MUTATIONS
from evolora.strategies.options import AUTO, GAConfig, MutationName
from evolora.tasks.task import drawn_order

MUTATION_SCALE = "mutation_scale.json"

PROMPTS, MUTANTS = 8, 2
# Where the ladder stands at first: about the scale of each kind that changes what the bundled model writes as much as
# 0.02 does of the first. Its rungs lie a factor of 2 apart, one below.
_USUAL: dict[MutationName, float] = {"gaussian": 0.02, "module": 0.03, "masked": 0.06, "relative": 0.8, "svd": 0.3}
_RUNGS, _BELOW = 4, 1
# How often it is moved by its length where all of it changes too much, or too little.
_MOVES = 2


def with_mutation_scale(parts: Parts, folder: Path, run: str) -> Parts:
    """The parts of the run whose id is `run`, with a number where its mutation scale is to be found: the one that its
    folder keeps, or that is found now and kept. Raises InputError for the file of another run."""
    strategy = parts.config.strategy
    if not isinstance(strategy, GAConfig) or strategy.mutation_scale != AUTO:
        return parts
    try:
        kept = read_checked(folder / MUTATION_SCALE)
    except CheckpointError as fault:
        parts.view.say(f"{fault}; it is found again")
        kept = None
    if kept is not None:
        check_run(folder / MUTATION_SCALE, kept["run"], run)
        scale, cost = float(kept["scale"]), Cost(kept["tokens"], kept["flops"], kept["seconds"])
    else:
        scale, rungs, cost = find_scale(parts, strategy)
        content = {"run": run, "scale": scale, "ladder": rungs}
        spent = {"tokens": cost.tokens, "flops": cost.flops, "seconds": cost.seconds}
        write_checked(folder / MUTATION_SCALE, {**content, **spent})
        parts.view.say(_found(scale, rungs, cost, strategy))
    config = parts.config.replaced({"strategy": {"mutation_scale": scale}})
    return replace(parts, config=config, before=cost)


def find_scale(parts: Parts, strategy: GAConfig) -> tuple[float, list[tuple[float, float]], Cost]:
    """The scale at which `strategy.mutation_changes` of the greedy completions change; what was measured, as (scale,
    changed share); and the cost."""
    parts.reporter.begin("finding the mutation scale")
    start = time.perf_counter()
    lowest, factor = _USUAL[strategy.mutation] / 2**_BELOW, 2**_RUNGS
    rungs: list[tuple[float, float]] = []
    cost = Cost()
    for _ in range(1 + _MOVES):
        scales = [lowest * 2**rung for rung in range(_RUNGS)]
        shares, spent = changed_shares(parts, strategy, scales)
        rungs, cost = sorted([*rungs, *zip(scales, shares, strict=True)]), cost + spent
        # By all that is known: where one ladder ends the next begins, and it may lie in between.
        if rungs[0][1] > strategy.mutation_changes:
            lowest /= factor
        elif max(share for _, share in rungs) < strategy.mutation_changes:
            lowest *= factor
        else:
            break
    return crossing(rungs, strategy.mutation_changes), rungs, cost + Cost(seconds=time.perf_counter() - start)


def changed_shares(parts: Parts, strategy: GAConfig, scales: Sequence[float]) -> tuple[list[float], Cost]:
    """Which share of the founder's greedy completions its mutants change, for each scale, and the cost. The mutants of
    all scales have the same noise, and all are written in one batch, as many at once as the run has individuals."""
    seed, engine = parts.config.run.seed, parts.config.engine
    order = drawn_order(parts.task.train, seed, "mutation scale")[:PROMPTS]
    examples = [parts.task.train[row] for row in order]
    writer = Writer(parts.engine, parts.text)
    rows, each = engine.rows_per_slice or len(examples), len(examples)

    def written(genomes: torch.Tensor) -> tuple[list[list[int]], Cost]:
        found = writer.write_in_slices(genomes, examples, parts.max_new_tokens, rows=rows, reporter=parts.reporter)
        return found.ids, found.cost

    before, cost = written(parts.founder[None])
    wanted = [(scale, mutant) for scale in scales for mutant in range(MUTANTS)]
    changed: list[bool] = []
    for first in range(0, len(wanted), strategy.pop):
        some = wanted[first : first + strategy.pop]
        mutants = MUTATIONS[strategy.mutation](
            parts.founder.repeat(len(some), 1),
            parts.layout,
            torch.tensor([scale for scale, _ in some], dtype=torch.float64),
            [keyed_generator(seed, "mutation scale", mutant) for _, mutant in some],
        )
        ids, spent = written(mutants)
        changed += [own != before[row % each] for row, own in enumerate(ids)]
        cost += spent
    shares = torch.tensor(changed, dtype=torch.float64).reshape(len(scales), -1).mean(1)
    return shares.tolist(), cost


def crossing(rungs: Sequence[tuple[float, float]], share: float) -> float:
    """At which scale the changed share comes to be so large, interpolated in the logarithm of the scale; the first or
    the last scale where that lies beyond.

    >>> round(crossing([(0.01, 0.0), (0.02, 0.1), (0.04, 0.5)], 0.3), 4)
    0.0283
    """
    (scale, reached), *others = rungs
    for following, changed in others:
        if changed >= share > reached:
            part = (share - reached) / (changed - reached)
            return math.exp(math.log(scale) + part * math.log(following / scale))
        scale, reached = following, max(changed, reached)
    return rungs[0][0] if rungs[0][1] >= share else rungs[-1][0]


def check_mutation_scale(folder: Path, run: str) -> None:
    """Raise CheckpointError where what is kept of it is altered, InputError where it is another run's."""
    if (kept := read_checked(folder / MUTATION_SCALE)) is not None:
        check_run(folder / MUTATION_SCALE, kept["run"], run)


def _found(scale: float, rungs: Sequence[tuple[float, float]], cost: Cost, strategy: GAConfig) -> str:
    ladder = ", ".join(f"{share:.0%} at {each:.2g}" for each, share in rungs)
    near = "" if rungs[0][1] < strategy.mutation_changes <= max(share for _, share in rungs) else "nearest "
    return (
        f"mutation scale {scale:.3g}, {near}to change {strategy.mutation_changes:.0%} of the greedy completions "
        f"({ladder}; {cost.tokens:,} tokens)"
    )
