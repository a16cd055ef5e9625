"""Completions of many prompts: greedy decoding, keyed sampling, and their log-probabilities."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from evolora.model import accepts
from evolora.rng import keyed_uniforms


@dataclass(frozen=True)
class PromptBatch:
    """Left-padded prompts: `ids` and `mask` are [rows, length]."""

    ids: Tensor
    mask: Tensor

    def repeat(self, times: int) -> "PromptBatch":
        """The whole batch `times` times over, one after another: a group for each individual."""
        return PromptBatch(self.ids.repeat(times, 1), self.mask.repeat(times, 1))


@dataclass(frozen=True)
class Completions:
    """What the model wrote after each prompt.

    `ids` [rows, length]; `mask` [rows, length] is true up to and with the first end-of-sequence token. Sampling also
    gives `log_probs` [rows, length], of the tempered distribution that was sampled from; `features` [rows, length,
    hidden], where they were asked for, are the last hidden states that each token was chosen from.
    """

    ids: Tensor
    mask: Tensor
    log_probs: Tensor | None = None
    features: Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were written, end-of-sequence tokens included."""
        return int(self.mask.sum())

    def rows(self) -> list[list[int]]:
        """The token ids that were written in each row."""
        return [ids[kept].tolist() for ids, kept in zip(self.ids.cpu(), self.mask.cpu(), strict=True)]


def encode(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], device: torch.device | str) -> PromptBatch:
    """Tokenise prompts, padded on the left."""
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    return PromptBatch(batch["input_ids"].to(device), batch["attention_mask"].to(device))


def decode_text(tokenizer: PreTrainedTokenizerBase, completions: Completions) -> list[str]:
    """The completions as text, without special tokens."""
    return [str(text) for text in tokenizer.batch_decode(completions.rows(), skip_special_tokens=True)]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids that end a completion: those of the model's generation config, else the tokenizer's."""
    found = model.generation_config.eos_token_id if model.generation_config is not None else None
    if found is None:
        found = tokenizer.eos_token_id
    return list(found) if isinstance(found, list) else [int(found)]


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills finished rows."""
    return int(tokenizer.pad_token_id)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: PromptBatch,
    *,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    seeds: npt.NDArray[np.uint64] | None = None,
    temperature: float = 1.0,
    keep_features: bool = False,
    use_cache: bool = True,
) -> Completions:
    """Complete each prompt: greedily, or by sampling when `seeds` [rows] are given.

    Sampling is pure (no top-k, no top-p): one keyed uniform number a token, looked up in the cumulative distribution of
    softmax(logits / temperature). A row's tokens depend on its own seed and distributions, not on who shares the batch.

    The tokens of greedy decoding equal those of transformers' own `generate(do_sample=False)`.

    >>> from evolora.model import load_base
    >>> base = load_base("tiny-gpt2")
    >>> prompts = encode(base.tokenizer, ["The English word for 'chat' is '", "The sum of 4 and 3 is"], "cpu")
    >>> ends, pad = end_tokens(base.model, base.tokenizer), base.tokenizer.pad_token_id
    >>> completions = generate(base.model, prompts, max_new_tokens=6, eos_token_ids=ends, pad_token_id=pad)
    >>> decode_text(base.tokenizer, completions)
    ["cat'.", ' 7.']
    >>> seeds = np.array([1, 2], dtype=np.uint64)
    >>> sampled = generate(base.model, prompts, max_new_tokens=6, eos_token_ids=ends, pad_token_id=pad, seeds=seeds)
    >>> bool((sampled.log_probs[sampled.mask] <= 0).all())
    True
    """
    rows, device = prompts.ids.shape[0], prompts.ids.device
    uniforms = None
    if seeds is not None:
        uniforms = torch.from_numpy(keyed_uniforms(seeds, max_new_tokens)).to(device)
    ends = torch.tensor(list(eos_token_ids), device=device)
    cache = DynamicCache(config=model.config) if use_cache else None
    mask, alive = prompts.mask, torch.ones(rows, dtype=torch.bool, device=device)
    ids = prompts.ids
    chosen: list[Tensor] = []
    masks: list[Tensor] = []
    log_probs: list[Tensor] = []
    features: list[Tensor] = []
    with _last_hidden_states(model) as hidden:
        for step in range(max_new_tokens):
            logits = _next_logits(model, ids, mask, cache)
            if keep_features:
                features.append(hidden[-1][:, -1].clone())
            hidden.clear()
            if uniforms is None:
                token = logits.argmax(-1)
            else:
                token, log_prob = _sample(logits, uniforms[:, step], temperature)
                log_probs.append(log_prob)
            token = torch.where(alive, token, pad_token_id)
            chosen.append(token)
            masks.append(alive)
            alive = alive & ~torch.isin(token, ends)
            if not alive.any():
                break
            ids = token[:, None] if use_cache else torch.cat([ids, token[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return Completions(
        torch.stack(chosen, 1),
        torch.stack(masks, 1),
        torch.stack(log_probs, 1) if log_probs else None,
        torch.stack(features, 1) if features else None,
    )


def _next_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: DynamicCache | None) -> Tensor:
    """Logits of the token after the last, [rows, vocabulary], in float32."""
    arguments: dict[str, object] = {"input_ids": ids, "attention_mask": mask, "use_cache": cache is not None}
    if cache is not None:
        arguments["past_key_values"] = cache
    if accepts(model, "position_ids"):
        # Without explicit positions a left-padded row would count its padding.
        arguments["position_ids"] = _positions(mask)[:, -ids.shape[1] :]
    if accepts(model, "logits_to_keep"):
        arguments["logits_to_keep"] = 1
    logits: Tensor = model(**arguments).logits
    return logits[:, -1].float()


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def _sample(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The inverse of the cumulative distribution at `uniform` [rows], and the log-probability there, both [rows].

    In two levels, the block of the vocabulary and the token in it: a cumulative sum over 50,257 entries in float64
    would cost more than all the rest.
    """
    log_probs = torch.log_softmax(logits / temperature, -1)
    size = math.isqrt(logits.shape[-1]) + 1
    blocks = F.pad(log_probs.exp(), (0, -logits.shape[-1] % size)).unflatten(-1, (-1, size))
    edges = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    # Scaled by the total, so that rounding can neither pass the end nor choose a token of probability zero there.
    point = uniform[:, None] * edges[:, -1:]
    block = torch.searchsorted(edges, point, right=True).clamp(max=edges.shape[-1] - 1)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, size))[:, 0].double().cumsum(-1)
    # What is left of the point within its block; the block's own sum rounds a little differently.
    before = torch.where(block > 0, edges.gather(1, (block - 1).clamp(min=0)), 0.0)
    left = (point - before).clamp(min=0).minimum(inside[:, -1:] * (1 - 1e-12))
    token = block * size + torch.searchsorted(inside, left, right=True)
    token = token.clamp(max=logits.shape[-1] - 1)  # only ever past it when the logits are NaN
    return token[:, 0], log_probs.gather(-1, token)[:, 0]


@contextmanager
def _last_hidden_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The inputs of the output embedding, one tensor [rows, kept, hidden] a forward pass."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    hook = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def completion_log_probs(
    model: PreTrainedModel, prompts: PromptBatch, completions: Completions, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token and the entropy of the distribution that it came from, both
    [rows, length], by one forward pass; differentiable. Values beyond the completions' mask mean nothing."""
    length = completions.ids.shape[1]
    ids = torch.cat([prompts.ids, completions.ids[:, :-1]], 1)
    mask = torch.cat([prompts.mask, completions.mask[:, :-1].to(prompts.mask.dtype)], 1)
    arguments: dict[str, object] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if accepts(model, "position_ids"):
        arguments["position_ids"] = _positions(mask)
    if accepts(model, "logits_to_keep"):
        arguments["logits_to_keep"] = length
    logits = model(**arguments).logits[:, -length:]
    log_probs = torch.log_softmax((logits if logits.dtype == torch.float64 else logits.float()) / temperature, -1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, completions.ids.unsqueeze(-1)).squeeze(-1), entropy


def select_rows(completions: Completions, rows: Tensor) -> Completions:
    """The completions of some rows."""
    return replace(
        completions,
        ids=completions.ids[rows],
        mask=completions.mask[rows],
        log_probs=None if completions.log_probs is None else completions.log_probs[rows],
        features=None if completions.features is None else completions.features[rows],
    )
