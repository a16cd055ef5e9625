"""What multiplies by a frozen layer's weight on a CPU, forwards and backwards, by `matmul.panels`."""

import copy
import threading
import weakref
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from evolora.engine.calibration import MOST_ROWS_BY_PANELS
from evolora.engine.cpu.jit import in_float32, run_rows
from evolora.engine.cpu.matmul.panels import Floats, arranged, multiply_plain, multiply_rows, panels_of

# Panels are a second copy of a large model's weights. Batches of up to so many rows, or packs, are worth them; those of
# more drop them, since that memory may be needed for their keys and values. Two limits, so that a batch near one does
# not arrange them at each step.
_DROPPED_FROM = 128
# Arranging the panels takes as long as about so many products gain by them.
_LEAST_PRODUCTS = 8
# Multiplications, for less of which another thread is not worth its call.
_LEAST_A_THREAD = 4_000_000

# Of a layer's weight in panels: one for each direction, always; one while few rows are multiplied; none.
Kept = Literal["always", "for few rows", "never"]


@dataclass(frozen=True)
class _Arranged:
    """A weight's panels, and how it is seen that it has not changed since: all in one, as other threads ask, too."""

    of: Floats
    address: int
    version: int
    values: Floats
    # What is written through `.data`, as by PEFT's merging, has no version: one value in the middle tells.
    probe: np.float32

    def current(self, weight: Tensor) -> bool:
        rows, columns = self.values.shape
        return (
            weight._version == self.version
            and weight.data_ptr() == self.address
            and bool(self.values[rows // 2, columns // 2] == self.probe)
        )


class WeightPanels:
    """The weight of one layer in panels, as [in, out] or, if `transposed`, from [out, in]: arranged when they are first
    asked for, or after some products of few rows and until one of many; again when it has changed."""

    def __init__(self, weight: Tensor, *, transposed: bool, kept: Kept) -> None:
        self._weight = weight
        self._transposed = transposed
        self._kept = kept
        self._panels: _Arranged | None = None
        self._products = 0  # that would have been faster with panels
        self._arranging = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeightPanels":
        """A copy of the layer that shares its weight shares the panels; one with a weight of its own starts without."""
        weight = copy.deepcopy(self._weight, memo)
        if weight is self._weight:
            return self
        return WeightPanels(weight, transposed=self._transposed, kept=self._kept)

    def of(self, weight: Tensor, *, rows: int) -> Floats | None:
        """The panels of the layer's `weight`, to multiply `rows` rows; None where it is to be multiplied as it is."""
        if self._kept == "never":
            return None
        panels = self._panels
        if self._kept == "always":
            return panels.of if panels is not None and panels.current(weight) else self._arrange(weight)
        if panels is not None and rows < _DROPPED_FROM and panels.current(weight):
            return panels.of
        if panels is not None or rows >= _DROPPED_FROM:
            self._panels, self._products = None, 0
        if rows > MOST_ROWS_BY_PANELS:
            return None
        self._products += 1
        return None if self._products < _LEAST_PRODUCTS else self._arrange(weight)

    def copies(self) -> tuple[int, int]:
        """Bytes of the panels that there are, and of those that there may be."""
        most = 0 if self._kept == "never" else self._weight.nbytes
        return (0 if self._panels is None else most), most

    def _arrange(self, weight: Tensor) -> Floats:
        with self._arranging:  # the parts of a batch come at the same time
            if self._panels is not None and self._panels.current(weight):
                return self._panels.of
            values, version = weight.detach().numpy(), weight._version
            probe = values[weight.shape[0] // 2, weight.shape[1] // 2]
            panels = arranged(values, transposed=self._transposed)
            self._weight = weight
            self._panels = _Arranged(panels, weight.data_ptr(), version, values, probe)
            return panels


class FrozenProduct:
    """Stands in for the forward pass of a Linear or Conv1D layer: the same for all that it does not fit, such as a
    weight that is trained, or that is not float32 on a CPU."""

    def __init__(self, module: Any, *, kept: Kept) -> None:
        self.module = module
        self.always = kept == "always"
        # Conv1D keeps its weight as [in, out].
        self.transposed = not isinstance(module, Conv1D)
        self._forwards = WeightPanels(module.weight, transposed=self.transposed, kept=kept)
        back: Kept = "always" if kept == "always" else "never"
        self._backwards = WeightPanels(module.weight, transposed=not self.transposed, kept=back)

    def __call__(self, x: Tensor) -> Tensor:
        if not self.fits(x) or (torch.is_grad_enabled() and self.trained):
            result: Tensor = type(self.module).forward(self.module, x)
            return result
        if torch.is_grad_enabled() and x.requires_grad:
            differentiable: Tensor = _Differentiable.apply(x, self)  # type: ignore[no-untyped-call]
            return differentiable
        return self.product(x)

    def fits(self, x: Tensor) -> bool:
        """Whether this can multiply `x`, if the weight is not trained."""
        weight, bias = self.module.weight, self.module.bias
        parts = [x, weight] if bias is None else [x, weight, bias]
        usual = weight.numel() > 0 and not weight.is_inference() and not torch.is_autocast_enabled("cpu")
        return usual and all(map(in_float32, parts))

    @property
    def trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.module.parameters(recurse=False))

    def copies(self) -> tuple[int, int]:
        """Bytes of the panels that there are, and of those that there may be."""
        (now, most), (also, more) = self._forwards.copies(), self._backwards.copies()
        return now + also, most + more

    def panels(self, rows: int) -> Floats | None:
        """The weight's panels, to multiply so many rows; None where there are to be none."""
        weight = self.module.weight
        return self._forwards.of(weight, rows=rows) if in_float32(weight) and not weight.is_inference() else None

    def product(self, x: Tensor) -> Tensor:
        """The layer's results for `x` [..., in], without a graph."""
        return _product(x, self.module.weight, self.module.bias, self.transposed, self._forwards)

    def to_input(self, gradient: Tensor) -> Tensor:
        """The gradient of the layer's input from that of its results [..., out]."""
        return _product(gradient, self.module.weight, None, not self.transposed, self._backwards)


class _Differentiable(torch.autograd.Function):
    """In its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, product: FrozenProduct) -> Tensor:
        ctx.product = product
        _CALLED[id(product)] = product
        found: Tensor = torch.ops.evolora.frozen_product(x, id(product))
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.product.to_input(gradient), None


# An operation of torch's, so that gradient checkpointing sees it and can keep its result.
_CALLED: "weakref.WeakValueDictionary[int, FrozenProduct]" = weakref.WeakValueDictionary()
_LIBRARY = torch.library.Library("evolora", "FRAGMENT")
_LIBRARY.define("frozen_product(Tensor x, int layer) -> Tensor")
_LIBRARY.impl("frozen_product", lambda x, layer: _CALLED[layer].product(x), "CPU")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, kept: WeightPanels) -> Tensor:
    depth, columns = weight.shape[::-1] if transposed else weight.shape
    result = torch.empty(*x.shape[:-1], columns, dtype=torch.float32)
    rows = x.numel() // depth
    added = torch.zeros(columns, dtype=torch.float32) if bias is None else bias.detach().contiguous()
    inputs, outputs = x.detach().contiguous().view(rows, depth).numpy(), result.view(rows, columns).numpy()
    threads = min(torch.get_num_threads(), rows * weight.numel() // _LEAST_A_THREAD)
    panels = kept.of(weight, rows=len(x))
    if panels is None:
        arguments = inputs, weight.detach().numpy(), transposed, added.numpy(), outputs
        run_rows(multiply_plain, arguments, panels_of(columns), threads)
    else:
        run_rows(multiply_rows, (inputs, panels, added.numpy(), outputs, 0, rows), panels_of(columns), threads)
    return result
