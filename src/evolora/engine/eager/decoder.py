"""A batch of rows under decoding: prefill of the prompts, one token more for each row, rows that leave."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evolora.engine.eager.kernels import Choice, DecodingTrace, Kernels, Step, Steps
from evolora.engine.eager.kv_cache import RoomyCache, keeps_all
from evolora.engine.eager.log_probs import in_float32_at_least
from evolora.engine.eager.lora_layers import LoraLayers
from evolora.engine.eager.packed_forward import PackedPass, can_pack
from evolora.models.base import accepts, cache_argument

_UNKNOWN = object()


class DecodingBatch:
    """Rows that adapted layers, or the base, continue token by token.

    `ids` and `mask` are left-padded prompts [rows, width], `texts` the same on the host. `start` makes the first pass,
    `step` each later one; `keep` drops rows. Where the model allows it the prompts are read packed (`packed_forward`).
    Without `use_cache` every pass reads the whole text again: slow, and the oracle of the rest. With `keep_trace`,
    `trace` is what the gradient of what is decoded needs, where the kernels know how to keep it.
    """

    def __init__(
        self,
        layers: LoraLayers,
        kernels: Kernels,
        ids: Tensor,
        mask: Tensor,
        texts: list[list[int]],
        *,
        room: int,
        keep_features: bool,
        keep_trace: bool,
        use_cache: bool,
    ) -> None:
        rows, width = ids.shape
        self.model: PreTrainedModel = layers.model
        self.features: Tensor | None = None  # [rows, kept, hidden], what the last logits were computed from
        self.trace: DecodingTrace | None = None
        self._keep_features = keep_features
        self._keep_trace = keep_trace
        self._room = room
        self._rows = torch.arange(rows, device=ids.device)  # which those of the batch were at first
        self._ids = ids
        self._texts = texts
        self._mask = torch.cat([mask, mask.new_zeros(rows, room)], 1)
        self._length = width
        self._positions = mask.sum(1)
        self._cache_argument = cache_argument(self.model)
        has_cache = use_cache and self._cache_argument is not None
        self._cache = kernels.make_cache(self.model, width + room) if has_cache else None
        self._layers, self._kernels = layers, kernels
        groups = layers.individuals or 1
        self._owners = torch.arange(groups).repeat_interleave(rows // groups)  # on the host
        self._groups = groups
        self._packable = self._cache is not None and can_pack(self.model, kernels, width + room)
        self._uneven = min(map(len, texts)) < width
        self._bias: Tensor | None = None
        self._step: Any = _UNKNOWN

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._layers.individuals:
            self._layers.route(None)

    def start(self, drafts: Tensor | None) -> Tensor:
        """The logits after each prompt and after each token of its draft: [rows, 1 + drafted, vocabulary].

        `drafts` is [rows, drafted] with -1 where a row's draft is over.
        """
        if drafts is not None:
            return self._start_with(drafts)
        if self._packable:
            return self._start_packed()
        return self._forward(self._ids, self._mask[:, : self._length], 1)

    def _start_with(self, drafts: Tensor) -> Tensor:
        if self._cache is None or not keeps_all(self._cache):
            raise ValueError("drafts need a model whose layers all attend to all positions, and its cache")
        width, drafted = self._length, drafts.shape[1]
        self._length = width + drafted
        self._mask[:, width : self._length] = drafts >= 0
        ids = torch.cat([self._ids, drafts.clamp(min=0)], 1)
        return self._forward(ids, self._mask[:, : self._length], 1 + drafted)

    def accept(self, agreed: Tensor) -> None:
        """Keep those tokens of the drafts that `agreed` [rows, drafted] marks, the first ones of each row; the others
        stay in the cache, masked."""
        self._mask[:, self._length - agreed.shape[1] : self._length] = agreed.to(self._mask.dtype)
        self._positions = self._positions + agreed.sum(1)
        self._uneven = True

    def step(self, tokens: Tensor, alive: Tensor) -> Tensor:
        """Append `tokens` [rows] and give the logits after them, [rows, 1, vocabulary]. Rows that are not `alive` are
        carried along; what they write means nothing."""
        self._mask[:, self._length] = 1
        self._length += 1
        if self._cache is not None and (step := self._fast_step()) is not None:
            logits, hidden = step.run(tokens, self._positions, self._mask[:, : self._length])
            self.features = hidden.clone() if self._keep_features else None
            self._positions = self._positions + alive
            if self.trace is not None and not self.trace.stepped(self._rows, logits):
                self._drop_trace()
            return logits
        self._drop_trace()
        ids = tokens[:, None]
        if self._cache is None:
            ids = self._ids = torch.cat([self._ids, ids], 1)
        logits = self._forward(ids, self._mask[:, : self._length], 1, self._positions[:, None])
        self._positions = self._positions + alive
        return logits

    @property
    def multi_step(self) -> bool:
        """Whether several steps can be made without a stop in between."""
        step = None if self._cache is None else self._fast_step()
        return step is not None and step.multi_step

    def run_steps(self, tokens: Tensor, choice: Choice) -> Steps:
        """Several steps, as many as there can be: `tokens` [rows] first, then others, chosen as `choice` says."""
        step = self._fast_step()
        assert step is not None
        found = step.run_steps(tokens, self._positions, self._mask, choice)
        n = found.tokens.shape[1]
        self._mask[:, self._length : self._length + n] = 1
        self._length += n
        self._positions = self._positions + found.good.sum(1)
        if self.trace is not None and found.logits is not None:
            for place in range(n):
                self.trace.stepped(self._rows, found.logits[:, place, None])
        return found

    def _fast_step(self) -> Step | None:
        """The step of these rows as the kernels make it, if they do."""
        if self._step is _UNKNOWN:
            self._step = self._kernels.step(self.model, len(self._mask), self._cache)
        step: Step | None = self._step
        return step

    def keep(self, kept: Tensor) -> None:
        """Let all rows but these, ascending and on the host, leave the batch."""
        self._step = _UNKNOWN
        self._owners, rows = self._owners[kept], kept.to(self._ids.device)
        self._ids, self._mask, self._positions = self._ids[rows], self._mask[rows], self._positions[rows]
        self._rows = self._rows[rows]
        self._bias = None if self._bias is None else self._bias[rows]
        if self._cache is not None:
            self._cache.reorder_cache(rows)  # whatever its layers keep
        if self._layers.individuals:
            self._layers.route(self._owners)

    def _forward(self, ids: Tensor, mask: Tensor, kept: int, positions: Tensor | None = None) -> Tensor:
        arguments: dict[str, object] = {"input_ids": ids, "attention_mask": mask}
        if accepts(self.model, "use_cache"):
            arguments["use_cache"] = self._cache is not None
        if self._cache is not None and self._cache_argument is not None:
            arguments[self._cache_argument] = self._cache
            if self._cache_argument == "cache_params" and positions is not None:
                del arguments["attention_mask"]  # Mamba's state has it, and would apply the whole to one token
            elif self._packable and positions is not None:
                arguments["attention_mask"] = self._step_mask()
        if accepts(self.model, "position_ids"):
            # Without explicit positions a left-padded row would count its padding.
            whole = positions is None or self._cache is None
            arguments["position_ids"] = positions_of(mask)[:, -ids.shape[1] :] if whole else positions
        if accepts(self.model, "logits_to_keep"):
            arguments["logits_to_keep"] = kept
        if not self._keep_features:
            logits: Tensor = self.model(**arguments).logits
            return in_float32_at_least(logits[:, -kept:])
        with last_hidden_states(self.model) as hidden:
            logits = self.model(**arguments).logits
        self.features = hidden[0][:, -kept:].clone()
        return in_float32_at_least(logits[:, -kept:])

    def _step_mask(self) -> Tensor | None:
        """What one token of each row attends to, as attention adds it: [rows, 1, 1, length]; None for all. From a mask
        of two dimensions transformers would make the same for each token, and wait to see whether it is needed."""
        if not self._uneven:
            return None
        if self._bias is None:
            hidden = self._mask[:, : self._length] == 0
            self._bias = torch.zeros(self._mask.shape, dtype=self.model.dtype, device=hidden.device)
            self._bias[:, : self._length].masked_fill_(hidden, torch.finfo(self.model.dtype).min)
        return self._bias[:, None, None, : self._length]

    def _start_packed(self) -> Tensor:
        """The first pass over packed prompts, [rows, 1, vocabulary]: each individual's different prompts once, without
        padding; then the cache is laid out row by row."""
        assert self._cache is not None
        width, device = self._length, self._ids.device
        texts = self._texts
        packed = PackedPass(self.model, texts, groups=self._groups, device=device)
        last = packed.places.gather(1, self._positions[:, None] - 1)
        cache = self._kernels.make_cache(self.model, packed.width, longest=self._mask.shape[1])
        assert isinstance(cache, RoomyCache)  # whose layers keep all: that is what can be packed
        if self._keep_trace:
            self.trace = self._kernels.trace(self._layers, cache, len(texts), packed.tokens, self._room)
        logits, features = packed.run(last, cache=cache, keep_features=self._keep_features)
        self.features = features
        # Right-aligned, as left-padded prompts are; what stands in the padding is masked.
        columns = torch.arange(width, device=device) - (width - self._positions[:, None])
        index = packed.places.gather(1, columns.clamp(min=0))
        self._cache = cache.unpacked(index, capacity=self._mask.shape[1])
        if self.trace is not None and not self.trace.begun(packed.places, self._positions, logits):
            self._drop_trace()
        return in_float32_at_least(logits)

    def _drop_trace(self) -> None:
        self.trace = None
        if isinstance(self._cache, RoomyCache):
            self._cache.trace = None


def takes_drafts(model: PreTrainedModel, kernels: Kernels, longest: int) -> bool:
    """Whether drafts can be checked on `model` in rows of up to `longest` positions: what is rejected stays in the
    cache, masked, so every layer must attend to all of them."""
    return accepts(model, "past_key_values") and keeps_all(kernels.make_cache(model, 1, longest=longest))


def positions_of(mask: Tensor) -> Tensor:
    """The position of each token in its row, [rows, length], counting what is masked in."""
    return (mask.cumsum(1) - 1).clamp(min=0)


@contextmanager
def last_hidden_states(model: PreTrainedModel, *, logits: bool = True) -> Iterator[list[Tensor]]:
    """The inputs of the output embedding, one tensor [rows, kept, hidden] a forward pass. Without `logits` it gets but
    one of them."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(inputs[0])
        return inputs if logits else (inputs[0][:1, :1].detach(),)

    hook = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()
