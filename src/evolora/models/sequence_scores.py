"""Sequence classifiers applied to many texts: in batches of like length, on their own device, by name or folder."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from evolora.errors import InputError
from evolora.models.base import load_whole
from evolora.models.foreign import check_model_folder, check_sizes, loading


def written(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str]) -> list[str]:
    """What a reward model reads: prompt, completion, and the end of the text, so that it knows where that is."""
    return [f"{prompt}{text}{tokenizer.eos_token or ''}" for prompt, text in zip(prompts, completions, strict=True)]


def load_model(
    what: str,
    kind: Any,
    model: str,
    device: str,
    *,
    check: Callable[[Any], None] | None = None,
    new: str | None = None,
    **options: Any,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model of transformers' auto class `kind`, frozen, in evaluation mode, and its tokenizer, padding on the right.
    `check` may refuse its configuration before any weights are read.

    Raises InputError, which says `what` it is and names the model, when either cannot be loaded, or when tensors are
    missing, of another shape or not finite, but for those of the `new` module.
    """
    subject = f"{what} is {model!r} on {device}"
    check_model_folder(subject, Path(model))
    with loading(subject):
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        check_sizes(subject, config, Path(model))
        if check is not None:
            check(config)
        tokenizer = AutoTokenizer.from_pretrained(model, padding_side="right", trust_remote_code=False)
        loaded = load_whole(kind, model, new=new, **options)
        loaded = loaded.eval().requires_grad_(False).to(device)
    # transformers makes an empty tokenizer where there is none.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"{what} is {model!r}, found no tokenizer with it, expected one.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return loaded, tokenizer


def load_classifier(reward: str, model: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier. Raises InputError as `load_model` does, and for weights that lack a classifier's head."""

    def check(config: Any) -> None:
        kinds = config.architectures or ["no architecture"]
        if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            raise InputError(f"reward {reward}: model is {model!r}, found {kinds[0]}, expected a sequence classifier.")

    what = f"reward {reward}: model"
    loaded, tokenizer = load_model(what, AutoModelForSequenceClassification, model, device, check=check)
    if loaded.config.pad_token_id is None:
        loaded.config.pad_token_id = tokenizer.pad_token_id
    return loaded, tokenizer


def classifier_outputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int
) -> Tensor:
    """The classifier's raw outputs on the CPU: [texts, labels] float64. Texts of like length go through together."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    found: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            found.append(outputs_of(model, tokenizer, [texts[row] for row in rows]).double().cpu())
    outputs = torch.cat(found) if found else torch.zeros(0, model.config.num_labels, dtype=torch.float64)
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
    return outputs[back]


def outputs_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """The classifier's raw outputs for one batch: [texts, labels], with gradients where there are any."""
    outputs: Tensor = model(**encoded(model, tokenizer, texts)).logits
    return outputs


def encoded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Any:
    """The texts as a batch on the model's device. Of one that is longer than the model has room for, the end stays:
    the completion is what is judged."""
    room = getattr(model.config, "max_position_embeddings", None)
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    try:
        batch = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=room is not None, max_length=room)
    finally:
        tokenizer.truncation_side = side
    if batch["input_ids"].shape[1] == 0:  # nothing but empty texts: one token to look at
        batch = tokenizer([tokenizer.pad_token] * len(texts), return_tensors="pt")
    return batch.to(model.device)


def check_batch_size(reward: str, batch_size: int) -> None:
    """Raise InputError for a batch without a text."""
    if batch_size < 1:
        raise InputError(f"reward {reward}: batch_size is {batch_size}, expected 1 or more.")


def model_version(model: str) -> str:
    """What a model's values depend on: the checksum of a folder's files, or a hub name."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in (".safetensors", ".bin", ".json", ".txt", ".model", ".jinja"):
            digest.update(file.name.encode())
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
