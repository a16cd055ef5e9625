"""How a reward function is called: whatever it does comes back as values and failures, each with a message."""

import inspect
import itertools
import math
import numbers
import traceback
from collections.abc import Iterable, Mapping, Set, Sized
from pathlib import Path

from evolora.masking import concealed, mask
from evolora.rewards.base import FailedReward, Reward, Value
from evolora.rewards.event_loop import EventLoop
from evolora.rewards.process_state import ProcessEnded

# The square of a larger reward is beyond float32.
LARGEST = 1e15
# What is shown of a text, and of a traceback and the like.
_TEXT_LIMIT = 1000
_LONG_LIMIT = 20_000

# Those who call rewards here, whose frames tell a user nothing.
_CALLERS = tuple(Path(__file__).with_name(name) for name in ("calling.py", "scorer.py", "event_loop.py", "cache.py"))


class Logged:
    """What a reward function logs while it is called: TRL's `log_metric` and `log_extra`."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = {}
        self.extra: dict[str, list[object]] = {}

    def log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(mask(str(name)), []).append(float(value))

    def log_extra(self, column: str, values: Iterable[object]) -> None:
        self.extra.setdefault(str(column), []).extend(values)

    def add(self, other: "Logged") -> None:
        for name, numbers_ in other.metrics.items():
            self.metrics.setdefault(name, []).extend(numbers_)
        for name, values in other.extra.items():
            self.extra.setdefault(name, []).extend(values)

    def means(self) -> dict[str, float]:
        return {name: math.fsum(values) / len(values) for name, values in self.metrics.items()}


def call_reward(
    reward: Reward, keywords: Mapping[str, object], count: int, loop: EventLoop
) -> list[Value] | FailedReward:
    """The function's values for `count` completions, checked; one failure when it failed on all of them at once."""
    try:
        returned: object = reward(**keywords)
        if inspect.isawaitable(returned):
            returned = loop.run(returned)
        values = _as_list(returned, count)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also those that are no Exception: a cancelled task's, a panic of Rust code
        return raised(error)
    if values is None:
        return FailedReward(f"returned {shown(returned)}, expected a list with one number for each completion")
    if len(values) != count:
        found = f"more than {count}" if len(values) > count and not isinstance(returned, Sized) else len(values)
        return FailedReward(f"returned {found} values for {count} completions, expected one for each")
    return [_number(value) for value in values]


def raised(error: BaseException) -> FailedReward:
    """The failure that an exception is."""
    if isinstance(error, ProcessEnded):
        return FailedReward(f"left Python with {error}", error)
    if isinstance(error, SystemExit):
        return FailedReward(f"left Python with SystemExit({'' if error.code is None else shown(error.code)})", error)
    try:
        message = _cut(str(error), _TEXT_LIMIT)
    except Exception as again:
        message = f"its message raised {type(again).__name__}"
    return FailedReward(f"raised {type(error).__name__}: {message}", error)


def _as_list(returned: object, count: int) -> list[object] | None:
    """What a function returned as a list, or None when it is no ordered collection. May run the function's own code
    (generators). Of what does not know its length, one more than `count` at most: it may have no end."""
    if hasattr(returned, "tolist"):  # numpy, torch, pandas
        returned = returned.tolist()
    if not isinstance(returned, Iterable) or isinstance(returned, str | bytes | Mapping | Set):
        return None
    return list(returned) if isinstance(returned, Sized) else list(itertools.islice(returned, count + 1))


def _number(value: object) -> Value:
    if value is None or isinstance(value, FailedReward):
        return value
    try:
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a scalar of numpy or torch
            value = value.item()
        if not isinstance(value, numbers.Real):
            return FailedReward(f"returned {shown(value)}, expected a number or None")
        number = float(value)
    except OverflowError:
        number = math.inf
    except Exception as error:  # a type of the user's own may do anything
        return FailedReward(f"returned a {type(value).__name__} that {raised(error).what}", error)
    if math.isfinite(number) and abs(number) <= LARGEST:
        return number
    return FailedReward(f"returned {number}, expected a number from {-LARGEST:.0e} to {LARGEST:.0e}, or None")


def user_traceback(error: BaseException) -> str:
    """The traceback from the reward function on, without the frames of those who called it here."""
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return shown_at_length("".join(traceback.format_exception(type(error), error, frames)).rstrip())


def _is_ours(path: str) -> bool:
    return Path(path) in _CALLERS or "/concurrent/futures/" in path


def shown(value: object) -> str:
    """A value for a message, at most a thousand characters of it."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"a {type(value).__name__} whose repr raised {type(error).__name__}"
    return _cut(text, _TEXT_LIMIT)


def shown_at_length(text: str) -> str:
    """A traceback or the like for a message, its beginning and end where it is very long."""
    return _cut(text, _LONG_LIMIT)


def _cut(text: str, limit: int) -> str:
    """The text, or its beginning and its end. What must not be shown is taken out before it could be cut in two."""
    text = concealed(text)
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} ... [{len(text) - limit} characters are left out] ... {text[-(limit // 2) :]}"
