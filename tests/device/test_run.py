"""A run on a device that is not the CPU: nothing mixes devices, and it finds what the CPU finds."""

import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evolora import evolve, resume
from evolora.engine import calibration
from evolora.engine.calibration import bytes_a_row, choose_rows
from evolora.models.base import BaseModel, dtype_on

Placed = Callable[..., BaseModel]

ROWS = [
    {"prompt": f"the {a} sat on {b}", "target": a} for a in ("cat", "dog", "mat", "four") for b in ("the", "red", "to")
]
SMALL: dict[str, Any] = {
    "gens": 2, "pop": 3, "elites": 1, "refine": 2, "eval_prompts": 4, "rollout_prompts": 4, "rollout_samples": 2,
    "rl_steps": 1, "validation_prompts": 4, "threads": 1, "max_new_tokens": 5, "engine.type": "eager",
}  # fmt: skip


def distinct(completions: list[str], **_: Any) -> list[float]:
    """Differs between nearly any two completions, and by little where they differ by little."""
    return [len(set(text)) / 10 for text in completions]


def run(
    placed: Placed, architecture: str, out: Path, *, on_device: bool, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    base = placed(architecture, on_device=on_device, dtype=dtype)
    given = {"model": base.model, "tokenizer": base.tokenizer, "reward": distinct}
    every = {**SMALL, **options}
    if every.get("refiner") == "none":
        every = {name: value for name, value in every.items() if not name.startswith(("rollout", "rl", "refine"))}
        every["refiner"] = "none"
    return evolve(**given, data=ROWS, out=out, **{name: value for name, value in every.items() if value is not None})


def same(found: Any, expected: Any) -> bool:
    """Up to float32's rounding."""
    if isinstance(expected, float) and isinstance(found, float):
        return math.isclose(found, expected, rel_tol=1e-3, abs_tol=1e-4) or (found != found and expected != expected)
    return bool(found == expected)


MATRIX: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("gpt2", {}),
    "ppo on llama, without dropout": ("llama", {"lora.dropout": 0.0, "kl_place": "loss", "critic": "individual"}),
    "grpo": ("gpt2", {"refiner": "grpo", "minibatches": 2, "epochs": 2, "kl_weight": 0.05}),
    "grpo, lessons": ("qwen2", {"refiner": "grpo", "replay": 4, "lora.dropout": 0.0, "equal_groups": "skip"}),
    "rloo in micro-batches": ("gpt2", {"refiner": "rloo", "update_tokens": 40, "entropy_weight": 0.01}),
    "no refiner, slices": (
        "gpt_neox",
        {"refiner": "none", "rows_per_slice": 3, "mutation": "svd", "crossover": "blend"},
    ),
    "es": ("gpt2", {"strategy": "es"}),
    "eggroll": ("gpt2", {"strategy": "eggroll"}),
    "sep-cmaes": ("gpt2", {"strategy": "sep-cmaes"}),
    "pbt": ("gpt2", {"strategy": "pbt", "refine": None}),
    "none": ("gpt2", {"strategy": "none", "pop": None, "refine": None, "elites": None}),
    "racing": ("gpt2", {"racing": 0.05, "keep_optimiser": True, "kl_target": 0.1}),
}


@pytest.mark.parametrize("name", MATRIX)
def test_a_run_finds_what_the_cpu_finds(placed: Placed, tmp_path: Path, name: str) -> None:
    architecture, options = MATRIX[name]
    expected = run(placed, architecture, tmp_path / "cpu", on_device=False, **options)
    found = run(placed, architecture, tmp_path / "device", on_device=True, **options)
    rounding = "canary"  # which differs by device
    off = {
        (entry, key): (own.get(key), value)
        for entry, (own, right) in enumerate(zip(found.history, expected.history, strict=True))
        for key, value in right.items()
        if not key.startswith(("time.", "run", "check", rounding)) and not same(own.get(key), value)
    }
    assert not off
    assert found.summary["winner"]["id"] == expected.summary["winner"]["id"]


def test_a_run_resumes_to_the_same_bits(placed: Placed, tmp_path: Path) -> None:
    options = {"keep_optimiser": True, "merge": True}
    whole = run(placed, "gpt2", tmp_path / "whole", on_device=True, **options)
    half = run(placed, "gpt2", tmp_path / "half", on_device=True, gens=1, **options)
    base = placed("gpt2", on_device=True)
    again = resume(half.folder, model=base.model, tokenizer=base.tokenizer, reward=distinct, gens=2)
    assert again.summary["winner"]["genome_sha256"] == whole.summary["winner"]["genome_sha256"]
    assert again.merged is not None and (again.merged / "model.safetensors").is_file()


def test_slices_are_sized_for_the_model_and_recorded(
    placed: Placed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = placed("gpt2", on_device=True)
    a_row = bytes_a_row(base.model, 20)
    for rows, chosen in ((100, 64), (1000, 512), (10**6, 4096)):
        monkeypatch.setattr(calibration, "free_memory", lambda _, rows=rows: 2 * rows * a_row)
        assert choose_rows(base.model, 20) == chosen
    found = run(placed, "gpt2", tmp_path / "run", on_device=True, refiner="none", gens=1)
    written = tomllib.loads((found.folder / "config.toml").read_text())["engine"]
    assert written["rows_per_slice"] == 4096 and written["device"] == str(base.model.device)


def test_bfloat16_is_trained_and_recorded(placed: Placed, tmp_path: Path) -> None:
    found = run(placed, "llama", tmp_path / "run", on_device=True, dtype=torch.bfloat16)
    assert tomllib.loads((found.folder / "config.toml").read_text())["model"]["dtype"] == "bfloat16"
    assert all(entry["ppo.grad_norm"] > 0 and math.isfinite(entry["ppo.entropy"]) for entry in found.history)


def test_auto_is_bfloat16_on_a_gpu_that_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, chosen in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation, has=has: has)
        assert dtype_on("cuda:1", "auto") == chosen and dtype_on("cuda", "float16") == torch.float16
    assert dtype_on("cpu", "auto") == torch.float32
