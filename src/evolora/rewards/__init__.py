"""Reward functions: the signature they share, the built-in ones, how one's own are found, and how they are called."""

from typing import TYPE_CHECKING

from evolora.lazy import lazily

# Of the names of their modules, which would stand in their place once anybody has imported those.
from evolora.rewards.json_object import json_object
from evolora.rewards.sentiment import sentiment

if TYPE_CHECKING:
    from evolora.rewards.base import FailedReward, Reward, TrainerState, check_signature, reward_name
    from evolora.rewards.context import RewardContext
    from evolora.rewards.loading import known_rewards, load_function, load_reward, parse_reward, register_reward
    from evolora.rewards.registry import BUILTIN_REWARDS
    from evolora.rewards.scorer import OnError, RewardScorer, Scores
    from evolora.rewards.scoring import CombinedScorer, Scorer, ScoringOptions, function_scorer, make_scorer
    from evolora.rewards.text import exact, similarity

__getattr__ = lazily(
    __name__,
    {
        "evolora.rewards.base": "check_signature FailedReward Reward reward_name TrainerState",
        "evolora.rewards.context": "RewardContext",
        "evolora.rewards.loading": "known_rewards load_function load_reward parse_reward register_reward",
        "evolora.rewards.registry": "BUILTIN_REWARDS",
        "evolora.rewards.scorer": "OnError RewardScorer Scores",
        "evolora.rewards.scoring": "CombinedScorer function_scorer make_scorer Scorer ScoringOptions",
        "evolora.rewards.text": "exact similarity",
    },
)

__all__ = [
    "BUILTIN_REWARDS",
    "CombinedScorer",
    "FailedReward",
    "OnError",
    "Reward",
    "RewardContext",
    "RewardScorer",
    "Scorer",
    "Scores",
    "ScoringOptions",
    "TrainerState",
    "check_signature",
    "exact",
    "function_scorer",
    "json_object",
    "known_rewards",
    "load_function",
    "load_reward",
    "make_scorer",
    "parse_reward",
    "register_reward",
    "reward_name",
    "sentiment",
    "similarity",
]
