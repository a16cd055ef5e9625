"""All that a run's results depend on, so that a resumed run is known to be the same one."""

import hashlib
import json
import platform
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evolora.files import file_sha256
from evolora.fitness.loading import parse_fitness
from evolora.models.checksums import weights_sha256
from evolora.models.export import PEFT_CONFIG, config_text
from evolora.models.foreign import own_code
from evolora.models.quantization import is_quantised
from evolora.population.population import genome_sha256
from evolora.rewards.base import Reward
from evolora.rewards.expression import Expression
from evolora.rewards.loading import parse_reward
from evolora.rewards.options import HUMAN
from evolora.rewards.sources import reward_sources
from evolora.runs.assembled import Parts
from evolora.runs.given import ROWS, Given
from evolora.runs.identity import Fingerprint, sha256_of
from evolora.runs.options import RunOptions
from evolora.runs.parts import RESUMABLE
from evolora.runs.speech import Speech
from evolora.tasks.task import Task

_PACKAGES = ("evolora", "torch", "transformers", "peft", "numpy", "numba")


def fingerprint(parts: Parts, given: Given, groups: Collection[str] | None = None) -> Fingerprint:
    """Of the run that these parts make; with `groups`, those entries alone."""
    made: dict[str, Callable[[], Mapping[str, Any]]] = {
        "option": lambda: _options(parts.config),
        "data": lambda: {"prompts and columns": _data(parts.task)},
        "model": lambda: _model(parts.base.model),
        "tokenizer": lambda: {"files": _tokenizer(parts.base.tokenizer)},
        "LoRA": lambda: {
            "config": sha256_of(json.loads(config_text(parts.lora))),
            **{
                f"init {number}": genome_sha256(genome)
                for number, genome in enumerate([] if parts.initial is None else parts.initial)
            },
        },
        "reward": lambda: _judged_by(parts.config.reward.name, given.reward, parse_reward),
        "fitness": lambda: _judged_by(parts.config.evolution.fitness, given.fitness, parse_fitness),
        "file": lambda: given_files(Path(str(parts.config.run.out))),
        "version": lambda: {
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            **({"bitsandbytes": _version("bitsandbytes")} if is_quantised(parts.base.model) else {}),
        },
    }
    return {group: make() for group, make in made.items() if groups is None or group in groups}


def given_files(folder: Path) -> dict[str, str]:
    """The checksums of the files that the run keeps of what it was given from Python."""
    return {name: file_sha256(folder / name) for name in (ROWS, PEFT_CONFIG) if (folder / name).is_file()}


def _model(model: PreTrainedModel) -> dict[str, str]:
    code = [[file.name, file_sha256(file)] for file in own_code(model)]
    return {
        "config": _config(model),
        "weights": weights_sha256(model),
        **({"code": sha256_of(code)} if code else {}),
    }


def _options(config: RunOptions) -> dict[str, Any]:
    """Every option that may change what a generation computes, by the word that the command line has for it. What names
    a file, a model or a reward stands under these, by content: the same at another place is the same."""
    vocabulary = config.vocabulary
    free = {vocabulary.words[word] for word in RESUMABLE} | {
        ("run", "out"),
        ("run", "name"),
        ("model", "name"),
        ("model", "chat_template"),
        ("lora", "init"),
        ("reward", "name"),
        ("evolution", "fitness"),
    }
    speech = Speech("cli")
    return {
        speech.name(vocabulary.word(part, name)): json.loads(json.dumps(value, default=str))
        for part, values in config.parts().items()
        for name, value in values.items()
        if part != "task" and (part, name) not in free
    }


def _data(task: Task) -> str:
    splits = (task.train, task.validation, task.test)
    return sha256_of([[[example.prompt, example.columns] for example in split] for split in splits])


def _config(model: PreTrainedModel) -> str:
    config = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    return sha256_of(config)


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        vocabulary = sha256_of(tokenizer.get_vocab())
    else:
        backend.no_padding()  # which it keeps of its last call
        backend.no_truncation()
        vocabulary = hashlib.sha256(backend.to_str().encode()).hexdigest()
    return sha256_of([type(tokenizer).__name__, vocabulary, tokenizer.special_tokens_map, tokenizer.chat_template])


def _judged_by(
    name: str | None, given: tuple[Expression, Mapping[str, Reward]] | None, parse: Callable[[str], Expression]
) -> dict[str, str]:
    """Reward or fitness."""
    if name is None:
        return {}
    found = {"as written": sha256_of(name)}  # which may hold a key
    if name == HUMAN:
        return found
    expression, functions = given or (parse(name), {})
    return found | reward_sources(expression, functions)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
