"""Credit assignment: what each token of a completion was worth. Shapes and masks as in `evolora.refiners.losses`."""

import torch
from torch import Tensor

from evolora.refiners.losses import masked_mean, masked_variance


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, trace_decay: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al., 2016, arXiv 1506.02438): (advantages, returns).

    All are [k, rows, time]. A completion ends at its last masked-in token: rewards and values beyond count as 0, so
    nothing is bootstrapped. `discount` is the paper's gamma, `trace_decay` its lambda. The returns, the critic's
    targets, are the advantages plus the values. Both results are 0 outside the mask, and not whitened.

    >>> rewards, values = torch.tensor([[[0.0, 1.0, 9.0]]]), torch.tensor([[[0.5, 0.5, 9.0]]])
    >>> mask = torch.tensor([[[1, 1, 0]]])
    >>> generalized_advantages(rewards, values, mask, discount=1.0, trace_decay=1.0)[0]
    tensor([[[0.5000, 0.5000, 0.0000]]])
    """
    inside = mask.bool()
    rewards, values = torch.where(inside, rewards, 0.0), torch.where(inside, values, 0.0)
    next_values = torch.nn.functional.pad(values[..., 1:], (0, 1))
    errors = rewards + discount * next_values - values
    running = torch.zeros_like(errors[..., 0])
    steps = []
    for error in reversed(errors.unbind(-1)):
        running = error + discount * trace_decay * running
        steps.append(running)
    advantages = torch.stack(steps[::-1], dim=-1)
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Each individual's masked-in entries scaled to unit variance, and to mean 0 unless `shift_mean` is false.

    [k, rows, time] -> the same, 0 outside the mask. The variance is unbiased and 1e-8 is added to it, as in TRL's
    masked_whiten and lm-human-preferences. Equal entries become 0 (or keep their mean).

    >>> whiten(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([[[1, 1, 0]]]))
    tensor([[[-0.7071,  0.7071,  0.0000]]])
    """
    mean = masked_mean(x, mask)[..., None, None]
    scale = torch.rsqrt(masked_variance(x, mask)[..., None, None] + 1e-8)
    whitened = (x - mean) * scale
    return torch.where(mask.bool(), whitened if shift_mean else whitened + mean, 0.0)
