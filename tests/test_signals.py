"""A signal ends what is under way, wherever it comes."""

import os
import signal
import sys
import time
import weakref

import pytest

from evolora.signals import Signalled, answered_by, interrupt


def test_one_that_a_callback_of_pythons_own_swallows_comes_again() -> None:
    class Gone:
        pass

    signals = []

    def ask(number: int, frame: object) -> None:
        signals.append(number)
        interrupt(number, None)

    gone = Gone()
    watch = weakref.ref(gone, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    usual = sys.unraisablehook
    with pytest.raises(Signalled) as ended, answered_by(interrupt):
        signal.signal(signal.SIGTERM, ask)
        del gone  # what the handler raises here is swallowed
        for _ in range(1000):
            time.sleep(0.01)
    assert ended.value.number == signal.SIGTERM and signals == [signal.SIGTERM] * 2
    assert watch() is None and sys.unraisablehook is usual
