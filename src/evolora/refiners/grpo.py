"""Group relative policy optimisation: Shao et al., 2024 (DeepSeekMath), arXiv 2402.03300. With the normalisations of
DAPO (Yu et al., 2025, arXiv 2503.14476) and Dr. GRPO (Liu et al., 2025, arXiv 2503.20783).

Credit is per completion: its score against the other completions of its prompt. The KL penalty is part of the loss.
"""

from torch import Tensor

from evolora.refiners.advantages import equal_groups, group_advantages
from evolora.refiners.losses import grpo_loss
from evolora.refiners.options import GRPOConfig
from evolora.refiners.policy_gradient import Minibatch, PolicyGradientRefiner
from evolora.refiners.rollouts import Rollout


class GRPORefiner(PolicyGradientRefiner[GRPOConfig]):
    """GRPO of LoRA genomes against a Python reward, for k individuals in one batch, with the formulas of TRL's
    GRPOTrainer; the reference is the base model. There is no value head."""

    name = "grpo"

    def credit(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        size, scored = self.config.rollout_samples, rollout.scored
        advantages = group_advantages(rollout.scores, scored, group_size=size, scale=self.config.scale_rewards)
        return advantages, {"equal_groups": equal_groups(rollout.scores, scored, group_size=size)}

    def policy_loss(self, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        return grpo_loss(
            batch.log_probs,
            batch.old_log_probs,
            batch.reference_log_probs,
            batch.advantages,
            batch.mask,
            loss_type=self.config.loss_type,
            clip_range=self.config.clip_range,
            clip_range_high=self.config.upper_clip_range,
            kl_weight=batch.kl_weight,
            max_length=self.config.longest,
            batch_tokens=batch.batch_tokens,
            whole_logp=batch.whole_log_probs,
        )
