"""`evolora evaluate`, `generate` and `export`: their words, and what they do."""

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evolora.errors import InputError
from evolora.runs.arguments import DEFAULTS, add_options, add_trust, source_of, trust_of
from evolora.runs.keeping.commands import AddCommand
from evolora.runs.options import make_options
from evolora.runs.quiet import quieten
from evolora.runs.result import figures

# Options of the run that also make sense for an adapter that is done.
_APPLY_OPTIONS = [
    DEFAULTS.place(word)
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
    DEFAULTS.place(word)
    for word in (
        "model", "revision", "trust_remote_code", "attn_implementation", "quantization", "device", "dtype", "threads",
        "chat_template", "chat_template_kwargs", "system_prompt", "max_new_tokens", "temperature", "top_k", "top_p",
        "min_p", "eos_token", "stop", "special_tokens", "seed",
    )
]  # fmt: skip
_EXPORT_OPTIONS = [DEFAULTS.place(word) for word in ("revision", "trust_remote_code", "dtype")]


def add_adapter_commands(add: AddCommand) -> None:
    evaluated = add("evaluate", "score an adapter on a task", _evaluate)
    _add_adapter(evaluated)
    evaluated.add_argument("--split", choices=["train", "validation", "test"], default="test", help="default: test")
    evaluated.add_argument("--show", type=int, default=5, metavar="N", help="completions to print (default 5)")
    evaluated.add_argument(
        "--no-base",
        action="store_true",
        help="do not evaluate the untouched base model beside it, which saves the time",
    )
    add_trust(evaluated)
    add_options(evaluated, _APPLY_OPTIONS)

    generated = add("generate", "let an adapter complete prompts", _generate)
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
    add_options(generated, _GENERATE_OPTIONS)

    exported = add("export", "write an adapter, or the merged model, to a folder", _export)
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
    add_options(exported, _EXPORT_OPTIONS)


def _add_adapter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN|ADAPTER", help="a run's folder or name, or an adapter's, or its hub name")
    parser.add_argument("--checkpoint", metavar="NAME", help="a checkpoint of the run, such as gen0005, not its winner")


def _run_of(options: Mapping[str, Any]) -> Path:
    """The run, or the adapter, that a command is given; of a run under several seeds that of the best."""
    from evolora.runs.hub import run_or_adapter

    folder = run_or_adapter(options["path"])
    if (folder / "seeds.json").is_file():
        from evolora.runs.seeds.summary import best_run

        folder, said = best_run(folder)
        print(said, file=sys.stderr)
    return folder


def _evaluate(options: dict[str, Any]) -> int:
    quieten()
    from evolora.runs.adapter import evaluate

    score = evaluate(
        _run_of(options),
        split=options["split"],
        checkpoint=options["checkpoint"],
        options=source_of(options, _APPLY_OPTIONS),
        base=not options["no_base"],
        trust_reward=trust_of(options),
    )
    for prompt, completion, reward in score.rows[: options["show"]]:
        print(f"{'  -  ' if math.isnan(reward) else f'{reward:.3f}'}  {prompt!r} -> {completion!r}")
    if score.inspection is not None and score.base_ci95 is not None:
        print("\n".join(score.inspection.lines(name=score.base.removeprefix("the "))))
        if score.drift is not None:
            print(f"drift from {score.base} {score.drift:.4g} nats a token, on 200 neutral sentences")
        base = figures({"reward": score.base_reward, "ci95": score.base_ci95}, digits=4)
        print(f"{options['split']} {score.measure} of {score.base} {base}")
    own = figures({"reward": score.reward, "ci95": score.ci95}, digits=4)
    print(f"{options['split']} {score.measure} {own}, {len(score.rows)} prompts")
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
        options=source_of(options, _GENERATE_OPTIONS),
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
    words = source_of(options, _EXPORT_OPTIONS)
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
