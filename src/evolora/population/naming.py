"""Which genomes are the same: told by comparing them, so that nobody waits for their checksums."""

from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor

from evolora.population.population import genome_sha256_later

# Values of a genome that tell it from most others.
_SAMPLED = 64


@dataclass(eq=False)
class Named:
    """A genome; its values as bits, so that even NaN is equal to itself, once it has been met."""

    bits: Tensor | None
    checksum: Future[str]

    @property
    def sha256(self) -> str:
        """Its checksum, waited for if need be."""
        return self.checksum.result()


class Names:
    """The genomes that have been met, each once, until `keep` forgets it.

    >>> names, genomes = Names(), torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    >>> first, second, third = names.of(genomes)
    >>> first is third, first is second
    (True, False)
    """

    def __init__(self) -> None:
        self._met: dict[bytes, list[Named]] = {}
        self._expected: dict[str, Named] = {}

    def expect(self, sha256: str) -> Named:
        """A genome that will be met again and is known by its checksum. Until `keep` is called those of new ones are
        waited for."""
        there: Future[str] = Future()
        there.set_result(sha256)
        self._expected[sha256] = Named(None, there)
        return self._expected[sha256]

    def of(self, genomes: Tensor) -> list[Named]:
        """Of each of `genomes` [n, genome_length]."""
        return [self._of(genome) for genome in genomes.detach().cpu().float()]

    def _of(self, genome: Tensor) -> Named:
        bits = genome.contiguous().view(torch.int32)
        alike = self._met.setdefault(_sample(bits), [])
        for named in alike:
            if named.bits is not None and torch.equal(named.bits, bits):
                return named
        own = bits.clone()  # a row would keep its whole population alive
        new = Named(own, genome_sha256_later(own.view(torch.float32)))
        if self._expected and (expected := self._expected.pop(new.sha256, None)) is not None:
            expected.bits, new = own, expected
        alike.append(new)
        return new

    def keep(self, living: Collection[Named]) -> None:
        """Forget all others."""
        self._met, self._expected = {}, {}
        for named in living:
            assert named.bits is not None  # of those that `of` has given
            self._met.setdefault(_sample(named.bits), []).append(named)


def _sample(bits: Tensor) -> bytes:
    return bits[:: max(1, len(bits) // _SAMPLED)].numpy().tobytes()
