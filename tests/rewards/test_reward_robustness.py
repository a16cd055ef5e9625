"""The list of what a broken reward can do, each tried: in this process where it can be, and in worker processes."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evolora.environment import resolved
from evolora.errors import InputError, RewardError
from evolora.rewards import FailedReward, RewardScorer, check_signature, load_reward
from evolora.rewards.expression import parse
from evolora.rewards.output import BoundedLog, captured
from evolora.rewards.scoring import CombinedScorer
from evolora.rewards.workers import WorkerPool

# Good rewards are the lengths of the completions; one whose text names a fault has it.
BROKEN = """
import ctypes, os, signal, subprocess, sys, time

class Odd:
    def __float__(self):
        raise RuntimeError("no float")
    __index__ = __float__
    def __repr__(self):
        raise RuntimeError("no repr")

async def later():
    return 1.0

def one(text):
    if text == "raise": raise KeyError("no such entry")
    if text == "exit": sys.exit(3)
    if text == "hang": time.sleep(1000)
    if text == "spin":
        while True: pass
    if text == "stop": os.kill(os.getpid(), signal.SIGSTOP)
    if text == "child": subprocess.run(["sleep", "1000"])
    if text == "_exit": os._exit(3)
    if text == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if text == "segfault": ctypes.string_at(0)
    if text == "recursion": return one(text)
    if text == "nan": return float("nan")
    if text == "inf": return float("-inf")
    if text == "text": return "good"
    if text == "odd": return Odd()
    if text == "coroutine": return later()
    if text == "none": return None
    if text == "print":
        print("p" * 3_000_000)
        sys.stderr.write("e" * 3_000_000)
    if text == "descriptor":
        for _ in range(40): os.write(1, b"d" * 100_000)
        subprocess.run(["echo", "from a child"])
    if text == "close":
        sys.stdout.close()
        sys.stderr.close()
    return float(len(text))

def reward(completions, **kwargs):
    if "count" in completions: return [0.0] * (len(completions) + 1)
    if "nothing" in completions: return None
    if "number" in completions: return 1.0
    return [one(text) for text in completions]
"""
ANYWHERE = {
    "raise": "raised KeyError: 'no such entry'",
    "exit": "SystemExit(3)",
    "recursion": "raised RecursionError",
    "nan": "returned nan",
    "inf": "returned -inf",
    "text": "returned 'good'",
    "odd": "returned a Odd whose repr raised",
    "coroutine": "returned <coroutine",
    "count": "returned 2 values for 1 completions",
    "nothing": "returned None",
    "number": "returned 1.0",
}
IN_WORKERS = {
    "hang": "took longer than 2 s",
    "spin": "took longer than 2 s",
    "stop": "took longer than 2 s",
    "child": "took longer than 2 s",
    "_exit": "the worker process ended with exit code 3",
    "kill": "the worker process was killed by SIGKILL",
    "segfault": "the worker process was killed by SIGSEGV",
}
# What is returned for a batch does not tell which completion is at fault.
OF_THE_BATCH = ("count", "nothing", "number")
HARMLESS = ("none", "print", "close")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("broken") / "broken.py"
    path.write_text(BROKEN)
    return f"{path}:reward"


@pytest.fixture(scope="module")
def pool(place: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerPool]:
    pool = WorkerPool(place, workers=1, timeout=2, log=tmp_path_factory.mktemp("log") / "log.txt")
    yield pool
    pool.close()


def check(reward: Any, fault: str, said: str) -> None:
    """Only the completion at fault fails, and under `stop` the message says how."""
    texts = ["a", fault, "bbb"]
    scorer = RewardScorer(reward, on_error="skip", failed_reward=-1.0)
    scores = scorer.score(["p"] * 3, texts, {})
    assert scores.rewards.tolist() == [1.0, -1.0, 3.0] and scores.failed.tolist() == [False, True, False]
    assert scorer.last_error is not None and said in scorer.last_error
    with pytest.raises(RewardError) as error:
        RewardScorer(reward).score(["p0", "p1"], texts[:2], {})
    assert str(error.value).startswith("reward reward ")
    if fault in OF_THE_BATCH and not isinstance(reward, WorkerPool):
        assert "The batch had 2 completions; the first is shown." in str(error.value)
    else:
        assert said in str(error.value) and f"prompt: 'p1'\ncompletion: {fault!r}" in str(error.value)
    assert scorer.score(["p"], ["cc"], {}).rewards.tolist() == [2.0], "and it can still be called"


@pytest.mark.filterwarnings("ignore:coroutine 'later' was never awaited")
@pytest.mark.parametrize("fault", ANYWHERE)
def test_in_process(place: str, fault: str) -> None:
    check(load_reward(place), fault, ANYWHERE[fault])


@pytest.mark.parametrize("fault", [*ANYWHERE, *IN_WORKERS])
def test_in_workers(pool: WorkerPool, fault: str) -> None:
    check(pool, fault, (ANYWHERE | IN_WORKERS)[fault])


@pytest.mark.parametrize("where", ["here", "workers"])
@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_fault(place: str, pool: WorkerPool, text: str, where: str, tmp_path: Path) -> None:
    scorer = RewardScorer(load_reward(place) if where == "here" else pool, log=tmp_path / "log")
    scores = scorer.score(["p"] * 2, [text, "bbb"], {})
    assert not scores.failed.any() and scores.rewards[1] == 3.0
    assert (scores.rewards[0] != scores.rewards[0]) == (text == "none")
    print("the run's own streams are open", file=sys.stderr)


def test_the_traceback_comes_from_the_worker(pool: WorkerPool) -> None:
    with pytest.raises(RewardError) as error:
        RewardScorer(pool).score(["p0", "p1"], ["fine", "raise"], {})
    assert "in one\n" in str(error.value) and "prompt: 'p1'\ncompletion: 'raise'" in str(error.value)
    assert "evolora/rewards" not in str(error.value), "its own traceback, not evolora's"


# --- exceptions of all kinds -----------------------------------------------------------------------------------


class PanicError(BaseException):
    """As pyo3 makes them of what Rust code, tokenizers for one, panics with."""


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PanicError("out of range"), "raised PanicError: out of range"),
        (asyncio.CancelledError(), "raised CancelledError"),
        (GeneratorExit(), "raised GeneratorExit"),
        (UnspeakableError(), "raised UnspeakableError: its message raised RuntimeError"),
    ],
)
def test_what_is_no_exception_or_cannot_be_shown_is_a_failure_too(
    error: BaseException, said: str, is_async: bool
) -> None:
    def one(text: str) -> float:
        if text == "bad":
            raise error
        return 1.0

    async def later(completions: list[str]) -> list[float]:
        return [one(text) for text in completions]

    reward: Any = later if is_async else lambda completions: [one(text) for text in completions]
    scorer = RewardScorer(reward, on_error="skip")
    assert scorer.score(["p"] * 3, ["a", "bad", "c"], {}).failed.tolist() == [False, True, False]
    assert scorer.last_error is not None and said in scorer.last_error
    with pytest.raises(RewardError, match=said):
        RewardScorer(reward).score(["p"], ["bad"], {})
    scorer.close()


@pytest.mark.parametrize("is_async", [False, True])
def test_an_interrupt_is_none(is_async: bool) -> None:
    def reward(completions: list[str]) -> list[float]:
        raise KeyboardInterrupt

    async def later(completions: list[str]) -> list[float]:
        return reward(completions)

    with pytest.raises(KeyboardInterrupt):
        RewardScorer(later if is_async else reward, on_error="skip").score(["p"], ["c"], {})  # type: ignore[arg-type]


def test_a_message_is_cut_however_long_its_parts_are() -> None:
    def raises(completions: list[str]) -> list[float]:
        raise ValueError("begins" + "x" * 5_000_000 + "ends")

    def ping(completions: list[str]) -> list[float]:
        return pong(completions)

    def pong(completions: list[str]) -> list[float]:
        return ping(completions)

    def reports(completions: list[str]) -> list[float | FailedReward]:
        return [FailedReward("was ill", details="d" * 5_000_000)]

    def leaves(completions: list[str]) -> list[float]:
        sys.exit("s" * 5_000_000)

    for reward in (raises, ping, reports, leaves):
        scorer = RewardScorer(reward, on_error="skip")
        scorer.score(["p"], ["c"], {})
        assert scorer.last_error is not None and len(scorer.last_error) < 50_000
        assert "characters are left out" in scorer.last_error and scorer.last_error.endswith("completion: 'c'")
    with pytest.raises(RewardError, match="raised ValueError: beginsxxx") as error:
        RewardScorer(raises).score(["p"], ["c"], {})
    assert len(str(error.value)) < 50_000 and "in raises" in str(error.value) and "xxxends" in str(error.value)


def test_what_has_no_end_is_not_waited_for() -> None:
    def endless(completions: list[str]) -> Iterator[float]:
        while True:
            yield 1.0

    with pytest.raises(RewardError, match="returned more than 2 values for 2 completions"):
        RewardScorer(endless).score(["p", "p"], ["a", "b"], {})  # type: ignore[arg-type]


def test_the_run_keeps_its_own_data() -> None:
    def edits(completions: list[Any], target: list[Any], completion_ids: list[list[int]]) -> list[float]:
        target[0]["a"].clear()
        completion_ids[0].append(7)
        return [0.0]

    lock = threading.Lock()
    target, ids = [{"a": [1], "b": "text"}], [[1, 2]]
    RewardScorer(edits).score(["p"], ["c"], {"target": target}, ids)
    assert target == [{"a": [1], "b": "text"}] and ids == [[1, 2]]
    seen: list[object] = []
    RewardScorer(lambda lock: seen.extend(lock) or [0.0]).score(["p"], ["c"], {"lock": [lock]})  # type: ignore[func-returns-value]
    assert seen == [lock], "what cannot be copied is handed over as it is"


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_reward_that_cannot_be_closed(on_error: Any, tmp_path: Path) -> None:
    class Stuck:
        def __call__(self, completions: list[str]) -> list[float]:
            return [0.0]

        def close(self) -> None:
            print("closing")
            raise OSError("gone")

    log = tmp_path / "log"
    scorer = RewardScorer(Stuck(), on_error=on_error, log=log)
    if on_error == "raise":
        with pytest.raises(RewardError, match="reward Stuck raised OSError: gone, when it was closed"):
            scorer.close()
    else:
        scorer.close()
    assert scorer.last_error is not None and "in close" in scorer.last_error and log.read_text() == "closing\n"


def test_a_combination_closes_all_of_its_rewards() -> None:
    closed = []

    class Term:
        def __call__(self, completions: list[str]) -> list[float]:
            return [0.0]

        def close(self) -> None:
            closed.append(self)
            raise OSError("gone")

    terms = {"a": RewardScorer(Term()), "b": RewardScorer(Term())}
    with pytest.raises(RewardError, match="when it was closed"):
        CombinedScorer(parse("a + b"), terms).close()
    assert len(closed) == 2


# --- failures that a reward reports itself ---------------------------------------------------------------------


def test_a_reward_can_say_that_it_could_not_score() -> None:
    def limited(completions: list[str]) -> list[float | FailedReward]:
        return [FailedReward("met its rate limit", details="try later") if c == "b" else 1.0 for c in completions]

    scorer = RewardScorer(limited, on_error="skip")
    assert scorer.score(["p"] * 3, ["a", "b", "c"], {}).failed.tolist() == [False, True, False]
    with pytest.raises(RewardError, match=r"reward limited met its rate limit\ntry later\nprompt: 'q'"):
        RewardScorer(limited).score(["p", "q"], ["a", "b"], {})


class Best:
    """1 for the longest completion of the batch."""

    compares = True

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[int]]] = []

    def __call__(self, completions: list[str], groups: list[int]) -> list[float]:
        self.calls.append((completions, groups))
        if "bad" in completions:
            raise ValueError("one is bad")
        return [float(len(text) == max(map(len, completions))) for text in completions]


def test_a_reward_that_compares_gets_groups_and_is_never_called_with_a_part() -> None:
    best = Best()
    check_signature(best, [])
    scorer = RewardScorer(best, on_error="skip", failed_reward=-1.0)
    assert scorer.score(["p", "p"], ["a", "bb"], {}, groups=[0, 1]).rewards.tolist() == [0.0, 1.0]
    scores = scorer.score(["p", "p"], ["bad", "bb"], {}, groups=[0, 1])
    assert scores.failed.tolist() == [True, True] and scores.rewards.tolist() == [-1.0, -1.0]
    assert best.calls == [(["a", "bb"], [0, 1]), (["bad", "bb"], [0, 1])]
    with pytest.raises(RewardError, match="raised ValueError: one is bad"):
        RewardScorer(best).score(["p", "p"], ["bad", "bb"], {}, groups=[0, 1])
    assert len(best.calls) == 3
    with pytest.raises(InputError, match="'groups'"):
        check_signature(lambda completions, groups: [], [])


# --- async -----------------------------------------------------------------------------------------------------


class Waits:
    def __init__(self) -> None:
        self.threads: set[int] = set()

    async def __call__(self, completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        self.threads.add(threading.get_ident())

        async def one(text: str) -> float:
            if text == "exit":
                sys.exit(3)
            return float(len(text))

        return list(await asyncio.gather(*(one(text) for text in completions)))


def test_async_functions_run_on_one_thread_and_also_inside_a_running_loop() -> None:
    waits = Waits()
    scorer = RewardScorer(waits, on_error="skip")

    async def as_in_a_notebook() -> list[float]:
        return scorer.score(["p", "p"], ["a", "bb"], {}).rewards.tolist()

    assert asyncio.run(as_in_a_notebook()) == [1.0, 2.0]
    # An exit in a task of its own would end the loop's thread.
    assert scorer.score(["p", "p"], ["exit", "bb"], {}).failed.tolist() == [True, False]
    assert scorer.last_error is not None and "SystemExit(3)" in scorer.last_error
    assert scorer.score(["p"], ["abc"], {}).rewards.tolist() == [3.0]
    assert len(waits.threads) == 1 and threading.get_ident() not in waits.threads
    (thread,) = (thread for thread in threading.enumerate() if thread.ident in waits.threads)
    scorer.close()
    assert not thread.is_alive()


def test_tasks_that_go_on_are_ended_with_the_scorer() -> None:
    ended = []

    async def background() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0.01)  # as one that closes a connection
            ended.append(True)

    tasks = []

    async def starts(completions: list[str]) -> list[float]:
        tasks.append(asyncio.create_task(background()))
        await asyncio.sleep(0)
        return [0.0]

    scorer = RewardScorer(starts)  # type: ignore[arg-type]
    scorer.score(["p"], ["c"], {})
    assert not ended
    scorer.close()
    assert ended == [True]
    scorer.close()  # harmless
    assert scorer.score(["p"], ["c"], {}).rewards.tolist() == [0.0], "a later call starts another thread"
    scorer.close()


def test_the_traceback_of_an_async_function_begins_with_its_own_frame() -> None:
    async def fails(completions: list[str]) -> list[float]:
        raise ValueError("boom")

    with pytest.raises(RewardError) as error:
        RewardScorer(fails).score(["p"], ["c"], {})  # type: ignore[arg-type]
    assert str(error.value).count("  File ") == 1 and "in fails" in str(error.value)


# --- what it prints --------------------------------------------------------------------------------------------


def chatty(completions: list[str], **_: object) -> list[float]:
    print("printed")
    print("to stderr", file=sys.stderr)
    sys.stdout.buffer.write(b"bytes\n")
    logging.getLogger("evolora.test.chatty").warning("logged")
    thread = threading.Thread(target=print, args=("in a thread",))
    thread.start()
    thread.join()
    return [0.0] * len(completions)


def test_what_is_printed_and_logged_goes_to_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("evolora.test.chatty")
    handler = logging.StreamHandler(sys.stderr)  # as `logging.basicConfig()` at the top of a user's file makes it
    monkeypatch.setattr(logger, "handlers", [handler])
    before = sys.stdout, sys.stderr
    scorer = RewardScorer(chatty, log=tmp_path / "sub" / "rewards.log")
    scorer.score(["p"], ["c"], {})
    assert (sys.stdout, sys.stderr, handler.stream) == (*before, before[1])
    print("after")
    assert capfd.readouterr() == ("after\n", "")
    assert (tmp_path / "sub" / "rewards.log").read_text().split("\n") == [
        "printed", "to stderr", "bytes", "logged", "in a thread", "",
    ]  # fmt: skip


def test_threads_that_ran_before_keep_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    begin, printed = threading.Event(), threading.Event()

    def live_view() -> None:
        begin.wait(10)
        print("the live view")
        printed.set()

    thread = threading.Thread(target=live_view)
    thread.start()

    def slow(completions: list[str]) -> list[float]:
        begin.set()
        assert printed.wait(10)
        print("the reward")
        return [0.0]

    RewardScorer(slow, log=tmp_path / "log").score(["p"], ["c"], {})
    thread.join()
    assert capfd.readouterr().out == "the live view\n" and (tmp_path / "log").read_text() == "the reward\n"


def test_megabytes_are_cut_and_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def floods(completions: list[str]) -> list[float]:
        for _ in range(30):
            print("x" * 100_000)
        return [0.0]

    log = tmp_path / "log"
    for scorer in (RewardScorer(floods, log=log), RewardScorer(floods, log=log)):
        for _ in range(3):
            scorer.score(["p"], ["c"], {})
    text = log.read_text()
    assert 1_000_000 <= len(text) < 1_000_200 and text.count("was dropped") == 1
    assert text.splitlines()[-1].startswith("[the rest of what the reward printed was dropped")
    capfd.readouterr()
    passing = RewardScorer(floods)
    for _ in range(3):
        passing.score(["p"], ["c"], {})
        out = capfd.readouterr().out
        assert 64_000 <= len(out) < 64_200 and out.count("was dropped") == 1, "for each batch"


def test_what_a_reward_does_to_the_streams_is_undone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def rude(completions: list[str]) -> list[float]:
        sys.stdout.close()
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
        raise ValueError("and leaves")

    before = sys.stdout
    assert RewardScorer(rude, on_error="skip", log=tmp_path / "log").score(["p"], ["c"], {}).failed.all()
    assert sys.stdout is before
    print("still there")
    assert capfd.readouterr().out == "still there\n"


def test_a_log_that_cannot_be_written_costs_no_reward(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    scorer = RewardScorer(chatty, log=tmp_path / "file" / "log")
    assert not scorer.score(["p"], ["c"], {}).failed.any()


def test_captures_may_be_nested(tmp_path: Path) -> None:
    outer, inner = BoundedLog(tmp_path / "outer"), BoundedLog(tmp_path / "inner")
    with captured(outer):
        print("one")
        with captured(inner):
            print("two")
        print("three")
    assert (tmp_path / "outer").read_text() == "one\nthree\n" and (tmp_path / "inner").read_text() == "two\n"


def test_workers_output_is_bounded_too(place: str, tmp_path: Path) -> None:
    """Also what goes to the descriptors: 4 MB and a child process's line, into pipes that hold 64 kB."""
    log = tmp_path / "log"
    pool = WorkerPool(place, workers=2, timeout=30, log=log)
    assert pool(completions=["descriptor", "print"] * 8) == [10.0, 5.0] * 8
    pool.close()
    assert 1_000_000 <= log.stat().st_size < 1_000_200 and log.read_text().count("was dropped") == 1


def test_nothing_reaches_the_screen_from_a_command_line(place: str, tmp_path: Path) -> None:
    """The whole, in a process of its own: a worker's output and this process's own, with a log, leave it silent."""
    code = (
        "from evolora.rewards import RewardScorer, load_reward\n"
        "from evolora.rewards.workers import WorkerPool\n"
        "from pathlib import Path\n"
        f"pool = WorkerPool({place!r}, workers=1, log=Path({str(tmp_path / 'log')!r}))\n"
        "for reward in (pool, load_reward('" + place + "')):\n"
        f"    scorer = RewardScorer(reward, log=Path({str(tmp_path / 'log')!r}))\n"
        "    print(scorer.score(['p'], ['print'], {}).rewards)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("[5.]\n[5.]\n", "", 0)


@pytest.mark.parametrize("value", [1e16, -1e300, 1.8e308])
def test_a_reward_that_is_too_large_is_refused(value: float) -> None:
    scorer = RewardScorer(lambda completions, **_: [value] * len(completions))
    with pytest.raises(RewardError, match=r"expected a number from -1e\+15 to 1e\+15, or None"):
        scorer.score(["p"], ["c"], {})


def test_the_name_of_a_logged_metric_shows_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOLORA_LOGGED_KEY", "very-secret-key")
    resolved("env:EVOLORA_LOGGED_KEY")

    def reward(completions: list[str], log_metric: Any, **_: object) -> list[float]:
        log_metric("of very-secret-key", 1.0)
        return [0.0] * len(completions)

    scorer = RewardScorer(reward)
    scorer.score(["p"], ["c"], {})
    assert list(scorer.metrics) == ["of env:EVOLORA_LOGGED_KEY"]
