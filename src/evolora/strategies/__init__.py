"""Strategies: how the next population is proposed, behind ask and tell."""

from evolora.strategies.base import State, Strategy
from evolora.strategies.eggroll import Eggroll
from evolora.strategies.es import ESConfig, EvolutionStrategy
from evolora.strategies.ga import GAConfig, GeneticAlgorithm
from evolora.strategies.islands import Islands
from evolora.strategies.none import RefinerAlone
from evolora.strategies.pbt import PBTConfig, PopulationBasedTraining
from evolora.strategies.perturbation import PerturbationConfig, RandomPerturbation
from evolora.strategies.sep_cmaes import SepCMAES, SepCMAESConfig, sep_cma

__all__ = [
    "ESConfig",
    "Eggroll",
    "EvolutionStrategy",
    "GAConfig",
    "GeneticAlgorithm",
    "Islands",
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
