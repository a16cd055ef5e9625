"""The memory of a phase."""

import sys

import pytest
import torch

from evolora.models.cost import Costs
from evolora.models.memory import peak_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process has")
HALF = 2**29


def test_what_is_given_back_within_the_block_is_seen() -> None:
    with peak_memory() as idle:
        pass
    with peak_memory() as busy:
        kept = torch.ones(HALF // 4)
        for _ in range(20):
            kept.add_(1)
        del kept
    with peak_memory() as after:
        pass
    assert 0 < idle.bytes < busy.bytes - 0.9 * HALF
    assert after.bytes < busy.bytes - 0.9 * HALF


def test_a_phase_keeps_the_most_and_an_error_ends_the_watch() -> None:
    costs = Costs()
    with pytest.raises(ZeroDivisionError), peak_memory():
        1 / 0  # noqa: B018
    with costs.timed("update"):
        pass
    first = costs.metrics()["time.memory.update"]
    with costs.timed("update"):
        kept = torch.ones(HALF // 4)
    assert costs.metrics()["time.memory.update"] > first + 0.9 * HALF and costs.metrics()["time.memory.rollout"] == 0
    assert len(kept) == HALF // 4
