"""Strategies: how the next population is proposed, behind ask and tell."""

from evolora.strategies.base import State, Strategy
from evolora.strategies.ga import GAConfig, GeneticAlgorithm
from evolora.strategies.islands import Islands
from evolora.strategies.none import RefinerAlone
from evolora.strategies.pbt import PBTConfig, PopulationBasedTraining

__all__ = [
    "GAConfig",
    "GeneticAlgorithm",
    "Islands",
    "PBTConfig",
    "PopulationBasedTraining",
    "RefinerAlone",
    "State",
    "Strategy",
]
