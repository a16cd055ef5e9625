"""Dropout by random bits: 16 of a number decide, so that four entries share one."""

import torch
from torch import Tensor

SHARES = 2**16


def dropped(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """`x` with `share` of its entries, to 1 in 65,536, set to zero and the rest scaled up, as `generator`, one of x's
    device, says. Differentiable."""
    limit, scale = limit_and_scale(share)
    numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    bits = numbers.random_(-(2**63), None, generator=generator).view(torch.int16)
    kept = bits[: x.numel()].view(x.shape) >= limit - SHARES // 2
    return x * kept.to(x.dtype).mul_(scale)


def limit_and_scale(share: float) -> tuple[int, float]:
    """The number of 16 bits below which an entry is dropped, and by what the others are scaled up."""
    limit = min(max(1, round(share * SHARES)), SHARES - 1)
    return limit, SHARES / (SHARES - limit)
