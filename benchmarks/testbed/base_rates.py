"""What the untouched base reaches on each task, before anything is tuned, and the references that need no tuning.

    python benchmarks/testbed/base_rates.py [TASK ...] [--model FOLDER]      writes data/base_rates.json

Best of 16: of a test prompt's samples one that is wanted, where there is one; it needs the fitness in use. Three worked
examples: the first three training rows with their targets stand before each prompt.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evolora.population.writing import Writer
from evolora.tasks.task import Example
from testbed.held_out import ROWS, SAMPLES, assembled, fitness_of, sampled
from testbed.model import base_model
from testbed.rows import DATA
from testbed.tasks import MAX_NEW_TOKENS, TASKS, BedTask

RATES = DATA / "base_rates.json"
EXAMPLES = 3
AT_MOST = 1 / 200  # of a cold task's samples are right, more of any other's


def base_rates(task: BedTask, model: str) -> dict[str, Any]:
    """The base's fitness on the test rows, greedily; of its samples the share that hit; both references."""
    started = time.perf_counter()
    with assembled(task, model, task.followed, None) as parts:
        writer, genome, examples = Writer(parts.engine, parts.text), torch.zeros_like(parts.founder), parts.task.test
        greedy = writer.write_in_slices(genome[None], examples, MAX_NEW_TOKENS, rows=ROWS)
        hits, written = sampled(task, writer, genome, examples, 0)
        chosen = [row * SAMPLES + int(own.argmax()) for row, own in enumerate(hits)]
        shown = [with_examples(task, row["prompt"]) for row in task.rows if row["split"] == "test"]
        asked = [
            Example(prompt, example.columns)
            for prompt, example in zip(_as_text(parts.base.tokenizer, shown), examples, strict=True)
        ]
        answers = writer.write_in_slices(genome[None], asked, MAX_NEW_TOKENS, rows=ROWS)
    return {
        "fitness": fitness_of(task, greedy.texts, examples),
        "sampled": float(hits.mean()),
        "hits": int(hits.sum()),
        "samples": hits.size,
        "pass_16": float(hits.any(1).mean()),
        "best_of_16": fitness_of(task, [written.texts[place] for place in chosen], examples),
        "three_examples": fitness_of(task, answers.texts, examples),
        "texts": greedy.texts[:4],
        "seconds": round(time.perf_counter() - started, 1),
    }


def with_examples(task: BedTask, prompt: Any) -> Any:
    """A prompt behind three worked ones, as turns of the chat, or as text."""
    first = [row for row in task.rows if row["split"] == "train"][:EXAMPLES]
    if isinstance(prompt, str):
        return "".join(f"{row['prompt']} {row['target']}\n\n" for row in first) + prompt
    return [
        message for row in first for message in (*row["prompt"], {"role": "assistant", "content": row["target"]})
    ] + prompt


def _as_text(tokenizer: Any, prompts: list[Any]) -> list[str]:
    return [
        prompt
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        for prompt in prompts
    ]


def read_rates() -> dict[str, dict[str, Any]]:
    return dict(json.loads(RATES.read_text(encoding="utf-8"))) if RATES.exists() else {}


def unmeasured(tasks: Iterable[str]) -> list[str]:
    """Tasks without base rates of today's rows, or which are not as cold or warm as they are said to be."""
    rates = read_rates()
    return [
        name
        for name in tasks
        if name not in rates
        or rates[name]["task_sha256"] != TASKS[name].sha256
        or (rates[name]["sampled"] < AT_MOST) != (TASKS[name].kind == "cold")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--model", help="the model's folder (default: that of scripts/smollm2.py)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = options.model or base_model()
    for name in options.tasks or TASKS:
        found = {"task_sha256": TASKS[name].sha256, **base_rates(TASKS[name], model)}
        RATES.write_text(json.dumps(read_rates() | {name: found}, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
