"""Strategies: how the next population is proposed, behind ask and tell."""

from typing import TYPE_CHECKING

from evolora.lazy import lazily

if TYPE_CHECKING:
    from evolora.strategies.base import State, Strategy
    from evolora.strategies.eggroll import Eggroll
    from evolora.strategies.es import EvolutionStrategy
    from evolora.strategies.ga import GeneticAlgorithm
    from evolora.strategies.islands import Islands
    from evolora.strategies.none import RefinerAlone
    from evolora.strategies.options import (
        EggrollConfig,
        ESConfig,
        GAConfig,
        NoStrategyConfig,
        PBTConfig,
        PerturbationConfig,
        SepCMAESConfig,
    )
    from evolora.strategies.pbt import PopulationBasedTraining
    from evolora.strategies.perturbation import RandomPerturbation
    from evolora.strategies.sep_cmaes import SepCMAES, sep_cma

__getattr__ = lazily(
    __name__,
    {
        "evolora.strategies.base": "State Strategy",
        "evolora.strategies.eggroll": "Eggroll",
        "evolora.strategies.es": "EvolutionStrategy",
        "evolora.strategies.ga": "GeneticAlgorithm",
        "evolora.strategies.islands": "Islands",
        "evolora.strategies.none": "RefinerAlone",
        "evolora.strategies.pbt": "PopulationBasedTraining",
        "evolora.strategies.perturbation": "RandomPerturbation",
        "evolora.strategies.sep_cmaes": "sep_cma SepCMAES",
        "evolora.strategies.options": "EggrollConfig ESConfig GAConfig NoStrategyConfig PBTConfig PerturbationConfig "
        "SepCMAESConfig",
    },
)

__all__ = [
    "ESConfig",
    "Eggroll",
    "EggrollConfig",
    "EvolutionStrategy",
    "GAConfig",
    "GeneticAlgorithm",
    "Islands",
    "NoStrategyConfig",
    "PBTConfig",
    "PerturbationConfig",
    "PopulationBasedTraining",
    "RandomPerturbation",
    "RefinerAlone",
    "SepCMAES",
    "SepCMAESConfig",
    "State",
    "Strategy",
    "sep_cma",
]
