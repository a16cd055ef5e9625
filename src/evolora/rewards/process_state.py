"""What a user's function may change of the process and a run computes by: put back after every call, and said once."""

import contextlib
import gc
import locale
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np

from evolora.signals import exit_now

_lock = threading.Lock()
_inside = 0


class ProcessEnded(SystemExit):
    """In place of what `os._exit` does: the process would be gone, with the run's last generations and an exit code of
    the function's own."""

    def __str__(self) -> str:
        return f"os._exit({self.code})"


class ProcessState:
    """Keeps a process as it is while `who`, a user's function, runs in it. What was changed is put back and said on
    stderr, each thing once; `os._exit` raises ProcessEnded.

    Of what a run computes by: torch's default dtype and device, gradients, autocast, threads and precision, numpy's
    reactions to overflow, the working folder, handlers of signals, locale and the like. Its random draws are keyed, and
    read none of the global generators. What a function may well set for itself stays as it sets it: the environment,
    a higher recursion limit, filters of warnings that raise nothing.

    >>> def reward(completions):
    ...     np.seterr(divide="raise")
    ...     return [0.0]
    >>> before, state = np.geterr(), ProcessState("the reward")
    >>> with contextlib.redirect_stderr(sys.stdout), state.kept():
    ...     reward(["a"])
    [0.0]
    the reward changed numpy's error handling; put back
    >>> np.geterr() == before
    True
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self._said: set[str] = set()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, the function runs."""
        names = _names()
        before = [_KEPT[name][0]() for name in names]
        try:
            with _exit_raises():
                yield
        finally:
            changed = [(name, value) for name, value in zip(names, before, strict=True) if _KEPT[name][0]() != value]
            for name, value in changed:
                with contextlib.suppress(Exception):  # a handler, say, outside the main thread
                    _KEPT[name][1](value)
            for name, value in changed:
                if name not in self._said:
                    self._said.add(name)
                    outcome = "put back" if _KEPT[name][0]() == value else "it could not be put back"
                    with contextlib.suppress(Exception):  # a closed stream
                        print(f"{self.who} changed {name}; {outcome}", file=sys.stderr)


@contextlib.contextmanager
def _exit_raises() -> Iterator[None]:
    global _inside
    pid = os.getpid()

    def raises(code: int) -> None:
        if os.getpid() != pid:  # a child that was forked ends so
            exit_now(code)
        raise ProcessEnded(code)

    with _lock:
        _inside += 1
        os._exit = raises  # type: ignore[assignment]
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                os._exit = exit_now


Kept = tuple[Callable[[], Any], Callable[[Any], object]]


def _of_torch(read: Callable[[Any], Any], put: Callable[[Any, Any], object]) -> Kept:
    return lambda: read(sys.modules["torch"]), lambda value: put(sys.modules["torch"], value)


def _handler(name: str) -> Kept:
    number = getattr(signal, name, None)
    if number is None:
        return (lambda: None), (lambda _: None)
    return (lambda: signal.getsignal(number)), (lambda handler: signal.signal(number, handler))


def _set_device(torch: Any, device: Any) -> None:
    # None says that there is none, which costs an operation less than naming the CPU.
    torch.set_default_device(None if device.type == "cpu" else device)


def _set_deterministic(torch: Any, value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _working_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:  # it is gone
        return None


def _set_raising(before: tuple[Any, ...]) -> None:
    filters = cast(list[Any], warnings.filters)
    filters[:] = [one for one in filters if one[0] != "error" or one in before]


def _flushes() -> bool:
    """Whether this thread's arithmetic takes the smallest numbers for zero, as torch.set_flush_denormal has it."""
    return _SMALLEST / 2 == 0.0


_SMALLEST = sys.float_info.min
_DEEPEST = sys.getrecursionlimit()
_TORCH: dict[str, Kept] = {
    "torch's default dtype": _of_torch(lambda t: t.get_default_dtype(), lambda t, value: t.set_default_dtype(value)),
    "torch's default device": _of_torch(lambda t: t.get_default_device(), _set_device),
    "whether torch computes gradients": _of_torch(
        lambda t: t.is_grad_enabled(), lambda t, value: t.set_grad_enabled(value)
    ),
    "torch's autocast": _of_torch(
        lambda t: t.is_autocast_enabled("cpu"), lambda t, value: t.set_autocast_enabled("cpu", value)
    ),
    "torch's number of threads": _of_torch(lambda t: t.get_num_threads(), lambda t, value: t.set_num_threads(value)),
    "torch's deterministic algorithms": _of_torch(
        lambda t: (t.are_deterministic_algorithms_enabled(), t.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
    ),
    "torch's precision of float32 products": _of_torch(
        lambda t: t.get_float32_matmul_precision(), lambda t, value: t.set_float32_matmul_precision(value)
    ),
    "torch's flushing of denormal numbers": (_flushes, lambda value: sys.modules["torch"].set_flush_denormal(value)),
}
_KEPT: dict[str, Kept] = {
    **_TORCH,
    "numpy's error handling": (np.geterr, lambda value: np.seterr(**value)),
    "the warnings that raise": (
        lambda: tuple(one for one in warnings.filters if one[0] == "error"),
        _set_raising,
    ),
    "the working folder": (_working_folder, os.chdir),
    "the handler of SIGINT": _handler("SIGINT"),
    "the handler of SIGTERM": _handler("SIGTERM"),
    "the handler of SIGHUP": _handler("SIGHUP"),
    "the locale": (lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
    "sys.stdout": (lambda: sys.stdout, lambda value: setattr(sys, "stdout", value)),
    "sys.stderr": (lambda: sys.stderr, lambda value: setattr(sys, "stderr", value)),
    "the recursion limit": (lambda: min(sys.getrecursionlimit(), _DEEPEST), sys.setrecursionlimit),
    "the garbage collector": (gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
}
if hasattr(signal, "setitimer"):
    # One that is left running interrupts the run at any place.
    _KEPT["the alarm"] = (
        lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        lambda _: signal.setitimer(signal.ITIMER_REAL, 0),
    )


def _names() -> list[str]:
    return [name for name in _KEPT if name not in _TORCH or "torch" in sys.modules]
