"""What a reward function is."""

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evolora.errors import InputError

STANDARD_KEYWORDS = ("prompts", "completions", "completion_ids")
TRL_KEYWORDS = ("trainer_state", "log_extra", "log_metric")


class Reward(Protocol):
    """A function that scores completions, with the signature of TRL's GRPOTrainer reward functions.

    It is called by keyword with `prompts: list[str]`, `completions: list[str]`, `completion_ids: list[list[int]]` and
    every other column of the data as a list, and returns one number for each completion, or None for one that it does
    not score, or a `FailedReward` for one that it could not. It may take `**kwargs` and get them all, or name only
    those that it wants. It may be async.

    As from TRL, it also gets `trainer_state` (see `TrainerState`), `log_metric(name, value)` and
    `log_extra(name, values)`.

    A reward may have these attributes: `__name__`, for logs; `compares = True`, when a completion's reward depends on
    the others of the batch: it then gets `groups: list[int]` too, which individual wrote each completion, and is never
    called with a part of the batch; `close()`, called at the end; `use_log(log: BoundedLog)`, called at the start, for
    one that starts processes whose output belongs in the log.

    Differences from TRL (https://huggingface.co/docs/trl/grpo_trainer): prompts and completions are plain strings
    unless the scorer is `conversational`; `trainer_state` holds only what `TrainerState` says; `environments` is not
    passed.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Sequence["float | FailedReward | None"]: ...


@dataclass(frozen=True)
class FailedReward:
    """In place of a number: this completion could not be scored. `what` goes on after "reward NAME ...": "took longer
    than 5 s". The message shows the traceback of `exception`, and `details` as they are."""

    what: str
    exception: BaseException | None = None
    details: str = ""


@dataclass
class TrainerState:
    """What a reward may know of the training, under TRL's names: `global_step`, how many generations of the run are
    over."""

    global_step: int = 0


Value = float | FailedReward | None


def reward_name(reward: Reward) -> str:
    """A short name for logs: the function's own name, or its class's when it is an object.

    >>> reward_name(lambda completions: [0.0])
    '<lambda>'
    """
    while isinstance(reward, functools.partial):
        reward = reward.func
    return str(getattr(reward, "__name__", type(reward).__name__))


def check_signature(reward: Reward, columns: Iterable[str]) -> None:
    """Raise InputError when `reward` could not be called with the standard keywords, TRL's and these data columns: it
    requires a parameter that is neither, or takes one by position only.

    >>> check_signature(lambda completions, target: [0.0], ["target"])
    >>> check_signature(lambda completions, answer: [0.0], ["target"])
    Traceback (most recent call last):
        ...
    evolora.errors.InputError: reward <lambda> requires the parameter 'answer', expected only prompts, completions, \
completion_ids and the data's columns (target).
    """
    name, columns = reward_name(reward), tuple(columns)
    known = {*STANDARD_KEYWORDS, *TRL_KEYWORDS, *columns}
    if compares(reward):
        known.add("groups")
    for parameter in parameters(reward):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is not parameter.empty:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InputError(
                f"reward {name} takes '{parameter.name}' by position only, expected parameters that take keywords."
            )
        if parameter.name not in known:
            hint = "; --target-column says which column is the target" * (parameter.name == "target" and bool(columns))
            raise InputError(
                f"reward {name} requires the parameter '{parameter.name}', expected only "
                f"{', '.join(STANDARD_KEYWORDS)} and the data's columns ({', '.join(columns) or 'none'}){hint}."
            )


def compares(reward: Reward) -> bool:
    """Whether a completion's reward depends on the others of the batch."""
    return bool(getattr(reward, "compares", False))


def parameters(reward: Reward) -> list[inspect.Parameter]:
    """The function's parameters; as if it took any keyword where Python cannot tell, as for some compiled functions."""
    try:
        return list(inspect.signature(reward).parameters.values())
    except (TypeError, ValueError):
        return [inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)]


def accepted_keywords(reward: Reward) -> frozenset[str] | None:
    """The keywords that the function takes; None for all."""
    found = parameters(reward)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in found):
        return None
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(parameter.name for parameter in found if parameter.kind in by_keyword)


def data_columns(keywords: Mapping[str, object]) -> dict[str, Sequence[object]]:
    """Of what a reward is called with beside prompts and completions, the data's columns: what can be sent to others.

    >>> data_columns({"target": ["a"], "completion_ids": [[1]], "log_metric": print})
    {'target': ['a']}
    """
    own = ("completion_ids", *TRL_KEYWORDS)
    return {name: values for name, values in keywords.items() if name not in own and isinstance(values, Sequence)}
