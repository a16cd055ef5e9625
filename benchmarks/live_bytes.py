"""The bytes of tensors that live at once, counted as they are made: no look at the process, which would vary."""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Of the tensors that are made within it: those alive `now`, the `peak`, and the shapes that lived at that time."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int, tuple[int, ...]]] = {}
        self.peak = 0
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage())._cdata not in before:
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes(), tuple(leaf.shape)
        if (now := self.now) > self.peak:
            self.peak, self.shapes = now, [shape for _, _, shape in self._live.values()]
        return result

    @property
    def now(self) -> int:
        self._live = {key: value for key, value in self._live.items() if not value[0].expired()}
        return sum(size for _, size, _ in self._live.values())


def measured(run: Any) -> tuple[Any, LiveBytes]:
    """What `run()` gives, and the bytes that lived."""
    with torch.enable_grad(), LiveBytes() as bytes_:
        return run(), bytes_
