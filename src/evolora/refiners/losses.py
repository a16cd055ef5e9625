"""The losses of the refiners, for k individuals refined side by side.

Tensors are [k, rows, time], any float dtype. `mask` [k, rows, time], boolean or 0/1, marks the completion's tokens, up
to and including the first EOS; whatever stands elsewhere, NaN included, changes neither a result nor a gradient. Every
mean is taken per individual, over its rows and time: individuals never mix.
"""

import torch
from torch import Tensor

from evolora.refiners.options import KLEstimator, LossType


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
    kl_weight: float | Tensor,
    estimator: KLEstimator,
) -> Tensor:
    """What each token earns: minus `kl_weight` (one, or each individual's: [k]) times its KL from the reference, plus,
    at the completion's last token, its score (Ziegler et al., 2019, arXiv 1909.08593, and its code
    lm-human-preferences).

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
    return torch.where(inside & (later == 1), scores[..., None], 0.0) - _each(kl_weight) * kl


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
    terms, clipped = _clipped_terms(log_ratio, advantages, clip_range, clip_range)
    return masked_mean(terms, mask), _update_stats(clipped, mask, log_ratio, mask)


def kl_terms(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor,
    mask: Tensor,
    *,
    kl_weight: float | Tensor,
    whole_logp: Tensor | None = None,
) -> Tensor:
    """The KL penalty of each token's loss: `kl_weight` (one, or each individual's, [k]) * r * k3, where r is the ratio
    of the policy to that at sampling, which makes the gradient unbiased (DeepSeek-AI, 2025, arXiv 2512.02556). 0
    outside the mask. Where `logp` is of a truncated distribution, the KL is of `whole_logp`, of the whole one."""
    ratio = _inside(logp - old_logp, mask).exp()
    own = logp if whole_logp is None else whole_logp
    return _each(kl_weight) * ratio * k3_kl(_inside(own, mask), _inside(ref_logp, mask))


def grpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss_type: LossType,
    clip_range: float,
    clip_range_high: float,
    kl_weight: float | Tensor,
    max_length: int,
    batch_tokens: Tensor,
    whole_logp: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """GRPO's loss, to be minimised: [k], and its statistics as in `clipped_policy_loss`; `whole_logp` as in `kl_terms`.

    Each token costs -min(A r, A clip(r, 1 - clip_range, 1 + clip_range_high)) + kl_weight * r * k3 (Shao et al., 2024,
    arXiv 2402.03300, equation 3; the factor r of the KL makes its gradient unbiased, DeepSeek-AI, 2025, arXiv
    2512.02556), with one `kl_weight` or each individual's, [k]. `advantages` A is [k, rows], one for all tokens of a
    completion. `loss_type` says what the sum over tokens is divided by:

    - "grpo": the completion's length, then the number of completions (the same paper);
    - "bnpo": the number of tokens here;
    - "dr_grpo": the number of completions times `max_length`, a constant (Liu et al., 2025, arXiv 2503.20783);
    - "dapo": `batch_tokens` [k], positive, the tokens of the whole rollout times the share of its rows that are here,
      so that every token of a rollout weighs the same in whichever minibatch (Yu et al., 2025, arXiv 2503.14476).

    The names are those of TRL's GRPOTrainer, and so are the formulas. A row outside the mask is no completion: it is in
    no divisor (TRL keeps completions without a reward in its divisors, at advantage 0).

    >>> one, keep = torch.ones(1, 2, 2), torch.tensor([[[1, 1], [1, 0]]])
    >>> options = {"clip_range": 0.2, "clip_range_high": 0.2, "kl_weight": 0.0, "max_length": 4}
    >>> for kind in ("grpo", "bnpo", "dr_grpo", "dapo"):
    ...     loss, _ = grpo_loss(
    ...         one, one, one, torch.tensor([[1.0, -2.0]]), keep,
    ...         loss_type=kind, batch_tokens=torch.tensor([6.0]), **options,
    ...     )
    ...     print(kind, loss)
    grpo tensor([0.5000])
    bnpo tensor([0.])
    dr_grpo tensor([0.])
    dapo tensor([0.])
    """
    log_ratio = _inside(logp - old_logp, mask)
    terms, clipped = _clipped_terms(log_ratio, advantages[..., None], clip_range, clip_range_high)
    if torch.as_tensor(kl_weight).any():
        terms = terms + kl_terms(logp, old_logp, ref_logp, mask, kl_weight=kl_weight, whole_logp=whole_logp)
    sums, lengths = _inside(terms, mask).sum(-1), mask.bool().sum(-1)
    completions = (lengths > 0).sum(-1).clamp(min=1)
    if loss_type == "grpo":
        loss = (sums / lengths.clamp(min=1)).sum(-1) / completions
    elif loss_type == "bnpo":
        loss = sums.sum(-1) / lengths.sum(-1).clamp(min=1)
    elif loss_type == "dr_grpo":
        loss = sums.sum(-1) / (completions * max_length)
    else:
        loss = sums.sum(-1) / batch_tokens
    return loss, _update_stats(clipped, mask, log_ratio, mask)


def sequence_policy_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip_range: float, clip_range_high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """RLOO's loss, to be minimised: [k], and its statistics as in `clipped_policy_loss`, but that `clip_fraction` is a
    share of the completions.

    The mean over completions of -min(A r, A clip(r, 1 - clip_range, 1 + clip_range_high)), where r is the ratio of the
    probabilities of the whole completion and `advantages` A is [k, rows]: a completion is one action (Ahmadian et al.,
    2024, arXiv 2402.14740). On the policy that sampled, its gradient is REINFORCE's. As TRL's RLOOTrainer has it.

    >>> logp = torch.tensor([[[-1.0, -1.0], [-1.0, 0.0]]])
    >>> loss, stats = sequence_policy_loss(
    ...     logp, logp - 0.1, torch.tensor([[1.0, 1.0]]), torch.tensor([[[1, 1], [1, 0]]]),
    ...     clip_range=0.2, clip_range_high=0.2,
    ... )
    >>> loss, stats["clip_fraction"]  # exp(0.2) is clipped to 1.2, exp(0.1) is not
    (tensor([-1.1526]), tensor([0.5000]))
    """
    log_ratio = _inside(logp - old_logp, mask)
    terms, clipped = _clipped_terms(log_ratio.sum(-1), advantages, clip_range, clip_range_high)
    completions = mask.bool().any(-1)[..., None]
    loss = masked_mean(terms[..., None], completions)
    return loss, _update_stats(clipped[..., None], completions, log_ratio, mask)


def _clipped_terms(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """max(-A r, -A clip(r, 1 - low, 1 + high)), and where the clipped term is the larger."""
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(plain, clipped), clipped > plain


@torch.no_grad()
def _update_stats(clipped: Tensor, clip_mask: Tensor, log_ratio: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {
        "clip_fraction": masked_mean(clipped.to(log_ratio.dtype), clip_mask),
        "approx_kl": masked_mean(log_ratio.square() / 2, mask),
    }


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


def _each(weight: float | Tensor) -> float | Tensor:
    """A weight [k] as [k, 1, 1]."""
    return weight[:, None, None] if isinstance(weight, Tensor) else weight


def _count(x: Tensor, mask: Tensor) -> Tensor:
    return mask.bool().sum(dim=(-2, -1)).to(x.dtype)
