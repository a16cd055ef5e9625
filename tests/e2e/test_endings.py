"""Whatever ends a run is a sentence, and the whole generations before it are kept."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evolora.engine.eager.engine import EagerEngine
from evolora.evolution.loop import Evolution
from evolora.files import verify
from evolora.signals import ENDING, answered_by, interrupt


def start(toy: Any, *arguments: str | Path, **how: Any) -> "subprocess.Popen[str]":
    """The program, in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **how.pop("env", {})}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **how}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, **how)


def until(stream: Any, word: str) -> None:
    """Read lines until one has `word` in it."""
    seen = []
    for line in stream:
        seen.append(line)
        if word in line:
            return
    raise AssertionError(f"{word!r} never came:\n{''.join(seen)}")


def children(process: "subprocess.Popen[str]") -> list[int]:
    return [
        int(pid)
        for thread in Path(f"/proc/{process.pid}/task").iterdir()
        for pid in (thread / "children").read_text().split()
    ]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_are_as_ctrl_c(
    number: signal.Signals, toy: Any, finished: Path, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    """Even where they reach the processes of the reward too, as a batch system's do."""
    run = tmp_path / "run"
    options = toy.options(run, "--save-every", "100", "--reward-workers", "2", reward=toy.slow_reward)
    process = start(toy, "-m", "evolora", "train", *options)
    until(process.stdout, "gen 2/6")
    workers = children(process)
    assert len(workers) == 2
    for pid in (*workers, process.pid):
        os.kill(pid, number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors == f"Interrupted. Resume with: evolora resume {run}\n"
    assert f"{number.name} again stops at once" in out
    assert not any(map(alive, workers))
    (checkpoint,) = (run / "checkpoints").iterdir()
    verify(checkpoint)
    assert checkpoint.name in ("gen0002", "gen0003", "gen0004"), "the generation that was under way is finished"
    assert evolora("resume", run)[0] == 0
    assert facts(run).metrics == facts(finished).metrics and facts(run).adapter == facts(finished).adapter


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("pydantic", signal.SIGINT),
        ("numpy", signal.SIGTERM),
        ("torch", signal.SIGINT),
        ("evolora.runs.run", signal.SIGINT),
    ],
)
def test_a_signal_in_the_first_seconds_is_a_sentence(
    module: str, number: signal.Signals, toy: Any, tmp_path: Path
) -> None:
    """The moments are those at which a module has been imported."""
    run = tmp_path / "run"
    process = start(toy, "-X", "importtime", "-m", "evolora", "train", *toy.options(run))
    until(process.stderr, f" {module}\n")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    said = [line for line in errors.splitlines() if not line.startswith("import time:")]
    assert (process.returncode, said) == (128 + number, ["Interrupted before there was anything new to keep."])
    assert not run.exists()


def test_a_signal_while_the_model_is_loaded_is_a_sentence(toy: Any, tmp_path: Path) -> None:
    run, reward = tmp_path / "run", tmp_path / "slow.py"
    reward.write_text("import time\nprint('asleep', flush=True)\ntime.sleep(60)\n")
    process = start(toy, "-m", "evolora", "train", *toy.options(run, reward=f"{reward}:slow"))
    until(process.stdout, "asleep")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "Interrupted before there was anything new to keep.\n")


def test_a_signal_while_the_winner_is_tested_ends_at_once(toy: Any, evolora: Any, tmp_path: Path) -> None:
    run, reward = tmp_path / "run", tmp_path / "stuck.py"
    paths = run / "checkpoints" / "gen0001", tmp_path / "on", tmp_path / "in"
    reward.write_text(
        "import os, time\n"
        f"checkpoint, mended, here = {[str(path) for path in paths]}\n"
        "def stuck(completions, **kwargs):\n"
        "    if os.path.exists(checkpoint) and not os.path.exists(mended):\n"
        "        open(here, 'w').close()\n"
        "        time.sleep(600)\n"
        "    return [len(set(text)) / 10 for text in completions]\n"
    )
    process = start(toy, "-m", "evolora", "train", *toy.options(run, reward=f"{reward}:stuck", gens=1))
    while not (tmp_path / "in").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, f"Interrupted. Resume with: evolora resume {run}\n")
    (tmp_path / "on").touch()
    assert evolora("resume", run)[0] == 0


def closed() -> None:
    os.close(1)
    os.close(2)


@pytest.mark.parametrize(
    "how",
    [
        {"stdout": "/dev/full"},
        {"preexec_fn": closed},
        {"env": {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}},
        {"stdout": "/dev/full", "stderr": "/dev/full"},
    ],
    ids=["full", "closed", "ascii", "both full"],
)
def test_output_that_cannot_be_written_ends_no_run(how: dict[str, Any], toy: Any, tmp_path: Path) -> None:
    run = tmp_path / "rün"
    with Path("/dev/full").open("w") as full:
        files = {name: full for name in ("stdout", "stderr") if name in how}
        process = start(toy, "-m", "evolora", "train", *toy.options(run, gens=1), **{**how, **files})
        out, errors = process.communicate(timeout=120)
    assert (process.returncode, errors or "") == (0, "")
    assert json.loads((run / "summary.json").read_text())["generations"] == 1
    if "env" in how:
        assert f"adapter: {tmp_path}/r?n/best" in out


def test_a_reader_that_leaves_ends_no_run(toy: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(toy, "-m", "evolora", "train", *toy.options(run, gens=1))
    assert process.stdout is not None and process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None and process.stderr.read() == ""
    assert process.wait(timeout=120) == 0 and (run / "summary.json").exists()


def test_a_command_whose_only_result_is_lost_says_so(toy: Any, finished: Path) -> None:
    for command in (("generate", str(finished), "hello"), ("verify", str(finished)), ("train", "--dry-run")):
        with Path("/dev/full").open("w") as full:
            process = start(toy, "-m", "evolora", *command, stdout=full)
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 1 and "what was to be shown is lost: No space left on device" in errors


def test_a_thread_that_a_reward_leaves_keeps_no_process(toy: Any, tmp_path: Path) -> None:
    reward, run = tmp_path / "threads.py", tmp_path / "run"
    reward.write_text(
        "import threading, time\n"
        "def score(completions, **kwargs):\n"
        "    threading.Thread(target=time.sleep, args=(10_000,)).start()\n"
        "    return [len(set(text)) / 10 for text in completions]\n"
    )
    process = start(toy, "-m", "evolora", "train", *toy.options(run, gens=1, reward=f"{reward}:score"))
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "adapter: " in out


def limited(size: int) -> Callable[[], None]:
    """No file may grow beyond `size` bytes, as on a disk that is full."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_is_a_sentence_and_what_was_whole_is_kept(
    toy: Any, finished: Path, copied: Path, evolora: Any, facts: Any, digest: Any, tmp_path: Path
) -> None:
    """The checkpoint after generation 4 is there, and no other can be written."""
    (copied / "summary.json").unlink()
    shutil.rmtree(copied / "checkpoints" / "gen0006")
    before = digest(copied / "checkpoints")
    room = (copied / "lineage.sqlite").stat().st_size * 2
    process = start(toy, "-m", "evolora", "resume", copied, preexec_fn=limited(room))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and len(errors.splitlines()) == 1, errors
    assert "File too large" in errors and f"resume with: evolora resume {copied}" in errors
    assert digest(copied / "checkpoints") == before
    assert evolora("resume", copied)[0] == 0
    assert facts(copied).metrics == facts(finished).metrics and facts(copied).adapter == facts(finished).adapter


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), "out of memory: CUDA out of memory."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"), "out of memory: [enforce"),
        (sqlite3.OperationalError("database or disk is full"), "a database of the run: database or disk is full"),
        (OSError(errno.ENOSPC, "No space left on device", "some/file"), "No space left on device: some/file"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "'utf-8' codec can't decode"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_machine_lacks_is_a_sentence(
    error: Exception, said: str, toy: Any, evolora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the second generation, although no checkpoint was due."""
    whole = Evolution.measure

    def lacking(self: Evolution, *given: Any) -> Any:
        if self.generation == 2 and given[-1] == "validation":
            raise error
        return whole(self, *given)

    monkeypatch.setattr(Evolution, "measure", lacking)
    run = tmp_path / "run"
    options = toy.options(run, "--save-every", "100", "--refiner", "none")
    del options[options.index("--refine") : options.index("--refine") + 2]
    code, _, errors = evolora("train", *options)
    assert code == 1 and errors.startswith(f"evolora: {said}") and len(errors.splitlines()) == 1
    assert errors.endswith(f"; resume with: evolora resume {run}\n")
    verify(run / "checkpoints" / "gen0001")


def test_an_error_of_our_own_keeps_its_traceback_and_says_how_to_resume(
    toy: Any, evolora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Evolution, "measure", wrong)
    with pytest.raises(ZeroDivisionError) as found:
        evolora("train", *toy.options(tmp_path / "run"))
    assert found.value.__notes__ == [f"resume with: evolora resume {tmp_path / 'run'}"]


def test_signals_that_are_ignored_or_handled_stay_so() -> None:
    """As under nohup, or in a program that has handlers of its own."""

    def own(*_: object) -> None: ...

    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, own)
        with answered_by(interrupt):
            handlers = [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)]
        assert handlers == [signal.SIG_IGN, own, interrupt]
        assert signal.getsignal(signal.SIGINT) == before[signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


NARROW = "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."


def test_an_update_without_memory_is_cut_and_the_run_goes_on(
    toy: Any, llama: Path, evolora: Any, facts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's config keeps what there was memory for: one that is resumed neither says it again nor is refused."""
    whole, failed = EagerEngine._score, list[int]()

    def narrow(self: EagerEngine, genomes: Any, prompts: Any, completions: Any, how: Any, times: int) -> Any:
        if how.gradient and len(completions.ids) > room:
            failed.append(len(completions.ids))
            raise RuntimeError(NARROW)
        return whole(self, genomes, prompts, completions, how, times)

    monkeypatch.setattr(EagerEngine, "_score", narrow)
    run, easy = tmp_path / "run", tmp_path / "easy"
    options = ("--model", llama, "--threads", "1", "--max-new-tokens", "6", "--refine", "2", "--save-every", "100")
    room = 10**6
    assert evolora("train", *toy.options(easy, *options, gens=3))[0] == 0 and not failed
    room = 4
    code, out, errors = evolora("train", *toy.options(run, *options, gens=1))
    assert code == 0, errors
    (tokens,) = re.findall(r"out of memory: updates keep (\S+) tokens at a time from now on", out)
    config = (run / "config.toml").read_text()
    assert f"\nupdate_tokens = {tokens}\n" in config and failed
    assert evolora("verify", run)[0] == 0
    failed.clear()
    code, out, _ = evolora("resume", run, "--gens", "2")
    assert code == 0 and not failed and "out of memory" not in out
    assert (run / "config.toml").read_text().count(f"update_tokens = {tokens}\n") == 1
    room = 0
    code, out, errors = evolora("resume", run, "--gens", "3")
    assert code == 1 and len(errors.splitlines()) == 1 and failed[-1] == 1
    assert errors == f"evolora: out of memory: {NARROW}; resume with: evolora resume {run}\n"
    assert f"update_tokens = {tokens}\n" in (run / "config.toml").read_text(), "what failed is no reason to keep it"
    verify(run / "checkpoints" / "gen0002")
    room = 1
    assert evolora("resume", run, "--update-tokens", "20")[0] == 0 and failed[-1] == 1
    assert "update_tokens = 20\n" in (run / "config.toml").read_text()
    for found, expected in zip(facts(run).metrics, facts(easy).metrics, strict=True):
        numbers = [name for name, value in expected.items() if isinstance(value, float)]
        assert numbers and [found[name] for name in numbers] == pytest.approx(
            [expected[name] for name in numbers], rel=1e-3, abs=1e-4, nan_ok=True
        )
