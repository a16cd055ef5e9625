"""The KL weight that follows a target: Ziegler et al., 2019, arXiv 1909.08593, section 2.2."""

import torch
from torch import Tensor

# How far an error counts: the paper's.
CLIP = 0.2


def adapted_kl_weight(weight: Tensor, kl: Tensor, completions: Tensor, *, target: float, horizon: float) -> Tensor:
    """Each individual's next KL weight, by a proportional controller in log space, all [k].

    With the error e = clip(kl / target - 1, -0.2, 0.2) the weight grows by the factor 1 + e n / `horizon`, n the number
    of `completions` that `kl`, in nats a completion, is the mean of; more than `horizon` count as so many. A KL that is
    not finite changes nothing.

    >>> weights, kl = torch.full((3,), 0.1), torch.tensor([6.0, 3.3, 0.0])
    >>> adapted_kl_weight(weights, kl, torch.full((3,), 64), target=3.0, horizon=128)
    tensor([0.1100, 0.1050, 0.0900])
    """
    error = (kl / target - 1).clamp(-CLIP, CLIP)
    factor = 1 + error * (completions.to(weight) / horizon).clamp(max=1)
    return torch.where(factor.isfinite(), weight * factor, weight)
