"""Reward functions as TRL's documentation of GRPOTrainer has them, copied and run unchanged."""

import asyncio
import functools
import inspect
import math
import re
from pathlib import Path
from typing import Any

import pytest

from evolora.errors import InputError, RewardError
from evolora.rewards import (
    RewardContext,
    RewardScorer,
    ScoringOptions,
    check_signature,
    function_scorer,
    make_scorer,
    parse_reward,
)

# --- from https://huggingface.co/docs/trl/grpo_trainer, verbatim ------------------------------------------------
# ruff: noqa
# mypy: disable-error-code="no-untyped-def"


def reward_by_length(completion_ids, **kwargs):
    """Reward function that assigns higher scores to longer completions (in terms of token count)."""
    return [float(len(ids)) for ids in completion_ids]


def reward_by_characters(completions, **kwargs):
    """Reward function that assigns higher scores to longer completions (in terms of character count)."""
    return [float(len(completion)) for completion in completions]


def format_reward_func(completions, **kwargs):
    """Reward function that checks if the completion has a specific format."""
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]


def reward_func(completions, ground_truth, **kwargs):
    # Regular expression to capture content inside \boxed{}
    matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    # Reward 1 if the content is the same as the ground truth, 0 otherwise
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth)]


# Math-specific reward function
def math_reward_func(prompts, completions, task, **kwargs):
    rewards = []
    for prompt, completion, t in zip(prompts, completions, task):
        if t == "math":
            # Calculate math-specific reward
            correct = check_math_solution(prompt, completion)
            reward = 1.0 if correct else -1.0
            rewards.append(reward)
        else:
            # Return None for non-math tasks
            rewards.append(None)
    return rewards


# Coding-specific reward function
def coding_reward_func(prompts, completions, task, **kwargs):
    rewards = []
    for prompt, completion, t in zip(prompts, completions, task):
        if t == "coding":
            # Calculate coding-specific reward
            works = test_code_solution(prompt, completion)
            reward = 1.0 if works else -1.0
            rewards.append(reward)
        else:
            # Return None for non-coding tasks
            rewards.append(None)
    return rewards


async def async_reward_func(prompts, completions, **kwargs):
    await asyncio.sleep(0.01)
    return [1.0 if prompt in completion else 0.0 for prompt, completion in zip(prompts, completions)]


def dynamic_reward_func(completions, trainer_state, **kwargs):
    if trainer_state.global_step < 1:
        return [float(len(completion)) for completion in completions]
    return [0.0 for _ in completions]


def logging_reward_func(completions, answer, log_extra=None, log_metric=None, **kwargs):
    extracted = [completion.strip() for completion in completions]
    rewards = [1.0 if e == a else 0.0 for e, a in zip(extracted, answer)]
    if log_extra:
        log_extra("golden_answer", list(answer))
        log_extra("extracted_answer", [e or "[none]" for e in extracted])
    if log_metric:
        log_metric("accuracy", sum(rewards) / len(rewards))
    return rewards


# --- what these name -------------------------------------------------------------------------------------------


def check_math_solution(prompt: str, completion: str) -> bool:
    return prompt + completion == "1+1=2"


def test_code_solution(prompt: str, completion: str) -> bool:
    return "return" in completion


test_code_solution.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("function", "completions", "columns", "expected"),
    [
        (reward_by_length, ["a b c", "d"], {}, [3.0, 1.0]),
        (reward_by_characters, ["a b c", "d"], {}, [5.0, 1.0]),
        (reward_func, [r"It is \boxed{4}.", "4"], {"ground_truth": ["4", "4"]}, [1.0, 0.0]),
        (math_reward_func, ["2", "return 3"], {"task": ["math", "coding"]}, [1.0, math.nan]),
        (coding_reward_func, ["2", "return 3"], {"task": ["math", "coding"]}, [math.nan, 1.0]),
        (async_reward_func, ["1+1=2", "2"], {}, [1.0, 0.0]),
        (dynamic_reward_func, ["abc", ""], {}, [3.0, 0.0]),
    ],
)
def test_functions_of_the_documentation(
    function: Any, completions: list[str], columns: dict[str, list[str]], expected: list[float]
) -> None:
    check_signature(function, columns)
    scorer = RewardScorer(function)
    ids = [list(range(len(text.split()))) for text in completions]
    found = scorer.score(["1+1=", "1+2="], completions, columns, ids).rewards
    assert found.tolist() == pytest.approx(expected, nan_ok=True)
    scorer.close()


def test_the_conversational_format() -> None:
    scorer = RewardScorer(format_reward_func, conversational=True)
    completions = ["<think>so</think><answer>4</answer>", "4"]
    assert scorer.score(["p", "p"], completions, {}).rewards.tolist() == [1.0, 0.0]


def test_messages_are_the_prompts_of_a_conversational_function() -> None:
    seen: list[Any] = []

    def last(prompts, completions, target):
        seen.append((prompts, completions, target))
        prompts[0][0]["content"] = "changed"
        return [0.0] * len(prompts)

    messages = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]]
    scorer = RewardScorer(last, conversational=True)
    scorer.score(["<s>Be brief. 1+1?"], ["2"], {"target": ["2"]}, messages=messages)
    assert messages[0][0]["content"] == "Be brief.", "the function has its own copy"
    prompts, completions, target = seen.pop()
    assert prompts[0][1] == messages[0][1] and target == ["2"]
    assert completions == [[{"role": "assistant", "content": "2"}]]
    scorer.score(["1+1?"], ["2"], {"target": ["2"]})
    assert seen[0][0][0][0].keys() == {"role", "content"} and seen[0][0][0][0]["role"] == "user"
    with pytest.raises(ValueError, match="differ in length"):
        scorer.score(["a", "b"], ["2", "3"], {"target": ["2", "3"]}, messages=messages)


def test_a_failure_shows_the_texts_of_a_conversation() -> None:
    scorer = RewardScorer(lambda completions: [math.nan], conversational=True)
    with pytest.raises(RewardError) as error:
        scorer.score(["user: 1+1?"], ["2"], {}, messages=[[{"role": "user", "content": "1+1?"}]])
    assert str(error.value).endswith("prompt: 'user: 1+1?'\ncompletion: '2'")


def test_of_chat_data_built_in_rewards_get_the_texts_and_own_functions_the_messages(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(inspect.getsource(format_reward_func).replace("def ", "import re\n\ndef ", 1))
    text = "<think>so</think><answer>4</answer>"
    for spec in (f"{own}:format_reward_func", f"python('{own}:format_reward_func')", "exact", "chrf", "sentiment * 2"):
        options = ScoringOptions(conversational=True)
        scorer = make_scorer(parse_reward(spec), ["target"], options, RewardContext())
        messages = [[{"role": "user", "content": "1+1?"}]]
        scores = scorer.score(["user: 1+1?"], [text], {"target": [text]}, messages=messages)
        assert scores.rewards.tolist() == [1.0]
        scorer.close()
    scorer = function_scorer(format_reward_func, [], ScoringOptions(conversational=True))
    assert scorer.score(["user: 1+1?"], [text], {}, messages=messages).rewards.tolist() == [1.0]


def test_what_names_the_state_varies_and_so_is_not_remembered() -> None:
    assert RewardScorer(dynamic_reward_func).varies
    assert RewardScorer(functools.partial(dynamic_reward_func)).varies
    assert not RewardScorer(reward_by_length).varies and not RewardScorer(logging_reward_func).varies


def test_what_a_function_logs_is_kept_for_the_latest_call() -> None:
    scorer = RewardScorer(logging_reward_func)
    check_signature(logging_reward_func, ["answer"])
    scorer.score(["p", "p"], ["4", ""], {"answer": ["4", "5"]})
    assert scorer.metrics == {"accuracy": 0.5}
    assert scorer.extra == {"golden_answer": ["4", "5"], "extracted_answer": ["4", "[none]"]}
    scorer.score(["p"], ["4"], {"answer": ["4"]})
    assert scorer.metrics == {"accuracy": 1.0} and scorer.extra["golden_answer"] == ["4"]


def test_the_step_is_the_generation() -> None:
    scorer = RewardScorer(lambda completions, trainer_state: [trainer_state.global_step] * len(completions))
    found = []
    for generation in (0, 0, 10):
        scorer.at(generation)
        found += scorer.score(["p"], ["c"], {}).rewards.tolist()
    assert found == [0.0, 0.0, 10.0]


# --- TRL's own rewards -----------------------------------------------------------------------------------------


def test_rewards_that_trl_brings_run_unchanged() -> None:
    rewards = pytest.importorskip("trl.rewards")
    think = RewardScorer(rewards.think_format_reward, conversational=True)
    texts = ["<think>\nThis is my reasoning.\n</think>\nThis is my answer.", "<think>\nThis is my reasoning."]
    assert think.score(["p", "p"], texts, {}).rewards.tolist() == [1.0, 0.0]
    overlong = rewards.get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    check_signature(overlong, [])
    scorer = RewardScorer(overlong)
    assert scorer.name == "soft_overlong_punishment_reward"
    found = scorer.score(["p"] * 3, ["c"] * 3, {}, [[1] * 90, [1] * 10, [1] * 101])
    assert found.rewards.tolist() == [-0.5, 0.0, -1.0]


def test_the_keywords_are_those_that_trl_hands_over() -> None:
    """TRL's trainer names them in the text of the method that calls reward functions."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    source = inspect.getsource(trainer.GRPOTrainer._calculate_rewards)
    named = set(re.findall(r'^ +reward_kwargs\["(\w+)"\]', source, re.MULTILINE)) - {"environments"}
    assert named == {"trainer_state", "log_extra", "log_metric"}

    def takes(completions: list[str], trainer_state: object, log_extra: object, log_metric: object) -> list[float]:
        assert hasattr(trainer_state, "global_step") and callable(log_extra) and callable(log_metric)
        return [0.0]

    check_signature(takes, [])
    assert not RewardScorer(takes).score(["p"], ["c"], {}).failed.any()
    with pytest.raises(InputError, match="'environments'"):
        check_signature(lambda completions, environments: [], [])
