"""What one does with an adapter after a run: evaluate it, let it write, export it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig

from evolora.environment import references
from evolora.errors import InputError
from evolora.files import MANIFEST, check_regular, verify, whole_folder
from evolora.models.base import BaseModel, load_chosen
from evolora.models.export import CARD, export_merged, load_adapter, name_base
from evolora.models.options import ModelOptions
from evolora.models.quantization import quantised_by
from evolora.population.evaluation import Evaluation
from evolora.population.writing import Writer
from evolora.rng import keyed_seed
from evolora.runs.assembly import Parts, assemble, chat_of, check_prompts, load_founder
from evolora.runs.config_file import check_config, read_run_config
from evolora.runs.fingerprint import fingerprint, weights_sha256
from evolora.runs.given import Given
from evolora.runs.identity import differences, read_identity
from evolora.runs.memory import check_samples
from evolora.runs.options import Source, make_options
from evolora.runs.parts import Place
from evolora.runs.report.inspection import Inspection
from evolora.runs.report.statistics import bootstrap_interval, compare
from evolora.runs.snapshot import check_checkpoint
from evolora.runs.summary import check_belonging, read_summary
from evolora.runs.tracking.view import Silence
from evolora.runs.trust import Trust, check_trust, said_places
from evolora.tasks.chat import chat_prompt
from evolora.tasks.task import Example


@dataclass(frozen=True)
class Score:
    """The mean reward of an adapter, its 95% interval, and (prompt, completion, reward) of every prompt; where the base
    model was evaluated too, its mean reward and interval, and both side by side."""

    reward: float
    ci95: tuple[float, float]
    rows: list[tuple[str, str, float]]
    base_reward: float | None = None
    base_ci95: tuple[float, float] | None = None
    inspection: Inspection | None = None


def adapter_folder(path: Path, checkpoint: str | None = None) -> Path:
    """The adapter of a run (its winner, or the best at `checkpoint`), or the adapter folder itself, which needs no
    manifest. Raises CheckpointError when it is altered, or is not the one of the run's summary."""
    if (path / "adapter_config.json").is_file():
        check_regular(path)
        if (path / MANIFEST).is_file():
            verify(path, besides=[CARD])
        return path
    if not (path / "config.toml").is_file():
        raise InputError(f"{path}: found neither config.toml nor adapter_config.json, expected a run or an adapter")
    check_regular(path)
    folder = path / "checkpoints" / checkpoint if checkpoint else path / "best"
    if not folder.is_dir():
        found = ", ".join(sorted(entry.name for entry in (path / "checkpoints").glob("gen*"))) or "none"
        raise InputError(f"{folder}: not there; the run's checkpoints are: {found}")
    if checkpoint:
        check_checkpoint(folder, read_identity(path).run)
    elif (summary := read_summary(path)) is None:
        verify(folder, besides=[CARD])
    else:
        check_belonging(path, folder.name, summary)
    return folder


def evaluate(
    path: Path,
    *,
    split: str = "test",
    checkpoint: str | None = None,
    options: Source | Mapping[str, Any] | None = None,
    base: bool = True,
    trust_reward: Trust = False,
) -> Score:
    """Score an adapter on a split of its run's task, or of the task that `options` name; with `base`, also the
    untouched base model on the same prompts. Raises InputError for a run that was not made here and whose reward would
    run code, unless `trust_reward`."""
    parts = _parts(path, checkpoint, options or {}, trust=trust_reward)
    examples = {"train": parts.task.train, "validation": parts.task.validation, "test": parts.task.test}[split]
    evaluation = parts.evaluator.evaluate(parts.founder[None], examples)
    prompts = [example.prompt for example in examples]
    score = Score(
        float(evaluation.fitness[0]),
        _interval(evaluation, parts),
        list(zip(prompts, evaluation.completions[0], map(float, evaluation.rewards[0]), strict=True)),
    )
    if not base:
        return score
    # The founder is the adapter here. Where all weights are zero, nothing is added to the base.
    untouched = parts.evaluator.evaluate(torch.zeros_like(parts.founder)[None], examples)
    return replace(
        score,
        base_reward=float(untouched.fitness[0]),
        base_ci95=_interval(untouched, parts),
        inspection=compare(prompts, untouched, evaluation),
    )


def _interval(evaluation: Evaluation, parts: Parts) -> tuple[float, float]:
    return bootstrap_interval(evaluation.rewards[0], seed=keyed_seed(parts.config.run.seed, "bootstrap"))


def complete(
    path: Path,
    prompt: str,
    *,
    samples: int = 0,
    checkpoint: str | None = None,
    options: Source | Mapping[str, Any] | None = None,
) -> list[str]:
    """What the adapter writes after `prompt`, or in answer to it where it was tuned on chat messages: its greedy
    completion, or `samples` sampled ones. The run's reward is not loaded."""
    if samples < 0:
        raise InputError(f"--samples {samples}: expected 0, for the greedy completion, or more")
    parts = _parts(path, checkpoint, options or {}, scores=False)
    check_samples(samples, parts.max_new_tokens)
    if parts.task.conversational:
        chat = chat_of(parts.config)
        messages = chat.messages(Example(prompt, {}), "PROMPT")
        prompt = chat_prompt(parts.base.tokenizer, messages, source="PROMPT", kwargs=chat.kwargs)
    check_prompts(parts.base, [prompt], parts.max_new_tokens)
    examples = [Example(prompt, {})] * max(1, samples)
    seed = keyed_seed(parts.config.run.seed, "generate")
    seeds = np.random.default_rng(seed).integers(0, 2**63, samples, dtype=np.uint64) if samples else None
    writer = Writer(parts.engine, parts.text)
    return writer.write(
        parts.founder[None],
        examples,
        parts.max_new_tokens,
        seeds=seeds,
        temperature=parts.config.completion.temperature,
        truncation=parts.config.completion.truncation,
    ).texts


def export(
    path: Path,
    to: Path,
    *,
    merge: bool = False,
    checkpoint: str | None = None,
    base: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Copy an adapter out of a run, or write it merged into its base model. `base` is the model's name and `revision`
    its revision, for an adapter that others are to use, in place of the folder that it was loaded from here."""
    if revision is not None and base is None:
        raise InputError(f"--revision {revision}: expected --base beside it, an adapter names the commit of its own")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"--to {to}: exists already, expected a new or empty folder")
    folder = adapter_folder(path, checkpoint)
    lora, state = load_adapter(folder)
    named = None if base is None else ModelOptions(name=base, revision=revision)
    into = _base_to_merge(path, folder, lora, named, trust_remote_code) if merge else None
    to = to.absolute()
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--to {to}: cannot be made ({error.strerror}), expected a new folder") from None
    if into is not None:
        export_merged(to, into, lora, state)
        return to
    with whole_folder(to) as temporary:
        for file in folder.iterdir():
            if file.is_file() and not file.name.startswith(("state.", "manifest.")):
                shutil.copy2(file, temporary)
        if base is not None:
            name_base(temporary, base, revision)
    return to


def _base_to_merge(path: Path, folder: Path, lora: LoraConfig, base: ModelOptions | None, trust: bool) -> BaseModel:
    """The base model that an adapter is merged into: that of its run, as its run loaded it and with the weights that it
    had, or the one that the user or the adapter names."""
    of_run = base is None and (path / "config.toml").is_file()

    def refuse_quantised(method: str | None) -> None:
        if method is not None:
            raise InputError(
                f"{path}: its base was quantised ({method}), and nothing is merged into that, expected --base NAME, "
                "into whose own weights the adapter is merged"
            )

    if base is None:
        known = make_options(read_run_config(path)).model if of_run else ModelOptions()
        refuse_quantised(known.quantization)
        base = known.model_copy(update=dict(_named_base(folder, lora)))
    name = base.name
    into = load_chosen(
        base.model_copy(update={"trust_remote_code": trust}), check=lambda model: refuse_quantised(quantised_by(model))
    )
    load_founder(into, folder, name)
    if of_run and read_identity(path).fingerprint["model"]["weights"] != weights_sha256(into.model):
        raise InputError(
            f"{path}: the weights of its model {name} have changed since the run, expected the same, or --base {name} "
            "to take them as they are"
        )
    return into


def folder_named(adapter: Path) -> str | None:
    """The base model that an adapter names, where it is a folder or a variable of this machine."""
    if not (adapter / "adapter_config.json").is_file():
        return None
    name = str(load_adapter(adapter)[0].base_model_name_or_path)
    return name if Path(name).is_dir() or references(name) else None


def _named_base(folder: Path, lora: LoraConfig) -> list[tuple[str, str | None]]:
    """The base model that an adapter names, and of a hub name the revision. A variable in its place is refused: whoever
    wrote it would choose what is read here, and where it is sent."""
    if not lora.base_model_name_or_path:
        raise InputError(f"{folder}: names no base model, expected --model (for export: --base) beside it")
    name = str(lora.base_model_name_or_path)
    if references(name):
        raise InputError(f"{folder}: its base model is {name}, expected --model (for export: --base) beside it")
    return [("name", name), ("revision", None if Path(name).is_dir() else lora.revision or None)]


def _parts(
    path: Path,
    checkpoint: str | None,
    options: Source | Mapping[str, Any],
    *,
    scores: bool = True,
    trust: Trust = False,
) -> Parts:
    folder = adapter_folder(path, checkpoint)
    words = options if isinstance(options, Source) else Source.of_python(options)
    said = said_places(words, make_options())
    if not (path / "config.toml").is_file():
        lora, _ = load_adapter(folder)
        named = [] if ("model", "name") in said else _named_base(folder, lora)
        known = Source([(f"model.{name}", value) for name, value in named])
        return assemble(make_options(known, words), Given(), Silence(), folder, scores=scores)
    check_config(path)
    known = read_run_config(path)
    gone: tuple[str, ...] = ("engine.type", "engine.products")  # they follow from this machine
    if not scores:
        gone += ("reward.",)
    if ("model", "name") in said:
        gone += ("model.revision",)
    if said & {("task", "name"), ("task", "data"), ("task", "prompt")}:
        # Another task brings its own reward and length.
        gone += ("task.", "reward.name", "completion.max_new_tokens")
    kept = ("task.system_prompt", "task.chat_template_kwargs")  # how the adapter was tuned to be asked
    words_left = [word for word in known.words if word[0] in kept or not word[0].startswith(gone)]
    known = replace(known, words=words_left)
    config = make_options(known, words).replaced({"run": {"out": str(path.absolute())}})
    wanted = (
        "--trust-reward, for somebody whom you trust"
        if scores
        else "options of your own in their place, such as --model"
    )
    check_trust(path, known, config, trust, own=said, wanted=wanted)
    parts = assemble(config, Given(), Silence(), folder, scores=scores)
    _refuse_changes(path, parts, said, scores=scores)
    return parts


def _refuse_changes(path: Path, parts: Parts, said: set[Place | None], *, scores: bool) -> None:
    """Raise InputError where what an adapter was made for is not what it was, but for what the user has `said`."""
    parts_said = {place[0] for place in said if place is not None}
    model = {("model", name) for name in ("name", "revision", "dtype", "quantization", "chat_template")}
    groups = {"model", "tokenizer"} if not said & model else set()
    if scores and "task" not in parts_said:
        groups |= {"data"} if "reward" in parts_said else {"data", "reward"}
    before = read_identity(path).fingerprint
    now = fingerprint(parts, Given(), groups)
    changes = list(differences({group: before.get(group, {}) for group in now}, now))
    if changes:
        raise InputError(
            f"{path}: what the adapter was made for has changed: {'; '.join(changes)}; expected the same, or "
            "the option that names it (--model, --data, --reward), to take it as it is"
        )
