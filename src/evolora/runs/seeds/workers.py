"""Seeds side by side: a process for each, its share of the cores, its lines with the seed before them."""

import base64
import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evolora.engine.calibration import available_cores
from evolora.errors import CheckpointError, EngineError, InputError, RewardError
from evolora.lock import owned
from evolora.runs.options import Source
from evolora.runs.seeds import worker
from evolora.runs.seeds.folder import seed_folder
from evolora.signals import Signalled, answered_by

_ERRORS = {error.__name__: error for error in (InputError, RewardError, CheckpointError, EngineError)}
# How long the processes of a run that was killed may take to notice.
_PATIENCE = 20.0


class _Process:
    """The run of one seed. It leads a session of its own, so that signals reach it by way of this process only, and it
    ends when this process does."""

    def __init__(
        self, seed: int, job: bytes, told: "queue.SimpleQueue[tuple[_Process, dict[str, Any] | None]]"
    ) -> None:
        self.seed = seed
        self.end: dict[str, Any] = {}
        self.spoke = False
        self.stopped_by: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(worker.__file__)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone: its end will say so
            self._process.stdin.write(job + b"\n")
            self._process.stdin.flush()  # and stays open
        threading.Thread(target=self._read, args=(told,), daemon=True).start()

    def _read(self, told: "queue.SimpleQueue[tuple[_Process, dict[str, Any] | None]]") -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # a kill cut it short
                    told.put((self, json.loads(line)))
        told.put((self, None))

    def stop(self, number: int) -> None:
        """Ask it to end; before it has said anything, it has nothing to keep."""
        self.stopped_by = number
        with contextlib.suppress(OSError):
            self._process.send_signal(number if self.spoke else signal.SIGKILL)

    def wait(self) -> int:
        assert self._process.stdin is not None
        code = self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        return code


def side_by_side(
    folder: Path,
    seeds: Sequence[int],
    words: Source,
    *,
    workers: int,
    accept_changes: bool,
    say: Callable[[str], None],
    ended: Callable[[], None],
) -> None:
    """Run or resume all `seeds`, so many at a time; `ended` is called after each. What ends one of them ends all, each
    after its generation, and is raised then; so are the signals that ask a program to end, which are passed on."""
    told: queue.SimpleQueue[tuple[_Process, dict[str, Any] | None]] = queue.SimpleQueue()
    waiting, running = list(seeds), dict[int, _Process]()  # by the share of the cores
    asked: list[int] = []
    failure: BaseException | None = None

    def stop(number: int) -> None:
        for process in running.values():
            process.stop(number)

    def ask(number: int, _: object) -> None:
        asked.append(number)
        stop(number)

    main = threading.current_thread() is threading.main_thread()
    with answered_by(ask) if main else contextlib.nullcontext():
        try:
            while running or (waiting and not asked and failure is None):
                while waiting and len(running) < workers and not asked and failure is None:
                    seed, share = waiting.pop(0), next(each for each in range(workers) if each not in running)
                    _until_left(seed_folder(folder, seed))
                    running[share] = _Process(seed, _job(folder, seed, words, share, workers, accept_changes), told)
                    if asked:  # meanwhile
                        stop(asked[0])
                process, message = told.get()
                if message is not None and "say" in message:
                    process.spoke = True
                    say(f"seed {process.seed}  {message['say']}")
                elif message is not None:
                    process.end = message
                else:
                    found = _failure(process, process.wait())
                    running = {share: each for share, each in running.items() if each is not process}
                    if found is None:
                        ended()
                    elif failure is None:
                        failure = found
                        if not asked:
                            stop(signal.SIGTERM)
        finally:
            stop(signal.SIGTERM)  # whatever was raised here
            for process in running.values():
                process.wait()
    if asked and (failure is None or isinstance(failure, KeyboardInterrupt)):
        raise Signalled(asked[0]) from failure
    if failure is not None:
        raise failure


def _job(folder: Path, seed: int, words: Source, share: int, workers: int, accept_changes: bool) -> bytes:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(available_cores()))
    each = len(cores) // workers  # of all the same: how many threads there are rounds otherwise
    own = cores[share * each : (share + 1) * each]
    said = {"folder": folder, "seed": seed, "words": words, "accept_changes": accept_changes}
    return json.dumps(
        {"path": sys.path, "cores": own, "job": base64.b64encode(pickle.dumps(said)).decode()}
    ).encode()  # fmt: skip


def _until_left(run: Path) -> None:
    """Wait for a process whose parent was killed to leave the run."""
    deadline = time.monotonic() + _PATIENCE
    while run.is_dir():
        try:
            with owned(run, lambda _: None):
                return
        except InputError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _failure(process: _Process, code: int) -> BaseException | None:
    """What ended it before its run was finished, if anything did."""
    kind, said = process.end.get("end"), process.end.get("said", "")
    if kind == "finished":
        return None
    if kind == "interrupted":
        return Signalled(process.end["number"])
    if kind == "InputError":
        return InputError(said)
    if kind in _ERRORS:
        return _ERRORS[kind](f"seed {process.seed}: {said}")
    if process.stopped_by is not None:
        return Signalled(process.stopped_by)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return ChildProcessError(f"seed {process.seed}: {said or f'its process {how}'}")
