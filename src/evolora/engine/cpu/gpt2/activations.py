"""The tape of a decoding: what GPT-2 computes for each token while completions are written, kept for the gradient of
their log-probabilities.

An update's forward pass over a rollout computes token by token what its decoding did, as long as the genomes are those
that decoded and nothing is dropped: in the first update of each rollout. Here that pass is left out, and the gradient
is taken token by token as they lie on the tape; only attention goes by whole texts (`attention.train`).
"""

import itertools
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

from evolora.engine.cpu.activation_store import Tape
from evolora.engine.cpu.attention.train import NO_TOKEN, ROOT, Paths
from evolora.engine.cpu.gpt2.decode import hooked
from evolora.engine.cpu.gpt2.train import Gpt2Packs, KeptLayer, input_gradient
from evolora.engine.cpu.log_probs import token_log_probs
from evolora.engine.cpu.lora_gradient import Segments
from evolora.engine.eager.lora_layers import LoraLayers

# Of one part's tape. Not by the memory that is free: another time the gradient would round otherwise.
_MOST_BYTES = 2**30


class Gpt2Tape(Tape):
    """That of one batch.

    Its tokens are those of the packed prompts, `prompt_tokens` in all, and then at each step one of each row that was
    still in the batch.
    """

    def __init__(
        self,
        packs: Gpt2Packs,
        head: nn.Linear,
        prompt_tokens: int,
        room: tuple[int, int, list[int]],
        shelf: list[Any],
    ) -> None:
        super().__init__(*room, shelf)
        self._genomes = cast(Tensor, packs.genomes).detach().clone()
        self._packs = packs
        self._head = head
        self._prompt_tokens = prompt_tokens
        self._places = self._lengths = torch.empty(0, dtype=torch.int64)  # of the prompts
        self._steps: list[tuple[int, Tensor]] = []  # the first token of each, and the rows
        self._logits: list[Tensor] = []

    @classmethod
    def of(cls, adapted: LoraLayers, rows: int, prompt_tokens: int, *, steps: int, shelf: list[Any]) -> Self | None:
        """For up to so many steps with the genomes that `adapted` run with now; None where the gradient is not known,
        or it would take too much memory. `shelf` is the engine's."""
        model: Any = adapted.model
        if type(model) is not GPT2LMHeadModel or not adapted.individuals or hooked(model) or model.training:
            return None
        packs = Gpt2Packs.of(model.transformer, rows)
        if packs is None or packs.genomes is None or packs.drops:
            return None
        width, inner = model.config.n_embd, model.transformer.h[0].mlp.c_fc.weight.shape[1]
        sizes = [width, 3 * width, width, width, inner, inner]
        room = prompt_tokens + rows * steps, len(packs.layers), sizes
        if 4 * cls.entries(*room) > _MOST_BYTES:
            return None
        return cls(packs, model.lm_head, prompt_tokens, room, shelf)

    def begun(self, places: Tensor, lengths: Tensor, logits: Tensor) -> bool:
        """After the prompts: row i's are the first `lengths[i]` tokens of `places` [rows, longest], and `logits` [rows,
        1, vocabulary] come of them. Whether they have been written."""
        self._places, self._lengths = places, lengths
        self._logits.append(logits[:, 0])
        return self.tokens == self._prompt_tokens

    def stepped(self, rows: Tensor, logits: Tensor) -> bool:
        """After a token more of each of `rows`, of which come `logits` [rows, 1, vocabulary]. Whether they have been
        written."""
        start = self._prompt_tokens + sum(len(others) for _, others in self._steps)
        self._steps.append((start, rows))
        self._logits.append(logits[:, 0])
        return self.tokens == start + len(rows)

    def log_probs(
        self, genomes: Tensor, ids: Tensor, mask: Tensor, *, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """What `completion_log_probs` gives for the completions `ids` and `mask` [rows, length] that were written, and
        differentiable once in the `genomes` that wrote them. It can be asked once: the tape is let go on the way."""
        # The pass has those that were given, which may have changed since. NaN is like itself here.
        now = genomes, cast(Tensor, self._packs.genomes)
        if not all(torch.equal(each.view(torch.int32), self._genomes.view(torch.int32)) for each in now):
            raise ValueError("the genomes are not those that wrote the completions")
        chosen_at = self._choices(ids.shape[1])[mask]
        paths = self._paths((mask.sum(1) - 1).clamp(min=0))
        logits: Tensor = _Taped.apply(genomes, self, paths)  # type: ignore[no-untyped-call]
        tokens = torch.zeros(len(logits), dtype=torch.int64)
        tokens[chosen_at] = ids[mask]
        found = token_log_probs(logits, tokens, temperature=temperature, entropy_gradient=entropy_gradient)
        blank = logits.new_zeros(ids.shape)
        log_probs, entropy = (blank.masked_scatter(mask, each[chosen_at]) for each in found)
        return log_probs, entropy

    def release(self) -> None:
        self._logits = []
        super().release()

    def logits(self) -> Tensor:
        """All that were computed, [choices, vocabulary]: after the prompts, then step by step. They are let go."""
        if not self._logits:
            raise RuntimeError("a tape can be read once")
        logits, self._logits = self._logits, []
        return torch.cat(logits)

    def gradient(self, of_logits: Tensor, paths: Paths) -> Tensor:
        """That of the genomes, from that of `logits`."""
        packs, segments = self._packs, self._segments()
        last, layers = self.taken()
        last_hidden = torch.from_numpy(last)
        chosen_after = torch.cat(
            [self._places.gather(1, self._lengths[:, None] - 1)[:, 0], torch.arange(self._prompt_tokens, self.tokens)]
        )
        of_last = torch.zeros_like(last_hidden).index_add_(0, chosen_after, input_gradient(self._head, of_logits))

        def kept(index: int) -> KeptLayer:
            return packs.kept(index, segments, *map(torch.from_numpy, layers[index]))

        found = packs.backward(of_last, packs.normalise_last(last_hidden)[1], kept, segments, paths)
        self.release()
        return found

    def _choices(self, length: int) -> Tensor:
        """Which of the logits each token of the completions was chosen from, [rows, length]; -1 where none was."""
        choices = torch.full((len(self._places), length), -1)
        start = len(choices)
        choices[:, 0] = torch.arange(start)
        for place, (_, rows) in enumerate(self._steps, 1):
            choices[rows, place] = torch.arange(start, start + len(rows))
            start += len(rows)
        return choices

    def _paths(self, read: Tensor) -> Paths:
        """Each row's text: its prompt, and as many tokens as were `read` [rows]."""
        prompt = self._places.shape[1]
        texts = torch.zeros(len(read), prompt + len(self._steps), dtype=torch.int64)
        texts[:, :prompt] = self._places
        for step, (start, rows) in enumerate(self._steps):
            texts[rows, self._lengths[rows] + step] = torch.arange(start, start + len(rows))
        parents = torch.full((self.tokens,), NO_TOKEN)
        parents[texts[:, 0]] = ROOT
        inside = torch.arange(1, texts.shape[1]) < (self._lengths + read)[:, None]
        parents[texts[:, 1:][inside]] = texts[:, :-1][inside]
        return Paths.of(parents.numpy())

    def _segments(self) -> Segments:
        """The tokens of each individual, in as few segments as there can be."""
        n, rows = len(self._genomes), len(self._places)
        found = [[[own * self._prompt_tokens // n, (own + 1) * self._prompt_tokens // n]] for own in range(n)]
        for start, left in self._steps:
            edges = start + np.searchsorted(left.numpy(), np.arange(n + 1) * (rows // n))
            for own, (first, last) in zip(found, itertools.pairwise(edges), strict=True):
                if own[-1][1] == first:
                    own[-1][1] = last
                elif first < last:
                    own.append([first, last])
        return Segments(np.cumsum([0, *map(len, found)]), np.array([each for own in found for each in own]))


class _Taped(torch.autograd.Function):
    """The logits on a tape, differentiable in the genomes that wrote it."""

    @staticmethod
    def forward(ctx: Any, genomes: Tensor, tape: Gpt2Tape, paths: Paths) -> Tensor:
        del genomes
        ctx.tape, ctx.paths = tape, paths
        return tape.logits()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_logits: Tensor) -> tuple[Tensor, None, None]:
        return ctx.tape.gradient(of_logits.contiguous(), ctx.paths), None, None
