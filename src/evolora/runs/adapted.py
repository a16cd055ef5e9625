"""The base model of a run, and how it is adapted: by new LoRA weights, by those of adapters, or by a finished one's."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor

from evolora.errors import InputError
from evolora.models.base import BaseModel, given_base, load_chosen, with_tokenizer_of
from evolora.models.foreign import reason_of
from evolora.models.genome import GenomeLayout
from evolora.models.lora import for_causal_lm, lora_config, lora_layout
from evolora.models.quantization import quantised_by
from evolora.rewards.options import HUMAN
from evolora.rng import keyed_seed
from evolora.runs.given import Given
from evolora.runs.initial import Initial, load_founder
from evolora.runs.memory import check_memory, check_population
from evolora.runs.options import RunOptions
from evolora.tasks.chat import use_template


@dataclass(frozen=True)
class Adapted:
    """PEFT's configuration, the layout of a genome, and the founder [genome_length]; `initial` are the genomes
    [adapters, genome_length] of the adapters that a run starts from, the founder first; None where there are none."""

    lora: LoraConfig
    layout: GenomeLayout
    founder: Tensor
    initial: Tensor | None = None


def loaded_base(used: RunOptions, given: Given, device: str, tokenizer_of: Path | None) -> BaseModel:
    """The model that was given, or is named, with the tokenizer of an adapter's folder and the template of the options.
    Raises InputError."""
    base = _base(used, given, device)
    if tokenizer_of is not None:
        base = with_tokenizer_of(base, tokenizer_of)
    if used.model.chat_template is not None:
        use_template(base.tokenizer, Path(used.model.chat_template))
    return base


def adapt(base: BaseModel, config: RunOptions, given: Given, initial: Initial | None, adapter: Path | None) -> Adapted:
    """By a finished `adapter`, by those that a run starts from, or anew. Raises InputError for what does not fit the
    model, and for a population that does not fit into memory."""
    used = config.used()
    if adapter is not None:
        return Adapted(*load_founder(base, adapter, used.model.name))
    if initial is not None:
        lora, layout, genomes = initial.genomes(base, config)
        found = Adapted(lora, layout, genomes[0], genomes)
    else:
        lora = _lora(base, used) if given.peft_config is None else for_causal_lm(base.model, given.peft_config)
        found = Adapted(lora, *_layout(base, lora, used, given.peft_config))
    check_population(used, found.layout.genome_length)
    return found


def _base(config: RunOptions, given: Given, device: str) -> BaseModel:
    if given.model is not None and given.tokenizer is not None:
        return given_base(given.model, given.tokenizer)

    def check(model: Any) -> None:
        check_memory(config, model)
        if (method := quantised_by(model)) is not None:
            _refuse_beside_quantised(config, method)

    return load_chosen(config.model, device=device, check=check)


def _refuse_beside_quantised(config: RunOptions, method: str) -> None:
    """Raise InputError for what a base whose weights were quantised before cannot have."""
    name = config.model.name
    if config.run.merge:
        raise InputError(
            f"--merge with --model {name}: found weights quantised by {method}, expected none, 'evolora export RUN "
            "--to MODEL --merge --base NAME' merges into the weights before they were quantised"
        )
    if config.asks_people:
        raise InputError(
            f"--{'reward' if config.reward.name == HUMAN else 'fitness'} {HUMAN} with --model {name}: found weights "
            f"quantised by {method}, expected unquantised ones, on "
            "which a reward model can be fitted"
        )


def _lora(base: BaseModel, config: RunOptions) -> LoraConfig:
    return lora_config(
        base.model,
        r=config.lora.r,
        alpha=config.lora.alpha,
        dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
        exclude_modules=config.lora.exclude_modules,
        use_rslora=config.lora.rslora,
    )


def _layout(
    base: BaseModel, lora: LoraConfig, config: RunOptions, given: LoraConfig | None
) -> tuple[GenomeLayout, Tensor]:
    try:
        return lora_layout(base.model, lora, seed=keyed_seed(config.run.seed, "initial A"))
    except InputError:
        raise
    except (RuntimeError, MemoryError) as error:
        raise InputError(f"--lora-r {config.lora.r}: cannot be laid out: {reason_of(error)}") from None
    except (ValueError, TypeError, AttributeError, re.error) as error:
        # PEFT's own words: no module has such a name, or it knows no default for this architecture.
        if given is not None:
            named = sorted(given.target_modules) if isinstance(given.target_modules, set) else given.target_modules
            raise InputError(f"peft_config: target_modules={named!r}: {reason_of(error)}") from None
        modules = config.lora.target_modules or "(default)"
        said = modules if isinstance(modules, str) else " ".join(modules)
        raise InputError(f"--target-modules {said}: {reason_of(error)}") from None
