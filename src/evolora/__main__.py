"""The program `evolora`, also `python -m evolora`.

It imports next to nothing before it answers signals: the rest takes seconds, in which Ctrl-C is a sentence too.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TextIO, cast

from evolora.screen import Screen
from evolora.signals import ENDING, NOTHING_YET, Signalled, answered_by, exit_now, interrupt

# What these leave is in their folder, whatever the screen shows.
_RUNS = (["train"], ["resume"], ["rate"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, as `evolora.cli.main`, in a process that is its own."""
    for number in range(3):  # one that is closed: the next file that is opened must not take its place
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out = Screen(sys.stdout)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, Screen(sys.stderr))
    try:
        with answered_by(interrupt):
            from evolora.cli import main as command

            code = command(arguments)
            sys.stdout.flush()
            said = list(sys.argv[1:] if arguments is None else arguments)
            if code == 0 and out.lost is not None and (said[:1] not in _RUNS or "--dry-run" in said):
                print(f"evolora: what was to be shown is lost: {out.lost.strerror}", file=sys.stderr)
                code = 1
            if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
                sys.stderr.flush()
                exit_now(code)  # a thread of a reward's would keep the process for as long as it likes
            return code
    except Signalled as signalled:
        print(NOTHING_YET, file=sys.stderr)
        return 128 + signalled.number
    finally:
        sys.stdout.flush()
        for number in ENDING:  # Python's own end takes a moment too
            if signal.getsignal(number) is signal.default_int_handler:
                signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
