"""Rewards in worker processes: for those that are slow, are not thread-safe, hang or die."""

import base64
import functools
import inspect
import json
import math
import pickle
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from evolora.errors import InputError
from evolora.rewards.base import FailedReward, Reward, Value, reward_name
from evolora.rewards.output import BoundedLog
from evolora.rewards.processes import Program, ProgramError, TimedOutError

CHUNK = 8
_LOGS = ("log_extra", "log_metric")
_START_LIMIT = 600.0
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class WorkerPool:
    """A reward that runs another one in `workers` processes.

    `spec` is what `load_reward` takes, or a function or object that the workers can load by pickle: one defined at the
    top level of a module or of a script. It is loaded once in the constructor, and InputError raised where it cannot
    be. Each worker is a fresh Python (nothing of this process's memory or CUDA state is in it) on one thread.

    A batch is cut into chunks of at most 8 completions, spread over the workers; results come in the batch's order.
    With a `timeout` in seconds, a chunk may take that long for each of its completions. When the reward fails on a
    chunk, takes longer, or ends its worker (`os._exit`, a crash, the system's out-of-memory killer), the worker is
    replaced where needed and the chunk's completions are tried one at a time. Those that fail alone become
    `FailedReward`s. After `max_deaths` workers in a row that died without a single answer between, the rest of the
    batch is not tried.

    A reward with `compares = True` gets every batch whole, in one worker, and is not tried again.

    What the workers and their child processes print, also by file descriptor, goes to `log`, up to 1 MB, or to stderr,
    up to 64 kB. `close` ends the workers; so do the end of this process, however it comes, and Ctrl-C while a batch is
    scored (they are started anew when they are needed again).
    """

    compares: bool
    __signature__: inspect.Signature

    def __init__(
        self,
        spec: str | Reward,
        *,
        workers: int,
        timeout: float | None = None,
        log: Path | None = None,
        max_deaths: int = 20,
    ) -> None:
        if workers < 1:
            raise InputError(f"reward workers: {workers} were asked for, expected at least 1.")
        if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
            raise InputError(f"reward timeout is {timeout}, expected a positive number of seconds.")
        self._label = spec if isinstance(spec, str) else reward_name(spec)
        self._setup = json.dumps(_setup(spec)).encode()
        self._log = BoundedLog(log)
        self._max_deaths = max_deaths
        self._timeout = timeout
        self._slots: list[Program | None] = [None] * workers
        described = self._start(0)
        self.__name__ = str(described["name"])
        self.compares = bool(described["compares"])
        if described["version"] is not None:
            self.version = str(described["version"])
        self.__signature__ = _signature(described["parameters"])

    def use_log(self, log: BoundedLog) -> None:
        """Let what the workers print go to `log`, from the next one that is started on."""
        if self._log.path is None and log.path is not None:
            self._log.path, self._log.limit = log.path, log.limit

    def __call__(self, **columns: Any) -> list[Value]:
        extras = {name: columns.pop(name) for name in (*_LOGS, "trainer_state") if name in columns}
        count = len(next(iter(columns.values()), ()))
        size = count if self.compares else CHUNK
        chunks = [range(start, min(start + size, count)) for start in range(0, count, max(size, 1))]
        batch = _Batch(columns, extras, chunks, [None] * count, [_Logged() for _ in chunks])
        threads = [
            threading.Thread(target=self._work, args=(slot, batch), daemon=True, name=f"evolora-reward-{slot}")
            for slot in range(min(len(self._slots), len(chunks)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C: its thread would wait for an answer
            batch.stopped = True
            self.close()
            raise
        if batch.error is not None:
            raise batch.error
        for logged in batch.logged:
            for name, values in logged.metrics.items():
                for value in values:
                    extras["log_metric"](name, value)
            for name, cells in logged.extra.items():
                extras["log_extra"](name, cells)
        return batch.values

    def close(self) -> None:
        """End the workers."""
        for slot, program in enumerate(self._slots):
            self._slots[slot] = None
            if program is not None:
                program.end()
        self._log.close()

    def _work(self, slot: int, batch: "_Batch") -> None:
        """Take chunk after chunk, on a thread for each worker."""
        try:
            while (number := batch.take()) is not None:
                self._score_chunk(slot, batch, number)
        except BaseException as error:
            batch.error = batch.error or error

    def _score_chunk(self, slot: int, batch: "_Batch", number: int) -> None:
        chunk = batch.chunks[number]
        outcome = self._ask(slot, batch, number, chunk)
        if isinstance(outcome, FailedReward) and len(chunk) > 1 and not self.compares:
            singles = [self._ask(slot, batch, number, range(index, index + 1)) for index in chunk]
            outcome = [single if isinstance(single, FailedReward) else single[0] for single in singles]
        if isinstance(outcome, FailedReward):
            outcome = [outcome] * len(chunk)
        for index, value in zip(chunk, outcome, strict=True):
            batch.values[index] = value

    def _ask(self, slot: int, batch: "_Batch", number: int, rows: range) -> list[Value] | FailedReward:
        """What a worker says to these rows of the batch; one failure for all of them where it says nothing."""
        if batch.stopped or batch.deaths > self._max_deaths:
            return FailedReward(f"was not called: {batch.deaths} worker processes had died in a row", None, batch.why)
        limit = None if self._timeout is None else self._timeout * len(rows)
        line = base64.b64encode(pickle.dumps(batch.question(rows, limit), protocol=pickle.HIGHEST_PROTOCOL))
        try:
            if self._slots[slot] is None:
                self._start(slot)
            program = self._slots[slot]
            assert program is not None
            answer = json.loads(program.ask(line, limit))
        except (ProgramError, InputError, OSError) as error:
            self._slots[slot] = None
            failure = _blamed(error, self._timeout)
            batch.died(failure)
            return failure
        batch.deaths = 0
        values: object = answer["values"]
        if isinstance(values, dict):
            return FailedReward(values["what"], None, values["details"])
        assert isinstance(values, list)
        batch.logged[number].add(answer)
        return [FailedReward(v["what"], None, v["details"]) if isinstance(v, dict) else v for v in values]

    def _start(self, slot: int) -> dict[str, Any]:
        """Start the worker of a slot and wait until it has loaded the reward; what it says of it."""
        argv = [sys.executable, "-u", "-P", str(Path(__file__).with_name("worker.py"))]
        program = Program(argv, self._log, env=_ONE_THREAD)
        self._slots[slot] = program
        expected = "expected one that loads in a fresh Python process."
        try:
            described: dict[str, Any] = json.loads(program.ask(self._setup, _START_LIMIT))
        except ProgramError as error:
            self._slots[slot] = None
            last = " ".join(error.details.split())
            raise InputError(
                f"reward {self._label}: the worker process {error.what} while it loaded the reward"
                f"{f' ({last})' if last else ''}, {expected}"
            ) from None
        except BaseException:
            self._slots[slot] = None
            program.end()
            raise
        if "parameters" not in described:
            self._slots[slot] = None
            program.end()
            raise InputError(
                described.get("refused")
                or f"reward {self._label} cannot be loaded in a worker process ({described['unloadable']}), {expected}"
            )
        return described


@dataclass
class _Logged:
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[object]] = field(default_factory=dict)

    def add(self, answer: Mapping[str, Any]) -> None:
        for name, values in answer["metrics"].items():
            self.metrics.setdefault(name, []).extend(values)
        for name, cells in answer["extra"].items():
            self.extra.setdefault(name, []).extend(cells)


@dataclass
class _Batch:
    """A batch under way, shared by the threads."""

    columns: Mapping[str, Sequence[object]]
    extras: Mapping[str, Any]
    chunks: list[range]
    values: list[Value]
    logged: list[_Logged]
    taken: int = 0
    deaths: int = 0
    why: str = ""
    stopped: bool = False
    error: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> int | None:
        with self.lock:
            if self.taken == len(self.chunks) or self.stopped or self.error is not None:
                return None
            self.taken += 1
            return self.taken - 1

    def died(self, failure: FailedReward) -> None:
        with self.lock:
            self.deaths += 1
            self.why = f"the last {failure.what}"

    def question(self, rows: range, limit: float | None) -> dict[str, object]:
        keywords: dict[str, object] = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        if "trainer_state" in self.extras:
            keywords["trainer_state"] = self.extras["trainer_state"]
        logs = [name for name in _LOGS if name in self.extras]
        return {"keywords": keywords, "count": len(rows), "logs": logs, "limit": limit}


def _blamed(error: ProgramError | InputError | OSError, timeout: float | None) -> FailedReward:
    if isinstance(error, TimedOutError):
        return FailedReward(f"took longer than {timeout:g} s", None, error.details)
    if isinstance(error, ProgramError):
        return FailedReward(f"died: the worker process {error.what}", None, error.details)
    return FailedReward(f"was not called: no worker process could be started: {error}")


def _setup(spec: str | Reward) -> dict[str, object]:
    """What a worker is told at its start."""
    setup: dict[str, object] = {
        "path": sys.path,
        "argv": sys.argv,
        "spec": spec if isinstance(spec, str) else None,
        "main": None,
        "files": [],
    }
    if isinstance(spec, str):
        return setup
    expected = "expected a function at the top level of a file or module, which worker processes can import."
    try:
        setup["pickle"] = base64.b64encode(pickle.dumps(spec)).decode()
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"reward {reward_name(spec)} cannot be handed to worker processes ({what}), {expected}"
        ) from None
    files = []
    for owner in _owners(spec):
        module = sys.modules.get(str(getattr(owner, "__module__", None)))
        path = getattr(module, "__file__", None)
        if isinstance(module, ModuleType) and module.__name__ == "__main__":
            if path is None:
                raise InputError(f"reward {reward_name(spec)} is defined in an interactive session, {expected}")
            setup["main"] = str(Path(path).resolve())
        elif isinstance(module, ModuleType) and module.__name__.startswith("evolora_reward_"):
            files.append(f"{path}:{str(getattr(owner, '__qualname__', '')).split('.')[0]}")
    setup["files"] = files
    return setup


def _owners(spec: object) -> list[Callable[..., object] | type]:
    """The function that a reward is, or those that it holds and its class."""
    while isinstance(spec, functools.partial):
        spec = spec.func
    if inspect.isfunction(spec):
        return [spec]
    return [type(spec)]


def _signature(parameters: Sequence[Sequence[Any]]) -> inspect.Signature:
    return inspect.Signature(
        [
            inspect.Parameter(
                name, inspect._ParameterKind(kind), default=None if has_default else inspect.Parameter.empty
            )
            for name, kind, has_default in parameters
        ]
    )
