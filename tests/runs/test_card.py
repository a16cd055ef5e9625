"""The model card: whatever was written by models, users and data files is text in it."""

from typing import Any

import pytest
from huggingface_hub import ModelCard

from evolora.errors import InputError
from evolora.markdown import code_span
from evolora.models.cards import based_on, of_merged, tags
from evolora.models.options import ModelOptions
from evolora.runs.report.card import model_card
from evolora.runs.report.inspection import inspect_completions

HOSTILE = [
    "<script>alert(1)</script>",
    "![x](https://evil.example/x.png) [y](javascript:z) www.evil.example me@evil.example",
    "a | b \\| c \\\\| d",
    "one\n\n---\n# two\r\n|---|\u2028three",
    "`` ` ``` `````",
    "`",
    "|",
    "\\",
    "",
    "   ",
    "'\"`|",
    "\u202egnp.exe\x1b[31m\x00",
    "long " * 1000,
    "---\nbase_model: evil/model\n---",
]


def card(
    texts: list[str],
    *,
    name: str = "me/model",
    reward: str = "chrf",
    task: str = "mine",
    chat: bool = False,
    system: str | None = None,
    stop: tuple[str, ...] = (),
    **more: Any,
) -> str:
    figures = {"test": {"reward": 0.5, "ci95": [0.4, 0.6]}}
    inspection = inspect_completions(["p"] * 8, (["x"] * 8, [0.0] * 8), (["``` <b> ``` | ![](u)"] * 8, [1.0] * 8))
    summary = {
        "version": "1", "seed": 0, "name": name, "model": name, "task": task, "strategy": "ga", "refiner": "ppo",
        "held_out": True,
        "test_prompts": 8, "generations": 1, "tokens": {"evaluation": 1, "rollout": 1}, "base": figures,
        "winner": figures, "inspection": inspection.as_dict() | {"warnings": [texts[0].replace("\n", " ")]}, **more,
    }  # fmt: skip
    examples = [(text, text, 0.5) for text in texts]
    return model_card(
        summary, reward=reward, max_new_tokens=4, loaded=ModelOptions(), examples=examples, chat=chat, system=system,
        stop=stop,
    )  # fmt: skip


def spans(line: str) -> list[str]:
    """A line's code spans as CommonMark reads them, and what is outside of them."""
    found, rest, at = [], "", 0
    while at < len(line):
        if line[at] != "`":
            rest, at = rest + line[at], at + 1
            continue
        size = len(line[at:]) - len(line[at:].lstrip("`"))
        close = at + size
        while True:
            close = line.index("`" * size, close)  # ValueError: the span has no end
            length = len(line[close:]) - len(line[close:].lstrip("`"))
            if length == size:
                break
            close += length
        found.append(line[at + size : close])
        at = close + size
    return [*found, rest]


def cells(line: str) -> list[str]:
    """A table's row as GitHub reads it: a pipe is text behind an odd number of backslashes."""
    parts, escaped = [""], False
    for character in line.strip()[1:-1]:
        if character == "|" and not escaped:
            parts.append("")
        else:
            parts[-1] += character
        escaped = character == "\\" and not escaped
    return parts


@pytest.mark.parametrize("text", HOSTILE)
def test_a_prompt_or_completion_is_one_cell_of_code(text: str) -> None:
    lines = card([text]).splitlines()
    row = lines[lines.index("| prompt | completion | reward |") + 2]
    prompt, completion, reward = cells(row)
    assert prompt.strip() == completion.strip() and reward.strip() == "0.500"
    assert spans(prompt)[-1].strip() == "" and len(spans(prompt)) == 2
    assert all(character.isprintable() for character in row) and len(row) < 2000
    assert lines[lines.index(row) + 1] == ""


@pytest.mark.parametrize("text", HOSTILE)
def test_names_are_code_and_never_front_matter(text: str) -> None:
    read = ModelCard(card(["p"], name=text, reward=text, task=text))
    data = read.data.to_dict()
    assert data.keys() == {"library_name", "pipeline_tag", "tags", "model-index"}
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.5 and result["metrics"][0]["name"].isprintable()
    lines = read.text.split("\n")
    for line in (lines[0], next(line for line in lines if line.startswith("Reward: "))):
        assert not set(spans(line)[-1]) & set("<>[]|!@\\*_")


def test_a_hub_name_is_front_matter_and_a_local_one_is_not() -> None:
    assert ModelCard(card(["p"])).data["base_model"] == "me/model"
    for name in ("tiny-gpt2", "env:MODEL", "a/b/c", "src"):
        assert "base_model" not in ModelCard(card(["p"], name=name)).data.to_dict()


def test_results_are_those_of_the_test() -> None:
    (result,) = ModelCard(card(["p"], reward="chrf", task="mine")).data["eval_results"]
    found = (result.dataset_name, result.dataset_split, result.metric_type, result.metric_name, result.metric_value)
    assert found == ("mine", "test", "reward", "chrf", 0.5)
    nothing = {"test": {"reward": None, "ci95": [None, None]}, "id": 3}
    assert ModelCard(card(["p"], winner=nothing)).data.get("eval_results") is None


def test_a_winner_that_is_the_base_is_called_so() -> None:
    figures = {"test": {"reward": 0.5, "ci95": [0.4, 0.6]}}
    assert "unchanged base" in card(["p"], winner={**figures, "id": 0})
    assert "unchanged base" not in card(["p"], winner={**figures, "id": 3})
    begun = card(["p"], winner={**figures, "id": 0}, init=["me/sft"])
    assert "unchanged base, the adapter `me/sft`" in begun and "| the adapter `me/sft` | 0.500" in begun


def test_what_answers_messages_says_so_and_how() -> None:
    assert "conversational" in tags(card(["p"], chat=True)) and "apply_chat_template" in card(["p"], chat=True)
    assert "conversational" not in tags(card(["p"])) and "apply_chat_template" not in card(["p"])


def test_a_card_that_somebody_edited_names_another_base_and_becomes_that_of_a_model() -> None:
    edited = card(["p"]).replace("tags:", "license: mit\ntags:") + "More.\n"
    named = ModelCard(based_on(edited, "you/model"))
    assert (named.data["base_model"], named.data["license"]) == ("you/model", "mit") and named.text.endswith("More.\n")
    assert "base_model" not in ModelCard(based_on(edited, None)).data.to_dict()
    merged = ModelCard(of_merged(edited))
    assert merged.data.to_dict() | {"library_name": "transformers", "base_model_relation": "finetune"} == (
        merged.data.to_dict()
    )
    assert "AutoPeftModel" not in merged.text and "AutoModelForCausalLM" in merged.text
    assert of_merged("no metadata").startswith("---\nlibrary_name: transformers\n---\n")
    with pytest.raises(InputError, match=r"README\.md: its metadata cannot be read"):
        based_on("---\na: [\n---\n", "you/model")


def test_warnings_stay_in_their_fence() -> None:
    lines = card(["```` <b>x</b> ![](u)"]).splitlines()
    start = lines.index("`````text")
    assert lines[start + 1 : start + 3] == ["warning: ```` <b>x</b> ![](u)", "`````"]


def test_long_texts_are_cut() -> None:
    assert code_span("x" * 400) == f"`{'x' * 300}…`"


def test_the_use_of_what_was_tuned_behind_a_system_prompt_has_it() -> None:
    use = card(["x"], chat=True, system='Be "brief".', stop=("\n", "```")).partition("## Use")[2]
    assert """{"role": "system", "content": 'Be "brief".'}, {"role": "user",""" in use
    assert r"stop_strings=['\n', '```'], tokenizer=tokenizer)" in use and use.count("\n```") == 2


def test_another_base_takes_the_tags_of_the_one_before_with_it() -> None:
    old = "---\nbase_model: /home/me/model\ntags:\n- base_model:adapter:/home/me/model\n- lora\n---\nText\n"
    new = based_on(old, "a/b")
    assert "/home/me" not in new and "- lora" in new and "base_model: a/b" in new
