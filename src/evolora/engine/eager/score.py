"""Log-probabilities of given completions, by one forward pass."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evolora.engine.base import Completions, Scoring
from evolora.engine.eager.decoder import last_hidden_states, positions_of
from evolora.engine.eager.dropout import token_keys
from evolora.engine.eager.generate import PromptBatch
from evolora.engine.eager.head import FrozenHead
from evolora.engine.eager.kernels import Kernels
from evolora.engine.eager.log_probs import in_float32_at_least
from evolora.engine.eager.lora_layers import LoraLayers
from evolora.engine.eager.packed_forward import PackedPass, can_pack
from evolora.engine.eager.truncation import restricted
from evolora.models.base import accepts


def completion_log_probs(
    layers: LoraLayers,
    kernels: Kernels,
    prompts: PromptBatch,
    completions: Completions,
    how: Scoring,
    head: FrozenHead | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probability of each completion token and the entropy of the distribution that it came from, both
    [rows, length] and 0 beyond the completions' mask, by one forward pass; differentiable, the entropy only with
    `entropy_gradient`. And the features, [rows, length, hidden], where they are asked for.

    Where the model allows it the texts are packed: nothing is computed for padding, and what an individual's texts
    begin with in common, such as the prompt of several completions, is computed once. With a `head` the logits of many
    tokens are computed in chunks.
    """
    ids, mask = completions.ids, completions.mask
    many = head is not None and completions.tokens > head.tokens
    longest = prompts.ids.shape[1] + ids.shape[1]
    forward = _packed if can_pack(layers.model, kernels, longest) else _padded
    hidden, logits = forward(layers, prompts, completions, how, logits=not many, keep=how.features or many)
    options: dict[str, Any] = {"temperature": how.temperature, "entropy_gradient": how.entropy_gradient}
    kept = None if completions.kept is None else completions.kept[mask]
    if logits is not None:
        logits = in_float32_at_least(logits)
        if kept is not None:
            logits = restricted(logits, kept, how.temperature)
        chosen, entropy = kernels.token_log_probs(logits, ids[mask], **options)
    else:
        assert head is not None and hidden is not None
        chosen, entropy = head.token_log_probs(kernels, hidden, ids[mask], kept, **options)
    blank = chosen.new_zeros(ids.shape)
    features = None
    if how.features and hidden is not None:
        features = hidden.new_zeros(*ids.shape, hidden.shape[-1]).masked_scatter(mask[..., None], hidden)
    return blank.masked_scatter(mask, chosen), blank.masked_scatter(mask, entropy), features


def _padded(
    layers: LoraLayers, prompts: PromptBatch, completions: Completions, how: Scoring, *, logits: bool, keep: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Of each masked-in completion token, row by row, the hidden states that it was chosen from, [tokens, hidden], and
    their logits, [tokens, vocabulary], as far as they are asked for; differentiable."""
    model = layers.model
    length = completions.ids.shape[1]
    ids = torch.cat([prompts.ids, completions.ids[:, :-1]], 1)
    mask = torch.cat([prompts.mask, completions.mask[:, :-1].to(prompts.mask.dtype)], 1)
    arguments: dict[str, object] = {"input_ids": ids, "attention_mask": mask}
    if accepts(model, "use_cache"):
        arguments["use_cache"] = False
    if accepts(model, "position_ids"):
        arguments["position_ids"] = positions_of(mask)
    if accepts(model, "logits_to_keep"):
        arguments["logits_to_keep"] = length
    if (seeds := _seeds(layers, how)) is not None:
        layers.drop(how.dropout, token_keys(ids, mask, seeds.repeat(len(ids) // len(seeds))))
    with last_hidden_states(model, logits=logits) as hidden:
        found: Tensor = model(**arguments).logits
    own = hidden[0][:, -length:][completions.mask] if keep else None
    return own, found[:, -length:][completions.mask] if logits else None


def _packed(
    layers: LoraLayers, prompts: PromptBatch, completions: Completions, how: Scoring, *, logits: bool, keep: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The same as `_padded`, of packed texts."""
    # The last token of a completion is chosen, and never read. A row without a token is its prompt.
    texts = [prompt + row[:-1] for prompt, row in zip(prompts.texts, completions.rows(), strict=True)]
    packed = PackedPass(layers.model, texts, groups=layers.individuals or 1, device=prompts.ids.device)
    if (seeds := _seeds(layers, how)) is not None:
        layers.drop(how.dropout, packed.token_keys(seeds))
    # A token is chosen from what is computed for the one before it.
    row, place = completions.mask.nonzero(as_tuple=True)
    before = prompts.mask.sum(1)[row] + place - 1
    asked = packed.places[row, before]
    if not logits:
        return packed.hidden(asked), None
    found, hidden = packed.run(asked, keep_features=keep)
    return hidden, found


def _seeds(layers: LoraLayers, how: Scoring) -> npt.NDArray[np.uint64] | None:
    """Those of the genomes' dropout; None where nothing is dropped."""
    if not how.dropout or not layers.individuals:
        return None
    if how.dropout_seeds is not None and len(how.dropout_seeds) != layers.individuals:
        raise ValueError(f"{layers.individuals} genomes with {len(how.dropout_seeds)} seeds of dropout")
    return how.dropout_seeds
