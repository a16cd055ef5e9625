"""Refiners: how reinforcement learning improves an individual on its own LoRA weights."""

from typing import TYPE_CHECKING

from evolora.lazy import lazily

if TYPE_CHECKING:
    from evolora.refiners.base import Refinement, Refiner
    from evolora.refiners.grpo import GRPORefiner
    from evolora.refiners.options import GRPOConfig, NoRefinerConfig, PPOConfig, RLOOConfig
    from evolora.refiners.policy_gradient import PolicyGradientRefiner
    from evolora.refiners.ppo import PPORefiner
    from evolora.refiners.rloo import RLOORefiner

__getattr__ = lazily(
    __name__,
    {
        "evolora.refiners.base": "Refinement Refiner",
        "evolora.refiners.grpo": "GRPORefiner",
        "evolora.refiners.policy_gradient": "PolicyGradientRefiner",
        "evolora.refiners.ppo": "PPORefiner",
        "evolora.refiners.rloo": "RLOORefiner",
        "evolora.refiners.options": "GRPOConfig NoRefinerConfig PPOConfig RLOOConfig",
    },
)

__all__ = [
    "GRPOConfig",
    "GRPORefiner",
    "NoRefinerConfig",
    "PPOConfig",
    "PPORefiner",
    "PolicyGradientRefiner",
    "RLOOConfig",
    "RLOORefiner",
    "Refinement",
    "Refiner",
]
