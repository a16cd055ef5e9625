"""The adapter's model card: Markdown in which nothing that a model, a user or a data file wrote is more than text."""

import json
import math
from typing import Any

from evolora.markdown import code_span, fenced
from evolora.models.export import is_hub_name
from evolora.models.options import ModelOptions
from evolora.models.quantization import settings
from evolora.runs.report.inspection import Inspection


def model_card(
    summary: dict[str, Any],
    *,
    reward: str,
    max_new_tokens: int,
    loaded: ModelOptions,
    examples: list[tuple[str, str, float]],
) -> str:
    """The adapter's README: what it is, its results, and how to load it without evolora, as the base was `loaded`."""
    base, winner = summary["base"]["test"], summary["winner"]["test"]
    rows = "\n".join(f"| {_cell(prompt)} | {_cell(text)} | {_figure(score)} |" for prompt, text, score in examples)
    inspection = Inspection.from_dict(summary["inspection"])
    shares = ", ".join(f"{name} {was:.0%} -> {now:.0%}" for name, was, now in inspection.shares())
    model = summary["model"]
    named = f"base_model: {json.dumps(model)}\n" if is_hub_name(model) else ""
    at = f" at revision {code_span(summary['revision'])}" if "revision" in summary else ""
    few_bits = "" if loaded.quantization is None else f" quantised to {loaded.quantization}"
    how = f'dtype="{loaded.dtype}"'
    if loaded.attn_implementation is not None:
        how += f', attn_implementation="{loaded.attn_implementation}"'
    if loaded.quantization is not None:
        said = ", ".join(f"{name}={value!r}" for name, value in settings(loaded.quantization, loaded.dtype).items())
        how += f", quantization_config=BitsAndBytesConfig({said})"
    if loaded.trust_remote_code:
        how += ", trust_remote_code=True"
    kind = "held out from the tuning" if summary["held_out"] else "that the tuning saw too"
    return f"""---
library_name: peft
{named}tags: [lora, evolora]
---
# LoRA adapter for {code_span(model)}{at}{few_bits}, tuned on {code_span(summary["task"])}

Found by [evolora](https://pypi.org/project/evolora/) {summary["version"]}, which evolves LoRA weights and refines the
best by reinforcement learning: strategy `{summary["strategy"]}`, refiner `{summary["refiner"]}`.
Reward: {code_span(reward)}. Run: {code_span(summary["name"])}.
Seed {summary["seed"]}, {summary["generations"]} generations, {summary["tokens"]["evaluation"]:,} tokens generated for
evaluation and {summary["tokens"]["rollout"]:,} for rollouts.

| | test reward | 95% interval |
|---|---|---|
| base model | {_figure(base["reward"])} | {" to ".join(map(_figure, base["ci95"]))} |
| this adapter | {_figure(winner["reward"])} | {" to ".join(map(_figure, winner["ci95"]))} |

The mean over {summary["test_prompts"]} prompts {kind}, greedy decoding, at most {max_new_tokens} new tokens. The
intervals are over these prompts alone: this is one run, with one seed, and another may end elsewhere.

| prompt | completion | reward |
|---|---|---|
{rows}

Reward hacking would show here, base model -> this adapter: {shares}.
{_warned(inspection)}
## Use
```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer{", BitsAndBytesConfig" if few_bits else ""}

model = AutoPeftModelForCausalLM.from_pretrained("this folder", {how})
tokenizer = AutoTokenizer.from_pretrained("this folder", padding_side="left")
batch = tokenizer(["a prompt"], return_tensors="pt")
ids = model.generate(**batch, do_sample=False, repetition_penalty=1.0, max_new_tokens={max_new_tokens})
print(tokenizer.decode(ids[0, batch["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""


def _figure(value: float | None) -> str:
    """A reward; a dash where nothing was scored."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _cell(text: str) -> str:
    return code_span(text).replace("|", "\\|")  # after an even number of backslashes


def _warned(inspection: Inspection) -> str:
    if not inspection.warnings:
        return ""
    lines = fenced("\n".join(f"warning: {warning}" for warning in inspection.warnings))
    return f"\n{lines}\n"
