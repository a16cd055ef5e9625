"""Options that several of a population's parts are told."""

from evolora.options import Options, option


class PopulationOptions(Options):
    """How many there are."""

    pop: int = option(8, "individuals in the population", of="evolution", common=True, ge=2)
    elites: int = option(2, "individuals carried over unchanged", of="evolution", common=True, ge=1)


class HyperparameterOptions(Options):
    """The hyperparameters that an individual may have of its own."""

    lr: float = option(
        1e-3, "learning rate of the refiner, halfway through the run if it decays", of="refiner", common=True, gt=0
    )
    kl_weight: float = option(
        0.02,
        "weight of the KL penalty against the base model: on each token's loss (ppo, grpo; ppo's reward with "
        "--kl-place reward), on each completion's reward (rloo)",
        of="refiner",
        common=True,
        ge=0,
    )
    entropy_weight: float = option(0.0, "weight of an entropy bonus", of="refiner", ge=0)


class RolloutOptions(Options):
    """How much is written for a refinement."""

    rl_steps: int = option(3, "rollouts a refinement", of="refiner", common=True, ge=1)
    rollout_samples: int = option(1, "sampled completions a prompt", of="refiner", common=True, ge=1)
    rollout_prompts: int = option(
        help_text="prompts a rollout, for each refined individual; default 64 / --rollout-samples",
        of="refiner",
        common=True,
        default_factory=lambda before: max(1, 64 // before["rollout_samples"]),
        ge=1,
    )
