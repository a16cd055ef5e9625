"""evolora: evolve and reinforce LoRA adapters of a language model against any reward you can measure.

The names here are the public ones; docs/architecture.md says how they fit together.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from evolora.lazy import lazily

if TYPE_CHECKING:
    from evolora.engine.base import Engine
    from evolora.engine.choose import choose_engine
    from evolora.engine.text import Text
    from evolora.errors import CheckpointError, InputError, RewardError
    from evolora.evolution.loop import Evolution
    from evolora.evolution.options import LoopConfig
    from evolora.models.base import BaseModel, load_base
    from evolora.models.genome import GenomeLayout
    from evolora.models.lora import lora_config, lora_layout
    from evolora.population.evaluation import Evaluation, Evaluator, LocalEvaluator
    from evolora.population.lineage import Lineage
    from evolora.population.population import Hyperparameters, Individual, Population
    from evolora.refiners import GRPORefiner, PPORefiner, Refinement, Refiner, RLOORefiner
    from evolora.refiners.options import GRPOConfig, PPOConfig, RLOOConfig
    from evolora.rewards import Reward, RewardScorer, register_reward
    from evolora.runs.api import evolve, resume
    from evolora.runs.options import RunOptions, make_options
    from evolora.runs.run import Interrupted, Result
    from evolora.strategies import (
        Eggroll,
        EvolutionStrategy,
        GeneticAlgorithm,
        Islands,
        PopulationBasedTraining,
        RandomPerturbation,
        RefinerAlone,
        SepCMAES,
        Strategy,
    )
    from evolora.strategies.options import (
        EggrollConfig,
        ESConfig,
        GAConfig,
        PBTConfig,
        PerturbationConfig,
        SepCMAESConfig,
    )
    from evolora.tasks.task import Example, Task, load_task

__version__ = version("evolora")

__getattr__ = lazily(
    __name__,
    {
        "evolora.engine.base": "Engine",
        "evolora.engine.choose": "choose_engine",
        "evolora.engine.text": "Text",
        "evolora.errors": "CheckpointError InputError RewardError",
        "evolora.evolution.loop": "Evolution",
        "evolora.evolution.options": "LoopConfig",
        "evolora.models.base": "BaseModel load_base",
        "evolora.models.genome": "GenomeLayout",
        "evolora.models.lora": "lora_config lora_layout",
        "evolora.population.evaluation": "Evaluation Evaluator LocalEvaluator",
        "evolora.population.lineage": "Lineage",
        "evolora.population.population": "Hyperparameters Individual Population",
        "evolora.refiners.options": "GRPOConfig PPOConfig RLOOConfig",
        "evolora.refiners": "GRPORefiner PPORefiner Refinement Refiner RLOORefiner",
        "evolora.rewards": "register_reward Reward RewardScorer",
        "evolora.runs.options": "make_options RunOptions",
        "evolora.runs.api": "evolve resume",
        "evolora.runs.run": "Interrupted Result",
        "evolora.strategies": "Eggroll EvolutionStrategy GeneticAlgorithm Islands PopulationBasedTraining "
        "RandomPerturbation RefinerAlone SepCMAES Strategy",
        "evolora.strategies.options": "EggrollConfig ESConfig GAConfig PBTConfig PerturbationConfig SepCMAESConfig",
        "evolora.tasks.task": "Example load_task Task",
    },
)

__all__ = [
    "BaseModel",
    "CheckpointError",
    "ESConfig",
    "Eggroll",
    "EggrollConfig",
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
    "RunOptions",
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
    "make_options",
    "register_reward",
    "resume",
]
