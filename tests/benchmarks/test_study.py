"""The study's own machinery: its statistics, its tasks, its runner and the claims that it computes."""

import doctest
import importlib
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from study.base_rates import base_rates, leads_away
from study.budget import Budget, Point, thinned
from study.claims import claims
from study.measure import Job, assembled, measure
from study.methods import (
    ABLATIONS,
    METHODS,
    QUICK_METHODS,
    SEARCH_GRID,
    SEARCH_SEEDS,
    SINGLE_METHODS,
    Method,
    options_sha256,
)
from study.report import write_report
from study.results import collect
from study.runner import (
    Runner,
    append_row,
    chosen_setting,
    filled,
    finished,
    key_of,
    missing_jobs,
    of_processor,
    read_rows,
    search_jobs,
    study_jobs,
)
from study.sketch import sketch
from study.statistics import (
    at_cost,
    interquartile_mean,
    mean_difference,
    mean_probability_of_improvement,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)
from study.tasks import ABSTAINING_CREDIT, TASKS, NoisyReward

from evolora.rewards import exact

Row = dict[str, Any]
ONE = Budget(gens=1)
runs = st.lists(st.floats(-10, 10).map(lambda x: round(x, 1)), min_size=1, max_size=12)


@pytest.mark.parametrize("name", ["statistics", "tasks", "budget", "report"])
def test_the_examples_in_docstrings_are_right(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"study.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


# --- statistics --------------------------------------------------------------------------------------------------


@given(st.lists(runs, min_size=1, max_size=4))
@settings(deadline=None)
def test_interquartile_mean_is_the_mean_of_the_sorted_middle(tasks: list[list[float]]) -> None:
    ordered = sorted(itertools.chain(*tasks))
    cut = len(ordered) // 4
    middle = ordered[cut : len(ordered) - cut]
    scores = {str(index): np.array(values) for index, values in enumerate(tasks)}
    assert interquartile_mean(scores) == pytest.approx(sum(middle) / len(middle), abs=1e-12)


def test_interquartile_mean_is_scipys_trimmed_mean() -> None:
    values = np.random.default_rng(0).normal(size=(3, 7))
    scores = {str(index): row for index, row in enumerate(values)}
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(values, 0.25, axis=None))


@given(runs, runs)
@settings(deadline=None)
def test_probability_of_improvement_counts_pairs(x: list[float], y: list[float]) -> None:
    counted = [1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y]
    found = probability_of_improvement(np.array(x), np.array(y))
    assert found == pytest.approx(sum(counted) / len(counted))
    assert found + probability_of_improvement(np.array(y), np.array(x)) == pytest.approx(1)


def test_probability_of_improvement_is_scipys_u() -> None:
    x, y = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 0.0, 5.0])
    assert probability_of_improvement(x, y) == pytest.approx(stats.mannwhitneyu(x, y).statistic / 12)


def test_probability_of_improvement_is_a_mean_over_tasks_not_over_pairs() -> None:
    x = {"a": np.ones(1), "b": np.zeros(5)}
    y = {"a": np.zeros(1), "b": np.ones(5)}
    assert mean_probability_of_improvement(x, y) == 0.5


def test_bootstrap_draws_within_tasks() -> None:
    # Drawn from all runs together, the mean would vary.
    x = {"a": np.zeros(4), "b": np.full(4, 10.0)}
    y = {"a": np.full(2, -1.0), "b": np.full(2, 10.0)}
    assert stratified_interval(mean_difference, x, y) == (0.5, 0.5)


def test_bootstrap_interval_covers_a_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        scores = {"a": generator.normal(0, 1, 20)}
        low, high = stratified_interval(
            lambda drawn: float(drawn["a"].mean()), scores, level=0.9, resamples=200, seed=seed
        )
        covered += low < 0 < high
    assert 0.82 < covered / 200 < 0.95


def test_performance_profile_falls_from_one_to_none() -> None:
    scores = {"a": np.array([0.1, 0.5]), "b": np.array([0.2, 0.4, 0.9])}
    profile = performance_profile(scores, np.linspace(0, 1, 50))
    assert profile[0] == 1 and profile[-1] == 0
    assert (np.diff(profile) <= 0).all()


def test_a_curve_is_read_between_its_points_and_held_beyond_them() -> None:
    costs, values = np.array([0.0, 2.0, 4.0]), np.array([0.0, 1.0, 3.0])
    assert [at_cost(costs, values, cost) for cost in (1.0, 3.0, 9.0)] == [0.5, 2.0, 3.0]


def test_thinning_keeps_the_last_point() -> None:
    points = [Point(float(index), index, None) for index in range(103)]
    kept = thinned(points, 20)
    assert len(kept) == 20 and kept[-1] is points[-1]
    assert thinned(points[:3], 20) == points[:3]


# --- tasks -------------------------------------------------------------------------------------------------------


def test_every_task_has_held_out_test_prompts_and_loads_from_its_rows() -> None:
    for task in TASKS.values():
        loaded = task.load()
        assert loaded.held_out
        assert len(task.rows()) == len(loaded.train) + len(loaded.validation) + len(loaded.test)
    assert len({task.sha256 for task in TASKS.values()}) == len(TASKS)


def test_the_base_is_almost_never_right_on_sparse_but_not_never() -> None:
    rates = base_rates(TASKS["sparse"], TASKS["sparse"].load().train, samples=2)
    assert 0 < rates.right < 0.02
    # All or nothing: there is no partial reward to climb.
    assert set(np.unique(rates.rewards)) == {0.0, 1.0}


def test_deceptive_leads_away_from_the_best_and_arithmetic_does_not() -> None:
    task = TASKS["deceptive"]
    rates = base_rates(task, task.load().train[:350], samples=2)
    assert 0 < rates.right < 0.1 < rates.declined
    assert leads_away(rates, ABSTAINING_CREDIT)
    # Where declining earns the same, but the base is right more often, it does not.
    dense = base_rates(TASKS["arithmetic"], TASKS["arithmetic"].load().train[:200], samples=2)
    assert not leads_away(dense, ABSTAINING_CREDIT)


def test_noise_is_heavy_drawn_anew_repeatable_and_around_the_truth() -> None:
    completions, target = [" 4"] * 2000 + [" 5"] * 2000, ["4"] * 4000
    reward = TASKS["noisy"].reward(seed=3)
    first, again = (np.array(reward(completions=completions, target=target)) for _ in range(2))
    assert (first != again).all()
    repeated = TASKS["noisy"].reward(seed=3)(completions=completions, target=target)
    assert np.array_equal(first, repeated)
    truth = np.array(exact(completions, target=target))
    assert abs((first - truth).mean()) < 0.06
    assert (first - truth).std() == pytest.approx(1, abs=0.05)
    assert not np.array_equal(first, TASKS["noisy"].reward(seed=4)(completions=completions, target=target))


def test_noise_leaves_what_is_not_scored() -> None:
    assert NoisyReward(lambda completions, **_: [None] * len(completions), 1.0, 0)(completions=["a"]) == [None]


def test_two_objective_trades_sentiment_for_tokens() -> None:
    reward = TASKS["two-objective"].true_reward
    love = " wonderful and I love it."
    long, short = reward(completions=[love, love], completion_ids=[[1] * 10, [1] * 5])
    assert short - long == pytest.approx(0.1)


# --- methods -----------------------------------------------------------------------------------------------------


def test_an_options_checksum_changes_with_what_a_method_does_only() -> None:
    hybrid, ppo = METHODS["hybrid"], METHODS["ppo-default"]
    assert options_sha256(hybrid, {}) != options_sha256(hybrid, {"mutation_scale": 0.01})
    assert options_sha256(hybrid, {}) == options_sha256(hybrid, {"mutation_scale": 0.02, "seed": 3, "gens": 7})
    alone = {"strategy": "none"}
    assert options_sha256(ppo, alone) == options_sha256(ppo, {**alone, "pop": 16})
    assert options_sha256(ppo, alone) != options_sha256(ppo, {**alone, "lr": 1.0})


# --- runner ------------------------------------------------------------------------------------------------------


def row_of(job: Job, test: float = 0.5, **more: Any) -> Row:
    """A finished run as the runner writes it, made up."""
    return job.identity() | {
        "base": 0.0,
        "test": test,
        "seconds": 20.0,
        "tokens": 1000,
        "flops": 100.0,
        "curve": {
            "seconds": [0.0, 20.0],
            "tokens": [0, 1000],
            "flops": [0.0, 100.0],
            "validation": [None, test],
            "test": [0.0, test],
        },
        **more,
    }


def test_rows_survive_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "rows.jsonl"
    append_row(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "b')
    append_row(path, {"a": 3})
    assert read_rows(path) == [{"a": 1}, {"a": 3}]
    assert read_rows(tmp_path / "none") == []


def test_cells_that_a_file_lacks_are_measured_once(tmp_path: Path) -> None:
    path, measured = tmp_path / "rows.jsonl", list[int]()
    append_row(path, {"seed": 0, "gens": 2, "test": [0.5]})
    append_row(path, {"seed": 1, "gens": 9, "test": [0.9]})

    def measure(seed: int, gens: int) -> dict[str, Any]:
        measured.append(seed)
        return {"seed": seed, "gens": gens, "test": [seed / 4]}

    cells = [{"seed": seed, "gens": 2} for seed in (0, 1)]
    expected = [{"seed": 0, "gens": 2, "test": [0.5]}, {"seed": 1, "gens": 2, "test": [0.25]}]
    assert filled(path, iter(cells), measure) == filled(path, cells, measure) == expected
    assert measured == [1] and len(read_rows(path)) == 3


def test_what_is_done_is_skipped_and_what_failed_is_tried_again() -> None:
    jobs = [Job("translate", "hybrid", seed, ONE) for seed in range(3)]
    rows = [row_of(jobs[0]), jobs[1].identity() | {"error": "boom"}]
    assert missing_jobs(jobs, rows) == jobs[1:]
    # Another budget, other options, another task's data: not the same run.
    other = Job("translate", "hybrid", 0, Budget(gens=2))
    assert missing_jobs([other], rows) == [other]
    assert missing_jobs(jobs[:1], [rows[0] | {"options_sha256": "older defaults"}]) == jobs[:1]
    assert missing_jobs(jobs[:1], [rows[0] | {"task_sha256": "older data"}]) == jobs[:1]


def test_a_quick_look_makes_no_run_twice() -> None:
    jobs = study_jobs([], ["translate"], QUICK_METHODS, [0], ONE, search=False)
    works = [options_sha256(METHODS[job.method], job.options) for job in jobs]
    assert len(set(works)) == len(works) == len(QUICK_METHODS) > len(SINGLE_METHODS)


def test_seeds_come_outermost() -> None:
    jobs = study_jobs([], ["translate", "sparse"], ["hybrid", "ga-alone"], [0, 1], ONE, search=False)
    order = [(job.seed, job.task, job.method) for job in jobs]
    assert order == list(itertools.product([0, 1], ["translate", "sparse"], ["hybrid", "ga-alone"]))


def test_a_refused_method_is_left_out_with_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = Method(name="es", title="", role="single", options={"strategy": "no such strategy"})
    monkeypatch.setitem(METHODS, "es", unknown)
    said: list[str] = []
    jobs = [Job("translate", method, seed, ONE) for seed in (0, 1) for method in ("hybrid", "es")]
    assert missing_jobs(jobs, [], said.append) == [jobs[0], jobs[2]]
    assert len(said) == 1 and said[0].startswith("es: left out")


def test_a_search_chooses_by_the_mean_on_its_own_seeds() -> None:
    jobs = search_jobs(["sparse"], ["ppo-alone", "hybrid"], ONE)
    assert len(jobs) == len(SEARCH_GRID) * len(SEARCH_SEEDS) and {job.method for job in jobs} == {"ppo-alone"}
    # The second setting is best on one seed, the fourth on average.
    test = {(1, 0): 0.9, (1, 1): 0.1, (3, 0): 0.6, (3, 1): 0.7}
    rows = [row_of(job, test.get((SEARCH_GRID.index(job.setting), SEARCH_SEEDS.index(job.seed)), 0.2)) for job in jobs]
    assert chosen_setting(rows, "sparse", "ppo-alone", ONE) == SEARCH_GRID[3]
    assert chosen_setting(rows[:-1], "sparse", "ppo-alone", ONE) is None
    said: list[str] = []
    left_out = study_jobs(rows[:-1], ["sparse"], ["ppo-alone"], [0], ONE, search=True, say=said.append)
    assert left_out == [] and len(said) == 1
    (job,) = study_jobs(rows, ["sparse"], ["ppo-alone"], [0], ONE, search=True)
    assert job.setting == SEARCH_GRID[3] and job.options["lr"] == SEARCH_GRID[3]["lr"]
    # The runs of the chosen setting are those that count.
    wrong = Job("sparse", "ppo-alone", 0, ONE, "study", SEARCH_GRID[0])
    results = collect([*rows, row_of(job, 0.3), row_of(wrong, 0.8)], ONE)
    assert results.tests("sparse", "ppo-alone", [0]).tolist() == [0.3]


def test_runner_makes_what_is_missing_and_notes_what_fails(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    good = Job("arithmetic", "best-of-n", 0, ONE)
    bad = Job("arithmetic", "ga-alone", -1, ONE)  # no run may have such a seed
    runner = Runner(out, workers=1, say=lambda _: None)
    runner.run(missing_jobs([good, bad], read_rows(out)))
    rows = read_rows(out)
    assert [("error" in row, row["method"]) for row in rows] == [(False, "best-of-n"), (True, "ga-alone")]
    assert "seed=-1" in rows[1]["error"] and len(runner.failures) == 1
    assert finished(rows) == {key_of(good.identity())}
    assert missing_jobs([good, bad], rows) == [bad]


def test_runner_outlives_a_worker_that_dies(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    jobs = [Job("translate", "hybrid", seed, ONE) for seed in (0, 1)]
    runner = Runner(out, workers=1, say=lambda _: None, make=sys.exit)
    runner.run(jobs)
    assert ["its process died" in row["error"] for row in read_rows(out)] == [True, True]


# --- measuring ---------------------------------------------------------------------------------------------------


def test_a_noisy_run_is_judged_without_noise() -> None:
    row = measure(Job("noisy", "ga-alone", 0, ONE))
    prompts = len(TASKS["noisy"].load().test)
    for name in ("base", "test"):
        assert row[name] * prompts == pytest.approx(round(row[name] * prompts), abs=0.01)
        assert 0 <= row[name] <= 1
    assert row["curve"]["tokens"][-1] == row["tokens"] > 0
    assert len({len(values) for values in row["curve"].values() if values is not None}) == 1
    assert len(json.dumps(row)) < 2000


def test_best_of_n_grows_with_n() -> None:
    row = measure(Job("arithmetic", "best-of-n", 0, Budget(gens=4)))
    tests = row["curve"]["test"][1:]
    assert len(tests) == 4 and tests == sorted(tests) and tests[-1] > tests[0]
    assert row["flops"] == row["curve"]["flops"][-1] > 0


def test_the_sketch_runs_and_changes_the_adapter() -> None:
    with assembled(TASKS["arithmetic"], seed=0) as parts:
        points = sketch(parts, exact, 0, Budget(gens=2))
    assert len(points) == 2 and 0 < points[0].tokens < points[1].tokens
    adapters = [parts.founder, *(point.genome for point in points)]
    for one, other in itertools.combinations(adapters, 2):
        assert one is not None and other is not None and not torch.equal(one, other)


# --- claims ------------------------------------------------------------------------------------------------------

SEEDS, PAIR, BUDGET = range(3), ("translate", "sparse"), Budget(seconds=20)
Score = Callable[[str, str, int], float]


def synthetic(score: Score, **more: Any) -> list[Row]:
    """Rows of every method on two tasks, with a test reward by method, task and seed."""
    rows = []
    for task, (name, method), seed in itertools.product(PAIR, METHODS.items(), SEEDS):
        test = score(name, task, seed)
        curve = {
            "seconds": [0.0, 20.0],
            "tokens": [0, 10],
            "flops": [0.0, 100.0],
            "validation": [None, test],
            "test": [0.1, test],
        }
        rows.append(
            {
                "phase": "study",
                "task": task,
                "task_sha256": "t",
                "method": name,
                "options_sha256": f"o{method.role}",
                "setting": {},
                "seed": seed,
                "budget": "20 s",
                "processor": "one",
                "base": 0.1,
                "test": test,
                "seconds": 20.0,
                "tokens": 10,
                "flops": 100.0,
                "curve": curve,
                **more,
            }
        )
    return rows


def good(method: str, _: str, seed: int) -> float:
    """All that the claims want."""
    level = {"hybrid": 0.9, "hybrid-lr-high": 0.88, "hybrid-lr-low": 0.86, "ppo-default": 0.8, "ppo-lr-high": 0.2}
    level |= {"hybrid-no-soup": 0.89, "hybrid-no-soup-lr-high": 0.87}
    return level.get(method, 0.5) + seed / 100


def judged(rows: list[Row]) -> Row:
    found = claims(collect(rows, BUDGET), min_seeds=len(SEEDS), tasks=PAIR)["claims"]
    json.dumps(found)
    return dict(found)


def test_all_claims_hold_where_they_should() -> None:
    found = judged(synthetic(good))
    assert [claim["holds"] for claim in found.values()] == [True] * 4
    assert [claim["reason"] for claim in found.values()] == [None] * 4
    figures = found["ahead_of_single_methods"]["tasks"]["sparse"]
    assert figures["equal_seconds"]["probability_of_improvement"] == 1
    assert set(figures["equal_seconds"]["all"]) == set(SINGLE_METHODS)


@pytest.mark.parametrize(
    "claim, method, task, value",
    [
        ("ahead_of_single_methods", "es", "sparse", 0.95),  # ahead of the hybrid on one task
        ("worst_seed", "ga-alone", "translate", 0.901),
        ("learning_rate", "hybrid-lr-low", "sparse", 0.7),  # keeps less than 90% of its gain
        ("learning_rate", "ppo-lr-high", "sparse", 0.8),  # PPO alone holds on half of the tasks
        ("ablations", ABLATIONS[0], None, 0.91),  # costs nothing to remove
    ],
)
def test_a_claim_fails_where_it_should(claim: str, method: str, task: str | None, value: float) -> None:
    def score(name: str, where: str, seed: int) -> float:
        changed = name == method and task in (None, where)
        return value + seed / 100 if changed else good(name, where, seed)

    found = judged(synthetic(score))
    assert found[claim]["holds"] is False


def test_level_with_the_best_everywhere_is_not_ahead_on_half() -> None:
    found = judged(synthetic(lambda name, where, seed: good("hybrid" if name == "pbt" else name, where, seed)))
    figures = found["ahead_of_single_methods"]
    assert figures["holds"] is False
    assert figures["tasks"]["sparse"]["equal_seconds"]["best_single"] == "pbt"
    assert figures["tasks"]["sparse"]["equal_seconds"]["probability_of_improvement"] == 0.5


def test_equal_flops_are_read_off_the_curves() -> None:
    rows = synthetic(good)
    for row in rows:
        if row["method"] == "es":  # gets there with a tenth of the FLOPs: ahead of the hybrid at that cost
            row["flops"], row["curve"] = 10.0, row["curve"] | {"flops": [0.0, 10.0]}
    found = judged(rows)["ahead_of_single_methods"]
    pair = found["tasks"]["sparse"]["equal_flops"]
    assert found["holds"] is False
    assert (pair["best_single"], pair["flops"], pair["probability_of_improvement"]) == ("es", 10.0, 0.0)
    # A tenth of the way from 0.1 to 0.9, 0.91 and 0.92.
    assert pair["hybrid_mean"] == pytest.approx(0.1 + 0.081)
    assert found["tasks"]["sparse"]["equal_seconds"]["probability_of_improvement"] == 1


def test_an_ingredient_that_saves_operations_costs_something_at_equal_flops() -> None:
    rows = synthetic(lambda name, where, seed: good("hybrid-no-soup" if "no-groups" in name else name, where, seed))
    for row in rows:
        if row["method"] == "hybrid-no-groups":  # gets as far, with twice the FLOPs
            row["flops"], row["curve"] = 200.0, row["curve"] | {"flops": [0.0, 200.0]}
    ingredients = judged(rows)["ablations"]["ingredients"]
    figures = ingredients["hybrid-no-groups"]
    assert figures["cost"] == 0 and figures["costs"] is False
    # Half of the way from 0.1 to 0.89, 0.9 and 0.91, of 0.9.
    assert figures["equal_flops"]["cost"] == pytest.approx(0.4 / 0.9)
    assert figures["equal_flops"]["ci95"][0] > 0.4
    # The curves end before the soup.
    assert ingredients["hybrid-no-soup"]["equal_flops"] is None


def test_a_claim_is_open_while_runs_are_missing() -> None:
    rows = [row for row in synthetic(good) if (row["method"], row["task"], row["seed"]) != ("eggroll", "sparse", 2)]
    found = judged(rows)
    assert found["ahead_of_single_methods"]["holds"] is None
    assert "eggroll" in found["ahead_of_single_methods"]["reason"]
    assert found["ablations"]["holds"] is True
    uncounted = judged([row | {"flops": None, "curve": row["curve"] | {"flops": None}} for row in synthetic(good)])
    assert "FLOPs" in uncounted["ahead_of_single_methods"]["reason"]
    assert uncounted["ablations"]["ingredients"]["hybrid-no-groups"]["equal_flops"] is None
    assert all(claim["holds"] is None for claim in judged([]).values())


def test_at_the_top_worst_seeds_may_be_level() -> None:
    found = judged(synthetic(lambda name, *_: 1.0 if name in ("hybrid", "pbt") else 0.5))
    assert found["worst_seed"]["holds"] is True


def test_old_and_new_runs_of_a_method_are_never_mixed() -> None:
    rows = synthetic(good)
    new = next(row for row in rows if row["method"] == "hybrid") | {"options_sha256": "new", "test": 0.3}
    results = collect([*rows, new], BUDGET)
    assert results.seeds("translate", "hybrid") == [0] and results.seeds("sparse", "hybrid") == []
    assert "hybrid" in results.stale


# --- report ------------------------------------------------------------------------------------------------------


def test_runs_on_different_processors_are_never_compared() -> None:
    rows = synthetic(good)
    other = [{**row, "processor": "another", "test": 0.0} for row in rows[:-1]]
    assert collect([*rows, *other], BUDGET).runs == collect(rows, BUDGET).runs
    assert of_processor([*rows, *other], "another") == other
    job = Job("translate", "hybrid", 0, ONE)
    elsewhere = {**row_of(job), "processor": "another"}
    assert missing_jobs([job], [elsewhere]) == [job] and missing_jobs([job], [row_of(job)]) == []


def test_the_report_is_one_folder_made_anew_from_the_rows(tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "results"
    rows = synthetic(good)
    write_report(rows, BUDGET, folder)
    page = folder / "study.md"
    text = page.read_text()
    assert "| hybrid (the defaults) | 0.910 (0.900) | 0.910 (0.900) |" in text
    assert "| equal FLOPs | **1.00** GA alone (0.910, 0.510) |" in text
    assert "| hybrid with GRPO | 6 | -0.444 (-0.454 to -0.435) | 0.510 (0.500) | 0.510 (0.500) |" in text
    plots = sorted(path.name for path in folder.glob("*.png"))
    assert len(plots) == 5 and all(f"]({name})" in text for name in plots)
    figures = json.loads((folder / "claims.json").read_text())
    assert "](claims.json)" in text
    assert set(figures["claims"]) == {"ahead_of_single_methods", "worst_seed", "learning_rate", "ablations"}
    page.write_text("an older report")
    write_report(rows, BUDGET, folder)
    assert page.read_text() == text


def test_a_report_without_runs_says_how_to_make_them(tmp_path: Path) -> None:
    write_report([], BUDGET, tmp_path)
    assert "`make study`" in (tmp_path / "study.md").read_text()
