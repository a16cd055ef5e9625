"""A function of the user's own."""

from evolora.rewards.base import Reward
from evolora.rewards.loading import load_function


def make_python(*, function: str) -> Reward:
    """The function at `path.py:function` or `package.module:function`, with TRL's signature (see `Reward`). What it
    returns is its own; InputError when it cannot be loaded.

    >>> make_python(function="evolora.rewards:exact")(completions=["4"], target=["4"])
    [1.0]
    """
    return load_function(function)
