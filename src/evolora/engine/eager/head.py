"""Log-probabilities at a frozen output embedding, in chunks: no logits outlive their chunk, forwards or backwards.

A token's log-probability depends on the genomes through its own hidden state alone. Its gradient by that state,
[hidden], is computed on the way forwards, while the chunk's logits are there; what is kept is of the hidden size.
(Wijmans et al., 2024, arXiv 2411.09009, and Hsu et al., 2024, arXiv 2410.10989, do the same for a loss that is known
beforehand.)
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evolora.engine.calibration import CHUNK
from evolora.engine.eager.decoder import last_hidden_states
from evolora.engine.eager.kernels import Kernels
from evolora.engine.eager.log_probs import in_float32_at_least
from evolora.engine.eager.truncation import restricted
from evolora.models.genome import GenomeLayout
from evolora.models.lora import adapts_head

_CHUNK = CHUNK
_LEAST_TOKENS = 16


@dataclass(frozen=True)
class FrozenHead:
    """The output embedding of a model, not adapted, with what the model does to its logits."""

    module: nn.Module
    finish: Callable[[Tensor], Tensor]
    vocabulary: int

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, layout: GenomeLayout) -> "FrozenHead | None":
        """None where it is adapted, or where the model does to its logits what is not known here. Asked outside any
        call, as the model is run for it."""
        module = model.get_output_embeddings()
        if adapts_head(model, layout):
            return None
        with last_hidden_states(model) as seen:
            logits: Tensor = model(input_ids=torch.arange(3, device=model.device)[None]).logits
        head = cls(module, _finish(model), logits.shape[-1])
        # The same operations on the same states. In half precision any tolerance would hide a factor of 1.03.
        error = torch.finfo(model.dtype).eps * 16 if model.dtype.itemsize > 2 else 0.0
        found = head.logits(seen[0]).to(logits.dtype)  # some widen them
        return head if torch.allclose(found, logits, rtol=error, atol=error) else None

    def logits(self, hidden: Tensor) -> Tensor:
        """Of hidden states [..., hidden]."""
        return self.finish(self.module(hidden))

    @property
    def tokens(self) -> int:
        """Of a chunk."""
        return max(_LEAST_TOKENS, _CHUNK // self.vocabulary)

    def token_log_probs(
        self,
        kernels: Kernels,
        hidden: Tensor,
        tokens: Tensor,
        kept: Tensor | None = None,
        *,
        temperature: float,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        """Of `tokens` [n] and the hidden states that they were chosen from, [n, hidden]: log-probabilities and
        entropies, both [n], as `kernels` compute them, where something was `kept` [n, bytes] among that. Differentiable
        once in the hidden states, the entropies only with `entropy_gradient`."""
        how = {"temperature": temperature, "entropy_gradient": entropy_gradient}
        found: tuple[Tensor, Tensor] = _InChunks.apply(  # type: ignore[no-untyped-call]
            hidden, self, kernels, tokens, kept, how, torch.is_grad_enabled() and hidden.requires_grad
        )
        log_probs, entropy = found
        return log_probs, entropy if entropy_gradient else entropy.detach()


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: FrozenHead,
        kernels: Kernels,
        tokens: Tensor,
        kept: Tensor | None,
        how: dict[str, Any],
        learns: bool,
    ) -> tuple[Tensor, Tensor]:
        found: list[tuple[Tensor, Tensor]] = []
        gradients: list[Tensor] = []
        of_entropies: list[Tensor] = []
        bits = itertools.repeat(None) if kept is None else kept.split(head.tokens)
        for some, own, among in zip(hidden.split(head.tokens), tokens.split(head.tokens), bits, strict=False):
            states = some.detach().requires_grad_(learns)
            with torch.set_grad_enabled(learns):
                logits = in_float32_at_least(head.logits(states))
                if among is not None:
                    logits = restricted(logits, among, how["temperature"])
                log_probs, entropy = kernels.token_log_probs(logits, own, **how)
                if learns:  # rows do not mix: the gradient of the sum has each row's
                    also = how["entropy_gradient"]
                    gradients += torch.autograd.grad(log_probs.sum(), states, retain_graph=also)
                    of_entropies += torch.autograd.grad(entropy.sum(), states) if also else ()
            found.append((log_probs.detach(), entropy.detach()))
        ctx.save_for_backward(*(torch.cat(each) for each in (gradients, of_entropies) if each))
        return torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_log_probs: Tensor, of_entropies: Tensor) -> tuple[Tensor | None, ...]:
        result = torch.zeros_like(ctx.saved_tensors[0])
        for own, given in zip(ctx.saved_tensors, (of_log_probs, of_entropies), strict=False):
            result.addcmul_(own, given[:, None].to(own.dtype))
        return (result, *[None] * 6)


def _finish(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """What the known architectures do to their logits: Granite divides, Cohere multiplies, Gemma 2 caps."""
    config = model.config.get_text_config(decoder=True)
    divided, cap = getattr(config, "logits_scaling", None), getattr(config, "final_logit_softcapping", None)
    times = getattr(model, "logit_scale", None)

    def finish(logits: Tensor) -> Tensor:
        if divided is not None:
            logits = logits / divided
        if times is not None:
            logits = logits * times
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return finish
