"""Options of the refiners. A refiner is its module and its model here, which says what it builds."""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from evolora.engine.options import CompletionOptions
from evolora.options import Options, option
from evolora.population.options import HyperparameterOptions, RolloutOptions

if TYPE_CHECKING:
    from torch import Tensor

    from evolora.refiners.base import Refiner

KLEstimator = Literal["k1", "k3"]
LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo"]
RewardScale = Literal["group", "batch", "none"]


class RefinerOptions(Options):
    """What every refiner's options are: a `type`, and what they build."""

    # module:class
    builds: ClassVar[str]

    type: str = option(common=True)

    def build(self, *parts: Any, reference: "Tensor | None" = None, **more: Any) -> "Refiner | None":
        """The refiner of these options, on `parts`: the engine, the text's side of it and the scorer; with the run's
        `seed`, the adapter's `dropout`, and the `reporter` that hears what it is at. `reference` is the genome that it
        keeps to, None for the base."""
        module, _, name = self.builds.partition(":")
        refiner: Refiner = getattr(importlib.import_module(module), name)(*parts, self, **more)
        if reference is not None:
            refiner.keep_to(reference)
        return refiner


class NoRefinerConfig(RefinerOptions):
    """No reinforcement learning: evolution alone."""

    type: Literal["none"] = option("none", "evolution alone", common=True)

    def build(self, *parts: Any, reference: "Tensor | None" = None, **more: Any) -> None:
        del parts, reference, more


class PolicyGradientConfig(RefinerOptions, CompletionOptions, RolloutOptions, HyperparameterOptions):
    """The options that all algorithms share."""

    lr_decay: float = option(
        1.0,
        "factor by which the learning rate falls, geometrically, from the run's beginning to its end; 1: it does not",
        ge=1,
    )
    epochs: int = option(2, "passes over each rollout", ge=1)
    minibatches: int = option(1, "optimiser steps a pass", ge=1)
    update_kl: float = option(
        0.0,
        "set the learning rate anew when the updates on three rollouts have moved the policy over 30 times as far as "
        "this or less than a 30th, in nats a completion, and take back those that move it by over 1 a token; 0: do "
        "not",
        ge=0,
    )
    keep_optimiser: bool = option(False, "Adam's moments and step count travel with the individual and to its children")
    replay: int = option(
        0,
        "after each rollout, imitate up to so many of the best completions that anybody in the run has written, on "
        "prompts where the policy earns less; the fewer, the more the rollout tells by itself; 0: none",
        ge=0,
    )
    fitness_first: bool = option(
        False,
        "where a --fitness beside the reward pays completions: follow it alone on prompts whose completions it tells "
        "apart, leave those that have all earned it, and follow the reward on the others",
    )
    equal_groups: Literal["skip", "keep"] = option(
        "keep", "prompts whose completions all earn the same: skip them in updates, or keep them"
    )
    mask_truncated: bool = option(
        False, "leave completions that were cut at the longest length out of updates; their rewards count"
    )
    clip_range: float = option(0.2, "clipping of the policy ratio", gt=0)
    kl_target: float | None = option(
        None,
        "KL from the base model, in nats a completion, toward which each individual's KL weight is adapted from "
        "--kl-weight on; none keeps the weight",
        gt=0,
    )
    kl_horizon: float = option(256.0, "completions in which --kl-target changes the KL weight by up to a fifth", gt=0)
    target_kl: float | None = option(
        0.1, "stop an individual's refinement when its policy has moved this far from its rollout's; none never", gt=0
    )
    max_grad_norm: float = option(1.0, "gradient clipping, for each individual", gt=0)

    @property
    def updates(self) -> int:
        """How many updates are made on a rollout."""
        return self.epochs * self.minibatches

    def go_together(self) -> None:
        super().go_together()
        if self.kl_target is not None and self.kl_weight == 0:
            raise ValueError(
                f"--kl-target {self.kl_target} with --kl-weight 0: expected a positive weight to begin with"
            )
        if self.equal_groups == "skip" and self.rollout_samples == 1:
            raise ValueError(
                "--equal-groups skip with one completion a prompt: expected --rollout-samples of at least 2"
            )
        if self.fitness_first and self.rollout_samples == 1:
            raise ValueError("one completion a prompt with --fitness-first: expected --rollout-samples of at least 2")
        if self.update_kl and self.updates == 1:
            raise ValueError(
                f"--update-kl {self.update_kl} with one update on a rollout: expected --epochs or --minibatches of at "
                "least 2, the second of which sees how far the first has moved the policy"
            )


class GroupConfig(PolicyGradientConfig):
    """The further options of algorithms that compare the completions of one prompt with each other."""

    rollout_samples: int = option(8, "sampled completions a prompt, a group to compare within", common=True, ge=1)
    clip_range_high: float | None = option(None, "clipping of the policy ratio above 1; default --clip-range", gt=0)

    @property
    def upper_clip_range(self) -> float:
        """How far above 1 a ratio is clipped: as far as below, unless told otherwise."""
        return self.clip_range if self.clip_range_high is None else self.clip_range_high

    def go_together(self) -> None:
        super().go_together()
        if self.rollout_samples < 2:
            raise ValueError(
                f"--rollout-samples {self.rollout_samples} with --refiner {self.type}: expected at least 2, a group to "
                "compare within"
            )


class PPOConfig(PolicyGradientConfig):
    """Options of PPO."""

    builds = "evolora.refiners.ppo:PPORefiner"

    type: Literal["ppo"] = option("ppo", "proximal policy optimisation, with a value head", common=True)
    critic: Literal["shared", "individual"] = option(
        "shared",
        "the value head that a refinement starts from: the mean of the last refinement's, or the individual's own, "
        "which travels to its children",
    )
    critic_lr: float = option(1e-2, "learning rate of the value head", gt=0)
    critic_epochs: int = option(8, "optimiser steps of the value head on each rollout", ge=1)
    value_clip_range: float = option(0.2, "clipping of the value's change", gt=0)
    kl_place: Literal["reward", "loss"] = option(
        "loss", "where the KL penalty stands: in each token's loss, as grpo has it, or in its reward"
    )
    kl_estimator: KLEstimator = option("k1", "estimator of the KL penalty in the reward; in the loss it is k3")
    discount: float = option(1.0, "discount of rewards, a token", gt=0, le=1)
    trace_decay: float = option(0.95, "lambda of generalised advantage estimation", ge=0, le=1)


class GRPOConfig(GroupConfig):
    """Options of GRPO."""

    builds = "evolora.refiners.grpo:GRPORefiner"

    type: Literal["grpo"] = option("grpo", "group relative policy optimisation", common=True)
    loss_type: LossType = option(
        "dapo",
        "what the sum over tokens is divided by: each completion's length, grpo; the minibatch's tokens, bnpo; a "
        "constant, dr_grpo; the rollout's tokens, dapo",
    )
    scale_rewards: RewardScale = option(
        "group", "whose standard deviation advantages are divided by: a prompt's group, the rollout, nobody (none)"
    )


class RLOOConfig(GroupConfig):
    """Options of RLOO."""

    builds = "evolora.refiners.rloo:RLOORefiner"

    type: Literal["rloo"] = option("rloo", "REINFORCE against the mean of the others", common=True)
    normalize_advantages: bool = option(False, "bring a rollout's advantages to mean 0 and standard deviation 1")


REFINERS: Mapping[str, type[RefinerOptions]] = {
    str(model.model_fields["type"].default): model for model in (PPOConfig, GRPOConfig, RLOOConfig, NoRefinerConfig)
}
"""Each refiner's options by its type, the default first."""
