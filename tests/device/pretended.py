"""A pretended accelerator: tensors that the CPU computes under a device of their own, which may not be mixed with the
CPU's, as on CUDA, and counts of what CUDA would pay for: waiting for the device, copies to it, kernels.

It is torch's PrivateUse1 backend: a tensor is a wrapper around one of the CPU. What it cannot show is CUDA's own
arithmetic, and its time.
"""

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
CPU = torch.device("cpu")
# Whose output has a shape that depends on values, or is a value: the host waits for it. A mask as an index is another.
_WAITS = {
    "nonzero", "masked_select", "unique_consecutive", "unique_dim", "_unique2", "bincount", "equal",
    "_local_scalar_dense", "repeat_interleave",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_ALLOCATES = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}
_RESHAPES = {"resize_", "set_", "t_", "transpose_", "squeeze_", "unsqueeze_", "as_strided_"}


@dataclass
class Counts:
    """How often, by the operator's name: the host waited, copied to the device, started a kernel; and, of kernels with
    results in float64, their most entries."""

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    float64: dict[str, int] = field(default_factory=dict)


_counting: list[Counts] = []


@contextmanager
def counted() -> Iterator[Counts]:
    """What the device does within a `with` block."""
    counts = Counts()
    _counting.append(counts)
    try:
        yield counts
    finally:
        _counting.remove(counts)


class OnDevice(Tensor):
    """A tensor of the device; `inner` is the CPU's."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        own: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        own.inner = inner
        return own

    def __repr__(self, **_: Any) -> str:
        return f"{NAME}:{self.inner!r}"

    def __getitem__(self, place: Any) -> Any:
        return super().__getitem__(_without_lists(place))

    def __setitem__(self, place: Any, value: Any) -> None:
        super().__setitem__(_without_lists(place), value)

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def storage(self) -> Any:
        return self.inner.storage()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        own = self.detach().clone()
        memo[id(self)] = nn.Parameter(own, self.requires_grad) if isinstance(self, nn.Parameter) else own
        return memo[id(self)]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, *args, **(kwargs or {}))


def _without_lists(place: Any) -> Any:
    """An index whose lists are tensors: what torch makes of them in C++, where no wrapper is seen."""
    if isinstance(place, tuple):
        return tuple(torch.tensor(one) if isinstance(one, list) else one for one in place)
    return torch.tensor(place) if isinstance(place, list) else place


class Generator(torch.Generator):
    """`torch.Generator`, also of the device."""

    def __new__(cls, device: Any = CPU) -> "Generator":
        own: Generator = super().__new__(cls, CPU if _is_own(device) else device)
        if _is_own(device):
            _generators.add(own._cdata)
            weakref.finalize(own, _generators.discard, own._cdata)
        return own


# An operator gets a generator's inner part in another object.
_generators: set[int] = set()


def _is_own(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """An operator that somehow concerns the device, by the CPU."""
    name = op._schema.name.split("::")[1]
    flat, spec = tree_flatten((args, kwargs))
    own = [x for x in flat if isinstance(x, OnDevice)]
    foreign = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, OnDevice)]
    target = kwargs.get("device")
    on_device = _is_own(target) if target is not None else bool(own)
    if name in ("_to_copy", "copy_"):
        on_device = _moved(name, args, on_device)
    else:
        _refuse_mixing(op, name, args, own, foreign, on_device, [x for x in flat if isinstance(x, torch._C.Generator)])
        _count(op, name, args)

    def on_cpu(x: Any) -> Any:
        if isinstance(x, OnDevice):
            return x.inner
        return CPU if isinstance(x, torch.device) else x

    inner = [on_cpu(x) for x in flat]
    given, named = tree_unflatten(inner, spec)
    named.pop("non_blocking", None)
    if "pin_memory" in named:
        named["pin_memory"] = False
    found = _wide_product(*given) if op is torch.ops.aten.mm.dtype else op(*given, **named)
    same = {id(after): before for before, after in zip(flat, inner, strict=True) if isinstance(before, Tensor)}
    if not _views(op, name) and name not in _ALLOCATES:
        for one in tree_leaves(found):
            if isinstance(one, Tensor) and one.dtype == torch.float64:
                for counts in _counting:
                    counts.float64[name] = max(counts.float64.get(name, 0), one.numel())

    def placed(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) in same:
            return same[id(x)]
        return OnDevice(x) if on_device else x

    return tree_map(placed, found)


def _wide_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """CUDA's product of half precision that is not rounded to it, which a CPU has not."""
    return left.to(dtype) @ right.to(dtype)


def _moved(name: str, args: tuple[Any, ...], on_device: bool) -> bool:
    """Count a copy; whether it ends on the device."""
    source, ends = (args[0], on_device) if name == "_to_copy" else (args[1], isinstance(args[0], OnDevice))
    for counts in _counting:
        if isinstance(source, OnDevice):
            (counts.kernels if ends else counts.waits)[name] += 1
        elif ends and source.numel():
            counts.copies[name] += 1
    return ends


def _refuse_mixing(
    op: Any,
    name: str,
    args: tuple[Any, ...],
    own: list[OnDevice],
    foreign: list[Tensor],
    on_device: bool,
    generators: list[torch._C.Generator],
) -> None:
    """Raise RuntimeError where CUDA would: only a number may lie elsewhere, and the positions of an index."""
    if own and not on_device and name not in _WAITS:
        raise RuntimeError(f"{op}: of tensors on {NAME}, expected a copy to the CPU")
    mixed = [x for x in foreign if x.ndim] if own else []
    if name in _INDEXING and isinstance(args[0], OnDevice):
        indices = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor) and not isinstance(x, OnDevice)]
        for counts in _counting if indices else ():
            counts.copies[name] += len(indices)
        mixed = [x for x in mixed if not any(x is index for index in indices)]
    if mixed:
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {op} of tensors on {NAME}:0 and of "
            f"{[tuple(x.shape) for x in mixed]} on the CPU"
        )
    for generator in generators:
        if on_device != (generator._cdata in _generators):
            raise RuntimeError(f"Expected a generator of the tensor's device: {op}")


def _views(op: Any, name: str) -> bool:
    return bool(op.is_view) or name in ("_unsafe_view", "_reshape_alias", "lift_fresh", "detach")


def _count(op: Any, name: str, args: tuple[Any, ...]) -> None:
    if name in _RESHAPES:
        raise NotImplementedError(f"{op} on {NAME}: a wrapper's shape cannot change")
    masks = name in _INDEXING and any(x.dtype == torch.bool for x in tree_leaves(args[1]) if isinstance(x, Tensor))
    for counts in _counting:
        if name in _WAITS or masks:
            counts.waits[name] += 1
        if not _views(op, name) and name not in _ALLOCATES and name != "_local_scalar_dense":
            counts.kernels[name] += 1


@functools.cache
def _registered() -> torch.library.Library:
    """The backend, once in a process."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run, "PrivateUse1")  # what has no tensor on the device yet: those that make one
    return library


def _from_the_cpu(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`make` a tensor of Python's values on the CPU, and copy it: torch does both in C++, where no wrapper is seen."""

    def made(data: Any, *, device: Any = None, **how: Any) -> Tensor:
        if isinstance(data, Tensor):
            return data.to(device=device or data.device, dtype=how.get("dtype") or data.dtype)
        found = make(data, **how)
        return found if device is None else found.to(device)

    return made


@contextmanager
def pretended() -> Iterator[torch.device]:
    """The device."""
    _registered()
    _device_constructors()  # which are kept: those of torch itself
    # Autograd has no thread for a device that comes after its first use in a process: it goes back in the caller's.
    with pytest.MonkeyPatch.context() as patch, torch.autograd.set_multithreading_enabled(False):
        patch.setattr(torch, "Generator", Generator)
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, _from_the_cpu(getattr(torch, name)))
        yield torch.device(NAME, 0)


def moved(model: Any) -> Any:
    """A model whose weights are put on the device, in place, as CUDA does it: those that are tied stay so."""
    found: dict[int, Tensor] = {}
    before = [*model.parameters(), *model.buffers()]  # an id is a tensor's own as long as it lives
    for weight in before:
        on = weight.detach().to(torch.device(NAME, 0))
        found[id(weight)] = nn.Parameter(on, requires_grad=False) if isinstance(weight, nn.Parameter) else on
    for module in model.modules():
        for entries in (module._parameters, module._buffers):
            entries.update({name: found[id(weight)] for name, weight in entries.items() if weight is not None})
    return model
