"""evolora: evolve and reinforce LoRA adapters of a language model against any reward you can measure.

The names here are the door; all others are in their rooms, which docs/architecture.md describes.
"""

import os
from typing import TYPE_CHECKING, Any

from evolora.lazy import lazily

if TYPE_CHECKING:
    from evolora.errors import CheckpointError, EngineError, InputError, RewardError
    from evolora.refiners.options import GRPOConfig, PPOConfig, RLOOConfig
    from evolora.rewards import Reward, register_reward
    from evolora.runs.api import evolve, resume
    from evolora.runs.callbacks import Callback
    from evolora.runs.run import Result
    from evolora.runs.seeds.run import SeedsResult
    from evolora.runs.stopping import Interrupted
    from evolora.strategies.options import ESConfig, GAConfig

    __version__: str

# On some processors (AMD's without AVX-512) the last bits of MKL's narrow products depend on where in memory their
# operands lie, and with them whether a resumed run or another worker comes to the same bits. Told so before its first
# product, MKL computes alike wherever they lie; it takes no longer.
os.environ.setdefault("MKL_CBWR", "AUTO")

_named = lazily(
    __name__,
    {
        "evolora.errors": "CheckpointError EngineError InputError RewardError",
        "evolora.refiners.options": "GRPOConfig PPOConfig RLOOConfig",
        "evolora.rewards": "register_reward Reward",
        "evolora.runs.api": "evolve resume",
        "evolora.runs.callbacks": "Callback",
        "evolora.runs.run": "Result",
        "evolora.runs.seeds.run": "SeedsResult",
        "evolora.runs.stopping": "Interrupted",
        "evolora.strategies.options": "ESConfig GAConfig",
    },
)


def __getattr__(name: str) -> Any:
    if name != "__version__":
        return _named(name)
    from importlib.metadata import version  # which takes longer than all the rest here

    return version("evolora")


__all__ = [
    "Callback",
    "CheckpointError",
    "ESConfig",
    "EngineError",
    "GAConfig",
    "GRPOConfig",
    "InputError",
    "Interrupted",
    "PPOConfig",
    "RLOOConfig",
    "Result",
    "Reward",
    "RewardError",
    "SeedsResult",
    "evolve",
    "register_reward",
    "resume",
]
