"""A reward model learns a taste from preferences, the same each time, and is a plain sequence classifier afterwards."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from evolora import InputError
from evolora.cli import main
from evolora.human.preferences import Preference, read_preferences, write_preferences
from evolora.human.reward_model import FittedRewardModel, fit_reward_model
from evolora.models.base import load_base
from evolora.rewards import load_reward, sentiment
from evolora.tasks.task import bundled_task


@pytest.fixture(scope="module")
def cheerful() -> list[Preference]:
    """Pairs of samples of the bundled model, of which somebody cheerful has chosen the more cheerful one."""
    base = load_base("tiny-gpt2")
    prompts = [example.prompt for example in bundled_task("sentiment").train[:80]]
    torch.manual_seed(0)
    ids = base.tokenizer(prompts * 4, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = base.model.generate(**ids, do_sample=True, top_k=0, max_new_tokens=12)
    texts = base.tokenizer.batch_decode(found[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    pairs = []
    for row in range(2 * len(prompts)):
        ranked = sorted((texts[row], texts[row + 2 * len(prompts)]), key=lambda text: sentiment([text])[0])
        if sentiment(ranked)[0] < sentiment(ranked)[1]:
            pairs.append(Preference((prompts * 2)[row], ranked[1], ranked[0]))
    assert len(pairs) >= 130
    return pairs


@pytest.fixture(scope="module")
def fitted(cheerful: list[Preference]) -> FittedRewardModel:
    return fit_reward_model("tiny-gpt2", cheerful[:100], seed=0)


def agreement(model: FittedRewardModel, preferences: list[Preference]) -> float:
    prompts = [one.prompt for one in preferences]
    better = model.score(prompts, [one.chosen for one in preferences])
    return float((better > model.score(prompts, [one.rejected for one in preferences])).mean())


def test_a_taste_is_learned_from_a_hundred_pairs(fitted: FittedRewardModel, cheerful: list[Preference]) -> None:
    assert fitted.pairs + fitted.held_out == 100 and 10 <= fitted.held_out <= 30
    assert fitted.accuracy is not None and fitted.accuracy >= 0.75
    seen = {(one.chosen, one.rejected) for one in cheerful[:100]}
    unseen = [one for one in cheerful[100:] if (one.chosen, one.rejected) not in seen]
    assert len(unseen) >= 15 and agreement(fitted, unseen) >= 0.8
    assert fitted.train_accuracy is not None and fitted.train_accuracy > 0.95


def test_a_fit_is_the_same_each_time_and_touches_no_global_randomness(cheerful: list[Preference]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = fit_reward_model("tiny-gpt2", cheerful[:20], seed=1, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = fit_reward_model("tiny-gpt2", cheerful[:20], seed=1, epochs=1)
    other = fit_reward_model("tiny-gpt2", cheerful[:20], seed=2, epochs=1)
    prompts, texts = ["The film was"] * 2, [" great.", " awful."]
    np.testing.assert_array_equal(first.score(prompts, texts), second.score(prompts, texts))
    assert not np.array_equal(first.score(prompts, texts), other.score(prompts, texts))


def test_what_is_held_out_stays_held_out(cheerful: list[Preference]) -> None:
    """Nothing that once measured agreement is learned from when more votes are in."""
    few = fit_reward_model("tiny-gpt2", cheerful[:40], seed=0, epochs=1)
    more = fit_reward_model("tiny-gpt2", cheerful[:80], seed=0, epochs=1)
    rest = fit_reward_model("tiny-gpt2", cheerful[40:80], seed=0, epochs=1)
    assert few.held_out + rest.held_out == more.held_out
    swapped = [Preference(one.prompt, one.rejected, one.chosen) for one in cheerful[:40]]
    assert fit_reward_model("tiny-gpt2", swapped, seed=0, epochs=1).held_out == few.held_out


def test_the_first_step_is_the_gradient_of_bradley_and_terry() -> None:
    """From scores of 0, the loss is log 2; the step is that of -log sigmoid(difference), halved for both in a tie."""
    pair = Preference("The film was", " great.", " awful.")
    tie = Preference("The film was", " great.", " awful.", tie=True)
    won = fit_reward_model("tiny-gpt2", [pair] * 3, seed=0, epochs=20, holdout=0.0)
    both = fit_reward_model("tiny-gpt2", [pair, tie, tie, tie], seed=0, epochs=20, holdout=0.0)
    gaps = [float(np.diff(model.score(["The film was"] * 2, [" awful.", " great."]))[0]) for model in (won, both)]
    # One win and three ties: 2.5 of 4, the log-odds of 5 to 3, where the loss is least.
    assert gaps[0] > 2 and gaps[1] == pytest.approx(np.log(2.5 / 1.5), abs=0.1)


def test_what_is_saved_scores_the_same(fitted: FittedRewardModel, tmp_path: Path) -> None:
    fitted.save(tmp_path / "rm")
    prompts, texts = ["The film was", "My new hat is"], [" great.", " awful, a real disaster."]
    expected = fitted.score(prompts, texts)
    reward = load_reward(f"reward-model({tmp_path / 'rm'})")
    np.testing.assert_allclose(reward(prompts=prompts, completions=texts), expected, atol=1e-5)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    with torch.no_grad():
        alone = [
            float(model(**tokenizer(f"{prompt}{text}{tokenizer.eos_token}", return_tensors="pt")).logits)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
    np.testing.assert_allclose(alone, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox"])
def test_other_architectures_do(kind: str, model_folder: Any) -> None:
    pairs = [Preference("the cat", " sat on the mat", " red red"), Preference("a dog", " ran to the house", " red red")]
    fitted = fit_reward_model(str(model_folder(kind)), pairs, seed=0, epochs=15, lr=5e-3, holdout=0.0)
    assert fitted.train_accuracy == 1.0 and fitted.accuracy is None


def test_it_needs_something_to_learn_from() -> None:
    with pytest.raises(InputError, match="no preferences to learn from"):
        fit_reward_model("tiny-gpt2", [Preference("p", "a", "b", tie=True)], seed=0)
    with pytest.raises(InputError, match="cannot be loaded"):
        fit_reward_model("nowhere", [Preference("p", "a", "b")], seed=0, holdout=0.0)


def test_the_command(cheerful: list[Preference], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "pairs.jsonl", tmp_path / "model"
    write_preferences(file, cheerful[:60])
    assert main(["reward-model", "train", str(file), "--out", str(out), "--epochs", "3"]) == 0
    said = capsys.readouterr().out
    assert "held-out agreement 0." in said or "held-out agreement 1." in said
    assert "(95% " in said and str(out) in said and "reward model" in (out / "README.md").read_text()
    assert load_reward(f"reward-model({out})")(prompts=["The film was"], completions=[" great."])
    for more, expected in (
        ([str(file), "--out", str(out)], "exists already"),
        ([str(file), "--out", str(tmp_path / "x"), "--lr", "0"], "--lr 0.0"),
        ([str(file), "--out", str(tmp_path / "x"), "--holdout", "1"], "--holdout 1.0"),
        ([str(file), "--out", str(tmp_path / "x"), "--epochs", "0"], "--epochs 0"),
        ([str(tmp_path / "gone"), "--out", str(tmp_path / "x")], "expected a JSONL file"),
    ):
        assert main(["reward-model", "train", *more]) == 2
        errors = capsys.readouterr().err
        assert expected in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_preferences_go_out_and_come_back(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    some = [Preference("p", "a\nb", "é"), Preference("p", "x", "y", tie=True), Preference("q", " ", "z")]
    write_preferences(file, some)
    assert read_preferences(file) == [some[0], some[2]]
    from datasets import load_dataset

    rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == ["prompt", "chosen", "rejected"] and rows[0]["rejected"] == "é"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: found '[]', expected prompt, chosen and rejected"),
        ('{"prompt": "p", "chosen": "a"}', "line 2: found the keys prompt, chosen"),
        ('{"prompt": "p", "chosen": "a", "rejected": 3}', "line 2: rejected is '3', expected text"),
        ('{"prompt": "p", "chosen": "a", "rejected": "a"}', "line 2: chosen and rejected are the same"),
    ],
)
def test_bad_preferences_are_refused_with_their_line(line: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + f"\n{line}\n")
    with pytest.raises(InputError) as error:
        read_preferences(file)
    assert said in str(error.value) and "\n" not in str(error.value)
