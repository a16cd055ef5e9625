"""The rates of products with a model's frozen weights: torch's own, oneDNN's, and `evolora.engine.cpu.matmul.panels`.

    python benchmarks/products.py [--repeats 9]

The four layers of each block of a GPT-2, one block after another, so that the weights come from where they come from in
a run; on one thread. In turn, medians. Writes benchmarks/results/products.json.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from speed import machine
from speed.timing import alternate, median
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from evolora.engine.cpu.matmul.frozen_linear import FrozenProduct, Kept

ROWS = (1, 4, 8, 16, 32, 64, 128, 1024)
MODELS = {"tiny": (192, 4), "124M": (768, 12)}  # width and blocks
LEAST_OPERATIONS = 2_000_000_000  # of a measurement


def layers_of(width: int, blocks: int) -> list[Conv1D]:
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)] * blocks
    return [Conv1D(columns, depth).requires_grad_(False) for depth, columns in shapes]


def by_onednn(layer: Conv1D, x: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight.t(), layer.bias, "none", [], "")
    return result


def frozen(layers: list[Conv1D], kept: Kept) -> dict[Conv1D, FrozenProduct]:
    return {layer: FrozenProduct(layer, kept=kept) for layer in layers}


def rates(width: int, blocks: int, rows: int, repeats: int) -> dict[str, float]:
    """GFLOP/s of each side."""
    layers = layers_of(width, blocks)
    inputs = {depth: torch.randn(rows, depth) for depth in (width, 4 * width)}
    always, never = frozen(layers, "always"), frozen(layers, "never")
    sides: dict[str, Callable[[Conv1D, Tensor], Tensor]] = {
        "torch": lambda layer, x: torch.addmm(layer.bias, x, layer.weight),
        "oneDNN": by_onednn,
        "panels, each arranged when its turn comes": lambda layer, x: never[layer].product(x),
        "panels kept": lambda layer, x: always[layer].product(x),
    }
    operations = 2 * rows * sum(layer.weight.numel() for layer in layers)
    calls = max(1, LEAST_OPERATIONS // operations)

    def through(side: Callable[[Conv1D, Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                for layer in layers:
                    side(layer, inputs[layer.weight.shape[0]])

        return run

    runs = {name: through(side) for name, side in sides.items()}
    for run in runs.values():
        run()
    return {name: calls * operations / median(times) / 1e9 for name, times in alternate(runs, repeats).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "products.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": machine.describe()}
    for name, shape in MODELS.items():
        found[name] = {rows: rates(*shape, rows, options.repeats) for rows in ROWS}
        sides = list(found[name][ROWS[0]])
        print(f"\n{name}, GFLOP/s\n\n| rows | {' | '.join(sides)} |\n|{'---|' * (len(sides) + 1)}")
        for rows, each in found[name].items():
            print(f"| {rows} | {' | '.join(f'{rate:.0f}' for rate in each.values())} |")
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
