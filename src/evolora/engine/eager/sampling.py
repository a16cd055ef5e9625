"""Keyed sampling: the token at a given uniform number of softmax(logits / temperature), and its log-probability.

The inverse of the cumulative distribution, in two levels, the block of the vocabulary and the token in it: a cumulative
sum over 50,257 entries in float64 would cost more than all the rest.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LITTLE_LESS = 1 - 1e-12


def sample(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The tokens at `uniform` [rows] in [0, 1), float64, of `logits` [rows, vocabulary], and their log-probabilities,
    both [rows]. A token of probability zero is never chosen; where a logit is NaN, so is the log-probability."""
    log_probs = torch.log_softmax(logits / temperature, -1)
    size = math.isqrt(logits.shape[-1]) + 1
    blocks = F.pad(log_probs.exp(), (0, -logits.shape[-1] % size)).unflatten(-1, (-1, size))
    edges = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    # Scaled by the total, so that rounding can neither pass the end nor choose a token of probability zero there.
    point = uniform[:, None] * edges[:, -1:]
    block = torch.searchsorted(edges, point, right=True).clamp(max=edges.shape[-1] - 1)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, size))[:, 0].double().cumsum(-1)
    # What is left of the point within its block; the block's own sum rounds a little differently.
    before = torch.where(block > 0, edges.gather(1, (block - 1).clamp(min=0)), 0.0)
    left = (point - before).clamp(min=0).minimum(inside[:, -1:] * LITTLE_LESS)
    token = block * size + torch.searchsorted(inside, left, right=True)
    token = token.clamp(max=logits.shape[-1] - 1)  # only ever past it when the logits are NaN
    return token[:, 0], log_probs.gather(-1, token)[:, 0]
