"""The KV cache as compiled functions read and write it."""

import torch
from torch import Tensor

from evolora.engine.cpu.activation_store import Tape
from evolora.engine.cpu.attention.decode import extend, gather_rows
from evolora.engine.cpu.jit import run_rows, takes
from evolora.engine.eager.kv_cache import RoomyCache, RoomyLayer

# Entries to copy, for less of which another thread is not worth its call.
_LEAST_A_THREAD = 1_000_000


class KernelLayer(RoomyLayer):
    """One layer's keys and values, extended by compiled functions where these can take the states."""

    def extends(self, states: Tensor) -> bool:
        """Whether `extend` can take these."""
        return self.is_initialized and states.is_contiguous() and takes(states)

    def extend(self, states: Tensor, mask: Tensor, scaling: float) -> Tensor:
        """Append the keys and values among `states` [rows, asked, 3, heads, size] and attend to all so far with its
        queries: `attention.decode.extend`."""
        start, self.length = self.length, self.length + states.shape[1]
        return extend(states, self.keys, self.values, start, mask, scaling)

    def grow(self, positions: int = 1) -> int:
        """Where the positions to be written next begin; they count from now on."""
        self.length += positions
        return self.length - positions

    def begin(self, states: Tensor, length: int, heads: int) -> None:
        """Start with `length` positions for each of `states` [rows, positions, hidden], still to be written."""
        self.dtype, self.device, self.is_initialized = states.dtype, states.device, True
        rows, _, hidden = states.shape
        self.keys, self.values = (states.new_empty(rows, self.capacity, heads, hidden // heads) for _ in range(2))
        self.length = length

    def gather(self, states: Tensor, index: Tensor, room: Tensor) -> None:
        if not takes(states, room):
            super().gather(states, index, room)
            return
        arguments = states.flatten(1).numpy(), index.numpy(), room.flatten(2).numpy()
        run_rows(gather_rows, arguments, len(index), min(torch.get_num_threads(), room.numel() // _LEAST_A_THREAD))


class KernelCache(RoomyCache):
    """A cache of such layers."""

    layers: list[KernelLayer]
    trace: Tape | None = None
