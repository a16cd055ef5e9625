"""Refiners: how reinforcement learning improves an individual on its own LoRA weights."""

from evolora.refiners.base import Refinement, Refiner
from evolora.refiners.grpo import GRPOConfig, GRPORefiner
from evolora.refiners.policy_gradient import PolicyGradientRefiner
from evolora.refiners.ppo import PPOConfig, PPORefiner
from evolora.refiners.rloo import RLOOConfig, RLOORefiner

__all__ = [
    "GRPOConfig",
    "GRPORefiner",
    "PPOConfig",
    "PPORefiner",
    "PolicyGradientRefiner",
    "RLOOConfig",
    "RLOORefiner",
    "Refinement",
    "Refiner",
]
