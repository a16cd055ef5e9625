"""evolora: evolve and reinforce LoRA adapters of a language model against any reward you can measure.

The names here are the door; all others are in their rooms, which docs/architecture.md describes.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from evolora.lazy import lazily

if TYPE_CHECKING:
    from evolora.errors import CheckpointError, InputError, RewardError
    from evolora.refiners.options import GRPOConfig, PPOConfig, RLOOConfig
    from evolora.rewards import Reward, register_reward
    from evolora.runs.api import evolve, resume
    from evolora.runs.run import Interrupted, Result
    from evolora.strategies.options import ESConfig, GAConfig

__version__ = version("evolora")

__getattr__ = lazily(
    __name__,
    {
        "evolora.errors": "CheckpointError InputError RewardError",
        "evolora.refiners.options": "GRPOConfig PPOConfig RLOOConfig",
        "evolora.rewards": "register_reward Reward",
        "evolora.runs.api": "evolve resume",
        "evolora.runs.run": "Interrupted Result",
        "evolora.strategies.options": "ESConfig GAConfig",
    },
)

__all__ = [
    "CheckpointError",
    "ESConfig",
    "GAConfig",
    "GRPOConfig",
    "InputError",
    "Interrupted",
    "PPOConfig",
    "RLOOConfig",
    "Result",
    "Reward",
    "RewardError",
    "evolve",
    "register_reward",
    "resume",
]
