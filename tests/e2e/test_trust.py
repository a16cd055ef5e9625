"""A run of somebody else: what is done with it runs none of its code, unless somebody here says so."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import evolora as package
from evolora.runs.adapter import evaluate

REWARD = """
from pathlib import Path
Path(__file__).with_name("imported").touch()

def distinct(completions, **kwargs):
    return [len(set(text)) / 10 for text in completions]
"""
PROMPT = "Translate 'chat' to English:"


@pytest.fixture(scope="module")
def made(toy: Any, command: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copied run whose reward leaves a mark when it is imported, and that mark."""
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "reward.py").write_text(REWARD)
    reward = f"{folder / 'reward.py'}:distinct"
    options = ["--gens", "1", "--pop", "2", "--elites", "1", "--refiner", "none", "--save-every", "1"]
    options += ["--model", str(toy.model), "--data", str(toy.data), "--out", str(folder / "run")]
    command("-m", "evolora", "train", *options, "--reward", reward)
    return Path(shutil.copytree(folder / "run", folder / "copied")), folder / "imported"


@pytest.fixture
def foreign(made: tuple[Path, Path]) -> Path:
    made[1].unlink(missing_ok=True)
    return made[0]


@pytest.fixture
def mark(made: tuple[Path, Path]) -> Path:
    return made[1]


def test_what_does_not_score_imports_no_reward(foreign: Path, mark: Path, evolora: Any, tmp_path: Path) -> None:
    code, said, _ = evolora("generate", foreign, PROMPT)
    assert code == 0 and said
    assert evolora("generate", foreign.with_name("run"), PROMPT)[:2] == (0, said)
    assert evolora("export", foreign, "--to", tmp_path / "adapter")[0] == 0
    assert evolora("export", foreign, "--to", tmp_path / "merged", "--merge")[0] == 0
    assert not mark.exists()


@pytest.mark.parametrize("words", [["evaluate"], ["resume"], ["train", "--resume"]])
def test_what_scores_is_refused_without_trust(words: list[str], foreign: Path, mark: Path, evolora: Any) -> None:
    code, out, errors = evolora(*words, foreign)
    assert code == 2 and out in ("", "loading torch and transformers\n") and errors.count("\n") == 1
    assert f"{foreign}: was not made here, and its reward is the code of {mark.with_name('reward.py')}:" in errors
    assert errors.endswith("expected --trust-reward, for somebody whom you trust\n") and not mark.exists()


def test_it_scores_once_it_is_trusted_or_where_it_was_made(foreign: Path, mark: Path, evolora: Any) -> None:
    assert evolora("evaluate", foreign, "--no-base", "--trust-reward")[0] == 0 and mark.exists()
    mark.unlink()
    assert evolora("evaluate", foreign.with_name("run"), "--no-base")[0] == 0 and mark.exists()


def test_ones_own_reward_needs_no_trust(foreign: Path, mark: Path, evolora: Any) -> None:
    assert evolora("evaluate", foreign, "--no-base", "--reward", "similarity")[0] == 0
    assert not mark.exists()


def test_python_says_so_too(foreign: Path, mark: Path) -> None:
    with pytest.raises(package.InputError, match="was not made here"):
        evaluate(foreign, base=False)
    with pytest.raises(package.InputError, match="expected trust_reward, for somebody"):
        package.resume(foreign, gens=2)
    assert not mark.exists()
    assert evaluate(foreign, base=False, trust_reward=True).rows
    copied = Path(shutil.copytree(foreign, foreign.with_name("resumed")))
    assert package.resume(copied, gens=2, trust_reward=True).summary["generations"] == 2


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 2)])
def test_a_terminal_is_asked(answer: str, code: int, foreign: Path, mark: Path) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "evolora", "evaluate", foreign, "--no-base"],
        stdin=theirs, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert done.returncode == code, done.stderr
    assert f"{foreign} was not made here, and its reward is the code of" in done.stderr and "[y/N]" in done.stderr
    assert mark.exists() == (code == 0)


def test_a_run_whose_making_cannot_be_noted_goes_on(
    toy: Any, evolora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("a file")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    code, out, errors = evolora("train", *toy.options(tmp_path / "run", "--refiner", "none", gens=1))
    assert code == 0, errors
    assert out.count("The run cannot be noted as made here") == 1


def test_trust_without_a_run_is_refused(evolora: Any) -> None:
    code, _, errors = evolora("train", "--trust-reward")
    assert code == 2 and "--trust-reward: expected --resume RUN beside it" in errors


def test_a_foreign_adapter_names_no_variable_of_ours(
    foreign: Path, evolora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOLORA_SECRET", "secret-model-name")
    adapter = Path(shutil.copytree(foreign / "best", tmp_path / "adapter"))
    (adapter / "manifest.json").unlink()
    config = adapter / "adapter_config.json"
    name = (foreign / "config.toml").read_text().split('name = "')[1].split('"')[0]
    config.write_text(config.read_text().replace(name, "env:EVOLORA_SECRET"))
    for words in (["generate", adapter, PROMPT], ["export", adapter, "--to", tmp_path / "merged", "--merge"]):
        code, _, errors = evolora(*words)
        assert code == 2 and "its base model is env:EVOLORA_SECRET, expected --model" in errors
    assert evolora("generate", adapter, PROMPT, "--model", name, "--max-new-tokens", "3")[0] == 0


def test_an_adapter_imports_no_module_that_it_names(
    foreign: Path, evolora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_module.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    adapter = Path(shutil.copytree(foreign / "best", tmp_path / "adapter"))
    (adapter / "manifest.json").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"megatron_config": {"a": 1}, "megatron_core": "evil_module"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    for words in (["generate", adapter, PROMPT], ["export", adapter, "--to", tmp_path / "merged", "--merge"]):
        code, _, errors = evolora(*words)
        assert code == 2 and "megatron" in errors
    assert not (tmp_path / "ran").exists()


def test_a_model_that_brings_code_of_its_own_is_refused(toy: Any, evolora: Any, tmp_path: Path) -> None:
    model = Path(shutil.copytree(toy.model, tmp_path / "model"))
    (model / "mine.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    config = (model / "config.json").read_text().replace('"model_type": "gpt2"', '"model_type": "mine"')
    (model / "config.json").write_text(
        config.replace("{", '{"auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"},', 1)
    )
    code, _, errors = evolora("train", *toy.options(tmp_path / "run"), "--model", str(model))
    assert code == 2 and f"--model {model}: config.json has an auto_map, code of its own, which is not run" in errors
    assert not (tmp_path / "ran").exists()
