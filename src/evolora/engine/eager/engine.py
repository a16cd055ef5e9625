"""An engine on transformers' own layers: any architecture, any device."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evolora.engine.base import Completions, Decoding, Prompts, Scored, Scoring
from evolora.engine.eager.checkpointing import checkpointed
from evolora.engine.eager.decoder import takes_drafts
from evolora.engine.eager.generate import PromptBatch, generate
from evolora.engine.eager.head import FrozenHead
from evolora.engine.eager.kernels import Kernels
from evolora.engine.eager.lora_layers import LoraLayers
from evolora.engine.eager.owners import EqualGroups, ScoredRows
from evolora.engine.eager.score import completion_log_probs
from evolora.engine.eager.wide_logits import widen_logits
from evolora.engine.options import RecomputedName
from evolora.models.base import module_tree
from evolora.models.cost import ModelSize
from evolora.models.genome import GenomeLayout
from evolora.models.lora import adapts_head


class EagerEngine:
    """All genomes in one batch through the model's own modules, with hooks that add what each row's genome does.

    The engine has a copy of the module tree that shares the weights: the model that is given stays as it is, and
    engines on one model do not meet.

    >>> from evolora.engine.text import Text
    >>> from evolora.models.base import load_base
    >>> from evolora.models.lora import lora_config, lora_layout
    >>> base = load_base("tiny-gpt2")
    >>> layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    >>> engine, text = EagerEngine(base.model, layout), Text.of(base.model, base.tokenizer)
    >>> prompts = text.encode(["The English word for 'chat' is '", "The sum of 4 and 3 is"])
    >>> completions = engine.generate(genome.repeat(2, 1), prompts, text.decoding(6))
    >>> text.decode(completions)
    ["cat'.", ' 7.', "cat'.", ' 7.']
    >>> scored = engine.score(genome.repeat(2, 1), prompts, completions, Scoring())
    >>> bool((scored.log_probs[completions.mask] <= 0).all())
    True
    """

    trains = True
    checkpointing: RecomputedName = "off"
    """What of a differentiable pass is computed again when it goes backwards."""

    def __init__(self, model: PreTrainedModel, layout: GenomeLayout, *, kernels: Kernels | None = None) -> None:
        self._set_up(module_tree(model), layout, kernels or Kernels())
        self.size = ModelSize.of(model, adapter=layout.genome_length)

    def _set_up(self, tree: PreTrainedModel, layout: GenomeLayout, kernels: Kernels) -> None:
        self.layout = layout
        self.kernels = kernels
        if adapts_head(tree, layout):
            kernels.packs = False  # its rows' owners are known of whole batches only
        if tree.device.type != "cpu":
            widen_logits(tree)
        if getattr(tree.config, "output_router_logits", False):
            tree.config.output_router_logits = False  # of a loss that is not asked for, and that takes no packed mask
            _without_asking_for_padding(tree)
        self.hidden: int = tree.get_output_embeddings().weight.shape[1]
        self.device = tree.device
        self.dtype = torch.float64 if tree.dtype == torch.float64 else torch.float32
        self.layers = LoraLayers(tree, layout, layer=kernels.layer)

    def replica(self) -> Self:
        """Another engine with the same weights, for another thread."""
        engine = type(self).__new__(type(self))
        engine._set_up(self.layers.bare_copy(), self.layout, self.kernels.replica())
        engine.size, engine.checkpointing = self.size, self.checkpointing
        return engine

    def generate(
        self, genomes: Tensor | None, prompts: Prompts, how: Decoding, *, owners: Sequence[int] | None = None
    ) -> Completions:
        """See `Engine.generate`. Greedy decoding's tokens equal those of transformers' own `generate` with PEFT."""
        if owners is not None and genomes is not None:
            groups = EqualGroups.of(owners)
            own = [prompts[row] for row in groups.picks.tolist()]
            with torch.no_grad(), self.layers.adapted(self._placed(genomes)[groups.genomes]):
                return self._generate(own, how.of_rows(groups.picks), 1).select(groups.places)
        with torch.no_grad(), self.layers.adapted(None if genomes is None else self._placed(genomes)):
            return self._generate(prompts, how, 1 if genomes is None else len(genomes))

    def _generate(self, prompts: Prompts, how: Decoding, times: int) -> Completions:
        # A draft takes at most as much room again as the completion.
        longest = max(map(len, prompts), default=0) + 2 * how.max_new_tokens
        if how.drafts is not None and not takes_drafts(self.layers.model, self.kernels, longest):
            how = replace(how, drafts=None)
        batch = PromptBatch.of(prompts, pad=how.pad, times=times, device=self.device)
        return generate(self.layers, self.kernels, batch, how)

    def score(
        self,
        genomes: Tensor | None,
        prompts: Prompts,
        completions: Completions,
        how: Scoring,
        *,
        owners: Sequence[int] | None = None,
    ) -> Scored:
        """See `Engine.score`. Texts are packed where the model allows it: nothing is computed for padding, and what a
        genome's texts begin with in common is computed once."""
        if owners is not None and genomes is not None:
            groups = EqualGroups.of(owners)
            own = [prompts[row] for row in groups.picks.tolist()]
            picked = completions.select(groups.picks.to(completions.ids.device))
            found = self._score(genomes[groups.genomes], own, picked, how.of_genomes(groups.genomes), 1)
            return ScoredRows(found, groups, len(genomes))
        return self._score(genomes, prompts, completions, how, 1 if genomes is None else len(genomes))

    def _score(
        self, genomes: Tensor | None, prompts: Prompts, completions: Completions, how: Scoring, times: int
    ) -> Scored:
        differentiable = how.gradient and genomes is not None
        head = self._head
        leaf = None if genomes is None else self._placed(genomes).detach().requires_grad_(differentiable)
        batch = PromptBatch.of(prompts, pad=0, times=times, device=self.device)
        kept = checkpointed(self.layers, self.checkpointing if differentiable else "off")
        with torch.set_grad_enabled(differentiable), self.layers.adapted(leaf), kept:
            log_probs, entropy, features = completion_log_probs(
                self.layers, self.kernels, batch, completions, how, head
            )
        return Graph(leaf, log_probs, entropy, None if features is None else features.detach())

    @functools.cached_property
    def _head(self) -> FrozenHead | None:
        return FrozenHead.of(self.layers.model, self.layout)

    def _placed(self, genomes: Tensor) -> Tensor:
        return genomes.to(self.device)

    def close(self) -> None:
        """Take the hooks off the engine's modules."""
        self.layers.detach()


def _without_asking_for_padding(tree: PreTrainedModel) -> None:
    """Some architectures look, where they are given no mask, whether there is padding, to warn of it: the host would
    wait for the device in each step. Without a mask there is none."""
    models: list[Any] = [module for module in tree.modules() if isinstance(module, PreTrainedModel)]
    for model in models:
        model.warn_if_padding_and_no_attention_mask = _look_at_nothing


def _look_at_nothing(*_: Any) -> None:
    pass


@dataclass
class Graph:
    """What torch's own graph has the gradient of, from the `genomes` that are its leaf."""

    genomes: Tensor | None
    log_probs: Tensor
    entropy: Tensor
    features: Tensor | None

    def backward(self, of_log_probs: Tensor, of_entropy: Tensor | None = None) -> Tensor:
        if self.genomes is None or not self.log_probs.requires_grad:
            raise RuntimeError("scored without a gradient")
        outputs, gradients = [self.log_probs], [of_log_probs]
        if of_entropy is not None and self.entropy.requires_grad:
            outputs, gradients = [*outputs, self.entropy], [*gradients, of_entropy]
        (gradient,) = torch.autograd.grad(outputs, self.genomes, gradients)
        return gradient

    def release(self) -> None:
        self.log_probs, self.entropy = self.log_probs.detach(), self.entropy.detach()
