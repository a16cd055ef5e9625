"""Keyed randomness: every draw comes from a generator seeded by what the draw is for, never from a shared stream.

A stream that everyone consumes makes each draw depend on all draws before it, so that a resumed run, a run with other
workers or a run with one more metric would differ. Here a draw depends on its key alone:
(run seed, purpose, generation, individual, ...).
"""

import hashlib

import numpy as np
import numpy.typing as npt
import torch

Key = str | int


def keyed_seed(seed: int, *key: Key) -> int:
    """A 63-bit seed for `key` under the run's `seed`.

    The key is hashed (BLAKE2b), so that neighbouring keys give unrelated streams; strings and integers never collide.

    >>> keyed_seed(0, "mutation", 3, 7) == keyed_seed(0, "mutation", 3, 7)
    True
    >>> keyed_seed(0, "mutation", 3, 7) == keyed_seed(0, "mutation", 37)
    False
    """
    # A separator inside a string is doubled, so that no string reads as two parts. int() takes numpy's integers too.
    parts = ["s" + part.replace("\x1f", "\x1f\x1f") if isinstance(part, str) else f"i{int(part)}" for part in key]
    text = "\x1f".join([f"i{seed}", *parts])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed_generator(seed: int, *key: Key) -> torch.Generator:
    """A CPU generator for `key` under the run's `seed`. Draws are made on the CPU and moved, so that a run does not
    depend on the kind of device."""
    return torch.Generator().manual_seed(keyed_seed(seed, *key))


def keyed_uniforms(seeds: npt.NDArray[np.uint64], length: int) -> npt.NDArray[np.float64]:
    """One uniform number in [0, 1) for each row and position: [rows, length].

    A number depends on its row's seed and its position only, not on the other rows: SplitMix64 (Steele, Lea and Flood,
    2014, "Fast splittable pseudorandom number generators") used as a counter-based generator.

    >>> import numpy as np
    >>> both = keyed_uniforms(np.array([1, 2], dtype=np.uint64), 4)
    >>> bool((keyed_uniforms(np.array([2], dtype=np.uint64), 4) == both[1]).all())
    True
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    counters = np.arange(1, length + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = seeds.astype(np.uint64)[:, None] + counters[None, :] * golden
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return np.asarray((z >> np.uint64(11)).astype(np.float64) * 2.0**-53)
