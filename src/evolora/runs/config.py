"""Every option of a run, validated: from the command line, a TOML file or Python."""

from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from evolora.errors import InputError
from evolora.rewards.registry import HUMAN
from evolora.strategies.operators import ABSOLUTE_MUTATIONS, CrossoverName, MutationName


def _option(default: Any, help_text: str, group: str, **limits: Any) -> Any:
    return Field(default=default, description=help_text, json_schema_extra={"group": group}, **limits)


# They credit a completion against the others of its prompt.
GROUP_REFINERS = ("grpo", "rloo")


_MODEL, _TASK, _EVOLUTION, _REFINER, _RUN = "base model and LoRA", "task and reward", "evolution", "refiner", "run"


class RunConfig(BaseModel):
    """The options of a run. Each field is an option of `evolora train` (`--name-with-dashes`), a key of `config.toml`
    and an argument of `evolora.evolve`. docs/algorithms.md justifies the defaults.

    >>> RunConfig(gens=5, pop=4).elites
    2
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str = _option("tiny-gpt2", "base model: tiny-gpt2 (bundled), a folder or a hub name", _MODEL)
    device: str = _option("auto", "where to compute: auto (cuda where there is one), cpu, cuda, cuda:1", _MODEL)
    dtype: Literal["float32", "bfloat16", "float16"] = _option("float32", "precision of the base model", _MODEL)
    threads: int = _option(
        0, "CPU threads; 0 takes all cores, or half if a large model is measured to be faster", _MODEL, ge=0
    )
    products: Literal["auto", "torch", "compiled"] = _option(
        "auto",
        "what multiplies float32 matrices on a CPU: torch's own library, evolora's compiled products, or the faster",
        _MODEL,
    )
    lora_r: int = _option(8, "rank of the LoRA adapters", _MODEL, ge=1)
    lora_alpha: int = _option(16, "LoRA alpha: the adapter's output is scaled by alpha / r", _MODEL, ge=1)
    lora_dropout: float = _option(0.05, "dropout on the adapters' input during refinement", _MODEL, ge=0, lt=1)
    target_modules: list[str] | None = _option(
        None, "modules to adapt; default c_attn and c_proj for GPT-2, PEFT's own for others", _MODEL
    )
    chat_template: str | None = _option(
        None, "Jinja file of the chat template for data of chat messages; default: the tokenizer's own", _MODEL
    )
    rslora: bool = _option(False, "scale the adapters by alpha / sqrt(r)", _MODEL)

    task: str | None = _option(
        None,
        "bundled task: translate (default), arithmetic, sentiment, format; or 'gym:NAME(option=value, ...)', generated "
        "by reasoning-gym",
        _TASK,
    )
    data: str | None = _option(
        None, "JSONL or CSV file, or a folder of train/validation/test files, with a prompt column", _TASK
    )
    prompt: str | None = _option(None, "a single prompt to tune for", _TASK)
    target: str | None = _option(None, "the target of --prompt", _TASK)
    reward: str | None = _option(
        None,
        "what completions earn: a built-in reward, path.py:function, package.module:function, or several combined, "
        "such as 'chrf + 0.2 * brevity(limit=8)' (docs/rewards.md); human asks people on a page; default: the task's",
        _TASK,
    )
    on_reward_error: Literal["stop", "skip"] = _option(
        "stop",
        "when a reward raises, hangs, dies or returns no number: stop, or count the completion as failed",
        _TASK,
    )
    failed_reward: float = _option(0.0, "reward of a failed completion under --on-reward-error skip", _TASK)
    reward_workers: int = _option(
        0,
        "worker processes that call the reward, for one that is slow or not thread-safe; 0: this process",
        _TASK,
        ge=0,
    )
    reward_timeout: float | None = _option(
        None, "seconds that a reward may take for a completion (with --reward-workers); none: any time", _TASK, gt=0
    )
    reward_cache: bool = _option(
        True, "keep the values of slow rewards that say they are deterministic in the run's rewards.sqlite", _TASK
    )
    votes: int = _option(20, "votes that each generation waits for (with --reward human)", _TASK, ge=1)
    rating_host: str = _option(
        "127.0.0.1",
        "address on which the rating page answers (with --reward human); others can reach any but this",
        _TASK,
    )
    rating_port: int = _option(0, "port of the rating page (with --reward human); 0: a free one", _TASK, ge=0, le=65535)
    max_new_tokens: int | None = _option(None, "longest completion in tokens; default from the targets", _TASK, ge=1)
    temperature: float = _option(1.0, "sampling temperature of the rollouts", _TASK, gt=0)

    gens: int | None = _option(
        None, "most generations; default 20, or as many as fit into the budget where one is given", _EVOLUTION, ge=1
    )
    pop: int = _option(8, "individuals in the population", _EVOLUTION, ge=2)
    elites: int = _option(2, "individuals carried over unchanged", _EVOLUTION, ge=1)
    strategy: Literal["ga", "es", "eggroll", "sep-cmaes", "pbt", "random", "none"] = _option(
        "ga",
        "how the next population is proposed: ga; es, gradient ascent by noise around a mean; eggroll, the same by "
        "noise of low rank; sep-cmaes, which needs the package cmaes; pbt, which refines everybody and evolves the "
        "refiner's hyperparameters; random perturbations of the base; none, the refiner alone",
        _EVOLUTION,
    )
    pbt_share: float = _option(
        0.25, "share of the population that copies as many of the best (pbt)", _EVOLUTION, gt=0, le=0.5
    )
    pbt_resample: float = _option(
        0.05, "probability that a copy's hyperparameter is drawn anew, not perturbed (pbt)", _EVOLUTION, ge=0, le=1
    )
    pbt_spread: float = _option(
        3.0,
        "factor around --lr, --kl-weight and --entropy-weight within which hyperparameters are drawn (pbt)",
        _EVOLUTION,
        ge=1,
    )
    es_scale: float = _option(0.05, "standard deviation of the noise around the mean (es, eggroll)", _EVOLUTION, gt=0)
    es_lr: float = _option(3e-4, "learning rate of the mean (es, eggroll)", _EVOLUTION, gt=0)
    es_rank: int = _option(1, "rank of the noise on each LoRA factor (eggroll)", _EVOLUTION, ge=1)
    cma_rate: float = _option(0.2, "learning rate of the mean (sep-cmaes)", _EVOLUTION, gt=0, le=1)
    replacement: Literal["generational", "steady-state"] = _option(
        "generational",
        "who is replaced by children: all but the elites, or, steady-state, the worst --children",
        _EVOLUTION,
    )
    children: int = _option(1, "children a generation (with --replacement steady-state)", _EVOLUTION, ge=1)
    max_age: int | None = _option(
        None, "generations after which nobody is carried over any more, however fit; none: never", _EVOLUTION, ge=1
    )
    mutation: MutationName = _option(
        "gaussian",
        "noise on the weights: of absolute scale, gaussian; relative to each tensor's magnitude; on a third of the "
        "adapted layers, module; on a tenth of the weights, masked; on the singular values and directions of B A, svd",
        _EVOLUTION,
    )
    mutation_scale: float = _option(
        0.02, "standard deviation of the mutation (its start, when it adapts)", _EVOLUTION, gt=0
    )
    mutation_adapt: float = _option(
        0.0,
        "log-normal self-adaptation of each individual's mutation scale (0.2 is usual); 0 keeps it fixed",
        _EVOLUTION,
        ge=0,
    )
    mutation_rate: float = _option(
        1.0, "share of the children of two parents that are mutated too", _EVOLUTION, ge=0, le=1
    )
    refined_scale: Literal["keep", "step"] = _option(
        "keep",
        "mutation scale of the refined: keep, their parent's, or step, at most the size of their refinement",
        _EVOLUTION,
    )
    crossover: CrossoverName = _option(
        "uniform",
        "how two parents are mixed: by weights, uniform; by adapted layers, module; by transformer blocks, layer; by "
        "rank components, rank; by singular directions, svd; as the mean of the products, blend, or of random parts of "
        "the differences from the base, dare; or beyond the better one, extrapolative",
        _EVOLUTION,
    )
    crossover_rate: float = _option(0.5, "share of the children that have two parents", _EVOLUTION, ge=0, le=1)
    selection: Literal["truncation", "tournament", "rank"] = _option("tournament", "how parents are chosen", _EVOLUTION)
    diversity: Literal["none", "sharing"] = _option(
        "none", "sharing: parents are chosen by fitness shared with those near them", _EVOLUTION
    )
    niche_radius: float = _option(
        0.5, "how near, in units of the population's mean distance (with --diversity sharing)", _EVOLUTION, gt=0
    )
    islands: int = _option(1, "islands that the population is split into", _EVOLUTION, ge=1)
    migrate_every: int = _option(5, "generations between two migrations from island to island", _EVOLUTION, ge=1)
    average: float = _option(
        0.4,
        "the refined one's share in the running average of its lineage, an individual of its own; 0: there is none",
        _EVOLUTION,
        ge=0,
        lt=1,
    )
    eval_prompts: int = _option(16, "training prompts that measure the fitness of a generation", _EVOLUTION, ge=1)
    racing: float | None = _option(
        None,
        "let individuals race: after each --racing-block prompts those leave that lose at this error level; none: all "
        "meet all prompts",
        _EVOLUTION,
        gt=0,
        lt=1,
    )
    racing_block: int = _option(8, "prompts between two looks at a race", _EVOLUTION, ge=1)
    remember: bool = _option(
        True,
        "do not ask an unchanged individual again on an unchanged prompt (--no-remember: for rewards that vary)",
        _EVOLUTION,
    )
    accept: Literal["better", "always"] | None = _option(
        None, "which refined individuals enter; default better, and always with --strategy none or pbt", _EVOLUTION
    )

    refiner: Literal["ppo", "grpo", "rloo", "none"] = _option(
        "ppo", "how RL improves the best: ppo, grpo, rloo, none; an option marked with some is for them alone", _REFINER
    )
    refine: int | None = _option(
        None, "how many of the best are refined, side by side; default 1, and all with --strategy pbt", _REFINER, ge=1
    )
    refine_whom: Literal["lineage", "best"] | None = _option(
        None,
        "who is refined: the one that was refined last, until another is clearly better (lineage), or the generation's "
        "--refine best (best); default lineage with --strategy ga and --refine 1, else best",
        _REFINER,
    )
    replay: int | None = _option(
        None,
        "after each rollout, imitate up to so many of the best completions that anybody in the run has written, on "
        "prompts where the policy earns less; the fewer, the more the rollout tells by itself; default 64 with "
        "--strategy ga, else 0, none",
        _REFINER,
        ge=0,
    )
    lr: float = _option(1e-3, "learning rate of the refiner, halfway through the run if it decays", _REFINER, gt=0)
    lr_decay: float = _option(
        1.0,
        "factor by which the learning rate falls, geometrically, from the run's beginning to its end; 1: it does not",
        _REFINER,
        ge=1,
    )
    update_kl: float | None = _option(
        None,
        "set the learning rate anew when the updates on three rollouts have moved the policy over 30 times as far as "
        "this or less than a 30th, in nats a completion, and take back those that move it by over 1 a token; 0: do "
        "not; default 0.1 with --strategy ga and more than one update on a rollout, else 0",
        _REFINER,
        ge=0,
    )
    keep_optimiser: bool = _option(
        False, "Adam's moments and step count travel with the individual and to its children", _REFINER
    )
    critic: Literal["shared", "individual"] = _option(
        "shared",
        "the value head that a refinement starts from: the mean of the last refinement's, or the individual's own, "
        "which travels to its children (ppo)",
        _REFINER,
    )
    critic_lr: float = _option(1e-2, "learning rate of the value head (ppo)", _REFINER, gt=0)
    critic_epochs: int = _option(8, "optimiser steps of the value head on each rollout (ppo)", _REFINER, ge=1)
    rl_steps: int | None = _option(None, "rollouts a refinement; default 6 with --strategy ga, else 3", _REFINER, ge=1)
    rollout_prompts: int | None = _option(
        None, "prompts a rollout, for each refined individual; default 64 / --rollout-samples", _REFINER, ge=1
    )
    rollout_samples: int | None = _option(
        None,
        "sampled completions a prompt; default 4 with --strategy ga; else 1 for ppo, 8 for grpo and rloo, which need a "
        "group",
        _REFINER,
        ge=1,
    )
    equal_groups: Literal["skip", "keep"] | None = _option(
        None,
        "prompts whose completions all earn the same: skip them in updates, or keep them; default skip with --strategy "
        "ga and more than one completion a prompt, else keep",
        _REFINER,
    )
    epochs: int = _option(2, "passes over each rollout", _REFINER, ge=1)
    minibatches: int = _option(1, "optimiser steps a pass", _REFINER, ge=1)
    clip_range: float = _option(0.2, "clipping of the policy ratio", _REFINER, gt=0)
    clip_range_high: float | None = _option(
        None, "clipping of the policy ratio above 1; default --clip-range (grpo, rloo)", _REFINER, gt=0
    )
    value_clip_range: float = _option(0.2, "clipping of the value's change (ppo)", _REFINER, gt=0)
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = _option(
        "dapo",
        "what the sum over tokens is divided by: each completion's length, grpo; the minibatch's tokens, bnpo; a "
        "constant, dr_grpo; the rollout's tokens, dapo (grpo)",
        _REFINER,
    )
    scale_rewards: Literal["group", "batch", "none"] = _option(
        "group",
        "whose standard deviation advantages are divided by: a prompt's group, the rollout, nobody (grpo)",
        _REFINER,
    )
    normalize_advantages: bool = _option(
        False, "bring a rollout's advantages to mean 0 and standard deviation 1 (rloo)", _REFINER
    )
    kl_weight: float | None = _option(
        None,
        "weight of the KL penalty against the base model: on each token's loss (ppo, grpo; ppo's reward with "
        "--kl-place reward), on each completion's reward (rloo); default 0 with --strategy ga, else, and with "
        "--kl-target, 0.02",
        _REFINER,
        ge=0,
    )
    kl_target: float | None = _option(
        None,
        "KL from the base model, in nats a completion, toward which each individual's KL weight is adapted from "
        "--kl-weight on; none keeps the weight",
        _REFINER,
        gt=0,
    )
    kl_horizon: float = _option(
        256, "completions over which --kl-target changes the KL weight by at most a fifth", _REFINER, gt=0
    )
    kl_place: Literal["reward", "loss"] = _option(
        "loss", "where the KL penalty stands: in each token's loss, as grpo has it, or in its reward (ppo)", _REFINER
    )
    kl_estimator: Literal["k1", "k3"] = _option(
        "k1", "estimator of the KL penalty in the reward; in the loss it is k3 (ppo)", _REFINER
    )
    target_kl: float | None = _option(
        0.1,
        "stop an individual's refinement when its policy has moved this far from its rollout's; none never",
        _REFINER,
        gt=0,
    )
    discount: float = _option(1.0, "discount of rewards, a token (ppo)", _REFINER, gt=0, le=1)
    trace_decay: float = _option(0.95, "lambda of generalised advantage estimation (ppo)", _REFINER, ge=0, le=1)
    entropy_weight: float = _option(0.0, "weight of an entropy bonus", _REFINER, ge=0)
    max_grad_norm: float = _option(1.0, "gradient clipping, for each individual", _REFINER, gt=0)

    seed: int = _option(0, "seed of every random draw", _RUN, ge=0)
    out: str | None = _option(None, "run folder; default runs/<task>-<time>", _RUN)
    save_every: int = _option(5, "generations between checkpoints", _RUN, ge=1)
    validation_prompts: int = _option(
        64, "validation prompts that a generation's best is checked on; the finalists meet all", _RUN, ge=1
    )
    finalists: int = _option(4, "individuals that meet the whole validation split at the end", _RUN, ge=1)
    soup: int | None = _option(
        None,
        "finalists whose weights are averaged into one that wins unless the best beats it by more than a standard "
        "error, or rewards vary; 0: no soup; default --finalists where one lineage is refined, else 0",
        _RUN,
        ge=0,
    )
    vote: int = _option(
        1, "finalists that vote on the test split, by plurality of their completions; 1: no vote", _RUN, ge=1
    )
    budget_tokens: int | None = _option(
        None, "stop after the generation that has generated this many tokens", _RUN, ge=1
    )
    budget_seconds: float | None = _option(
        None, "stop after the generation at which the generations so far have taken this many seconds", _RUN, gt=0
    )
    budget_flops: float | None = _option(
        None, "stop after the generation that brings the model's nominal operations to this many", _RUN, gt=0
    )
    rows_per_slice: int | None = _option(
        None, "rows that go through the model together; default: what fits into memory, at most 512", _RUN, ge=1
    )
    draft_rows: int = _option(
        8, "most rows whose completions are drafted by their parent's and checked in one pass; 0 never", _RUN, ge=0
    )
    merge: bool = _option(False, "also write the winner merged into the base model", _RUN)

    @model_validator(mode="before")
    @classmethod
    def _none_is_no_value(cls, values: Any) -> Any:
        """Neither the command line nor TOML has a null: the word `none` is no value, but for free text."""
        if not isinstance(values, dict):
            return values
        words = {name for name, field in cls.model_fields.items() if _can_do_without(field)} - {"prompt", "target"}
        return {name: None if name in words and value == "none" else value for name, value in values.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.strategy not in ("none", "pbt") and self.elites >= self.pop:
            raise ValueError(f"--elites {self.elites}: expected fewer than --pop {self.pop}")
        if self.strategy == "pbt":
            if self.refine not in (None, self.pop):
                raise ValueError(f"--refine {self.refine} with --strategy pbt: expected --pop, {self.pop}: all train")
            if self.refiner == "none":
                raise ValueError("--refiner none with --strategy pbt: expected a refiner, which is what pbt tunes")
            if self.kl_target is not None:
                raise ValueError(
                    f"--kl-target {self.kl_target} with --strategy pbt: expected none, pbt sets the KL weight itself"
                )
        if self.kl_target is not None and self.kl_weight == 0:
            raise ValueError(
                f"--kl-target {self.kl_target} with --kl-weight 0: expected a positive weight to begin with"
            )
        if self.strategy != "none" and self.refined_individuals > self.pop:
            raise ValueError(f"--refine {self.refine}: expected at most --pop {self.pop}")
        # A step in weights says nothing about a scale of another kind.
        if self.refined_scale == "step" and self.mutation not in ABSOLUTE_MUTATIONS:
            raise ValueError(
                f"--refined-scale step with --mutation {self.mutation}: expected one of {', '.join(ABSOLUTE_MUTATIONS)}"
            )
        if self.strategy == "ga":
            self._check_ga()
        if self.strategy in ("es", "eggroll", "sep-cmaes") and self.pop < 3:
            raise ValueError(f"--pop {self.pop} with --strategy {self.strategy}: expected at least 3, a mean and two")
        if self.vote > self.finalists:
            raise ValueError(f"--vote {self.vote}: expected at most --finalists {self.finalists}")
        if self.soup is not None and (self.soup == 1 or self.soup > self.finalists):
            raise ValueError(f"--soup {self.soup}: expected 0, or from 2 to --finalists {self.finalists}")
        if self.strategy == "none" and self.refiner == "none":
            raise ValueError("--strategy none with --refiner none: expected at least one of them to change something")
        if self.refiner in GROUP_REFINERS and self.rollout_samples == 1:
            raise ValueError(
                f"--rollout-samples 1 with --refiner {self.refiner}: expected at least 2, a group to compare within"
            )
        if self.equal_groups == "skip" and self.samples_a_prompt == 1:
            raise ValueError(
                "--equal-groups skip with one completion a prompt: expected --rollout-samples of at least 2"
            )
        if self.update_kl and not self._sees_updates:
            raise ValueError(
                f"--update-kl {self.update_kl} with one update on a rollout: expected --epochs or --minibatches of at "
                "least 2, the second of which sees how far the first has moved the policy"
            )
        if self.refine_whom == "lineage" and self.refined_individuals > 1:
            raise ValueError(f"--refine-whom lineage with --refine {self.refined_individuals}: expected --refine 1")
        if self.reward_timeout is not None and not self.reward_workers:
            raise ValueError(
                f"--reward-timeout {self.reward_timeout} with --reward-workers 0: expected at least one worker, which "
                "can be stopped"
            )
        if self.racing is not None and self.reward == HUMAN:
            raise ValueError(
                f"--racing {self.racing} with --reward human: expected none, votes come once all have written"
            )
        if self.target is not None and self.prompt is None:
            raise ValueError("--target: expected --prompt beside it")
        chosen = [name for name in ("task", "data", "prompt") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(f"--{chosen[0]} with --{chosen[1]}: expected one of them")
        return self

    def _check_ga(self) -> None:
        if self.replacement == "steady-state" and self.children > self.pop - self.elites:
            raise ValueError(
                f"--children {self.children}: expected at most --pop {self.pop} less --elites {self.elites}"
            )
        if self.islands > 1:
            smallest, kept = self.pop // self.islands, -(-self.elites // self.islands)
            if kept >= smallest:
                raise ValueError(
                    f"--islands {self.islands}: found {smallest} individuals on the smallest, expected more than its "
                    f"elites, {kept}"
                )
            if self.replacement == "steady-state" and -(-self.children // self.islands) > smallest - kept:
                raise ValueError(
                    f"--children {self.children}: expected at most {(smallest - kept) * self.islands} with "
                    f"--islands {self.islands}"
                )

    @property
    def most_gens(self) -> int | None:
        """After how many generations a run ends; None when only its budget ends it.

        >>> RunConfig().most_gens, RunConfig(budget_flops=1e15).most_gens, RunConfig(gens=5, budget_flops=1).most_gens
        (20, None, 5)
        """
        budgets = (self.budget_tokens, self.budget_seconds, self.budget_flops)
        return 20 if self.gens is None and all(budget is None for budget in budgets) else self.gens

    @property
    def replayed(self) -> int:
        """How many completions are imitated after a rollout: a population's by default, none of one policy's own."""
        if self.replay is not None:
            return self.replay
        # What people are thought to want changes with every vote: what was best before need not be.
        return 64 if self.strategy == "ga" and self.reward != HUMAN else 0

    @property
    def samples_a_prompt(self) -> int:
        """How many completions of a prompt a rollout samples."""
        default = 4 if self.strategy == "ga" else 8 if self.refiner in GROUP_REFINERS else 1
        return self.rollout_samples or default

    @property
    def equal_group_rule(self) -> str:
        """What updates do with prompts whose completions all earn the same."""
        return self.equal_groups or ("skip" if self.strategy == "ga" and self.samples_a_prompt > 1 else "keep")

    @property
    def kl_penalty(self) -> float:
        """The weight of the KL penalty: none where evolution keeps what is better, unless it is asked for."""
        if self.kl_weight is not None:
            return self.kl_weight
        return 0.0 if self.strategy == "ga" and self.kl_target is None else 0.02

    @property
    def led_update_kl(self) -> float:
        """The KL of a rollout's updates, in nats a completion, that the learning rate is led by; 0: it is not led."""
        if self.update_kl is not None:
            return self.update_kl
        return 0.1 if self.strategy == "ga" and self._sees_updates else 0.0

    @property
    def _sees_updates(self) -> bool:
        return self.epochs * self.minibatches > 1

    @property
    def rollouts_a_refinement(self) -> int:
        """How many rollouts a refinement has: more where there is a whole population to be evaluated between two."""
        return self.rl_steps or (6 if self.strategy == "ga" else 3)

    @property
    def prompts_a_rollout(self) -> int:
        """How many prompts a rollout has: 64 completions in all, unless told otherwise."""
        return self.rollout_prompts or max(1, 64 // self.samples_a_prompt)

    @property
    def refined_individuals(self) -> int:
        """How many individuals are refined in a generation."""
        return self.refine or (self.pop if self.strategy == "pbt" else 1)

    @property
    def refine_whom_rule(self) -> str:
        """Who is refined."""
        one = self.strategy == "ga" and self.refined_individuals == 1
        return self.refine_whom or ("lineage" if one else "best")

    @property
    def accept_rule(self) -> str:
        """Which refined individuals enter."""
        follows = self.refine_whom_rule == "lineage"
        return self.accept or ("always" if follows or self.strategy in ("none", "pbt") else "better")

    @property
    def finalists_in_soup(self) -> int:
        """How many finalists are averaged at the end: those of one lineage lie close enough together."""
        if self.soup is not None:
            return self.soup
        one_lineage = self.refine_whom_rule == "lineage" and self.refiner != "none"
        return self.finalists if one_lineage and self.finalists > 1 else 0

    def resolved(self) -> dict[str, Any]:
        """The options whose defaults depend on others, as they come out."""
        return {
            "accept": self.accept_rule,
            "replay": self.replayed,
            "refine_whom": self.refine_whom_rule,
            "refine": self.refined_individuals,
            "rollout_samples": self.samples_a_prompt,
            "rollout_prompts": self.prompts_a_rollout,
            "equal_groups": self.equal_group_rule,
            "update_kl": self.led_update_kl,
            "kl_weight": self.kl_penalty,
            "rl_steps": self.rollouts_a_refinement,
            "soup": self.finalists_in_soup,
        }


def make_config(options: dict[str, Any]) -> RunConfig:
    """A validated configuration. Raises InputError, one sentence by the option's name, for the first fault."""
    try:
        return RunConfig(**options)
    except ValidationError as error:
        raise InputError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    fault = error.errors()[0]
    if not fault["loc"]:
        return str(fault["msg"]).removeprefix("Value error, ")
    option = option_name(str(fault["loc"][0]))
    if fault["type"] == "extra_forbidden":
        return f"{option}: found an unknown option, expected one of those that 'evolora train --help' lists"
    message = str(fault["msg"])
    return f"{option} {fault['input']}: {message[0].lower()}{message[1:]}"


def option_name(field: str) -> str:
    """The option of a field.

    >>> option_name("save_every")
    '--save-every'
    """
    return "--" + field.replace("_", "-")


def _can_do_without(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)
