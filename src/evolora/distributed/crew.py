"""Whoever does the jobs of a batch: `Crew`, and the one in this process."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from evolora.distributed.jobs import AnyJob, Backward, Worker
from evolora.engine.base import Engine
from evolora.engine.threads import Threads


class Crew(Protocol):
    """Workers, of which nobody outside knows how many there are."""

    def start(self) -> None:
        """Get the first of them to work. Raises InputError where there can be none."""
        ...

    def words(self) -> str:
        """Who they are, for the log."""
        ...

    def run(self, jobs: Sequence[AnyJob]) -> list[Any]:
        """The answers, in the order of the jobs."""
        ...

    def forget(self, keys: Iterable[int]) -> None:
        """What these jobs have left at a worker is not needed any more."""
        ...

    def engines(self, like: Engine) -> Sequence[Engine]:
        """The workers, each as an engine `like` one, to be asked by itself."""
        ...

    def dismiss(self, one: Engine) -> bool:
        """Let one of these go. Whether others can do what it did."""
        ...

    def metrics(self) -> dict[str, float]:
        """What a generation's metrics say of it, since they were last asked for."""
        ...

    def close(self) -> None:
        """Let the workers go."""
        ...


class Waiting:
    """The jobs that nobody has begun, for a worker that is free: first those for which it has kept something, then any
    that no other one has kept something for."""

    def __init__(self, jobs: Sequence[AnyJob], holders: Mapping[int, int]) -> None:
        self._anyone: deque[int] = deque()
        self._own: dict[int, deque[int]] = {}
        for index, job in enumerate(jobs):
            holder = None if job.needs is None else holders.get(job.needs)
            (self._anyone if holder is None else self._own.setdefault(holder, deque())).append(index)

    def take(self, worker: int) -> int | None:
        """A job's index for this worker; None where there is none for it."""
        for some in (self._own.get(worker), self._anyone):
            if some:
                return some.popleft()
        return None

    def again(self, index: int) -> None:
        """Nobody will answer this one: it is the next."""
        self._anyone.appendleft(index)

    def lost(self, worker: int) -> None:
        """What this worker has kept is gone."""
        self._anyone.extendleft(reversed(self._own.pop(worker, ())))

    def clear(self) -> None:
        """Nobody need begin any more."""
        self._anyone.clear()
        self._own.clear()


class LocalCrew:
    """Workers in threads of this process, each of which shares an operation among so many `threads`. They are made when
    there is work for them."""

    def __init__(self, workers: Sequence[Callable[[], Worker]], *, threads: int = 1) -> None:
        self._made: dict[int, Worker] = {}
        self._make = workers
        self._threads = threads
        self._runner = Threads(len(workers))
        self._holders: dict[int, int] = {}
        self._forgotten: list[int] = []

    def start(self) -> None:
        """See `Crew.start`."""

    def words(self) -> str:
        """See `Crew.words`."""
        return f"this process, {len(self._make)} at a time"

    def run(self, jobs: Sequence[AnyJob]) -> list[Any]:
        """See `Crew.run`."""
        self._tidy()
        for index in range(min(len(jobs), len(self._make))):
            if index not in self._made:
                self._made[index] = self._make[index]()
        answers: list[Any] = [None] * len(jobs)
        waiting, lock = Waiting(jobs, self._holders), threading.Lock()

        def take(worker: int) -> int | None:
            with lock:
                index = waiting.take(worker)
                if index is not None:
                    self._holders[jobs[index].key] = worker
                return index

        def work(worker: int) -> None:
            torch.set_num_threads(self._threads)
            device = self._made[worker].engine.device
            current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
            try:
                with current:
                    while (index := take(worker)) is not None:
                        answers[index] = self._made[worker].do(jobs[index])
            except BaseException:
                with lock:
                    waiting.clear()
                raise

        self._runner.side_by_side(work, len(self._made))
        self.forget(job.key for job in jobs if isinstance(job, Backward))
        return answers

    def forget(self, keys: Iterable[int]) -> None:
        """See `Crew.forget`. It may be called from anywhere, and is done before the next jobs."""
        self._forgotten.extend(keys)

    def _tidy(self) -> None:
        forgotten, self._forgotten = self._forgotten, []
        for key in forgotten:
            if (worker := self._holders.pop(key, None)) is not None:
                self._made[worker].forget([key])

    def engines(self, like: Engine) -> Sequence[Engine]:
        """See `Crew.engines`."""
        del like
        return [worker.engine for worker in self._made.values()]

    def dismiss(self, one: Engine) -> bool:
        """See `Crew.dismiss`. What is wrong with one of them is wrong with this process."""
        del one
        return False

    def metrics(self) -> dict[str, float]:
        """See `Crew.metrics`."""
        return {}

    def close(self) -> None:
        """See `Crew.close`."""
        self._runner.close()
        for worker in self._made.values():
            worker.engine.close()
