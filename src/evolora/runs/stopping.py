"""How a run is asked to end: Ctrl-C and its like."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from evolora.signals import Signalled, answered_by


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or the signal `number`, ended a run after its checkpoint was written; `folder` is the run to resume."""

    def __init__(self, folder: Path, number: int = signal.SIGINT) -> None:
        super().__init__(str(folder))
        self.folder = folder
        self.number = number


class Stop:
    """Whether a run has been asked to end after its generation, and by which signal. Another one ends it at once, as
    does the first when no generation is under way and it is not `patient`; none does while it is `saving`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.number: int | None = None
        self.patient = True
        self._say = say
        self._saving = False

    def __call__(self) -> bool:
        return self.number is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals ask. Only Python's main thread hears any."""
        main = threading.current_thread() is threading.main_thread()
        with answered_by(self._ask) if main else nullcontext():
            yield

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Inside, signals wait in vain: what is whole is being written, which takes seconds at most."""
        self._saving = True
        try:
            with self.listening():
                yield
        finally:
            self._saving = False

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self._saving:
            return
        if self.number is not None or not self.patient:
            raise Signalled(number)
        self.number = number
        again = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self._say(f"Interrupted: finishing this generation and its checkpoint; {again} again stops at once.")
