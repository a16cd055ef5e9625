"""Keyed sampling: the token at a given uniform number of softmax(logits / temperature), and its log-probability.

The inverse of the cumulative distribution, in two levels, the block of the vocabulary and the token in it: a cumulative
sum over 50,257 entries in float64 would cost more than all the rest. Only the blocks' sums, a few hundred a row, are in
float64.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LITTLE_LESS = 1 - 2**-23


def sample(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The tokens at `uniform` [rows] in [0, 1), float64, of `logits` [rows, vocabulary], and their log-probabilities,
    both [rows]. A token of probability zero is never chosen; where a logit is NaN, so is the log-probability."""
    log_probs = torch.log_softmax(logits if temperature == 1 else logits / temperature, -1)
    size = math.isqrt(logits.shape[-1]) + 1
    blocks = F.pad(log_probs.exp(), (0, -logits.shape[-1] % size)).unflatten(-1, (-1, size))
    edges = F.pad(blocks.sum(-1, dtype=torch.float64).cumsum(-1), (1, 0))
    # Scaled by the total, so that rounding can neither pass the end nor choose a token of probability zero there.
    point = uniform[:, None] * edges[:, -1:]
    block = torch.searchsorted(edges[:, 1:].contiguous(), point, right=True).clamp(max=edges.shape[-1] - 2)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, size))[:, 0].cumsum(-1)
    # What is left of the point within its block; the block's own sum rounds a little differently.
    left = (point - edges.gather(1, block)).to(inside.dtype).minimum(inside[:, -1:] * LITTLE_LESS)
    token = torch.add(torch.searchsorted(inside, left, right=True), block, alpha=size)
    token = token.clamp(max=logits.shape[-1] - 1)  # only ever past it when the logits are NaN
    return token[:, 0], log_probs.gather(-1, token)[:, 0]
