"""The command line: evolora train | resume | rate | ls | show | rm | verify | report | compare | evaluate | generate |
export | votes | reward-model | words.

What takes long to import is imported by the command that needs it, once its options are valid.
"""

import argparse
import contextlib
import difflib
import math
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from evolora.errors import CheckpointError, InputError, RewardError, check_text, names_refused, ran_out
from evolora.masking import mask
from evolora.options import can_do_without
from evolora.runs.config_file import config_toml, read_config, read_run_config
from evolora.runs.help import full_help, option_help, short_help
from evolora.runs.keeping.commands import add_commands
from evolora.runs.keeping.names import find_run
from evolora.runs.memory import check_at_once
from evolora.runs.options import RunOptions, Source, check_resumable, make_options, trl_note
from evolora.runs.parts import RESUMABLE, TRL_WORDS, Place, Vocabulary, trl_name
from evolora.runs.quiet import quieten
from evolora.runs.speech import Speech
from evolora.runs.tracking.choice import SHOWN_BY, Pausing, Shows, choose_view
from evolora.runs.tracking.clients import need_trackers
from evolora.runs.tracking.plain import JsonLines
from evolora.runs.typed import Typed, takes_several, typed_words
from evolora.screen import asked
from evolora.signals import NOTHING_YET

if TYPE_CHECKING:
    from evolora.runs.run import Result
    from evolora.runs.seeds.run import SeedsResult
    from evolora.runs.tracking.view import View
    from evolora.runs.trust import Trust

_DEFAULTS = Vocabulary({})
# Options of the run that also make sense for an adapter that is done.
_APPLY_OPTIONS = [
    _DEFAULTS.place(word)
    for word in (
        "model", "revision", "trust_remote_code", "attn_implementation", "quantization", "device", "dtype", "threads",
        "chat_template", "chat_template_kwargs", "system_prompt", "task", "data", "data_config", "data_split",
        "prompt_column", "target_column", "prompt", "target",
        "max_validation_prompts", "max_test_prompts", "split_seed", "reward", "fitness",
        "fitness_samples", "group_column",
        "on_reward_error", "failed_reward", "max_new_tokens", "temperature", "eos_token", "stop",
        "special_tokens", "seed", "rows_per_slice",
    )
]  # fmt: skip
_GENERATE_OPTIONS = [
    _DEFAULTS.place(word)
    for word in (
        "model", "revision", "trust_remote_code", "attn_implementation", "quantization", "device", "dtype", "threads",
        "chat_template", "chat_template_kwargs", "system_prompt", "max_new_tokens", "temperature", "top_k", "top_p",
        "min_p", "eos_token", "stop", "special_tokens", "seed",
    )
]  # fmt: skip
_EXPORT_OPTIONS = [_DEFAULTS.place(word) for word in ("revision", "trust_remote_code", "dtype")]
_RESUME_OPTIONS = [_DEFAULTS.place(word) for word in RESUMABLE]

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
    except (RewardError, CheckpointError) as error:
        print(f"evolora: {error}", file=sys.stderr)
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

    evaluated = _command(commands, "evaluate", "score an adapter on a task", _evaluate)
    _add_adapter(evaluated)
    evaluated.add_argument("--split", choices=["train", "validation", "test"], default="test", help="default: test")
    evaluated.add_argument("--show", type=int, default=5, metavar="N", help="completions to print (default 5)")
    evaluated.add_argument(
        "--no-base",
        action="store_true",
        help="do not evaluate the untouched base model beside it, which saves the time",
    )
    _add_trust(evaluated)
    _add_options(evaluated, _APPLY_OPTIONS)

    generated = _command(commands, "generate", "let an adapter complete prompts", _generate)
    _add_adapter(generated)
    generated.add_argument("prompts", metavar="PROMPT", nargs="*", help="the prompts")
    generated.add_argument("--interactive", action="store_true", help="then read more prompts, one a line")
    generated.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="answer the prompts as a user's messages; default: where the adapter was tuned on such",
    )
    generated.add_argument(
        "--samples", type=int, default=0, metavar="N", help="sample N completions instead of the greedy one"
    )
    _add_options(generated, _GENERATE_OPTIONS)

    _command(commands, "words", "say what the words on the screen mean", _say_words)

    exported = _command(commands, "export", "write an adapter, or the merged model, to a folder", _export)
    _add_adapter(exported)
    exported.add_argument("--to", metavar="DIR|FILE", required=True, help="a new folder, or file")
    exported.add_argument("--merge", action="store_true", help="merge the adapter into the base model")
    exported.add_argument(
        "--base", metavar="NAME", help="the base model's name or folder, in place of the one that the adapter names"
    )
    exported.add_argument("--gguf", action="store_true", help="write the merged model as a GGUF file, --to FILE")
    exported.add_argument("--llama-cpp", metavar="DIR", help="llama.cpp's sources, whose converter makes it")
    exported.add_argument("--push", metavar="REPO", help="then upload it to the Hugging Face hub, as USER/NAME")
    exported.add_argument("--private", action="store_true", help="where that makes a repository, a private one")
    _add_options(exported, _EXPORT_OPTIONS)
    return parser


def _command(commands: Any, name: str, help_text: str, function: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".", allow_abbrev=False
    )
    parser.set_defaults(command=function)
    return parser


def _add_adapter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN|ADAPTER", help="a run's folder or name, or an adapter's folder")
    parser.add_argument("--checkpoint", metavar="NAME", help="a checkpoint of the run, such as gen0005, not its winner")


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-reward", action="store_true", help="let a run that was not made here run its reward's code"
    )


def _trust(options: Mapping[str, Any]) -> "Trust":
    """What the user says of a run that was not made here: in an option, or when asked on a terminal."""
    return bool(options["trust_reward"]) or (asked if sys.stdin is not None and sys.stdin.isatty() else False)


def _add_options(parser: argparse.ArgumentParser, places: Sequence[Place]) -> None:
    """An option for each place, by all its words. Values stay text: the parts' models validate them."""
    for part, name in places:
        field = _DEFAULTS.fields[part, name]
        usual = _DEFAULTS.word(part, name)
        spellings: dict[str, list[str]] = {}
        for word, place in _DEFAULTS.words.items():
            if place == (part, name) and word != usual:
                spellings.setdefault(trl_name(word) or f"{part}.{name}", []).append(word)
        cli = Speech("cli")
        usually = (f"{part}.{name}", [usual], option_help(field))
        for dest, words, text in (usually, *((dest, words, argparse.SUPPRESS) for dest, words in spellings.items())):
            keywords: dict[str, Any] = {"dest": dest, "default": argparse.SUPPRESS, "help": text}
            flags = [cli.name(word) for word in words]
            if dest in ("reward_funcs", "reward_weights") or takes_several(field):
                parser.add_argument(*flags, nargs="+", metavar="X", **keywords)
            elif field.annotation is bool:
                parser.add_argument(*flags, action=argparse.BooleanOptionalAction, **keywords)
            else:
                parser.add_argument(*flags, metavar="NONE|X" if can_do_without(field) else "X", **keywords)


def _add_resume_options(parser: argparse.ArgumentParser) -> None:
    _add_trust(parser)
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although data, model, reward, options or versions have changed; the summary will say so",
    )
    ways = parser.add_mutually_exclusive_group()
    for option, text in zip(SHOWN_BY, ("only what it came to in the end", "all that happens, as JSON"), strict=True):
        ways.add_argument(option, action="store_true", help=text)
    _add_options(parser, _RESUME_OPTIONS)


def _source(options: Mapping[str, Any], places: Sequence[Place]) -> Source:
    """The options that were given. What they are called here is said where TRL's names were used."""
    cli = Speech("cli")
    given = [(f"{part}.{name}", part, name) for part, name in places if f"{part}.{name}" in options]
    shown = {word: cli.name(_DEFAULTS.word(part, name)) for word, part, name in given}
    trl = [name for name, place in TRL_WORDS.items() if place in places and name in options]
    for name in trl:
        print(trl_note(name, cli.name(name), Source([], cli), _DEFAULTS), file=sys.stderr)
    return Source([(word, options[word]) for word in (*(word for word, _, _ in given), *trl)], cli, shown)


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
    _report(result, view)
    return 0


def _train_seeds(options: RunOptions, view: "View", shows: Shows) -> int:
    from evolora.runs.given import Given
    from evolora.runs.seeds.run import start_seeds

    _report_seeds(start_seeds(options, given=Given(), view=view, views=lambda: choose_view(shows)), view)
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
    words = {_DEFAULTS.words.get(word.replace("-", "_")): (word, value) for word, value in typed.source.words}
    out = words.pop(("run", "out"), (None, None))[1]
    folder = typed.resume or out
    if not folder:
        raise InputError("--resume: found no run folder, expected --resume RUN or --out RUN beside it")
    words_left = Source(list(words.values()), typed.source.speech, typed.source.shown)
    check_resumable(words_left)
    return _continue(find_run(folder), words_left, _trust({"trust_reward": typed.trust_reward}), False, typed.shows)


def _dry_run(options: RunOptions) -> int:
    quieten()
    from evolora.runs.estimate import estimate

    found = estimate(options)
    print(mask(config_toml(found.options)))
    print("\n".join(f"# {line}" for line in found.lines()))
    return 0


def _resume(options: dict[str, Any]) -> int:
    words = _source(options, _RESUME_OPTIONS)
    return _continue(find_run(options["run"]), words, _trust(options), options["accept_changes"], _shows(options))


def _rate(options: dict[str, Any]) -> int:
    folder, words = find_run(options["run"]), _source(options, _RESUME_OPTIONS)
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
    return _continue(folder, words, _trust(options), options["accept_changes"], _shows(options))


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
    _report(result, view)
    return 0


def _continue_seeds(folder: Path, words: Source, trust: "Trust", accept_changes: bool, shows: Shows) -> int:
    with _loading(make_options(words), shows) as view:
        from evolora.runs.given import Given
        from evolora.runs.seeds.run import go_on_seeds

        result = go_on_seeds(
            folder, words, given=Given(), view=view, views=lambda: choose_view(shows),
            trust=_asked_below(view, trust), accept_changes=accept_changes,
        )  # fmt: skip
    _report_seeds(result, view)
    return 0


def _report_seeds(result: "SeedsResult", view: "View") -> None:
    from evolora.runs.seeds.summary import lines

    if isinstance(view, JsonLines):
        view.tell("end", {"folder": str(result.folder), "summary": result.summary})
        return
    print("", *lines(result.folder, result.summary), sep="\n")
    if result.merged:
        print(f"merged:  {result.merged}")
    if (report := result.folder / "report.html").is_file():
        print(f"report:  {report}")


def _run_of(options: Mapping[str, Any]) -> Path:
    """The run, or the adapter, that a command is given; of a run under several seeds that of the best."""
    folder = find_run(options["path"])
    if (folder / "seeds.json").is_file():
        from evolora.runs.seeds.summary import best_run

        folder, said = best_run(folder)
        print(said, file=sys.stderr)
    return folder


def _report(result: "Result", view: "View") -> None:
    summary = result.summary
    if isinstance(view, JsonLines):
        view.tell("end", {"folder": str(result.folder), "summary": summary})
        return
    base, winner = summary["base"]["test"], summary["winner"]["test"]
    tokens, flops = summary["tokens"], summary["flops"]
    operations = sum(flops.values()) - flops["test"]
    print(
        f"\n{summary['task']}, {'held-out ' if summary['held_out'] else ''}test prompts: {summary['test_prompts']}; "
        "the intervals are over prompts alone, not over seeds (--seeds)\n"
        f"  {_base_name(summary):<10}  {_figures(base)}\n"
        f"  winner      {_figures(winner)}  individual {summary['winner']['id']}, by {summary['winner']['operator']}\n"
        f"{_vote_line(summary)}"
        f"{_followed_line(summary)}"
        f"{_term_lines(base, winner)}"
        f"{_inspection_lines(summary)}"
        f"{summary['generations']} generations in {summary['seconds']:.1f} s, "
        f"{tokens['evaluation']:,} tokens for evaluation and {tokens['rollout']:,} for rollouts, "
        f"{operations:.2g} FLOPs\n"
        f"adapter: {result.adapter}"
    )
    if result.merged:
        print(f"merged:  {result.merged}")
    if (report := result.folder / "report.html").is_file():
        print(f"report:  {report}")


def _base_name(summary: dict[str, Any]) -> str:
    """What the winner is compared with."""
    return str(summary.get("init", ["base model"])[0])


def _figures(test: dict[str, Any], *, digits: int = 3) -> str:
    """What an individual is worth, and its interval."""
    from evolora.runs.summary import worth

    reward, (low, high) = worth(test), test["ci95"]
    if reward is None or math.isnan(reward):
        return "- (nothing was scored)"
    if low is None or math.isnan(low):
        return f"{reward:.{digits}f} (no interval)"
    return f"{reward:.{digits}f} (95% {low:.{digits}f} to {high:.{digits}f})"


def _followed_line(summary: dict[str, Any]) -> str:
    """What RL followed, where that is not what the figures are of."""
    if "fitness" not in summary:
        return ""
    before, after = (summary[who]["test"]["reward"] for who in ("base", "winner"))
    return f"  of the fitness {summary['fitness']}; mean reward {_shown(before)} -> {_shown(after)}\n"


def _vote_line(summary: dict[str, Any]) -> str:
    if "vote" not in summary:
        return ""
    vote = summary["vote"]
    return f"  vote        {_figures(vote['test'])}  of {len(vote['voters'])} finalists\n"


def _term_lines(base: dict[str, Any], winner: dict[str, Any]) -> str:
    """A combined reward's terms, base model and winner."""
    terms = winner.get("terms", {})
    return "".join(f"    {name}: {_shown(base['terms'][name])} -> {_shown(value)}\n" for name, value in terms.items())


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _inspection_lines(summary: dict[str, Any]) -> str:
    if "inspection" not in summary:  # a run that an older version finished
        return ""
    from evolora.runs.report.inspection import Inspection

    return "".join(f"{line}\n" for line in Inspection.from_dict(summary["inspection"]).lines(name=_base_name(summary)))


def _evaluate(options: dict[str, Any]) -> int:
    quieten()
    from evolora.runs.adapter import evaluate

    score = evaluate(
        _run_of(options),
        split=options["split"],
        checkpoint=options["checkpoint"],
        options=_source(options, _APPLY_OPTIONS),
        base=not options["no_base"],
        trust_reward=_trust(options),
    )
    for prompt, completion, reward in score.rows[: options["show"]]:
        print(f"{'  -  ' if math.isnan(reward) else f'{reward:.3f}'}  {prompt!r} -> {completion!r}")
    if score.inspection is not None and score.base_ci95 is not None:
        print("\n".join(score.inspection.lines(name=score.base.removeprefix("the "))))
        base = _figures({"reward": score.base_reward, "ci95": score.base_ci95}, digits=4)
        print(f"{options['split']} {score.measure} of {score.base} {base}")
    own = _figures({"reward": score.reward, "ci95": score.ci95}, digits=4)
    print(f"{options['split']} {score.measure} {own}, {len(score.rows)} prompts")
    return 0


def _say_words(_: dict[str, Any]) -> int:
    from evolora.runs.tracking.words import WORDS

    print("\n".join(f"{word:<13} {meaning}" for word, meaning in WORDS.items()))
    return 0


def _generate(options: dict[str, Any]) -> int:
    prompts, interactive = options["prompts"], options["interactive"]
    if not prompts and not interactive:
        raise InputError("PROMPT: found none, expected at least one, or --interactive")
    quieten()
    from evolora.runs.adapter import completer

    complete = completer(
        _run_of(options),
        samples=options["samples"],
        checkpoint=options["checkpoint"],
        options=_source(options, _GENERATE_OPTIONS),
        chat=options["chat"],
    )
    for prompt in prompts:
        if len(prompts) > 1:
            print(f"> {prompt}")
        print("\n".join(complete(prompt)), flush=True)
    while interactive:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        try:
            if not (line := sys.stdin.readline()):
                break
            if prompt := line.rstrip("\n"):
                print("\n".join(complete(prompt)), flush=True)
        except (InputError, UnicodeDecodeError) as error:  # the next one may be better
            print(f"evolora: {error}", file=sys.stderr)
    return 0


def _export(options: dict[str, Any]) -> int:
    for one, other in (("gguf", "llama_cpp"), ("llama_cpp", "gguf"), ("private", "push")):
        if options[one] and not options[other]:
            raise InputError(f"--{one.replace('_', '-')}: expected --{other.replace('_', '-')} beside it")
    words = _source(options, _EXPORT_OPTIONS)
    model = make_options(words).model
    quieten()
    from evolora.runs.exporting import Push, export, folder_named

    written = export(
        _run_of(options),
        Path(options["to"]),
        merge=options["merge"],
        checkpoint=options["checkpoint"],
        base=options["base"],
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        dtype=None if model.dtype == "auto" else model.dtype,
        llama_cpp=Path(options["llama_cpp"]) if options["gguf"] else None,
        push=Push(options["push"], options["private"]) if options["push"] else None,
    )
    print(written)
    if (named := folder_named(written)) is not None:
        hint = "which is only here: --base NAME names a model that others can load"
        print(f"adapter_config.json names {named}, {hint}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
