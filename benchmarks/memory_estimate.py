"""The memory that a run says it will take, beside the peak that the system measures of its process.

    python benchmarks/memory_estimate.py [--model FOLDER] [-- MORE OPTIONS]

A version's first run compiles functions, which takes memory of its own: let one run before.

Of the bundled model, of a random one of SmolLM2-135M's shape (or one that is given), and of one of Qwen2's kind with
50M parameters and 152,000 tokens; each run has one generation.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config

from evolora.models.base import load_base

SHAPES: dict[str, PretrainedConfig] = {
    "Llama, 135M": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "Qwen2, 50M": Qwen2Config(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=152064,
        tie_word_embeddings=True,
    ),
}
COMMON = ["--gens", "1", "--rl-steps", "1", "--max-new-tokens", "24", "--finalists", "1"]


def made(config: PretrainedConfig, folder: Path) -> str:
    """A folder with a random model of these sizes and the bundled tokenizer."""
    torch.manual_seed(0)
    tokenizer = load_base("tiny-gpt2").tokenizer
    config.eos_token_id = config.bos_token_id = config.pad_token_id = tokenizer.eos_token_id
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def estimate_and_peak(options: list[str]) -> tuple[float, float]:
    """In GiB."""
    command = [sys.executable, "-m", "evolora", "train", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    print(*re.findall(r"memory: .*|.*threads? \(.*", said), sep="\n", file=sys.stderr)
    found = re.search(r"memory: about ([0-9.]+) GiB", said)
    assert found is not None, said
    return float(found[1]), usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="a folder, instead of the random models")
    parser.add_argument("more", nargs="*", help="options of the runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        models = {name: name for name in arguments.model} or {
            "bundled": "tiny-gpt2",
            **{name: made(config, Path(place, str(index))) for index, (name, config) in enumerate(SHAPES.items())},
        }
        print("| model | estimate, GiB | measured peak, GiB | estimate / peak |\n|---|---|---|---|")
        for index, (name, model) in enumerate(models.items()):
            out = str(Path(place, f"run{index}"))
            said, peak = estimate_and_peak(["--model", model, "--out", out, *COMMON, *arguments.more])
            print(f"| {name} | {said:.2f} | {peak:.2f} | {said / peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
