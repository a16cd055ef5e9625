"""Policy-gradient refinement of k individuals side by side: rollouts, advantages, clipped updates on their own rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evolora.population_model import PopulationModel
from evolora.refiners.advantages import generalized_advantages, whiten
from evolora.refiners.base import Refinement
from evolora.refiners.critic import Critic
from evolora.refiners.losses import clipped_policy_loss, k1_kl, k3_kl, masked_mean, masked_variance, per_token_reward
from evolora.rewards import RewardScorer
from evolora.rng import keyed_generator, keyed_seed
from evolora.rollout import (
    Completions,
    PromptBatch,
    completion_log_probs,
    decode_text,
    encode,
    end_tokens,
    generate,
    pad_token,
    select_rows,
)
from evolora.task import Example, columns_of


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Options of PPO; names and defaults are those of `RunConfig`, where each is described."""

    lr: float = 1e-3
    critic_lr: float = 1e-2
    critic_epochs: int = 8
    rl_steps: int = 3
    rollout_samples: int = 1
    epochs: int = 2
    minibatches: int = 1
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    kl_weight: float = 0.02
    kl_estimator: Literal["k1", "k3"] = "k1"
    target_kl: float | None = 0.1
    discount: float = 1.0
    trace_decay: float = 0.95
    entropy_weight: float = 0.0
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    max_new_tokens: int = 20


@dataclass(frozen=True)
class Rollout:
    """Sampled completions of k individuals, all tensors [k, rows, time] but `scores` [k, rows].

    `prompts` and `completions` are flat, [k * rows, ...]. `mask` is true on the tokens that count: those up to the
    first end of sequence, in rows that have a score.
    """

    prompts: PromptBatch
    completions: Completions
    scores: Tensor
    mask: Tensor
    log_probs: Tensor
    reference_log_probs: Tensor
    features: Tensor
    failed: int


class PPORefiner:
    """Proximal policy optimisation (Schulman et al., 2017, arXiv 1707.06347) of LoRA genomes against a Python reward,
    for k individuals in one batch: in the manner of Ziegler et al., 2019 (arXiv 1909.08593) and of TRL's PPOTrainer.

    Each step samples completions from every individual, penalises their per-token KL against the base model (the
    adapters off), estimates advantages with a value head and GAE, whitens them, and makes clipped updates of the
    individuals' rows by Adam. Individuals share the batch and nothing else: losses, whitening, gradient clipping and
    early stopping are each individual's own.

    Used alone, on one adapter with a Python reward:

    >>> from evolora import PopulationModel, PPOConfig, PPORefiner, RewardScorer, load_base, lora_config, lora_layout
    >>> from evolora.task import Example
    >>> base = load_base("tiny-gpt2")
    >>> layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    >>> refiner = PPORefiner(
    ...     PopulationModel(base.model, layout),
    ...     base.tokenizer,
    ...     RewardScorer(lambda completions: [float(len(text) < 8) for text in completions]),
    ...     PPOConfig(max_new_tokens=8),
    ...     seed=0,
    ... )
    >>> refined = refiner.refine(genome[None], [Example("4 + 3 =", {})] * 4, key=[(0, 0)])
    >>> bool((refined.genomes != genome).any())
    True
    """

    def __init__(
        self,
        population_model: PopulationModel,
        tokenizer: PreTrainedTokenizerBase,
        scorer: RewardScorer,
        config: PPOConfig,
        *,
        seed: int,
    ) -> None:
        self.population_model = population_model
        self.model = population_model.model
        self.tokenizer = tokenizer
        self.scorer = scorer
        self.config = config
        self.seed = seed
        self.critic = Critic(
            self.model.get_output_embeddings().weight.shape[1],
            lr=config.critic_lr,
            epochs=config.critic_epochs,
            clip_range=config.value_clip_range,
            dtype=torch.float64 if self.model.dtype == torch.float64 else torch.float32,
        )

    def refine(self, genomes: Tensor, examples: Sequence[Example], *, key: Sequence[tuple[int, int]]) -> Refinement:
        """Refine `genomes` [k, genome_length] on the prompts of `examples`; see `Refiner.refine`.

        Raises RewardError when the reward fails.
        """
        if len(key) != genomes.shape[0]:
            raise ValueError(f"{genomes.shape[0]} genomes with {len(key)} keys")
        rows = genomes.detach().to(self.model.device).clone().requires_grad_()
        optimiser = torch.optim.Adam([rows], lr=self.config.lr)
        heads = self.critic.heads(rows.shape[0], self.model.device)
        stopped = torch.zeros(rows.shape[0], dtype=torch.bool, device=rows.device)
        stats: list[dict[str, float]] = [{} for _ in key]
        tokens = failed = 0
        for step in range(self.config.rl_steps):
            rollout = self.collect(rows.detach(), examples, [(*each, step) for each in key])
            tokens += rollout.completions.tokens
            failed += rollout.failed
            rewards = per_token_reward(
                rollout.scores,
                rollout.log_probs,
                rollout.reference_log_probs,
                rollout.mask,
                kl_weight=self.config.kl_weight,
                estimator=self.config.kl_estimator,
            )
            values = self.critic.values(heads, rollout.features)
            advantages, returns = generalized_advantages(
                rewards, values, rollout.mask, discount=self.config.discount, trace_decay=self.config.trace_decay
            )
            advantages = whiten(advantages, rollout.mask)
            # An early stop ends the updates on one rollout: the next rollout starts from a policy that is on target.
            stopped.zero_()
            update_stats = self._update(rows, optimiser, rollout, advantages, stopped, (key[0][0], step))
            heads, value_loss = self.critic.fit(heads, rollout.features, returns, rollout.mask)
            measured = {
                **_rollout_stats(rollout),
                **update_stats,
                "value_loss": value_loss,
                "explained_variance": _explained_variance(values, returns, rollout.mask),
            }
            stats = [{name: float(value[row]) for name, value in measured.items()} for row in range(len(key))]
        self.critic.keep(heads)
        return Refinement(rows.detach().to(genomes.device), stats, tokens, failed)

    def collect(self, genomes: Tensor, examples: Sequence[Example], key: Sequence[tuple[int, int, int]]) -> Rollout:
        """Sample and score completions of `genomes` [k, genome_length]; `key` is (generation, individual, step)."""
        k, config = genomes.shape[0], self.config
        examples = [example for example in examples for _ in range(config.rollout_samples)]
        prompts = encode(self.tokenizer, [example.prompt for example in examples], self.model.device).repeat(k)
        seeds = np.concatenate(
            [
                np.random.default_rng(keyed_seed(self.seed, "rollout", *each)).integers(
                    0, 2**63, len(examples), dtype=np.uint64
                )
                for each in key
            ]
        )
        with self.population_model.adapted(genomes):
            completions = generate(
                self.model,
                prompts,
                max_new_tokens=config.max_new_tokens,
                eos_token_ids=end_tokens(self.model, self.tokenizer),
                pad_token_id=pad_token(self.tokenizer),
                seeds=seeds,
                temperature=config.temperature,
                keep_features=True,
            )
        with torch.no_grad():
            reference, _ = completion_log_probs(self.model, prompts, completions, temperature=config.temperature)
        assert completions.log_probs is not None
        assert completions.features is not None
        scores = self.scorer.score(
            prompts=[example.prompt for example in examples] * k,
            completions=decode_text(self.tokenizer, completions),
            columns=columns_of(list(examples) * k),
            completion_ids=completions.rows(),
        )
        found = (
            torch.from_numpy(scores.rewards).to(self.critic.shared.dtype).to(self.model.device).unflatten(0, (k, -1))
        )
        mask = completions.mask.unflatten(0, (k, -1)) & ~found.isnan()[..., None]
        return Rollout(
            prompts=prompts,
            completions=completions,
            scores=found.nan_to_num(),
            mask=mask,
            log_probs=completions.log_probs.unflatten(0, (k, -1)),
            reference_log_probs=reference.unflatten(0, (k, -1)),
            features=completions.features.unflatten(0, (k, -1)),
            failed=int(scores.failed.sum()),
        )

    def _update(
        self,
        rows: Tensor,
        optimiser: torch.optim.Optimizer,
        rollout: Rollout,
        advantages: Tensor,
        stopped: Tensor,
        key: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Clipped updates of `rows` [k, genome_length], in place; the means of their statistics, each [k]."""
        k, n_rows = rollout.scores.shape
        sums: dict[str, Tensor] = {}
        updates = torch.zeros(k, device=rows.device)
        for epoch in range(self.config.epochs):
            order = torch.randperm(n_rows, generator=keyed_generator(self.seed, "minibatch", *key, epoch))
            for index, part in enumerate(order.chunk(self.config.minibatches)):
                seed = keyed_seed(self.seed, "dropout", *key, epoch, index)
                losses = self._losses(rows, rollout, advantages, part.to(rows.device), seed)
                over = losses["approx_kl"] > (self.config.target_kl or torch.inf)
                stopped |= over
                optimiser.zero_grad()
                losses.pop("loss").sum().backward()
                losses["grad_norm"] = self._clip_gradients(rows)
                before = rows.detach().clone()
                optimiser.step()
                with torch.no_grad():
                    # A diverged row stops too. Adam's momentum would carry a stopped row on.
                    stopped |= ~rows.isfinite().all(dim=1)
                    rows[stopped] = before[stopped]
                updates += ~stopped
                for name, value in losses.items():
                    sums[name] = sums.get(name, torch.zeros_like(updates)) + value.detach().where(~stopped, 0.0)
            if stopped.all():
                break
        means = {name: value / updates.clamp(min=1) for name, value in sums.items()}
        return {**means, "updates": updates, "stopped": stopped.float()}

    def _losses(self, rows: Tensor, rollout: Rollout, advantages: Tensor, part: Tensor, seed: int) -> dict[str, Tensor]:
        """The loss and its statistics on some rows of the rollout, each [k]."""
        k, n_rows = rollout.scores.shape
        flat = (torch.arange(k, device=part.device)[:, None] * n_rows + part).flatten()
        prompts = PromptBatch(rollout.prompts.ids[flat], rollout.prompts.mask[flat])
        completions = select_rows(replace(rollout.completions, features=None), flat)
        mask = rollout.mask[:, part]
        with torch.random.fork_rng(devices=[]), self.population_model.adapted(rows, dropout=True):
            torch.manual_seed(seed)
            log_probs, entropy = completion_log_probs(
                self.model, prompts, completions, temperature=self.config.temperature
            )
        log_probs, entropy = log_probs.unflatten(0, (k, -1)), entropy.unflatten(0, (k, -1))
        policy_loss, policy_stats = clipped_policy_loss(
            log_probs, rollout.log_probs[:, part], advantages[:, part], mask, clip_range=self.config.clip_range
        )
        mean_entropy = masked_mean(entropy, mask)
        loss = policy_loss - self.config.entropy_weight * mean_entropy
        return {"loss": loss, "policy_loss": policy_loss, "entropy": mean_entropy, **policy_stats}

    def _clip_gradients(self, rows: Tensor) -> Tensor:
        """Clip each row's gradient to its own norm; the norms before, [k]."""
        assert rows.grad is not None
        norms: Tensor = rows.grad.norm(dim=1)
        rows.grad *= (self.config.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)[:, None]
        return norms

    def state_dict(self) -> dict[str, Tensor]:
        return self.critic.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.critic.load_state_dict(state)


def _rollout_stats(rollout: Rollout) -> dict[str, Tensor]:
    scored = rollout.mask.any(-1)
    kl = k1_kl(rollout.log_probs, rollout.reference_log_probs)
    k3 = k3_kl(rollout.log_probs, rollout.reference_log_probs)
    rows = scored.sum(-1).clamp(min=1)
    return {
        "reward": (rollout.scores * scored).sum(-1) / rows,
        "kl": (kl * rollout.mask).sum((-1, -2)) / rows,
        "kl_k3": (k3 * rollout.mask).sum((-1, -2)) / rows,
        "length": rollout.mask.sum((-1, -2)) / rows,
    }


def _explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    return 1 - masked_variance(returns - values, mask) / (masked_variance(returns, mask) + 1e-8)
