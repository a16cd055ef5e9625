"""The same run under several seeds, from its options or from its folder, to one summary."""

import secrets
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from peft import LoraConfig

from evolora.engine.calibration import available_cores
from evolora.errors import CheckpointError, EngineError, InputError, RewardError
from evolora.files import check_regular, file_sha256, write_checked, write_text
from evolora.lock import owned
from evolora.models.export import PEFT_CONFIG, config_text
from evolora.runs.config_file import read_run_config
from evolora.runs.given import ROWS, Given
from evolora.runs.identity import IDENTITY, SEEDS, Fingerprint, read_identity
from evolora.runs.keeping.names import new_folder
from evolora.runs.options import RunOptions, Source, make_options
from evolora.runs.recovery import LINEAGE, METRICS
from evolora.runs.report.page import REPORT
from evolora.runs.report.seeds import write_seeds_report
from evolora.runs.run import Result, finished, go_on, located, made, peft_config, rows_in, start
from evolora.runs.seeds.folder import Seeds, for_each_run, read_seeds, seed_folder
from evolora.runs.seeds.summary import summed_up
from evolora.runs.seeds.workers import side_by_side
from evolora.runs.stopping import Interrupted
from evolora.runs.summary import SUMMARY
from evolora.runs.tracking.view import Silence, View
from evolora.runs.trust import Trust, check_trust, note_made_here, said_places


@dataclass(frozen=True)
class SeedsResult(Result):
    """What a run under several seeds leaves: `runs` has each seed's result, `summary` the means over the seeds with
    their intervals. Adapter, merged model and history are those of the seed that is best on validation."""

    runs: Mapping[int, Result]

    @property
    def best(self) -> Result:
        """The result of the seed that is best on the validation split."""
        return self.runs[self.summary["best"]]

    @property
    def adapter(self) -> Path:
        return self.best.adapter

    @property
    def merged(self) -> Path | None:
        return self.best.merged


def start_seeds(config: RunOptions, *, given: Given, view: View, views: Callable[[], View]) -> SeedsResult:
    """Start a run under several seeds in a new folder. `view` shows what concerns all of them; each run is shown by one
    of its own, of `views`, after which that one is closed."""
    folder = Path(config.used().run.out or new_folder(config.run.name)).absolute()
    workers = _checked_workers(config, given)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: found a file, expected a folder")
    with made(folder), owned(folder, view.say), _left_as_it_was(folder, config.run.each_seed):
        for name in ("config.toml", SEEDS, *(f"seed-{seed}" for seed in config.run.each_seed)):
            if (folder / name).exists():
                raise InputError(f"--out {folder}: found {name} in it, expected a new folder, or 'evolora resume'")
        for note in (*config.notes, *given.notes):
            view.say(note)
        with rows_in(folder, given.rows) as data:
            config = config if data is None else config.replaced({"task": {"data": str(data)}})
        if given.peft_config is not None:
            write_text(folder / PEFT_CONFIG, config_text(given.peft_config))
        files = {name: file_sha256(folder / name) for name in (ROWS, PEFT_CONFIG) if (folder / name).is_file()}
        seeds = Seeds.of(secrets.token_hex(16), located(config, folder), files)
        seeds.write(folder)
        if (unnoted := note_made_here(folder, seeds.run)) is not None:
            view.say(unnoted)
        trusted = [("trust_remote_code", True)] if config.model.trust_remote_code else []
        given = replace(given, rows=None, notes=())
        return _to_end(_All(folder, seeds, Source(trusted), given, workers, view, views))


def go_on_seeds(
    folder: Path,
    words: Source,
    *,
    given: Given,
    view: View,
    views: Callable[[], View],
    trust: Trust = False,
    accept_changes: bool = False,
) -> SeedsResult:
    """Go on with the seeds that are not finished, as `run.go_on` does with each."""
    folder = folder.absolute()
    check_regular(folder)
    with owned(folder, view.say):
        seeds = read_seeds(folder)
        config = make_options(seeds.words(folder), words)
        _check_trust(folder, seeds, words, given, trust)
        if words.words:
            seeds = Seeds.of(seeds.run, config, seeds.files)
            seeds.write(folder)
        for note in given.notes:
            view.say(note)
        given = replace(given, peft_config=peft_config_in(folder), notes=())
        workers = min(_checked_workers(config, given, again=True), available_cores())
        return _to_end(_All(folder, seeds, words, given, workers, view, views, accept_changes))


@dataclass(frozen=True)
class _All:
    """What the runs of all seeds have in common."""

    folder: Path
    seeds: Seeds
    words: Source
    given: Given
    workers: int
    view: View
    views: Callable[[], View]
    accept_changes: bool = False


def _checked_workers(config: RunOptions, given: Given, *, again: bool = False) -> int:
    """How many runs side by side. Raises InputError for more than there are cores for."""
    workers = min(config.run.seed_workers or 1, len(config.run.each_seed))
    if workers == 1:
        return 1
    cores, threads = available_cores(), config.engine.threads or 1
    if workers * threads > cores and not again:
        each = f" with --threads {threads}" if config.engine.threads else ""
        raise InputError(
            f"--seed-workers {config.run.seed_workers}{each}: expected at most the {cores} cores that there are in all"
        )
    objects = {
        "model": given.model,
        "reward": given.reward,
        "fitness": given.fitness,
        "callbacks": given.callbacks or None,
    }
    for name, value in objects.items():
        if value is not None:
            raise InputError(
                f"--seed-workers {config.run.seed_workers}: found Python objects as {name}, which other processes do "
                "not have, expected names, or none to run the seeds one after another"
            )
    return workers


def _check_trust(folder: Path, seeds: Seeds, words: Source, given: Given, trust: Trust) -> None:
    """For all runs, before any goes on: workers cannot ask."""
    known = [(folder, seeds.words(folder))]
    known += [(run, read_run_config(run)) for run in (seed_folder(folder, seed) for seed in seeds.begun(folder))]
    for run, said in known:
        options = make_options(said, words if run == folder else for_each_run(words))
        own = said_places(words, options) | given.places()
        check_trust(run, said, options, trust, own=own, wanted="--trust-reward, for somebody whom you trust")


def _to_end(of: _All) -> SeedsResult:
    try:
        return _run_all(of)
    except KeyboardInterrupt as end:
        if not of.seeds.begun(of.folder):
            raise
        raise Interrupted(of.folder, getattr(end, "number", signal.SIGINT)) from end


def _run_all(of: _All) -> SeedsResult:
    folder, seeds, view = of.folder, of.seeds, of.view
    with _said_of_all(folder):
        if of.workers > 1:
            view.say(f"run folder: {folder}; {len(seeds.seeds)} seeds, {of.workers} at a time")
            side_by_side(
                folder,
                [seed for seed in seeds.seeds if not _is_finished(folder, seed, of.words)],
                of.words,
                workers=of.workers,
                accept_changes=of.accept_changes,
                say=view.say,
                ended=lambda: _report(folder, view),
            )
    view.close()  # each run has its own
    runs: dict[int, Result] = {}
    for number, seed in enumerate(seeds.seeds, 1):
        # Those that workers have finished are only read.
        with closing(Silence() if of.workers > 1 else of.views()) as own, _said_of_all(folder, seed):
            if of.workers == 1:
                before = ": finished before" if _is_finished(folder, seed, of.words) else ""
                own.say(f"seed {seed}, {number} of {len(seeds.seeds)}{before}")
            runs[seed] = run_seed(folder, seed, of.words, of.given, own, accept_changes=of.accept_changes)
        if of.workers == 1:
            _report(folder, own)
    with _said_of_all(folder):
        summary = summed_up(folder, seeds)
        write_checked(folder / SUMMARY, summary)
    _report(folder, view)
    return SeedsResult(folder, summary, runs[summary["best"]].history, runs)


def run_seed(folder: Path, seed: int, words: Source, given: Given, view: View, *, accept_changes: bool) -> Result:
    """The run of one seed, begun or not, to its end; whoever calls has asked whether its options are trusted."""
    seeds, run = read_seeds(folder), seed_folder(folder, seed)
    if seed in seeds.begun(folder):
        return go_on(
            run, for_each_run(words), given=given, view=view, trust=True, accept_changes=accept_changes
        )  # fmt: skip
    for name in (IDENTITY, METRICS, LINEAGE, f"{LINEAGE}-journal"):  # a kill came before the run could be resumed
        (run / name).unlink(missing_ok=True)
    config = seeds.options(folder, seed, words)
    return start(config, given=given, view=view, like=_first(folder, seeds), accept_changes=accept_changes)


def peft_config_in(folder: Path) -> LoraConfig | None:
    """What the runs were given of PEFT's, if anything."""
    return peft_config(folder / PEFT_CONFIG) if (folder / PEFT_CONFIG).is_file() else None


def _first(folder: Path, seeds: Seeds) -> Fingerprint | None:
    begun = seeds.begun(folder)
    return read_identity(seed_folder(folder, begun[0])).fingerprint if begun else None


def _is_finished(folder: Path, seed: int, words: Source) -> bool:
    """Whether a run has nothing left to do; where that is in doubt, its own process says what is wrong."""
    run = seed_folder(folder, seed)
    try:
        config = make_options(read_run_config(run), for_each_run(words))
        return finished(run, config, read_identity(run).run) is not None
    except (InputError, CheckpointError):
        return False


def _report(folder: Path, view: View) -> None:
    try:
        write_seeds_report(folder)
    except Exception as error:  # nothing of the runs is lost with it
        view.say(f"{folder / REPORT}: could not be written ({error}); 'evolora report {folder}' tries again")


@contextmanager
def _left_as_it_was(folder: Path, seeds: tuple[int, ...]) -> Iterator[None]:
    """Where no run was begun inside, all that is new in the folder is gone again. For its owner."""
    before = set(folder.iterdir())
    try:
        yield
    except BaseException:
        if not any((seed_folder(folder, seed) / "config.toml").is_file() for seed in seeds):
            for path in {folder / name for name in (SEEDS, ROWS, PEFT_CONFIG)} - before:
                path.unlink(missing_ok=True)
            for run in {seed_folder(folder, seed) for seed in seeds} - before:
                shutil.rmtree(run, ignore_errors=True)
        raise


@contextmanager
def _said_of_all(folder: Path, seed: int | None = None) -> Iterator[None]:
    """Whatever fails inside, it is all of them that are resumed."""
    try:
        yield
    except InputError:
        raise
    except (RewardError, CheckpointError, EngineError) as end:
        whose = "" if seed is None else f"seed {seed}: "
        raise type(end)(f"{whose}{end}\nresume with: evolora resume {folder}") from end
    except Exception as end:
        notes = [note for note in getattr(end, "__notes__", []) if not note.startswith("resume with: ")]
        end.__notes__ = [*notes, f"resume with: evolora resume {folder}"]
        raise
