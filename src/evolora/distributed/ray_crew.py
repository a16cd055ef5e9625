"""Workers on other machines, or in other processes, as actors of Ray: whoever is free takes the next slice, and whoever
is lost, late or wrong is replaced, and its slices are done again."""

import contextlib
import hashlib
import itertools
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from evolora.distributed.cluster import connect, leave, room
from evolora.distributed.crew import LocalCrew, Waiting
from evolora.distributed.engine import DealtEngine
from evolora.distributed.jobs import AnyJob, Backward, Worker
from evolora.distributed.remote import EngineSpec, RemoteWorker, about, differences
from evolora.distributed.wire import packed, unpacked
from evolora.engine.base import Engine
from evolora.errors import InputError

# A slice that this many workers died of, one after another, is at fault itself.
_MOST_DEATHS = 5
# How long a slice may take where nobody has said it: so many times the longest one of its kind so far, and at least so
# many seconds; before there was one, as long as compiling, or reading weights for the first time, may take.
_TIMES_LONGEST, _LEAST_LIMIT, _FIRST_LIMIT = 20.0, 120.0, 1800.0
_SECONDS_TO_START = 1800.0
_SECONDS_BETWEEN_LOOKS = 2.0
# Of workers that cannot be had, or that die before they are ready, so many in a row end the run while there is no
# other; otherwise none is asked for again before so long.
_MOST_REFUSALS, _MOST_STILLBORN, _SECONDS_AFTER_REFUSAL = 3, 8, 30.0
# Genomes that a worker keeps; one that is needed is kept in any case.
_BYTES_KEPT = 2**30


class Check(Protocol):
    """Whoever looks at answers."""

    def asked(self, job: AnyJob) -> AnyJob:
        """The job whose answer can be looked at."""
        ...

    def differs(self, job: AnyJob, answer: Any) -> str | None:
        """What is wrong with an answer, in words."""
        ...


@dataclass
class _Member:
    """A worker, and what is known of it."""

    number: int
    actor: Any
    about: dict[str, str] | None = None
    genomes: OrderedDict[str, int] = field(default_factory=OrderedDict)  # those that it has, and their bytes
    doing: int | None = None  # the index of its job
    since: float = 0.0
    forgets: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"worker {self.number}" + (f" on {self.about['node']}" if self.about is not None else "")


class RayCrew:
    """`count` workers, or as many as the cluster has room for, each of which takes so many CPUs as it has threads, and
    so many `gpus`.

    Answers are looked at by `check`; `own` is the driver's engine; `limit` seconds are what a slice may take; `say` is
    told what happens to workers.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        address: str | None,
        count: int | None,
        gpus: float,
        limit: float | None,
        own: Engine,
        check: Check | None,
        say: Callable[[str], None],
    ) -> None:
        self._spec, self._count, self._cpus, self._gpus = spec, count, float(spec.threads), gpus
        self._limit, self._check, self._say, self._address = limit, check, say, address
        self.own, self.alone = Worker(own), threading.Lock()
        self._started_here = False
        self._ray: Any = None
        self._actor: Any = None
        self._members: dict[int, _Member] = {}
        self._starting: dict[Any, _Member] = {}  # by what each is waited for
        self._numbers = 0
        self._holders: dict[int, int] = {}
        self._forgotten: list[int] = []
        self._longest: dict[type, float] = {}
        self._wanted, self._looked = 0, -math.inf
        self._processors = {about()["processor"]}
        self._counted: Counter[str] = Counter()
        self._refusals, self._waits, self._started = 0, False, False
        self._said = "--workers" + (f" {count}" if count else "") + (f" with --ray {address}" if address else "")

    # --- who there is --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """See `Crew.start`. The first worker is waited for: it says what is wrong with all of them, if anything is."""
        try:
            self._started_here = connect(self._address, cpus=self._spec.threads * (self._count or 1))
            import ray

            self._ray, self._actor = ray, ray.remote(RemoteWorker)
            self._wait_for_one()
        except BaseException:
            self.close()
            raise

    def _wait_for_one(self) -> None:
        began = time.monotonic()
        self._fill()
        while not self._members:
            self._listen([], 1.0)
            if time.monotonic() - began > _SECONDS_TO_START:
                raise InputError(
                    f"{self._said}: none has started within {_SECONDS_TO_START:.0f} s, expected room for {self._asks}"
                )
        self._started = True

    def words(self) -> str:
        """See `Crew.words`."""
        where = "this machine" if self._address is None else f"the cluster at {self._address}"
        return f"{self._wanted} worker{'s' * (self._wanted > 1)} on {where}"

    @property
    def _asks(self) -> str:
        return f"{self._cpus:g} CPU" + (f" and {self._gpus:g} GPU" if self._gpus else "") + " a worker"

    def _fill(self) -> None:
        """Start workers for those that there should be and are not."""
        now = time.monotonic()
        if now - self._looked > _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            self._wanted = self._count or max(1, room(cpus=self._cpus, gpus=self._gpus))
        while len(self._members) + len(self._starting) < self._wanted:
            self._numbers += 1
            actor = self._actor.options(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0).remote()
            self._starting[actor.about.remote()] = _Member(self._numbers, actor, since=now)

    def _listen(self, busy: Sequence[Any], seconds: float) -> list[Any]:
        """Wait for the first of what is asked, so long at most: which of the `busy` have answered. Those that are
        starting are helped on."""
        refs = [*self._starting, *busy]
        if not refs:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        if not ready and not self._members and not self._waits and self._starting:
            oldest = min(member.since for member in self._starting.values())
            if time.monotonic() - oldest > 30:
                self._waits = True
                self._say(f"waiting for a worker, which takes its time to start, or for room for one: {self._asks}")
        for ref in ready:
            if (member := self._starting.pop(ref, None)) is not None:
                self._further(member, ref)
        return [ref for ref in ready if ref in busy]

    def _further(self, member: _Member, ref: Any) -> None:
        """A worker that starts has answered: first who it is, then that it is ready."""
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            if "No module named" in str(error):
                missing = str(error).rpartition("No module named")[2].split()[0]
                self._refuse(f"a worker's machine has no package {missing}, expected evolora on each of them")
            else:
                self._refuse(f"a worker died while it started: {_first_line(error)}", again=True)
            self._kill(member)
            return
        if member.about is None:
            if faults := differences(about(), answer):
                self._refuse(f"a worker on {answer['node']} has {', '.join(faults)}, expected the same everywhere")
                self._kill(member)
                return
            member.about = answer
            self._starting[member.actor.set_up.remote(self._spec)] = member
            return
        kind, words = unpacked(answer)
        if kind != "answer":
            self._refuse(
                str(words) if kind == "refused" else f"a worker on {member.about['node']}: {_last_line(words)}"
            )
            self._kill(member)
            return
        self._members[member.number] = member
        self._refusals, self._waits = 0, False
        if member.about["processor"] not in self._processors:
            others = "; ".join(sorted(self._processors))
            self._processors.add(member.about["processor"])
            self._say(
                f"{member.name} computes on {member.about['processor']}, others on {others}: results may differ in "
                "rounding from those of machines of one kind"
            )

    def _refuse(self, words: str, *, again: bool = False) -> None:
        """A worker cannot be had, or not this time, if `again`. Where there is no other, nothing can be done."""
        self._refusals += 1
        most = _MOST_STILLBORN if again else _MOST_REFUSALS if self._started else 1
        if not self._members and self._refusals >= most:
            raise InputError(f"{self._said}: {words}")
        self._say(words)
        if self._members and not again:  # not again at once
            self._wanted, self._looked = 0, time.monotonic() + _SECONDS_AFTER_REFUSAL

    def _kill(self, member: _Member) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(member.actor)

    # --- what they do --------------------------------------------------------------------------------------------

    def run(self, jobs: Sequence[AnyJob]) -> list[Any]:
        """See `Crew.run`.

        Raises MemoryError where a worker has no more of it, RuntimeError where one fails, or dies again and again.
        """
        batch = _Batch(self, jobs)
        self._tidy()
        while not batch.done:
            self._fill()
            for member in list(self._members.values()):
                if member.doing is None and (index := batch.waiting.take(member.number)) is not None:
                    batch.send(member, index)
            batch.look()
        self.forget(job.key for job in jobs if isinstance(job, Backward))
        return batch.answers

    def forget(self, keys: Iterable[int]) -> None:
        """See `Crew.forget`. It may be called from anywhere, and goes with a worker's next job."""
        self._forgotten.extend(keys)

    def _tidy(self) -> None:
        forgotten, self._forgotten = self._forgotten, []
        for key in forgotten:
            member = self._members.get(self._holders.pop(key, -1))
            if member is not None:
                member.forgets.append(key)

    def lose(self, member: _Member, why: str) -> None:
        """A worker is not asked any more, and what it has kept is gone."""
        self._say(f"{member.name} {why}: its slices are done again")
        self._kill(member)
        self._members.pop(member.number, None)
        self._holders = {key: holder for key, holder in self._holders.items() if holder != member.number}
        self._counted["lost"] += 1
        self._looked = -math.inf

    def engines(self, like: Engine) -> Sequence[Engine]:
        """See `Crew.engines`."""
        # Their jobs must not be called as those of a batch that a worker keeps something for.
        keys = itertools.count(-1, -1)
        return [
            DealtEngine(like, _Alone(self, member), slice_rows=2**31, keys=keys) for member in self._members.values()
        ]

    def dismiss(self, one: Engine) -> bool:
        """See `Crew.dismiss`."""
        assert isinstance(one, DealtEngine) and isinstance(one.crew, _Alone)
        self.lose(one.crew.member, "does not apply adapters as it should")
        return True

    def metrics(self) -> dict[str, float]:
        """See `Crew.metrics`."""
        names = ("slices", "redone", "lost", "sent_bytes", "received_bytes", "genomes_sent")
        found = {f"workers.{name}": float(self._counted[name]) for name in names}
        self._counted.clear()
        return {"workers.count": float(len(self._members)), **found}

    def close(self) -> None:
        """See `Crew.close`."""
        for member in (*self._members.values(), *self._starting.values()):
            self._kill(member)
        self._members.clear()
        self._starting.clear()
        if self._started_here:
            self._started_here = False
            leave()


class _Alone(LocalCrew):
    """One of the workers: it may be asked while others are, each in a thread. If it is gone, which is no wrong answer,
    the driver's own engine answers, and the next batch finds out."""

    def __init__(self, crew: RayCrew, member: _Member) -> None:
        super().__init__([])
        self.member, self._crew = member, crew

    def run(self, jobs: Sequence[AnyJob]) -> list[Any]:
        """See `Crew.run`."""
        ray, limit = self._crew._ray, self._crew._limit or _LEAST_LIMIT
        try:
            return [
                self._answer(ray.get(self.member.actor.do.remote(packed(job), (), (), ()), timeout=limit))
                for job in jobs
            ]
        except ray.exceptions.RayError:
            with self._crew.alone:
                return [self._crew.own.do(job) for job in jobs]

    def _answer(self, data: bytes) -> Any:
        kind, answer = unpacked(data)
        if kind != "answer":
            raise RuntimeError(f"{self.member.name} failed: {_last_line(answer)}\n{answer}")
        return answer


class _Batch:
    """The jobs of one call, until all are answered."""

    def __init__(self, crew: RayCrew, jobs: Sequence[AnyJob]) -> None:
        self._crew, self._jobs, self._ray = crew, jobs, crew._ray
        self.answers: list[Any] = [None] * len(jobs)
        self._by: list[int | None] = [None] * len(jobs)  # whose answer it is
        self._busy: dict[Any, _Member] = {}
        self.waiting = Waiting(jobs, crew._holders)
        self._deaths: Counter[int] = Counter()
        self._checked: set[int] = set()
        self._names: dict[int, list[str]] = {}
        self._put: dict[str, Any] = {}
        self._rows: dict[str, npt.NDArray[np.float32]] = {}

    @property
    def done(self) -> bool:
        return all(by is not None for by in self._by)

    def send(self, member: _Member, index: int) -> None:
        """Have a worker do a job, which gets the genomes that it lacks."""
        crew, job = self._crew, self._jobs[index]
        if crew._check is not None and member.number not in self._checked:
            job = crew._check.asked(job)
        if isinstance(job, Backward) and crew._holders.get(job.key) == member.number:
            job = replace(job, of=None)
        used: list[str] = []

        def names(tensor: Tensor) -> list[str] | None:
            found = self._names_of(tensor)
            used.extend(found or ())
            return found

        self._know(job)
        blob = packed(job, names)
        lacking = [name for name in dict.fromkeys(used) if name not in member.genomes]
        for name in used:
            member.genomes[name] = self._rows[name].nbytes
            member.genomes.move_to_end(name)
        unknown = _oldest(member.genomes, set(used))
        refs = [self._ref(name) for name in lacking]
        crew._counted["sent_bytes"] += len(blob) + sum(self._rows[name].nbytes for name in lacking)
        crew._counted["genomes_sent"] += len(lacking)
        crew._counted["slices"] += 1
        forgets, member.forgets = member.forgets, []
        self._busy[member.actor.do.remote(blob, forgets, unknown, lacking, *refs)] = member
        crew._holders[self._jobs[index].key] = member.number
        member.doing, member.since = index, time.monotonic()

    def _know(self, job: AnyJob) -> None:
        """Name the genomes of a job, and of those that it is made of."""
        part: Any = job
        while part is not None:
            genomes = getattr(part, "genomes", None)
            if genomes is not None and id(genomes) not in self._names:
                rows = [row.numpy() for row in genomes.detach().cpu().float().contiguous()]
                self._names[id(genomes)] = found = [hashlib.sha256(row.data).hexdigest() for row in rows]
                self._rows |= dict(zip(found, rows, strict=True))
            part = getattr(part, "of", None) or getattr(part, "trace", None)

    def _names_of(self, tensor: Tensor) -> list[str] | None:
        return self._names.get(id(tensor))

    def _ref(self, name: str) -> Any:
        if name not in self._put:
            self._put[name] = self._ray.put(self._rows[name])
        return self._put[name]

    def look(self) -> None:
        """Take the next answers; replace who has died, or is late."""
        crew, exceptions = self._crew, self._ray.exceptions
        for ref in crew._listen(list(self._busy), self._seconds()):
            member = self._busy.pop(ref)
            index, member.doing = member.doing, None
            assert index is not None
            try:
                data = self._ray.get(ref)
            except exceptions.RayTaskError as error:
                self._abandon()
                raise RuntimeError(f"{member.name} failed: {_first_line(error)}") from None
            except exceptions.RayError as error:
                self._lost(member, index, f"was lost ({type(error).__name__})")
                continue
            crew._counted["received_bytes"] += len(data)
            kind, answer = unpacked(data)
            if kind != "answer":
                self._abandon()
                if kind == "memory":
                    raise MemoryError(f"out of memory on {member.name}: {answer}")
                raise RuntimeError(f"{member.name} failed: {_last_line(answer)}\n{answer}")
            job = self._jobs[index]
            longest = crew._longest.get(type(job), 0.0)
            crew._longest[type(job)] = max(longest, time.monotonic() - member.since)
            self.answers[index], self._by[index] = answer, member.number
            self._look_at(member, job, answer)
        now = time.monotonic()
        for ref, member in list(self._busy.items()):
            index = member.doing
            assert index is not None
            limit = crew._limit or self._usual_limit(self._jobs[index])
            if now - member.since > limit:
                del self._busy[ref]
                self._lost(member, index, f"has not answered for {limit:.0f} s")

    def _usual_limit(self, job: AnyJob) -> float:
        longest = self._crew._longest.get(type(job))
        return _FIRST_LIMIT if longest is None else max(_LEAST_LIMIT, _TIMES_LONGEST * longest)

    def _seconds(self) -> float:
        """Until somebody may be late, or may have come."""
        limit = self._crew._limit
        return 0.5 if limit is None else max(0.05, min(0.5, limit / 4))

    def _look_at(self, member: _Member, job: AnyJob, answer: Any) -> None:
        """One answer of each worker to each batch is looked at. If it is wrong, none of the worker's is kept."""
        check = self._crew._check
        if check is None or member.number in self._checked:
            return
        self._checked.add(member.number)
        if (fault := check.differs(job, answer)) is None:
            return
        for index, by in enumerate(self._by):
            if by == member.number:
                self._by[index] = self.answers[index] = None
                self.waiting.again(index)
                self._crew._counted["redone"] += 1
        self.waiting.lost(member.number)
        self._crew.lose(member, f"answers wrongly ({fault})")

    def _lost(self, member: _Member, index: int, why: str) -> None:
        self._deaths[index] += 1
        self._crew.lose(member, why)
        if self._deaths[index] >= _MOST_DEATHS:
            self._abandon()
            raise RuntimeError(
                f"a slice of {type(self._jobs[index]).__name__.lower()} was given to {_MOST_DEATHS} workers, of which "
                f"the last {why}: expected workers that live, with memory for it (--slice-rows)"
            )
        self.waiting.lost(member.number)
        self.waiting.again(index)
        self._crew._counted["redone"] += 1

    def _abandon(self) -> None:
        """Nobody's answer is waited for: who is still at work is let go, since it may be at it for long."""
        for member in self._busy.values():
            member.doing = None
        pending = list(self._busy)
        if pending:
            self._ray.wait(pending, num_returns=len(pending), timeout=60)
        self._busy.clear()


def _oldest(genomes: OrderedDict[str, int], needed: set[str]) -> list[str]:
    """Take out those that were not used for longest, until the others are few enough."""
    out = []
    total = sum(genomes.values())
    for name in list(genomes):
        if total <= _BYTES_KEPT:
            break
        if name not in needed:
            total -= genomes.pop(name)
            out.append(name)
    return out


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _last_line(words: str) -> str:
    return (words.strip().splitlines() or [""])[-1][:300]
