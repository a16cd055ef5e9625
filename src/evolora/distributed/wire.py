"""Jobs and answers as bytes: tensors as their bytes, and genomes by name, where the other side has them."""

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Names = Callable[[Tensor], list[str] | None]
"""What the rows of a tensor are called, if it is one of genomes."""


def packed(value: Any, names: Names | None = None) -> bytes:
    """The value as bytes, genomes in it by their names.

    >>> bool((unpacked(packed({"x": torch.arange(3)}))["x"] == torch.arange(3)).all())
    True
    """
    written = io.BytesIO()
    _Pickler(written, names).dump(value)
    return written.getvalue()


def unpacked(data: bytes, genomes: Callable[[list[str]], Tensor] | None = None) -> Any:
    """What was packed; `genomes` gives those of some names."""
    return _Unpickler(io.BytesIO(data), genomes).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, names: Names | None) -> None:
        super().__init__(file, protocol=5)
        self._names = names

    def persistent_id(self, obj: Any) -> list[str] | None:
        return self._names(obj) if self._names is not None and isinstance(obj, Tensor) else None

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        plain = obj.detach().cpu().contiguous()
        # A view of bytes has no shape to be lost, and torch's own way writes the whole storage that a view is of.
        data = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        return _tensor, (data, plain.dtype, tuple(plain.shape))


def _tensor(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    # A copy: it can be written to, and begins where any tensor does.
    return torch.frombuffer(bytearray(data), dtype=dtype).clone().view(shape)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, genomes: Callable[[list[str]], Tensor] | None) -> None:
        super().__init__(file)
        self._genomes = genomes

    def persistent_load(self, pid: Any) -> Tensor:
        assert self._genomes is not None
        return self._genomes(pid)
