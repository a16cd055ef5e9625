"""A reward that fails in the middle of a run: it stops with its traceback and goes on once mended, or skips."""

import json
from pathlib import Path
from typing import Any

import pytest

from evolora.files import verify

# The first generation of the toy calls the reward four times: for the base's validation, the population, the rollout
# and the refined; its best is the base, which is validated already. The second calls it for its one child, the rollout,
# the refined and a validation. So the third generation's rollout, after its one child, is call 10.
THIRD = 10
BROKEN = """
calls = 0
offender = None

def distinct(completions, prompts, **kwargs):
    global calls, offender
    calls += 1
    values = [len(set(text)) / 10 for text in completions]
    if {first} <= calls <= {last} and offender is None:
        offender = prompts[2]
    if calls <= {last} and offender in prompts:
        {fault}
    return values
"""
FAULTS = {
    "raises": "raise KeyError('no such entry')",
    "count": "return values[:-1]",
    "nan": "values[prompts.index(offender)] = float('nan')",
    "string": "values[prompts.index(offender)] = 'good'",
    "nothing": "return None",
}


def broken(folder: Path, fault: str, last: int = 10**9) -> Path:
    path = folder / "own.py"
    path.write_text(BROKEN.format(first=THIRD, last=last, fault=FAULTS[fault]))
    return path


def mend(path: Path, toy: Any) -> None:
    path.write_text((toy.folder / "reward.py").read_text())


def equal(run: Path, finished: Path, facts: Any) -> None:
    found, expected = facts(run), facts(finished)
    (change,) = found.summary.pop("changed")
    assert change["generation"] == 2 and "own.py" in change["what"][0]
    assert found.metrics == expected.metrics
    assert found.summary == expected.summary
    assert found.lineage == expected.lineage


def test_its_traceback_and_prompt_are_shown_and_the_run_can_be_mended(
    toy: Any, finished: Path, command: Any, evolora: Any, facts: Any, trainer: str, tmp_path: Path
) -> None:
    own, run = broken(tmp_path, "raises"), tmp_path / "run"
    done = command(trainer, *toy.options(run, reward=f"{own}:distinct"), code=1)
    line = own.read_text().splitlines().index("        raise KeyError('no such entry')") + 1
    assert f'File "{own}", line {line}, in distinct' in done.stderr
    assert "raise KeyError('no such entry')" in done.stderr
    assert "prompt: \"Translate '" in done.stderr and "completion: " in done.stderr
    assert "site-packages" not in done.stderr and "evolora/" not in done.stderr, "its own traceback, not evolora's"
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert checkpoint.name == "gen0002"
    verify(checkpoint)
    assert not (run / "summary.json").exists()
    mend(own, toy)
    assert evolora("resume", run, "--accept-changes")[0] == 0
    equal(run, finished, facts)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("count", "returned 127 values for 128 completions"),
        ("nan", "returned nan"),
        ("string", "returned 'good'"),
        ("nothing", "returned None"),
    ],
)
def test_what_is_no_reward_stops_the_run(
    fault: str, said: str, toy: Any, finished: Path, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    own, run = broken(tmp_path, fault), tmp_path / "run"
    code, _, errors = evolora("train", *toy.options(run, reward=f"{own}:distinct"))
    assert code == 1
    assert "reward distinct" in errors and said in errors
    assert "prompt: \"Translate '" in errors
    verify(run / "checkpoints" / "gen0002")
    mend(own, toy)
    assert evolora("resume", run, "--accept-changes")[0] == 0
    equal(run, finished, facts)


@pytest.mark.parametrize("fault", ["raises", "nan", "string"])
def test_skipping_goes_on_and_counts(fault: str, toy: Any, evolora: Any, tmp_path: Path) -> None:
    """The offending prompt fails in the rollout of the third generation; after a call that raises, each of its
    completions is scored by itself, and of the first 56 the four of the offending prompt fail again."""
    own, run = broken(tmp_path, fault, last=THIRD + 56 * (fault == "raises")), tmp_path / "run"
    options = toy.options(run, "--on-reward-error", "skip", reward=f"{own}:distinct")
    code, out, _ = evolora("train", *options)
    assert code == 0 and "winner" in out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    counts = [line["failed_completions"] for line in lines]
    assert counts[:2] == [0, 0]
    assert counts[2:] == [4] * 4 if fault == "raises" else counts[2:] == [1] * 4
    assert all(line["failed"] == 0 for line in lines), "an individual with a failed completion still has a fitness"


def test_a_reward_that_scores_nothing_says_so_in_every_generation_and_at_the_end(
    toy: Any, evolora: Any, tmp_path: Path
) -> None:
    own, run = tmp_path / "own.py", tmp_path / "run"
    own.write_text("def none(completions, **kwargs):\n    return [None] * len(completions)\n")
    code, out, errors = evolora("train", *toy.options(run, reward=f"{own}:none", gens=2))
    assert code == 0 and not errors and "nobody has a fitness, and best/ is the unchanged base" in out
    summary = json.loads((run / "summary.json").read_text())
    assert summary["winner"]["operator"] == "base" and summary["winner"]["validation"] is None
    assert evolora("verify", run)[0] == 0 and evolora("generate", run, "Hello")[0] == 0
    assert [f"generation {number}: the reward scored nothing" in out for number in (1, 2, 3)] == [True, True, False]


def test_a_test_split_without_a_score_leaves_a_winner(toy: Any, evolora: Any, tmp_path: Path) -> None:
    """Nor has the first generation one."""
    from evolora.tasks.task import load_task

    data, own, run = tmp_path / "words.jsonl", tmp_path / "own.py", tmp_path / "run"
    data.write_text("".join(toy.data.read_text().replace("Translate", verb) for verb in ("Translate", "Turn", "Put")))
    task = load_task(data=data, reward="exact")
    assert task.held_out
    own.write_text(
        f"calls, tests = 0, {[example.prompt for example in task.test]!r}\n"
        "def some(completions, prompts, **kwargs):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    silent = calls <= 2 or prompts[0] in tests\n"
        "    return [None if silent else len(set(text)) / 10 for text in completions]\n"
    )
    code, out, errors = evolora("train", *toy.options(run, "--data", str(data), reward=f"{own}:some", gens=2))
    assert (code, errors) == (0, "")
    assert "generation 1: the reward scored nothing" in out and "The reward scored no test prompt" in out
    written = "".join(path.read_text() for path in run.rglob("*.json*"))
    assert "NaN" not in written and "Infinity" not in written
    summary = json.loads((run / "summary.json").read_text())
    assert summary["winner"]["test"]["reward"] is None and summary["winner"]["test"]["ci95"] == [None, None]
    assert summary["winner"]["validation"] > 0 and (run / "best" / "adapter_model.safetensors").exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["fitness.best"] is None for line in lines] == [True, False]
    code, out, _ = evolora("evaluate", run)
    assert code == 0 and "test reward - (nothing was scored)" in out


HANGS = """
import os, time

def distinct(completions, prompts, **kwargs):
    for prompt in prompts:
        if prompt == {offender!r} and not os.path.exists({mended!r}):
            {fault}
    return [len(set(text)) / 10 for text in completions]
"""


def hanging(folder: Path, fault: str) -> tuple[Path, str]:
    """A reward that does not come back from one test prompt, so from the last thing that a run does, until mended."""
    from evolora.tasks.task import load_task

    offender = load_task(data=folder / "words.jsonl", reward="exact").test[1].prompt
    own = folder / "own.py"
    own.write_text(HANGS.format(offender=offender, mended=str(folder / "mended"), fault=fault))
    return own, offender


@pytest.mark.parametrize(
    ("fault", "said"),
    [("time.sleep(3600)", "took longer than 2 s"), ("os._exit(3)", "exit code 3")],
    ids=["hang", "die"],
)
def test_a_reward_that_hangs_or_dies_in_a_worker_loses_nothing(
    fault: str, said: str, toy: Any, evolora: Any, tmp_path: Path
) -> None:
    (tmp_path / "words.jsonl").write_text(toy.data.read_text())
    own, offender = hanging(tmp_path, fault)
    workers = ("--reward-workers", "2", "--reward-timeout", "2", "--save-every", "100")
    run = tmp_path / "run"
    code, _, errors = evolora("train", *toy.options(run, *workers, reward=f"{own}:distinct", gens=2))
    assert code == 1 and said in errors and offender in errors
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["gen0002"]
    (tmp_path / "mended").touch()
    code, out, _ = evolora("resume", run)
    assert code == 0 and "winner" in out
    (tmp_path / "mended").unlink()
    skipped = tmp_path / "skipped"
    options = toy.options(skipped, *workers, "--on-reward-error", "skip", reward=f"{own}:distinct", gens=2)
    code, out, _ = evolora("train", *options)
    assert code == 0 and "winner" in out
    # The one completion that could not be scored earned --failed-reward, the others what they are worth.
    found, other = (json.loads((folder / "summary.json").read_text())["winner"]["test"] for folder in (skipped, run))
    assert 0 < found["reward"] < other["reward"]


def test_the_last_whole_generation_survives_a_reward_that_fails(
    toy: Any, finished: Path, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    """Although no checkpoint was due."""
    own, run = broken(tmp_path, "raises"), tmp_path / "run"
    code, _, _ = evolora("train", *toy.options(run, "--save-every", "100", reward=f"{own}:distinct"))
    assert code == 1
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert checkpoint.name == "gen0002"
    verify(checkpoint)
    mend(own, toy)
    assert evolora("resume", run, "--accept-changes")[0] == 0
    equal(run, finished, facts)
