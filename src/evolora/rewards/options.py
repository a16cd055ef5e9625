"""Options of the reward, and of how it is called."""

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from evolora.errors import InputError
from evolora.options import Options, option

HUMAN = "human"
"""The reward that asks people: no function, a run's own rating page."""


class RewardOptions(Options):
    """What completions earn."""

    prefixed: ClassVar[bool] = True

    name: str | None = option(
        None,
        "what completions earn: a built-in reward, path.py:function, package.module:function, or several combined, "
        "such as 'chrf + 0.2 * brevity(limit=8)' (docs/rewards.md); human asks people on a page; default: the task's",
        common=True,
    )
    on_error: Literal["stop", "skip"] = option(
        "stop",
        "when a reward raises, hangs, dies or returns no number: stop, or count the completion as failed",
        alias="on_reward_error",
    )
    failed: float = option(0.0, "reward of a failed completion under --on-reward-error skip", alias="failed_reward")
    workers: int = option(
        0, "worker processes that call the reward, for one that is slow or not thread-safe; 0: this process", ge=0
    )
    timeout: float | None = option(
        None, "seconds that a reward may take for a completion (with --reward-workers); none: any time", gt=0
    )
    cache: bool = option(
        True, "keep the values of slow rewards that say they are deterministic in the run's rewards.sqlite"
    )

    def go_together(self) -> None:
        super().go_together()
        if self.timeout is not None and not self.workers:
            raise ValueError(
                f"--reward-timeout {self.timeout} with --reward-workers 0: expected at least one worker, which can be "
                "stopped"
            )


def checked_weights(weights: Any, rewards: int, said: str) -> list[Any]:
    """The weights of so many rewards, as they were written. Raises InputError, naming what was `said`, for one too many
    or too few, and for what is no finite number.

    >>> checked_weights([1, "0.5"], 2, "reward_weights")
    [1, '0.5']
    """
    several = isinstance(weights, Iterable) and not isinstance(weights, str)
    found = list(weights) if several else [weights]
    if len(found) != rewards:
        raise InputError(f"{said}: found {len(found)} for {rewards} rewards, expected as many")
    for weight in found:
        if not is_finite(weight):
            raise InputError(f"{said}: found {weight!r:.60}, expected a finite number for each reward")
    return found


def is_finite(weight: Any) -> bool:
    """Whether it is a number that is neither infinite nor NaN."""
    try:
        return not isinstance(weight, bool) and math.isfinite(float(weight))
    except (TypeError, ValueError, OverflowError):
        return False
