"""The built-in rewards by name, and where each is made."""

import importlib
from collections.abc import Callable

from evolora.rewards.base import Reward

RewardFactory = Callable[..., Reward]
"""Makes a reward from its parameters, all of which have keywords. Raises InputError for bad ones."""

BUILTIN_REWARDS: dict[str, str] = {
    "similarity": "evolora.rewards.text:make_similarity",
    "edit": "evolora.rewards.text:make_edit",
    "exact": "evolora.rewards.text:make_exact",
    "contains": "evolora.rewards.text:make_contains",
    "regex": "evolora.rewards.text:make_regex",
    "json": "evolora.rewards.json_object:make_json",
    "json-schema": "evolora.rewards.json_schema:make_json_schema",
    "length": "evolora.rewards.length:make_length",
    "brevity": "evolora.rewards.length:make_brevity",
    "bleu": "evolora.rewards.overlap:make_bleu",
    "chrf": "evolora.rewards.overlap:make_chrf",
    "rouge": "evolora.rewards.overlap:make_rouge",
    "diversity": "evolora.rewards.diversity:make_diversity",
    "sentiment": "evolora.rewards.sentiment:make_sentiment",
    "cosine": "evolora.rewards.embedding:make_cosine",
    "classifier": "evolora.rewards.classification:make_classifier",
    "reward-model": "evolora.rewards.classification:make_reward_model",
    "perplexity": "evolora.rewards.fluency:make_perplexity",
    "verifiable": "evolora.rewards.verifiable:make_verifiable",
    "python": "evolora.rewards.python:make_python",
    "command": "evolora.rewards.command:make_command",
    "http": "evolora.rewards.http:make_http",
}
"""Each name's factory, as module:function; a module is imported when its reward is first asked for, so that nobody
waits for the libraries of a reward that is not used."""

ANY_LENGTH = (
    "contains", "regex", "json-schema", "length", "brevity", "diversity", "sentiment", "classifier", "reward-model",
    "perplexity",
)  # fmt: skip
"""Those that compare no whole completion with the target: how long it is says nothing of what is to be written."""

READ_VARIABLES = ("command", "http")
"""Those that look `env:NAME` up themselves, in the word or the part of an address that it stands in."""


def builtin_factory(name: str) -> RewardFactory:
    """The factory of a built-in reward."""
    module, _, attribute = BUILTIN_REWARDS[name].partition(":")
    factory: RewardFactory = getattr(importlib.import_module(module), attribute)
    return factory
