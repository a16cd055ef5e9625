"""Completions of many prompts: greedy decoding and keyed sampling."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evolora.engine.base import Completions, Decoding, Prompts
from evolora.engine.eager.decoder import DecodingBatch
from evolora.engine.eager.kernels import Choice, Kernels
from evolora.engine.eager.lora_layers import LoraLayers
from evolora.engine.eager.truncation import as_bits, kept_by, restricted
from evolora.rng import keyed_uniforms


@dataclass(frozen=True)
class PromptBatch:
    """Left-padded prompts: `ids` and `mask` are [rows, length]; `texts`, the token ids of each without padding, are on
    the host."""

    ids: Tensor
    mask: Tensor
    texts: list[list[int]]

    @classmethod
    def of(cls, prompts: Prompts, *, pad: int, times: int, device: torch.device) -> "PromptBatch":
        """Of ragged prompts, all of them `times` times over."""
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(own)) + list(own) for own in prompts])
        lengths = torch.tensor([len(own) for own in prompts])
        mask = (torch.arange(width) >= width - lengths[:, None]).to(torch.int64)
        texts = [list(own) for own in prompts] * times
        return cls(ids.to(device).repeat(times, 1), mask.to(device).repeat(times, 1), texts)


@torch.no_grad()
def generate(
    layers: LoraLayers, kernels: Kernels, prompts: PromptBatch, how: Decoding, *, use_cache: bool = True
) -> Completions:
    """Complete each prompt, of rows in equal groups for the genomes that `layers` run with, as `how` says.

    Sampling takes one keyed uniform number a token, looked up in the cumulative distribution of softmax(logits /
    temperature), or of what a truncation keeps of it. Drafts are all checked in the first pass: what agrees is kept,
    the rest decoded. That is speculative decoding (Leviathan et al., 2023, arXiv 2211.17192) with a given draft; each
    token is chosen as it would be without, so the result is the same.

    Rows that have finished leave the batch; who has is looked at in every step on a CPU, elsewhere every few steps, for
    which the device is waited for. The tokens of greedy decoding equal those of transformers' own
    `generate(do_sample=False)`.
    """
    n_rows, device = prompts.ids.shape[0], prompts.ids.device
    max_new_tokens = how.max_new_tokens
    guesses = _padded(how.drafts, n_rows, max_new_tokens, device)
    uniforms = None
    if how.seeds is not None:
        uniforms = torch.from_numpy(keyed_uniforms(how.seeds, max_new_tokens)).to(device)
    ends = torch.tensor(list(how.ends), device=device)
    page = _Page(n_rows, how.pad, device)
    rows = torch.arange(n_rows, device=device)  # where on the page each row of the batch is written
    written = torch.zeros_like(rows)  # and how many tokens of it
    alive = torch.ones_like(rows, dtype=torch.bool)

    def enough(rows: Tensor) -> int:
        """With how many rows left the others leave the batch."""
        return int(len(rows) * (1 - kernels.least_finished_share))

    room = max_new_tokens + (0 if guesses is None else guesses.shape[1])
    with DecodingBatch(
        layers,
        kernels,
        prompts.ids,
        prompts.mask,
        prompts.texts,
        room=room,
        keep_features=how.features,
        keep_trace=how.trace and how.truncation is None,  # it knows whole distributions
        use_cache=use_cache,
    ) as batch:
        logits = batch.start(guesses)
        several = batch.multi_step and how.truncation is None
        every = 1 if device.type == "cpu" or several else kernels.steps_between_looks
        for made in itertools.count(1):
            places = written[:, None] + torch.arange(logits.shape[1], device=device)
            bits = None
            if uniforms is None:
                tokens, log_probs = kernels.likeliest(logits), None
            else:
                uniform = uniforms[rows[:, None], places.clamp(max=max_new_tokens - 1)]
                flat = logits.flatten(0, 1)
                if how.truncation is not None:
                    bits = as_bits(kept_by(how.truncation, flat, how.temperature))
                    flat = restricted(flat, bits, how.temperature)
                tokens, log_probs = (
                    x.view_as(uniform) for x in kernels.sample(flat, uniform.flatten(), how.temperature)
                )
            ended = (tokens[..., None] == ends).any(-1)
            good = alive[:, None]
            if guesses is None:
                token, over = tokens[:, 0], ended[:, 0]
                written = written + alive
            else:
                # A token stands when all before it are those of the draft that it was computed from, and none ended.
                agreed = ((tokens[:, :-1] == guesses) & ~ended[:, :-1]).cumprod(1).bool()
                good = good & torch.cat([torch.ones_like(good), agreed], 1) & (places < max_new_tokens)
                taken = good.sum(1)
                last = (taken - 1).clamp(min=0)[:, None]
                token, over = tokens.gather(1, last)[:, 0], ended.gather(1, last)[:, 0]
                written = written + taken
            page.write(rows, places, good, tokens, log_probs, batch.features, bits)
            alive = alive & ~over & (written < max_new_tokens)
            if guesses is not None:
                batch.accept(good[:, 1:])
                guesses = None
            del logits  # the next ones are as large
            if made % every and made < max_new_tokens:
                logits = batch.step(token, alive)
                continue
            while left := len(living := alive.cpu().nonzero()[:, 0]):
                if left <= enough(rows):
                    batch.keep(living)
                    kept = living.to(device)
                    rows, written, token, alive = rows[kept], written[kept], token[kept], alive[kept]
                if not several:
                    break
                following = written[:, None] + torch.arange(max_new_tokens, device=device)
                draws = None if uniforms is None else uniforms[rows[:, None], following.clamp(max=max_new_tokens - 1)]
                choice = Choice(
                    alive, max_new_tokens - written, draws, how.temperature, ends, enough(rows), how.features
                )
                found = batch.run_steps(token, choice)
                places = following[:, : found.tokens.shape[1]]
                page.write(rows, places, found.good, found.tokens, found.log_probs, found.features)
                written, token, alive = written + found.good.sum(1), found.tokens[:, -1], found.alive
            if not left:
                break
            logits = batch.step(token, alive)  # noqa: F841 - read where the loop begins
    return replace(page.completions(), trace=batch.trace)


def _padded(drafts: Sequence[Sequence[int]] | None, n_rows: int, longest: int, device: torch.device) -> Tensor | None:
    """Drafts as one tensor [rows, drafted], -1 where a row's draft is over; None when there is no draft at all."""
    if drafts is None or not any(drafts):
        return None
    if len(drafts) != n_rows:
        raise ValueError(f"{n_rows} prompts with {len(drafts)} drafts")
    # The token after a draft is chosen in the same pass, so one less than the longest completion will do.
    width = min(max(map(len, drafts)), longest - 1)
    cut = [list(draft[:width]) for draft in drafts]
    return torch.tensor([draft + [-1] * (width - len(draft)) for draft in cut], device=device) if width else None


class _Page:
    """The completions as they are written, a row each; put in order at the end, all at once."""

    def __init__(self, n_rows: int, pad_token_id: int, device: torch.device) -> None:
        self._n_rows = n_rows
        self._pad = pad_token_id
        self._device = device
        self._written: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._log_probs: list[Tensor] = []
        self._features: list[Tensor] = []
        self._kept: list[Tensor] = []

    def write(
        self,
        rows: Tensor,
        places: Tensor,
        good: Tensor,
        tokens: Tensor,
        log_probs: Tensor | None,
        features: Tensor | None,
        bits: Tensor | None = None,
    ) -> None:
        """Write the `good` of `tokens` [rows, steps], their log-probabilities, features and the `bits` [rows * steps,
        bytes] of what they were sampled from at their `places`."""
        self._written.append(
            (rows[:, None].expand_as(places).flatten(), places.flatten(), good.flatten(), tokens.flatten())
        )
        if log_probs is not None:
            self._log_probs.append(log_probs.flatten())
        if features is not None:
            self._features.append(features.flatten(0, 1))
        if bits is not None:
            self._kept.append(bits)

    def completions(self) -> Completions:
        """As wide as the longest."""
        rows, places, good, tokens = (torch.cat(each) for each in zip(*self._written, strict=True))
        kept = good.nonzero()[:, 0]
        at = rows[kept], places[kept]
        width = int(at[1].max()) + 1

        def page(written: Tensor, blank: Tensor) -> Tensor:
            blank[at] = written[kept]
            return blank

        shape = self._n_rows, width
        ids = torch.full(shape, self._pad, device=self._device)
        mask = torch.zeros(shape, dtype=torch.bool, device=self._device)
        mask[at] = True

        def page_of(pieces: list[Tensor]) -> Tensor | None:
            if not pieces:
                return None
            found = torch.cat(pieces)
            return page(found, found.new_zeros(*shape, *found.shape[1:]))

        others = map(page_of, (self._log_probs, self._features, self._kept))
        return Completions(page(tokens, ids), mask, *others)
