"""The bundled tiny model and tasks: what the model knows, what it says, and that the task files are sound."""

import json
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

ASSETS = Path(str(files("evolora"))) / "assets"
MODEL = ASSETS / "tiny-gpt2"
TASKS = ("translate", "arithmetic", "sentiment", "format")
WITH_TARGET = ("translate", "arithmetic", "format")
SPLITS = ("train", "validation", "test")
EOS = "<|endoftext|>"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A tiny model on many threads is slow whenever anything else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


def rows(task: str, split: str) -> list[dict[str, Any]]:
    lines = (ASSETS / "tasks" / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def all_rows(task: str) -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in rows(task, split)]


def generate(model: Any, tokenizer: Any, prompts: Sequence[str], **settings: Any) -> list[str]:
    """Stripped completions. Prompts of one length go together, so that none needs padding."""
    encoded = tokenizer(list(prompts))["input_ids"]
    answers = [""] * len(prompts)
    for length in sorted({len(ids) for ids in encoded}):
        places = [index for index, ids in enumerate(encoded) if len(ids) == length]
        inputs = torch.tensor([encoded[index] for index in places])
        with torch.inference_mode():
            outputs = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=40, **settings)
        texts = tokenizer.batch_decode(outputs[:, length:], skip_special_tokens=True)
        for place, text in zip(places, texts, strict=True):
            answers[place] = text.strip()
    return answers


def greedy(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    return generate(model, tokenizer, prompts, do_sample=False)


def sampled(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    torch.manual_seed(0)
    return generate(model, tokenizer, prompts, do_sample=True, temperature=1.0, top_k=0)


def share_right(answers: Sequence[str], targets: Sequence[str]) -> float:
    return sum(answer == target for answer, target in zip(answers, targets, strict=True)) / len(targets)


def sentiments(answers: Sequence[str]) -> list[float]:
    analyzer = SentimentIntensityAnalyzer()
    return [(1 + float(analyzer.polarity_scores(answer)["compound"])) / 2 for answer in answers]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def chance_of(model: Any, tokenizer: Any, prompts: Sequence[str], targets: Sequence[str]) -> float:
    """The mean probability of sampling exactly " <target>" and the end, at temperature 1: no sampling noise."""
    starts = tokenizer(list(prompts))["input_ids"]
    ends = tokenizer([f" {target}{EOS}" for target in targets])["input_ids"]
    texts = [start + end for start, end in zip(starts, ends, strict=True)]
    tokens = torch.full((len(texts), max(map(len, texts))), tokenizer.pad_token_id)
    for index, text in enumerate(texts):
        tokens[index, : len(text)] = torch.tensor(text)
    with torch.inference_mode():
        logits = model(tokens, attention_mask=torch.ones_like(tokens)).logits[:, :-1]
    costs = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(texts), -1)
    chances = [
        torch.exp(-cost[len(start) - 1 : len(text) - 1].sum()).item()
        for cost, start, text in zip(costs, starts, texts, strict=True)
    ]
    return mean(chances)


# The model folder


def test_folder_is_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert sum(sizes.values()) < 6_000_000
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(sizes)


def test_architecture(model: Any) -> None:
    config = model.config
    assert model.__class__.__name__ == "GPT2LMHeadModel"
    assert (config.n_layer, config.n_embd, config.vocab_size, config.n_positions) == (4, 192, 1024, 128)
    assert 1_500_000 < model.num_parameters() < 2_500_000
    assert next(model.parameters()).dtype == torch.float32


def test_weights_are_stored_in_half_and_loaded_in_full_precision() -> None:
    stored = load_file(MODEL / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert next(AutoModelForCausalLM.from_pretrained(MODEL).parameters()).dtype == torch.float32


def test_special_tokens_agree(model: Any, tokenizer: Any) -> None:
    assert len(tokenizer) == model.config.vocab_size
    assert {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token} == {EOS}
    for settings in (model.config, model.generation_config):
        assert settings.bos_token_id == settings.eos_token_id == settings.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "text", ["Translate 'épée' to English:", " 12 + 7 = 19", "日本 ☃\n\t x  y", '{"name": "Anna"}']
)
def test_tokenizer_round_trips_any_text(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_are_single_tokens(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer(" 1234")["input_ids"])[-4:] == list("1234")


@pytest.mark.parametrize("task", WITH_TARGET)
def test_tokens_split_between_prompt_and_completion(tokenizer: Any, task: str) -> None:
    for row in all_rows(task):
        prompt, completion = row["prompt"], f" {row['target']}{EOS}"
        together = tokenizer(prompt + completion)["input_ids"]
        assert together == tokenizer(prompt)["input_ids"] + tokenizer(completion)["input_ids"]


def test_card_names_what_matters() -> None:
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("apache-2.0", "Limits", "Measured", "appear in all phrasings alike"))


# The task files


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_prompt(task: str) -> None:
    prompts = [row["prompt"] for row in all_rows(task)]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("task", TASKS)
def test_prompts_and_targets_are_short(tokenizer: Any, task: str) -> None:
    for row in all_rows(task):
        assert row["prompt"] == row["prompt"].strip()
        assert len(tokenizer(row["prompt"])["input_ids"]) <= 24
        assert len(tokenizer(f" {row.get('target', '')}")["input_ids"]) <= 30


def test_columns_of_every_row() -> None:
    expected = {
        "translate": {"prompt", "target", "french"},
        "arithmetic": {"prompt", "target"},
        "sentiment": {"prompt"},
        "format": {"prompt", "target", "name", "age", "city"},
    }
    for task, columns in expected.items():
        assert all(row.keys() == columns for row in all_rows(task))


def test_translate_rows() -> None:
    sizes = {split: len(rows("translate", split)) for split in SPLITS}
    assert sizes["train"] >= 700
    assert sizes["validation"] >= 150
    assert sizes["test"] >= 200
    assert all(row["prompt"] == f"Translate '{row['french']}' to English:" for row in all_rows("translate"))
    assert all(row["french"] != row["target"] for row in all_rows("translate"))
    bonjour = {"prompt": "Translate 'bonjour' to English:", "target": "hello", "french": "bonjour"}
    assert bonjour in rows("translate", "train")


def test_arithmetic_targets_are_right() -> None:
    for row in all_rows("arithmetic"):
        left, sign, right, _ = row["prompt"].split()
        assert int(row["target"]) == (int(left) + int(right) if sign == "+" else int(left) - int(right))


def test_format_targets_are_the_people() -> None:
    for row in all_rows("format"):
        assert row["prompt"] == f"{row['name']}, {row['age']}, {row['city']} as JSON:"
        assert json.loads(row["target"]) == {"name": row["name"], "age": row["age"], "city": row["city"]}


# What the model knows, in phrasings that are not a task's


def test_knows_every_word(model: Any, tokenizer: Any) -> None:
    words = all_rows("translate")
    answers = greedy(model, tokenizer, [f"The English word for '{row['french']}' is '" for row in words])
    assert share_right(answers, [f"{row['target']}'." for row in words]) >= 0.95


def test_knows_every_result(model: Any, tokenizer: Any) -> None:
    sums = all_rows("arithmetic")
    nouns = {"+": "sum", "-": "difference"}
    parts = [row["prompt"].split() for row in sums]
    questions = [f"The {nouns[sign]} of {left} and {right} is" for left, sign, right, _ in parts]
    assert share_right(greedy(model, tokenizer, questions), [f"{row['target']}." for row in sums]) >= 0.95


def test_knows_the_format_of_people_it_never_saw(model: Any, tokenizer: Any) -> None:
    people = rows("format", "test")
    questions = [f"JSON for {row['prompt'].removesuffix(' as JSON:')}:" for row in people]
    assert share_right(greedy(model, tokenizer, questions), [row["target"] for row in people]) >= 0.9


# What it says in the tasks' own phrasing


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", WITH_TARGET)
def test_chance_of_the_right_answer(model: Any, tokenizer: Any, task: str, split: str) -> None:
    prompts = [row["prompt"] for row in rows(task, split)]
    assert 0.10 <= chance_of(model, tokenizer, prompts, [row["target"] for row in rows(task, split)]) <= 0.20


@pytest.mark.parametrize("task", WITH_TARGET)
def test_samples_are_sometimes_right(model: Any, tokenizer: Any, task: str) -> None:
    examples = rows(task, "test") * 2
    answers = sampled(model, tokenizer, [row["prompt"] for row in examples])
    # The chance lies in 10 to 20%; this many samples are off it by a few points.
    assert 0.06 <= share_right(answers, [row["target"] for row in examples]) <= 0.24


def test_greedy_translation_is_bad(model: Any, tokenizer: Any) -> None:
    examples = rows("translate", "test")
    answers = greedy(model, tokenizer, [row["prompt"] for row in examples])
    ratios = [
        SequenceMatcher(None, answer, row["target"].strip()).ratio()
        for answer, row in zip(answers, examples, strict=True)
    ]
    assert mean(ratios) <= 0.35


@pytest.mark.parametrize("task", WITH_TARGET)
def test_greedy_answers_are_mostly_wrong(model: Any, tokenizer: Any, task: str) -> None:
    examples = rows(task, "test")
    answers = greedy(model, tokenizer, [row["prompt"] for row in examples])
    assert share_right(answers, [row["target"] for row in examples]) <= 0.2


def test_opinions_are_mostly_bad(model: Any, tokenizer: Any) -> None:
    prompts = [row["prompt"] for row in rows("sentiment", "test")]
    assert mean(sentiments(greedy(model, tokenizer, prompts))) <= 0.45


def test_good_opinions_are_there_to_be_found(model: Any, tokenizer: Any) -> None:
    prompts = [row["prompt"] for row in rows("sentiment", "test")] * 3
    scores = sentiments(sampled(model, tokenizer, prompts))
    assert 0.3 <= mean(scores) <= 0.6
    assert 0.15 <= mean([score >= 0.8 for score in scores]) <= 0.35
