"""Speed: evolora beside the loop it replaces, PEFT, transformers, populora, TRL, and what the hardware allows.

    python benchmarks/bench.py
    python benchmarks/bench.py --only generation early --model tiny --repeats 1 --out /tmp/results

Each ratio's two sides are measured in one process, in turn, after a warm-up that also compares what they wrote. Prints
tables and writes `speed_<part>.json` with every single time; a part that is measured again replaces its own rows only.
The last line counts the bars that hold; the exit status is 1 when one does not, or was never measured, or when a
measurement fails.
"""

import argparse
import gc
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from speed import generation, machine, memory, tables
from speed.bars import judge
from speed.scaling import plot
from speed.store import PARTS, Row, Store
from speed.subjects import MODELS, Subject, load_subject, subjects_folder

SHAPES = ("8x20", "32x20", "8x64", "32x64")
SCALING = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MEMORY_INDIVIDUALS = 256
NEW_TOKENS = 20


def sides_at(model: str, individuals: int, new_tokens: int) -> set[str]:
    """Which sides stand beside evolora and its floor: all at 8 x 20; of the 124M model's larger shapes those that cost
    minutes are left out, for no bar speaks of them there."""
    sides = {generation.FLOOR_STOCK, generation.POPULORA, generation.MIXED}
    if model == "124M" and new_tokens > NEW_TOKENS:
        return {generation.FLOOR_STOCK} if individuals == 8 else set()
    if model == "124M" and individuals > 8:
        return sides - {generation.MIXED}
    if individuals == 8:
        sides.add(generation.ONE_STATE)
        if new_tokens == NEW_TOKENS:
            sides.add(generation.ONE_BY_ONE)
    return sides


def jobs(part: str, subject: Subject, options: argparse.Namespace) -> list[tuple[str, Callable[[], list[Row]]]]:
    """What a part measures of a model: a name to show, and the measurement."""
    name, repeats = subject.name, int(options.repeats)
    if part == "generation":
        asked = options.shapes or SHAPES
        shapes = [(int(n), int(tokens)) for n, tokens in (shape.split("x") for shape in asked)]
        return [(f"{name} {n} x {tokens}", partial(measure_shape, subject, n, tokens, repeats)) for n, tokens in shapes]
    if part == "early":
        n = int(options.early_individuals)
        return [(f"{name} {n} individuals", lambda: [generation.early_ends(subject, n, repeats)])]
    if part == "scaling":
        sizes = [n for n in SCALING if n <= options.most_individuals]
        return [(name, lambda: generation.scaling(subject, sizes, NEW_TOKENS, repeats))]
    if part == "memory":
        # The tiny model's memory is torch's own.
        n = min(MEMORY_INDIVIDUALS, int(options.most_individuals))
        return [(f"{name} {n} individuals", partial(measure_memory, subject, n))] if name == "124M" else []
    from speed import refinement  # TRL takes its time to load

    if part == "refinement":
        return [(name, lambda: [refinement.grpo_update(subject, repeats)])]
    return [(name, lambda: [refinement.elites_together(subject, repeats)])] if name == "tiny" else []


def measure_shape(subject: Subject, individuals: int, new_tokens: int, repeats: int) -> list[Row]:
    sides = sides_at(subject.name, individuals, new_tokens)
    return [generation.full_length(subject, individuals, new_tokens, repeats, sides)]


def measure_memory(subject: Subject, individuals: int) -> list[Row]:
    prompt = subject.prompt_texts()[2]
    found = memory.measure(subject.folder, individuals, NEW_TOKENS, subject.threads, prompt)
    return [{"part": "memory", "model": subject.name, **found, "machine": machine.describe()}]


def comma_or_space(words: list[str]) -> list[str]:
    return [part for word in words for part in word.split(",") if part]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PARTS), help=f"parts to measure: {', '.join(PARTS)}")
    parser.add_argument("--model", nargs="+", default=list(MODELS), help=f"models: {', '.join(MODELS)}")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side (default 5)")
    parser.add_argument("--shapes", nargs="+", default=[], help="individuals x new tokens of the main table, as 8x20")
    parser.add_argument("--early-individuals", type=int, default=32, help="individuals of the early ends (default 32)")
    parser.add_argument("--most-individuals", type=int, default=256, help="cut the scaling table and the memory test")
    parser.add_argument("--threads", type=int, help="for both models; default: what evolora chooses for each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.only, options.model = comma_or_space(options.only), comma_or_space(options.model)
    options.shapes = comma_or_space(options.shapes)
    for found, known, option in ((options.only, PARTS, "--only"), (options.model, MODELS, "--model")):
        if unknown := [word for word in found if word not in known]:
            parser.error(f"{option} {unknown[0]}: expected one of {', '.join(known)}")
    return options


def main() -> int:
    options = parse()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    store = Store(options.out)
    failed: list[str] = []
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()), flush=True)
    with subjects_folder() as folder:
        for part in [part for part in PARTS if part in options.only]:
            for model in [model for model in MODELS if model in options.model]:
                subject = load_subject(model, folder, options.threads)
                torch.set_num_threads(subject.threads_an_operation)
                for name, run in jobs(part, subject, options):
                    print(f"{part}: {name} ...", end=" ", flush=True, file=sys.stderr)
                    start = time.perf_counter()
                    try:
                        for row in run():
                            store.put(row)
                    except Exception:  # the other measurements are worth having all the same
                        traceback.print_exc()
                        failed.append(f"{part}: {name}")
                    gc.collect()
                    print(f"{time.perf_counter() - start:.0f} s", flush=True, file=sys.stderr)
            if part == "scaling" and store.rows(part):
                plot(store.rows(part), options.out / "scaling.png")
            tables.show(store, part)
    judged = judge(store)
    store.write("bars", judged)
    print(f"\n## The bars\n\n{tables.bars(judged)}")
    held = sum(bar["holds"] for bar in judged)
    for name in failed:
        print(f"\nfailed, so not measured now: {name}")
    print(f"\n{held} of {len(judged)} bars hold")
    return 0 if held == len(judged) and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
