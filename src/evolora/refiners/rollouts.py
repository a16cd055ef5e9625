"""A rollout: completions sampled from k individuals, what they earned, and their log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evolora.engine.eager.generate import (
    Completions,
    PromptBatch,
    decode_text,
    encode,
    end_tokens,
    pad_token,
    select_rows,
)
from evolora.engine.eager.lora_layers import PopulationModel
from evolora.engine.split import population_generate, population_log_probs
from evolora.refiners.losses import k1_kl, k3_kl
from evolora.rewards import Scorer
from evolora.tasks.task import Example, columns_of, messages_of


@dataclass(frozen=True)
class Settings:
    """What each individual is refined with, all [k]."""

    lr: Tensor
    kl_weight: Tensor
    entropy_weight: Tensor


@dataclass(frozen=True)
class Rollout:
    """Sampled completions of k individuals, all tensors [k, rows, time] but `scores` [k, rows] and `features` [k, rows,
    time, hidden], which are there if the algorithm asks for them.

    `prompts` and `completions` are flat, [k * rows, ...]. `mask` is true on the tokens that count: those up to the
    first end of sequence, in rows that have a score. The completions of one prompt are consecutive rows.

    Without a KL penalty nobody asks the reference: its log-probabilities are the policy's, and `kl_measured` is false.
    `settings` are the individuals' own, None for the refiner's.
    """

    prompts: PromptBatch
    completions: Completions
    scores: Tensor
    mask: Tensor
    log_probs: Tensor
    reference_log_probs: Tensor
    features: Tensor | None
    failed: int
    kl_measured: bool = True
    settings: Settings | None = None

    @property
    def scored(self) -> Tensor:
        """Which rows have a score, [k, rows]."""
        return self.mask.any(-1)


def collect(
    population_model: PopulationModel,
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    genomes: Tensor,
    examples: Sequence[Example],
    seeds: Sequence[int],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    keep_features: bool,
    keep_tapes: bool,
    with_reference: bool,
    settings: Settings | None,
    dtype: torch.dtype,
) -> Rollout:
    """Sample and score `samples` completions of each example's prompt from each of `genomes` [k, genome_length], whose
    draws are those of its entry of `seeds` [k]; `keep_tapes` with the tapes of their decoding, `with_reference` with
    the log-probabilities under the reference. Scores are of `dtype`.

    Raises RewardError when the reward fails.
    """
    k, model = genomes.shape[0], population_model.model
    examples = [example for example in examples for _ in range(samples)]
    prompts = encode(tokenizer, [example.prompt for example in examples], model.device).repeat(k)
    of_rows = [np.random.default_rng(seed).integers(0, 2**63, len(examples), dtype=np.uint64) for seed in seeds]
    completions = population_generate(
        population_model,
        genomes,
        prompts,
        max_new_tokens=max_new_tokens,
        eos_token_ids=end_tokens(model, tokenizer),
        pad_token_id=pad_token(tokenizer),
        seeds=np.concatenate(of_rows),
        temperature=temperature,
        keep_features=keep_features,
        keep_tape=keep_tapes,
    )
    assert completions.log_probs is not None
    reference = completions.log_probs
    if with_reference:
        with torch.no_grad():
            reference, _ = population_log_probs(population_model, None, prompts, completions, temperature=temperature)
    scores = scorer.score(
        prompts=[example.prompt for example in examples] * k,
        completions=decode_text(tokenizer, completions),
        columns=columns_of(list(examples) * k),
        completion_ids=completions.rows(),
        groups=[row for row in range(k) for _ in examples],
        messages=messages_of(list(examples) * k),
    )
    found = torch.from_numpy(scores.rewards).to(dtype).to(model.device).unflatten(0, (k, -1))
    mask = completions.mask.unflatten(0, (k, -1)) & ~found.isnan()[..., None]
    return Rollout(
        prompts=prompts,
        completions=completions,
        scores=found.nan_to_num(),
        mask=mask,
        log_probs=completions.log_probs.unflatten(0, (k, -1)),
        reference_log_probs=reference.unflatten(0, (k, -1)),
        features=None if completions.features is None else completions.features.unflatten(0, (k, -1)),
        failed=int(scores.failed.sum()),
        kl_measured=with_reference,
        settings=settings,
    )


def texts(rollout: Rollout, part: Tensor) -> tuple[PromptBatch, Completions]:
    """Prompts and completions of the rows `part` of every individual, without features."""
    k, n_rows = rollout.scores.shape
    flat = (torch.arange(k, device=part.device)[:, None] * n_rows + part).flatten()
    prompts = PromptBatch(rollout.prompts.ids[flat], rollout.prompts.mask[flat])
    return prompts, select_rows(replace(rollout.completions, features=None), flat)


def statistics(rollout: Rollout) -> dict[str, Tensor]:
    """A rollout's metrics, as docs/metrics.md defines them, each [k]."""
    scored = rollout.mask.any(-1)
    rows = scored.sum(-1).clamp(min=1)
    stats = {
        "reward": (rollout.scores * scored).sum(-1) / rows,
        "length": rollout.mask.sum((-1, -2)) / rows,
    }
    if rollout.kl_measured:
        for name, estimator in (("kl", k1_kl), ("kl_k3", k3_kl)):
            kl = estimator(rollout.log_probs, rollout.reference_log_probs)
            stats[name] = (kl * rollout.mask).sum((-1, -2)) / rows
    return stats
