"""The adapter's model card: Markdown in which nothing that a model, a user or a data file wrote is more than text."""

import math
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from evolora.markdown import code_span, fenced
from evolora.models.cards import CHAT, USE
from evolora.models.export import is_hub_name
from evolora.models.options import ModelOptions
from evolora.models.quantization import settings
from evolora.runs.report.inspection import Inspection
from evolora.runs.summary import measured_by, worth


def model_card(
    summary: dict[str, Any],
    *,
    reward: str,
    max_new_tokens: int,
    loaded: ModelOptions,
    examples: list[tuple[str, str, float]],
    chat: bool = False,
    system: str | None = None,
    stop: Sequence[str] = (),
) -> str:
    """The adapter's README: what it is, its results, and how to load it without evolora, as the base was `loaded`; of
    one that was tuned on `chat` messages, how they are given to it, after the message of the `system`; and what makes
    a completion `stop`."""
    base, winner = summary["base"]["test"], summary["winner"]["test"]
    rows = "\n".join(f"| {_cell(prompt)} | {_cell(text)} | {_figure(score)} |" for prompt, text, score in examples)
    inspection = Inspection.from_dict(summary["inspection"])
    shares = ", ".join(f"{name} {was:.0%} -> {now:.0%}" for name, was, now in inspection.shares())
    measured = measured_by(summary)
    of_it = "The mean" if measured == "reward" else "The fitness"
    followed = (
        ""
        if measured == "reward"
        else f"Chosen by the fitness {code_span(summary['fitness'])}; RL followed the reward, whose mean is "
        f"{_figure(base['reward'])} for {'what it started from' if 'init' in summary else 'the base model'} and "
        f"{_figure(winner['reward'])} for this adapter.\n\n"
    )
    # That nothing beat the base is said below.
    told = [each for each in summary.get("endings", ()) if not each.startswith("Nothing beat")]
    endings = f"\n{fenced(chr(10).join(told))}\n" if told else ""
    model = summary["model"]
    began = f"the adapter {_cell(summary['init'][0])}" if "init" in summary else "base model"
    unchanged = "Nothing beat it on the validation prompts: this is the unchanged base" + (
        f", {began}." if "init" in summary else ": all weights of the adapter add nothing."
    )
    at = f" at revision {code_span(summary['revision'])}" if "revision" in summary else ""
    few_bits = "" if loaded.quantization is None else f" quantised to {loaded.quantization}"
    kind = "held out from the tuning" if summary["held_out"] else "that the tuning saw too"
    return f"""---
{_metadata(summary, reward, chat=chat)}
---
# LoRA adapter for {code_span(model)}{at}{few_bits}, tuned on {code_span(summary["task"])}

Found by [evolora](https://pypi.org/project/evolora/) {summary["version"]}, which evolves LoRA weights and refines the
best by reinforcement learning: strategy `{summary["strategy"]}`, refiner `{summary["refiner"]}`.
Reward: {code_span(reward)}. Run: {code_span(summary["name"])}.
Seed {summary["seed"]}, {summary["generations"]} generations, {summary["tokens"]["evaluation"]:,} tokens generated for
evaluation and {summary["tokens"]["rollout"]:,} for rollouts.

| | test {measured} | 95% interval |
|---|---|---|
| {began} | {_figure(worth(base))} | {" to ".join(map(_figure, base["ci95"]))} |
| this adapter | {_figure(worth(winner))} | {" to ".join(map(_figure, winner["ci95"]))} |

{followed}{of_it} over {summary["test_prompts"]} prompts {kind}, greedy
decoding, at most {max_new_tokens} new tokens. The intervals are over these prompts alone: this is one run, with one
seed, and another may end elsewhere. {f"{unchanged}{chr(10)}" if summary["winner"].get("id") == 0 else ""}{endings}
| prompt | completion | {"reward" if measured == "reward" else "score"} |
|---|---|---|
{rows}

Reward hacking would show here, {began} -> this adapter: {shares}.
{_warned(inspection)}{USE}{_use(loaded, max_new_tokens, chat=chat, system=system, stop=stop)}"""


def _metadata(summary: dict[str, Any], reward: str, *, chat: bool) -> str:
    """The YAML that the hub reads. A base model that only this machine knows is none there."""
    model, winner = summary["model"], worth(summary["winner"]["test"])
    result = EvalResult(
        task_type="text-generation",
        dataset_type="evolora",
        dataset_name=_short(summary["task"]),
        dataset_split="test",
        metric_type=measured_by(summary),
        metric_name=_short(str(summary.get("fitness", reward))),
        metric_value=winner,
    )
    data = ModelCardData(
        library_name="peft",
        base_model=model if is_hub_name(model) else None,
        pipeline_tag="text-generation",
        tags=["lora", "evolora", *([CHAT] if chat else [])],
        model_name=f"LoRA adapter for {_short(model)}",
        eval_results=None if winner is None or math.isnan(winner) else [result],
    )
    return str(data.to_yaml())


def _use(
    loaded: ModelOptions, max_new_tokens: int, *, chat: bool, system: str | None = None, stop: Sequence[str] = ()
) -> str:
    how, more = f'dtype="{loaded.dtype}"', ""
    if loaded.attn_implementation is not None:
        how += f', attn_implementation="{loaded.attn_implementation}"'
    if loaded.quantization is not None:
        said = ", ".join(f"{name}={value!r}" for name, value in settings(loaded.quantization, loaded.dtype).items())
        how, more = f"{how}, quantization_config=BitsAndBytesConfig({said})", ", BitsAndBytesConfig"
    if loaded.trust_remote_code:
        how += ", trust_remote_code=True"
    batch = 'tokenizer(["a prompt"], return_tensors="pt")'
    if chat:
        first = "" if system is None else f'{{"role": "system", "content": {system!r}}}, '
        messages = f'[[{first}{{"role": "user", "content": "a prompt"}}]]'
        batch = f"""tokenizer.apply_chat_template(
    {messages}, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""
    ends = f", stop_strings={list(stop)!r}, tokenizer=tokenizer" if stop else ""
    return f"""```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer{more}

model = AutoPeftModelForCausalLM.from_pretrained("this folder", {how})
tokenizer = AutoTokenizer.from_pretrained("this folder", padding_side="left")
batch = {batch}
ids = model.generate(**batch, do_sample=False, repetition_penalty=1.0, max_new_tokens={max_new_tokens}{ends})
print(tokenizer.decode(ids[0, batch["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""


def _short(text: str) -> str:
    """Any text on one line, cut where it is long."""
    return repr(text if len(text) <= 100 else f"{text[:100]}…")[1:-1] or "-"


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
