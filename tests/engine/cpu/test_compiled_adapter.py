"""What adapters add, compiled, against float64."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.engine.cpu.lora import NO_ADAPTER, NOTHING, Adapter, add_low_rank


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(x: Tensor, genomes: Tensor, owners: Tensor, adapter: Adapter, wide: int) -> Tensor:
    """Row by row in float64."""
    width, rank = x.shape[1], adapter.rank
    rows = []
    for row, owner in zip(x.double(), owners.tolist(), strict=True):
        genome = genomes[owner].double()
        a = genome[adapter.a_offset : adapter.a_offset + rank * width].view(rank, width)
        b = genome[adapter.b_offset : adapter.b_offset + wide * rank].view(wide, rank)
        rows.append(float(adapter.scaling) * b @ (a @ row))
    return torch.stack(rows)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any),
    st.integers(1, 20),
    st.sampled_from([1, 3, 16, 40, 65]),
    st.sampled_from([1, 7, 32, 50]),
    st.integers(0, 3),
    st.data(),
)
def test_each_row_has_what_its_own_adapter_makes_of_it(
    counts: list[int], rank: int, width: int, wide: int, before: int, data: st.DataObject
) -> None:
    owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    genomes = drawn(len(counts), before + rank * width + 2 + wide * rank + 1, seed=1)
    adapter = Adapter(genomes.numpy(), owners.numpy(), before, before + rank * width + 2, rank, np.float32(1.5))
    x, result = drawn(len(owners), width, seed=2), drawn(len(owners), wide, seed=3)
    expected = result + reference(x, genomes, owners, adapter, wide)
    first = data.draw(st.integers(0, len(owners)))
    last = data.draw(st.integers(first, len(owners)))
    expected[:first], expected[last:] = result[:first], result[last:]
    add_low_rank(*adapter, x.numpy(), result.numpy(), first, last)
    torch.testing.assert_close(result.double(), expected, atol=1e-4 * rank, rtol=1e-5)
    untouched = torch.ones(len(owners), dtype=torch.bool)
    untouched[first:last] = False
    assert torch.equal(result[untouched], expected[untouched].float())


def test_without_an_adapter_nothing_is_added() -> None:
    result = drawn(3, 4, seed=0)
    before = result.clone()
    add_low_rank(*NO_ADAPTER, NOTHING, result.numpy(), 0, 3)
    assert torch.equal(result, before)


def test_a_row_does_not_depend_on_who_shares_the_batch() -> None:
    genomes, x = drawn(3, 8 * (48 + 20), seed=1), drawn(12, 48, seed=2)

    def added(rows: slice) -> Tensor:
        owners = np.arange(3).repeat(4)[rows]
        result = torch.zeros(len(owners), 20)
        adapter = Adapter(genomes.numpy(), owners, 0, 8 * 48, 8, np.float32(2))
        add_low_rank(*adapter, x[rows].numpy(), result.numpy(), 0, len(owners))
        return result

    whole = added(slice(None))
    assert all(torch.equal(whole[row : row + 1], added(slice(row, row + 1))) for row in range(12))
