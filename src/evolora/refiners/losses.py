"""PPO's formulas for k individuals refined side by side.

Tensors are [k, rows, time], any float dtype. `mask` [k, rows, time], boolean or 0/1, marks the completion's tokens, up
to and including the first EOS; whatever stands elsewhere, NaN included, changes neither a result nor a gradient. Every
mean is taken per individual, over its rows and time: individuals never mix.
"""

from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k3"]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Each individual's mean over its masked-in entries: [k, rows, time] -> [k]. Without any it is 0, not NaN.

    >>> masked_mean(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([[[1, 1, 0]]]))
    tensor([2.])
    """
    return _inside(x, mask).sum(dim=(-2, -1)) / _count(x, mask).clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
    """Each individual's variance over its masked-in entries: [k, rows, time] -> [k].

    Unbiased divides by n - 1. With a single entry both kinds are 0, not NaN.

    >>> masked_variance(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([[[1, 1, 0]]]))
    tensor([2.])
    """
    centred = _inside(x - masked_mean(x, mask)[..., None, None], mask)
    divisor = _count(x, mask) - 1 if unbiased else _count(x, mask)
    return centred.square().sum(dim=(-2, -1)) / divisor.clamp(min=1)


def k1_kl(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """The plain estimate of KL(policy || reference) at each sampled token: unbiased, of either sign.

    Schulman, 2020, http://joschu.net/blog/kl-approx.html. Any shape.

    >>> k1_kl(torch.tensor([-1.0]), torch.tensor([-3.0]))
    tensor([2.])
    """
    return logp - ref_logp


def k3_kl(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """The estimate (q/p - 1) - log(q/p) of KL(policy || reference), q the reference: unbiased and never negative.

    Schulman, 2020, http://joschu.net/blog/kl-approx.html. Any shape.

    >>> k3_kl(torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -1.0]))
    tensor([0.0000, 0.7183])
    """
    log_ratio = ref_logp - logp
    return torch.expm1(log_ratio) - log_ratio


def per_token_reward(
    scores: Tensor,
    logp: Tensor,
    ref_logp: Tensor,
    mask: Tensor,
    *,
    kl_weight: float,
    estimator: KLEstimator,
) -> Tensor:
    """What each token earns: minus `kl_weight` times its KL from the reference, plus, at the completion's last token,
    its score (Ziegler et al., 2019, arXiv 1909.08593, and its code lm-human-preferences).

    `scores` is [k, rows]; the result [k, rows, time], 0 outside the mask. A row without tokens earns nothing. TRL pays
    the score one position after an early EOS, with a value of its own there; a mask one position longer and equal
    log-probabilities at that position reproduce it.

    >>> logp, ref_logp = torch.tensor([[[-1.0, -2.0, 0.0]]]), torch.tensor([[[-2.0, -2.0, 0.0]]])
    >>> mask = torch.tensor([[[1, 1, 0]]])
    >>> per_token_reward(torch.tensor([[5.0]]), logp, ref_logp, mask, kl_weight=0.5, estimator="k1")
    tensor([[[-0.5000,  5.0000,  0.0000]]])
    """
    kl = {"k1": k1_kl, "k3": k3_kl}[estimator](_inside(logp, mask), _inside(ref_logp, mask))
    inside = mask.bool()
    later = inside.flip(-1).cumsum(-1).flip(-1)  # masked-in tokens from here on: 1 at the last one
    return torch.where(inside & (later == 1), scores[..., None], 0.0) - kl_weight * kl


def clipped_policy_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_range: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate, to be minimised: [k], and its statistics, each [k] and without gradient.

    The masked mean of max(-A r, -A clip(r, 1 - clip_range, 1 + clip_range)), r the ratio of new to old probability
    (Schulman et al., 2017, arXiv 1707.06347, equation 7). Sum the losses over k to refine all with one backward pass.
    The statistics are `clip_fraction`, the share of tokens whose clipped term is the larger loss, and `approx_kl`, half
    the mean squared log-ratio (Schulman's k2; TRL's figure is smaller, for it counts padding in the mean).

    >>> one = torch.ones(1, 1, 1)
    >>> loss, stats = clipped_policy_loss(one.log() + 1.0, one.log(), one, one, clip_range=0.2)
    >>> loss, stats["clip_fraction"]
    (tensor([-1.2000]), tensor([1.]))
    """
    log_ratio = _inside(logp - old_logp, mask)  # masked before exp: an overflow there would leave a NaN gradient
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = masked_mean(torch.maximum(plain, clipped), mask)
    with torch.no_grad():
        stats = {
            "clip_fraction": masked_mean((clipped > plain).to(logp.dtype), mask),
            "approx_kl": masked_mean(log_ratio.square() / 2, mask),
        }
    return loss, stats


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip_range: float
) -> Tensor:
    """The critic's loss: [k], half the masked mean of the larger of two squared errors, that of the value and that of
    the value kept within `clip_range` of the old one (the PPO code of OpenAI's baselines; not in the paper).

    >>> one = torch.ones(1, 1, 1)
    >>> clipped_value_loss(2 * one, one, 2 * one, one, clip_range=0.5)  # the clipped value, 1.5, is worse
    tensor([0.1250])
    """
    error = _inside(values - returns, mask)
    change = _inside(values - old_values, mask)
    near_error = error - change + change.clamp(-clip_range, clip_range)
    return masked_mean(torch.maximum(error.square(), near_error.square()), mask) / 2


def entropy_from_logits(logits: Tensor) -> Tensor:
    """The entropy in nats of the distributions that `logits` [..., vocabulary] give: [...]. -inf is probability zero.

    >>> entropy_from_logits(torch.tensor([0.0, 0.0, float("-inf")]))
    tensor(0.6931)
    """
    finite = logits.clamp(min=torch.finfo(logits.dtype).min)  # 0 * -inf would be NaN
    return logits.logsumexp(dim=-1) - (logits.softmax(dim=-1) * finite).sum(dim=-1)


def _inside(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is set, else 0. Not a product with the mask: NaN times 0 is NaN."""
    return torch.where(mask.bool(), x, 0.0)


def _count(x: Tensor, mask: Tensor) -> Tensor:
    return mask.bool().sum(dim=(-2, -1)).to(x.dtype)
