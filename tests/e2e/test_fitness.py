"""`--fitness` beside `--reward`, with the real command and from Python."""

import json
from pathlib import Path
from typing import Any

import pytest

from evolora import evolve, resume
from evolora.errors import InputError
from evolora.runs.summary import read_summary

JUDGE = """
def short(prompts, completions, **columns):
    assert len(prompts) == len(completions) == len(columns["target"])
    return -sum(map(len, completions)) / len(completions)
"""


def summary_of(run: Path) -> dict[str, Any]:
    found = read_summary(run)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("judge") / "judge.py"
    file.write_text(JUDGE)
    return f"{file}:short"


@pytest.fixture(scope="module")
def hacked(toy: Any, judge: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RL follows many characters, and few are wanted: a function of the whole judges."""
    out = tmp_path_factory.mktemp("hacked") / "run"
    evolve(
        model=toy.model, data=toy.data, reward=toy.reward, fitness=judge, out=out, gens=2, pop=4, rl_steps=1, view=None
    )
    return out


def test_the_fitness_of_the_whole_chooses_and_the_reward_is_measured_too(hacked: Path) -> None:
    summary = summary_of(hacked)
    base, winner = summary["base"]["test"], summary["winner"]["test"]
    assert (summary["fitness"], summary["reward"]) == ("short", "distinct")
    assert base["fitness"] < 0 < base["reward"]
    assert base["ci95"][0] <= base["fitness"] <= base["ci95"][1]
    assert winner["fitness"] >= base["fitness"] or "lost on the test split" in " ".join(summary["endings"])
    assert summary["gain"]["fitness"] == pytest.approx(winner["fitness"] - base["fitness"])
    lines = [json.loads(line) for line in (hacked / "metrics.jsonl").read_text().splitlines()]
    assert all(line["validation"] < 0 < line["validation.reward"] and line["fitness.best"] < 0 for line in lines)
    assert {"population.reward", "validation.base_reward"} <= lines[0].keys()


def test_card_and_report_say_what_was_wanted_and_what_was_followed(hacked: Path) -> None:
    card, report = (hacked / "best" / "README.md").read_text(), (hacked / "report.html").read_text()
    assert "| | test fitness | 95% interval |" in card and "Chosen by the fitness `short`" in card
    assert "Fitness, what is wanted: <code>short" in report and "What RL follows, beside what is wanted" in report
    for sentence in summary_of(hacked)["endings"]:
        assert sentence.split(":")[0][:40] in report


def test_a_run_with_a_fitness_is_resumed_to_the_same(hacked: Path, toy: Any, judge: str, tmp_path: Path) -> None:
    one = evolve(
        model=toy.model, data=toy.data, reward=toy.reward, fitness=judge, out=tmp_path / "one", gens=1, pop=4,
        rl_steps=1, view=None,
    )  # fmt: skip
    resume(one.folder, gens=2, view=None)
    assert summary_of(one.folder)["winner"]["genome_sha256"] == summary_of(hacked)["winner"]["genome_sha256"]
    assert summary_of(one.folder)["gain"] == summary_of(hacked)["gain"]


def test_one_alone_is_both(toy: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model": toy.model, "data": toy.data, "gens": 1, "pop": 4, "rl_steps": 1, "view": None
    }  # fmt: skip
    runs = [
        evolve(reward=toy.reward, out=tmp_path / "reward", **options),
        evolve(fitness=toy.reward, out=tmp_path / "fitness", **options),
        evolve(fitness=toy.reward, reward=toy.reward, out=tmp_path / "both", **options),
    ]
    assert len({run.summary["winner"]["genome_sha256"] for run in runs}) == 1
    assert all("fitness" not in run.summary and "validation.reward" not in run.history[0] for run in runs)


def test_python_functions_are_needed_again(toy: Any, tmp_path: Path) -> None:
    def vowels(completions: list[str], target: list[str]) -> list[float]:
        return [sum(map(text.count, "aeiou")) for text in completions]

    run = evolve(
        model=toy.model, data=toy.data, reward=toy.reward, fitness=vowels, out=tmp_path / "run", gens=1, pop=4,
        refiner="none", view=None,
    )  # fmt: skip
    assert run.summary["fitness"] == "vowels" and run.summary["winner"]["test"]["fitness"] >= 0
    with pytest.raises(InputError, match=r"--fitness|fitness: this run was given the Python function vowels"):
        resume(run.folder, gens=2, view=None)
    assert resume(run.folder, gens=2, fitness=vowels, view=None).summary["generations"] == 2
    alone = evolve(
        model=toy.model, data=toy.data, fitness=vowels, out=tmp_path / "alone", gens=1, pop=4, refiner="none", view=None
    )
    assert alone.summary["reward"] == "vowels" and "fitness" not in alone.summary


def test_groups_and_labels_come_from_the_data(tmp_path: Path, evolora: Any) -> None:
    """The bundled model says of no review what it is: rare labels and groups count as much as common ones."""
    rows = [
        {"prompt": f"Is {word} good?", "target": "no" if number % 4 else "yes", "kind": "ab"[number % 2]}
        for number, word in enumerate("tea milk bread salt cheese wine rice soup cake ham".split() * 2)
    ]
    data = tmp_path / "reviews.jsonl"
    data.write_text(
        "".join(json.dumps({**row, "prompt": f"{n}: {row['prompt']}"}) + "\n" for n, row in enumerate(rows))
    )
    for fitness, more in (("macro-f1", []), ("worst-group(reward='length(3)')", ["--group-column", "kind"])):
        run = tmp_path / fitness[:5]
        code, out, err = evolora(
            "train", "--data", data, "--fitness", fitness, *more, "--reward", "similarity", "--gens", "1", "--pop", "4",
            "--refiner", "none", "--out", run,
        )  # fmt: skip
        assert code == 0 and f"fitness {fitness[:8]}" in out, err
        test = summary_of(run)["base"]["test"]
        assert 0 <= test["ci95"][0] <= test["fitness"] <= test["ci95"][1] <= 1


def test_seeds_are_summed_up_by_the_fitness(toy: Any, judge: str, tmp_path: Path) -> None:
    several = evolve(
        model=toy.model, data=toy.data, reward=toy.reward, fitness=judge, out=tmp_path / "all", gens=1, pop=4,
        refiner="none", seeds=2, view=None,
    )  # fmt: skip
    assert several.summary["fitness"] == "short"
    assert several.summary["base"]["reward"] == several.runs[0].summary["base"]["test"]["fitness"] < 0


def test_several_samples_judge(toy: Any, tmp_path: Path, evolora: Any) -> None:
    run = tmp_path / "run"
    code, out, err = evolora(
        "train", *toy.options(run, "--fitness", "agreement", "--fitness-samples", "3", gens=1), "--no-merge"
    )
    assert code == 0, err
    summary = summary_of(run)
    assert summary["fitness"] == "agreement of 3 samples" and 0 <= summary["base"]["test"]["fitness"] <= 1
    code, out, err = evolora("evaluate", str(run), "--show", "0")
    assert code == 0 and f"{summary['winner']['test']['fitness']:.4f}" in out, err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fitness", "macro-f1", "--racing", "0.05"], "--racing 0.05 with --fitness macro-f1: expected none"),
        (["--fitness", "nonsense"], "--fitness is 'nonsense', expected one of"),
        (["--fitness", "pass-at-k"], "--fitness-samples 1 with --fitness pass-at-k: expected at least 2"),
        (["--fitness", "worst-group"], "--fitness worst-group: expected --group-column beside it"),
        (["--fitness", "worst-group", "--group-column", "kind"], "--group-column kind: found no such column"),
        (["--group-column", "kind"], "--group-column kind: expected --fitness worst-group beside it"),
        (["--fitness", "macro-f1 * 2"], "--fitness"),
    ],
)
def test_what_does_not_go_together_is_refused(
    toy: Any, tmp_path: Path, evolora: Any, options: list[str], said: str
) -> None:
    code, _, err = evolora("train", *toy.options(tmp_path / "run", *options, gens=1))
    assert code == 2 and said in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()
