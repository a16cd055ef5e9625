"""Compiling ahead what a run needs, on all cores, so that nobody waits before a silent screen.

numba compiles with one thread at a time. Here processes share the work by way of the kept files (`cache`), and this one
only reads those.
"""

import contextlib
import pickle
import queue
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numba.core import event

from evolora.engine.cpu import cache
from evolora.engine.progress import Progress

_COMPILING = "compiling the CPU kernels, once per installation"
# The longest chain of kernels that are parts of each other is about a sixth of all the work.
_MOST_WORKERS = 8


class Version(NamedTuple):
    """A kernel for one list of argument types."""

    kernel: Any
    types: tuple[Any, ...]

    @classmethod
    def declared(cls, kernel: Any) -> "Version":
        """For the types beside its definition."""
        return cls(kernel, kernel.declared)

    @property
    def kept(self) -> bool:
        """Whether nothing has to be compiled for it."""
        return self.types in self.kernel.overloads or self.kernel._cache.has(self.types)


def prepare(versions: Sequence[Version], progress: Progress, *, workers: int) -> None:
    """Compile what is not kept yet, in up to so many processes, and tell from now on of what else is compiled."""
    missing = [version for version in versions if not version.kept]
    _telling.begin(None)
    if missing and (why := cache.unwritable()) is not None:
        progress.say(f"The compiled CPU kernels cannot be kept, and will be compiled in each run: {why}")
    elif missing:
        with contextlib.suppress(OSError):  # no process can be started
            _compile_side_by_side(missing, progress, min(workers, len(missing), _MOST_WORKERS))
    # What no other process could do, as where one was killed for its memory.
    left = [version for version in missing if not version.kept]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that it cannot be kept has been said
        for number, (kernel, types) in enumerate(left):
            progress.progress(_COMPILING, len(missing) - len(left) + number, len(missing))
            kernel.compile(types)
    if left:
        progress.progress(_COMPILING, len(missing), len(missing))
    _telling.begin(progress)


def _compile_side_by_side(missing: Sequence[Version], progress: Progress, workers: int) -> None:
    """Into the kept files. One process compiles here, without another."""
    if workers < 2:
        return
    plan, finished = _Plan(missing), queue.SimpleQueue[bool]()
    processes: list[subprocess.Popen[bytes]] = []
    threads: list[threading.Thread] = []
    try:
        for _ in range(workers):
            processes.append(_start_worker())
        for process in processes:
            threads.append(threading.Thread(target=_feed, args=(process, plan, finished)))
            threads[-1].start()
        done, running = 0, len(threads)
        progress.progress(_COMPILING, 0, len(missing))
        while running:
            if finished.get():
                done += 1
                progress.progress(_COMPILING, done, len(missing))
            else:
                running -= 1
    finally:
        plan.stop()
        for process in processes:
            process.kill()
            process.wait()
        for thread in threads:
            thread.join()


def _start_worker() -> subprocess.Popen[bytes]:
    # -P: what is beside the script is not to be taken for modules of the same names elsewhere.
    script = Path(__file__).with_name("compile_worker.py")
    return subprocess.Popen(
        [sys.executable, "-P", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _feed(process: "subprocess.Popen[bytes]", plan: "_Plan", finished: "queue.SimpleQueue[bool]") -> None:
    """Give a worker one version after another; true into `finished` for each that it has done, false at the end."""
    assert process.stdin is not None and process.stdout is not None
    try:
        pickle.dump(sys.path, process.stdin)
        while (index := plan.take()) is not None:
            kernel, types = plan.versions[index]
            done = False
            try:
                pickle.dump((kernel.__module__, kernel.__name__, types), process.stdin)
                process.stdin.flush()
                answer = process.stdout.readline()
                done = answer == b"done\n"
            finally:
                plan.give(index)
            if done:
                finished.put(True)
            elif not answer:
                return
    except OSError:  # it has ended
        return
    finally:
        finished.put(False)
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


class _Plan:
    """Who compiles what when: what is a part of others before these, which read it then; else in order."""

    def __init__(self, versions: Sequence[Version]) -> None:
        self.versions = versions
        kernels = [version.kernel for version in versions]
        self._parts = [cache.parts(kernel.py_func) for kernel in kernels]
        self._waiting = list(range(len(versions)))
        self._compiling: set[int] = set()
        self._changed = threading.Condition()
        self._stopped = False

    def take(self) -> int | None:
        """The next version's index, once there is one whose parts are done; None if there are no more."""
        with self._changed:
            while not self._stopped and self._waiting:
                pending = {self.versions[index].kernel for index in (*self._waiting, *self._compiling)}
                for index in self._waiting:
                    if not (self._parts[index] - {self.versions[index].kernel}) & pending:
                        self._waiting.remove(index)
                        self._compiling.add(index)
                        return index
                self._changed.wait()
            return None

    def give(self, index: int) -> None:
        """It is done, or will not be."""
        with self._changed:
            self._compiling.discard(index)
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class _Telling(event.Listener):  # type: ignore[misc]
    """Tells of what is compiled in this process because it was not foreseen."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._depth = 0  # numba compiles with one thread at a time
        self._registered = False

    def begin(self, progress: Progress | None) -> None:
        """Tell it there from now on, or not."""
        self._progress = progress
        if not self._registered:
            event.register("numba:compile", self)
            self._registered = True

    def on_start(self, event: Any) -> None:
        self._depth += 1
        function = event.data["dispatcher"].py_func
        if self._depth == 1 and self._progress is not None and function.__module__.startswith("evolora."):
            self._progress.say(f"compiling the CPU kernel {function.__name__}, once per installation")

    def on_end(self, _event: Any) -> None:
        self._depth -= 1


_telling = _Telling()
