"""Any program as a judge: one line of JSON for an individual, one number back."""

import json
from collections.abc import Sequence
from typing import Any

from evolora.errors import InputError
from evolora.fitness.base import FitnessFunction
from evolora.rewards.base import FailedReward, data_columns
from evolora.rewards.command import CommandReward, make_command
from evolora.rewards.output import BoundedLog


def make_program(*, command: str, timeout: float = 600.0, recomputes: bool = False) -> FitnessFunction:
    """A program that reads one line of JSON for each individual, `{"prompts": [...], "completions": [...]}` and the
    data's columns as lists, and writes one line with its fitness before it reads the next: a number, `{"score":
    number}`, or `null`. It is started and ended as the reward `command` is. With `recomputes` it is asked again for
    intervals and comparisons, some hundred times a generation.

    Raises InputError for a missing program, an unset variable and options out of range.
    """
    try:
        return _Program(make_command(command=command, timeout=timeout), recomputes)
    except InputError as error:
        raise InputError(str(error).replace("reward command", "fitness program")) from None


class _Program:
    """See `make_program`."""

    __name__ = "program"

    def __init__(self, asked: CommandReward, recomputes: bool) -> None:
        self._asked = asked
        self.recomputes = recomputes

    def __call__(
        self, prompts: Sequence[object], completions: Sequence[object], **columns: Any
    ) -> "float | FailedReward | None":
        whole = {**data_columns(columns), "prompts": prompts, "completions": completions}
        return self._asked.ask(json.dumps(whole, allow_nan=False).encode())

    def use_log(self, log: BoundedLog) -> None:
        """Let what the program writes to stderr go to `log`."""
        self._asked.use_log(log)

    def close(self) -> None:
        """End the program."""
        self._asked.close()
