"""A rollout: completions sampled from k individuals, what they earned, and their log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evolora.engine.base import Completions, Scoring
from evolora.engine.options import Truncation
from evolora.engine.progress import NOBODY, Reporter
from evolora.errors import InputError
from evolora.population.writing import Writer, rewarded
from evolora.refiners.losses import k1_kl, k3_kl
from evolora.rewards import CombinedScorer, Scorer
from evolora.tasks.task import Example


@dataclass(frozen=True)
class Settings:
    """What each individual is refined with, all [k] but the `temperature`, one for all, and `reward_weights` [k,
    summands], what it weighs the reward's summands by; None where nobody does."""

    lr: Tensor
    kl_weight: Tensor
    entropy_weight: Tensor
    temperature: float
    reward_weights: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Rollout:
    """Sampled completions of k individuals, all tensors [k, rows, time] but `scores` and `rewards` [k, rows] and
    `features` [k, rows, time, hidden], which are there if the algorithm asks for them.

    `prompts` are the rows' token ids, the same for each individual; `completions` are flat, [k * rows, ...]. `mask` is
    true on the tokens that count: those up to the first end of sequence, in rows that have a score. The completions of
    one prompt are consecutive rows.

    Without a KL penalty nobody asks the reference: its log-probabilities are the policy's, and `kl_measured` is false.
    What was sampled of a truncated distribution has `log_probs` within what was kept of it; `whole_log_probs` are of
    the whole one, which the KL is over. `ended` [k, rows] says which completions were not cut at the longest length.
    `earned` are the lowest and the highest reward, if there is any. `settings` are the individuals' own, None for the
    refiner's. `scores` are by an individual's own weights of the reward's summands, where it has any; `rewards`
    [k, rows] by the run's reward, by which individuals can be compared. `texts` are the completions', flat; `paid`
    [k, rows] is what a fitness beside the reward pays for them, NaN where it pays nothing.
    """

    prompts: list[list[int]]
    completions: Completions
    scores: Tensor
    rewards: Tensor
    mask: Tensor
    log_probs: Tensor
    whole_log_probs: Tensor
    reference_log_probs: Tensor
    ended: Tensor
    features: Tensor | None
    failed: int
    earned: tuple[float, ...] = ()
    kl_measured: bool = True
    settings: Settings | None = None
    texts: Sequence[str] = ()
    paid: Tensor | None = None

    @property
    def scored(self) -> Tensor:
        """Which rows have a score, [k, rows]."""
        return self.mask.any(-1)

    @property
    def worth(self) -> Tensor:
        """What each completion is truly worth, [k, rows], NaN without a score: what it is paid, else its reward."""
        return self.rewards.masked_fill(~self.scored, torch.nan) if self.paid is None else self.paid


def collect(
    writer: Writer,
    scorer: Scorer,
    genomes: Tensor,
    examples: Sequence[Example],
    seeds: Sequence[int],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    truncation: Truncation | None,
    keep_features: bool,
    keep_trace: bool,
    reference: Tensor | None,
    with_reference: bool,
    settings: Settings | None,
    dtype: torch.dtype,
    reporter: Reporter = NOBODY,
    fitness: Scorer | None = None,
) -> Rollout:
    """Sample and score `samples` completions of each example's prompt from each of `genomes` [k, genome_length], whose
    draws are those of its entry of `seeds` [k]; `keep_trace` with what decoding computed, `with_reference` with the
    log-probabilities under the `reference` [genome_length], None for the base. Scores are of `dtype`. A
    `fitness` beside the reward says what each is truly worth.

    Raises RewardError when one of the two fails.
    """
    k, engine = genomes.shape[0], writer.engine
    examples = [example for example in examples for _ in range(samples)]
    of_rows = [np.random.default_rng(seed).integers(0, 2**63, len(examples), dtype=np.uint64) for seed in seeds]
    written = writer.write(
        genomes,
        examples,
        max_new_tokens,
        seeds=np.concatenate(of_rows),
        temperature=temperature,
        truncation=truncation,
        features=keep_features,
        trace=keep_trace,
    )
    prompts, completions = written.prompts, written.completions
    assert completions is not None and completions.log_probs is not None
    if truncation is not None and completions.kept is None:
        found = f"an engine, {type(engine).__name__}, that samples of whole distributions"
        raise InputError(f"--top-k, --top-p, --min-p: found {found}, expected them at their defaults")
    features = completions.features
    if keep_features and features is None:
        how = Scoring(temperature=temperature, features=True)
        features = engine.score(genomes, prompts, replace(completions, trace=None), how).features
    whole = reference_log_probs = completions.log_probs
    if with_reference:
        how, plain = Scoring(temperature=temperature), replace(completions, kept=None, trace=None)
        one = None if reference is None else reference[None]
        reference_log_probs = engine.score(one, prompts * k, plain, how).log_probs
        if completions.kept is not None:
            whole = engine.score(genomes, prompts, plain, how).log_probs
    reporter.part("rewarding")
    scores = rewarded(scorer, written)
    paid = None if fitness is None else rewarded(fitness, written)
    followed = earned = _by_individual(scores.rewards, k, completions.mask.device, dtype)
    if settings is not None and settings.reward_weights is not None:
        assert isinstance(scorer, CombinedScorer)
        own = scorer.weighted(scores, settings.reward_weights.repeat(len(examples), 0).T)
        followed = _by_individual(own, k, completions.mask.device, dtype)
    mask = completions.mask.unflatten(0, (k, -1)) & ~followed.isnan()[..., None]
    cut = [writer.text.cut(ids, max_new_tokens) for ids in written.ids]
    ended = ~torch.tensor(cut, device=completions.mask.device)
    return Rollout(
        prompts=prompts,
        completions=completions,
        scores=followed.nan_to_num(),
        rewards=earned.nan_to_num(),
        mask=mask,
        log_probs=completions.log_probs.unflatten(0, (k, -1)),
        whole_log_probs=whole.unflatten(0, (k, -1)),
        reference_log_probs=reference_log_probs.unflatten(0, (k, -1)),
        ended=ended.unflatten(0, (k, -1)),
        features=None if features is None else features.unflatten(0, (k, -1)),
        failed=int(scores.failed.sum()) + (0 if paid is None else int(paid.failed.sum())),
        earned=_range(scores.rewards),
        kl_measured=with_reference,
        settings=settings,
        texts=written.texts,
        paid=None if paid is None else _by_individual(paid.rewards, k, completions.mask.device, dtype),
    )


def _by_individual(rewards: npt.NDArray[np.float64], k: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    found: Tensor = torch.from_numpy(rewards).to(dtype).to(device)
    return found.reshape(k, -1)


def _range(rewards: npt.NDArray[np.float64]) -> tuple[float, ...]:
    known = rewards[~np.isnan(rewards)]
    return (float(known.min()), float(known.max())) if len(known) else ()


@dataclass(frozen=True)
class Share:
    """Some rows of a rollout, each individual's own: those of `rows` [k, most] that are `there` [k, most]."""

    rows: Tensor
    there: Tensor

    @classmethod
    def of(cls, parts: Sequence[Tensor], device: torch.device) -> "Share":
        """Of each individual's part, the indices of its rows."""
        there = torch.arange(max(map(len, parts))) < torch.tensor([len(part) for part in parts])[:, None]
        rows = torch.zeros(there.shape, dtype=torch.int64)
        rows[there] = torch.cat([*parts])
        return cls(rows.to(device), there.to(device))

    @property
    def counts(self) -> Tensor:
        """How many rows each individual has here, [k]."""
        return self.there.sum(1)

    def all_of(self, rollout: Rollout) -> bool:
        """Whether these are all rows of all individuals."""
        return self.there.shape == rollout.scores.shape and bool(self.there.all())

    def owners(self) -> list[int]:
        """Whose each row is, one individual's after another's."""
        owners: list[int] = self.there.nonzero()[:, 0].tolist()
        return owners

    def texts(self, rollout: Rollout) -> tuple[list[list[int]], Completions]:
        """The prompt of each row, one individual's after another's, and the completions, without features."""
        first = torch.arange(len(self.rows), device=self.rows.device)[:, None] * rollout.scores.shape[1]
        prompts = [rollout.prompts[row] for row in self.rows[self.there].tolist()]
        return prompts, replace(rollout.completions, features=None).select((first + self.rows)[self.there])

    def of_all(self, x: Tensor) -> Tensor:
        """Of what all rows of a rollout have, [k, rows, ...], that of these, [k, most, ...]."""
        return x[torch.arange(len(x), device=x.device)[:, None], self.rows]

    def of_texts(self, x: Tensor) -> Tensor:
        """What the rows have one after another, [there, ...], as [k, most, ...]; 0 where none is there."""
        return x.new_zeros(*self.rows.shape, *x.shape[1:]).index_put((self.there,), x)


def statistics(rollout: Rollout) -> dict[str, Tensor]:
    """A rollout's metrics, as docs/metrics.md defines them, each [k]."""
    scored = rollout.mask.any(-1)
    rows = scored.sum(-1).clamp(min=1)
    stats = {
        "reward": (rollout.rewards * scored).sum(-1) / rows,
        "length": rollout.mask.sum((-1, -2)) / rows,
    }
    if rollout.kl_measured:
        for name, estimator in (("kl", k1_kl), ("kl_k3", k3_kl)):
            kl = estimator(rollout.whole_log_probs, rollout.reference_log_probs)
            stats[name] = (kl * rollout.mask).sum((-1, -2)) / rows
    return stats
