"""A run whose engine stops applying the adapters: it ends in a sentence, or does without who is wrong, and loses
nothing."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from said import Said
from torch import Tensor
from transformers import PreTrainedModel

import evolora
from evolora import Callback, EngineError
from evolora.engine.base import Completions, Engine, Scored
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.options import ENGINES
from evolora.models.genome import GenomeLayout

GENERATIONS = 3


class Wrong(EagerEngine):
    """Serves the base while it is `on`."""

    on = False

    def generate(self, genomes: Tensor | None, *more: Any, **how: Any) -> Completions:
        return super().generate(self.served(genomes), *more, **how)

    def score(self, genomes: Tensor | None, *more: Any, **how: Any) -> Scored:
        return super().score(self.served(genomes), *more, **how)

    def served(self, genomes: Tensor | None) -> Tensor | None:
        return torch.zeros_like(genomes) if self.on and genomes is not None else genomes


class Workers(EagerEngine):
    """Lets a worker compute all in its place, until it is dismissed."""

    def __init__(self, model: PreTrainedModel, layout: GenomeLayout) -> None:
        super().__init__(model, layout)
        self.workers: list[Engine] = [Wrong(model, layout)]

    def generate(self, *given: Any, **how: Any) -> Completions:
        return self.workers[0].generate(*given, **how) if self.workers else super().generate(*given, **how)

    def score(self, *given: Any, **how: Any) -> Scored:
        return self.workers[0].score(*given, **how) if self.workers else super().score(*given, **how)

    def dealt_to(self) -> Sequence[Engine]:
        return self.workers

    def dismiss(self, one: Engine) -> bool:
        self.workers.remove(one)
        return True


class Goes(Callback):
    """The engine goes wrong after so many generations."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_start(self, run: Any) -> None:
        Wrong.on = run.generation == self.after

    def on_generation(self, run: Any, metrics: Any) -> None:
        Wrong.on = run.generation == self.after


@pytest.fixture
def run(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A short run, of this engine and with these callbacks."""
    monkeypatch.setattr(Wrong, "on", False)

    def evolve(kind: type, *callbacks: Callback, **options: Any) -> Any:
        monkeypatch.setitem(sys.modules, "own_engine", SimpleNamespace(Own=kind))
        monkeypatch.setitem(ENGINES, "eager", "own_engine:Own")
        options = {"view": None, "out": tmp_path / "run", "save_every": 2, **options}
        return evolora.evolve(
            model=str(toy.model), data=str(toy.data), reward=toy.reward, gens=GENERATIONS, pop=4, mutation_scale=0.1,
            rl_steps=1, engine="eager", threads=1, callbacks=callbacks, **options,
        )  # fmt: skip

    return evolve


def same(one: Any, other: Any) -> None:
    assert one.summary["winner"]["genome_sha256"] == other.summary["winner"]["genome_sha256"]
    metrics = [
        [{name: value for name, value in line.items() if not name.startswith("time.")} for line in each.history]
        for each in (one, other)
    ]
    assert one.summary["winner"]["test"] == other.summary["winner"]["test"]
    assert metrics[0] == metrics[1] and all(0 < line["canary"] < 1 for line in metrics[0])


@pytest.mark.parametrize("after", [0, 1, 2, GENERATIONS])
def test_the_run_stops_and_goes_on_as_if_nothing_had_been(
    after: int, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any checkpoint, after a generation that is not saved yet, after one that is, and before the test."""
    with pytest.raises(EngineError, match=r"the eager engine does not say of .*: it is what the base says") as found:
        run(Wrong, Goes(after), out=tmp_path / "stopped")
    assert found.value.__notes__ == [f"resume with: evolora resume {tmp_path / 'stopped'}"]
    checkpoints = [path.name for path in (tmp_path / "stopped" / "checkpoints").glob("gen*")]
    assert max(checkpoints, default=None) == (f"gen{after:04}" if after else None)
    assert not (tmp_path / "stopped" / "summary.json").exists()
    monkeypatch.setattr(Wrong, "on", False)
    resumed = evolora.resume(tmp_path / "stopped", view=None)
    same(resumed, run(EagerEngine))


@pytest.mark.parametrize("after", [0, 1, 2, GENERATIONS])
def test_one_that_can_be_done_without_is_dismissed_and_the_generation_done_again(
    after: int, run: Callable[..., Any], tmp_path: Path
) -> None:
    said = Said()
    found = run(Workers, Goes(after), view=said, out=tmp_path / "mended")
    (line,) = [line for line in said.lines if "canary" in line]
    assert "the eager engine 1 of 1 does not say of the sentinel in place" in line
    what = f"generation {after + 1}" if after < GENERATIONS else "the final choice"
    assert line.endswith(f"it is gone, and {what} is done again")
    same(found, run(EagerEngine))


def test_the_command_says_it_in_a_sentence(
    toy: Any, evolora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "on", False)
    monkeypatch.setitem(sys.modules, "own_engine", SimpleNamespace(Own=Wrong))
    monkeypatch.setitem(ENGINES, "eager", "own_engine:Own")
    reward = tmp_path / "reward.py"
    reward.write_text(
        (toy.folder / "reward.py").read_text().replace("    return", "    import sys\n"
        "    sys.modules['own_engine'].Own.on = True\n    return")
    )  # fmt: skip
    options = toy.options(tmp_path / "run", "--engine", "eager", "--threads", "1", reward=f"{reward}:distinct")
    code, _, errors = evolora("train", *options)
    assert code == 1 and errors.count("\n") == 1 and "Traceback" not in errors
    assert errors.startswith("evolora: canary: the eager engine does not say of ")
    assert errors.endswith(f"; resume with: evolora resume {tmp_path / 'run'}\n")
    monkeypatch.setattr(Wrong, "on", False)
    code, _, errors = evolora("resume", tmp_path / "run", "--no-canary", "--gens", "1")
    assert code == 0, errors
