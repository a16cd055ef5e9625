"""The command line: evolora train | resume | evaluate | generate | export."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo
from transformers.utils import logging as transformers_logging

from evolora.errors import CheckpointError, InputError, RewardError
from evolora.human.exchange import export_votes, import_votes
from evolora.human.reward_model_training import train_reward_model
from evolora.rewards.registry import HUMAN
from evolora.runs.adapter import complete, evaluate, export
from evolora.runs.config import RunConfig, make_config, option_name
from evolora.runs.config_file import read_config
from evolora.runs.report.inspection import Inspection
from evolora.runs.run import Interrupted, Result, resume, start
from evolora.runs.tracking.terminal import choose_view

# Options of the run that also make sense for an adapter that is done.
_APPLY_OPTIONS = (
    "model", "device", "dtype", "threads", "chat_template", "task", "data", "prompt", "target", "reward",
    "on_reward_error", "failed_reward", "max_new_tokens", "temperature", "seed", "rows_per_slice",
)  # fmt: skip
_RESUME_OPTIONS = (
    "gens", "budget_tokens", "budget_seconds", "budget_flops", "save_every", "merge",
    "rating_host", "rating_port",
)  # fmt: skip


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
        raise InputError(f"{message} (see '{self.prog} --help')")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0, 1 when the run failed, 2 for bad input, 130 after Ctrl-C."""
    _quieten()
    try:
        options = vars(_parser().parse_args(arguments))
        command = options.pop("command")
        return int(command(options))
    except InputError as error:
        print(f"evolora: {error}", file=sys.stderr)
        return 2
    except (RewardError, CheckpointError) as error:
        print(f"evolora: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print(f"Interrupted. Resume with: evolora resume {interrupted.folder}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("Interrupted before the run began.", file=sys.stderr)
        return 130


def _quieten() -> None:
    """Keep the libraries' progress bars and notices off the screen: what matters, the run itself says."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="evolora", description="Evolve and reinforce LoRA adapters against any reward.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"evolora {version('evolora')}")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=_Parser)

    train = _command(commands, "train", "start a run", _train)
    _add_options(train, list(RunConfig.model_fields))
    train.add_argument("--config", metavar="FILE", help="TOML file of options; the command line wins over it")
    train.add_argument("--resume", metavar="RUN", nargs="?", const="", help="continue the run in RUN (or in --out)")

    resumed = _command(commands, "resume", "continue a run that was stopped, or give it more generations", _resume)
    resumed.add_argument("run", metavar="RUN", help="the run's folder")
    _add_options(resumed, _RESUME_OPTIONS)

    rated = _command(commands, "rate", "open the rating page of a run with --reward human again, and go on", _rate)
    rated.add_argument("run", metavar="RUN", help="the run's folder")
    _add_options(rated, _RESUME_OPTIONS)

    votes = _command(commands, "votes", "export or import the votes of a run with --reward human", None)
    ways = votes.add_subparsers(required=True, metavar="export|import", parser_class=_Parser)
    exported_votes = _command(ways, "export", "write them as JSONL of prompt, chosen, rejected", _export_votes)
    exported_votes.add_argument("run", metavar="RUN", help="the run's folder")
    exported_votes.add_argument("--to", metavar="FILE", required=True, help="a new file")
    imported_votes = _command(ways, "import", "add those of a JSONL file of prompt, chosen, rejected", _import_votes)
    imported_votes.add_argument("run", metavar="RUN", help="the run's folder")
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
    _add_options(evaluated, _APPLY_OPTIONS)

    generated = _command(commands, "generate", "let an adapter complete a prompt", _generate)
    _add_adapter(generated)
    generated.add_argument("text", metavar="PROMPT", help="the prompt")
    generated.add_argument(
        "--samples", type=int, default=0, metavar="N", help="sample N completions instead of the greedy one"
    )
    _add_options(
        generated, ["model", "device", "dtype", "threads", "chat_template", "max_new_tokens", "temperature", "seed"]
    )

    exported = _command(commands, "export", "write an adapter, or the merged model, to a folder", _export)
    _add_adapter(exported)
    exported.add_argument("--to", metavar="DIR", required=True, help="a new folder")
    exported.add_argument("--merge", action="store_true", help="merge the adapter into the base model")
    return parser


def _command(commands: Any, name: str, help_text: str, function: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".", allow_abbrev=False
    )
    parser.set_defaults(command=function)
    return parser


def _add_adapter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN|ADAPTER", help="a run's folder or an adapter's")
    parser.add_argument("--checkpoint", metavar="NAME", help="a checkpoint of the run, such as gen0005, not its winner")


def _add_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """One option for each field, in the field's group. Values stay text: RunConfig validates them."""
    groups: dict[str, Any] = {}
    for name in names:
        field = RunConfig.model_fields[name]
        assert isinstance(field.json_schema_extra, dict)
        title = str(field.json_schema_extra["group"])
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        group = groups[title]
        keywords: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": _help(field)}
        if field.annotation is bool:
            group.add_argument(option_name(name), action=argparse.BooleanOptionalAction, **keywords)
        elif any(get_origin(kind) is list for kind in get_args(field.annotation)):
            group.add_argument(option_name(name), nargs="+", metavar="NAME", **keywords)
        else:
            group.add_argument(option_name(name), metavar=_metavar(field), **keywords)


def _help(field: FieldInfo) -> str:
    text = str(field.description).replace("%", "%%")
    shown = field.default is not None and field.annotation is not bool and "default" not in text
    return f"{text} (default {field.default})" if shown else text


def _metavar(field: FieldInfo) -> str:
    kinds = [kind for kind in (get_args(field.annotation) or (field.annotation,)) if kind is not type(None)]
    if get_origin(field.annotation) is not None and any(isinstance(kind, str) for kind in kinds):
        return "NAME"
    return {int: "N", float: "X"}.get(kinds[0], "TEXT")


def _values(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The options that were given."""
    return {name: options[name] for name in names if name in options}


def _train(options: dict[str, Any]) -> int:
    given = _values(options, list(RunConfig.model_fields))
    if options["resume"] is not None:
        folder = options["resume"] or given.get("out")
        if not folder:
            raise InputError("--resume: found no run folder, expected --resume RUN or --out RUN beside it")
        if fixed := [name for name in given if name not in (*_RESUME_OPTIONS, "out")]:
            raise InputError(
                f"{option_name(fixed[0])} with --resume: a resumed run keeps its options, expected only "
                f"{', '.join(map(option_name, _RESUME_OPTIONS))}"
            )
        return _continue(Path(folder), _values(given, _RESUME_OPTIONS))
    from_file = read_config(Path(options["config"])) if options["config"] else {}
    result = start(make_config({**from_file, **given}), view=choose_view())
    _report(result)
    return 0


def _resume(options: dict[str, Any]) -> int:
    return _continue(Path(options["run"]), _values(options, _RESUME_OPTIONS))


def _rate(options: dict[str, Any]) -> int:
    folder = Path(options["run"])
    config = folder / "config.toml"
    if not config.is_file():
        raise InputError(f"{folder}: found no config.toml, expected the folder of a run")
    reward = read_config(config).get("reward")
    if reward != HUMAN:
        raise InputError(f"{folder}: its reward is {reward}, expected a run with --reward human")
    if (folder / "summary.json").exists() and not _values(options, _RESUME_OPTIONS):
        raise InputError(f"{folder}: the run is finished, expected more generations, such as --gens 40, to rate")
    return _continue(folder, _values(options, _RESUME_OPTIONS))


def _export_votes(options: dict[str, Any]) -> int:
    count = export_votes(Path(options["run"]), Path(options["to"]))
    print(f"{count} votes written to {options['to']}")
    return 0


def _import_votes(options: dict[str, Any]) -> int:
    count = import_votes(Path(options["run"]), Path(options["file"]))
    print(f"{count} votes added to {options['run']}")
    return 0


def _train_reward_model(options: dict[str, Any]) -> int:
    trained = train_reward_model(
        Path(options["file"]),
        Path(options["out"]),
        **{option.replace("-", "_"): options[option.replace("-", "_")] for option, _, _ in _REWARD_MODEL_OPTIONS},
    )
    print("\n".join(trained.lines()))
    return 0


def _continue(folder: Path, options: dict[str, Any]) -> int:
    _report(resume(folder, view=choose_view(), options=options))
    return 0


def _report(result: Result) -> None:
    summary = result.summary
    base, winner = summary["base"]["test"], summary["winner"]["test"]
    tokens, flops = summary["tokens"], summary["flops"]
    operations = sum(flops.values()) - flops["test"]
    print(
        f"\n{summary['task']}, {'held-out ' if summary['held_out'] else ''}test prompts: {summary['test_prompts']}\n"
        f"  base model  {base['reward']:.3f}  (95% {base['ci95'][0]:.3f} to {base['ci95'][1]:.3f})\n"
        f"  winner      {winner['reward']:.3f}  (95% {winner['ci95'][0]:.3f} to {winner['ci95'][1]:.3f})  "
        f"individual {summary['winner']['id']}, by {summary['winner']['operator']}\n"
        f"{_vote_line(summary)}"
        f"{_term_lines(base, winner)}"
        f"{_inspection_lines(summary)}"
        f"{summary['generations']} generations in {summary['seconds']:.1f} s, "
        f"{tokens['evaluation']:,} tokens for evaluation and {tokens['rollout']:,} for rollouts, "
        f"{operations:.2g} FLOPs\n"
        f"adapter: {result.adapter}"
    )
    if result.merged:
        print(f"merged:  {result.merged}")


def _vote_line(summary: dict[str, Any]) -> str:
    if "vote" not in summary:
        return ""
    figures = summary["vote"]["test"]
    return (
        f"  vote        {figures['reward']:.3f}  (95% {figures['ci95'][0]:.3f} to {figures['ci95'][1]:.3f})  "
        f"of {len(summary['vote']['voters'])} finalists\n"
    )


def _term_lines(base: dict[str, Any], winner: dict[str, Any]) -> str:
    """A combined reward's terms, base model and winner."""
    terms = winner.get("terms", {})
    return "".join(f"    {name}: {base['terms'][name]:.3f} -> {value:.3f}\n" for name, value in terms.items())


def _inspection_lines(summary: dict[str, Any]) -> str:
    if "inspection" not in summary:  # a run that an older version finished
        return ""
    return "".join(f"{line}\n" for line in Inspection.from_dict(summary["inspection"]).lines())


def _evaluate(options: dict[str, Any]) -> int:
    score = evaluate(
        Path(options["path"]),
        split=options["split"],
        checkpoint=options["checkpoint"],
        options=_values(options, _APPLY_OPTIONS),
        base=not options["no_base"],
    )
    for prompt, completion, reward in score.rows[: options["show"]]:
        print(f"{reward:.3f}  {prompt!r} -> {completion!r}")
    if score.inspection is not None and score.base_ci95 is not None:
        print("\n".join(score.inspection.lines()))
        low, high = score.base_ci95
        print(f"{options['split']} reward of the base model {score.base_reward:.4f} (95% {low:.4f} to {high:.4f})")
    print(
        f"{options['split']} reward {score.reward:.4f} (95% {score.ci95[0]:.4f} to {score.ci95[1]:.4f}), "
        f"{len(score.rows)} prompts"
    )
    return 0


def _generate(options: dict[str, Any]) -> int:
    texts = complete(
        Path(options["path"]),
        options["text"],
        samples=options["samples"],
        checkpoint=options["checkpoint"],
        options=_values(options, list(RunConfig.model_fields)),
    )
    print("\n".join(texts))
    return 0


def _export(options: dict[str, Any]) -> int:
    written = export(
        Path(options["path"]), Path(options["to"]), merge=options["merge"], checkpoint=options["checkpoint"]
    )
    print(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
