"""Supervised tuning on the targets: a plain loop of PyTorch and PEFT, which is shown what RL has to find."""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model

from evolora.models.lora import lora_config
from evolora.runs.assembled import Parts
from evolora.tasks.task import Example


def supervise(parts: Parts, folder: Path, *, seed: int, seconds: float, lr: float, batch: int) -> tuple[int, float]:
    """Tune for so many seconds and save the adapter of the epoch with the least loss on validation rows into `folder`.
    Returns the epochs and the seconds they took."""
    torch.manual_seed(seed)
    order, started = np.random.default_rng(seed), time.perf_counter()
    model = get_peft_model(parts.base.model, lora_config(parts.base.model))
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=lr)
    train, validation = (_rows(parts, examples) for examples in (parts.task.train, parts.task.validation))
    least, epochs = float("inf"), 0
    while time.perf_counter() - started < seconds or not epochs:
        model.train()
        shuffled = [train[row] for row in order.permutation(len(train))]
        for start in range(0, len(shuffled), batch):
            optimiser.zero_grad()
            _loss(model, shuffled[start : start + batch], parts.text.pad).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            if time.perf_counter() - started > seconds:
                break
        model.eval()
        with torch.no_grad():
            loss = float(np.mean([_loss(model, [row], parts.text.pad).item() for row in validation]))
        epochs += 1
        if loss < least:
            least = loss
            model.save_pretrained(folder)
    return epochs, time.perf_counter() - started


def _rows(parts: Parts, examples: tuple[Example, ...]) -> list[tuple[list[int], list[int]]]:
    """Prompt and target of each, as token ids, the latter with its end."""
    targets = [str(example.columns["target"]) for example in examples]
    prompts = parts.text.encode([example.prompt for example in examples])
    return [
        (prompt, [*target, parts.text.ends[0]])
        for prompt, target in zip(prompts, parts.text.encode(targets), strict=True)
    ]


def _loss(model: PeftModel, rows: list[tuple[list[int], list[int]]], pad: int) -> torch.Tensor:
    """Cross-entropy of the targets' tokens."""
    longest = max(len(prompt) + len(target) for prompt, target in rows)
    ids = torch.full((len(rows), longest), pad)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (prompt, target) in enumerate(rows):
        end = len(prompt) + len(target)
        ids[row, :end] = torch.tensor([*prompt, *target])
        labels[row, len(prompt) : end] = torch.tensor(target)
        mask[row, :end] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())
