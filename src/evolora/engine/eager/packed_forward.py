"""One forward pass over the texts of a population, packed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from evolora.engine.base import Completions
from evolora.engine.eager.dropout import token_keys
from evolora.engine.eager.kernels import Kernels
from evolora.engine.eager.kv_cache import keeps_all
from evolora.engine.eager.packing import pack
from evolora.models.base import accepts

# Attention within a pack costs its width for each token; beyond half the hidden size that is no longer little beside
# the products.
_WIDTH_OF_HIDDEN = 1 / 2
# torch's attention on a CPU goes by so many positions.
_EVEN, _HARDLY = 16, 1 / 24


def can_pack(model: PreTrainedModel, kernels: Kernels, longest: int) -> bool:
    """Whether texts of up to `longest` tokens may be packed: `model` computes a token from what its mask and position
    say alone; every layer attends to all positions, which are given, and attention takes any mask."""
    return (
        kernels.packs
        and accepts(model, "position_ids")
        and accepts(model, "past_key_values")
        and model.config._attn_implementation in kernels.masked_attention
        and keeps_all(kernels.make_cache(model, 1, longest=longest))
    )


class PackedPass:
    """Texts of `groups` individuals, equally many of each and one individual's after another's, packed for one pass.

    `places` [texts, longest] says where in the flattened packs, of `tokens` in all, each token is, 0 beyond a text's
    end.
    """

    def __init__(
        self, model: PreTrainedModel, texts: Sequence[Sequence[int]], *, groups: int, device: torch.device
    ) -> None:
        self.model = model
        self._texts = texts
        each = len(texts) // groups
        width = int(_WIDTH_OF_HIDDEN * model.config.get_text_config(decoder=True).hidden_size)
        own = [texts[group * each : (group + 1) * each] for group in range(groups)]
        alike = all(texts == own[0] for texts in own)
        packs = [pack(texts, width) for texts in (own[:1] if alike else own)]
        count = max(len(one.ids) for one in packs)
        self.width = _even(max(one.ids.shape[1] for one in packs))
        packs = [one.widened(count, self.width) if one.ids.shape != (count, self.width) else one for one in packs]
        longest = max(one.places.shape[1] for one in packs)

        def joined(parts: Sequence[Any]) -> Tensor:
            whole = torch.cat([torch.from_numpy(part) for part in parts]).to(device)
            return whole.repeat(groups, *(1 for _ in whole.shape[1:])) if alike else whole

        self._ids = joined([one.ids for one in packs])
        self._positions = joined([one.positions for one in packs])
        self.tokens = self._ids.numel()
        blocked = ~joined([one.mask for one in packs])[:, None]
        self._mask = torch.zeros(blocked.shape, dtype=model.dtype, device=device).masked_fill(
            blocked, torch.finfo(model.dtype).min
        )
        places = joined(
            [np.pad(one.places, ((0, 0), (0, longest - one.places.shape[1])), constant_values=-1) for one in packs]
        )
        first = torch.arange(groups, device=device).repeat_interleave(each)[:, None] * (count * self.width)
        self.places = torch.where(places < 0, 0, places + first)

    def token_keys(self, seeds: npt.NDArray[np.uint64]) -> Tensor:
        """What is dropped goes by: a key for each token of the packs, by the `seeds` of the groups."""
        texts = Completions.of_ids(self._texts, 0)
        keys = token_keys(texts.ids, texts.mask, seeds.repeat(len(self._texts) // len(seeds))).to(self._ids.device)
        result = torch.zeros_like(self._ids).flatten()
        result[self.places[texts.mask]] = keys[texts.mask]
        return result.view_as(self._ids)

    def run(
        self, asked: Tensor, *, cache: Cache | None = None, keep_features: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The logits at the `asked` places of the flattened packs, [*asked.shape, vocabulary], and the hidden states
        that they come from. Only there is the output embedding computed."""
        with _only(self.model, asked) as hidden:
            logits = self._pass(cache)
        return logits, hidden[0].clone() if keep_features else None

    def hidden(self, asked: Tensor) -> Tensor:
        """The hidden states at the `asked` places of the flattened packs, [*asked.shape, hidden], and no logits."""
        with _only(self.model, asked, logits=False) as hidden:
            self._pass(None)
        return hidden[0]

    def _pass(self, cache: Cache | None) -> Tensor:
        logits: Tensor = self.model(
            input_ids=self._ids,
            position_ids=self._positions,
            attention_mask=self._mask,
            past_key_values=cache,
            use_cache=cache is not None,
        ).logits
        return logits


def _even(width: int) -> int:
    """A width at which torch's attention is up to 1.5 times as fast, if that is hardly more."""
    even = -(-width // _EVEN) * _EVEN
    return even if even - width <= width * _HARDLY else width


@contextmanager
def _only(model: PreTrainedModel, asked: Tensor, *, logits: bool = True) -> Iterator[list[Tensor]]:
    """Give the output embedding the `asked` ones of the flattened hidden states only; they are what it yields. Without
    `logits` it gets but one of them."""
    given: list[Tensor] = []

    def choose(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given.append(inputs[0].flatten(0, 1)[asked])
        return (given[0] if logits else given[0][:1].detach(),)

    hook = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield given
    finally:
        hook.remove()
