"""evolora: evolve and reinforce LoRA adapters of a language model against any reward you can measure.

The names here are the public ones; docs/architecture.md says how they fit together.
"""

from importlib.metadata import version

from evolora.config import RunConfig
from evolora.distillation import Distiller
from evolora.errors import CheckpointError, InputError, RewardError
from evolora.evaluation import Evaluation, Evaluator, LocalEvaluator
from evolora.evolution import Evolution, LoopConfig
from evolora.genome import GenomeLayout
from evolora.lineage import Lineage
from evolora.model import BaseModel, load_base, lora_config, lora_layout
from evolora.population import Hyperparameters, Individual, Population
from evolora.population_model import PopulationModel
from evolora.refiners import (
    GRPOConfig,
    GRPORefiner,
    PPOConfig,
    PPORefiner,
    Refinement,
    Refiner,
    RLOOConfig,
    RLOORefiner,
)
from evolora.rewards import Reward, RewardScorer, register_reward
from evolora.run import Interrupted, Result, evolve, resume
from evolora.sensitivity import OutputSensitivity
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
from evolora.task import Example, Task, load_task

__version__ = version("evolora")

__all__ = [
    "BaseModel",
    "CheckpointError",
    "Distiller",
    "ESConfig",
    "Eggroll",
    "Evaluation",
    "Evaluator",
    "Evolution",
    "EvolutionStrategy",
    "Example",
    "GAConfig",
    "GRPOConfig",
    "GRPORefiner",
    "GeneticAlgorithm",
    "GenomeLayout",
    "Hyperparameters",
    "Individual",
    "InputError",
    "Interrupted",
    "Islands",
    "Lineage",
    "LocalEvaluator",
    "LoopConfig",
    "OutputSensitivity",
    "PBTConfig",
    "PPOConfig",
    "PPORefiner",
    "PerturbationConfig",
    "Population",
    "PopulationBasedTraining",
    "PopulationModel",
    "RLOOConfig",
    "RLOORefiner",
    "RandomPerturbation",
    "Refinement",
    "Refiner",
    "RefinerAlone",
    "Result",
    "Reward",
    "RewardError",
    "RewardScorer",
    "RunConfig",
    "SepCMAES",
    "SepCMAESConfig",
    "Strategy",
    "Task",
    "evolve",
    "load_base",
    "load_task",
    "lora_config",
    "lora_layout",
    "register_reward",
    "resume",
]
