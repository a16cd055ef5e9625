"""One reward function, called on batches so that its mistakes are found and named."""

import contextlib
import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from evolora.errors import InputError, RewardError
from evolora.masking import mask
from evolora.rewards.base import (
    FailedReward,
    Reward,
    TrainerState,
    Value,
    accepted_keywords,
    compares,
    parameters,
    reward_name,
)
from evolora.rewards.calling import Logged, call_reward, raised, shown, shown_at_length, user_traceback
from evolora.rewards.event_loop import EventLoop
from evolora.rewards.output import BoundedLog, captured
from evolora.rewards.process_state import ProcessState

OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Scores:
    """One batch, scored: `rewards` float64, NaN where the function returned None ("not scored"); `failed` bool, true
    where the function failed and `rewards` holds the scorer's `failed_reward`; and of a combination of rewards the
    `terms`' own values by name, NaN where there is none."""

    rewards: npt.NDArray[np.float64]
    failed: npt.NDArray[np.bool_]
    terms: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Batch:
    """The texts, for messages to the user, and the keywords that have a value for each completion."""

    prompts: Sequence[str]
    completions: Sequence[str]
    keywords: Mapping[str, Sequence[object]]

    def __len__(self) -> int:
        return len(self.completions)

    def single(self, index: int) -> "_Batch":
        keywords = {name: [values[index]] for name, values in self.keywords.items()}
        return _Batch([self.prompts[index]], [self.completions[index]], keywords)

    def singles(self) -> Iterable["_Batch"]:
        return (self.single(index) for index in range(len(self)))


class RewardScorer:
    """Calls a reward function on batches and checks what comes back.

    A function fails on a batch when it raises, leaves (`sys.exit`) or does not return one value for each completion; it
    fails on one completion when the value is NaN, infinite, no number or a `FailedReward`. Numbers are Python's, bools,
    and scalars of numpy and torch. None is no failure: it means "not scored". Of what can be raised, only
    KeyboardInterrupt passes through.

    `on_error="raise"` (default) raises RewardError, with the function's traceback if it raised, and the prompt and
    completion at fault. To find those, a function that raised on a batch is called again with one completion at a time,
    until the first that raises.

    `on_error="skip"` gives failed completions `failed_reward` (finite) and goes on. A batch on which the function fails
    is called again with one completion at a time, so that the others keep their rewards. `last_error` tells what
    happened last.

    So in either mode a function with side effects may see a completion of a failing batch twice. One with
    `compares = True` would mean something else there: it is not called again, and when it fails on a batch, it fails on
    each of its completions. A function is given its own copies of all values.

    Async functions run on one event loop, in a thread that lives as long as the scorer.

    What the function changes of the process is put back (see `ProcessState`), which its log says.

    What the function prints and logs while it is called goes to the file `log`, up to 1 MB; without one to the screen,
    up to 64 kB for each batch.

    With `conversational` the function gets prompts as lists of chat messages (those given to `score`, or else one
    message of the user) and completions as lists with one message of the assistant, TRL's conversational format.

    `kind` is what messages call it.

    `varies` says that a completion may earn something else another time: the function compares, or names
    `trainer_state`.

    Counts over the scorer's life: `completions`, `failed`, `unscored`. Of the latest call: `metrics`, the means of what
    the function gave to `log_metric`, and `extra`, what it gave to `log_extra`.

    >>> scorer = RewardScorer(lambda completions: [1 / len(text) for text in completions], on_error="skip")
    >>> scorer.score(prompts=["p", "p"], completions=["four", ""], columns={})
    Scores(rewards=array([0.25, 0.  ]), failed=array([False,  True]), terms={})
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
        log: Path | None = None,
        conversational: bool = False,
        kind: str = "reward",
    ) -> None:
        if on_error not in get_args(OnError):
            raise InputError(f"on_error is {on_error!r}, expected 'raise' or 'skip'.")
        if not math.isfinite(failed_reward):
            raise InputError(f"failed_reward is {failed_reward}, expected a finite number.")
        self.reward = reward
        self.name = name or reward_name(reward)
        self.kind = kind
        self.on_error = on_error
        self.failed_reward = failed_reward
        self.conversational = conversational
        self.trainer_state = TrainerState()
        self.completions = 0
        self.failed = 0
        self.unscored = 0
        self.last_error: str | None = None
        self._metrics: dict[str, float] = {}
        self.extra: dict[str, list[object]] = {}
        self._compares = compares(reward)
        self._accepted = accepted_keywords(reward)
        self.varies = self._compares or any(parameter.name == "trainer_state" for parameter in parameters(reward))
        self._loop = EventLoop()
        self._log = BoundedLog(log)
        self._logged = Logged()
        self._state = ProcessState(f"{self.kind} {self.name}")
        if hasattr(reward, "use_log"):
            reward.use_log(self._log)

    @property
    def failed_share(self) -> float:
        """The share of all completions so far on which the function failed, in [0, 1]; 0 before the first."""
        return self.failed / self.completions if self.completions else 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """Of the latest batch, the means of what the function gave to `log_metric`."""
        return self._metrics

    def at(self, generation: int) -> None:
        """So many generations are over: `trainer_state.global_step`."""
        self.trainer_state.global_step = generation

    def close(self) -> None:
        """Close the reward, where it has a `close`, and end the scorer's thread. Raises RewardError when the reward's
        own `close` fails and `on_error` is "raise"."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._log.close)
            stack.callback(self._loop.close)
            if hasattr(self.reward, "close"):
                with captured(self._log), self._state.kept():
                    self._close_reward()

    def _close_reward(self) -> None:
        try:
            self.reward.close()  # type: ignore[attr-defined]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            failure = raised(error)
            self.last_error = f"{self.kind} {self.name} {failure.what}, when it was closed\n{user_traceback(error)}"
            if self.on_error == "raise":
                raise RewardError(self.last_error) from error

    def score(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[object]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        groups: Sequence[int] | None = None,
        messages: Sequence[Sequence[Mapping[str, object]]] | None = None,
    ) -> Scores:
        """Score a batch; an empty one calls nothing. `messages` are the prompts as chat messages, for conversational
        functions, and `groups` the individuals that wrote the completions, for functions that compare.

        Raises RewardError when the function fails and `on_error` is "raise", and ValueError when prompts, completions,
        ids, columns, messages and groups differ in length.
        """
        keywords: dict[str, Sequence[object]] = {**columns, "prompts": prompts, "completions": completions}
        if completion_ids is not None:
            keywords["completion_ids"] = completion_ids
        if self.conversational:
            keywords["prompts"] = _as_messages(prompts, "user") if messages is None else messages
            keywords["completions"] = _as_messages(completions, "assistant")
        if self._compares and groups is not None:
            keywords["groups"] = groups
        lengths = {name: len(values) for name, values in keywords.items()}
        if len({len(prompts), *lengths.values()}) > 1:
            raise ValueError(f"the batch's columns differ in length: {lengths}")
        batch = _Batch(prompts, completions, keywords)
        self._log.begin()
        self._logged = Logged()
        values = self._score(batch) if completions else []
        self._metrics, self.extra = self._logged.means(), self._logged.extra
        return self._count(values)

    def _score(self, batch: _Batch) -> list[Value]:
        values = self._call(batch)
        if isinstance(values, FailedReward):
            if self.on_error == "raise":
                raise RewardError(self._report(values, batch)) from values.exception
            self.last_error = self._report(values, batch, find_offender=False)
            if len(batch) == 1 or self._compares:
                return [values] * len(batch)
            return [value for one in batch.singles() for value in self._score(one)]
        for index, value in enumerate(values):
            if isinstance(value, FailedReward):
                report = self._report(value, batch.single(index))
                if self.on_error == "raise":
                    raise RewardError(report) from value.exception
                self.last_error = report
        return values

    def _call(self, batch: _Batch) -> list[Value] | FailedReward:
        logged = Logged()
        extras: dict[str, object] = {
            "trainer_state": copy.copy(self.trainer_state),
            "log_extra": logged.log_extra,
            "log_metric": logged.log_metric,
        }
        offered: dict[str, object] = {
            name: _own(values) for name, values in batch.keywords.items() if self._takes(name)
        }
        keywords = offered | {name: value for name, value in extras.items() if self._takes(name)}
        with captured(self._log), self._state.kept():
            outcome = call_reward(self.reward, keywords, len(batch), self._loop)
        if not isinstance(outcome, FailedReward):
            self._logged.add(logged)
        return outcome

    def _takes(self, keyword: str) -> bool:
        return self._accepted is None or keyword in self._accepted

    def _report(self, failure: FailedReward, batch: _Batch, *, find_offender: bool = True) -> str:
        """What went wrong, the traceback, and on which prompt and completion."""
        note = None
        count = len(batch)
        if count > 1:
            note = f"The batch had {count} completions; the first is shown."
            if failure.exception is not None and find_offender and not self._compares:
                note = f"The batch had {count} completions, none of which raises alone; the first is shown."
                for one in batch.singles():
                    again = self._call(one)
                    if isinstance(again, FailedReward) and again.exception is not None:
                        failure, batch, note = again, one, None
                        break
        lines = [
            f"{self.kind} {self.name} {failure.what}",
            None if failure.exception is None else user_traceback(failure.exception),
            shown_at_length(failure.details.rstrip()) or None,
            note,
            f"prompt: {shown(batch.prompts[0])}",
            f"completion: {shown(batch.completions[0])}",
        ]
        return mask("\n".join(line for line in lines if line is not None))

    def _count(self, values: list[Value]) -> Scores:
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


def _own(values: Iterable[object]) -> list[object]:
    """A copy that a function may change."""
    return [value if isinstance(value, str | int | float | None) else _copy(value) for value in values]


def _copy(value: object) -> object:
    if type(value) is list and all(type(one) is int for one in value):  # tokens; deepcopy takes 20 times as long
        return value.copy()
    try:
        return copy.deepcopy(value)
    except Exception:  # a lock, say, in data that was made in Python: nobody can have a copy
        return value


def _as_messages(texts: Sequence[str], role: str) -> list[list[dict[str, str]]]:
    return [[{"role": role, "content": text}] for text in texts]
