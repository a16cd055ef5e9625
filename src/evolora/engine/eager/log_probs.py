"""The log-probabilities of given tokens and the entropies of their distributions, softmax(logits / temperature)."""

import torch
from torch import Tensor


def in_float32_at_least(logits: Tensor) -> Tensor:
    """Half precision would lose log-probabilities."""
    return logits if logits.dtype == torch.float64 else logits.float()


def token_log_probs(
    logits: Tensor, tokens: Tensor, *, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Of `tokens` [n] and logits [n, vocabulary]: both [n]. Differentiable in the logits; the entropies only with
    `entropy_gradient`."""
    log_probs = torch.log_softmax(logits / temperature, -1)
    chosen = log_probs.gather(-1, tokens[:, None])[:, 0]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        return chosen, -(log_probs.exp() * log_probs).sum(-1)
