"""A run from its newest checkpoint to its end: the loop, its checkpoints, and whatever ends it."""

import copy
import functools
import itertools
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evolora.engine.base import Counts
from evolora.errors import CheckpointError, EngineError, InputError, RewardError, ran_out
from evolora.evolution.loop import Evolution, sample
from evolora.files import write_text
from evolora.human.feedback import HumanFeedback, open_page
from evolora.masking import keys_in, mask
from evolora.population.lineage import Lineage
from evolora.runs.assembled import Parts
from evolora.runs.building import build_evolution
from evolora.runs.callbacks import Callbacks, Run
from evolora.runs.config_file import config_toml, with_checksum
from evolora.runs.finish import finish
from evolora.runs.footprint import taken_memory
from evolora.runs.given import Given
from evolora.runs.identity import Identity
from evolora.runs.keeping.names import run_name
from evolora.runs.limits import enough, progress
from evolora.runs.mutation_scale import with_mutation_scale
from evolora.runs.options import RunOptions
from evolora.runs.outlook import warn_of_equal_rewards
from evolora.runs.recovery import LINEAGE, METRICS, REWARD_LOG, recover
from evolora.runs.report.endings import cut_warning, rose_alone
from evolora.runs.report.live import LiveReport
from evolora.runs.snapshot import Snapshot, restore
from evolora.runs.stopping import Interrupted, Stop
from evolora.runs.summary import SUMMARY
from evolora.runs.tracking.metrics_log import MetricsLog
from evolora.runs.tracking.shown import SAVING
from evolora.runs.tracking.trackers import Trackers
from evolora.runs.tracking.view import Outset, warn

# How often a generation is done again without those of the engine who computed it wrongly.
_MOST_REDONE = 8
# What was validated so far, and samples of it.
_VALIDATED = """
SELECT samples.generation, operator, fitness, prompt, completion, reward FROM samples
JOIN individuals ON individuals.id = samples.individual
JOIN fitness USING (generation, individual, stage) WHERE stage = 'validation' ORDER BY samples.rowid
"""


def run_to_end(
    folder: Path, parts: Parts, given: Given, identity: Identity, changes: Sequence[str] = ()
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Go on from the newest checkpoint, if there is one, to the end: the summary, and the metrics of each generation.
    `changes` from what the run depended on are accepted."""
    config = parts.config
    parts = with_mutation_scale(parts, folder, identity.run)
    evolution = build_evolution(parts, Lineage())
    seconds_before = restore(folder, parts, evolution, identity.run)
    if evolution.generation == 0 and (folder / SUMMARY).exists():
        raise CheckpointError(f"{folder}: found a finished run without any checkpoint, expected one to go on from")
    recover(folder, evolution.generation, identity.run, parts.view.say)
    metrics, lineage = (
        MetricsLog(folder / METRICS, identity.run),
        Lineage(folder / LINEAGE, identity.run, parts.summands),
    )
    evolution.lineage = lineage
    # Not before: nothing new must stay behind in a run that was refused.
    if changes:
        accepted = {"generation": evolution.generation, "what": changes}
        identity = replace(identity, changed=[*identity.changed, accepted])
        identity.write(folder)
    _write_config(folder, config)
    metrics.rewind(evolution.generation)
    lineage.rewind(evolution.generation if evolution.generation else -1)
    began = time.perf_counter()

    def seconds() -> float:
        return seconds_before + time.perf_counter() - began

    name = run_name(folder)
    parts.view.say(f"run: {name}")
    parts.view.say(f"run folder: {folder}")
    trackers = Trackers(
        config.run.report_to,
        folder,
        name=name.replace("/", "-"),
        run=identity.run,
        say=parts.view.say,
        warn=functools.partial(warn, parts.view),
    )
    run = Run(folder, name, config.most_gens, parts, evolution)
    callbacks = Callbacks(given.callbacks, run)
    unsaved: Snapshot | None = None
    redone = 0
    feedback: HumanFeedback | None = None
    stop = Stop(parts.view.say)

    def take_back(fault: EngineError, what: str) -> None:
        nonlocal redone
        redone += 1
        if not fault.mended or redone > _MOST_REDONE:
            raise fault
        parts.view.say(f"{fault}; it is gone, and {what} is done again")
        _take_back(folder, parts, evolution, unsaved, identity.run)

    report = LiveReport(folder, parts.view.say)
    try:
        with stop.listening():
            history = list(metrics.read())
            trackers.start(config.parts(), history)
            callbacks.start()
            if (voted := parts.voted) is not None:
                feedback = evolution.judge = open_page(
                    folder,
                    parts.evaluator,
                    voted,
                    config.used().human,
                    seed=config.run.seed,
                    temperature=config.completion.temperature,
                    generation=evolution.generation,
                    stop=stop,
                    say=parts.view.say,
                    reporter=parts.reporter,
                )
            done = progress(config, {"generation": evolution.generation, **evolution.spent()})
            done = max(done, float(enough(config, history) is not None))
            _show_outset(parts, evolution, history, done)
            printed = _Printed(folder / REWARD_LOG, parts.view.say)
            report.update(done, config.most_gens)
            evolution.base_is_flat = functools.partial(warn_of_equal_rewards, parts)
            warned = hacked = False
            while done < 1:
                parts.at(evolution.generation)
                try:
                    measured = evolution.step(done)
                except EngineError as fault:
                    take_back(fault, f"generation {evolution.generation}")
                    continue
                redone = 0
                lineage.commit()
                if (news := parts.budget.news()) is not None:
                    parts.view.say(news)
                    _write_config(folder, config.replaced({"engine": {"update_tokens": parts.budget.tokens}}))
                if math.isnan(measured["fitness.best"]):
                    parts.view.say(
                        f"generation {evolution.generation}: the reward scored nothing, so nobody is selected; "
                        "--eval-prompts says on how many prompts it is asked"
                    )
                whose = f"generation {evolution.generation}'s completions"
                if (
                    not warned
                    and (warning := cut_warning(whose, measured["clipped_ratio"], parts.max_new_tokens)) is not None
                ):
                    parts.view.say(warning)
                    warned = True
                logged = {f"logged.{name}": value for each in parts.scorers for name, value in each.metrics.items()}
                measured["time.memory"] = taken_memory(parts.base.model.device)
                computed = parts.engine.metrics() if isinstance(parts.engine, Counts) else {}
                line = {**measured, **logged, **computed, "time.total": seconds()}
                metrics.append(line)
                history.append(line)
                unsaved = Snapshot.of(evolution, seconds())
                trackers.generation(line)
                done = progress(config, measured)
                parts.view.generation(measured, config.most_gens, done)
                if not hacked and (hacked := evolution.only_the_reward_rose(measured["validation"])):
                    assert evolution.rewards is not None
                    parts.view.say(f"generation {evolution.generation}: {rose_alone(*evolution.rewards)}")
                for news in evolution.hits.news(evolution.generation):
                    parts.view.say(news)
                printed.look()
                report.update(done, config.most_gens)
                if (why := enough(config, history)) is not None:
                    parts.view.say(f"generation {evolution.generation} is the last: {why}")
                    done = 1
                if callbacks.generation(line):
                    parts.view.say(f"generation {evolution.generation}: a callback ends the run")
                    done = 1
                if done >= 1 or stop() or evolution.generation % config.run.save_every == 0:
                    parts.reporter.begin(SAVING)
                    unsaved.write(folder, parts, lineage, identity.run)
                    unsaved = None
                else:
                    unsaved = copy.deepcopy(unsaved)  # the next generation may change what it is made of
                if stop():
                    raise KeyboardInterrupt
            stop.patient = False
            while True:
                try:
                    summary = finish(folder, parts, evolution, lineage, seconds, given, identity)
                    break
                except EngineError as fault:
                    take_back(fault, "the final choice")
            parts.reporter.begin("writing the report")
            report.end()
            trackers.summary(summary)
            callbacks.end(summary)
            printed.look()
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
        if feedback is not None:
            feedback.close()
        lineage.close()
        report.end()
        trackers.close()
        parts.close()  # last: a reward of one's own may fail even here
    return summary, metrics.read()


def _take_back(folder: Path, parts: Parts, evolution: Evolution, unsaved: Snapshot | None, run: str) -> None:
    """Let the loop be what it was after its last whole generation."""
    fresh = replace(
        build_evolution(parts, evolution.lineage),
        judge=evolution.judge,
        canary=evolution.canary,
        base_is_flat=evolution.base_is_flat,
    )
    if unsaved is None:
        restore(folder, parts, fresh, run)
    else:
        fresh.load_state_dict(copy.deepcopy(unsaved.state))
    fresh.lineage.rewind(fresh.generation if fresh.generation else -1)
    vars(evolution).update(vars(fresh))


def _show_outset(parts: Parts, evolution: Evolution, history: Sequence[Mapping[str, Any]], done: float) -> None:
    """Tell the view how the run begins, or what it has come to so far."""
    config, view = parts.config, parts.view
    limits = {name: value for name, value in config.budget.model_dump().items() if value is not None}
    title = f"{mask(parts.task.name)}, {mask(config.model.name.strip('<>'))}"
    view.begin(Outset(title, config.most_gens, limits, done, evolution.phases, history))
    examples = {example.prompt: example for example in parts.task.validation}
    for who, group in itertools.groupby(evolution.lineage.query(_VALIDATED), key=lambda row: row[:3]):
        samples = [
            sample(examples[prompt], text, math.nan if reward is None else reward)
            for *_, prompt, text, reward in group
            if prompt in examples
        ]
        view.wrote(str(who[1]), math.nan if who[2] is None else float(who[2]), samples)


class _Printed:
    """Says once where what the reward prints has gone."""

    def __init__(self, log: Path, say: Callable[[str], None]) -> None:
        self._log, self._say = log, say
        self._before = self._size()

    def look(self) -> None:
        if self._size() > self._before:
            self._say(f"what the reward prints goes to {self._log}")
            self._before = math.inf

    def _size(self) -> float:
        return self._log.stat().st_size if self._log.exists() else 0


def _write_config(folder: Path, config: RunOptions) -> None:
    text = config_toml(config)
    write_text(folder / "config.toml", with_checksum(text), private=bool(keys_in(text)))


def _save_after(end: BaseException, unsaved: Snapshot, folder: Path, parts: Parts, lineage: Lineage, run: str) -> None:
    """Write what was whole before the run came to this end. Where that fails too, the end says so."""
    try:
        unsaved.write(folder, parts, lineage, run)
    except Exception as error:
        end.add_note(f"generation {unsaved.generation} could not be saved ({ran_out(error) or error})")
