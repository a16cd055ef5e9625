"""A run from its options to its folder: set-up, the loop with its checkpoints, the winner, the test."""

import copy
import importlib.metadata
import itertools
import json
import math
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig

from evolora.environment import references
from evolora.errors import CheckpointError, InputError, RewardError, ran_out
from evolora.evolution.loop import Evolution
from evolora.evolution.voting import voted_rewards
from evolora.evolution.winner import best_finalists
from evolora.files import newest_checkpoint, verify, without_nan, write_text
from evolora.human.feedback import HumanFeedback, VotedScorer, open_page
from evolora.lock import owned
from evolora.masking import keys_in, mask
from evolora.models.base import BUNDLED_MODEL, given_base, load_base
from evolora.models.cost import Cost, Costs
from evolora.models.export import (
    CARD,
    PEFT_CONFIG,
    config_text,
    export_adapter,
    export_merged,
    load_adapter,
    shown_model,
)
from evolora.population.evaluation import Evaluation, mean_fitness, term_means
from evolora.population.lineage import Lineage
from evolora.population.population import Population, genome_sha256
from evolora.rewards.options import HUMAN
from evolora.rewards.process_state import ProcessState
from evolora.rng import keyed_seed
from evolora.runs.assembly import Parts, assemble
from evolora.runs.building import build_evolution
from evolora.runs.config_file import check_config, config_toml, read_run_config, with_checksum
from evolora.runs.disk import need_room_for_run
from evolora.runs.fingerprint import fingerprint, weights_sha256
from evolora.runs.given import ROWS, Given
from evolora.runs.identity import Identity, check_run, differences, new_identity, read_identity
from evolora.runs.options import RunOptions, Source, make_options
from evolora.runs.recovery import LINEAGE, METRICS, check_ledgers, recover, set_aside
from evolora.runs.report.card import model_card
from evolora.runs.report.statistics import bootstrap_interval, compare
from evolora.runs.snapshot import Snapshot, checkpoint_run, restore
from evolora.runs.stopping import Interrupted, Stop
from evolora.runs.summary import SUMMARY, check_belonging, read_summary, write_summary
from evolora.runs.tracking.terminal import MetricsLog, Silence, View
from evolora.runs.trust import Trust, check_trust, note_made_here, said_places


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
        return self.folder / "merged" if "merged" in self.summary["sealed"] else None


def start(
    config: RunOptions,
    *,
    given: Given | None = None,
    view: View | None = None,
) -> Result:
    """Start a run in a new folder, with what it was given as objects."""
    given, view = given or Given(), view or Silence()
    folder = Path(config.used().run.out or _default_folder(config)).absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: found a file, expected a folder")
    with _made(folder), owned(folder, view.say):
        if (folder / "config.toml").exists():
            raise InputError(f"--out {folder}: holds a run already, resume it with 'evolora resume {folder}'")
        if any((folder / "checkpoints").glob("gen*")):
            raise InputError(f"--out {folder}: holds checkpoints without their config.toml, expected a new folder")
        with _rows_in(folder, given.rows) as data:
            config = config if data is None else config.replaced({"task": {"data": str(data)}})
            for note in config.notes:
                view.say(note)
            parts = assemble(_located(config, folder), given, view)
            need_room_for_run(folder, parts)
        if given.peft_config is not None:
            write_text(folder / PEFT_CONFIG, config_text(given.peft_config))
        identity = new_identity(fingerprint(parts, given))
        identity.write(folder)
        if (unnoted := note_made_here(folder, identity.run)) is not None:
            view.say(unnoted)
        return _run(folder, parts, given, identity)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """With the folder there, and in it one for checkpoints; what is new is gone again if nothing was put into it.

    Raises InputError when it cannot be made.
    """
    inner = folder / "checkpoints"
    try:
        new = [path for path in (inner, folder, *folder.parents) if not path.exists()]
        inner.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be made ({error.strerror}), expected a new folder") from None
    try:
        yield
    finally:
        with suppress(OSError):  # one is not empty
            for path in new:
                path.rmdir()


@contextmanager
def _rows_in(folder: Path, rows: list[dict[str, Any]] | None) -> Iterator[Path | None]:
    """The file with the rows that were given from Python, which a resumed run will need; gone again if it is refused.

    Raises InputError for rows that JSON cannot hold.
    """
    if rows is None:
        yield None
        return
    try:
        text = "".join(json.dumps(without_nan(row), allow_nan=False) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise InputError(f"data: {error}, expected rows that JSON can hold") from None
    data = folder / ROWS
    write_text(data, text)
    try:
        yield data
    except BaseException:
        data.unlink()
        raise


def go_on(
    folder: Path,
    words: Source,
    *,
    given: Given | None = None,
    view: View | None = None,
    trust: Trust = False,
    accept_changes: bool = False,
) -> Result:
    """`resume`, with the options that `words` say; with `accept_changes` also where what the run depends on has
    changed. Raises InputError for a run that was not made here and would run code, unless `trust` says that it may."""
    folder, view = folder.absolute(), view or Silence()
    if not folder.is_dir():
        raise InputError(f"{folder}: found no config.toml, expected the folder of a run")
    with owned(folder, view.say):
        return _go_on(folder, words, given or Given(), view, trust, accept_changes)


def _go_on(folder: Path, words: Source, given: Given, view: View, trust: Trust, accept_changes: bool) -> Result:
    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder}: found no config.toml, expected the folder of a run")
    if (folder / PEFT_CONFIG).is_file():
        given = replace(given, peft_config=_peft_config(folder / PEFT_CONFIG))
    known = read_run_config(folder)
    config = make_options(known, words)
    own = said_places(words, config) | ({("reward", "name")} if given.reward is not None else set())
    check_trust(folder, known, config, trust, own=own, wanted="--trust-reward, for somebody whom you trust")
    identity, lost = _identity(folder, accept_changes)
    config = config.replaced({"run": {"out": _out(config, folder)}})
    if not lost and (done := finished(folder, config, identity.run, view)) is not None:
        summary, history = done
        if config.run.merge and "merged" not in summary["sealed"]:
            _merge(folder, config, given, identity)
            summary = write_summary(folder, summary, ["best", "merged"])
        return Result(folder, summary, history)
    for note in config.notes:
        view.say(note)
    parts = assemble(config, given, view)
    need_room_for_run(folder, parts)
    now = fingerprint(parts, given)
    changes = lost or list(differences(identity.fingerprint, now))
    try:
        check_config(folder)
    except CheckpointError as edited:  # in what a resumed run may be given by options
        changes = changes or [str(edited)]
    if changes and not accept_changes:
        raise InputError(
            f"{folder}: what the run depends on has changed: {'; '.join(changes)}; expected the same, "
            "or resume's --accept-changes"
        )
    for change in changes:
        view.say(f"changed, as accepted: {change}")
    return _run(folder, parts, given, replace(identity, fingerprint=now), changes)


def _peft_config(path: Path) -> LoraConfig:
    try:
        return LoraConfig(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: altered, no LoRA configuration that can be read ({error})") from None


def _identity(folder: Path, accept_changes: bool) -> tuple[Identity, list[str]]:
    """The run's identity. Where that is lost, and changes are accepted, only its newest checkpoint knows whose it is,
    and nobody what it depended on: then also what is lost."""
    try:
        return read_identity(folder), []
    except InputError as lost:
        newest = newest_checkpoint(folder)[0] if accept_changes else None
        run = None if newest is None else checkpoint_run(newest)
        if run is None:
            raise
        return Identity(run, {}), [str(lost)]


def finished(
    folder: Path, config: RunOptions, run: str, view: View | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Summary and history of the run whose id is `run`, if it has nothing left to do: its summary is of its last
    generation, and what that announces is there and whole; else None, and the `view` is told what is not.

    Raises CheckpointError where what is damaged cannot be made again, InputError for the summary of another run.
    """
    say = (view or Silence()).say
    try:
        summary = read_summary(folder)
    except CheckpointError as fault:
        if newest_checkpoint(folder)[0] is None:
            raise CheckpointError(f"{fault}; there is no checkpoint to make it again from") from None
        say(f"{fault}, set aside as {set_aside(folder / SUMMARY).name}; it is made again from the last checkpoint")
        return None
    if summary is None:
        return None
    check_run(folder / SUMMARY, summary["run"], run)
    history = MetricsLog(folder / METRICS, run).read()
    try:
        check_ledgers(folder, summary["generations"], run)
        if not history or summary["generations"] != history[-1]["generation"] or _progress(config, history[-1]) < 1:
            return None
        for name in summary["sealed"]:
            check_belonging(folder, name, summary)
    except CheckpointError as fault:
        if newest_checkpoint(folder)[0] is None:
            raise CheckpointError(f"{fault}; there is no checkpoint to make it again from") from None
        say(f"made again: {fault}")
        return None
    return summary, history


def _run(folder: Path, parts: Parts, given: Given, identity: Identity, changes: Sequence[str] = ()) -> Result:
    config = parts.config
    evolution = build_evolution(parts, Lineage())
    seconds_before = restore(folder, parts, evolution, identity.run)
    if evolution.generation == 0 and (folder / SUMMARY).exists():
        raise CheckpointError(f"{folder}: found a finished run without any checkpoint, expected one to go on from")
    recover(folder, evolution.generation, identity.run, parts.view.say)
    metrics, lineage = MetricsLog(folder / METRICS, identity.run), Lineage(folder / LINEAGE, identity.run)
    evolution.lineage = lineage
    # Not before: nothing new must stay behind in a run that was refused.
    if changes:
        accepted = {"generation": evolution.generation, "what": changes}
        identity = replace(identity, changed=[*identity.changed, accepted])
        identity.write(folder)
    text = config_toml(config)
    write_text(folder / "config.toml", with_checksum(text), private=bool(keys_in(text)))
    metrics.rewind(evolution.generation)
    lineage.rewind(evolution.generation if evolution.generation else -1)
    began = time.perf_counter()

    def seconds() -> float:
        return seconds_before + time.perf_counter() - began

    parts.view.say(f"run folder: {folder}")
    callback_state = ProcessState("a callback")
    unsaved: Snapshot | None = None
    feedback: HumanFeedback | None = None
    stop = Stop(parts.view.say)
    try:
        with stop.listening():
            if config.reward.name == HUMAN:
                assert isinstance(parts.scorer, VotedScorer)
                feedback = evolution.judge = open_page(
                    folder,
                    parts.evaluator,
                    parts.scorer,
                    config.used().human,
                    seed=config.run.seed,
                    temperature=config.completion.temperature,
                    generation=evolution.generation,
                    stop=stop,
                    say=parts.view.say,
                )
            done = _progress(config, {"generation": evolution.generation, **evolution.spent()})
            while done < 1:
                parts.scorer.at(evolution.generation)
                measured = evolution.step(done)
                lineage.commit()
                if math.isnan(measured["fitness.best"]):
                    parts.view.say(
                        f"generation {evolution.generation}: the reward scored nothing, so nobody is selected; "
                        "--eval-prompts says on how many prompts it is asked"
                    )
                logged = {f"logged.{name}": value for name, value in parts.scorer.metrics.items()}
                metrics.append({**measured, **logged, "time.total": seconds()})
                done = _progress(config, measured)
                parts.view.generation(measured, config.most_gens, done)
                for callback in given.callbacks:
                    with callback_state.kept():
                        callback({**measured, **logged})
                unsaved = Snapshot.of(evolution, seconds())
                if done >= 1 or stop() or evolution.generation % config.run.save_every == 0:
                    unsaved.write(folder, parts, lineage, identity.run)
                    unsaved = None
                else:
                    unsaved = copy.deepcopy(unsaved)  # the next generation may change what it is made of
                if stop():
                    raise KeyboardInterrupt
            stop.patient = False
            summary = _finish(folder, parts, evolution, lineage, seconds, given, identity)
    except BaseException as end:
        # Whatever ends it in the middle of a generation: the whole ones before it must not be lost.
        if unsaved is not None:
            with stop.saving():
                _save_after(end, unsaved, folder, parts, lineage, identity.run)
        # A signal that reached all processes has ended those of the reward too.
        if isinstance(end, KeyboardInterrupt) or (isinstance(end, RewardError) and stop()):
            raise Interrupted(folder, getattr(end, "number", None) or stop.number or signal.SIGINT) from end
        if not isinstance(end, (InputError, RewardError)):
            end.add_note(f"resume with: evolora resume {folder}")
        raise
    finally:
        parts.view.close()
        if feedback is not None:
            feedback.close()
        lineage.close()
        parts.scorer.close()  # last: a reward of one's own may fail even here
    return Result(folder, summary, metrics.read())


def _save_after(end: BaseException, unsaved: Snapshot, folder: Path, parts: Parts, lineage: Lineage, run: str) -> None:
    """Write what was whole before the run came to this end. Where that fails too, the end says so."""
    try:
        unsaved.write(folder, parts, lineage, run)
    except Exception as error:
        end.add_note(f"generation {unsaved.generation} could not be saved ({ran_out(error) or error})")


def _finish(
    folder: Path,
    parts: Parts,
    evolution: Evolution,
    lineage: Lineage,
    seconds: Callable[[], float],
    given: Given,
    identity: Identity,
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
    if math.isnan(validation):
        parts.view.say("The reward scored no validation prompt: the winner is who was fittest when last measured.")
    if np.isnan(base_test.rewards).all() and np.isnan(winner_test.rewards).all():
        parts.view.say("The reward scored no test prompt: the winner is exported without a test.")
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
        "run": identity.run,
        "version": importlib.metadata.version("evolora"),
        "seed": config.run.seed,
        "model": shown_model(parts.base.path if given.model is not None else config.model.name),
        "task": mask(parts.task.name),
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
        **({"changed": identity.changed} if identity.changed else {}),
        **({} if evolution.judge is None else {"votes": evolution.judge.summary()}),
        "inspection": compare([example.prompt for example in parts.task.test], base_test, winner_test).as_dict(),
    }
    summary = dict(without_nan(summary))
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
        _merge(folder, config, given, identity)
    elif (folder / "merged").is_dir():
        parts.view.say(f"{folder / 'merged'}: is of an earlier winner; --merge writes it anew")
    summary["seconds"] = seconds()
    return write_summary(folder, summary, ["best", "merged"] if config.run.merge else ["best"])


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


def _merge(folder: Path, config: RunOptions, given: Given, identity: Identity) -> None:
    verify(folder / "best", besides=[CARD])
    lora, state = load_adapter(folder / "best")
    if given.model is None or given.tokenizer is None:
        base = load_base(config.used().model.name, dtype=getattr(torch, config.model.dtype))
    else:  # merging changes the weights that it merges into
        base = given_base(copy.deepcopy(given.model), given.tokenizer)
    if weights_sha256(base.model) != identity.fingerprint["model"]["weights"]:
        raise InputError(f"--model {config.model.name}: its weights have changed since this run, expected the same")
    export_merged(folder / "merged", base, lora, state, sealed=True)


def _test_figures(rewards: npt.NDArray[np.float64], seed: int) -> dict[str, Any]:
    """The mean of the rewards [prompts] and its interval; NaN where there is none."""
    low, high = bootstrap_interval(rewards, seed=keyed_seed(seed, "bootstrap"))
    return {"reward": float(mean_fitness(rewards[None])[0]), "ci95": [low, high]}


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
    folder = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    others = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], others) if not path.exists())


def _located(config: RunOptions, folder: Path) -> RunOptions:
    """Paths made absolute: a run can be resumed from any folder."""
    model, data = config.model, config.task.data
    path: dict[str, Any] = {}
    if model.chat_template is not None:
        path["chat_template"] = _absolute(model.chat_template)
    if model.name != BUNDLED_MODEL and Path(model.name).is_dir():
        path["name"] = str(Path(model.name).absolute())
    task = {} if data is None else {"data": _absolute(data)}
    return config.replaced({"run": {"out": _out(config, folder)}, "task": task, "model": path})


def _out(config: RunOptions, folder: Path) -> str:
    """The run's folder, as it was written where it still is that."""
    said, used = config.run.out, config.used().run.out
    return said if said and references(said) and used and Path(used).absolute() == folder else str(folder)


def _absolute(path: str) -> str:
    return path if references(path) else str(Path(path).absolute())
