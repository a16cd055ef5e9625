"""Fixtures of the end-to-end tests: a toy model that is made in a second, the real command, and what a run left."""

import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from rater import headless_chromium
from selenium import webdriver
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evolora.cli import main
from evolora.runs.identity import read_identity
from evolora.runs.trust import note_made_here

ROOT = Path(__file__).parents[2]
TRAINER = str(ROOT / "hybrid_ga_rl.py")
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "120"}

WORDS = {
    "chat": "cat", "chien": "dog", "maison": "house", "voiture": "car", "arbre": "tree", "soleil": "sun",
    "lune": "moon", "mer": "sea", "ciel": "sky", "eau": "water", "feu": "fire", "pain": "bread", "lait": "milk",
    "livre": "book", "porte": "door", "mur": "wall", "main": "hand", "pied": "foot", "nez": "nose", "jour": "day",
}  # fmt: skip

# The share of ten different characters: it varies even on the babble of random weights.
REWARD = """
def distinct(completions, **kwargs):
    return [len(set(text)) / 10 for text in completions]
"""
# The same numbers, slowly: a run that can be hit between any two of its steps.
SLOW_REWARD = f"""
import time
{REWARD.replace("    return", "    time.sleep(0.06)" + chr(10) + "    return")}
"""


@dataclass(frozen=True)
class Toy:
    """A tiny random GPT-2, its data of 20 prompts, a reward, and the options of a short run of them."""

    folder: Path
    model: Path
    data: Path
    reward: str
    slow_reward: str

    def options(self, out: Path, *more: str, gens: int = 6, reward: str | None = None) -> list[str]:
        return [
            "--model", str(self.model), "--data", str(self.data), "--reward", reward or self.reward,
            "--gens", str(gens), "--pop", "4", "--save-every", "2", "--keep", "0", "--merge", "--refine", "2",
            *(() if "--strategy" in more else ("--mutation-scale", "0.1")),
            *(() if ("--refiner", "none") in itertools.pairwise(more) else ("--rl-steps", "1")),
            "--out", str(out), *more,
        ]  # fmt: skip


Command = Callable[..., subprocess.CompletedProcess[str]]
Evolora = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def nothing_concealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `env:NAME` stood for in one test is no secret in the next, in the same process."""
    monkeypatch.setattr("evolora.masking._concealed", {})


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it reads the variable on import


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    bpe.train_from_iterator(["Translate 'bonjour' to English: hello", *WORDS.values()] * 3, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, bos_token=end, pad_token=end)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Toy:
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"prompt": f"Translate '{word}' to English:", "target": target} for word, target in WORDS.items()]
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    (folder / "slow.py").write_text(SLOW_REWARD)
    return Toy(
        folder,
        folder / "model",
        folder / "words.jsonl",
        f"{folder / 'reward.py'}:distinct",
        f"{folder / 'slow.py'}:distinct",
    )


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny random Llama."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=128, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_command(*arguments: str | Path, code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with the exit code that it should have."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=ENVIRONMENT, cwd=cwd, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def command() -> Command:
    """Python in a process of its own: `command("-m", "evolora.cli", ...)` or `command(script, ...)`."""
    return run_command


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.Popen[str]]:
    """Start the command and leave it running."""

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


@pytest.fixture
def evolora(capsys: pytest.CaptureFixture[str]) -> Evolora:
    """The command in this process, which saves its start-up: exit code, stdout and stderr. With EVOLORA_REAL set, as
    `make drill` has it, in one of its own."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        if os.environ.get("EVOLORA_REAL"):
            done = subprocess.run(
                [sys.executable, "-m", "evolora", *map(str, arguments)],
                env={**ENVIRONMENT, **os.environ}, capture_output=True, text=True, timeout=900, check=False,
            )  # fmt: skip
            return done.returncode, done.stdout, done.stderr
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def trainer() -> str:
    """The standalone trainer's path."""
    return TRAINER


@pytest.fixture(scope="session")
def finished(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six generations by the real command, never interrupted. Read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_command(TRAINER, *toy.options(folder))
    return folder


@pytest.fixture(scope="session")
def translated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main job: the command that `make demo` runs."""
    folder = tmp_path_factory.mktemp("translated") / "run"
    run_command(TRAINER, "--gens", "20", "--pop", "8", "--out", folder)
    return folder


@pytest.fixture(scope="session")
def adopted() -> Callable[[Path], Path]:
    """Make a copied run one that was made where it is: to most tests it does not matter that it is a copy."""

    def adopt(run: Path) -> Path:
        assert note_made_here(run, read_identity(run).run) is None
        return run

    return adopt


@pytest.fixture
def copied(finished: Path, adopted: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A copy of the finished run, as if it had been made there."""
    return adopted(Path(shutil.copytree(finished, tmp_path / "copied")))


@dataclass(frozen=True)
class Facts:
    """What must be the same in every repetition of a run: all but the seconds."""

    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    lineage: dict[str, list[str]]
    adapter: str


@pytest.fixture(scope="session")
def facts() -> Callable[[Path], Facts]:
    def read(folder: Path) -> Facts:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        metrics = [
            {
                name: value
                for name, value in json.loads(line).items()
                if not name.startswith(("time.", "workers.", "run", "check"))
            }
            for line in lines
        ]
        summary = json.loads((folder / "summary.json").read_text())
        for own in ("seconds", "time", "run", "name", "sha256", "sealed"):
            del summary[own]
        database = sqlite3.connect(folder / "lineage.sqlite")
        tables = ("individuals", "parents", "fitness", "samples")
        lineage = {table: sorted(map(repr, database.execute(f"SELECT * FROM {table}"))) for table in tables}
        database.close()
        adapter = sha256((folder / "best" / "adapter_model.safetensors").read_bytes()).hexdigest()
        return Facts(metrics, summary, lineage, adapter)

    return read


@pytest.fixture(scope="session")
def digest() -> Callable[[Path], dict[str, str]]:
    """Every file below a folder with its checksum."""

    def read(folder: Path) -> dict[str, str]:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}

    return read


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A real browser without a window."""
    driver = headless_chromium(tmp_path_factory.mktemp("chromium"))
    if driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    yield driver
    driver.quit()
