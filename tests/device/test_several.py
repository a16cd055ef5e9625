"""A batch that several devices share, without Ray."""

import threading
from dataclasses import replace

import pytest
import torch
from test_decoding import PROMPTS, SEEDS, SOME_END, Placed, engine_of

from evolora.distributed.crew import LocalCrew
from evolora.distributed.engine import DealtEngine
from evolora.distributed.jobs import Worker
from evolora.engine.base import Scoring
from evolora.errors import InputError
from evolora.runs.engines import devices_of
from evolora.runs.options import make_options


@pytest.mark.parametrize("first", ["cpu", "device"])
def test_devices_share_a_batch(placed: Placed, first: str) -> None:
    (cpu, genomes), (device, _) = (engine_of(placed("llama", on_device=on_device)) for on_device in (False, True))
    both = [cpu, device] if first == "cpu" else [device, cpu]
    done: list[str] = []

    barrier = threading.Barrier(2)

    class Noting(Worker):
        def do(self, job: object) -> object:
            if self.engine.device.type not in done:
                done.append(self.engine.device.type)
                barrier.wait(60)  # each has some of the work
            # As in `pretended`, of each thread: autograd's own threads know no device that came after them.
            with torch.autograd.set_multithreading_enabled(False):
                return super().do(job)  # type: ignore[arg-type]

    crew = LocalCrew([lambda: Noting(both[0]), lambda: Noting(both[1])])
    shared = DealtEngine(both[0], crew, slice_rows=1)
    how = replace(SOME_END, seeds=SEEDS)
    expected, found = cpu.generate(genomes, PROMPTS, how), shared.generate(genomes, PROMPTS, how)
    assert found.rows() == expected.rows() and found.ids.device == both[0].device
    right, mine = (
        engine.score(genomes, PROMPTS, completions, Scoring(gradient=True))
        for engine, completions in ((cpu, expected), (shared, found))
    )
    assert torch.allclose(mine.log_probs.cpu(), right.log_probs, atol=1e-4)
    ones = torch.ones_like(right.log_probs)
    gradient = mine.backward(ones.to(both[0].device))
    assert gradient.device == both[0].device
    assert torch.allclose(gradient.cpu(), right.backward(ones), rtol=1e-3, atol=1e-2)
    assert set(done) == {"cpu", device.device.type}


def test_devices_that_cannot_share_are_refused() -> None:
    def refused(**options: object) -> str:
        with pytest.raises(InputError) as error:
            devices_of(make_options(options))
        return str(error.value)

    assert "expected devices that differ" in refused(device="cpu,cpu")
    assert "cannot be used" in refused(device="cpu,cuda:99")
    assert devices_of(make_options({"device": "cpu"})) == ["cpu"]
