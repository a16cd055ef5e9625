"""Credit assignment: what each token of a completion was worth. Shapes and masks as in `evolora.refiners.losses`.

The group refiners' functions take `scores` and `scored` [k, rows]: a completion's score, and whether it has one. The
`group_size` completions of one prompt are consecutive rows. A completion without a score is in no statistic and has
advantage 0, whatever its entry in `scores`, NaN included.
"""

import torch
from torch import Tensor

from evolora.refiners.losses import masked_mean, masked_variance
from evolora.refiners.options import RewardScale

# What TRL's group trainers add to a standard deviation that they divide by.
SCALE_FLOOR = 1e-4


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


def group_advantages(scores: Tensor, scored: Tensor, *, group_size: int, scale: RewardScale) -> Tensor:
    """GRPO's advantages (Shao et al., 2024, arXiv 2402.03300): [k, rows], each score minus the mean of its group.

    `scale` divides by a standard deviation (unbiased, plus 1e-4): that of the "group", that of all the individual's
    scores ("batch"; Liu et al., 2025, arXiv 2508.08221), or by "none" (Dr. GRPO: Liu et al., 2025, arXiv 2503.20783).

    >>> group_advantages(torch.tensor([[1.0, 3.0, 5.0, 5.0]]), torch.ones(1, 4), group_size=2, scale="none")
    tensor([[-1.,  1.,  0.,  0.]])
    """
    grouped, inside = _groups(scores, group_size), _groups(scored.bool(), group_size)
    # A group as an individual of one row, for the masked statistics.
    alone, mask = grouped[..., None, :], inside[..., None, :]
    advantages = torch.where(inside, grouped - masked_mean(alone, mask)[..., None], 0.0)
    if scale == "group":
        advantages = advantages / (masked_variance(alone, mask).sqrt()[..., None] + SCALE_FLOOR)
    elif scale == "batch":
        advantages = advantages / (masked_variance(grouped, inside).sqrt()[..., None, None] + SCALE_FLOOR)
    return advantages.flatten(-2)


def leave_one_out_advantages(scores: Tensor, scored: Tensor, *, group_size: int, normalize: bool) -> Tensor:
    """RLOO's advantages (Ahmadian et al., 2024, arXiv 2402.14740; Kool et al., 2019): [k, rows], each score minus the
    mean of the others of its group. The only score of a group has advantage 0.

    With `normalize` the individual's advantages are brought to mean 0 and divided by their standard deviation
    (unbiased, plus 1e-4), as TRL's `normalize_advantages` does.

    >>> leave_one_out_advantages(torch.tensor([[1.0, 3.0, 8.0]]), torch.ones(1, 3), group_size=3, normalize=False)
    tensor([[-4.5000, -1.5000,  6.0000]])
    """
    grouped, inside = _groups(scores, group_size), _groups(scored.bool(), group_size)
    total = torch.where(inside, grouped, 0.0).sum(-1, keepdim=True)
    others = inside.sum(-1, keepdim=True) - 1
    inside = inside & (others > 0)
    advantages = torch.where(inside, grouped - (total - grouped) / others.clamp(min=1), 0.0)
    if normalize:
        mean, variance = masked_mean(advantages, inside), masked_variance(advantages, inside)
        scaled = (advantages - mean[..., None, None]) / (variance.sqrt()[..., None, None] + SCALE_FLOOR)
        advantages = torch.where(inside, scaled, 0.0)
    return advantages.flatten(-2)


def fitness_first(scores: Tensor, scored: Tensor, paid: Tensor, *, group_size: int, least: Tensor) -> Tensor:
    """What a policy follows that is judged by another measure than its reward: [k, rows]. In groups that what is `paid`
    [k, rows], NaN without a value, tells apart, it is that, at the groups' mean score and the individual's usual spread
    within a group; in those where everybody is paid alike, and more than the `least` [k], nothing, all scores being
    their mean; in the others it is `scores`.

    >>> scores, paid = torch.tensor([[4.0, 2.0, 5.0, 7.0]]), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    >>> fitness_first(scores, torch.ones(1, 4), paid, group_size=2, least=torch.zeros(1))
    tensor([[2., 4., 5., 7.]])
    >>> fitness_first(scores, torch.ones(1, 4), torch.ones(1, 4), group_size=2, least=torch.zeros(1))
    tensor([[3., 3., 6., 6.]])
    """
    known = scored.bool() & ~paid.isnan()
    grouped, inside = _groups(scores, group_size), _groups(known, group_size)
    worth = _groups(paid.nan_to_num(), group_size).to(scores.dtype)
    # A group as an individual of one row, for the masked statistics.
    alone, mask = grouped[..., None, :], inside[..., None, :]
    mean, paid_mean = (masked_mean(each[..., None, :], mask)[..., None] for each in (grouped, worth))
    usual = masked_variance(alone, mask).mean(-1).sqrt()[..., None, None]
    usual = torch.where(usual > 0, usual, 1.0)
    spread = masked_variance(worth[..., None, :], mask).sqrt()[..., None]
    told = ~_equal(paid.nan_to_num(), known, group_size)[..., None]
    all_have_it = ~told & inside.all(-1, keepdim=True) & (paid_mean > least[..., None, None])
    by_fitness = mean + torch.where(inside, worth - paid_mean, 0.0) / spread.clamp(min=SCALE_FLOOR) * usual
    return torch.where(told, by_fitness, torch.where(all_have_it, mean, grouped)).flatten(-2)


def equal_groups(scores: Tensor, scored: Tensor, *, group_size: int) -> Tensor:
    """The share of each individual's groups whose scores are all equal, or fewer than two: they teach nothing. [k].

    >>> equal_groups(torch.tensor([[1.0, 3.0, 5.0, 5.0]]), torch.ones(1, 4), group_size=2)
    tensor([0.5000])
    """
    return _equal(scores, scored, group_size).to(scores.dtype).mean(-1)


def unequal_groups(scores: Tensor, scored: Tensor, *, group_size: int) -> Tensor:
    """Which completions are in a group whose scores differ: [k, rows].

    >>> unequal_groups(torch.tensor([[1.0, 3.0, 5.0, 5.0]]), torch.ones(1, 4), group_size=2)
    tensor([[ True,  True, False, False]])
    """
    return ~_equal(scores, scored, group_size).repeat_interleave(group_size, dim=-1)


def group_signal(scores: Tensor, scored: Tensor, *, group_size: int, noise: float) -> Tensor:
    """How much groups tell of their completions' worth: the mean over groups of the share of the variance of their
    scores that rewards' own `noise`, a variance, does not explain; 0 where scores are equal. [k].

    >>> scores = torch.tensor([[0.0, 2.0, 5.0, 5.0]])
    >>> [float(group_signal(scores, torch.ones(1, 4), group_size=2, noise=noise)) for noise in (0.0, 1.0, 9.0)]
    [0.5, 0.25, 0.0]
    """
    # A group as an individual of one row, for the masked statistics.
    grouped, inside = _groups(scores, group_size)[..., None, :], _groups(scored.bool(), group_size)[..., None, :]
    variances = masked_variance(grouped, inside)
    share = 1 - noise / variances.clamp(min=torch.finfo(variances.dtype).tiny)
    return torch.where(_equal(scores, scored, group_size), 0.0, share.clamp(min=0)).mean(-1)


def _equal(scores: Tensor, scored: Tensor, group_size: int) -> Tensor:
    """Which groups have scores that are all equal, or fewer than two: [k, groups]. Not by their variance, which
    rounding may leave above 0."""
    grouped, inside = _groups(scores, group_size), _groups(scored.bool(), group_size)
    highest = torch.where(inside, grouped, -torch.inf).amax(-1)
    return highest <= torch.where(inside, grouped, torch.inf).amin(-1)


def _groups(rows: Tensor, group_size: int) -> Tensor:
    """[k, rows] -> [k, groups, group_size]."""
    grouped: Tensor = rows.unflatten(-1, (-1, group_size))
    return grouped
