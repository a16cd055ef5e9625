"""The floating-point operations that a piece of work needs, and the rate at which this machine multiplies matrices."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evolora.engine.cpu.matmul.frozen_linear import FrozenProduct
from speed.sides import Work

Product = Callable[[Tensor, Tensor], Tensor]


def flops_needed(work: Work, written: list[int]) -> int:
    """Multiplications and additions of the matrix products, for real tokens only: no padding, the output layer only
    where a token is chosen, LoRA and attention included.

    `written` is the number of tokens of each row. A row's last token is written but never read.
    """
    config = work.subject.config
    width, layers = config.n_embd, config.n_layer
    lora = sum(module.a_size + module.b_size for module in work.subject.layout.modules)
    # GPT-2: attention has 4 width^2 weights (3 in, 1 out), the MLP 8 width^2.
    inner = config.n_inner or 4 * width
    weights = layers * (4 * width * width + 2 * width * inner) + lora
    total = 0
    for prompt, tokens in zip(work.prompt_lengths, written, strict=True):
        read = prompt + tokens - 1
        # Token i attends to i keys, itself included: a product for the scores and one with the values.
        attended = read * (read + 1) // 2
        total += 2 * weights * read + layers * 4 * width * attended + 2 * width * work.subject.vocabulary * tokens
    return total


def products() -> dict[str, Product]:
    """The float32 matrix products that there are on this machine: torch's, and evolora's with a weight that stays."""
    found: dict[str, Product] = {"torch.mm": torch.mm, "evolora": _frozen_product()}
    try:
        pointwise = torch.ops.mkldnn._linear_pointwise
        pointwise(torch.ones(2, 2), torch.ones(2, 2).t(), None, "none", [], "")
    except (AttributeError, RuntimeError, NotImplementedError):
        return found
    # oneDNN's; on AMD's processors it can be twice as fast as MKL's behind torch.mm.
    return found | {"oneDNN": lambda x, w: pointwise(x, w.t(), None, "none", [], "")}


def _frozen_product() -> Product:
    frozen: dict[int, FrozenProduct] = {}

    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        if weight.data_ptr() not in frozen:
            layer = Conv1D(weight.shape[1], weight.shape[0])
            layer.weight = nn.Parameter(weight, requires_grad=False)
            frozen[weight.data_ptr()] = FrozenProduct(layer, kept="always")
        return frozen[weight.data_ptr()].product(x)

    return multiply


class GemmRate:
    """The rate of each product at several sizes, sampled beside the work whose share of it is asked for."""

    def __init__(self, threads: int) -> None:
        sizes = (512, 1024, 2048) if threads == 1 else (1024, 2048, 4096)
        self.matrices = {size: (torch.randn(size, size), torch.randn(size, size)) for size in sizes}
        self.threads = threads
        self.products = products()
        self.samples: dict[str, list[float]] = {f"{name} {size}": [] for name in self.products for size in sizes}
        self.sample()  # the warm-up
        for rates in self.samples.values():
            rates.clear()

    def sample(self) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        for name, product in self.products.items():
            for size, (x, w) in self.matrices.items():
                calls = max(1, 2 * 2048**3 // (2 * size**3))
                start = time.perf_counter()
                for _ in range(calls):
                    product(x, w)
                self.samples[f"{name} {size}"].append(calls * 2 * size**3 / (time.perf_counter() - start))
        torch.set_num_threads(before)

    def rates(self) -> dict[str, float]:
        """Operations a second: the median of each kernel and size."""
        return {name: statistics.median(samples) for name, samples in self.samples.items()}

    def highest(self, product: str | None = None) -> float:
        """The highest rate, of one product or of all."""
        return max(rate for name, rate in self.rates().items() if product is None or name.startswith(f"{product} "))
