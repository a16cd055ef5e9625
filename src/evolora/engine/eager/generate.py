"""Completions of many prompts: greedy decoding, keyed sampling, and their log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evolora.engine.cpu.gpt2.activations import Gpt2Tape
from evolora.engine.cpu.gpt2.decode import Choice
from evolora.engine.cpu.log_probs import token_log_probs
from evolora.engine.cpu.sampling import likeliest, sample
from evolora.engine.eager.decoder import DecodingBatch, positions_of
from evolora.engine.eager.lora_layers import population_on
from evolora.engine.eager.packed_forward import PackedPass, can_pack
from evolora.models.lora import accepts
from evolora.rng import keyed_uniforms

# Finished rows leave the batch when they are this share of it: leaving costs a copy of the cache of those who stay.
_LEAST_FINISHED_SHARE = 1 / 8


@dataclass(frozen=True)
class PromptBatch:
    """Left-padded prompts: `ids` and `mask` are [rows, length]."""

    ids: Tensor
    mask: Tensor

    def rows(self) -> list[list[int]]:
        """The token ids of each prompt, without padding."""
        width = self.ids.shape[1]
        lengths: list[int] = self.mask.sum(1).tolist()
        return [ids[width - length :] for ids, length in zip(self.ids.tolist(), lengths, strict=True)]

    def repeat(self, times: int) -> "PromptBatch":
        """The whole batch `times` times over, one after another: a group for each individual."""
        return PromptBatch(self.ids.repeat(times, 1), self.mask.repeat(times, 1))


@dataclass(frozen=True)
class Completions:
    """What the model wrote after each prompt.

    `ids` [rows, length]; `mask` [rows, length] is true up to and with the first end-of-sequence token. Sampling also
    gives `log_probs` [rows, length], of the tempered distribution that was sampled from; `features` [rows, length,
    hidden], where they were asked for, are the last hidden states that each token was chosen from. `tapes`, where they
    were asked for and it is known how to keep them, are those of the parts that were decoded.
    """

    ids: Tensor
    mask: Tensor
    log_probs: Tensor | None = None
    features: Tensor | None = None
    tapes: tuple[Gpt2Tape, ...] = ()

    @property
    def tokens(self) -> int:
        """How many tokens were written, end-of-sequence tokens included."""
        return int(self.mask.sum())

    def rows(self) -> list[list[int]]:
        """The token ids that were written in each row."""
        lengths: list[int] = self.mask.sum(1).tolist()
        return [ids[:length] for ids, length in zip(self.ids.tolist(), lengths, strict=True)]


def encode(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], device: torch.device | str) -> PromptBatch:
    """Tokenise prompts, padded on the left; those that are alike once."""
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    batch = tokenizer(list(places), return_tensors="pt", padding=True, padding_side="left")
    rows = torch.tensor([places[prompt] for prompt in prompts])
    return PromptBatch(batch["input_ids"][rows].to(device), batch["attention_mask"][rows].to(device))


def lengths_read(prompts: PromptBatch, completions: Completions) -> list[int]:
    """How many tokens of each row the model reads: its prompt and its completion, but for the last token, which is
    chosen and never read."""
    lengths: list[int] = (prompts.mask.sum(1) + completions.mask.sum(1) - 1).tolist()
    return lengths


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
    keep_tape: bool = False,
    drafts: Sequence[Sequence[int]] | None = None,
    use_cache: bool = True,
) -> Completions:
    """Complete each prompt: greedily, or by sampling when `seeds` [rows] are given.

    Sampling is pure (no top-k, no top-p): one keyed uniform number a token, looked up in the cumulative distribution of
    softmax(logits / temperature). A row's tokens depend on its own seed and distributions, not on who shares the batch.

    `drafts`, token ids for each row (an empty list for none), are guesses at the completions, all checked in the first
    pass: what agrees is kept, the rest decoded. That is speculative decoding (Leviathan et al., 2023, arXiv 2211.17192)
    with a given draft; each token is chosen as it would be without, so the result is the same.

    Rows that have finished leave the batch. The tokens of greedy decoding equal those of transformers' own
    `generate(do_sample=False)`.

    >>> from evolora.models.lora import load_base
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
    n_rows, device = prompts.ids.shape[0], prompts.ids.device
    guesses = _padded(drafts, n_rows, max_new_tokens, device)
    uniforms = None
    if seeds is not None:
        uniforms = torch.from_numpy(keyed_uniforms(seeds, max_new_tokens)).to(device)
    ends = torch.tensor(list(eos_token_ids), device=device)
    page = _Page(n_rows, pad_token_id, device)
    rows = torch.arange(n_rows, device=device)  # where on the page each row of the batch is written
    written = torch.zeros_like(rows)  # and how many tokens of it
    alive = torch.ones_like(rows, dtype=torch.bool)
    room = max_new_tokens + (0 if guesses is None else guesses.shape[1])
    with DecodingBatch(
        model,
        prompts.ids,
        prompts.mask,
        room=room,
        keep_features=keep_features,
        keep_tape=keep_tape,
        use_cache=use_cache,
    ) as batch:
        logits = batch.start(guesses)
        while True:
            places = written[:, None] + torch.arange(logits.shape[1], device=device)
            if uniforms is None:
                tokens, log_probs = likeliest(logits), None
            else:
                uniform = uniforms[rows[:, None], places.clamp(max=max_new_tokens - 1)]
                tokens, log_probs = (
                    x.view_as(uniform) for x in sample(logits.flatten(0, 1), uniform.flatten(), temperature)
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
            page.write(rows, places, good, tokens, log_probs, batch.features)
            alive = alive & ~over & (written < max_new_tokens)
            if guesses is not None:
                batch.accept(good[:, 1:])
                guesses = None
            while left := int(alive.sum()):
                if left <= _enough(rows):
                    kept = alive.nonzero()[:, 0]
                    batch.keep(kept)
                    rows, written, token, alive = rows[kept], written[kept], token[kept], alive[kept]
                if not batch.goes_ahead:
                    break
                following = written[:, None] + torch.arange(max_new_tokens, device=device)
                draws = None if uniforms is None else uniforms[rows[:, None], following.clamp(max=max_new_tokens - 1)]
                choice = Choice(alive, max_new_tokens - written, draws, temperature, ends, _enough(rows), keep_features)
                found = batch.ahead(token, choice)
                places = following[:, : found.tokens.shape[1]]
                page.write(rows, places, found.good, found.tokens, found.log_probs, found.features)
                written, token, alive = written + found.good.sum(1), found.tokens[:, -1], found.alive
            if not left:
                break
            logits = batch.step(token, alive)
    return replace(page.completions(), tapes=() if batch.tape is None else (batch.tape,))


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


def _enough(rows: Tensor) -> int:
    """With how many rows left the others leave the batch."""
    return int(len(rows) * (1 - _LEAST_FINISHED_SHARE))


class _Page:
    """The completions as they are written, a row each; put in order at the end, all at once."""

    def __init__(self, n_rows: int, pad_token_id: int, device: torch.device) -> None:
        self._n_rows = n_rows
        self._pad = pad_token_id
        self._device = device
        self._written: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._log_probs: list[Tensor] = []
        self._features: list[Tensor] = []

    def write(
        self,
        rows: Tensor,
        places: Tensor,
        good: Tensor,
        tokens: Tensor,
        log_probs: Tensor | None,
        features: Tensor | None,
    ) -> None:
        """Write the `good` of `tokens` [rows, steps], their log-probabilities and features at their `places`."""
        self._written.append(
            (rows[:, None].expand_as(places).flatten(), places.flatten(), good.flatten(), tokens.flatten())
        )
        if log_probs is not None:
            self._log_probs.append(log_probs.flatten())
        if features is not None:
            self._features.append(features.flatten(0, 1))

    def completions(self) -> Completions:
        """As wide as the longest."""
        rows, places, good, tokens = (torch.cat(each) for each in zip(*self._written, strict=True))
        at = rows[good], places[good]
        width = int(at[1].max()) + 1

        def page(written: Tensor, blank: Tensor) -> Tensor:
            blank[at] = written[good]
            return blank

        shape = self._n_rows, width
        ids = torch.full(shape, self._pad, device=self._device)
        mask = torch.zeros(shape, dtype=torch.bool, device=self._device)
        mask[at] = True
        log_probs = features = None
        if self._log_probs:
            found = torch.cat(self._log_probs)
            log_probs = page(found, found.new_zeros(shape))
        if self._features:
            found = torch.cat(self._features)
            features = page(found, found.new_zeros(*shape, found.shape[-1]))
        return Completions(page(tokens, ids), mask, log_probs, features)


def completion_log_probs(
    model: PreTrainedModel,
    prompts: PromptBatch,
    completions: Completions,
    *,
    temperature: float = 1.0,
    entropy_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each completion token and the entropy of the distribution that it came from, both
    [rows, length] and 0 beyond the completions' mask, by one forward pass; differentiable, the entropy only with
    `entropy_gradient`.

    Where the model allows it the texts are packed: nothing is computed for padding, and what an individual's texts
    begin with in common, such as the prompt of several completions, is computed once (dropout included).
    """
    logits = completion_logits(model, prompts, completions)
    chosen, entropy = token_log_probs(
        logits, completions.ids[completions.mask], temperature=temperature, entropy_gradient=entropy_gradient
    )
    blank = chosen.new_zeros(completions.ids.shape)
    return blank.masked_scatter(completions.mask, chosen), blank.masked_scatter(completions.mask, entropy)


def completion_logits(model: PreTrainedModel, prompts: PromptBatch, completions: Completions) -> Tensor:
    """The logits that each masked-in completion token was chosen from, [tokens, vocabulary], row by row, in float32 at
    least; differentiable."""
    logits = (_packed_logits if can_pack(model) else _padded_logits)(model, prompts, completions)
    return logits if logits.dtype == torch.float64 else logits.float()


def _padded_logits(model: PreTrainedModel, prompts: PromptBatch, completions: Completions) -> Tensor:
    length = completions.ids.shape[1]
    ids = torch.cat([prompts.ids, completions.ids[:, :-1]], 1)
    mask = torch.cat([prompts.mask, completions.mask[:, :-1].to(prompts.mask.dtype)], 1)
    arguments: dict[str, object] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if accepts(model, "position_ids"):
        arguments["position_ids"] = positions_of(mask)
    if accepts(model, "logits_to_keep"):
        arguments["logits_to_keep"] = length
    logits: Tensor = model(**arguments).logits[:, -length:]
    return logits[completions.mask]


def _packed_logits(model: PreTrainedModel, prompts: PromptBatch, completions: Completions) -> Tensor:
    # The last token of a completion is chosen, and never read. A row without a token is its prompt.
    texts = [prompt + row[:-1] for prompt, row in zip(prompts.rows(), completions.rows(), strict=True)]
    population = population_on(model)
    groups = 1 if population is None else population.individuals
    packed = PackedPass(model, texts, groups=groups, device=prompts.ids.device)
    # A token is chosen from what is computed for the one before it.
    row, place = completions.mask.nonzero(as_tuple=True)
    before = prompts.mask.sum(1)[row] + place - 1
    return packed.run(packed.places[row, before])[0]


def select_rows(completions: Completions, rows: Tensor) -> Completions:
    """The completions of some rows, without tapes."""
    return replace(
        completions,
        ids=completions.ids[rows],
        mask=completions.mask[rows],
        log_probs=None if completions.log_probs is None else completions.log_probs[rows],
        features=None if completions.features is None else completions.features[rows],
        tapes=(),
    )
