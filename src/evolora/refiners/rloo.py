"""REINFORCE leave-one-out: Ahmadian et al., 2024, arXiv 2402.14740.

Credit is per completion: its score, less the KL penalty, against the mean of the other completions of its prompt. A
completion is one action, so the ratio that is clipped is that of whole completions.
"""

from torch import Tensor

from evolora.refiners.advantages import equal_groups, leave_one_out_advantages
from evolora.refiners.losses import k1_kl, sequence_policy_loss
from evolora.refiners.options import RLOOConfig
from evolora.refiners.policy_gradient import Minibatch, PolicyGradientRefiner
from evolora.refiners.rollouts import Rollout


class RLOORefiner(PolicyGradientRefiner[RLOOConfig]):
    """RLOO of LoRA genomes against a Python reward, for k individuals in one batch, with the formulas of TRL's
    RLOOTrainer; the reference is the base model. There is no value head."""

    name = "rloo"

    def credit(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        size, scored = self.config.rollout_samples, rollout.scored
        kl = k1_kl(rollout.whole_log_probs, rollout.reference_log_probs).where(rollout.mask, 0.0).sum(-1)
        advantages = leave_one_out_advantages(
            rollout.scores - self.settings(rollout).kl_weight[:, None] * kl,
            scored,
            group_size=size,
            normalize=self.config.normalize_advantages,
        )
        return advantages, {"equal_groups": equal_groups(rollout.scores, scored, group_size=size)}

    def policy_loss(self, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        return sequence_policy_loss(
            batch.log_probs,
            batch.old_log_probs,
            batch.advantages,
            batch.mask,
            clip_range=self.config.clip_range,
            clip_range_high=self.config.upper_clip_range,
        )
