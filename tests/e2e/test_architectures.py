"""Runs of architectures beside the usual ones: experts, recurrent layers, a vision tower."""

import json
from pathlib import Path
from typing import Any

import pytest
from architectures import random_model
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from evolora.models.base import model_path


@pytest.fixture(scope="session")
def bundled_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path("tiny-gpt2"))


@pytest.fixture
def folder(tmp_path: Path, bundled_tokenizer: PreTrainedTokenizerBase) -> Any:
    def make(architecture: str) -> Path:
        model = random_model(architecture)
        model.generation_config.eos_token_id = list(range(0, 1024, 6))  # rows end early, and leave
        model.save_pretrained(tmp_path / architecture)
        bundled_tokenizer.save_pretrained(tmp_path / architecture)
        return tmp_path / architecture

    return make


SMALL = (
    "--gens", "1", "--pop", "2", "--elites", "1", "--eval-prompts", "4", "--validation-prompts", "4", "--rl-steps", "1",
    "--max-new-tokens", "4", "--prompt", "2 + 2 =", "--target", "4",
)  # fmt: skip


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "lfm2", "mamba", "gemma3_vision"])
def test_a_run_reads_back_what_it_wrote(architecture: str, folder: Any, tmp_path: Path, evolora: Any) -> None:
    run = tmp_path / "run"
    code, _, said = evolora("train", "--model", folder(architecture), *SMALL, "--out", run)
    assert code == 0, said
    assert evolora("evaluate", run)[0] == 0
    assert evolora("generate", run, "2 + 2 =")[0] == 0
    code, _, said = evolora("export", run / "best", "--to", tmp_path / "merged", "--merge")
    assert code == 0, said
    alone = ["--refiner", "none", "--out", tmp_path / "next"]
    code, _, said = evolora("train", "--init", run, *SMALL[:10], *SMALL[12:], *alone)
    assert code == 0, said
    layers = load_file(run / "best" / "adapter_model.safetensors")
    assert layers and not any("vision" in name for name in layers)
    config = json.loads((run / "best" / "adapter_config.json").read_text())
    assert (architecture == "gemma3_vision") == bool(config["exclude_modules"])


def test_a_model_that_batches_wrongly_is_refused(folder: Any, tmp_path: Path, evolora: Any) -> None:
    code, _, said = evolora("train", "--model", folder("rwkv"), *SMALL, "--out", tmp_path / "run")
    assert code == 2 and "RwkvSelfAttention" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_tokens_without_an_embedding_are_refused(
    folder: Any, tmp_path: Path, bundled_tokenizer: PreTrainedTokenizerBase, evolora: Any
) -> None:
    model = folder("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(model)
    words = [word if word != "2 + 2 =" else "<think> 2 + 2 =" for word in SMALL]
    code, _, said = evolora("train", "--model", model, *words, "--out", tmp_path / "run")
    assert code == 2 and "its token '<think>' has the id 1024, expected ids below 1024" in said
