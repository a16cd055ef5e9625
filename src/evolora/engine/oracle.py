"""What a plain forward pass says of one text, without padding, cache or hooks: what engines are judged by.

The pass is the model's own. For an adapter its delta is added to the weights, layer by layer on the way.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evolora.engine.text import Text
from evolora.models.base import module_tree
from evolora.models.genome import AdaptedModule, GenomeLayout
from evolora.models.quantization import rounding

# What log-probabilities may differ by: in float32, and so many times the rounding of the largest logit: in half
# precision the logits themselves are rounded, in float32 each layer's sums.
_TOLERANCE, _ROUNDINGS_OF_HALF, _ROUNDINGS = 1e-4, 4.0, 100.0
# Passes that round otherwise, by so much of half precision's rounding, or so many times float32's, of which a layer
# sums many; and how many times their spread an engine may differ.
_SHAKEN, _SHARE_OF_HALF, _TIMES_ROUNDING, _SPREADS = 8, 0.5, 10.0, 2.0
_SHORT, _LONG = "The", "One two three four five six seven eight nine ten eleven twelve"


@torch.no_grad()
def logits_of(net: nn.Module, ids: Sequence[int]) -> Tensor:
    """What a plain forward pass of one text says after each of its tokens, [length, vocabulary]."""
    device = next(net.parameters()).device
    logits: Tensor = net(input_ids=torch.tensor([list(ids)], device=device)).logits[0]
    return logits


def log_probs_of(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), -1).cpu()


def said_of(net: nn.Module, prompt: Sequence[int], ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """What a plain pass says of the completion `ids` of a prompt: of its tokens the log-probabilities, those of the
    likeliest in their places, both [length], and the logits, [length, vocabulary]."""
    logits = logits_of(net, [*prompt, *ids[:-1]])[-len(ids) :]
    found = log_probs_of(logits)
    return found.gather(1, torch.tensor(list(ids))[:, None])[:, 0], found.max(1).values, logits


def tolerance_of(logits: Sequence[Tensor], model: PreTrainedModel) -> float:
    """By how much log-probabilities may differ from those of these logits."""
    share = rounding(model)
    of_logits = share * max(float(own.float().abs().max()) for own in logits)
    half = share > torch.finfo(torch.float32).eps
    return _ROUNDINGS_OF_HALF * of_logits if half else max(_TOLERANCE, _ROUNDINGS * of_logits)


def largest(values: Sequence[float]) -> float:
    """NaN where one is."""
    return max(values) if all(value == value for value in values) else float("nan")


def uneven_prompts(text: Text, model: PreTrainedModel, new_tokens: int) -> list[list[int]]:
    """A short one and a long one, beyond a short attention window, with room for so many new tokens."""
    config = model.config.get_text_config(decoder=True)
    short, long = text.encode([_SHORT, _LONG])
    if (window := getattr(config, "sliding_window", None) or 0) <= 64:
        long = (long * (window // len(long) + 1))[: max(window + 3, len(long))]
    room = getattr(config, "max_position_embeddings", None) or len(long) + new_tokens
    return [short[:2], long[: room - new_tokens]]


@dataclass(frozen=True)
class Answer:
    """Of a completion's tokens the log-probabilities, those of the likeliest in their places, both [length], and what
    somebody else's may differ by."""

    log_probs: Tensor
    likeliest: Tensor
    tolerance: float


class Oracle:
    """A model that wears one genome of `layout` at a time, its delta added to the weights. The model that is given
    stays as it is. It answers one thread at a time.

    >>> from evolora.models.base import load_base
    >>> from evolora.models.lora import lora_config, lora_layout
    >>> base = load_base("tiny-gpt2")
    >>> layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    >>> Oracle(base.model, layout).answer(founder, [5, 6], [7, 8, 9]).log_probs.shape
    torch.Size([3])
    """

    def __init__(self, model: PreTrainedModel, layout: GenomeLayout) -> None:
        self.layout = layout
        self._tree = module_tree(model)
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        for module in layout.modules:
            layer: Any = self._tree.get_submodule(module.name)
            layer.forward = _Merged(layer, module, self._factors)

    def logits(self, genome: Tensor | None, ids: Sequence[int]) -> Tensor:
        """What it says after each token of a text, [length, vocabulary], with a genome [genome_length] or as the
        base."""
        with self._worn(genome):
            return logits_of(self._tree, ids)

    def answer(self, genome: Tensor | None, prompt: Sequence[int], ids: Sequence[int]) -> Answer:
        """What it says of the completion `ids` of a prompt."""
        with self._worn(genome):
            log_probs, likeliest, logits = said_of(self._tree, prompt, ids)
        return Answer(log_probs, likeliest, tolerance_of([logits], self._tree))

    def wider(self, genome: Tensor | None, prompt: Sequence[int], ids: Sequence[int], answer: Answer) -> float:
        """The tolerance of an answer where rounding may change more than itself, as experts that are routed to: by how
        much the model's own answers differ when each of its layers rounds otherwise."""
        with self._worn(genome), self._shaken():
            others = [said_of(self._tree, prompt, ids)[0] for _ in range(_SHAKEN)]
        spread = max(float((other - answer.log_probs).abs().max()) for other in others)
        return max(answer.tolerance, _SPREADS * spread)

    @contextmanager
    def _worn(self, genome: Tensor | None) -> Iterator[None]:
        if genome is not None:
            placed = genome.to(self._tree.device)[None]
            self._factors.update({module.name: (a[0], b[0]) for module, a, b in self.layout.factors(placed)})
        try:
            yield
        finally:
            self._factors.clear()

    @contextmanager
    def _shaken(self) -> Iterator[None]:
        share, generator = rounding(self._tree), torch.Generator().manual_seed(0)
        share *= _SHARE_OF_HALF if share > torch.finfo(torch.float32).eps else _TIMES_ROUNDING

        def shake(_: nn.Module, __: object, output: object) -> Tensor | None:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            noise = torch.randn(output.shape, generator=generator).to(output.device)
            return (output * (1 + share * noise)).to(output.dtype)

        leaves = [module for module in self._tree.modules() if not any(True for _ in module.children())]
        hooks = [module.register_forward_hook(shake) for module in leaves]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Merged:
    """The forward of one adapted layer, which hides the class's own."""

    def __init__(self, layer: nn.Module, module: AdaptedModule, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
        self._layer, self._module, self._factors, self._plain = layer, module, factors, layer.forward

    def __call__(self, x: Tensor) -> Tensor:
        worn = self._factors.get(self._module.name)
        if worn is None:
            plain: Tensor = self._plain(x)
            return plain
        a, b = worn
        delta = self._module.scaling * (b @ a)
        layer: Any = self._layer
        if type(layer) not in (nn.Linear, Conv1D):  # of few bits, to which nothing can be added
            few_bits: Tensor = self._plain(x) + F.linear(x.to(delta.dtype), delta).to(x.dtype)
            return few_bits
        weight = layer.weight.T if type(layer) is Conv1D else layer.weight
        wide = torch.promote_types(weight.dtype, delta.dtype)
        bias = None if layer.bias is None else layer.bias.to(wide)
        return F.linear(x.to(wide), weight.to(wide) + delta, bias).to(x.dtype)
