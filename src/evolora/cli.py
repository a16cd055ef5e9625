"""The command line: evolora train | resume | rate | ls | show | rm | verify | report | compare | evaluate | generate |
export | votes | reward-model | words.

What takes long to import is imported by the command that needs it, once its options are valid.
"""

import argparse
import contextlib
import difflib
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from evolora.errors import CheckpointError, EngineError, InputError, RewardError, check_text, names_refused, ran_out
from evolora.masking import mask
from evolora.runs.adapter_commands import add_adapter_commands
from evolora.runs.arguments import DEFAULTS, add_options, add_trust, source_of, trust_of
from evolora.runs.config_file import config_toml, read_config, read_run_config
from evolora.runs.help import full_help, short_help
from evolora.runs.keeping.commands import add_commands
from evolora.runs.keeping.names import find_run
from evolora.runs.memory import check_at_once
from evolora.runs.options import RunOptions, Source, check_resumable, make_options
from evolora.runs.parts import RESUMABLE
from evolora.runs.quiet import quieten
from evolora.runs.result import say_result, say_seeds
from evolora.runs.tracking.choice import SHOWN_BY, Pausing, Shows, choose_view
from evolora.runs.tracking.clients import need_trackers
from evolora.runs.typed import Typed, typed_words
from evolora.signals import NOTHING_YET

if TYPE_CHECKING:
    from evolora.runs.tracking.view import View
    from evolora.runs.trust import Trust

_RESUME_OPTIONS = [DEFAULTS.place(word) for word in RESUMABLE]

_REWARD_MODEL_OPTIONS: tuple[tuple[str, str | int | float, str], ...] = (
    ("model", "tiny-gpt2", "base model: tiny-gpt2 (bundled), a folder or a hub name"),
    ("lr", 1e-3, "learning rate"),
    ("epochs", 8, "passes over the preferences"),
    ("batch-size", 16, "preferences a step"),
    ("r", 8, "rank of the LoRA adapters"),
    ("alpha", 16, "LoRA alpha"),
    ("holdout", 0.2, "share of the preferences that only measures agreement"),
    ("seed", 0, "seed of the order of the preferences and of LoRA's first weights"),
    ("device", "cpu", "where to compute"),
    ("threads", 1, "CPU threads"),
)


class _Parser(argparse.ArgumentParser):
    """An argparse that raises InputError instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        if (wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)) is not None:
            known = re.findall(r"[\w-]+", wrong[2])
            near = difflib.get_close_matches(wrong[1], known, n=1)
            expected = near[0] if near else f"one of {', '.join(known)}"
            message = f"{wrong[1]}: found no such command, expected {expected}"
        raise InputError(f"{message} (see '{self.prog} --help')")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0, 1 when the run failed, 2 for bad input, 130 after Ctrl-C, 128 and the signal's
    number after another."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with names_refused():
            return _command_of(given)
    except InputError as error:
        print("evolora:", *str(error).split("\n"), file=sys.stderr)
        return 2
    except (RewardError, CheckpointError, EngineError) as error:
        print("; ".join([f"evolora: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupted:
        folder = getattr(interrupted, "folder", None)
        said = NOTHING_YET if folder is None else f"Interrupted. Resume with: evolora resume {folder}"
        print(said, file=sys.stderr)
        return 128 + int(getattr(interrupted, "number", signal.SIGINT))
    except Exception as error:
        if (lacked := ran_out(error)) is None:
            raise
        print("; ".join([f"evolora: {lacked}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1


def _command_of(given: list[str]) -> int:
    for number, argument in enumerate(given, 1):
        check_text(f"argument {number}", argument)
    if given[:1] == ["train"]:
        return _train(typed_words(given[1:]))
    parser = _parser()
    if not given:
        parser.print_help()
        return 0
    parsed, rest = parser.parse_known_args(given)
    options = vars(parsed)
    if "prompts" in options:  # argparse takes several at one place alone, before or behind the options
        options["prompts"] += [word for word in rest if " " in word or not word.startswith("-")]
        rest = [word for word in rest if word not in options["prompts"]]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    command = options.pop("command")
    return int(command(options))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="evolora", description="Evolve and reinforce LoRA adapters against any reward.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"evolora {version('evolora')}")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=_Parser)

    commands.add_parser("train", help="start a run")  # whose words depend on each other: `typed_words` reads them

    resumed = _command(commands, "resume", "continue a run that was stopped, or give it more generations", _resume)
    resumed.add_argument("run", metavar="RUN", help="the run's folder or name")
    _add_resume_options(resumed)

    rated = _command(commands, "rate", "open the rating page of a run with --reward human again, and go on", _rate)
    rated.add_argument("run", metavar="RUN", help="the run's folder or name")
    _add_resume_options(rated)

    add_commands(partial(_command, commands))
    add_adapter_commands(partial(_command, commands))

    verified = _command(commands, "verify", "say of every file of a run whether it is whole", _verify)
    verified.add_argument("run", metavar="RUN", help="the run's folder or name")

    reported = _command(
        commands, "report", "write a run's report.html, finished or not, into its folder", _write_report
    )
    reported.add_argument("run", metavar="RUN", help="the run's folder or name")
    reported.add_argument(
        "--figures", metavar="DIR", help="also write its charts as SVG and PNG, and its numbers as CSV, into a folder"
    )

    compared = _command(commands, "compare", "show runs side by side, and write a page of them", _compare)
    compared.add_argument("runs", metavar="RUN", nargs="+", help="the runs' folders or names")
    compared.add_argument("--to", metavar="FILE", default="compare.html", help="the page (default compare.html)")

    votes = _command(commands, "votes", "export or import the votes of a run with --reward human", None)
    ways = votes.add_subparsers(required=True, metavar="export|import", parser_class=_Parser)
    exported_votes = _command(ways, "export", "write them as JSONL of prompt, chosen, rejected", _export_votes)
    exported_votes.add_argument("run", metavar="RUN", help="the run's folder or name")
    exported_votes.add_argument("--to", metavar="FILE", required=True, help="a new file")
    imported_votes = _command(ways, "import", "add those of a JSONL file of prompt, chosen, rejected", _import_votes)
    imported_votes.add_argument("run", metavar="RUN", help="the run's folder or name")
    imported_votes.add_argument("file", metavar="FILE", help="the votes")

    reward_model = _command(commands, "reward-model", "train a reward model from preferences", None)
    ways = reward_model.add_subparsers(required=True, metavar="train", parser_class=_Parser)
    fitted = _command(ways, "train", "fit one to JSONL of prompt, chosen, rejected", _train_reward_model)
    fitted.add_argument("file", metavar="FILE|RUN", help="the preferences, or a run with --reward human")
    fitted.add_argument("--out", metavar="DIR", required=True, help="a new folder for the model")
    for option, default, text in _REWARD_MODEL_OPTIONS:
        kind: dict[str, Any] = {} if isinstance(default, str) else {"type": type(default)}
        help_text = f"{text} (default {default})"
        fitted.add_argument(f"--{option}", default=default, metavar="X", help=help_text, **kind)

    _command(commands, "words", "say what the words on the screen mean", _say_words)

    return parser


def _command(commands: Any, name: str, help_text: str, function: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".", allow_abbrev=False
    )
    parser.set_defaults(command=function)
    return parser


def _add_resume_options(parser: argparse.ArgumentParser) -> None:
    add_trust(parser)
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although data, model, reward, options or versions have changed; the summary will say so",
    )
    ways = parser.add_mutually_exclusive_group()
    for option, text in zip(SHOWN_BY, ("only what it came to in the end", "all that happens, as JSON"), strict=True):
        ways.add_argument(option, action="store_true", help=text)
    add_options(parser, _RESUME_OPTIONS)


def _train(typed: Typed) -> int:
    if typed.help is not None:
        print(full_help(typed.source) if typed.help == "all" else short_help(typed.source))
        return 0
    if typed.resume is not None:
        return _resumed_by_train(typed)
    sources = [read_config(Path(path)) for path in typed.files]
    options = make_options(*sources, typed.source)
    check_at_once(options)
    need_trackers(options.run.report_to)
    if typed.dry_run:
        return _dry_run(options)
    with _loading(options, typed.shows) as view:
        from evolora.runs.run import start

        if options.run.seeds is not None:
            return _train_seeds(options, view, typed.shows)
        result = start(options, view=view)
    say_result(result, view)
    return 0


def _train_seeds(options: RunOptions, view: "View", shows: Shows) -> int:
    from evolora.runs.given import Given
    from evolora.runs.seeds.run import start_seeds

    say_seeds(start_seeds(options, given=Given(), view=view, views=lambda: choose_view(shows)), view)
    return 0


@contextlib.contextmanager
def _loading(options: RunOptions, shows: Shows) -> Iterator["View"]:
    """The view of a run, which is there before what takes seconds to import."""
    if shows == "quiet" and options.asks_people:
        raise InputError("--quiet with --reward human: expected no --quiet, the page's address has to be said")
    with contextlib.closing(choose_view(shows)) as view:
        view.progress("loading torch and transformers", 0, 0)
        quieten()
        yield view


def _resumed_by_train(typed: Typed) -> int:
    words = {DEFAULTS.words.get(word.replace("-", "_")): (word, value) for word, value in typed.source.words}
    out = words.pop(("run", "out"), (None, None))[1]
    folder = typed.resume or out
    if not folder:
        raise InputError("--resume: found no run folder, expected --resume RUN or --out RUN beside it")
    words_left = Source(list(words.values()), typed.source.speech, typed.source.shown)
    check_resumable(words_left)
    return _continue(find_run(folder), words_left, trust_of({"trust_reward": typed.trust_reward}), False, typed.shows)


def _dry_run(options: RunOptions) -> int:
    quieten()
    from evolora.runs.estimate import estimate

    found = estimate(options)
    print(mask(config_toml(found.options)))
    print("\n".join(f"# {line}" for line in found.lines()))
    return 0


def _resume(options: dict[str, Any]) -> int:
    words = source_of(options, _RESUME_OPTIONS)
    return _continue(find_run(options["run"]), words, trust_of(options), options["accept_changes"], _shows(options))


def _rate(options: dict[str, Any]) -> int:
    folder, words = find_run(options["run"]), source_of(options, _RESUME_OPTIONS)
    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder}: found no config.toml, expected the folder of a run")
    config = make_options(read_run_config(folder))
    if not config.asks_people:
        raise InputError(f"{folder}: its reward is {config.reward.name}, expected a run with --reward human")
    if (folder / "summary.json").exists() and not words.words:
        from evolora.runs.identity import read_identity
        from evolora.runs.run import finished

        if finished(folder, config, read_identity(folder).run) is not None:
            raise InputError(f"{folder}: the run is finished, expected more generations, such as --gens 40, to rate")
    return _continue(folder, words, trust_of(options), options["accept_changes"], _shows(options))


def _verify(options: dict[str, Any]) -> int:
    quieten()
    from evolora.runs.seeds.folder import is_seeds
    from evolora.runs.seeds.whole import verify_seeds
    from evolora.runs.whole import verify_run

    folder = find_run(options["run"])
    found = verify_seeds(folder) if is_seeds(folder) else verify_run(folder)
    for name, fault in found.items():
        print(f"{name}: whole" if fault is None else fault)
    return 1 if any(found.values()) else 0


def _write_report(options: dict[str, Any]) -> int:
    quieten()
    from evolora.runs.report.page import write_report
    from evolora.runs.report.seeds import write_seeds_report
    from evolora.runs.seeds.folder import is_seeds, read_seeds, seed_folder

    folder, figures = find_run(options["run"]), options["figures"]
    if is_seeds(folder):
        if figures is not None:
            raise InputError(f"--figures {figures}: {folder} has several seeds, expected the folder of one of them")
        for seed in read_seeds(folder).begun(folder):
            write_report(seed_folder(folder, seed))
        print(write_seeds_report(folder))
        return 0
    written = []
    if figures is not None:
        from evolora.runs.report.figures import write_figures

        written = write_figures(folder, Path(figures))
    print(write_report(folder), *written, sep="\n")
    return 0


def _compare(options: dict[str, Any]) -> int:
    quieten()
    from rich.console import Console

    from evolora.runs.report.compare import compare_runs, write_comparison

    comparison = compare_runs([find_run(run) for run in options["runs"]])
    comparison.show(Console())
    write_comparison(comparison, Path(options["to"]))
    print(f"page: {options['to']}")
    return 0


def _export_votes(options: dict[str, Any]) -> int:
    from evolora.human.exchange import export_votes

    count = export_votes(find_run(options["run"]), Path(options["to"]))
    print(f"{count} votes written to {options['to']}")
    return 0


def _import_votes(options: dict[str, Any]) -> int:
    from evolora.human.exchange import import_votes

    count = import_votes(find_run(options["run"]), Path(options["file"]))
    print(f"{count} votes added to {options['run']}")
    return 0


def _train_reward_model(options: dict[str, Any]) -> int:
    quieten()
    from evolora.human.reward_model_training import train_reward_model

    trained = train_reward_model(
        find_run(options["file"]),
        Path(options["out"]),
        **{option.replace("-", "_"): options[option.replace("-", "_")] for option, _, _ in _REWARD_MODEL_OPTIONS},
    )
    print("\n".join(trained.lines()))
    return 0


def _asked_below(view: "View", trust: "Trust") -> "Trust":
    """The same, where a question is not drawn over."""
    if not callable(trust) or not isinstance(view, Pausing):
        return trust

    def ask(question: str) -> bool:
        with view.paused():
            return trust(question)

    return ask


def _shows(options: Mapping[str, Any]) -> Shows:
    return "quiet" if options["quiet"] else "json" if options["json_lines"] else "auto"


def _continue(folder: Path, words: Source, trust: "Trust", accept_changes: bool, shows: Shows) -> int:
    if (folder / "seeds.json").is_file():
        return _continue_seeds(folder, words, trust, accept_changes, shows)
    known = [read_run_config(folder)] if (folder / "config.toml").is_file() else []
    options = make_options(*known, words)  # refused at once
    with _loading(options, shows) as view:
        from evolora.runs.run import go_on

        result = go_on(folder, words, view=view, trust=_asked_below(view, trust), accept_changes=accept_changes)
    say_result(result, view)
    return 0


def _continue_seeds(folder: Path, words: Source, trust: "Trust", accept_changes: bool, shows: Shows) -> int:
    with _loading(make_options(words), shows) as view:
        from evolora.runs.given import Given
        from evolora.runs.seeds.run import go_on_seeds

        result = go_on_seeds(
            folder, words, given=Given(), view=view, views=lambda: choose_view(shows),
            trust=_asked_below(view, trust), accept_changes=accept_changes,
        )  # fmt: skip
    say_seeds(result, view)
    return 0


def _say_words(_: dict[str, Any]) -> int:
    from evolora.runs.tracking.words import WORDS

    print("\n".join(f"{word:<13} {meaning}" for word, meaning in WORDS.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
