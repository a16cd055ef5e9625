"""evolora without its extra `fast`: numba and llvmlite cannot be imported."""

import tomllib
from pathlib import Path
from typing import Any

WITHOUT = """
import sys

sys.modules.update(numba=None, llvmlite=None)
from evolora.cli import main

sys.exit(main(sys.argv[1:]))
"""


def test_a_run_takes_the_eager_engine_and_says_why(toy: Any, tmp_path: Path, command: Any) -> None:
    run = tmp_path / "run"
    done = command("-c", WITHOUT, "train", *toy.options(run, gens=1))
    assert "eager engine (without numba, which pip install 'evolora[fast]' brings)" in done.stdout
    # A resumed run goes on with the same bits, wherever numba is.
    assert tomllib.loads((run / "config.toml").read_text())["engine"]["type"] == "eager"
    assert "eager engine" in command("-m", "evolora", "resume", run, "--gens", "2").stdout


def test_what_a_compiled_run_found_is_used(finished: Path, command: Any) -> None:
    prompt = "Translate 'chat' to English:"
    with_numba = command("-m", "evolora", "generate", finished, prompt).stdout
    assert command("-c", WITHOUT, "generate", finished, prompt).stdout == with_numba


def test_what_needs_numba_is_refused(copied: Path, toy: Any, tmp_path: Path, command: Any) -> None:
    for words in (("--engine", "cpu"), ("--products", "compiled")):
        refused = command("-c", WITHOUT, "train", *toy.options(tmp_path / "no", *words), code=2)
        assert "pip install 'evolora[fast]'" in refused.stderr and len(refused.stderr.splitlines()) == 1
    refused = command("-c", WITHOUT, "resume", copied, "--gens", "7", code=2)
    assert refused.stderr.startswith("evolora: --engine cpu: ") and "pip install 'evolora[fast]'" in refused.stderr
    assert (
        "--engine auto in a new run (a resumed one keeps its engine)" in refused.stderr
        and not (tmp_path / "no").exists()
    )
