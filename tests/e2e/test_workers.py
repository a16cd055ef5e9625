"""Runs whose slices go to worker processes: the same bits as without any, however they end, and nothing left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed")

SLICED = ("--slice-rows", "3", "--eval-prompts", "4", "--rollout-prompts", "4")
MARK = "EVOLORA_WORKERS_TEST"


def started(mark: Path, *arguments: Any) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal has it; `mark` is how its processes are known."""
    return subprocess.Popen(
        [sys.executable, "-m", "evolora", *map(str, arguments)],
        env={**os.environ, MARK: str(mark)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


# Two of Ray's own, which see for a minute or so whether a driver that was killed comes back.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def marked(mark: Path, *, but: tuple[str, ...] = ()) -> list[str]:
    """The processes that the command has started, and those that they have, `but` for those of some names."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}\0".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " ")[:100])
    return [line for line in found if not line.startswith(but or ("nothing",))]


def nothing_left(mark: Path, *, but: tuple[str, ...] = ()) -> bool:
    deadline = time.monotonic() + 60
    while marked(mark, but=but) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not marked(mark, but=but)


def wait_for_generations(run: Path, count: int, process: "subprocess.Popen[str]") -> None:
    path, deadline = run / "metrics.jsonl", time.monotonic() + 300
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the command hangs"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_interrupted_and_killed_with_workers_and_finished_without(
    toy: Any, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    """Two runs at once, which saves half of the time that Ray takes to start: one ends by Ctrl-C, one by SIGKILL."""
    alone, interrupted, killed = (tmp_path / name for name in ("alone", "interrupted", "killed"))

    def options(run: Path, workers: int) -> list[str]:
        return ["train", *toy.options(run, *SLICED, "--workers", str(workers), gens=5)]

    processes = {run: started(run, *options(run, workers)) for run, workers in ((killed, 1), (interrupted, 2))}
    for run, process in processes.items():
        wait_for_generations(run, 1, process)
        assert any("ray::RemoteWorker" in line for line in marked(run))
        if run == killed:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGINT)
    code, _, errors = evolora(*options(alone, 0))
    assert code == 0, errors
    out, errors = processes[interrupted].communicate(timeout=120)
    assert processes[interrupted].returncode == 130, out + errors
    assert "slices of 3 rows, by 2 workers on this machine" in out
    processes[killed].communicate()
    assert nothing_left(interrupted), marked(interrupted)
    assert nothing_left(killed, but=AGENTS), marked(killed)

    expected = facts(alone)
    for run in (interrupted, killed):
        code, _, errors = evolora("resume", run, "--workers", "0")
        assert code == 0, errors
        found = facts(run)
        assert found.metrics == expected.metrics
        assert found == expected


def test_a_run_on_one_thread_has_the_same_bits_without_any(toy: Any, evolora: Any, facts: Any, tmp_path: Path) -> None:
    """While no individual has more rows in an update than a slice has."""
    found = []
    for name, more in (("plain", ()), ("sliced", ("--workers", "0"))):
        code, _, errors = evolora("train", *toy.options(tmp_path / name, "--threads", "1", *more, gens=2))
        assert code == 0, errors
        found.append(facts(tmp_path / name))
    assert found[0] == found[1]


def test_what_workers_cannot_do_is_a_sentence(toy: Any, evolora: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def said(*options: str) -> str:
        code, _, errors = evolora("train", *toy.options(tmp_path / "run", *options))
        assert code == 2 and "Traceback" not in errors
        return str(errors)

    assert "found no Ray there" in said("--ray", "127.0.0.1:1")
    assert "expected HOST:PORT" in said("--ray", "somewhere")
    assert "expected HOST:PORT" in said("--ray", "")
    assert "--workers-gpus 0.5 without workers" in said("--workers-gpus", "0.5")
    assert "--workers-limit 3 without workers" in said("--workers-limit", "3")
    assert "expected at least one worker" in said("--ray", "127.0.0.1:1", "--workers", "0")
    assert "on one of the cluster's own machines" in said("--ray", "ray://127.0.0.1:10001")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'evolora[ray]'" in said("--workers", "2")


def test_a_run_that_was_not_dealt_is_not_dealt_by_resuming_it(toy: Any, evolora: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert evolora("train", *toy.options(run, gens=1))[0] == 0
    code, _, errors = evolora("resume", run, "--gens", "2", "--workers", "0")
    assert code == 2 and "--slice-rows none -> 64" in errors
