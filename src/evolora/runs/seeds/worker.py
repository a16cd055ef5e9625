"""What runs one of several seeds side by side: the file is the program, started with `python -P worker.py`.

It reads one line with what it is to do, and writes lines of JSON: what the run says, and at last how it ended. It ends
when its parent does. See `workers.py` for the other side.
"""

import base64
import io
import json
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any


class _Lines(io.TextIOBase):
    """Text as lines, each of which is sent."""

    encoding = "utf-8"

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._begun = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._send({"say": line})
        return len(text)


def main() -> int:
    """Run or resume one seed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while nothing is there yet
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a reward has no keyboard
    os.dup2(2, 1)
    writing = threading.RLock()  # a signal's handler speaks, too

    def send(message: dict[str, Any]) -> None:
        with writing:
            answers.write(json.dumps(message).encode() + b"\n")
            answers.flush()

    setup = json.loads(asked.readline())
    threading.Thread(target=_leave_with, args=(asked,), daemon=True).start()
    sys.path[:] = setup["path"]
    _use_only(setup["cores"])
    sys.stdout = _Lines(send)
    from evolora.signals import answered_by, interrupt

    try:
        with answered_by(interrupt):
            send(_done(pickle.loads(base64.b64decode(setup["job"]))))
    except KeyboardInterrupt as end:
        send({"end": "interrupted", "number": int(getattr(end, "number", signal.SIGINT))})
    return 0


def _done(job: dict[str, Any]) -> dict[str, Any]:
    from evolora.runs.quiet import quieten

    quieten()  # before anything imports what it quietens
    from evolora.errors import CheckpointError, EngineError, InputError, RewardError, ran_out
    from evolora.runs.given import Given
    from evolora.runs.seeds.run import peft_config_in, run_seed
    from evolora.runs.tracking.choice import choose_view

    try:
        given = Given(peft_config=peft_config_in(job["folder"]))
        run_seed(
            job["folder"], job["seed"], job["words"], given, choose_view(), accept_changes=job["accept_changes"]
        )  # fmt: skip
    except (InputError, RewardError, CheckpointError, EngineError) as error:
        return {"end": type(error).__name__, "said": str(error)}
    except Exception as error:
        if (lacked := ran_out(error)) is None:
            traceback.print_exc()
        return {"end": "failed", "said": lacked or ""}
    return {"end": "finished"}


def _leave_with(parent: Any) -> None:
    """Its pipe ends when the parent does, however that does."""
    parent.read()
    os._exit(1)


def _use_only(cores: list[int]) -> None:
    """Nobody here, torch and numba and what a reward starts included, uses more of the machine."""
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    else:
        os.cpu_count = lambda: len(cores)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # a thread of a reward's would keep the process for as long as it likes
