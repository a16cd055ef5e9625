"""evolora: evolve and reinforce LoRA adapters of a language model against any reward you can measure.

The names here are the door; all others are in their rooms, which docs/architecture.md describes.
"""

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
