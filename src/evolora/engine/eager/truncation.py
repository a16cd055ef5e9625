"""What sampling keeps of a distribution: who is kept, as bits, and logits of which the others have no share."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from evolora.engine.options import Truncation

# Far enough below the likeliest for a probability of exactly 0, and no infinity, of which an entropy would be NaN.
_FLOOR = 1e4
# The likeliest that are looked at first, for the most of the nucleus are few, and a whole sort is dear.
_FIRST = 128


def kept_by(truncation: Truncation, logits: Tensor, temperature: float) -> Tensor:
    """Which tokens a truncation keeps, bool, of `logits` [rows, vocabulary]."""
    # All are cuts at a height: whatever is likelier than something that is kept is kept, too.
    height = logits.new_full((len(logits), 1), -math.inf)
    if 0 < truncation.top_k < logits.shape[-1]:
        height = logits.topk(truncation.top_k).values[:, -1:]
    if truncation.top_p < 1:
        height = torch.maximum(height, _nucleus(logits, height, truncation.top_p, temperature))
    if truncation.min_p > 0:
        height = torch.maximum(height, logits.amax(-1, keepdim=True) + temperature * math.log(truncation.min_p))
    return logits >= height


def _nucleus(logits: Tensor, height: Tensor, share: float, temperature: float) -> Tensor:
    """The height [rows, 1] of the last of the fewest likeliest that have this share of what is at least of `height`."""
    scaled = logits.masked_fill(logits < height, -math.inf).to(torch.float64) / temperature
    total = scaled.logsumexp(-1, keepdim=True)
    count = _FIRST
    while True:
        count = min(count, logits.shape[-1])
        likeliest = scaled.topk(count)
        # What is likelier than a token has less than the share: the token is needed.
        before = (likeliest.values - total).exp().cumsum(-1)[:, :-1]
        needed = (before < share).sum(-1, keepdim=True)
        if count == logits.shape[-1] or bool((needed < count - 1).all()):
            return logits.gather(-1, likeliest.indices.gather(-1, needed))
        count *= 8


def as_bits(kept: Tensor) -> Tensor:
    """Which are kept, bool [..., vocabulary], as uint8 [..., bytes].

    >>> as_bits(torch.tensor([True, False, True, False, False, False, False, False, True]))
    tensor([5, 1], dtype=torch.uint8)
    """
    eights = F.pad(kept, (0, -kept.shape[-1] % 8)).unflatten(-1, (-1, 8)).to(torch.uint8)
    bits: Tensor = (eights << _places(kept)).sum(-1, dtype=torch.uint8)
    return bits


def restricted(logits: Tensor, bits: Tensor, temperature: float) -> Tensor:
    """Logits [n, vocabulary] of which only what is kept, by `bits` [n, bytes], has a share of softmax(logits /
    temperature). Differentiable."""
    kept = (bits[..., None] >> _places(bits)).bitwise_and_(1).flatten(-2)[..., : logits.shape[-1]].bool()
    return torch.where(kept, logits, logits.detach().amax(-1, keepdim=True) - _FLOOR * temperature)


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
