"""A function of one's own as a term with options."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from evolora.errors import InputError
from evolora.rewards.base import FailedReward, Reward, reward_name


def make_python(*, function: str, cache: bool = False) -> Reward:
    """The function at `path.py:function` or `package.module:function`.

    With `cache` its values may be kept, under the content of its file: it says that the function depends on nothing but
    the prompt, the completion and the data's columns. Raises InputError for a place where there is no function, and for
    `cache` with a function that is in no file.
    """
    from evolora.rewards.loading import load_function

    reward = load_function(function)
    if not cache:
        return reward
    path = Path(function.rpartition(":")[0])
    if not path.is_file():
        raise InputError(f"reward python: cache is true for {function}, expected path.py:function, a file's content.")
    return _Versioned(reward, hashlib.sha256(path.read_bytes()).hexdigest())


class _Versioned:
    """A function with a version, which it need not carry itself."""

    def __init__(self, reward: Reward, version: str) -> None:
        functools.update_wrapper(self, reward)
        self.reward = reward
        self.__name__ = reward_name(reward)
        self.version = version

    def __call__(self, **keywords: Sequence[object]) -> Sequence[float | FailedReward | None]:
        return self.reward(**keywords)
