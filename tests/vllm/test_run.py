"""A run whose completions vLLM writes, with the real command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytest.importorskip("vllm", reason="vLLM wants an environment of its own, which make test-vllm makes")

REWARD = "def distinct(completions, **kwargs):\n    return [len(set(text)) / 10 for text in completions]\n"


def evolora(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "evolora", *map(str, arguments)],
        env={**os.environ, "COLUMNS": "120"}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> list[str]:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=len(tiny_tokenizer), max_position_embeddings=128, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    words = ["the cat", "a dog", "the red house", "one two", "three four", "the mat", "five", "ran to", "sat on", "4 +"]
    (folder / "words.jsonl").write_text("".join(json.dumps({"prompt": word}) + "\n" for word in words))
    (folder / "reward.py").write_text(REWARD)
    return [
        "--model", str(folder / "model"), "--data", str(folder / "words.jsonl"),
        "--reward", f"{folder / 'reward.py'}:distinct", "--max-new-tokens", "8", "--pop", "4", "--refine", "2",
        "--rl-steps", "1", "--refiner", "ppo", "--mutation-scale", "0.1", "--save-every", "1", "--keep", "0",
        "--engine", "vllm", "--vllm-slots", "3", "--threads", "1",
    ]  # fmt: skip


def test_a_run_is_resumed_to_the_same_bits_by_another_process(options: list[str], tmp_path: Path) -> None:
    """Completions by vLLM in more than one wave, log-probabilities and gradients by the eager engine."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    said = evolora("train", *options, "--gens", "2", "--out", whole)
    assert "vLLM" in said and "eager engine scores" in said and "self-check" in said
    evolora("train", *options, "--gens", "1", "--out", parts)
    evolora("resume", parts, "--gens", "2")
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, parts)]
    assert summaries[0]["winner"]["genome_sha256"] == summaries[1]["winner"]["genome_sha256"]
    metrics = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert any("kl" in json.dumps(line) for line in metrics)  # a refiner had log-probabilities
    config = (whole / "config.toml").read_text()
    assert 'type = "vllm"' in config


def test_a_model_without_lora_is_refused_by_name(options: list[str], tmp_path: Path) -> None:
    at = options.index("--model")
    other = [*options[:at], *options[at + 2 :]]
    said = evolora("train", *other, "--model", "tiny-gpt2", "--gens", "1", "--out", tmp_path / "run", code=2)
    assert "--engine vllm" in said and "GPT2LMHeadModel" in said and "Traceback" not in said


def test_a_truncation_is_refused_before_any_work(options: list[str], tmp_path: Path) -> None:
    said = evolora("train", *options, "--top-k", "5", "--gens", "1", "--out", tmp_path / "run", code=2)
    assert "--top-k" in said and "Traceback" not in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
