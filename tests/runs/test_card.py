"""The model card: whatever was written by models, users and data files is text in it."""

import json

import pytest

from evolora.markdown import code_span
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


def card(texts: list[str], *, name: str = "me/model", reward: str = "chrf", task: str = "mine") -> str:
    figures = {"test": {"reward": 0.5, "ci95": [0.4, 0.6]}}
    inspection = inspect_completions(["p"] * 8, (["x"] * 8, [0.0] * 8), (["``` <b> ``` | ![](u)"] * 8, [1.0] * 8))
    summary = {
        "version": "1", "seed": 0, "name": name, "model": name, "task": task, "strategy": "ga", "refiner": "ppo",
        "held_out": True,
        "test_prompts": 8, "generations": 1, "tokens": {"evaluation": 1, "rollout": 1}, "base": figures,
        "winner": figures, "inspection": inspection.as_dict() | {"warnings": [texts[0].replace("\n", " ")]},
    }  # fmt: skip
    examples = [(text, text, 0.5) for text in texts]
    return model_card(summary, reward=reward, max_new_tokens=4, loaded=ModelOptions(), examples=examples)


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
    lines = card(["p"], name=text, reward=text, task=text).split("\n")
    assert lines[:4] == ["---", "library_name: peft", "tags: [lora, evolora]", "---"]
    for line in (lines[4], next(line for line in lines if line.startswith("Reward: "))):
        assert not set(spans(line)[-1]) & set("<>[]|!@\\*_")
    assert not any("base_model" in line for line in lines[:4])


def test_a_hub_name_is_front_matter_and_a_local_one_is_not() -> None:
    assert f"base_model: {json.dumps('me/model')}" in card(["p"]).splitlines()[:5]
    for name in ("tiny-gpt2", "env:MODEL", "a/b/c", "src"):
        assert "base_model" not in card(["p"], name=name)


def test_warnings_stay_in_their_fence() -> None:
    lines = card(["```` <b>x</b> ![](u)"]).splitlines()
    start = lines.index("`````text")
    assert lines[start + 1 : start + 3] == ["warning: ```` <b>x</b> ![](u)", "`````"]


def test_long_texts_are_cut() -> None:
    assert code_span("x" * 400) == f"`{'x' * 300}…`"
