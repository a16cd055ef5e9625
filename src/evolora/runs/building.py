"""The loop of a run from its options: strategy, refiner, evaluator."""

from evolora.engine.canary import Canary
from evolora.evolution.allowance import SHARE, Allowance
from evolora.evolution.loop import Evolution
from evolora.evolution.small_probabilities import HitChances
from evolora.population.evaluation import Evaluator
from evolora.population.lineage import Lineage
from evolora.population.remembering import RememberingEvaluator
from evolora.runs.assembled import Parts
from evolora.runs.options import RunOptions


def build_evolution(parts: Parts, lineage: Lineage) -> Evolution:
    """The loop of a run, before its first generation."""
    config, seed = parts.config, parts.config.run.seed
    evolution = Evolution(
        strategy=config.strategy.build(
            parts.founder,
            parts.layout,
            seed=seed,
            others=None if parts.initial is None else parts.initial[1:],
            summands=len(parts.summands),
        ),
        refiner=config.refiner.build(
            parts.engine,
            parts.text,
            parts.scorer,
            seed=seed,
            dropout=parts.lora.lora_dropout,
            reporter=parts.reporter,
            fitness=parts.fitness,
            reference=None if parts.initial is None else parts.founder,
        ),
        evaluator=_evaluator(parts),
        task=parts.task,
        lineage=lineage,
        config=config.evolution,
        summands=parts.summands,
        chances=_chances(parts) if config.evolution.rare_hits else None,
        canary=_canary(parts) if config.engine.canary else None,
        reporter=parts.reporter,
        allowance=allowance(config),
        seconds=parts.before.seconds,
    )
    evolution.costs.add("evaluation", parts.before)
    return evolution


def allowance(config: RunOptions) -> Allowance:
    """What the end of a run may cost, for its validation and again for its test."""
    budget = config.budget
    return Allowance(budget.seconds, budget.tokens, budget.flops).times(SHARE)


def _chances(parts: Parts) -> HitChances:
    rows = parts.config.engine.rows_per_slice
    assert rows is not None  # resolved
    return HitChances(parts.engine, parts.text, rows)


def _canary(parts: Parts) -> Canary:
    seed, name = parts.config.run.seed, f"{parts.config.engine.type} engine"
    return Canary(
        parts.engine, parts.base.model, parts.founder, parts.text, seed=seed, name=name, prefix=parts.kept_prefix
    )


def _evaluator(parts: Parts) -> Evaluator:
    remembering = parts.config.evolution.remember
    return parts.judging(RememberingEvaluator(parts.evaluator) if remembering else parts.evaluator)
