"""A reward that changes the process it is called in: what a run computes by is put back, and said once."""

import gc
import locale
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evolora.errors import InputError, RewardError
from evolora.rewards import RewardScorer, load_reward
from evolora.rewards.process_state import ProcessState

CHANGES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "torch's default dtype": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "torch's default device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "whether torch computes gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "torch's autocast": (lambda: torch.set_autocast_enabled("cpu", True), lambda: torch.is_autocast_enabled("cpu")),
    "torch's number of threads": (lambda: torch.set_num_threads(3), torch.get_num_threads),
    "torch's deterministic algorithms": (
        lambda: torch.use_deterministic_algorithms(True),
        torch.are_deterministic_algorithms_enabled,
    ),
    "torch's precision of float32 products": (
        lambda: torch.set_float32_matmul_precision("medium"),
        torch.get_float32_matmul_precision,
    ),
    "torch's flushing of denormal numbers": (
        lambda: torch.set_flush_denormal(True),
        lambda: (torch.tensor([sys.float_info.min], dtype=torch.float64) / 2).item(),
    ),
    "numpy's error handling": (lambda: np.seterr(all="raise"), np.geterr),
    "the warnings that raise": (lambda: warnings.simplefilter("error"), lambda: list(warnings.filters)),
    "the working folder": (lambda: os.chdir("/"), Path.cwd),
    "the handler of SIGINT": (
        lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        lambda: signal.getsignal(signal.SIGINT),
    ),
    "the handler of SIGTERM": (
        lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        lambda: signal.getsignal(signal.SIGTERM),
    ),
    "the locale": (
        lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C"),
        lambda: locale.setlocale(locale.LC_ALL),
    ),
    "sys.stdout": (lambda: setattr(sys, "stdout", None), lambda: sys.stdout),
    "sys.stderr": (lambda: setattr(sys, "stderr", None), lambda: sys.stderr),
    "the recursion limit": (lambda: sys.setrecursionlimit(500), sys.getrecursionlimit),
    "the garbage collector": (gc.disable, gc.isenabled),
    "the alarm": (lambda: signal.alarm(1000), lambda: signal.getitimer(signal.ITIMER_REAL)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_reward_changes_is_put_back_and_said_once(name: str, tmp_path: Path) -> None:
    change, read = CHANGES[name]

    def reward(completions: list[str]) -> list[float]:
        change()
        if completions == ["bad"]:
            raise ValueError
        return [1.0]

    before, log = read(), tmp_path / "log"
    scorer = RewardScorer(reward, log=log)
    assert scorer.score(["p"], ["c"], {}).rewards.tolist() == [1.0] and read() == before
    scorer.score(["p"], ["c"], {})
    with pytest.raises(RewardError, match="raised ValueError"):
        scorer.score(["p"], ["bad"], {})
    assert read() == before and log.read_text() == f"reward reward changed {name}; put back\n"


def test_what_a_reward_may_set_for_itself_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVOLORA_TEST", raising=False)
    deep = sys.getrecursionlimit()

    def reward(completions: list[str]) -> list[float]:
        os.environ["EVOLORA_TEST"] = "set"
        sys.setrecursionlimit(deep + 1)
        return [1.0]

    try:
        scorer = RewardScorer(reward, log=tmp_path / "log")
        scorer.score(["p"], ["c"], {})
        assert os.environ["EVOLORA_TEST"] == "set" and sys.getrecursionlimit() == deep + 1
        assert not (tmp_path / "log").exists()
    finally:
        sys.setrecursionlimit(deep)


def test_a_reward_that_ends_the_process_has_failed() -> None:
    def leaves(completions: list[str]) -> list[float]:
        if pid := os.fork():  # a child of its own may end so
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        else:
            os._exit(7)
        if completions == ["leave"]:
            try:
                os._exit(0)
            except Exception:
                return [1.0]
        return [2.0] * len(completions)

    left = os._exit
    scorer = RewardScorer(leaves, on_error="skip", failed_reward=-1.0)
    assert scorer.score(["p"], ["stay"], {}).rewards.tolist() == [2.0], scorer.last_error
    assert scorer.score(["p"], ["leave"], {}).rewards.tolist() == [-1.0]
    assert scorer.last_error is not None and "reward leaves left Python with os._exit(0)" in scorer.last_error
    assert os._exit is left


def test_importing_a_reward_leaves_the_process_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, text = tmp_path / "own.py", "def one(completions): return [1.0] * len(completions)\n"
    own.write_text("import os, torch\ntorch.set_default_dtype(torch.float64)\nos.chdir('/')\n" + text)
    before = Path.cwd()
    load_reward(f"{own}:one")
    assert torch.get_default_dtype() == torch.float32 and Path.cwd() == before
    said = [f"importing {own}:one changed {name}; put back" for name in ("torch's default dtype", "the working folder")]
    assert capsys.readouterr().err.splitlines() == said
    own.write_text("import os\nos._exit(0)\n" + text)
    with pytest.raises(InputError, match=r"cannot be imported \(ProcessEnded: os._exit\(0\)\)"):
        load_reward(f"{own}:one")


def test_what_cannot_be_put_back_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    before = Path.cwd()
    os.chdir(tmp_path / "gone")
    try:
        with ProcessState("the function").kept():
            os.chdir("/")
            (tmp_path / "gone").rmdir()
        assert capsys.readouterr().err == "the function changed the working folder; it could not be put back\n"
    finally:
        os.chdir(before)


def test_a_run_reads_no_global_generator_and_no_default(tmp_path: Path) -> None:
    """A reward that changes all it can, and a caller with defaults of its own, get the plain run's winner."""
    from evolora import evolve

    small: dict[str, Any] = {"gens": 2, "pop": 3, "elites": 1, "eval_prompts": 4, "threads": 1, "max_new_tokens": 3}
    small |= {"rollout_prompts": 4, "rl_steps": 1, "validation_prompts": 4, "prompt": None}
    rows = [{"prompt": f"{a} + {b} =", "target": str(a + b)} for a in range(4) for b in range(3)]
    seeds = iter(range(10**6))

    def plain(completions: list[str], target: list[str]) -> list[float]:
        return [1 / (1 + abs(len(text) - len(right))) for text, right in zip(completions, target, strict=True)]

    def wild(completions: list[str], target: list[str]) -> list[float]:
        rewards = plain(completions, target)
        for change, _ in CHANGES.values():
            change()
        for draw in (random.seed, np.random.seed, torch.manual_seed):
            draw(next(seeds))
        return rewards

    def callback(metrics: dict[str, float]) -> None:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)

    def winner(out: str, **more: Any) -> str:
        result = evolve(data=rows, out=tmp_path / out, **small, **more)
        return str(result.summary["winner"]["genome_sha256"])

    expected = winner("plain", reward=plain)
    assert winner("wild", reward=wild, callbacks=[callback]) == expected
    torch.set_default_dtype(torch.float64)
    try:
        assert winner("float64", reward=plain) == expected
    finally:
        torch.set_default_dtype(torch.float32)
