"""What leaves a run: an ordinary PEFT adapter, or the base model with the adapter merged in."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from evolora.checkpoint import temporary_folder, write_folder
from evolora.errors import InputError
from evolora.genome import GenomeLayout
from evolora.inspection import Inspection
from evolora.model import BaseModel, as_peft_model, load_base, set_state


def save_adapter(folder: Path, base: BaseModel, config: LoraConfig, layout: GenomeLayout, genome: Tensor) -> None:
    """Write `genome` [genome_length] as PEFT's `save_pretrained` does, into an existing folder."""
    with as_peft_model(base.model, config, state=layout.to_state_dict(genome)) as peft_model:
        peft_model.save_pretrained(folder)


def export_adapter(
    folder: Path, base: BaseModel, config: LoraConfig, layout: GenomeLayout, genome: Tensor, card: str
) -> None:
    """Write the adapter, the tokenizer and the model card, whole or not at all."""
    temporary = temporary_folder(folder)
    save_adapter(temporary, base, config, layout, genome)
    save_tokenizer(temporary, base)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    write_folder(folder, temporary)


def save_tokenizer(folder: Path, base: BaseModel) -> None:
    """Write the tokenizer as it was loaded: a fast one would keep the padding of its last call."""
    backend = getattr(base.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    base.tokenizer.save_pretrained(folder)


def export_merged(folder: Path, model: str, dtype: torch.dtype, config: LoraConfig, state: dict[str, Tensor]) -> None:
    """Write the base `model` with the adapter merged in by `merge_and_unload`, and the tokenizer.

    The base is loaded anew: merging changes the weights that it merges into.
    """
    fresh = load_base(model, dtype=dtype)
    temporary = temporary_folder(folder)
    with torch.random.fork_rng(devices=[]):  # PEFT draws an A that `state` replaces
        peft_model = get_peft_model(fresh.model, config)
    set_state(peft_model, state)
    peft_model.merge_and_unload().save_pretrained(temporary)
    save_tokenizer(temporary, fresh)
    write_folder(folder, temporary)


def load_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """An adapter's configuration and state dict. Raises InputError when the folder holds none that can be read."""
    weights = folder / "adapter_model.safetensors"
    if not (folder / "adapter_config.json").is_file() or not weights.is_file():
        raise InputError(
            f"{folder}: found no adapter_config.json with adapter_model.safetensors, expected a PEFT adapter"
        )
    try:
        return LoraConfig.from_pretrained(folder), load_file(weights)
    except (SafetensorError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: not a readable LoRA adapter: {error}") from None


def model_card(
    summary: dict[str, Any], *, reward: str, max_new_tokens: int, dtype: str, examples: list[tuple[str, str, float]]
) -> str:
    """The adapter's README: what it is, its results, and how to load it without evolora."""
    base, winner = summary["base"]["test"], summary["winner"]["test"]
    rows = "\n".join(f"| {_cell(prompt)} | {_cell(text)} | {score:.3f} |" for prompt, text, score in examples)
    inspection = Inspection.from_dict(summary["inspection"])
    shares = ", ".join(f"{name} {was:.0%} -> {now:.0%}" for name, was, now in inspection.shares())
    model = summary["model"]
    kind = "held out from the tuning" if summary["held_out"] else "that the tuning saw too"
    return f"""---
library_name: peft
base_model: {model}
tags: [lora, evolora]
---
# LoRA adapter for {model}, tuned on {summary["task"]}

Found by [evolora](https://pypi.org/project/evolora/) {summary["version"]}, which evolves LoRA weights and refines the
best by reinforcement learning: strategy `{summary["strategy"]}`, refiner `{summary["refiner"]}`. Reward: `{reward}`.
Seed {summary["seed"]}, {summary["generations"]} generations, {summary["tokens"]["evaluation"]:,} tokens generated for
evaluation and {summary["tokens"]["rollout"]:,} for rollouts.

| | test reward | 95% interval |
|---|---|---|
| base model | {base["reward"]:.3f} | {base["ci95"][0]:.3f} to {base["ci95"][1]:.3f} |
| this adapter | {winner["reward"]:.3f} | {winner["ci95"][0]:.3f} to {winner["ci95"][1]:.3f} |

The mean over {summary["test_prompts"]} prompts {kind}, greedy decoding, at most {max_new_tokens} new tokens.

| prompt | completion | reward |
|---|---|---|
{rows}

Reward hacking would show here, base model -> this adapter: {shares}.
{_warned(inspection)}
## Use
```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("this folder", dtype="{dtype}")
tokenizer = AutoTokenizer.from_pretrained("this folder", padding_side="left")
batch = tokenizer(["a prompt"], return_tensors="pt")
ids = model.generate(**batch, do_sample=False, repetition_penalty=1.0, max_new_tokens={max_new_tokens})
print(tokenizer.decode(ids[0, batch["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""


def _warned(inspection: Inspection) -> str:
    return "".join(f"- Warning: {_cell(warning)}\n" for warning in inspection.warnings)


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")
