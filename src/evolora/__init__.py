"""evolora: evolve and reinforce LoRA adapters of a language model against any reward you can measure.

The names here are the public ones; docs/architecture.md says how they fit together.
"""

from importlib.metadata import version

from evolora.engine.base import Engine
from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.errors import CheckpointError, InputError, RewardError
from evolora.evolution.loop import Evolution, LoopConfig
from evolora.models.base import BaseModel, load_base
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout
from evolora.population.evaluation import Evaluation, Evaluator, LocalEvaluator
from evolora.population.lineage import Lineage
from evolora.population.population import Hyperparameters, Individual, Population
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
from evolora.runs.config import RunConfig
from evolora.runs.run import Interrupted, Result, evolve, resume
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
from evolora.tasks.task import Example, Task, load_task

__version__ = version("evolora")

__all__ = [
    "BaseModel",
    "CheckpointError",
    "ESConfig",
    "Eggroll",
    "Engine",
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
    "PBTConfig",
    "PPOConfig",
    "PPORefiner",
    "PerturbationConfig",
    "Population",
    "PopulationBasedTraining",
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
    "Text",
    "choose_engine",
    "evolve",
    "load_base",
    "load_task",
    "lora_config",
    "lora_layout",
    "register_reward",
    "resume",
]
