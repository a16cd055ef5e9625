"""Refiners: how reinforcement learning improves an individual on its own LoRA weights."""

from evolora.refiners.base import Refinement, Refiner
from evolora.refiners.policy_gradient import PPOConfig, PPORefiner

__all__ = ["PPOConfig", "PPORefiner", "Refinement", "Refiner"]
