"""The test bed: its rows and list as they were fixed, its claims on made-up worlds, and one short run of each kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study.budget import Budget
from study.measure import Row
from study.tasks import TASKS as TINY_TASKS
from testbed.arms import ALL_TERMS, ARMS, BUDGET_SECONDS, RATES, TERMS, options_sha256, singles_on
from testbed.base_rates import unmeasured, with_examples
from testbed.claims import DEFINITIONS, claims, collect, interval
from testbed.held_out import fitness_of, neutral_sentences
from testbed.judging import WEIGHTS, good_reply, trained
from testbed.measure import BedJob, measure_run
from testbed.plan import ELSEWHERE, MOST, planned, read_plan
from testbed.report import CLAIMS, PAGE, write_report
from testbed.rows import FEWER, SIZES, made_rows
from testbed.tasks import COLD, OTHERS, TASKS, in_float32

from evolora import InputError
from evolora.models.base import model_path
from evolora.rewards import parse_reward
from evolora.runs.options import make_options
from evolora.tasks.task import Example

# --- what was fixed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_the_rows_are_those_that_the_script_makes(name: str) -> None:
    assert TASKS[name].rows == made_rows(name)
    prompts = {
        split: [json.dumps(row["prompt"]) for row in TASKS[name].rows if row["split"] == split] for split in SIZES
    }
    sizes = {split: len(found) for split, found in prompts.items()}
    assert sizes == FEWER.get(name, SIZES)
    assert len(set.union(*map(set, prompts.values()))) == sum(sizes.values())


def test_the_classifier_is_the_one_that_the_script_trains_and_can_be_hacked() -> None:
    assert json.loads(WEIGHTS.read_text()) == trained()
    hacked = "sorry we apologise your accept please sorry your we"
    right = next(row["target"] for row in TASKS["replies"].rows)
    assert good_reply([hacked])[0] > good_reply([right])[0] > good_reply(["The lamp is great."])[0]
    assert TASKS["replies"].hits([right, hacked], {"item": [TASKS["replies"].rows[0]["item"]] * 2}) == [True, False]


def test_every_target_is_what_is_wanted() -> None:
    for task in TASKS.values():
        examples = [Example("", {name: value for name, value in row.items() if name != "prompt"}) for row in task.rows]
        assert fitness_of(task, [row["target"] for row in task.rows], examples) == 1


def test_the_list_was_fixed_and_is_within_its_limit() -> None:
    runs = read_plan()
    assert runs == planned() and len(runs) <= MOST
    assert len({json.dumps(run) for run in runs}) == len(runs)
    assert {(run["task"], run["arm"]) for run in runs} >= {(task, arm) for task in TASKS for arm in singles_on(task)}
    assert RATES[1] / RATES[0] == pytest.approx(30, rel=0.01)


def test_the_ten_terms_are_in_the_unit_interval_and_one_expression() -> None:
    assert len(TERMS) == 10 and len(parse_reward(ALL_TERMS).terms) == 10


@pytest.mark.parametrize("arm", [name for name, own in ARMS.items() if own.kind != "supervised"])
def test_this_version_takes_the_options_of_every_arm(arm: str) -> None:
    for task in TASKS.values():
        try:
            make_options({**ARMS[arm].options_on(task), "budget_seconds": BUDGET_SECONDS})
        except InputError as error:
            if "genes" in ARMS[arm].options and "genes" in str(error):
                pytest.skip("this version has no --genes yet")
            raise


def test_a_task_is_run_only_after_the_base_was_measured_on_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rate(name: str, sampled: float) -> dict[str, Any]:
        return {"task_sha256": TASKS[name].sha256, "sampled": sampled}

    rates = {"sums": rate("sums", 0.001), "capitals": rate("sums", 0.001), "gym": rate("gym", 0.001)}
    (tmp_path / "rates.json").write_text(json.dumps(rates | {"reviews": rate("reviews", 0.2)}))
    monkeypatch.setattr("testbed.base_rates.RATES", tmp_path / "rates.json")
    # Of other rows, not as warm as it is said to be, never measured.
    assert unmeasured(["sums", "reviews", "capitals", "gym", "replies"]) == ["capitals", "gym", "replies"]


def test_worked_examples_stand_before_the_prompt() -> None:
    text, chat = (with_examples(TASKS[name], TASKS[name].rows[-1]["prompt"]) for name in ("reviews", "sums"))
    first = next(row for row in TASKS["reviews"].rows if row["split"] == "train")
    assert text.startswith(f"{first['prompt']} {first['target']}\n\n")
    assert [message["role"] for message in chat] == ["user", "assistant"] * 3 + ["user"]


# --- claims on made-up worlds ------------------------------------------------------------------------------------

Score = Callable[[str, str, int, dict[str, Any]], float]


def good(task: str, arm: str, seed: int, setting: dict[str, Any]) -> float:
    """All that the claims want."""
    if setting:
        return 0.78 if arm == "hybrid" else 0.2
    level = {"hybrid": 0.8, "hybrid-no-genes": 0.7, "hybrid-no-fitness": 0.6, "hybrid-no-operators": 0.75}
    return level.get(arm, 0.75 if task not in COLD and arm == "grpo-fitness" else 0.5) + seed / 100


def world(score: Score = good, **more: Any) -> list[Row]:
    return [
        {
            "phase": "testbed",
            "task": run["task"],
            "task_sha256": run["task"],
            "method": run["arm"],
            "options_sha256": options_sha256(ARMS[run["arm"]], TASKS[run["task"]], run["setting"]),
            "setting": run["setting"],
            "seed": run["seed"],
            "budget": f"{BUDGET_SECONDS:g} s",
            "processor": "one",
            "base": 0.1,
            "test": score(run["task"], run["arm"], run["seed"], run["setting"]),
            "pass_16": 0.9 if run["arm"] == "hybrid" else 0.8,
            "drift": 0.1 if run["arm"] == "hybrid" else 0.2,
            "kl": 0.3,
            "hits": {"first": {"seconds": 1.0, "completions": 100, "tokens": 9}, "completions": 500},
            "searched": {"best": "exact"},
            "curve": [{"tokens": 50, "validation": 0.2}, {"tokens": 159, "validation": 0.6}],
            **more,
        }
        for run in planned()
    ]


def tiny(level: float, processor: str = "one") -> list[Row]:
    wanted = [(task, "20 s") for task in TINY_TASKS] + [("translate", "20 generations")]
    return [
        {"task": task, "budget": budget, "processor": processor, "test": level + seed / 100}
        for task, budget in wanted
        for seed in range(4)
    ]


def judged(rows: list[Row], before: list[Row] | None = None, after: list[Row] | None = None) -> dict[str, Any]:
    found = claims(
        collect(rows, planned()), tiny(0.9) if before is None else before, tiny(0.9) if after is None else after
    )
    json.dumps(found)
    return found


def changed(arm: str, value: float, tasks: tuple[str, ...] = tuple(TASKS), *, rates: bool = False) -> list[Row]:
    """The good world but for one arm on some tasks, at other learning rates or at the default."""

    def score(task: str, name: str, seed: int, setting: dict[str, Any]) -> float:
        other = name == arm and task in tasks and bool(setting) == rates
        return value + seed / 100 if other else good(task, name, seed, setting)

    return world(score)


def test_all_claims_hold_where_they_should() -> None:
    found = judged(world())
    assert {name: claim["holds"] for name, claim in found.items()} == dict.fromkeys(DEFINITIONS, True)
    assert found["A"]["tasks"]["sums"]["reached"]["hybrid"] == 1
    assert found["B"]["tasks"]["gym"]["best_single"] == "grpo-fitness"
    assert found["D"]["drift"]["mean"] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    "claim, rows",
    [
        ("A", changed("ppo-terms", 0.85, ("sums",))),  # a single arm is ahead on one task
        ("B", changed("grpo-terms", 0.9, ("gym",))),  # behind the best single arm
        ("B", changed("grpo-terms", 0.8, OTHERS)),  # level with it everywhere
        ("C", changed("hybrid-no-operators", 0.8)),  # worth nothing
        ("D", [row | {"drift": 0.5} if row["method"] == "hybrid" else row for row in world()]),
        ("D", [row | {"pass_16": 0.5} if row["method"] == "hybrid" else row for row in world()]),
        ("E", changed("hybrid", 0.5, ("gym",), rates=True)),
        ("E", changed("grpo-terms", 0.5, rates=True)),  # GRPO alone keeps its best too
    ],
)  # fmt: skip
def test_a_claim_fails_where_it_should(claim: str, rows: list[Row]) -> None:
    assert judged(rows)[claim]["holds"] is False


def test_ahead_on_all_cold_tasks_needs_an_interval_above_zero_on_two() -> None:
    def scattered(task: str, arm: str, seed: int, setting: dict[str, Any]) -> float:
        if task in ("sums", "capitals") and arm == "hybrid" and not setting:
            return 0.99 if seed == 0 else 0.5 + seed / 100  # ahead by one lucky seed
        return good(task, arm, seed, setting)

    found = judged(world(scattered))["A"]
    assert [found["tasks"][task]["ahead"] for task in COLD] == [True] * 3
    assert [found["tasks"][task]["excludes_zero"] for task in COLD] == [False, False, True]
    assert found["holds"] is False


def test_the_tiny_study_is_compared_on_one_processor_and_by_the_intervals_before() -> None:
    assert judged(world(), after=tiny(0.85))["F"]["holds"] is False
    assert judged(world(), after=tiny(0.895))["F"]["holds"] is True
    assert judged(world(), after=tiny(0.9, "another"))["F"]["holds"] is None
    assert "4 seeds" in judged(world(), after=[])["F"]["reason"]


def test_claims_are_open_while_runs_are_missing() -> None:
    rows = [row for row in world() if (row["task"], row["method"], row["seed"]) != ("sums", "grpo-searched", 4)]
    found = judged(rows)
    assert found["A"]["holds"] is None and "sums: grpo-searched has 4 of 5 seeds" in found["A"]["reason"]
    assert found["B"]["holds"] is True
    assert all(claim["holds"] is None for claim in judged([], [], []).values())


def test_a_cold_task_on_which_an_arm_is_not_left_behind_decides_without_the_rest() -> None:
    rows = changed("ppo-terms", 0.85, ("sums",))
    whole = [row for row in rows if row["task"] == "sums" or row["seed"] < 3]
    assert judged(whole)["A"]["holds"] is False and not judged(whole)["A"]["reason"]
    short = [row for row in whole if (row["task"], row["method"], row["seed"]) != ("sums", "ppo-terms", 4)]
    assert judged(short)["A"]["holds"] is None


def test_only_runs_of_todays_options_on_one_processor_and_model_count() -> None:
    rows = world()
    bed = collect(rows, planned())
    elsewhere = [row | {"processor": "another", "test": 0.0} for row in rows[:-1]]
    older = [row | {"options_sha256": "older", "test": 0.0} for row in rows]
    other_model = [row | {"task_sha256": "other", "test": 0.0} for row in rows[:9]]
    trial = [row | {"budget": "3 s", "test": 0.0} for row in rows]
    failed = rows[0] | {"error": "boom"}
    assert collect([*rows, *elsewhere, *older, *other_model, *trial], planned()) == bed
    assert collect([*rows, failed], planned()).errors == 1
    newer = rows[0] | {"test": 0.33}
    assert collect([*rows, newer], planned()).runs[newer["task"], newer["method"]][newer["seed"]] == newer


def test_a_task_and_seed_that_lack_all_their_runs_may_be_made_whole_on_another_processor() -> None:
    whole, group = world(), ("yes-or-no", 4)
    of_group = [row for row in whole if (row["task"], row["seed"]) == group]
    rows = [row for row in whole if row not in of_group]
    told = {"phase": ELSEWHERE, "processor": "another", "budget": "500 s", "task_sha256": "in float32"}
    elsewhere = [
        row | told | {"options_sha256": options_sha256(ARMS[row["method"]], in_float32(TASKS["yes-or-no"]), {})}
        for row in of_group
    ]
    assert judged(rows)["A"]["holds"] is None
    assert judged([*rows, *elsewhere])["A"]["holds"] is True
    assert collect([*rows, *elsewhere], planned()).elsewhere == elsewhere
    for some in (elsewhere[1:], [elsewhere[0] | {"processor": "a third"}, *elsewhere[1:]]):
        assert judged([*rows, *some])["A"]["holds"] is None
    # The list's own processor has the last word.
    assert collect([*rows, of_group[0], *elsewhere], planned()).elsewhere == []


def test_an_interval_is_over_pairs_and_equal_runs_differ_by_nothing() -> None:
    assert interval(np.zeros(5))["ci95"] == [0, 0]
    low, high = interval(np.array([0.0, 0.0, 0.1, 0.1, 0.1]))["ci95"]
    assert 0 < low < 0.06 < high <= 0.1


# --- report ------------------------------------------------------------------------------------------------------


def test_the_page_is_made_anew_from_the_rows(tmp_path: Path) -> None:
    rates = {
        task: {"fitness": 0.1, "hits": 1, "samples": 9, "best_of_16": 0.2, "three_examples": 0.3} for task in TASKS
    }
    write_report(world(), planned(), rates, tmp_path, tiny(0.9), tiny(0.9))
    text = (tmp_path / PAGE).read_text()
    assert "| hybrid (the defaults) | 0.820 (0.81 to 0.83), 5 |" in text
    assert "| 0.90, 0.100, 0.300 * |" in text and "| 0.80, 0.200, 0.300 |" in text
    assert "| A. cold: ahead of every single arm | yes |" in text
    assert "; gym +0.050 (+0.050 to +0.050) over GRPO alone, on the fitness; " in text and "open because" not in text
    assert "capitals: GRPO alone, on all terms keeps 25%; gym: " in text and "keeps 25% (expected 90%) |" in text
    assert "| GRPO alone, on all terms | 100 (5 of 5); 150 (5 of 5) |" in text
    assert "of a search | 100 (5 of 5) | 100 (5 of 5) |" in text
    assert "are missing" not in text and len(text.splitlines()) < 80
    assert set(json.loads((tmp_path / CLAIMS).read_text())) == set(DEFINITIONS)
    (tmp_path / PAGE).write_text("an older page")
    write_report(world(), planned(), rates, tmp_path, tiny(0.9), tiny(0.9))
    assert (tmp_path / PAGE).read_text() == text


def test_the_page_of_some_rows_says_which_are_missing(tmp_path: Path) -> None:
    some = [row for row in world() if row["task"] != "gym" or row["method"] == "hybrid"]
    write_report(some, planned(), {}, tmp_path, [], [])
    text = (tmp_path / PAGE).read_text()
    assert "- gym: hybrid 2, grpo-fitness 3" not in text and "- gym: grpo-fitness 3, grpo-terms 5" in text
    write_report([], planned(), {}, tmp_path, [], [])
    assert "- capitals: hybrid 7" in (tmp_path / PAGE).read_text()


# --- runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["hybrid", "grpo-searched", "supervised"])
def test_a_run_of_each_kind_leaves_a_whole_row(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the bundled model, which has no chat: on the reviews, whose prompts are text."""
    few = [row for split in SIZES for row in [row for row in TASKS["reviews"].rows if row["split"] == split][:12]]
    monkeypatch.setattr("testbed.tasks._rows", lambda _: few)
    monkeypatch.setattr("testbed.held_out.SAMPLES", 2)
    monkeypatch.setattr("testbed.measure.RUNGS", ((2, 0.1), (1, 0.1)))
    monkeypatch.setattr("testbed.measure.TERMS", TERMS[:2])
    job = BedJob("reviews", arm, 0, Budget(seconds=0.1), "testbed", {}, model=model_path("tiny-gpt2"))
    row = measure_run(job)
    assert row | job.identity() == row and json.loads(json.dumps(row)) == row
    assert 0 <= row["base"] <= 1 and 0 <= row["test"] <= 1 and row["pass_16"] >= row["pass_1"] >= 0
    assert (row["drift"] > 0) == (row["winner"] != "base") and row["kl"] >= 0 and row["seconds"] > 0.1
    assert arm != "supervised" or row["drift"] > 0
    if arm != "supervised":
        assert row["hits"]["completions"] > 100 and row["tokens"] > 0 and row["curve"][-1]["tokens"] > 0
    if arm == "grpo-searched":
        assert set(row["searched"]["validation"]) == set(TERMS[:2]) and row["searched"]["best"] in TERMS[:2]


def test_a_run_is_another_one_on_another_model_or_task_and_with_other_options(tmp_path: Path) -> None:
    folder = Path(model_path("tiny-gpt2"))
    (tmp_path / "model.safetensors").write_bytes(b"others")

    def identity(task: str, setting: dict[str, Any], model: Path) -> Row:
        return BedJob(task, "hybrid", 0, Budget(seconds=1), "testbed", setting, model=str(model)).identity()

    one = identity("reviews", {}, folder)
    assert one == identity("reviews", {}, folder)
    for other in (
        identity("sums", {}, folder),
        identity("reviews", {"lr": 1.0}, folder),
        identity("reviews", {}, tmp_path),
    ):
        assert (other["task_sha256"], other["options_sha256"]) != (one["task_sha256"], one["options_sha256"])


def test_neutral_sentences_are_two_hundred_different_ones() -> None:
    assert len(set(neutral_sentences())) == 200
