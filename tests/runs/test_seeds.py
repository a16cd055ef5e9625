"""Intervals over seeds, beside scipy's."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evolora.runs.options import Source, make_options
from evolora.runs.report.seeds import _band
from evolora.runs.seeds.folder import Seeds, read_seeds
from evolora.runs.seeds.summary import best_of, lines, over_seeds, t_interval, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 999])
@pytest.mark.parametrize("probability", [0.55, 0.9, 0.975, 0.9995])
def test_quantiles_are_scipys(probability: float, freedom: int) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_is_scipys(count: int, level: float) -> None:
    values = np.random.default_rng(count).normal(0.7, 0.1, count)
    found = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert t_interval(values.tolist(), level) == pytest.approx((found.low, found.high), rel=1e-9)


def test_it_covers_the_mean_as_often_as_it_says() -> None:
    """Of few values, which a bootstrap does not: by its own resamples it would be too narrow."""
    draws = np.random.default_rng(0).normal(0.5, 0.1, (2000, 3))
    covered = [low <= 0.5 <= high for low, high in map(t_interval, draws.tolist())]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_one_value_has_no_interval() -> None:
    assert all(map(math.isnan, t_interval([0.5])))
    assert over_seeds([0.5, None]) == {"reward": 0.5, "ci95": [None, None], "seeds": 1}
    assert over_seeds([None]) == {"reward": None, "ci95": [None, None], "seeds": 0}


@pytest.mark.parametrize(("init", "name"), [({}, "base model"), ({"init": ["sft", "other"]}, "sft")])
def test_it_says_what_the_winners_are_compared_with(init: dict[str, Any], name: str) -> None:
    mean = {"reward": 0.5, "ci95": [0.4, 0.6], "seeds": 2}
    one = {"seed": 3, "winner": {**mean, "id": 1, "operator": "ppo", "validation": 0.5}, "generations": 2}
    summary = {"task": "format", "held_out": True, "test_prompts": 2, "base": mean, "winner": mean, "gain": mean}
    summary |= {"seeds": [one], "better": 1.0, "differ": [], "seconds": 1.0, "best": 3}
    summary |= {"tokens": {"evaluation": 1, "rollout": 1}, "flops": {"test": 0}}
    said = lines(Path("run"), {**summary, **init})
    assert f"  {name:<10} 0.500 (95% 0.400 to 0.600)" in said
    assert f"2 of 2 seeds beat {'sft' if init else 'the base'}" in said


def test_the_best_is_chosen_on_validation() -> None:
    rows = [
        {"seed": seed, "winner": {"validation": validation, "reward": reward}}
        for seed, validation, reward in ((4, None, 1.0), (5, 0.7, 0.9), (6, 0.8, 0.1), (7, 0.8, 0.2))
    ]
    assert best_of(rows) == 6


def test_a_band_where_three_seeds_have_got() -> None:
    mean, low, high = _band([[0.2, 0.4, 0.3], [0.5, None, 0.5], [None, None, None]])
    assert mean[:2] == pytest.approx([0.3, 0.5]) and mean[2] is None
    edges = stats.ttest_1samp([0.2, 0.4, 0.3], 0).confidence_interval(0.95)
    assert (low[0], high[0]) == pytest.approx((edges.low, edges.high))
    assert (low[1:], high[1:]) == ([None, None], [None, None])


def test_the_folder_keeps_what_was_said_and_no_trust(tmp_path: Path) -> None:
    config = make_options({"seeds": "4,9", "refiner": "grpo", "pop": 6, "trust_remote_code": True, "out": "elsewhere"})
    Seeds.of("0" * 32, config, {}).write(tmp_path)
    seeds = read_seeds(tmp_path)
    assert seeds.seeds == (4, 9)
    run = seeds.options(tmp_path, 9, Source([("gens", 3)]))
    assert (run.run.seed, run.run.seeds, run.task.split_seed, run.evolution.gens) == (9, None, 4, 3)
    assert run.run.out == str(tmp_path / "seed-9")
    assert run.evolution.seed == 9, "every part is told"
    assert (run.refiner.type, run.evolution.pop, run.model.trust_remote_code) == ("grpo", 6, False)
    alone = make_options({"seed": 9, "split_seed": 4, "refiner": "grpo", "pop": 6, "gens": 3})
    assert run.replaced({"run": {"out": None}}) == alone


def test_only_its_owner_reads_a_key(tmp_path: Path) -> None:
    config = make_options({"seeds": 2, "reward": "http('http://localhost:1/?api_key=Cl3arT3xtK3y')"})
    Seeds.of("0" * 32, config, {}).write(tmp_path)
    assert (tmp_path / "seeds.json").stat().st_mode & 0o077 == 0
