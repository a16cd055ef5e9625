"""Workers on a local Ray cluster: whatever happens to them, nothing is lost and the bits are the same."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from dealt import PROMPTS, SLICE_ROWS, Subject, different

from evolora.distributed.checking import RowCheck
from evolora.distributed.crew import LocalCrew
from evolora.distributed.engine import DealtEngine
from evolora.distributed.jobs import Backward, Generate, Score, Worker
from evolora.distributed.remote import EngineSpec
from evolora.engine.choose import resolved
from evolora.errors import InputError
from evolora.models.checksums import weights_sha256
from evolora.models.options import ModelOptions

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
from ray.cluster_utils import Cluster  # noqa: E402

from evolora.distributed import ray_crew  # noqa: E402
from evolora.distributed.ray_crew import RayCrew, _Batch, _Member  # noqa: E402

STORE = 80 * 2**20  # the smallest that Ray takes, about


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.make()


@pytest.fixture(scope="module")
def right(subject: Subject) -> dict[str, Any]:
    return subject.answers(
        DealtEngine(subject.engine, LocalCrew([lambda: Worker(subject.engine)]), slice_rows=SLICE_ROWS)
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head with room for three workers, and a small object store."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_worker_niceness": "0"}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": STORE})
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def spec(subject: Subject, **changes: Any) -> EngineSpec:
    kind, products = resolved(subject.base.model, subject.layout, "auto", "auto")
    usual = {
        "model": ModelOptions(dtype="float32"), "weights_sha256": weights_sha256(subject.base.model),
        "layout": subject.layout, "device": "cpu", "kind": kind, "products": products, "checkpointing": "off",
        "threads": 1, "learns": True, "dropout": 0.1,
    }  # fmt: skip
    return EngineSpec(**{**usual, **changes})


Said = list[str]


@contextmanager
def working(
    cluster: Cluster,
    subject: Subject,
    *,
    count: int | None = 2,
    limit: float | None = None,
    cpus: float = 1.0,
    **changes: Any,
) -> Iterator[tuple[DealtEngine, RayCrew, Said]]:
    said: Said = []
    crew = RayCrew(
        spec(subject, **changes), address=cluster.address, count=count, gpus=0.0, limit=limit,
        own=subject.engine, check=RowCheck(subject.engine), say=said.append,
    )  # fmt: skip
    crew._cpus = cpus
    engine = DealtEngine(subject.engine, crew, slice_rows=SLICE_ROWS)
    engine.start()
    try:
        yield engine, crew, said
    finally:
        engine.close()


@pytest.fixture(scope="module")
def two(cluster: Cluster, subject: Subject) -> Iterator[tuple[DealtEngine, RayCrew, Said]]:
    """Two workers that the tests do things to: others come in their place."""
    with working(cluster, subject) as found:
        yield found


def once(
    monkeypatch: pytest.MonkeyPatch, kind: type, do: Callable[[_Member], None], *, number: int | None = None
) -> list[int]:
    """Have something done to the first worker, or to the one of a `number`, that is given a job of this kind, while it
    is at it."""
    send, done = _Batch.send, list[int]()

    def sent(batch: _Batch, member: _Member, index: int) -> None:
        send(batch, member, index)
        if isinstance(batch._jobs[index], kind) and not done and number in (None, member.number):
            done.append(member.number)
            do(member)

    monkeypatch.setattr(_Batch, "send", sent)
    return done


def pid_of(member: _Member) -> int:
    assert member.about is not None
    return int(member.about["pid"])


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("kind", [Generate, Score, Backward])
def test_a_worker_that_is_killed_is_replaced(
    two: tuple[DealtEngine, RayCrew, Said], subject: Subject, right: dict[str, Any], monkeypatch: Any, kind: type
) -> None:
    engine, crew, said = two
    crew.metrics()
    said.clear()
    hit = once(monkeypatch, kind, lambda member: os.kill(pid_of(member), signal.SIGKILL))
    assert not different(right, subject.answers(engine))
    measured = crew.metrics()
    assert hit and f"worker {hit[0]} on" in said[0] and "was lost" in said[0]
    assert measured["workers.lost"] == 1 and measured["workers.redone"] >= 1


def test_a_worker_that_hangs_is_replaced(
    two: tuple[DealtEngine, RayCrew, Said], subject: Subject, right: dict[str, Any], monkeypatch: Any
) -> None:
    engine, crew, said = two
    said.clear()
    monkeypatch.setattr(crew, "_limit", 15.0)
    hung: list[int] = []

    def stop(member: _Member) -> None:
        hung.append(pid_of(member))
        os.kill(hung[0], signal.SIGSTOP)
        monkeypatch.setattr(crew, "_limit", 1.0)

    once(monkeypatch, Score, stop)
    lose = crew.lose
    # One that is slow because the machine is busy is no fault of this test's.
    monkeypatch.setattr(crew, "lose", lambda *args: (monkeypatch.setattr(crew, "_limit", None), lose(*args)))
    assert not different(right, subject.answers(engine))
    assert "has not answered for 1 s" in said[0]
    assert gone(hung[0])


def test_a_worker_that_answers_wrongly_is_dismissed(
    two: tuple[DealtEngine, RayCrew, Said], subject: Subject, right: dict[str, Any], monkeypatch: Any
) -> None:
    """One of its genomes is another than the one that was asked for, as after a stale slot."""
    engine, _, said = two
    said.clear()
    wrong: list[int] = []
    send = _Batch.send

    def sent(batch: _Batch, member: _Member, index: int) -> None:
        if wrong in ([], [member.number]):
            wrong[:] = [member.number]
            member.genomes.clear()
            monkeypatch.setattr(batch, "_ref", lambda name: ray.put(batch._rows[name][::-1].copy()))
        send(batch, member, index)
        monkeypatch.setattr(batch, "_ref", _Batch._ref.__get__(batch))

    monkeypatch.setattr(_Batch, "send", sent)
    assert not different(right, subject.answers(engine))
    assert f"worker {wrong[0]}" in said[0] and "answers wrongly" in said[0]


def test_a_worker_is_sent_the_genomes_that_it_lacks(
    cluster: Cluster, subject: Subject, two: tuple[DealtEngine, RayCrew, Said]
) -> None:
    engine, crew, _ = two
    prompts, how = subject.text.encode(["2 + 2 ="] * 2), subject.text.decoding(2)
    fresh = subject.genomes + 1e-3
    engine.generate(fresh, prompts, how)
    first = crew.metrics()
    assert first["workers.genomes_sent"] >= len(fresh)
    assert first["workers.sent_bytes"] > 4 * fresh.numel()
    for _ in range(4):  # until each worker has had each of them
        engine.generate(fresh, prompts, how)
    crew.metrics()
    engine.generate(fresh, prompts, how)
    last = crew.metrics()
    assert last["workers.genomes_sent"] <= 1 and last["workers.sent_bytes"] < first["workers.sent_bytes"] / 2


def test_each_worker_can_be_asked_by_itself_and_dismissed(subject: Subject, two: Any, right: dict[str, Any]) -> None:
    engine, crew, said = two
    said.clear()
    prompts = subject.text.encode(PROMPTS)
    alone = engine.dealt_to()
    assert len(alone) == len(crew._members) >= 1
    for one in alone:
        found = one.generate(subject.genomes, prompts, subject.text.decoding(6))
        assert torch.equal(found.ids, right["greedy"])
    assert engine.dismiss(alone[0])
    assert "does not apply adapters" in said[0]
    assert torch.equal(alone[0].generate(subject.genomes, prompts, subject.text.decoding(6)).ids, right["greedy"])
    assert torch.equal(engine.generate(subject.genomes, prompts, subject.text.decoding(6)).ids, right["greedy"])


def test_an_object_store_that_is_full_spills(cluster: Cluster, subject: Subject, two: Any) -> None:
    engine, _, _ = two
    count = 2 * STORE // (4 * subject.layout.genome_length)
    many = subject.genomes[:1] + 1e-3 * torch.arange(count)[:, None] / count
    prompts, how = subject.text.encode(["2 + 2 ="]), subject.text.decoding(1)
    found = engine.generate(many, prompts, how)
    assert torch.equal(found.ids, subject.engine.generate(many, prompts, how).ids)


def test_what_cannot_be_is_said_in_a_sentence(cluster: Cluster, subject: Subject, tmp_path: Any) -> None:
    missing = ModelOptions(name=str(tmp_path / "nowhere"), dtype="float32")
    with (
        pytest.raises(InputError, match=r"--workers 1 with --ray .*nowhere"),
        working(cluster, subject, count=1, model=missing),
    ):
        pass
    with (
        pytest.raises(InputError, match="found other weights on"),
        working(cluster, subject, count=1, weights_sha256="0" * 64),
    ):
        pass
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        here = {**ray_crew.about(), "torch": "9.9"}
        patched.setattr(ray_crew, "about", lambda: here)
        with (
            pytest.raises(InputError, match=r"has torch .*, here 9\.9, expected the same everywhere"),
            working(cluster, subject, count=1),
        ):
            pass


def test_nodes_come_and_go(
    cluster: Cluster, two: Any, subject: Subject, right: dict[str, Any], monkeypatch: Any
) -> None:
    """Without a number there are as many workers as there is room for. That they are of another kind is said."""
    monkeypatch.setattr(ray_crew, "_SECONDS_BETWEEN_LOOKS", 0.1)
    here = ray_crew.about()
    monkeypatch.setattr(ray_crew, "about", lambda: {**here, "processor": "another one"})
    two[0].close()
    node = cluster.add_node(num_cpus=2)
    with working(cluster, subject, count=None, cpus=2.0) as (engine, crew, said):

        def until(workers: int) -> None:
            deadline = time.monotonic() + 120
            while len(crew._members) != workers and time.monotonic() < deadline:
                assert not different(right, subject.answers(engine))
            assert len(crew._members) == workers

        until(2)
        (line,) = [line for line in said if "computes on" in line]
        assert f"computes on {here['processor']}, others on another one: results may differ in rounding" in line
        left = [member.number for member in crew._members.values()]
        cluster.remove_node(node)
        until(1)
        assert any("was lost" in line for line in said)
        other = cluster.add_node(num_cpus=2)
        until(2)
        (new,) = {member.number for member in crew._members.values()} - {*left}
        pid = pid_of(crew._members[new])
        # Its raylet is killed while its worker is at a slice: no word to anybody.
        said.clear()
        hit = once(monkeypatch, Score, lambda _: cluster.remove_node(other, allow_graceful=False), number=new)
        assert not different(right, subject.answers(engine))
        until(1)
        assert hit == [new] and any(f"worker {new} on" in line and "was lost" in line for line in said)
        assert gone(pid)
