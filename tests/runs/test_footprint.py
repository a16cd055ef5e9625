"""What memory a run will take is said before its first generation."""

import re
from pathlib import Path

from evolora import evolve
from evolora.runs.footprint import Footprint
from evolora.runs.tracking.view import Silence

GIB = 2**30


class Heard(Silence):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_nobody_writes_during_an_update() -> None:
    found = Footprint(now=GIB, population=GIB // 4, written=3 * GIB, update=2 * GIB, free=4 * GIB)
    assert found.lines() == [
        "memory: about 4.25 GiB at most (now 1.00, population 0.25, writing 3.00, an update 2.00), 4.00 GiB are free"
    ]


def test_too_little_is_a_sentence() -> None:
    (_, said) = Footprint(now=GIB, population=0, written=GIB, update=3 * GIB, free=2 * GIB).lines()
    assert said.startswith("This may be too little memory: 3.00 GiB more are needed than the run has now; --gradient")


def test_a_run_says_it_before_it_begins(tmp_path: Path) -> None:
    view, options = Heard(), {"pop": 2, "elites": 1, "eval_prompts": 2, "rl_steps": 1, "rollout_prompts": 2}
    evolve(out=tmp_path / "run", gens=1, view=view, max_validation_prompts=2, max_test_prompts=2, **options)
    (line,) = [line for line in view.said if line.startswith("memory: ")]
    assert view.said.index(line) < view.said.index(f"run folder: {tmp_path / 'run'}")
    parts = [float(size) for size in re.findall(r"(\d+\.\d+)", line)]
    assert parts[0] >= parts[1] > 0.1 and parts[3] < 0.1, "few rows of a small model are little"
