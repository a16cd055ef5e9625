"""What a reward function is, and how one is called so that its mistakes are found and named."""

import functools
import inspect
import math
import numbers
import traceback
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from evolora.errors import InputError, RewardError

STANDARD_KEYWORDS = ("prompts", "completions", "completion_ids")

OnError = Literal["raise", "skip"]


class Reward(Protocol):
    """A function that scores completions, with the signature of TRL's GRPOTrainer reward functions.

    It is called by keyword with `prompts: list[str]`, `completions: list[str]`, `completion_ids: list[list[int]]` and
    every other column of the data as a list, and returns one number for each completion, or None for one that it does
    not score. It may take `**kwargs` and get them all, or name only those that it wants.

    Differences from TRL (https://huggingface.co/docs/trl/grpo_trainer): prompts and completions are always plain
    strings, never lists of chat messages; `trainer_state`, `log_extra` and `log_metric` are not passed; functions must
    not be async.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Sequence[float | None]: ...


@dataclass(frozen=True)
class Scores:
    """One batch, scored: `rewards` float64, NaN where the function returned None ("not scored"); `failed` bool, true
    where the function failed and `rewards` holds the scorer's `failed_reward`."""

    rewards: npt.NDArray[np.float64]
    failed: npt.NDArray[np.bool_]
    terms: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)


def reward_name(reward: Reward) -> str:
    """A short name for logs: the function's own name, or its class's when it is an object.

    >>> reward_name(lambda completions: [0.0])
    '<lambda>'
    """
    while isinstance(reward, functools.partial):
        reward = reward.func
    return str(getattr(reward, "__name__", type(reward).__name__))


def check_signature(reward: Reward, columns: Iterable[str]) -> None:
    """Raise InputError when `reward` could not be called with the standard keywords and these data columns: it requires
    a parameter that is neither, takes one by position only, or is async.

    >>> check_signature(lambda completions, target: [0.0], ["target"])
    >>> check_signature(lambda completions, answer: [0.0], ["target"])
    Traceback (most recent call last):
        ...
    evolora.errors.InputError: reward <lambda> requires the parameter 'answer', expected only prompts, completions, \
completion_ids and the data's columns (target).
    """
    name, columns = reward_name(reward), tuple(columns)
    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(getattr(reward, "__call__", None)):  # noqa: B004
        raise InputError(f"reward {name} is async, expected a plain function.")
    for parameter in _parameters(reward):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is not parameter.empty:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InputError(
                f"reward {name} takes '{parameter.name}' by position only, expected parameters that take keywords."
            )
        if parameter.name not in (*STANDARD_KEYWORDS, *columns):
            raise InputError(
                f"reward {name} requires the parameter '{parameter.name}', expected only "
                f"{', '.join(STANDARD_KEYWORDS)} and the data's columns ({', '.join(columns) or 'none'})."
            )


@dataclass(frozen=True)
class FailedReward:
    what: str
    exception: Exception | None = None


_Value = float | FailedReward | None
_Batch = Mapping[str, Sequence[object]]


class RewardScorer:
    """Calls a reward function on batches and checks what comes back.

    A function fails on a batch when it raises or does not return one value for each completion; it fails on one
    completion when the value is NaN, infinite or no number. Numbers are Python's, bools, and scalars of numpy and
    torch. None is no failure: it means "not scored".

    `on_error="raise"` (default) raises RewardError, with the function's traceback if it raised, and the prompt and
    completion at fault. To find those, a function that raised on a batch is called again with one completion at a time,
    until the first that raises.

    `on_error="skip"` gives failed completions `failed_reward` (finite) and goes on. A batch on which the function fails
    is called again with one completion at a time, so that the others keep their rewards. `last_error` tells what
    happened last.

    So in either mode a function with side effects may see a completion of a failing batch twice. A function is given
    its own copies of the lists. Exceptions that are no `Exception` (KeyboardInterrupt, SystemExit) pass through.

    Counts over the scorer's life: `completions`, `failed`, `unscored`.

    >>> scorer = RewardScorer(lambda completions: [1 / len(text) for text in completions], on_error="skip")
    >>> scorer.score(prompts=["p", "p"], completions=["four", ""], columns={})
    Scores(rewards=array([0.25, 0.  ]), failed=array([False,  True]))
    >>> scorer.failed, scorer.failed_share
    (1, 0.5)
    """

    def __init__(
        self,
        reward: Reward,
        *,
        on_error: OnError = "raise",
        failed_reward: float = 0.0,
        name: str | None = None,
        accepted: frozenset[str] | None = None,
        log: Path | None = None,
        conversational: bool = False,
    ) -> None:
        if on_error not in get_args(OnError):
            raise InputError(f"on_error is {on_error!r}, expected 'raise' or 'skip'.")
        if not math.isfinite(failed_reward):
            raise InputError(f"failed_reward is {failed_reward}, expected a finite number.")
        self.reward = reward
        self.name = name or reward_name(reward)
        self.varies = compares(reward)
        self.on_error = on_error
        self.failed_reward = failed_reward
        self.completions = 0
        self.failed = 0
        self.unscored = 0
        self.last_error: str | None = None
        self._accepted = accepted_keywords(reward) if accepted is None else accepted

    @property
    def failed_share(self) -> float:
        """The share of all completions so far on which the function failed, in [0, 1]; 0 before the first."""
        return self.failed / self.completions if self.completions else 0.0

    def score(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[object]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        groups: Sequence[int] | None = None,
        messages: Sequence[Sequence[Mapping[str, str]]] | None = None,
    ) -> Scores:
        """Score a batch; an empty one calls nothing.

        Raises RewardError when the function fails and `on_error` is "raise", and ValueError when prompts, completions,
        ids and columns differ in length.
        """
        del messages  # rewards are given text
        batch: dict[str, Sequence[object]] = {**columns, "prompts": prompts, "completions": completions}
        if completion_ids is not None:
            batch["completion_ids"] = completion_ids
        lengths = {name: len(values) for name, values in batch.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the batch's columns differ in length: {lengths}")
        values = self._score(batch) if completions else []
        return self._count(values)

    def close(self): ...

    def _score(self, batch: _Batch) -> list[_Value]:
        outcome = self._call(batch)
        if isinstance(outcome, FailedReward):
            if self.on_error == "raise":
                raise RewardError(self._report(outcome, batch)) from outcome.exception
            self.last_error = self._report(outcome, batch, find_offender=False)
            if len(batch["completions"]) == 1:
                return [outcome]
            return [value for one in _singles(batch) for value in self._score(one)]
        values = [_number(value) for value in outcome]
        for index, value in enumerate(values):
            if isinstance(value, FailedReward):
                report = self._report(value, _single(batch, index))
                if self.on_error == "raise":
                    raise RewardError(report)
                self.last_error = report
        return values

    def _call(self, batch: _Batch) -> list[object] | FailedReward:
        keywords = {
            name: list(values) for name, values in batch.items() if self._accepted is None or name in self._accepted
        }
        try:
            returned: object = self.reward(**keywords)
            values = as_list(returned)
        except Exception as error:
            return FailedReward(f"raised {type(error).__name__}: {error}", error)
        if values is None:
            if inspect.iscoroutine(returned):
                returned.close()  # or Python warns that it was never awaited
            return FailedReward(f"returned {_show(returned)}, expected a list with one number for each completion")
        count = len(batch["completions"])
        if len(values) != count:
            return FailedReward(f"returned {len(values)} values for {count} completions, expected one for each")
        return values

    def _report(self, failure: FailedReward, batch: _Batch, *, find_offender: bool = True) -> str:
        """What went wrong, the traceback, and on which prompt and completion."""
        note = None
        count = len(batch["completions"])
        if count > 1:
            note = f"The batch had {count} completions; the first is shown."
            if failure.exception is not None and find_offender:
                note = f"The batch had {count} completions, none of which raises alone; the first is shown."
                for one in _singles(batch):
                    again = self._call(one)
                    if isinstance(again, FailedReward) and again.exception is not None:
                        failure, batch, note = again, one, None
                        break
        lines = [
            f"reward {self.name} {failure.what}",
            None if failure.exception is None else _user_traceback(failure.exception),
            note,
            f"prompt: {_show(batch['prompts'][0])}",
            f"completion: {_show(batch['completions'][0])}",
        ]
        return "\n".join(line for line in lines if line is not None)

    def _count(self, values: list[_Value]) -> Scores:
        failed = np.array([isinstance(value, FailedReward) for value in values], dtype=np.bool_)
        rewards = np.array(
            [
                self.failed_reward if isinstance(value, FailedReward) else math.nan if value is None else value
                for value in values
            ],
            dtype=np.float64,
        )
        self.completions += len(values)
        self.failed += int(failed.sum())
        self.unscored += int(np.isnan(rewards).sum())
        return Scores(rewards, failed)


def compares(reward: Reward) -> bool:
    """Whether a completion's reward depends on the others of the batch."""
    return bool(getattr(reward, "compares", False))


def _parameters(reward: Reward) -> list[inspect.Parameter]:
    """The function's parameters; as if it took any keyword where Python cannot tell, as for some compiled functions."""
    try:
        return list(inspect.signature(reward).parameters.values())
    except (TypeError, ValueError):
        return [inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)]


def accepted_keywords(reward: Reward) -> frozenset[str] | None:
    """The keywords that the function takes; None for all."""
    parameters = _parameters(reward)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in by_keyword)


def as_list(returned: object) -> list[object] | None:
    """What a function returned as a list, or None when it is no ordered collection. May run the function's own code
    (generators)."""
    if hasattr(returned, "tolist"):  # numpy, torch, pandas
        returned = returned.tolist()
    if not isinstance(returned, Iterable) or isinstance(returned, str | bytes | Mapping | Set):
        return None
    return list(returned)


def _number(value: object) -> _Value:
    if value is None:
        return None
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if not isinstance(value, numbers.Real):
        return FailedReward(f"returned {_show(value)}, expected a number or None")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return number if math.isfinite(number) else FailedReward(f"returned {number}, expected a finite number or None")


def _single(batch: _Batch, index: int) -> _Batch:
    return {name: [values[index]] for name, values in batch.items()}


def _singles(batch: _Batch) -> Iterable[_Batch]:
    return (_single(batch, index) for index in range(len(batch["completions"])))


def _user_traceback(error: Exception) -> str:
    """The traceback from the reward function on, without this module's own frames."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip()


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 1000 else text[:997] + "..."
