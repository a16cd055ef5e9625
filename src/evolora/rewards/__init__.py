"""Reward functions: the signature they share, the built-in ones, and how one's own are found."""

from evolora.rewards.base import (
    FailedReward,
    OnError,
    Reward,
    RewardScorer,
    Scores,
    TrainerState,
    check_signature,
    reward_name,
)
from evolora.rewards.json_object import json_object
from evolora.rewards.loading import BUILTIN_REWARDS, load_function, load_reward, register_reward
from evolora.rewards.sentiment import sentiment
from evolora.rewards.text import exact, similarity

__all__ = [
    "BUILTIN_REWARDS",
    "FailedReward",
    "OnError",
    "Reward",
    "RewardScorer",
    "Scores",
    "TrainerState",
    "check_signature",
    "exact",
    "json_object",
    "load_function",
    "load_reward",
    "register_reward",
    "reward_name",
    "sentiment",
    "similarity",
]
