"""What a run's winner has kept of the base: drift, KL, pass@k, and how the finalists stand in fitness and drift."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from evolora.evolution.loop import Evolution
from evolora.fitness.judging import ByCompletion, WithDrift
from evolora.fitness.pass_at_k import chance
from evolora.models.cost import Cost
from evolora.population.drift import SENTENCES
from evolora.population.population import Individual, Population
from evolora.population.writing import Writer, Written, rewarded
from evolora.rewards import Scorer
from evolora.rng import keyed_seed
from evolora.runs.assembled import Parts
from evolora.tasks.task import Example, key_of

# What reading the sentences may cost of the operations of the whole run, and how many are read in any case.
_SHARE, _LEAST = 0.02, 20
# Test prompts whose completions the KL is measured on.
_KL_PROMPTS = 32
# What a completion must earn to be right.
_RIGHT = 1.0


def measure_kept(
    parts: Parts, evolution: Evolution, winner: Population, validation: float, tested: Sequence[Example]
) -> tuple[dict[str, Any], Cost]:
    """The summary's entry, and what it cost; nothing where that is switched off."""
    config = parts.config
    if not config.evolution.kept and not config.evolution.pass_samples:
        return {}, Cost()
    parts.reporter.begin("measuring what was kept")
    start = time.perf_counter()
    entry: dict[str, Any] = {"base": {}, "winner": {}}
    cost = Cost()
    individuals, rows = _finalists(evolution, winner, validation)
    if config.evolution.kept and (drift := parts.drift(_affordable(parts, evolution, len(rows)))) is not None:
        drifts, spent = drift.of(individuals.genomes)
        cost += spent + drift.cost
        for row, value in zip(rows, drifts, strict=True):
            row["drift"] = value
        for row in rows:
            row["dominated"] = any(_dominates(other, row) for other in rows)
        written = _sampled(parts, winner.genomes[0], tested[:_KL_PROMPTS], 1)
        kl, spent = drift.along(winner.genomes[0], written.prompts, written.ids)
        cost += written.cost + spent
        entry |= {"sentences": drift.sentences, "finalists": rows}
        entry["base"] |= {"drift": drifts[0], "kl": 0.0}
        entry["winner"] |= {"drift": drifts[_row_of(individuals, winner)], "kl": kl}
    if (samples := config.evolution.pass_samples) and parts.voted is None:
        for who, genome in (("base", parts.founder), ("winner", winner.genomes[0])):
            found, spent = _passes(parts, genome, tested, samples)
            entry[who] |= found
            cost += spent
    return ({"kept": entry} if entry["winner"] else {}), cost + Cost(seconds=time.perf_counter() - start)


def _finalists(evolution: Evolution, winner: Population, validation: float) -> tuple[Population, list[dict[str, Any]]]:
    """The base, the finalists and the winner, each once, the base first; and who they are and what they are worth on
    the validation prompts."""
    everybody, rows = winner.select([]), list[dict[str, Any]]()
    for population, evaluation in evolution.finals:
        rewards = evaluation.mean_rewards
        for row, individual in enumerate(population.individuals):
            if individual.id not in _ids(everybody):
                everybody = everybody.join(population.select([row]))
                rows.append(_entry(individual, float(evaluation.fitness[row]), float(rewards[row])))
    if winner.individuals[0].id not in _ids(everybody):
        everybody = everybody.join(winner)
        rows.append(_entry(winner.individuals[0], validation, float("nan")))
    return everybody, rows


def _ids(population: Population) -> list[int]:
    return [one.id for one in population.individuals]


def _entry(individual: Individual, fitness: float, reward: float) -> dict[str, Any]:
    return {"id": individual.id, "operator": individual.operator, "fitness": fitness, "reward": reward}


def _row_of(everybody: Population, winner: Population) -> int:
    return _ids(everybody).index(winner.individuals[0].id)


def _dominates(other: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether another is at least as fit and as near to the base, and better in one of both."""
    fitter, nearer = float(other["fitness"] - row["fitness"]), float(row["drift"] - other["drift"])
    return min(fitter, nearer) >= 0 < max(fitter, nearer)


def _affordable(parts: Parts, evolution: Evolution, individuals: int) -> int:
    """How many sentences are read: by the operations that the run has spent, so that a resumed run reads as many."""
    lengths = [len(ids) for ids in parts.text.encode(SENTENCES)]
    whole = (individuals + 1) * parts.engine.size.forward(lengths)
    return max(_LEAST, min(len(SENTENCES), int(len(SENTENCES) * _SHARE * evolution.costs.flops / whole)))


def _sampled(parts: Parts, genome: Tensor, examples: Sequence[Example], samples: int) -> Written:
    """So many samples of each example at temperature 1, one example's after another's: the same draws for whoever
    writes."""
    drawn = [example for example in examples for _ in range(samples)]
    seeds = [
        keyed_seed(parts.config.run.seed, "kept", key_of(example), number)
        for example in examples
        for number in range(samples)
    ]
    return Writer(parts.engine, parts.text).write_in_slices(
        genome[None],
        drawn,
        parts.max_new_tokens,
        rows=parts.config.engine.rows_per_slice or len(drawn),
        seeds=np.array(seeds, np.uint64),
        temperature=1.0,
    )


def _passes(parts: Parts, genome: Tensor, tested: Sequence[Example], samples: int) -> tuple[dict[str, float], Cost]:
    """pass@1 and pass@k, k the number of samples, on the test prompts."""
    written = _sampled(parts, genome, tested, samples)
    right = (rewarded(_scorer(parts), written).rewards >= _RIGHT).reshape(-1, samples).sum(1)
    return {
        f"pass@{k}": float(np.mean([chance(samples, int(count), k) for count in right]))
        for k in dict.fromkeys((1, samples))
    }, written.cost


def _scorer(parts: Parts) -> Scorer:
    """What says whether a completion is right: the fitness, where it judges completions, else the reward."""
    fitness = parts.fitness.fitness if isinstance(parts.fitness, WithDrift) else parts.fitness
    return fitness.scorer if isinstance(fitness, ByCompletion) else parts.scorer
