"""What vLLM writes with many adapters: tokens a second beside itself without any, and beside the eager engine.

    make test-vllm                                  # makes the environment, once
    .venv-vllm/bin/python benchmarks/vllm_slots.py
    .venv-vllm/bin/python benchmarks/vllm_slots.py --device cuda

Random weights in the shapes of known models. Each table's row has as many rows of prompts as the others, dealt to so
many genomes of rank 8; both engines and the base take turns in one process, and the median counts. `refresh` is the
time in which all those genomes come into vLLM's slots. On a CPU it is processor time that is counted, so that with one
thread (OMP_NUM_THREADS=1) a busy machine measures what an idle one does. Prints a table and writes `vllm.json`.
"""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from evolora.engine.base import Decoding
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.vllm.engine import VllmWriter
from evolora.engine.vllm.loading import VERSION
from evolora.models.lora import lora_config, lora_layout

GENOMES = (8, 32, 64, 256)
SMALL = {
    "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
SHAPES: dict[str, list[tuple[str, Any, Any]]] = {
    "cpu": [
        ("Llama, 7M", LlamaForCausalLM, LlamaConfig(**SMALL)),
        ("Qwen2, 7M", Qwen2ForCausalLM, Qwen2Config(**SMALL)),
    ],
    "cuda": [
        (
            "Qwen2.5-0.5B", Qwen2ForCausalLM,
            Qwen2Config(
                vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
            ),
        ),
        (
            "Qwen2.5-7B", Qwen2ForCausalLM,
            Qwen2Config(
                vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                num_attention_heads=28, num_key_value_heads=4,
            ),
        ),
    ],
}  # fmt: skip


def made(architecture: Any, config: Any, device: str) -> PreTrainedModel:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            model: PreTrainedModel = architecture(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    return model


def seconds(work: Callable[[], object], device: str) -> float:
    """On a CPU those of the processor, of all threads together: what else the machine does is not counted."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def measure(name: str, architecture: Any, config: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    model = made(architecture, config, options.device)
    layout, founder = lora_layout(model, lora_config(model, r=8), seed=0)
    noise = torch.randn(options.rows, layout.genome_length, generator=torch.Generator().manual_seed(1))
    genomes = founder + 0.01 * noise
    draw = torch.randint(
        1, config.vocab_size, (options.rows, options.prompt), generator=torch.Generator().manual_seed(2)
    )
    prompts = draw.tolist()
    how = Decoding(max_new_tokens=options.new, ends=[config.vocab_size], pad=0)  # nothing ends early
    writer = VllmWriter(model, layout, length=options.prompt + options.new, slots=options.rows)
    eager = EagerEngine(model, layout)
    found = []
    for count in (n for n in GENOMES if n <= options.rows):
        own, each = genomes[:count], prompts[: options.rows // count]
        sides: dict[str, Callable[[], object]] = {
            "base": lambda: writer.generate(None, prompts, how),
            "adapters": lambda own=own, each=each: writer.generate(own, each, how),  # type: ignore[misc]
            "eager": lambda own=own, each=each: eager.generate(own, each, how),  # type: ignore[misc]
            "refresh": lambda own=own: writer._adapters.put(own),  # type: ignore[misc]
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(options.repeats + 1):
            for side, work in sides.items():
                taken = seconds(work, options.device)
                if turn:  # the first one warms up
                    times[side].append(taken)
        tokens = options.rows * options.new
        speed = {side: tokens / statistics.median(times[side]) for side in ("base", "adapters", "eager")}
        found.append(
            {
                "shape": name, "genomes": count, "tokens_per_second": speed, "seconds": times,
                "refresh_ms": 1000 * statistics.median(times["refresh"]),
            }
        )  # fmt: skip
        print(row(found[-1]), flush=True)
    writer.close()
    eager.close()
    gc.collect()
    return found


def row(found: dict[str, Any]) -> str:
    speed = found["tokens_per_second"]
    return (
        f"| {found['shape']} | {found['genomes']} | {speed['base']:,.0f} | {speed['adapters']:,.0f} | "
        f"{speed['adapters'] / speed['base']:.2f} | {speed['eager']:,.0f} | {found['refresh_ms']:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SHAPES, default="cpu")
    parser.add_argument("--rows", type=int, default=256, help="rows of prompts, and vLLM's slots")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=24, help="new tokens of a row")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    print(f"vLLM {VERSION}, torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    print("| shape | genomes | vLLM without, tokens/s | vLLM with them | of it | eager engine | refresh, ms |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    found = [each for shape in SHAPES[options.device] for each in measure(*shape, options)]
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"vllm": VERSION, "torch": torch.__version__, "device": options.device, "threads": torch.get_num_threads()}
    (options.out / "vllm.json").write_text(json.dumps({**about, "rows": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
