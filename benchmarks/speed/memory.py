"""The peak memory of evaluating a population, measured in a process of its own.

    python benchmarks/speed/memory.py FOLDER --individuals 256 --new-tokens 20

loads the model of FOLDER, makes the genomes, evaluates them on one prompt, and prints a line of JSON.
"""

import argparse
import ctypes
import gc
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def measure(folder: str, individuals: int, new_tokens: int, threads: int, prompt: str) -> dict[str, Any]:
    """Run this file in a fresh process, and return what it prints."""
    arguments = ["--individuals", individuals, "--new-tokens", new_tokens, "--threads", threads, "--prompt", prompt]
    command = [sys.executable, __file__, folder, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _status(field: str) -> int | None:
    """A field of the kernel's account of this process, in bytes."""
    path = Path("/proc/self/status")
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _peak() -> int:
    # Not getrusage's figure where the kernel has a better one: on Linux that starts from the parent's.
    if (peak := _status("VmHWM")) is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _resident() -> int | None:
    """What is in use, once the allocator has given back what it keeps for later."""
    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return None
    return _status("VmRSS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--individuals", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt", required=True)
    options = parser.parse_args()

    import torch

    from evolora.engine.choose import choose_engine
    from evolora.engine.split import SplitEngine
    from evolora.engine.text import Text
    from evolora.models.base import load_base
    from evolora.models.lora import lora_config, lora_layout
    from evolora.population.evaluation import LocalEvaluator
    from evolora.rewards import RewardScorer
    from evolora.tasks.task import Example

    torch.set_num_threads(options.threads)
    before = _resident()
    base = load_base(options.folder)
    loaded = _resident()
    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    genomes = torch.randn(options.individuals, layout.genome_length).mul_(0.1)

    def reward(completions: list[str], **_: object) -> list[float]:
        return [float(len(text)) for text in completions]

    engine = choose_engine(base.model, layout, threads=options.threads).engine
    text = Text.of(base.model, base.tokenizer)
    evaluator = LocalEvaluator(engine, text, RewardScorer(reward), max_new_tokens=options.new_tokens)
    evaluation = evaluator.evaluate(genomes, [Example(options.prompt, {})])
    base_bytes = sum(parameter.nbytes for parameter in base.model.parameters())
    ids = torch.ones(options.individuals, 1, dtype=torch.long)
    first: Any = engine.engines[0] if isinstance(engine, SplitEngine) else engine
    layers = first.layers
    with torch.no_grad(), layers.adapted(genomes):
        layers.model(input_ids=ids, use_cache=False)  # whatever the layers prepare when they first run
        after = _resident()
    print(
        json.dumps(
            {
                "individuals": options.individuals,
                "new_tokens": options.new_tokens,
                "written": evaluation.cost.tokens,
                "peak": _peak(),
                "base_bytes": base_bytes,
                "genome_bytes": genomes.nbytes,
                "before_loading": before,
                "base_loaded": loaded,
                "after_evaluation": after,
                # How often the base is there while the population is on it. Libraries take a little themselves.
                "bases": None if after is None or before is None else (after - before - genomes.nbytes) / base_bytes,
            }
        )
    )


if __name__ == "__main__":
    main()
