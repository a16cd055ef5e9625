"""The signals that ask a program to end: Ctrl-C, SIGTERM, and SIGHUP, when its terminal goes."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__]
NOTHING_YET = "Interrupted before there was anything new to keep."

leaving: list[str] = []
"""What a screen wants to be told when the process ends at once: that the cursor is to be seen again, say."""

exit_now = os._exit
"""The real one: while a user's function runs, `os._exit` raises (`rewards/process_state.py`)."""

# Seconds after which a signal that was swallowed is sent again.
_SOON = 0.05

Handler = Callable[[int, FrameType | None], object]


class Signalled(KeyboardInterrupt):
    """One of these signals came: `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def interrupt(number: int, frame: FrameType | None) -> None:
    """The command's handler, but for what a run answers itself: raise Signalled. An import might swallow that, or turn
    it into an error of its own, so there the process ends at once."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            with contextlib.suppress(OSError):
                os.write(2, f"{''.join(leaving)}{NOTHING_YET}\n".encode())
            exit_now(128 + number)
        frame = frame.f_back
    raise Signalled(number)


@contextlib.contextmanager
def answered_by(handler: Handler) -> Iterator[None]:
    """Let `handler` answer them, but for those that are ignored, as under nohup, or that the caller's own program
    handles."""
    usual = (signal.SIG_DFL, signal.default_int_handler, interrupt)
    before = {number: found for number in ENDING if (found := signal.getsignal(number)) in usual}
    for number in before:
        signal.signal(number, handler)
    unraisable = sys.unraisablehook

    def again(found: "sys.UnraisableHookArgs") -> None:
        """Python swallows what is raised in a callback of its own, as of a weak reference: it is sent once more."""
        if not isinstance(found.exc_value, Signalled):
            unraisable(found)
            return
        timer = threading.Timer(_SOON, os.kill, (os.getpid(), found.exc_value.number))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        if sys.unraisablehook is again:
            sys.unraisablehook = unraisable
        for number, found in before.items():
            signal.signal(number, found)
