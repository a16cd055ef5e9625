"""Programs that answer lines: started in a group of their own, asked with a time limit, ended with all they started."""

import atexit
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence

from evolora.masking import concealed_bytes, conceals
from evolora.rewards.output import BoundedLog

MAX_LINE = 64 * 2**20
_TAIL = 2000
_LONGEST = 2**16


class ProgramError(Exception):
    """The program did not answer: `what` goes on after "the program ..."; `details` is what it last wrote to stderr."""

    def __init__(self, what: str, details: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.details = details


class TimedOutError(ProgramError):
    """It did not answer in time."""


class Program:
    """A child process that is sent lines and answers each with a line. What it writes to stderr goes to `log`.

    It leads a session of its own: Ctrl-C reaches only its parent, and `end` also ends what it has started. Threads read
    and write its pipes, so that neither side waits for the other with a full pipe. It is ended when Python leaves.
    """

    def __init__(self, argv: Sequence[str], log: BoundedLog, *, env: Mapping[str, str] | None = None) -> None:
        if _leaving.is_set():
            raise ProgramError("was not started: Python is leaving")
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        self._log = log
        self._tail = b""
        self._ended = False
        self._ending = threading.Lock()
        self._questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # Of bounded length: a program that writes unasked must wait.
        self._answers: queue.Queue[bytes] = queue.Queue(maxsize=4)
        self._threads = [
            threading.Thread(target=run, daemon=True, name=f"evolora-{run.__name__[1:]}")
            for run in (self._write, self._read, self._drain)
        ]
        for thread in self._threads:
            thread.start()
        _programs.add(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, line: bytes, timeout: float | None) -> bytes:
        """The line that answers `line`, without its line break. After a ProgramError the program is no more."""
        self._questions.put(line + b"\n")
        return self.answer(timeout)

    def answer(self, timeout: float | None) -> bytes:
        """The next line that it writes."""
        try:
            found = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.end()
            assert timeout is not None
            raise TimedOutError(f"took longer than {timeout:g} s", self._last_words()) from None
        if not found.endswith(b"\n"):
            self.end()
            if len(found) > MAX_LINE:
                raise ProgramError("wrote a line of more than 64 MiB", self._last_words())
            raise ProgramError(_ending(self._process.returncode), self._last_words())
        return found.rstrip(b"\r\n")

    def unasked(self) -> bytes | None:
        """A line that it wrote without having been asked, if there is one."""
        with contextlib.suppress(queue.Empty):
            found = self._answers.get_nowait()
            if found.endswith(b"\n"):
                return found.rstrip(b"\r\n")
            self._answers.put(found)  # its end, or an endless line: for the next answer
        return None

    def writes_on(self, wait: float) -> bool:
        """Whether several lines that nobody asked for are there `wait` seconds from now."""
        time.sleep(wait)
        return self._answers.qsize() > 1

    def end(self) -> None:
        """Kill it and everything in its group."""
        with self._ending:
            if self._ended:
                return
            self._ended = True
            _programs.discard(self)
            # Before it is waited for: until then nobody else can be given its number.
            with contextlib.suppress(OSError):
                if hasattr(os, "killpg"):
                    os.killpg(self.pid, signal.SIGKILL)
                else:
                    self._process.kill()
            self._process.wait()
            self._questions.put(None)
            for thread in self._threads:
                # A process that left the group may hold on to the pipes; its threads end with it, or with Python.
                thread.join(timeout=0.5)

    def _write(self) -> None:
        assert self._process.stdin is not None
        # When it reads no more, it is the reading side that finds out why.
        with contextlib.suppress(OSError), self._process.stdin as stdin:
            while (line := self._questions.get()) is not None:
                stdin.write(line)
                stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            ends = False
            while not ends:
                line = stdout.readline(MAX_LINE + 1)
                ends = not line.endswith(b"\n")
                while not self._ended:
                    with contextlib.suppress(queue.Full):
                        self._answers.put(line, timeout=0.05)
                        break
            if self._ended:
                with contextlib.suppress(queue.Full):
                    self._answers.put_nowait(b"")  # for another thread that still waits for an answer

    def _drain(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            rest = b""
            while found := os.read(stderr.fileno(), 65536):
                self._tail = concealed_bytes(self._tail + found)[-_TAIL:]
                if conceals():  # in whole lines: what must not be shown could stand in two parts
                    found, newline, rest = (rest + found).rpartition(b"\n")
                    found += newline
                    if len(rest) > _LONGEST:
                        found, rest = found + rest, b""
                self._log.write(found, sys.stderr)
            self._log.write(rest, sys.stderr)

    def _last_words(self) -> str:
        text = self._tail.decode("utf-8", "replace").strip()
        return f"its last output:\n{text}" if text else ""


_programs: weakref.WeakSet[Program] = weakref.WeakSet()
_leaving = threading.Event()


@atexit.register
def _end_all() -> None:
    _leaving.set()
    for program in list(_programs):
        program.end()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"
