"""Proximal policy optimisation: Schulman et al., 2017, arXiv 1707.06347. On text: Ziegler et al., 2019, arXiv
1909.08593.

Credit is per token, by generalised advantage estimation over a value head. The KL penalty is part of the loss, as GRPO
has it, or of the reward, as Ziegler et al. and TRL's PPOTrainer have it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evolora.engine.base import Engine
from evolora.engine.progress import NOBODY, Reporter
from evolora.engine.text import Text
from evolora.fitness.base import Fitness
from evolora.refiners.advantages import equal_groups, generalized_advantages, whiten
from evolora.refiners.carried import Carried
from evolora.refiners.critic import Critic
from evolora.refiners.losses import (
    clipped_policy_loss,
    kl_terms,
    masked_mean,
    masked_variance,
    per_token_reward,
)
from evolora.refiners.options import PPOConfig
from evolora.refiners.policy_gradient import Minibatch, PolicyGradientRefiner
from evolora.refiners.rollouts import Rollout
from evolora.rewards import Scorer


class PPORefiner(PolicyGradientRefiner[PPOConfig]):
    """PPO of LoRA genomes against a Python reward, for k individuals in one batch, in the manner of TRL's PPOTrainer.

    The per-token KL against the base model is penalised, advantages come from a value head and GAE and are whitened,
    each individual's for itself.

    Used alone, on one adapter with a Python reward:

    >>> from evolora import PPOConfig
    >>> from evolora.models.base import load_base
    >>> from evolora.models.lora import lora_config, lora_layout
    >>> from evolora.refiners import PPORefiner
    >>> from evolora.rewards import RewardScorer
    >>> from evolora.engine.choose import choose_engine
    >>> from evolora.engine.text import Text
    >>> from evolora.tasks.task import Example
    >>> base = load_base("tiny-gpt2")
    >>> layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    >>> refiner = PPORefiner(
    ...     choose_engine(base.model, layout).engine,
    ...     Text.of(base.model, base.tokenizer),
    ...     RewardScorer(lambda completions: [float(len(text) < 8) for text in completions]),
    ...     PPOConfig(max_new_tokens=8),
    ...     seed=0,
    ... )
    >>> refined = refiner.refine(genome[None], [Example("4 + 3 =", {})] * 4)
    >>> bool((refined.genomes != genome).any())
    True
    """

    name = "ppo"
    keep_features = True

    def __init__(
        self,
        engine: Engine,
        text: Text,
        scorer: Scorer,
        config: PPOConfig,
        *,
        seed: int,
        dropout: float = 0.0,
        reporter: Reporter = NOBODY,
        fitness: Fitness | None = None,
    ) -> None:
        super().__init__(engine, text, scorer, config, seed=seed, dropout=dropout, reporter=reporter, fitness=fitness)
        self.critic = Critic(
            engine.hidden,
            lr=config.critic_lr,
            epochs=config.critic_epochs,
            clip_range=config.value_clip_range,
            dtype=self.dtype,
        )
        self._heads = self.critic.heads(0, engine.device)
        self._trained: dict[tuple[int, ...], Tensor] = {}

    def begin(self, carried: Sequence[Carried]) -> None:
        heads = self.critic.heads(len(carried), self.engine.device)
        own = [state.get("critic", head) for state, head in zip(carried, heads, strict=True)]
        self._heads = torch.stack([head.to(heads) for head in own])

    def credit(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        assert rollout.features is not None
        rewards = per_token_reward(
            rollout.scores,
            rollout.whole_log_probs,
            rollout.reference_log_probs,
            rollout.mask,
            kl_weight=self.settings(rollout).kl_weight if self.config.kl_place == "reward" else 0.0,
            estimator=self.config.kl_estimator,
        )
        values = self.critic.values(self._heads, rollout.features)
        advantages, returns = generalized_advantages(
            rewards, values, rollout.mask, discount=self.config.discount, trace_decay=self.config.trace_decay
        )
        self._heads, value_loss = self.critic.fit(self._heads, rollout.features, returns, rollout.mask)
        stats = {
            "value_loss": value_loss,
            "explained_variance": _explained_variance(values, returns, rollout.mask),
        }
        if (size := self.config.rollout_samples) > 1:
            stats["equal_groups"] = equal_groups(rollout.scores, rollout.scored, group_size=size)
        return whiten(advantages, rollout.mask & self.told_apart(rollout)[..., None]), stats

    def policy_loss(self, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, stats = clipped_policy_loss(
            batch.log_probs, batch.old_log_probs, batch.advantages, batch.mask, clip_range=self.config.clip_range
        )
        if self.config.kl_place == "loss" and bool(batch.kl_weight.any()):
            terms = kl_terms(
                batch.log_probs,
                batch.old_log_probs,
                batch.reference_log_probs,
                batch.mask,
                kl_weight=batch.kl_weight,
                whole_logp=batch.whole_log_probs,
            )
            loss = loss + masked_mean(terms, batch.mask)
        return loss, stats

    def end(self, key: Sequence[tuple[int, ...]]) -> None:
        self._trained |= dict(zip(key, self._heads.cpu(), strict=True))

    def settle(self) -> None:
        super().settle()
        self.critic.keep([head for _, head in sorted(self._trained.items(), key=lambda item: item[0])])
        self._trained.clear()

    def handed_on(self, row: int) -> dict[str, Tensor]:
        if self.config.critic == "shared":
            return {}
        head = self._heads[row]
        return {"critic": head.clone() if head.isfinite().all() else self.critic.shared.clone()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self.critic.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.critic.load_state_dict(state)


def _explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    return 1 - masked_variance(returns - values, mask) / (masked_variance(returns, mask) + 1e-8)
