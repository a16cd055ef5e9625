"""The mutation scale that is found from the model: before the first generation, once, and kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evolora.models.cost import Cost
from evolora.runs.mutation_scale import crossing

FEW = ("--eval-prompts", "4", "--validation-prompts", "4", "--refiner", "none")


@pytest.fixture(scope="module")
def auto(toy: Any, command: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of two generations, and what it said."""
    run = tmp_path_factory.mktemp("auto") / "run"
    options = [each for each in toy.options(run, *FEW, gens=2) if each not in ("--mutation-scale", "0.1")]
    said = command("-m", "evolora.cli", "train", *options, "--save-every", "1")
    return run, said.stdout + said.stderr


def kept(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "mutation_scale.json").read_text()))


def test_another_model_s_scale_is_found_said_and_counted(auto: Any) -> None:
    run, said = auto
    found = kept(run)
    ladder = dict(found["ladder"])
    below, above = max(s for s in ladder if s <= found["scale"]), min(s for s in ladder if s >= found["scale"])
    assert ladder[below] < 0.3 <= ladder[above]
    assert f"mutation scale {found['scale']:.3g}, to change 30% of the greedy completions" in said
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert first["mutation_scale"] == pytest.approx(found["scale"])
    assert first["tokens.evaluation"] > found["tokens"] > 0
    assert first["time.loop"] > found["seconds"] > 0
    assert 'mutation_scale = "auto"' in (run / "config.toml").read_text()


def test_a_resumed_run_has_the_same_scale_and_the_same_bits(
    auto: Any, evolora: Any, facts: Any, tmp_path: Path
) -> None:
    run, _ = auto
    again = tmp_path / "run"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "gen0002")
    (again / "summary.json").unlink()
    code, out, err = evolora("resume", again, "--trust-reward")
    assert code == 0, err
    assert "to change" not in out + err
    assert facts(again).metrics == facts(run).metrics
    assert facts(again).summary == facts(run).summary


def test_a_damaged_file_is_found_again_to_the_same_number(auto: Any, evolora: Any, tmp_path: Path) -> None:
    run, _ = auto
    again, before = tmp_path / "run", kept(run)
    shutil.copytree(run, again)
    (again / "mutation_scale.json").write_text("{}")
    code, out, _ = evolora("verify", again)
    assert code != 0
    assert "mutation_scale.json" in out
    code, out, err = evolora("resume", again, "--gens", "3", "--trust-reward")
    assert code == 0, err
    assert "it is found again" in out + err
    assert (kept(again)["scale"], kept(again)["tokens"]) == (before["scale"], before["tokens"])


@pytest.mark.parametrize("mutation", ["relative", "svd", "module", "masked"])
def test_each_kind_of_mutation_has_a_scale(mutation: str, auto: Any) -> None:
    from evolora.runs.assembly import assemble
    from evolora.runs.config_file import read_run_config
    from evolora.runs.given import Given
    from evolora.runs.mutation_scale import changed_shares, find_scale
    from evolora.runs.options import make_options
    from evolora.runs.tracking.view import Silence

    config = make_options(read_run_config(auto[0]), {"mutation": mutation, "out": None, "threads": 1})
    parts = assemble(config, Given(), Silence())
    scale, rungs, _ = find_scale(parts, config.strategy)
    assert rungs[0][1] < 0.3
    assert 0.05 <= changed_shares(parts, config.strategy, [scale])[0][0] <= 0.8


def test_what_lies_between_two_ladders_is_found_by_two(auto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from evolora.runs import mutation_scale
    from evolora.runs.assembly import assemble
    from evolora.runs.config_file import read_run_config
    from evolora.runs.given import Given
    from evolora.runs.options import make_options
    from evolora.runs.tracking.view import Silence

    config = make_options(read_run_config(auto[0]), {"out": None, "threads": 1})
    asked: list[float] = []

    def shares(parts: Any, strategy: Any, scales: list[float]) -> tuple[list[float], Cost]:
        asked.extend(scales)
        return [0.2 if scale < 0.008 else 0.4 for scale in scales], Cost()

    monkeypatch.setattr(mutation_scale, "changed_shares", shares)
    scale, rungs, _ = mutation_scale.find_scale(assemble(config, Given(), Silence()), config.strategy)
    assert len(asked) == len(set(asked)) == 8 and 0.005 < scale < 0.01
    assert [each for each, _ in rungs] == sorted(asked)


@pytest.mark.parametrize(
    ("rungs", "expected"),
    [
        ([(1.0, 0.0), (2.0, 0.6)], 2**0.5),
        ([(1.0, 0.0), (2.0, 0.2), (4.0, 0.1), (8.0, 0.4)], 2**2.5),
        ([(1.0, 0.5), (2.0, 0.6)], 1.0),
        ([(1.0, 0.0), (2.0, 0.1)], 2.0),
    ],
)
def test_the_scale_is_interpolated(rungs: list[tuple[float, float]], expected: float) -> None:
    assert crossing(rungs, 0.3) == pytest.approx(expected)
