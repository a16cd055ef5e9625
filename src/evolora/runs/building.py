"""The loop of a run from its options: strategy, refiner, evaluator."""

from dataclasses import fields
from typing import TypeVar

from evolora.evolution.loop import Evolution, LoopConfig
from evolora.population.evaluation import Evaluator
from evolora.population.lineage import Lineage
from evolora.population.remembering import RememberingEvaluator
from evolora.refiners import GRPOConfig, GRPORefiner, PPOConfig, PPORefiner, Refiner, RLOOConfig, RLOORefiner
from evolora.runs.assembly import Parts
from evolora.runs.config import RunConfig
from evolora.strategies import (
    Eggroll,
    ESConfig,
    EvolutionStrategy,
    GAConfig,
    GeneticAlgorithm,
    Islands,
    PBTConfig,
    PerturbationConfig,
    PopulationBasedTraining,
    RandomPerturbation,
    RefinerAlone,
    SepCMAES,
    SepCMAESConfig,
    Strategy,
)

Part = TypeVar(
    "Part",
    GAConfig,
    PBTConfig,
    ESConfig,
    SepCMAESConfig,
    PerturbationConfig,
    PPOConfig,
    GRPOConfig,
    RLOOConfig,
    LoopConfig,
)


def build_evolution(parts: Parts, lineage: Lineage) -> Evolution:
    """The loop of a run, before its first generation."""
    config = parts.config
    strategy: Strategy
    if config.strategy == "none":
        strategy = RefinerAlone(parts.founder)
    elif config.strategy == "pbt":
        strategy = PopulationBasedTraining(parts.founder, _part(PBTConfig, config), seed=config.seed)
    elif config.strategy == "es":
        strategy = EvolutionStrategy(parts.founder, _part(ESConfig, config), seed=config.seed)
    elif config.strategy == "eggroll":
        strategy = Eggroll(parts.founder, parts.layout, _part(ESConfig, config), seed=config.seed)
    elif config.strategy == "sep-cmaes":
        strategy = SepCMAES(parts.founder, _part(SepCMAESConfig, config), seed=config.seed)
    elif config.strategy == "random":
        strategy = RandomPerturbation(parts.founder, _part(PerturbationConfig, config), seed=config.seed)
    else:
        kind = Islands if config.islands > 1 else GeneticAlgorithm
        strategy = kind(
            parts.founder,
            parts.layout,
            _part(GAConfig, config),
            seed=config.seed,
        )
    return Evolution(
        strategy=strategy,
        refiner=_refiner(parts),
        evaluator=_evaluator(parts),
        task=parts.task,
        lineage=lineage,
        config=_part(LoopConfig, config),
    )


def _refiner(parts: Parts) -> Refiner | None:
    config, own = parts.config, (parts.engine, parts.text, parts.scorer)
    dropout = parts.lora.lora_dropout
    if config.refiner == "ppo":
        return PPORefiner(*own, _part(PPOConfig, config), seed=config.seed, dropout=dropout)
    if config.refiner == "grpo":
        return GRPORefiner(*own, _part(GRPOConfig, config), seed=config.seed, dropout=dropout)
    if config.refiner == "rloo":
        return RLOORefiner(*own, _part(RLOOConfig, config), seed=config.seed, dropout=dropout)
    return None


def _evaluator(parts: Parts) -> Evaluator:
    return RememberingEvaluator(parts.evaluator) if parts.config.remember else parts.evaluator


def _part(kind: type[Part], config: RunConfig) -> Part:
    """A part's options, which have the same names as the run's."""
    return kind(**{field.name: getattr(config, field.name) for field in fields(kind)})
