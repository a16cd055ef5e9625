"""The bytes of tensors that live at once, counted as they are made: no look at the process, which would vary."""

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Of the tensors that are made within it: those alive `now`, the `peak`, and `all` shapes of one MB and more."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.all: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage())._cdata not in before:
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                if storage.nbytes() >= 2**20:
                    self.all.add(tuple(leaf.shape))
        self.peak = max(self.peak, self.now)
        return result

    @property
    def now(self) -> int:
        self._live = {key: value for key, value in self._live.items() if not value[0].expired()}
        return sum(size for _, size in self._live.values())
