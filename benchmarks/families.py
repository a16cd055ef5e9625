"""Speed on architectures beside GPT-2, on a CPU: generation over the same rows without adapters, beside PEFT and
transformers, and a GRPO update beside TRL's.

    python benchmarks/families.py [--only llama qwen3] [--adapters default all-linear] [--repeats 5] [--threads N]

Random weights of some 30M parameters. Each ratio's two sides are measured in one process, in turn, after a warm-up that
compares what they wrote. Writes `speed_families.json`, where a row that is measured again replaces its own, and prints
the table.
"""

import argparse
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from speed import machine
from speed.generation import EVOLORA, FLOOR, FLOOR_STOCK, MIXED, SPREAD_OVER, STOCK
from speed.lengths import spread_ends
from speed.sides import Evolora, MixedBatch, StockFloor, StockGenerate, Work, equal_share
from speed.subjects import Subject, subject_of, subjects_folder
from speed.tables import table
from speed.timing import alternate, best_threads, median
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

INDIVIDUALS, NEW_TOKENS = 8, 20
_SHAPE: dict[str, Any] = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16384, "max_position_embeddings": 512,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
FAMILIES = {
    "llama": "LlamaConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma3": "Gemma3TextConfig",
    "mistral": "MistralConfig",
}
ADAPTERS = {"default": None, "all-linear": "all-linear"}
# What each ratio has to reach: at most, of the time over the floor; at least, of the others.
BARS = {FLOOR: 1.15, MIXED: 1.5, FLOOR_STOCK: 1.3, STOCK: 2.0, "TRL": 2.5}


def made(family: str) -> PreTrainedModel:
    """A random model of a family."""
    return AutoModelForCausalLM.from_config(getattr(transformers, FAMILIES[family])(**_SHAPE), dtype=torch.float32)


def full_length(subject: Subject, repeats: int) -> dict[str, float]:
    """Every completion of full length: evolora's seconds, and the ratios of the others' to them."""
    work = Work(subject, subject.genomes(INDIVIDUALS), subject.prompts(), NEW_TOKENS, (subject.never,))
    evolora = Evolora(work)
    runs = {EVOLORA: evolora, FLOOR: evolora.floor, FLOOR_STOCK: StockFloor(work), MIXED: MixedBatch(work)}
    return timed(work, runs, repeats)


def early_ends(subject: Subject, repeats: int) -> dict[str, float]:
    """Lengths spread evenly over 1 .. 64."""
    genomes, prompts = subject.genomes(INDIVIDUALS), subject.prompts()
    in_full = Evolora(Work(subject, genomes, prompts, SPREAD_OVER, (subject.never,)))()
    work = Work(subject, genomes, prompts, SPREAD_OVER, spread_ends(in_full))
    return timed(work, {EVOLORA: Evolora(work), STOCK: StockGenerate(work)}, repeats)


def timed(work: Work, runs: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    subject = work.subject
    for name in runs.keys() - {EVOLORA, FLOOR}:
        _, runs[name] = best_threads(runs[name], [subject.threads_an_operation, subject.threads])
    written = {name: run() for name, run in runs.items()}
    against = {FLOOR: FLOOR, FLOOR_STOCK: FLOOR}  # they complete other prompts
    for name, ids in written.items():
        equal = equal_share(ids, written[against.get(name, EVOLORA)], work)["equal_tokens"]
        if equal < 0.98:
            raise RuntimeError(f"{name} wrote other tokens: {equal:.4f} are equal")
    seconds = {name: median(times) for name, times in alternate(runs, repeats).items()}
    ours = seconds.pop(EVOLORA)
    ratios = {name: ours / value if name == FLOOR else value / ours for name, value in seconds.items()}
    return {f"{EVOLORA}, {work.new_tokens} tokens": ours, **ratios}


def grpo_update(subject: Subject, repeats: int) -> dict[str, float]:
    from speed import refinement  # TRL takes its time to load

    sides = refinement.grpo_update(subject, repeats)["sides"]
    ours = sides["evolora"]["median"]
    return {"evolora, update": ours, "TRL": sides["TRL"]["median"] / ours}


def shown(rows: dict[str, dict[str, Any]]) -> str:
    names = list(BARS)
    header = ["model", "adapters", *(f"{name} ({'<=' if name == FLOOR else '>='} {BARS[name]})" for name in names)]
    lines = [
        [*key.split(" ", 1), *(f"{row['ratios'][name]:.2f}" if name in row["ratios"] else "-" for name in names)]
        for key, row in rows.items()
    ]
    return table(header, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument("--parts", nargs="+", choices=("full", "early", "update"), default=["full", "early", "update"])
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side (default 5)")
    parser.add_argument("--threads", type=int, help="default: what evolora chooses")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "speed_families.json"
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    parts = {"full": full_length, "early": early_ends, "update": grpo_update}
    with subjects_folder() as folder:
        for family in options.only:
            for adapters in options.adapters:
                subject = subject_of(
                    family, partial(made, family), folder, threads=options.threads, target_modules=ADAPTERS[adapters]
                )
                torch.set_num_threads(subject.threads_an_operation)
                row = rows.setdefault(f"{family} {adapters}", {"ratios": {}})
                row |= {"machine": machine.describe(), "repeats": options.repeats, "threads": subject.threads}
                for part in options.parts:
                    start = time.perf_counter()
                    row["ratios"] |= parts[part](subject, options.repeats)
                    gc.collect()
                    print(
                        f"{family} {adapters} {part}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True
                    )
                    path.write_text(json.dumps(rows, indent=1) + "\n")
    print(shown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
