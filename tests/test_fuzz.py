"""The fuzzer itself: a few of its inputs, and that it tells what is a fault."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
        assert spec is not None and spec.loader is not None
        module = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(SCRIPT.parent))


def test_twenty_inputs_are_refused_in_a_sentence_or_good(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--seed", "7", "--count", "20", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines() if line.startswith(" "))
    assert sum(map(int, counts.values())) == 20 and int(counts[f"{'refused':>16}"]) > 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "said", "new", "kind"),
    [
        (2, "evolora: --pop x: expected a number\n", set(), "refused"),
        (2, "evolora: --pop x: expected a number\n", {"out"}, "left behind"),
        (2, "Warning: something\nevolora: --pop x: expected a number\n", set(), "words"),
        (2, "no sentence\n", set(), "words"),
        (1, "evolora: reward own raised ValueError\nTraceback ...\n", set(), "failed in words"),
        (1, "", set(), "words"),
        (0, "", {"out"}, "accepted"),
        (3, "evolora: odd\n", set(), "exit code"),
        (-11, "", set(), "killed"),
        (99, "Traceback (most recent call last):\nKeyError\n", set(), "traceback"),
    ],
)
def test_what_is_a_fault(fuzz: ModuleType, code: int, said: str, new: set[str], kind: str) -> None:
    assert fuzz.judged(code, said, 0.1, new).kind == kind


def test_inputs_are_the_seeds(fuzz: ModuleType, tmp_path: Path) -> None:
    import random

    def made(name: str, seed: str) -> list[str]:
        (tmp_path / name).mkdir()
        maker = fuzz.Maker(tmp_path / "materials", tmp_path / name, random.Random(seed))
        return maker.options()

    assert made("a", "0:1") == made("b", "0:1") != made("c", "0:2")
