"""The parts that a run's options are written in, and the words for each option."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from evolora.distributed.options import WorkersOptions
from evolora.engine.options import CompletionOptions, EngineOptions
from evolora.evolution.options import LoopConfig
from evolora.human.options import HumanOptions
from evolora.models.options import LoraOptions, ModelOptions
from evolora.options import Options, Seeded, extra, option, own_fields
from evolora.refiners.options import REFINERS
from evolora.rewards.options import RewardOptions
from evolora.strategies.options import STRATEGIES
from evolora.tasks.options import TaskOptions


class BudgetOptions(Options):
    """When a run ends, beside its generations."""

    prefixed: ClassVar[bool] = True

    tokens: int | None = option(
        None, "stop after the generation that has generated this many tokens", common=True, ge=1
    )
    seconds: float | None = option(
        None,
        "stop after the generation at which the generations so far have taken this many seconds",
        common=True,
        gt=0,
    )
    flops: float | None = option(
        None,
        "stop after the generation that brings the model's nominal operations to this many",
        gt=0,
    )


def _trackers(value: Any) -> Any:
    """One name is a list of one; no name, and `none`, is none."""
    names = [value] if isinstance(value, str) else value
    return None if names in ([], ["none"]) else names


class FolderOptions(Seeded):
    """The run itself: its seed, or its seeds, and its folder.

    >>> FolderOptions(seed=4, seeds=3).each_seed, FolderOptions(seeds="1,7").each_seed, FolderOptions().each_seed
    ((4, 5, 6), (1, 7), ())
    """

    seeds: int | tuple[int, ...] | None = option(
        None, "run it under so many seeds, from --seed on, or under these, such as 1,2,3", common=True
    )
    seed_workers: int | None = option(
        None, "with --seeds: runs side by side, which share the CPU's cores; default: one after another", ge=1
    )
    out: str | None = option(None, "run folder; default runs/<time>-<name>", common=True)
    name: str | None = option(None, "what the run is called, in runs/; default two words", common=True, alias="name")
    save_every: int = option(5, "generations between checkpoints", ge=1)
    keep: int = option(
        2,
        "newest checkpoints that are kept, beside the first one with the best individual; 0: all are",
        ge=0,
    )
    merge: bool = option(False, "also write the winner merged into the base model", common=True)
    report_to: Annotated[
        list[Literal["tensorboard", "trackio", "wandb", "mlflow"]] | None, BeforeValidator(_trackers)
    ] = option(None, "trackers to report to, tensorboard, trackio, wandb or mlflow, one or several", common=True)

    @property
    def each_seed(self) -> tuple[int, ...]:
        """The seeds of a run under several, the first one first; none of a run under one."""
        if isinstance(self.seeds, int):
            return tuple(range(self.seed, self.seed + self.seeds))
        return self.seeds or ()

    @field_validator("seeds", mode="before")
    @classmethod
    def _read_seeds(cls, value: Any) -> Any:
        if value is None:
            return None
        words = value.split(",") if isinstance(value, str) else value
        several = isinstance(words, Iterable)
        try:
            numbers = [_whole(word) for word in (words if several else [words])]
        except ValueError:
            raise _refused("how many seeds, such as 5, or which, such as 1,2,3") from None
        if isinstance(value, str) and len(numbers) == 1:
            several = False
        if min(numbers, default=0) < 0:
            raise _refused("seeds of 0 or more")
        if not 2 <= (len(numbers) if several else numbers[0]) <= _MOST_SEEDS:
            raise _refused(f"from 2 to {_MOST_SEEDS} seeds, --seed is for one run")
        if len(set(numbers)) < len(numbers):
            raise _refused("seeds that differ")
        return tuple(numbers) if several else numbers[0]

    def go_together(self) -> None:
        super().go_together()
        if self.name is not None and self.out is not None:
            raise ValueError(f"--name {self.name} with --out: expected one of them, a run is called as its folder is")
        if self.seed_workers is not None and self.seeds is None:
            raise ValueError(f"--seed-workers {self.seed_workers}: expected --seeds beside it")
        if isinstance(self.seeds, tuple) and "seed" in self.model_fields_set and self.seed != self.seeds[0]:
            written = ",".join(map(str, self.seeds))
            raise ValueError(f"--seed {self.seed} with --seeds {written}: expected one of them")


# More than anybody runs: a slip of the keys.
_MOST_SEEDS = 1000


def _whole(value: Any) -> int:
    """A whole number, or text of one."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(value)
    return int(value)


def _refused(expected: str) -> PydanticCustomError:
    return PydanticCustomError("seeds", "expected {expected}", {"expected": expected})


PARTS: Mapping[str, Mapping[str, type[Options]]] = {
    "model": {"": ModelOptions},
    "lora": {"": LoraOptions},
    "engine": {"": EngineOptions},
    "workers": {"": WorkersOptions},
    "task": {"": TaskOptions},
    "reward": {"": RewardOptions},
    "human": {"": HumanOptions},
    "completion": {"": CompletionOptions},
    "evolution": {"": LoopConfig},
    "strategy": STRATEGIES,
    "refiner": REFINERS,
    "budget": {"": BudgetOptions},
    "run": {"": FolderOptions},
}
"""The models of each part by type, the default first; a part of one kind has no type of its own."""

# What TRL calls the same.
TRL_WORDS: Mapping[str, tuple[str, str]] = {
    "learning_rate": ("refiner", "lr"),
    "num_generations": ("refiner", "rollout_samples"),
    "max_completion_length": ("completion", "max_new_tokens"),
    "beta": ("refiner", "kl_weight"),
    "epsilon": ("refiner", "clip_range"),
    "num_iterations": ("refiner", "epochs"),
    "entropy_coef": ("refiner", "entropy_weight"),
    "reward_funcs": ("reward", "name"),
    "reward_weights": ("reward", "name"),
    "output_dir": ("run", "out"),
    "mask_truncated_completions": ("refiner", "mask_truncated"),
    "dataset_name": ("task", "data"),
    "dataset_config": ("task", "data_config"),
    "dataset_train_split": ("task", "data_split"),
    "model_name_or_path": ("model", "name"),
    "model_revision": ("model", "revision"),
    "lora_target_modules": ("lora", "target_modules"),
}
TRL_ELSEWHERE: Mapping[str, str] = {
    "epsilon_high": "--clip-range-high, of grpo and rloo",
    "max_steps": "--gens, of which each makes --rl-steps rollouts",
    "num_train_epochs": "--gens, of which each makes --rl-steps rollouts",
    "per_device_train_batch_size": "--rollout-prompts, and --update-tokens, which bounds what is in memory",
    "generation_batch_size": "--rollout-prompts times --rollout-samples, a rollout",
    "push_to_hub": "none: 'evolora export' uploads what a run has found",
    "gradient_accumulation_steps": "--update-tokens, the pieces in which a gradient is computed",
    "steps_per_generation": "--minibatches, the optimiser steps a pass over a rollout",
    "max_prompt_length": "prompts as long as the model has room for",
    "save_steps": "--save-every, in generations",
    "save_total_limit": "--keep",
    "eval_steps": "--validation-prompts, on which each generation is validated",
    "eval_strategy": "--validation-prompts, on which each generation is validated",
    "per_device_eval_batch_size": "--validation-prompts, on which each generation is validated",
    "logging_steps": "none: each generation is logged",
    "log_completions": "none: they are in the report and in lineage.sqlite",
    "lr_scheduler_type": "--lr-decay",
    "warmup_ratio": "none: --update-kl leads the learning rate",
    "warmup_steps": "none: --update-kl leads the learning rate",
    "bf16": "--dtype bfloat16",
    "fp16": "--dtype float16",
    "use_peft": "none: adapters are all that is tuned",
    "load_in_4bit": "--quantization nf4",
    "load_in_8bit": "--quantization int8",
    "dataset_test_split": "--data with a split test or validation in it",
    "use_vllm": "--engine vllm, in an environment of its own, or none",
    "train_dataset": "--data",
    "eval_dataset": "--data with a split validation in it",
    "processing_class": "--tokenizer, beside a loaded model",
    "args": "its options one by one",
}
"""What stands here in the place of options of TRL's that have no equal."""
_TRL_SPELLINGS = {
    f"{before}{word}": word for word, (part, _) in TRL_WORDS.items() for before in ("", f"{part}_", f"{part}.")
}

RESUMABLE = (
    "gens", "until", "patience", "budget_tokens", "budget_seconds", "budget_flops", "save_every", "keep", "merge",
    "rating_host", "rating_port", "trust_remote_code", "update_tokens", "seed_workers", "report_to", "canary",
    "workers", "ray", "workers_gpus", "workers_limit",
)  # fmt: skip
"""The words for the options that a resumed run may be given anew: none of them changes what a generation computes,
but for rounding."""

Place = tuple[str, str]
"""A part, and one of its fields."""


class UnknownWordError(KeyError):
    """A word for no option of the chosen parts; `nearest` is the word for one that is most like it."""

    def __init__(self, word: str, nearest: str | None) -> None:
        super().__init__(word)
        self.nearest = nearest


class AmbiguousWordError(KeyError):
    """A word for options of several parts."""

    def __init__(self, word: str, places: list[Place]) -> None:
        super().__init__(word)
        self.places = places


def trl_name(word: str) -> str | None:
    """The name of TRL's that a word is, alone or behind its part's name.

    >>> trl_name("refiner.learning-rate"), trl_name("lr")
    ('learning_rate', None)
    """
    return _TRL_SPELLINGS.get(word.replace("-", "_"))


@dataclass(frozen=True)
class Vocabulary:
    """The words for the options of a run with these types of strategy and refiner.

    >>> words = Vocabulary({"strategy": "es", "refiner": "ppo"})
    >>> words.place("scale"), words.place("strategy"), words.place("lora_r"), words.place("num_generations")
    (('strategy', 'scale'), ('strategy', 'type'), ('lora', 'r'), ('refiner', 'rollout_samples'))
    >>> words.word("refiner", "lr"), words.word("reward", "on_error"), words.word("model", "name")
    ('refiner_lr', 'on_reward_error', 'model')
    """

    types: Mapping[str, str]

    @cached_property
    def models(self) -> dict[str, type[Options]]:
        """The chosen parts' models."""
        return {part: kinds[self.types.get(part, next(iter(kinds)))] for part, kinds in PARTS.items()}

    @cached_property
    def fields(self) -> dict[Place, FieldInfo]:
        """Every option, part by part."""
        return {
            (part, name): field
            for part, model in self.models.items()
            for name, field in own_fields(model, part).items()
        }

    @cached_property
    def _short(self) -> dict[str, list[Place]]:
        found: dict[str, list[Place]] = {}
        for part, name in self.fields:
            found.setdefault(name, []).append((part, name))
        return found

    @cached_property
    def words(self) -> dict[str, Place]:
        """Every word that means one option, as Python writes it."""
        words = {name: places[0] for name, places in self._short.items() if len(places) == 1}
        words |= {str(extra(field)["alias"]): place for place, field in self.fields.items() if extra(field)["alias"]}
        words |= {word: TRL_WORDS[name] for word, name in _TRL_SPELLINGS.items() if TRL_WORDS[name] in self.fields}
        for separator in ("_", "."):
            words |= {f"{part}{separator}{name}": (part, name) for part, name in self.fields}
        return words | {part: (part, self.head(part)) for part in self.models}

    def head(self, part: str) -> str:
        """The option that the part's name alone means."""
        own = [name for place, name in self.fields if place == part]
        return str(getattr(self.models[part], "head", "type" if "type" in own else own[0]))

    def place(self, word: str) -> Place:
        """The option that a word means. Raises UnknownWordError or AmbiguousWordError."""
        plain = word.replace("-", "_")
        if plain in self.words:
            return self.words[plain]
        if plain in self._short:
            raise AmbiguousWordError(word, self._short[plain])
        # Right but for its part; else, of the ways to write the nearest one, the one that looks most like the word.
        name = plain.rpartition(".")[2]
        if elsewhere := self._short.get(name) or [place for word, place in self.words.items() if word == name]:
            raise UnknownWordError(word, ".".join(elsewhere[0]))
        near = difflib.get_close_matches(plain, [*self.words, *self._short], n=1, cutoff=0.6)
        raise UnknownWordError(word, near[0] if near else None)

    def word(self, part: str, name: str) -> str:
        """The usual word for an option, as Python writes it."""
        field, model = self.fields[part, name], self.models[part]
        if name == self.head(part) and name in ("name", "type"):
            return part
        if alias := extra(field)["alias"]:
            return str(alias)
        short = len(self._short[name]) == 1 and not getattr(model, "prefixed", False)
        return name if short and name not in self.models else f"{part}_{name}"


def is_part(word: str) -> bool:
    """Whether a mapping under this word holds options, as a part's does, and is none's value."""
    return word in PARTS or word.replace("-", "_") not in Vocabulary({}).words


def owner_of(word: str) -> tuple[str, str] | None:
    """The part and the type that know a word which the chosen ones do not."""
    for part in ("strategy", "refiner"):
        for kind in PARTS[part]:
            vocabulary = Vocabulary({part: kind})
            known = vocabulary.words.get(word.replace("-", "_"), ("", ""))
            if known[0] == part:
                return part, kind
            if any(place[0] == part for place in vocabulary._short.get(word, [])):
                return part, kind
    return None


def by_its_type(word: str) -> tuple[str, str, str] | None:
    """Part, type and name of the option that a word means as older versions wrote it, by its type.

    >>> by_its_type("es_scale")
    ('strategy', 'es', 'scale')
    """
    plain = word.replace("-", "_")
    for part in ("strategy", "refiner"):
        for kind, model in PARTS[part].items():
            name = plain.removeprefix(f"{kind.replace('-', '_')}_")
            if name != plain and name in own_fields(model, part):
                return part, kind, name
    return None
