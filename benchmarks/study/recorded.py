"""Options as the recorded runs of the study have them: by flat names, those of all types of strategy and refiner.

What a method's checksum is made of, so that runs which were recorded before options had parts count on.
"""

from collections.abc import Mapping
from typing import Any

from evolora.options import own_fields
from evolora.runs.options import RunOptions
from evolora.runs.parts import PARTS

# What those were called that had other names: by part, by type of strategy, by field.
_NAMES = {
    "lora.r": "lora_r", "lora.alpha": "lora_alpha", "lora.dropout": "lora_dropout",
    "reward.on_error": "on_reward_error", "reward.failed": "failed_reward", "reward.workers": "reward_workers",
    "reward.timeout": "reward_timeout", "reward.cache": "reward_cache",
    "human.host": "rating_host", "human.port": "rating_port",
    "budget.tokens": "budget_tokens", "budget.seconds": "budget_seconds", "budget.flops": "budget_flops",
    "es.scale": "es_scale", "es.lr": "es_lr", "eggroll.scale": "es_scale", "eggroll.lr": "es_lr",
    "eggroll.rank": "es_rank", "sep-cmaes.rate": "cma_rate",
    "pbt.share": "pbt_share", "pbt.resample": "pbt_resample", "pbt.spread": "pbt_spread",
}  # fmt: skip
# Which the recorded runs did not know.
_NEW = {"engine.type", "lora.exclude_modules"}
# Which had no value of their own: it followed from the others.
_FOLLOWED = frozenset(
    "accept refine refine_whom replay update_kl rl_steps rollout_prompts rollout_samples equal_groups kl_weight "
    "soup".split()
)


def recorded_options(options: RunOptions, words: Mapping[str, Any]) -> dict[str, Any]:
    """Every option by its flat name: what the words say, and otherwise its plain default, if it had one."""
    values: dict[str, Any] = {}
    for part, kinds in PARTS.items():
        for kind, model in kinds.items():
            for name, field in own_fields(model, part).items():
                if (flat := _flat(part, kind, name)) is not None:
                    followed = flat in _FOLLOWED or field.default_factory is not None
                    values.setdefault(flat, None if followed else field.default)
    vocabulary = options.vocabulary
    values |= {"strategy": options.strategy.type, "refiner": options.refiner.type}
    for word in words:
        part, name = vocabulary.place(word)
        values[str(_flat(part, vocabulary.types.get(part, ""), name))] = getattr(getattr(options, part), name)
    return values


def resolved_options(options: RunOptions) -> dict[str, Any]:
    """What the options come to that had no value of their own."""
    return {name: value for own in options.parts().values() for name, value in own.items() if name in _FOLLOWED}


def refiner_options() -> set[str]:
    """The flat names of all refiners' options, and of who is refined."""
    own = {name for kind in PARTS["refiner"].values() for name in own_fields(kind, "refiner")}
    return (own - {"type"}) | {"refiner", "refine", "refine_whom"}


def _flat(part: str, kind: str, name: str) -> str | None:
    if f"{part}.{name}" in _NEW:
        return None
    if name in ("name", "type"):
        return part
    return _NAMES.get(f"{kind}.{name}") or _NAMES.get(f"{part}.{name}") or name
