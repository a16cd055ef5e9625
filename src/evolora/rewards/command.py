"""Any program as a reward: JSON lines in, scores out."""

import json
import math
import shlex
import shutil
from collections.abc import Sequence

from evolora.environment import resolved
from evolora.errors import InputError
from evolora.masking import concealed
from evolora.rewards.base import FailedReward, Value, data_columns
from evolora.rewards.output import BoundedLog
from evolora.rewards.processes import Program, ProgramError


def make_command(*, command: str, timeout: float = 10.0, restarts: int = 5) -> "CommandReward":
    """A program that reads one line of JSON for each completion, `{"prompt": ..., "completion": ...}` and the data's
    columns, and writes one line with its score before it reads the next: a number, `{"score": number}`, or `null` for
    "not scored". It is started with the first batch (no shell is involved) and kept until the end of the run.
    `env:NAME` in the command stands for that variable, inside the word in which it is written.

    A program that takes longer than `timeout` seconds for a completion, ends, or writes something else is ended, with
    all that it started; the completion becomes a `FailedReward`, and the program is started again for the next one.
    After `restarts` in a row without a score in between, the rest of the batch is not tried. What it writes to stderr
    goes to the rewards' log.

    The range is the program's own. Raises InputError for a missing program, an unset variable and options out of range.

    >>> reward = make_command(command="sh -c 'while read line; do echo ${#line}; done'")
    >>> reward(prompts=["p", "p"], completions=["four", ""])
    [37.0, 33.0]
    >>> reward.close()
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(
            f"reward command: command is {command!r} ({error}), expected a program and arguments."
        ) from None
    argv = [resolved(word) for word in words]
    if not argv:
        raise InputError("reward command: command is empty, expected a program and arguments.")
    if shutil.which(argv[0]) is None:
        raise InputError(f"reward command: {words[0]!r} is not found, expected a program that can be run.")
    if not (math.isfinite(timeout) and timeout > 0):
        raise InputError(f"reward command: timeout is {timeout}, expected a positive number of seconds.")
    if restarts < 0:
        raise InputError(f"reward command: restarts is {restarts}, expected 0 or more.")
    return CommandReward(argv, timeout, restarts)


# Seconds in which a program that writes on and on shows that after the last answer.
_GRACE = 0.01


class CommandReward:
    """See `make_command`."""

    __name__ = "command"

    def __init__(self, argv: Sequence[str], timeout: float, restarts: int) -> None:
        self._argv = argv
        self._timeout = timeout
        self._restarts = restarts
        self._program: Program | None = None
        self._log = BoundedLog()

    def __call__(self, prompts: Sequence[object], completions: Sequence[object], **columns: object) -> list[Value]:
        shared = data_columns(columns)
        values: list[Value] = []
        failures = 0
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            if failures > self._restarts:
                values.append(FailedReward(f"was not called: the program had failed {failures} times in a row"))
                continue
            example = {name: cells[row] for name, cells in shared.items()} | {
                "prompt": prompt,
                "completion": completion,
            }
            value = self.ask(json.dumps(example, allow_nan=False).encode())
            failures = failures + 1 if isinstance(value, FailedReward) else 0
            values.append(value)
        # The lines of one that writes on and on may be there just in time for an answer each.
        if self._program is not None and self._program.writes_on(_GRACE):
            self.close()
            values[-1] = FailedReward("wrote on after the last completion, expected one line for each")
        return values

    def use_log(self, log: BoundedLog) -> None:
        """Let what the program writes to stderr go to `log`."""
        self._log = log

    def close(self) -> None:
        """End the program."""
        if self._program is not None:
            self._program.end()
            self._program = None

    def ask(self, line: bytes) -> Value:
        """What the program answers to a line."""
        try:
            if self._program is None:
                self._program = Program(self._argv, self._log, env={"PYTHONUNBUFFERED": "1"})
            answer = self._program.unasked()
            if answer is not None:
                self.close()
                return FailedReward(
                    f"wrote a line before it was sent the completion: {_show(answer)}, expected one line for each"
                )
            answer = self._program.ask(line, self._timeout)
        except ProgramError as error:
            self._program = None
            return FailedReward(error.what, None, error.details)
        except OSError as error:
            return FailedReward(f"could not be started: {error}")
        except BaseException:  # Ctrl-C: it would answer later
            self.close()
            raise
        try:
            value = json.loads(answer)
            if isinstance(value, dict):
                value = value["score"]
            if value is None:
                return None
            if isinstance(value, str | list | dict):
                raise ValueError
            number = float(value)
        except (ValueError, KeyError, OverflowError, RecursionError):
            # A program that prints something else may be out of step.
            self.close()
            return FailedReward(f'wrote {_show(answer)}, expected a number, {{"score": number}} or null')
        return number


def _show(line: bytes) -> str:
    text = concealed(line.decode("utf-8", "replace"))
    return repr(text if len(text) <= 200 else text[:197] + "...")
