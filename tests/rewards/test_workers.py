"""Worker processes: what they return, what they refuse, and that nothing is left of them."""

import functools
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evolora.errors import InputError
from evolora.rewards import FailedReward, RewardScorer, check_signature, load_reward, similarity
from evolora.rewards.workers import WorkerPool

OWN = """
import asyncio, os, sys, time
version = "3"

def lengths(completions, target, trainer_state, log_metric, log_extra, **kwargs):
    log_metric("longest", max(map(len, completions)))
    log_extra("seen", completions)
    return [len(c) + 100 * len(t) + 1000 * trainer_state.global_step for c, t in zip(completions, target)]

def process(completions):
    return [float(os.getpid())] * len(completions)

def sizes(completions):
    return [float(len(completions))] * len(completions)

def best(completions, groups):
    if "bad" in completions: raise ValueError("one is bad")
    return [float(g + len(completions)) for g in groups]
best.compares = True
best.version = "7"

async def waits(completions):
    await asyncio.sleep(0)
    return [float(len(c)) for c in completions]

def libraries(completions):
    return [float("torch" in sys.modules)] * len(completions)

def through_the_package(completions):
    from evolora import InputError, errors
    return [float(InputError is errors.InputError)] * len(completions)

def dies(completions):
    os._exit(9)

def sleeps(completions):
    time.sleep(1000)

class Scaled:
    def __init__(self, factor): self.factor = factor
    def __call__(self, completions): return [self.factor * len(c) for c in completions]

scaled = Scaled(2.0)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return path


Make = Callable[..., WorkerPool]


@pytest.fixture
def pool() -> Iterator[Make]:
    made: list[WorkerPool] = []

    def make(spec: Any, workers: int = 1, **options: Any) -> WorkerPool:
        made.append(WorkerPool(spec, workers=workers, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def children() -> set[int]:
    """The worker processes of this process, by id."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())]  # however wide the terminal is
    listed = subprocess.run(command, capture_output=True, text=True)
    return {int(line.split()[0]) for line in listed.stdout.splitlines() if "worker.py" in line}


def until(true: Callable[[], object]) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within 20 s")


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- what it returns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_it_returns_what_the_reward_returns_in_order(own: Path, pool: Make, workers: int) -> None:
    texts, targets = ["x" * n for n in range(50)], ["t" * (n % 3) for n in range(50)]
    here = RewardScorer(load_reward(f"{own}:lengths"))
    there = RewardScorer(pool(f"{own}:lengths", workers))
    for _ in range(2):
        expected, found = (s.score(["p"] * 50, texts, {"target": targets}) for s in (here, there))
        assert found.rewards.tolist() == expected.rewards.tolist()
    assert there.extra == {"seen": texts}, "in order"
    assert there.metrics["longest"] == pytest.approx(sum([7, 15, 23, 31, 39, 47, 49]) / 7), "the mean of its calls"


def test_chunks_are_spread_over_the_workers(own: Path, pool: Make) -> None:
    assert pool(f"{own}:sizes")(completions=["c"] * 19) == [8.0] * 16 + [3.0] * 3
    processes = pool(f"{own}:process", 2)(completions=["c"] * 800)
    assert len(set(processes)) == 2 and float(os.getpid()) not in processes


def test_its_name_and_signature_are_the_rewards(own: Path, pool: Make) -> None:
    made = pool(f"{own}:lengths")
    assert made.__name__ == "lengths" and not made.compares and not hasattr(made, "version")
    assert list(inspect.signature(made).parameters)[:2] == ["completions", "target"]
    check_signature(made, ["target"])
    with pytest.raises(InputError, match="requires the parameter 'target'"):
        check_signature(made, ["topic"])


def test_a_reward_that_compares_is_not_cut(own: Path, pool: Make) -> None:
    made = pool(f"{own}:best", 2)
    assert made.compares and made.version == "7"
    scorer = RewardScorer(made, on_error="skip")
    scores = scorer.score(["p"] * 20, ["c"] * 20, {}, groups=list(range(20)))
    assert scores.rewards.tolist() == [20.0 + g for g in range(20)]
    assert scorer.score(["p"] * 9, ["c"] * 8 + ["bad"], {}, groups=[0] * 9).failed.all()


def test_builtin_async_and_imported_rewards(own: Path, pool: Make) -> None:
    texts, targets = ["abcd", "x"], ["bcde", "x"]
    assert pool("similarity")(completions=texts, target=targets) == [0.75, 1.0]
    assert pool(similarity)(completions=texts, target=targets) == [0.75, 1.0]
    assert pool(f"{own}:waits")(completions=texts) == [4.0, 1.0]


def test_a_function_of_a_file_and_an_object_go_by_reference(own: Path, pool: Make) -> None:
    assert pool(load_reward(f"{own}:waits"))(completions=["abcd"]) == [4.0]
    assert pool(load_reward(f"{own}:scaled"))(completions=["abcd"]) == [8.0]
    assert pool(functools.partial(similarity, target=["a"]))(completions=["a"]) == [1.0]


def test_an_object_of_trl(pool: Make) -> None:
    rewards = pytest.importorskip("trl.rewards")
    penalty = rewards.get_repetition_penalty_reward(ngram_size=2)
    found = RewardScorer(pool(penalty)).score(["p"] * 2, ["c"] * 2, {}, [[1, 2, 3, 4], [5, 5, 5, 5, 5]])
    assert found.rewards.tolist() == [0.0, -0.75]


def test_a_script_can_hand_over_its_own_function(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            from evolora.rewards.workers import WorkerPool
            def mine(completions): return [float(len(c)) for c in completions]
            if __name__ == "__main__":
                print(WorkerPool(mine, workers=1)(completions=["abc"]))
            """
        )
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[3.0]\n", "")


def test_a_worker_does_not_load_torch_unless_it_is_asked_to(own: Path, pool: Make) -> None:
    """It would take seconds at every start."""
    assert pool(f"{own}:libraries")(completions=["c"]) == [0.0]
    assert pool(f"{own}:through_the_package")(completions=["c"]) == [1.0]


# --- what it refuses -------------------------------------------------------------------------------------------


def _local() -> Any:
    def local(completions: list[str]) -> list[float]:
        return []

    return local


@pytest.mark.parametrize(
    ("spec", "options", "named"),
    [
        (lambda completions: [], {}, ("<lambda>", "top level")),
        (_local(), {}, ("local", "top level")),
        ("own.py:gone", {}, ("own.py:gone", "'gone'")),
        ("broken.py:f", {}, ("broken.py", "RuntimeError: at import")),
        ("leaves.py:f", {}, ("leaves.py", "os._exit(4)")),
        ("unknown", {}, ("'unknown'",)),
        ("exact", {"workers": 0}, ("0", "at least 1")),
        ("exact", {"timeout": 0.0}, ("0.0", "positive")),
        ("exact", {"timeout": float("nan")}, ("nan", "positive")),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_any_work(
    spec: Any, options: dict[str, Any], named: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    Path("broken.py").write_text("raise RuntimeError('at import')")
    Path("leaves.py").write_text("import os\nos._exit(4)")
    before = children()
    with pytest.raises(InputError) as error:
        WorkerPool(spec, **{"workers": 1, **options})
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and "expected" in message
    assert all(name in message for name in named), message
    assert children() == before


# --- its end ---------------------------------------------------------------------------------------------------


def test_a_reward_that_always_dies_is_given_up(own: Path, pool: Make) -> None:
    """Three deaths in a row are allowed: the chunk and three of its completions; the rest of the batch is not tried."""
    made = pool(f"{own}:dies", max_deaths=3)
    for _ in range(2):
        values = made(completions=["c"] * 20)
        assert all(isinstance(value, FailedReward) for value in values)
        said = [value.what for value in values if isinstance(value, FailedReward)]
        assert said[:3] == ["died: the worker process ended with exit code 9"] * 3
        assert set(said[3:]) == {"was not called: 4 worker processes had died in a row"}


def test_close_ends_the_workers_and_a_later_call_starts_them(own: Path, pool: Make) -> None:
    before = children()
    made = pool(f"{own}:process", 2)
    first = made(completions=["c"] * 400)
    made.close()
    assert children() == before
    again = made(completions=["c"])
    assert not set(first) & set(again) and len(children() - before) == 1
    made.close()
    assert children() == before and not any(t.name.startswith("evolora-reward") for t in threading.enumerate())


def _script(folder: Path, then: str) -> "subprocess.Popen[str]":
    """A process that says the id of its worker and that of its worker's child, both of which sleep, once they do."""
    (folder / "sleepy.py").write_text(
        "import os, subprocess, time\n"
        "def f(completions):\n"
        "    child = subprocess.Popen(['sleep', '1000'])\n"
        f"    open({str(folder / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}} ')\n"
        "    time.sleep(1000)\n"
    )
    code = (
        "import os, signal, threading, time\n"
        # Whoever starts the tests in the background has them ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from evolora.rewards.workers import WorkerPool\n"
        f"pool = WorkerPool({str(folder / 'sleepy.py')!r} + ':f', workers=1)\n" + textwrap.dedent(then)
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _pids(folder: Path) -> list[int]:
    path = folder / "pids"
    until(lambda: path.exists() and path.read_text().endswith(" "))
    return [int(pid) for pid in path.read_text().split()]


def test_nothing_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    with _script(tmp_path, "pool(completions=['c'])") as parent:
        pids = _pids(tmp_path)
        assert all(map(alive, pids))
        parent.kill()
        until(lambda: not any(map(alive, pids)))


def test_nothing_is_left_after_ctrl_c_nor_at_the_end(tmp_path: Path) -> None:
    then = """
    try:
        pool(completions=['c'])
    except KeyboardInterrupt:
        print('interrupted')
    """
    with _script(tmp_path, then) as parent:
        pids = _pids(tmp_path)
        parent.send_signal(signal.SIGINT)
        out, err = parent.communicate(timeout=60)
        assert (out, err, parent.returncode) == ("interrupted\n", "", 0)
        until(lambda: not any(map(alive, pids)))


def test_nothing_is_left_when_python_leaves(tmp_path: Path) -> None:
    then = f"""
    threading.Thread(target=pool, kwargs=dict(completions=['c']), daemon=True).start()
    while not os.path.exists({str(tmp_path / "pids")!r}): time.sleep(0.01)
    """
    with _script(tmp_path, then) as parent:
        pids = _pids(tmp_path)
        _, err = parent.communicate(timeout=60)
        assert (err, parent.returncode) == ("", 0)
        until(lambda: not any(map(alive, pids)))


def test_a_worker_that_holds_pythons_lock_ends_too_after_its_time(tmp_path: Path) -> None:
    """It cannot notice that its parent is gone: a timer that needs no lock ends it, 5 s after its time limit."""
    (tmp_path / "greedy.py").write_text(
        "import os, re\n"
        "def f(completions):\n"
        f"    open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} ')\n"
        "    re.match('(a+)+$', 'a' * 60 + 'b')\n"
    )
    code = (
        "from evolora.rewards.workers import WorkerPool\n"
        f"WorkerPool({str(tmp_path / 'greedy.py')!r} + ':f', workers=1, timeout=1)(completions=['c'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        pids = _pids(tmp_path)
        parent.kill()
        until(lambda: not any(map(alive, pids)))
