"""The methods as options of `evolora.evolve`, and what they are compared for.

A method whose options this version refuses is left out of a study with a message, no other fault is.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evolora.refiners.options import PolicyGradientConfig
from evolora.runs.options import make_options
from study.recorded import recorded_options, refiner_options, resolved_options

Options = dict[str, Any]
Role = Literal["hybrid", "single", "reference", "learning rate", "ablation", "beside", "variant"]

_DEFAULTS = make_options().refiner
assert isinstance(_DEFAULTS, PolicyGradientConfig)
DEFAULT_LR = _DEFAULTS.lr
# What the hybrid's learning rate is led by.
DEFAULT_UPDATE_KL = _DEFAULTS.update_kl

# What PPO alone and GRPO alone are tuned over, for each task on seeds of its own.
SEARCH_GRID: tuple[Options, ...] = tuple(
    {"lr": lr, "kl_weight": kl_weight} for lr in (3e-4, 1e-3, 3e-3) for kl_weight in (0.0, 0.02)
)
SEARCH_SEEDS = (1000, 1001)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of the study.

    `kind` says who runs it: `evolve`, or a loop of the study's own. `searched`: its learning rate and KL weight are
    those of `SEARCH_GRID` that were best on `SEARCH_SEEDS`. `role` says what its figures are for: `single` methods are
    what the hybrid must beat, a `reference` is shown only, a `variant` is another way for evolution to meet RL.
    `beside` names the method that an ablation or a variant is compared with.
    """

    name: str
    title: str
    role: Role
    options: Options = field(default_factory=dict)
    kind: Literal["evolve", "sketch", "best-of-n"] = "evolve"
    searched: bool = False
    beside: str = "hybrid"


def _ablation(ingredient: str, title: str, options: Options, *, beside: str = "hybrid-no-soup") -> Method:
    """The loop without an ingredient; the soup comes after the loop, and neither side has it but beside the hybrid."""
    name, title = f"hybrid-no-{ingredient}", f"hybrid {title}"
    options = options if beside == "hybrid" else {"soup": 0, **options}
    return Method(name=name, title=title, role="ablation", options=options, beside=beside)


def _variant(name: str, title: str, options: Options, *, beside: str = "hybrid") -> Method:
    return Method(name=f"hybrid-{name}", title=f"hybrid {title}", role="variant", options=options, beside=beside)


_METHODS = (
    Method(name="hybrid", title="hybrid (the defaults)", role="hybrid"),
    Method(name="ga-alone", title="GA alone", role="single", options={"refiner": "none"}),
    Method(name="ppo-alone", title="PPO alone", role="single", options={"strategy": "none"}, searched=True),
    Method(
        name="grpo-alone",
        title="GRPO alone",
        role="single",
        options={"strategy": "none", "refiner": "grpo"},
        searched=True,
    ),
    Method(name="es", title="OpenAI-ES", role="single", options={"strategy": "es", "refiner": "none"}),
    Method(name="eggroll", title="EGGROLL", role="single", options={"strategy": "eggroll", "refiner": "none"}),
    Method(name="sep-cmaes", title="sep-CMA-ES", role="single", options={"strategy": "sep-cmaes", "refiner": "none"}),
    Method(name="pbt", title="PBT", role="single", options={"strategy": "pbt"}),
    Method(
        name="random", title="random perturbation", role="single", options={"strategy": "random", "refiner": "none"}
    ),
    Method(name="best-of-n", title="best of n from the base", role="reference", kind="best-of-n"),
    Method(name="sketch", title="the first sketch, repaired", role="reference", kind="sketch"),
    Method(
        name="ppo-replay", title="PPO alone with replay", role="reference", options={"strategy": "none", "replay": 64}
    ),
    Method(
        name="ppo-led",
        title="PPO alone, its rate led by its updates",
        role="reference",
        options={"strategy": "none", "update_kl": DEFAULT_UPDATE_KL},
    ),
    Method(
        name="grpo-default",
        title="GRPO alone, default rate",
        role="reference",
        options={"strategy": "none", "refiner": "grpo"},
    ),
    Method(
        name="ppo-soup",
        title="PPO alone, with the soup of its finalists",
        role="reference",
        options={"strategy": "none", "soup": 4},
    ),
    Method(name="ppo-default", title="PPO alone, default rate", role="reference", options={"strategy": "none"}),
    Method(name="hybrid-lr-high", title="hybrid, rate x 10", role="learning rate", options={"lr": DEFAULT_LR * 10}),
    Method(name="hybrid-lr-low", title="hybrid, rate / 10", role="learning rate", options={"lr": DEFAULT_LR / 10}),
    Method(
        name="ppo-lr-high",
        title="PPO alone, rate x 10",
        role="learning rate",
        options={"strategy": "none", "lr": DEFAULT_LR * 10},
    ),
    Method(
        name="ppo-lr-low",
        title="PPO alone, rate / 10",
        role="learning rate",
        options={"strategy": "none", "lr": DEFAULT_LR / 10},
    ),
    _variant("grpo", "with GRPO", {"refiner": "grpo"}),
    _variant("kl", "with a KL penalty", {"kl_weight": 0.02}),
    _variant("gated", "whose refined enter only if they are no worse on unseen prompts (ERL)", {"accept": "better"}),
    _variant(
        "scales",
        "without the soup, whose mutation scales adapt, to steps of RL too",
        {"soup": 0, "mutation_adapt": 0.2, "refined_scale": "step"},
        beside="hybrid-no-soup",
    ),
    _variant("unled", "whose learning rate is not led by its updates", {"update_kl": 0.0}),
    # What the hybrid has and PPO alone has not: LoRA dropout and PPO's early stop belong to both.
    _ablation("soup", "without the soup of its finalists", {"soup": 0}, beside="hybrid"),
    _ablation("lineage", "that refines each generation's best", {"refine_whom": "best"}),
    _ablation("average", "without the lineage's average", {"average": 0.0}),
    # Both average: one may do the other's work.
    _ablation("average-but-soup", "with the soup, without the lineage's average", {"average": 0.0}, beside="hybrid"),
    _ablation("replay", "without replay", {"replay": 0}),
    _ablation("groups", "with one completion a prompt", {"rollout_samples": 1}),
    _ablation("skipping", "that updates on equal groups too", {"equal_groups": "keep"}),
    # It guards against a wrong rate, so what it is worth shows at one.
    Method(
        name="hybrid-no-soup-lr-high",
        title="hybrid without the soup, rate x 10",
        role="beside",
        options={"soup": 0, "lr": DEFAULT_LR * 10},
    ),
    _ablation(
        "led-rate",
        "at ten times the rate, which is not led by its updates",
        {"update_kl": 0.0, "lr": DEFAULT_LR * 10},
        beside="hybrid-no-soup-lr-high",
    ),
    _ablation("crossover", "without crossover", {"crossover_rate": 0.0}),
    _ablation("mutation", "whose children are crossed only", {"crossover_rate": 1.0, "mutation_rate": 0.0}),
)
METHODS: dict[str, Method] = {method.name: method for method in _METHODS}
SINGLE_METHODS = tuple(method.name for method in _METHODS if method.role == "single")
REFERENCES = tuple(method.name for method in _METHODS if method.role == "reference")
VARIANTS = tuple(method.name for method in _METHODS if method.role == "variant")
BESIDE = tuple(method.name for method in _METHODS if method.role == "beside")
ABLATIONS = tuple(method.name for method in _METHODS if method.role == "ablation")
MAIN_METHODS = ("hybrid", *SINGLE_METHODS, *REFERENCES)
# Without a search the single methods have their defaults already.
QUICK_METHODS = ("hybrid", *SINGLE_METHODS, "best-of-n", "sketch")

# Where a run is, how long it is and what it is made of, rather than how it works.
_NO_PART_OF_A_METHOD = frozenset(
    "model device dtype threads products task data prompt target reward on_reward_error failed_reward max_new_tokens "
    "gens seed out save_every keep budget_tokens budget_seconds budget_flops rows_per_slice draft_rows merge "
    "chat_template reward_workers reward_timeout reward_cache votes rating_host rating_port".split()
)
_OF_THE_GA = frozenset(
    "pop elites mutation mutation_scale mutation_adapt mutation_rate refined_scale crossover crossover_rate selection "
    "racing racing_block average refine_whom islands migrate_every niche_radius children".split()
)
# Options that are gone, as the recorded runs of the methods above had them: they count on, so that what works as it did
# keeps its checksum.
_GONE: Options = {
    "inheritance": "lamarckian",
    "operator_choice": "fixed",
    "safe_change": 0.1,
    "safe_prompts": 16,
    "safe_projections": 4,
    "distill_steps": 4,
    "distill_lr": 1e-3,
}
# Options whose defaults the strategy decides.
_LEFT_TO_THE_STRATEGY = ("replay", "rollout_samples", "rollout_prompts", "equal_groups", "update_kl")


def options_sha256(method: Method, options: Mapping[str, Any]) -> str:
    """A short checksum of how a method works: of the options that this version resolves its own to, so that a run made
    with other defaults is not taken for one with today's.

    An option that is off (None, False, 0) does not count, so that a new one leaves earlier runs valid; nor do the
    genetic algorithm's without a strategy, the refiner's without a refiner, or the others' block size.

    Raises InputError when this version refuses the options.
    """
    if method.kind != "evolve":
        works: Mapping[str, Any] = dict(options)
    else:
        config = make_options(options)
        values = recorded_options(config, options)
        unused = set(_NO_PART_OF_A_METHOD)
        if config.strategy.type == "none":
            unused |= _OF_THE_GA
        if config.refiner.type == "none":
            unused |= refiner_options() - {"refiner"}
        if config.refiner.type != "ppo":
            unused |= {"kl_place"}
        if config.evolution.racing is None:
            unused |= {"racing_block"}
        if values["lr_decay"] == 1:
            unused |= {"lr_decay"}
        if config.evolution.refined_scale == "keep":
            unused |= {"refined_scale"}
        resolved = resolved_options(config)
        values |= {name: resolved[name] for name in ("kl_weight", "rl_steps") if name in resolved}
        works = _GONE | {name: value for name, value in values.items() if name not in unused and value}
        if config.strategy.type == "ga" and config.refiner.type != "none":
            # What the hybrid's defaults come to: options that are left out leave them to the strategy.
            works |= {name: resolved[name] for name in _LEFT_TO_THE_STRATEGY}
            # Off it does not count, as anything that is off.
            works |= {"soup": resolved["soup"]} if resolved["soup"] else {}
    return hashlib.sha256(json.dumps([method.kind, works], sort_keys=True).encode()).hexdigest()[:12]
