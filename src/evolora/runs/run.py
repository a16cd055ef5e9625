"""A run from its options, or from its folder: whose it is, whether it may go on, and what it leaves."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import LoraConfig

from evolora.environment import references
from evolora.errors import CheckpointError, InputError
from evolora.files import check_regular, newest_checkpoint, write_text
from evolora.lock import owned
from evolora.models.base import BUNDLED_MODEL
from evolora.models.export import PEFT_CONFIG, config_text
from evolora.runs.assembled import Parts
from evolora.runs.assembly import assemble
from evolora.runs.config_file import check_config, read_run_config
from evolora.runs.disk import need_room_for_run
from evolora.runs.fingerprint import fingerprint
from evolora.runs.finish import merge_winner
from evolora.runs.footprint import footprint
from evolora.runs.generations import run_to_end
from evolora.runs.given import ROWS, Given
from evolora.runs.identity import (
    Fingerprint,
    Identity,
    but_for_seed,
    check_run,
    differences,
    new_identity,
    read_identity,
)
from evolora.runs.initial import Initial
from evolora.runs.keeping.names import find_run, new_folder
from evolora.runs.limits import enough, progress
from evolora.runs.options import RunOptions, Source, make_options
from evolora.runs.recovery import METRICS, check_ledgers, set_aside
from evolora.runs.snapshot import checkpoint_run
from evolora.runs.summary import SUMMARY, check_belonging, read_summary, write_summary
from evolora.runs.tracking.clients import need_trackers
from evolora.runs.tracking.metrics_log import MetricsLog
from evolora.runs.tracking.view import Silence, View
from evolora.runs.trust import Trust, check_trust, note_made_here, said_places
from evolora.tasks.arrow import is_hub_name


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
    like: Fingerprint | None = None,
    accept_changes: bool = False,
) -> Result:
    """Start a run in a new folder, with what it was given as objects. Raises InputError where it depends on anything
    but what a run `like` it depended on, the seed aside, unless `accept_changes`."""
    given, view = given or Given(), view or Silence()
    need_trackers(config.run.report_to)
    given = given.as_one() if config.evolution.fitness is None else given
    folder = Path(config.used().run.out or new_folder(config.run.name)).absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: found a file, expected a folder")
    with made(folder, "checkpoints"), owned(folder, view.say), ExitStack() as ending:
        if (folder / "config.toml").exists():
            raise InputError(f"--out {folder}: holds a run already, resume it with 'evolora resume {folder}'")
        if any((folder / "checkpoints").glob("gen*")):
            raise InputError(f"--out {folder}: holds checkpoints without their config.toml, expected a new folder")
        with rows_in(folder, given.rows) as data:
            config = config if data is None else config.replaced({"task": {"data": str(data)}})
            for note in (*config.notes, *given.notes):
                view.say(note)
            parts = ending.enter_context(assembled(located(config, folder), given, view))
            _need_room(folder, parts)
        if given.peft_config is not None:
            write_text(folder / PEFT_CONFIG, config_text(given.peft_config))
        now = fingerprint(parts, given)
        changes = [] if like is None else list(differences(but_for_seed(like), but_for_seed(now)))
        _check_changes(folder, changes, accept_changes, view)
        if (initial := Initial.of(parts.config)) is not None:
            initial.keep(folder)
        identity = new_identity(now)
        identity.write(folder)
        if (unnoted := note_made_here(folder, identity.run)) is not None:
            view.say(unnoted)
        return Result(folder, *run_to_end(folder, parts, given, identity, changes))


@contextmanager
def assembled(config: RunOptions, given: Given, view: View) -> Iterator[Parts]:
    """A run's parts, whose engine is let go at the end: its workers must not outlive it."""
    parts = assemble(config, given, view)
    with closing(parts.engine):
        yield parts


def _need_room(folder: Path, parts: Parts) -> None:
    """On the disk; and say what memory the run will take."""
    need_room_for_run(folder, parts)
    for line in footprint(parts).lines():
        parts.view.say(line)


@contextmanager
def made(folder: Path, *inner: str) -> Iterator[None]:
    """With the folder there, and with an `inner` one in it; what is new is gone again if nothing was put into it.

    Raises InputError when it cannot be made.
    """
    target = folder.joinpath(*inner)
    try:
        new = [path for path in (target, *target.parents) if not path.exists()]
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be made ({error.strerror}), expected a new folder") from None
    try:
        yield
    finally:
        with suppress(OSError):  # one is not empty
            for path in new:
                path.rmdir()


@contextmanager
def rows_in(folder: Path, rows: list[dict[str, Any]] | None) -> Iterator[Path | None]:
    """The file with the rows that were given from Python, which a resumed run needs; gone again if it is refused."""
    if rows is None:
        yield None
        return
    data = folder / ROWS
    write_text(data, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
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
    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder}: found no config.toml, expected the folder of a run")
    check_regular(folder)
    with owned(folder, view.say):
        return _go_on(folder, words, given or Given(), view, trust, accept_changes)


def _go_on(folder: Path, words: Source, given: Given, view: View, trust: Trust, accept_changes: bool) -> Result:
    if (folder / PEFT_CONFIG).is_file():
        given = replace(given, peft_config=peft_config(folder / PEFT_CONFIG))
    identity, lost = _identity(folder, accept_changes)
    known = read_run_config(folder)
    config = make_options(known, words)
    need_trackers(config.run.report_to)
    given = given.as_one() if config.evolution.fitness is None else given
    own = said_places(words, config) | given.places()
    check_trust(folder, known, config, trust, own=own, wanted="--trust-reward, for somebody whom you trust")
    config = config.replaced({"run": {"out": _out(config, folder)}})
    edited: list[str] = []
    try:
        check_config(folder)
    except CheckpointError as fault:
        edited.append(str(fault))
    if not lost and not edited and (done := finished(folder, config, identity.run, view)) is not None:
        summary, history = done
        for name, function, was in (
            ("reward", given.reward, config.reward.name),
            ("fitness", given.fitness, config.evolution.fitness),
        ):
            if function is not None and str(function[0]) != was:
                raise InputError(f"--{name} {function[0]}: this run's was {was}, expected the same")
        if config.run.merge and "merged" not in summary["sealed"]:
            merge_winner(folder, config, given, identity)
            summary = write_summary(folder, summary, ["best", "merged"])
        return Result(folder, summary, history)
    for note in (*config.notes, *given.notes):
        view.say(note)
    with assembled(config, given, view) as parts:
        _need_room(folder, parts)
        now = fingerprint(parts, given)
        # Edited may be what a resumed run is given by options, too.
        changes = lost or list(differences(identity.fingerprint, now)) or edited
        _check_changes(folder, changes, accept_changes, view)
        return Result(folder, *run_to_end(folder, parts, given, replace(identity, fingerprint=now), changes))


def _check_changes(folder: Path, changes: Sequence[str], accept: bool, view: View) -> None:
    if changes and not accept:
        raise InputError(
            f"{folder}: what the run depends on has changed: {'; '.join(changes)}; expected the same, "
            "or resume's --accept-changes"
        )
    for change in changes:
        view.say(f"changed, as accepted: {change}")


def peft_config(path: Path) -> LoraConfig:
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
        _need_checkpoint(folder, fault)
        say(f"{fault}, set aside as {set_aside(folder / SUMMARY).name}; it is made again from the last checkpoint")
        return None
    if summary is None:
        return None
    check_run(folder / SUMMARY, summary["run"], run)
    history = MetricsLog(folder / METRICS, run).read()
    try:
        check_ledgers(folder, summary["generations"], run)
        if not history or summary["generations"] != history[-1]["generation"]:
            return None
        why = enough(config, history)
        if why is None and progress(config, history[-1]) < 1:
            return None
        for name in summary["sealed"]:
            check_belonging(folder, name, summary)
    except CheckpointError as fault:
        _need_checkpoint(folder, fault)
        say(f"made again: {fault}")
        return None
    if why is not None:
        say(f"the run is over: {why}")
    return summary, history


def _need_checkpoint(folder: Path, fault: CheckpointError) -> None:
    if newest_checkpoint(folder)[0] is None:
        raise CheckpointError(f"{fault}; there is no checkpoint to make it again from") from None


def located(config: RunOptions, folder: Path) -> RunOptions:
    """Paths made absolute: a run can be resumed from any folder."""
    model, data = config.model, config.task.data
    path: dict[str, Any] = {}
    if model.chat_template is not None:
        path["chat_template"] = _absolute(model.chat_template)
    if model.name != BUNDLED_MODEL and Path(model.name).is_dir():
        path["name"] = str(Path(model.name).absolute())
    task = {} if data is None or is_hub_name(data) else {"data": _absolute(data)}
    init = config.lora.init and [
        str(found.absolute()) if (found := find_run(name)).is_dir() else name for name in config.lora.init
    ]
    own = {"out": _out(config, folder), "name": None}  # the folder has it
    return config.replaced({"run": own, "task": task, "model": path, "lora": {"init": init}})


def _out(config: RunOptions, folder: Path) -> str:
    """The run's folder, as it was written where it still is that."""
    said, used = config.run.out, config.used().run.out
    return said if said and references(said) and used and Path(used).absolute() == folder else str(folder)


def _absolute(path: str) -> str:
    return path if references(path) else str(Path(path).absolute())
