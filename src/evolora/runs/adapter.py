"""What one does with an adapter after a run: evaluate it, let it write."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evolora.engine.options import NO_TARGETS
from evolora.errors import InputError, check_text
from evolora.files import MANIFEST, check_regular, verify
from evolora.models.base import TEMPLATE, TOKENIZER, BaseModel
from evolora.models.cards import CARD, CHAT, tags
from evolora.models.export import load_adapter
from evolora.population.drift import SENTENCES
from evolora.population.evaluation import Evaluation
from evolora.population.writing import Writer
from evolora.rng import keyed_seed
from evolora.runs.assembled import Parts
from evolora.runs.assembly import assemble, chat_of
from evolora.runs.config_file import check_config, read_run_config
from evolora.runs.fingerprint import fingerprint
from evolora.runs.given import Given
from evolora.runs.identity import differences, read_identity
from evolora.runs.initial import kept_adapter, load_founder, named_base
from evolora.runs.lengths import check_prompts
from evolora.runs.memory import check_samples
from evolora.runs.options import Source, make_options
from evolora.runs.parts import Place
from evolora.runs.report.inspection import Inspection
from evolora.runs.report.statistics import compare, fitness_interval
from evolora.runs.snapshot import check_checkpoint
from evolora.runs.summary import check_belonging, read_summary
from evolora.runs.tracking.view import Silence
from evolora.runs.trust import Trust, check_trust, said_places
from evolora.tasks.chat import chat_prompt
from evolora.tasks.task import Example

# What an adapter was judged by, where that was not the mean reward.
_FITNESS = ("evolution.fitness", "evolution.fitness_samples", "evolution.group_column")
# What says on what one is scored, and the words for it.
_TASK = {("task", "name"): "task", ("task", "data"): "data", ("task", "prompt"): "prompt"}


@dataclass(frozen=True)
class Score:
    """The mean reward of an adapter, or its fitness where its run had another, its 95% interval, and (prompt,
    completion, reward) of every prompt; where the base was evaluated too, what it is, its mean reward and interval,
    both side by side, and the adapter's drift from it, where that can be measured."""

    reward: float
    ci95: tuple[float, float]
    rows: list[tuple[str, str, float]]
    measure: str = "reward"
    base: str = "the base model"
    base_reward: float | None = None
    base_ci95: tuple[float, float] | None = None
    inspection: Inspection | None = None
    drift: float | None = None


def adapter_folder(path: Path, checkpoint: str | None = None) -> Path:
    """The adapter of a run (its winner, or the best at `checkpoint`), or the adapter folder itself, which needs no
    manifest. Raises CheckpointError when it is altered, or is not the one of the run's summary."""
    if (path / "adapter_config.json").is_file():
        check_regular(path)
        if (path / MANIFEST).is_file():
            verify(path, besides=[CARD])
        return path
    if not is_run(path):
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
    untouched base model on the same prompts, or the adapter that its run started from. Raises InputError for an adapter
    that is no run's where they name none, and for a run that was not made here and whose reward would run code, unless
    `trust_reward`."""
    parts = _parts(path, checkpoint, options or {}, trust=trust_reward)
    with closing(parts.engine):
        return _score(path, parts, split, base=base)


def _score(path: Path, parts: Parts, split: str, *, base: bool) -> Score:
    examples = {"train": parts.task.train, "validation": parts.task.validation, "test": parts.task.test}[split]
    of_run = is_run(path) and parts.config.lora.init is not None
    if of_run:
        genome = load_founder(parts.base, kept_adapter(path, 0), parts.config.model.name)[2]
        parts = replace(parts, initial=genome[None])
    else:  # where all weights are zero, nothing is added to the base
        genome = torch.zeros_like(parts.founder)
    evaluator = parts.judging(parts.evaluator)
    evaluation = evaluator.evaluate(parts.founder[None], examples)
    prompts = [example.prompt for example in evaluation.examples or examples]
    score = Score(
        float(evaluation.fitness[0]),
        _interval(evaluation, parts),
        list(zip(prompts, evaluation.completions[0], map(float, evaluation.worth(0)), strict=True)),
        measure="fitness" if evaluation.judged else "reward",
    )
    if not base:
        return score
    untouched = evaluator.evaluate(genome[None], examples)
    drift = parts.drift(len(SENTENCES))
    return replace(
        score,
        base="what it started from" if of_run else "the base model",
        base_reward=float(untouched.fitness[0]),
        base_ci95=_interval(untouched, parts),
        inspection=compare(prompts, untouched, evaluation),
        drift=None if drift is None else drift.of(parts.founder[None])[0][0],
    )


def _interval(evaluation: Evaluation, parts: Parts) -> tuple[float, float]:
    return fitness_interval(evaluation.of(0), seed=keyed_seed(parts.config.run.seed, "bootstrap"))


def completer(
    path: Path,
    *,
    samples: int = 0,
    checkpoint: str | None = None,
    options: Source | Mapping[str, Any] | None = None,
    chat: bool | None = None,
) -> Callable[[str], list[str]]:
    """The adapter, loaded once: what it writes after a prompt, its greedy completion or `samples` sampled ones. With
    `chat` in answer to it as a user's message; by default where it was tuned on such, or comes with a chat template and
    nobody says on what it was tuned. The run's reward is not loaded."""
    if samples < 0:
        raise InputError(f"--samples {samples}: expected 0, for the greedy completion, or more")
    parts = _parts(path, checkpoint, options or {}, scores=False)
    check_samples(samples, parts.max_new_tokens)
    if chat is None:
        chat = parts.task.conversational if is_run(path) else _answers_messages(path, parts.base)
    writer = Writer(parts.engine, parts.text)
    seed = keyed_seed(parts.config.run.seed, "generate")

    def complete(prompt: str) -> list[str]:
        check_text("PROMPT", prompt)
        if chat:
            asked = chat_of(parts.config)
            messages = asked.messages(Example(prompt, {}), "PROMPT")
            prompt = chat_prompt(parts.base.tokenizer, messages, source="PROMPT", kwargs=asked.kwargs)
        check_prompts(parts.base, [prompt], parts.max_new_tokens)
        seeds = np.random.default_rng(seed).integers(0, 2**63, samples, dtype=np.uint64) if samples else None
        return writer.write(
            parts.founder[None],
            [Example(prompt, {})] * max(1, samples),
            parts.max_new_tokens,
            seeds=seeds,
            temperature=parts.config.completion.temperature,
            truncation=parts.config.completion.truncation,
        ).texts

    return complete


def _answers_messages(adapter: Path, base: BaseModel) -> bool:
    """Whether an adapter without a run was tuned on chat messages: of one of evolora's own its card says so, of others
    a chat template that comes with it."""
    card = adapter / CARD
    known = tags(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else []
    own_template = bool(base.tokenizer.chat_template) and (adapter / TOKENIZER).is_file()
    return CHAT in known if "evolora" in known else own_template


def is_run(path: Path) -> bool:
    """Whether the folder is that of a run, and no adapter by itself."""
    return (path / "config.toml").is_file()


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
    if not is_run(path):
        lora, _ = load_adapter(folder)
        named = [] if ("model", "name") in said else named_base(folder, lora)
        known = Source([(f"model.{name}", value) for name, value in named])
        if scores and not said & _TASK.keys():
            expected = ", ".join(map(words.named, _TASK.values()))
            raise InputError(f"{path}: an adapter alone does not say what it is scored on, expected one of {expected}")
        if not scores:  # the bundled task's targets say nothing about what this adapter writes
            known = replace(known, words=[*known.words, ("completion.max_new_tokens", NO_TARGETS)])
        config = make_options(known, words)
        return assemble(config, Given(), Silence(), folder, scores=scores, own_tokenizer=True)
    check_config(path)
    known = read_run_config(path)
    gone: tuple[str, ...] = ("engine.type", "engine.products")  # they follow from this machine
    if not scores:
        gone += ("reward.", *_FITNESS)
    if ("model", "name") in said:
        gone += ("model.revision",)
    if said & _TASK.keys():
        # Another task brings its own reward and length.
        gone += ("task.", "reward.name", *_FITNESS, "completion.max_new_tokens")
    if ("reward", "name") in said:
        gone += _FITNESS
    if (template := folder / TEMPLATE).is_file():  # as it was, wherever its file is now
        gone += ("model.chat_template",)
    kept = ("task.system_prompt", "task.chat_template_kwargs")  # how the adapter was tuned to be asked
    words_left = [word for word in known.words if word[0] in kept or not word[0].startswith(gone)]
    known = replace(known, words=words_left)
    if template.is_file():
        known = replace(known, words=[*known.words, ("model.chat_template", str(template))])
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
        groups |= {"data"} if "reward" in parts_said else {"data", "reward", "fitness"}
    before = read_identity(path).fingerprint
    now = fingerprint(parts, Given(), groups)
    changes = list(differences({group: before.get(group, {}) for group in now}, now))
    if changes:
        raise InputError(
            f"{path}: what the adapter was made for has changed: {'; '.join(changes)}; expected the same, or "
            "the option that names it (--model, --data, --reward), to take it as it is"
        )
