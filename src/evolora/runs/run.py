"""A run from its options to its folder: set-up, the loop with its checkpoints, the winner, the test."""

import copy
import importlib.metadata
import json
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig

from evolora.errors import InputError, RewardError
from evolora.evolution.loop import Evolution
from evolora.evolution.voting import voted_rewards
from evolora.evolution.winner import best_finalists
from evolora.files import write_text
from evolora.human.feedback import HumanFeedback, VotedScorer, open_page
from evolora.models.base import BUNDLED_MODEL, given_base, load_base
from evolora.models.cost import Cost, Costs
from evolora.models.export import PEFT_CONFIG, config_text, export_adapter, export_merged, load_adapter
from evolora.population.evaluation import Evaluation, mean_fitness, term_means
from evolora.population.lineage import Lineage
from evolora.population.population import Population, genome_sha256
from evolora.rewards.options import HUMAN
from evolora.rewards.process_state import ProcessState
from evolora.rng import keyed_seed
from evolora.runs.assembly import Parts, assemble
from evolora.runs.building import build_evolution
from evolora.runs.config_file import config_toml, read_run_config
from evolora.runs.given import Given
from evolora.runs.identity import write_identity
from evolora.runs.options import RunOptions, Source, make_options
from evolora.runs.report.card import model_card
from evolora.runs.report.statistics import bootstrap_interval, compare
from evolora.runs.snapshot import Snapshot, restore
from evolora.runs.tracking.terminal import MetricsLog, Silence, View


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a run after its checkpoint was written; `folder` is the run to resume."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


@dataclass(frozen=True)
class Result:
    """What a run leaves: its folder, `summary.json` as a dictionary, and its metrics, one dictionary a generation."""

    folder: Path
    summary: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def adapter(self) -> Path:
        """The winner's folder: an ordinary PEFT adapter with tokenizer and model card."""
        return self.folder / "best"

    @property
    def merged(self) -> Path | None:
        """The folder of the merged model, if one was asked for."""
        return self.folder / "merged" if (self.folder / "merged").is_dir() else None


def start(
    config: RunOptions,
    *,
    given: Given | None = None,
    view: View | None = None,
) -> Result:
    """Start a run in a new folder, with what it was given as objects."""
    given = given or Given()
    folder = Path(config.run.out or _default_folder(config)).absolute()
    if (folder / "config.toml").exists():
        raise InputError(f"--out {folder}: holds a run already, resume it with 'evolora resume {folder}'")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: found a file, expected a folder")
    with _folder_for(folder, given.rows) as data:
        config = config if data is None else config.replaced({"task": {"data": str(data)}})
        view = view or Silence()
        for note in config.notes:
            view.say(note)
        parts = assemble(_located(config, folder), given, view)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be made ({error.strerror}), expected a new folder") from None
    write_identity(folder)
    if given.peft_config is not None:
        write_text(folder / PEFT_CONFIG, config_text(given.peft_config))
    return _run(folder, parts, given)


@contextmanager
def _folder_for(folder: Path, rows: list[dict[str, Any]] | None) -> Iterator[Path | None]:
    """The file with the rows that were given from Python, which a resumed run will need; gone again if it is refused.

    Raises InputError for rows that JSON cannot hold.
    """
    if rows is None:
        yield None
        return
    try:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise InputError(f"data: {error}, expected rows that JSON can hold") from None
    existed, data = folder.exists(), folder / "data.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(data, text)
    try:
        yield data
    except InputError:
        data.unlink()
        if not existed:
            folder.rmdir()
        raise


def go_on(folder: Path, words: Source, *, given: Given | None = None, view: View | None = None) -> Result:
    """`resume`, with the options that `words` say."""
    given = given or Given()
    folder = folder.absolute()
    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder}: found no config.toml, expected the folder of a run")
    if (folder / PEFT_CONFIG).is_file():
        given = replace(given, peft_config=LoraConfig(**json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))))
    config = make_options(read_run_config(folder), words).replaced({"run": {"out": str(folder)}})
    finished = folder / "summary.json"
    if finished.exists():
        summary = json.loads(finished.read_text(encoding="utf-8"))
        history = MetricsLog(folder / "metrics.jsonl").read()
        if _progress(config, history[-1]) >= 1:
            if config.run.merge and not (folder / "merged").is_dir():
                _merge(folder, config, given)
            return Result(folder, summary, history)
    return _run(folder, assemble(config, given, view or Silence()), given)


def _run(folder: Path, parts: Parts, given: Given) -> Result:
    config = parts.config
    metrics, lineage = MetricsLog(folder / "metrics.jsonl"), Lineage(folder / "lineage.sqlite")
    evolution = build_evolution(parts, lineage)
    seconds_before = restore(folder, parts, evolution)
    # Not before: new options that come with changed data, say, must not stay behind in a run that was refused.
    write_text(folder / "config.toml", config_toml(config))
    metrics.rewind(evolution.generation)
    lineage.rewind(evolution.generation if evolution.generation else -1)
    began = time.perf_counter()

    def seconds() -> float:
        return seconds_before + time.perf_counter() - began

    parts.view.say(f"run folder: {folder}")
    callback_state = ProcessState("a callback")
    unsaved: Snapshot | None = None
    feedback: HumanFeedback | None = None
    try:
        with _interruptible(parts.view) as interrupted:
            if config.reward.name == HUMAN:
                assert isinstance(parts.scorer, VotedScorer)
                feedback = evolution.judge = open_page(
                    folder,
                    parts.evaluator,
                    parts.scorer,
                    config.human,
                    seed=config.run.seed,
                    temperature=config.completion.temperature,
                    generation=evolution.generation,
                    stop=interrupted,
                    say=parts.view.say,
                )
            done = _progress(config, {"generation": evolution.generation, **evolution.spent()})
            while done < 1:
                parts.scorer.at(evolution.generation)
                measured = evolution.step(done)
                lineage.commit()
                logged = {f"logged.{name}": value for name, value in parts.scorer.metrics.items()}
                metrics.append({**measured, **logged, "time.total": seconds()})
                done = _progress(config, measured)
                parts.view.generation(measured, config.most_gens, done)
                for callback in given.callbacks:
                    with callback_state.kept():
                        callback({**measured, **logged})
                snapshot = Snapshot.of(evolution, seconds())
                if done >= 1 or interrupted() or evolution.generation % config.run.save_every == 0:
                    snapshot.write(folder, parts)
                    unsaved = None
                else:
                    unsaved = copy.deepcopy(snapshot)  # the next generation may change what it is made of
                if interrupted():
                    raise KeyboardInterrupt
        summary = _finish(folder, parts, evolution, lineage, seconds, given)
    except BaseException as end:
        # Whatever ends it in the middle of a generation: the whole ones before it must not be lost.
        if unsaved is not None:
            unsaved.write(folder, parts)
        if isinstance(end, KeyboardInterrupt):
            raise Interrupted(folder) from end
        raise
    finally:
        parts.view.close()
        if feedback is not None:
            feedback.close()
        lineage.close()
        parts.scorer.close()  # last: a reward of one's own may fail even here
    return Result(folder, summary, metrics.read())


def _finish(
    folder: Path, parts: Parts, evolution: Evolution, lineage: Lineage, seconds: Callable[[], float], given: Given
) -> dict[str, Any]:
    """Choose the winner on validation, score base and winner once on the test split, export, sum up."""
    config = parts.config
    voters, validations = best_finalists(evolution, config.evolution.vote)
    winner, validation = voters.select([0]), float(validations[0])
    base = evolution.base()
    individual, genome = winner.individuals[0], winner.genomes[0]
    start = time.perf_counter()
    base_test = parts.evaluator.evaluate(parts.founder[None], parts.task.test)
    winner_test = parts.evaluator.evaluate(winner.genomes, parts.task.test)
    test_cost = base_test.cost + winner_test.cost + Cost(seconds=time.perf_counter() - start)
    # By id: where nothing beats the base, the base is the winner, and is entered once.
    for row, evaluation in {base.id: (base, base_test), individual.id: (individual, winner_test)}.values():
        lineage.measured(evolution.generation, "test", [row], evaluation.fitness)
        lineage.sampled(
            evolution.generation,
            row,
            "test",
            [example.prompt for example in parts.task.test],
            evaluation.completions[0],
            evaluation.rewards[0],
        )
    lineage.commit()
    vote, vote_cost = _vote(parts, voters, winner_test) if config.evolution.vote > 1 else ({}, Cost())
    costs = {
        **{str(purpose): cost for purpose, cost in evolution.costs.by_purpose.items()},
        "test": test_cost + vote_cost,
    }
    summary = {
        "version": importlib.metadata.version("evolora"),
        "seed": config.run.seed,
        "model": config.model.name,
        "task": parts.task.name,
        "reward": parts.scorer.name,
        "strategy": config.strategy.type,
        "refiner": config.refiner.type,
        "held_out": parts.task.held_out,
        "test_prompts": len(parts.task.test),
        "generations": evolution.generation,
        "seconds": seconds(),
        "tokens": {purpose: cost.tokens for purpose, cost in costs.items()},
        "flops": {purpose: cost.flops for purpose, cost in costs.items()},
        "time": {**{purpose: cost.seconds for purpose, cost in costs.items()}, "loop": evolution.seconds},
        "base": {"test": _test_figures(base_test.rewards[0], config.run.seed) | _terms(base_test)},
        "winner": {
            "id": individual.id,
            "operator": individual.operator,
            "genome_sha256": genome_sha256(genome),
            "validation": validation,
            "test": _test_figures(winner_test.rewards[0], config.run.seed) | _terms(winner_test),
        },
        **vote,
        **({} if evolution.judge is None else {"votes": evolution.judge.summary()}),
        "inspection": compare([example.prompt for example in parts.task.test], base_test, winner_test).as_dict(),
    }
    examples = list(
        zip(
            (example.prompt for example in parts.task.test[:5]),
            winner_test.completions[0],
            map(float, winner_test.rewards[0]),
            strict=False,
        )
    )
    card = model_card(
        summary,
        reward=parts.scorer.name,
        max_new_tokens=parts.max_new_tokens,
        dtype=config.model.dtype,
        examples=examples,
    )
    export_adapter(folder / "best", parts.base, parts.lora, parts.layout, genome, card)
    if config.run.merge:
        _merge(folder, config, given)
    summary["seconds"] = seconds()
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _vote(parts: Parts, voters: Population, winner_test: Evaluation) -> tuple[dict[str, Any], Cost]:
    """The summary's entry on the vote of the best finalists on the test split, and what it cost."""
    start = time.perf_counter()
    tests = [winner_test, *(parts.evaluator.evaluate(genome[None], parts.task.test) for genome in voters.genomes[1:])]
    rewards = voted_rewards([test.completions[0] for test in tests], np.concatenate([test.rewards for test in tests]))
    entry = {
        "voters": [individual.id for individual in voters.individuals],
        "test": _test_figures(rewards, parts.config.run.seed),
    }
    cost = sum((test.cost for test in tests[1:]), Cost(seconds=time.perf_counter() - start))
    return {"vote": entry}, cost


def _merge(folder: Path, config: RunOptions, given: Given) -> None:
    lora, state = load_adapter(folder / "best")
    if given.model is None or given.tokenizer is None:
        base = load_base(config.model.name, dtype=getattr(torch, config.model.dtype))
    else:  # merging changes the weights that it merges into
        base = given_base(copy.deepcopy(given.model), given.tokenizer)
    export_merged(folder / "merged", base, lora, state)


def _test_figures(rewards: npt.NDArray[np.float64], seed: int) -> dict[str, Any]:
    """The mean of the rewards [prompts] and its interval."""
    reward = float(mean_fitness(rewards[None])[0])
    if math.isnan(reward):
        raise RewardError("the reward scored no completion of the test split")
    low, high = bootstrap_interval(rewards, seed=keyed_seed(seed, "bootstrap"))
    return {"reward": reward, "ci95": [low, high]}


def _terms(evaluation: Evaluation) -> dict[str, Any]:
    """The means of a combined reward's terms."""
    return {"terms": term_means(evaluation, 0)} if evaluation.terms else {}


def _progress(config: RunOptions, metrics: Mapping[str, float]) -> float:
    """The share of the run that is done, by whichever limit is nearest; the run ends when it is 1 or more."""
    costs = Costs.from_metrics(metrics)
    shares = [
        used / limit
        for used, limit in (
            (metrics["generation"], config.most_gens),
            (costs.generated_tokens, config.budget.tokens),
            (metrics["time.loop"], config.budget.seconds),
            (costs.flops, config.budget.flops),
        )
        if limit is not None
    ]
    return max(shares)


def _default_folder(config: RunOptions) -> Path:
    task = config.task
    name = task.name or (Path(task.data).stem if task.data else "prompt" if task.prompt else "translate")
    name = re.sub(r"[^\w.-]+", "-", name).strip("-")  # a gym: task's options are no part of a path
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _located(config: RunOptions, folder: Path) -> RunOptions:
    """Paths made absolute: a run can be resumed from any folder."""
    model, data = config.model, config.task.data
    path: dict[str, Any] = {}
    if model.chat_template is not None:
        path["chat_template"] = str(Path(model.chat_template).absolute())
    if model.name != BUNDLED_MODEL and Path(model.name).is_dir():
        path["name"] = str(Path(model.name).absolute())
    task = {} if data is None else {"data": str(Path(data).absolute())}
    return config.replaced({"run": {"out": str(folder)}, "task": task, "model": path})


@contextmanager
def _interruptible(view: View) -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C only asks the run to end after its generation; a second one ends it at once."""
    asked = False

    def ask(_: int, __: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        view.say("Interrupted: finishing this generation and its checkpoint; Ctrl-C again stops at once.")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
