"""What is learned again: which completions, how noise is weighed, and that the policy moves towards them."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evolora import PPOConfig
from evolora.engine.base import Completions, Scoring
from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.fitness.judging import ByCompletion
from evolora.models.base import load_base
from evolora.models.lora import lora_config, lora_layout
from evolora.population.evaluation import LocalEvaluator
from evolora.refiners import PPORefiner
from evolora.refiners.replay import Replay
from evolora.rewards import RewardScorer, Scores
from evolora.tasks.task import Example


def filled(rewards: dict[int, list[float]], prompts: int = 4, *, by_policy: bool = False) -> Replay:
    replay = Replay()
    for prompt in range(prompts):
        for token, earned in rewards.items():
            for reward in earned:
                replay.add(f"p{prompt}", [token], reward, by_policy=by_policy)
    return replay


def test_a_lesson_is_the_best_completion_where_the_policy_earns_less() -> None:
    replay = filled({1: [0.2], 2: [1.0], 3: [0.5]})
    for prompt in range(4):
        replay.add(f"p{prompt}", [1], 0.2, by_policy=True)
    assert {lesson.completion_ids for lesson in replay.lessons()} == {(2,)}
    assert [lesson.gain for lesson in replay.lessons()] == pytest.approx([0.8] * 4)
    # Once the policy writes it itself there is nothing left to learn.
    for _ in range(20):
        for prompt in range(4):
            replay.add(f"p{prompt}", [2], 1.0, by_policy=True)
    assert replay.lessons() == []


def test_what_is_no_better_than_the_usual_is_no_lesson() -> None:
    """On prompts where it says something worse, the policy must not be taught to say what earns it 0.4 elsewhere."""
    replay = filled({1: [0.4], 2: [0.0]}, prompts=8)
    for prompt in range(4):
        replay.add(f"p{prompt}", [3], 1.0, by_policy=False)
    for _ in range(60):
        replay.add("elsewhere", [1], 0.4, by_policy=True)
    for prompt in range(8):
        replay.add(f"p{prompt}", [2], 0.0, by_policy=True)
    for _ in range(600):
        replay.add("elsewhere", [1], 0.4, by_policy=True)
    assert {(lesson.prompt, lesson.completion_ids) for lesson in replay.lessons()} == {
        (f"p{prompt}", (3,)) for prompt in range(4)
    }
    assert [lesson.gain for lesson in replay.lessons()] == pytest.approx([0.6] * 4, abs=0.01)


@settings(deadline=None)
@given(st.floats(0, 1))
def test_what_the_policy_has_learned_is_less_of_a_lesson(probability: float) -> None:
    replay = filled({1: [0.0], 2: [1.0]})
    for prompt in range(4):
        replay.add(f"p{prompt}", [1], 0.0, by_policy=True)
    for lesson in replay.lessons():
        assert (lesson.gain, lesson.reward) == (1.0, 1.0)
        replay.learned(lesson, probability)
    gains = [lesson.gain for lesson in replay.lessons()]
    assert gains == pytest.approx([1 - probability] * 4) if probability < 0.99 else len(gains) in (0, 4)


def test_few_lessons_are_not_taught() -> None:
    assert filled({1: [0.0], 2: [1.0]}, prompts=3).lessons() == []
    assert len(filled({1: [0.0], 2: [1.0]}, prompts=4).lessons()) == 4


def test_where_the_base_is_paid_nothing_a_single_lesson_is_taught() -> None:
    replay = filled({1: [0.0], 2: [1.0]}, prompts=1)
    assert replay.lessons() == []
    replay.fewest = 1
    (lesson,) = replay.lessons()
    assert lesson.completion_ids == (2,)
    again = Replay()
    again.load_state_dict(json.loads(json.dumps(replay.state_dict())))
    assert again.lessons() == [lesson]
    # Not learned by heart: once it is written as a matter of course, it is no lesson.
    for probability in (0.1, 0.5, 0.9, 0.95):
        replay.learned(lesson, probability)
    assert replay.lessons() == []


def test_a_lucky_draw_of_a_noisy_reward_is_no_lesson() -> None:
    noise = np.random.default_rng(0)
    replay = Replay()
    for prompt in range(50):
        for token, mean, times in ((1, 0.0, 20), (2, 1.0, 20), (3, 0.0, 1), (4, 0.0, 1), (5, 0.0, 1)):
            for reward in noise.normal(mean, 1.0, times):
                replay.add(f"p{prompt}", [token], float(reward), by_policy=False)
    lucky = [
        max(entry.written, key=lambda ids: entry.written[ids][0] / entry.written[ids][1])
        for entry in replay.prompts.values()
    ]
    taught = [lesson.completion_ids for lesson in replay.lessons()]
    assert sum(ids == (2,) for ids in lucky) < 30 <= len(taught)
    assert sum(ids == (2,) for ids in taught) > 0.9 * len(taught)


def test_without_noise_means_count_as_they_are() -> None:
    replay = filled({1: [0.25, 0.25], 2: [0.75]})
    assert replay.squares == 0 and replay.freedom == 4
    assert replay.lessons()[0].gain == pytest.approx(0.75 - 1.25 / 3)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 20), st.floats(-1e3, 1e3, allow_subnormal=False), st.booleans()),
        max_size=60,
    )
)
def test_a_store_survives_a_checkpoint(entries: list[tuple[int, int, float, bool]]) -> None:
    replay = Replay()
    for prompt, token, reward, by_policy in entries:
        replay.add(str(prompt), [token], reward, by_policy=by_policy)
    other = Replay()
    other.load_state_dict(json.loads(json.dumps(replay.state_dict())))
    assert other.state_dict() == replay.state_dict() and other.lessons() == replay.lessons()
    assert all(len(entry.written) <= 8 for entry in replay.prompts.values())
    assert all(lesson.gain > 0 and math.isfinite(lesson.gain) for lesson in replay.lessons())


def test_replay_teaches_what_another_individual_wrote() -> None:
    """The policy never samples the answer; somebody else did. With a reward that is always 0 nothing else moves it."""
    base = load_base("tiny-gpt2")
    layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    engine, text = choose_engine(base.model, layout).engine, Text.of(base.model, base.tokenizer)
    scorer = RewardScorer(lambda completions: [0.0] * len(completions))
    examples = [Example(f"Translate '{word}' to English:", {}) for word in ("chat", "chien", "pain", "eau", "lait")]
    answer = base.tokenizer(" window")["input_ids"] + [base.tokenizer.eos_token_id]
    probabilities = []
    for replay in (0, 8):
        config = PPOConfig(max_new_tokens=4, rl_steps=8, replay=replay, kl_weight=0.0)
        refiner = PPORefiner(engine, text, scorer, config, seed=0)
        evaluation = LocalEvaluator(engine, text, scorer, max_new_tokens=4).evaluate(genome[None], examples)
        evaluation.completion_ids[0][:] = [list(answer) for _ in examples]
        evaluation.rewards[:] = 1.0
        refiner.observe(examples, evaluation)
        refined = refiner.refine(genome[None], examples, key=[(1, 0)])
        prompts = text.encode([example.prompt for example in examples])
        scored = engine.score(refined.genomes, prompts, Completions.of_ids([answer] * 5, 0), Scoring())
        probabilities.append(float(scored.log_probs.sum(1).mean()))
        assert ("lessons" in refined.stats[0]) == bool(replay)
    assert probabilities[1] > probabilities[0] + 3


class Counting:
    """Pays for one text, and counts how often it is asked."""

    name, varies, metrics = "wanted", False, dict[str, float]()

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.asked: list[int] = []

    def score(self, prompts: Any, completions: Any, columns: Any, completion_ids: Any = None, **_: Any) -> Scores:
        self.asked.append(len(completions))
        paid = np.array([float(text.strip() == self.wanted) for text in completions])
        return Scores(paid, np.zeros(len(paid), np.bool_))

    def at(self, generation: int) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("slow", [False, True])
def test_what_the_fitness_pays_is_learned_and_not_what_the_reward_does(slow: bool) -> None:
    """The reward pays for another word than the fitness; nobody samples either, and both are known."""
    base = load_base("tiny-gpt2")
    layout, genome = lora_layout(base.model, lora_config(base.model), seed=0)
    engine, text = choose_engine(base.model, layout).engine, Text.of(base.model, base.tokenizer)
    scorer = RewardScorer(lambda completions: [float(text.strip() == "door") for text in completions])
    payer = Counting("window")
    fitness = ByCompletion(payer, samples=1, slow=slow)
    examples = [Example("Translate 'chat' to English:", {})]
    config = PPOConfig(max_new_tokens=4, rl_steps=6, replay=8, kl_weight=0.0, rollout_samples=8)
    refiner = PPORefiner(engine, text, scorer, config, seed=0, fitness=fitness)
    refiner.starts_from_nothing()
    answers = [base.tokenizer(word)["input_ids"] + [base.tokenizer.eos_token_id] for word in (" window", " door")]
    for word, answer in zip(("window", "door"), answers, strict=True):
        evaluation = LocalEvaluator(engine, text, scorer, max_new_tokens=4).evaluate(genome[None], examples)
        evaluation.completion_ids[0][:] = [answer]
        evaluation.rewards[:] = float(word == "door")
        judged = fitness.judged(examples, [[word]], [[answer]])
        assert (judged[0].by_completion is None) == slow
        refiner.observe(examples, replace(evaluation, judged=judged))
    payer.asked.clear()
    refined = refiner.refine(genome[None], examples, key=[(1, 0)])
    # One call for each rollout.
    assert payer.asked == ([] if slow else [8] * 6)
    prompts = text.encode([example.prompt for example in examples])
    window, door = (
        float(engine.score(refined.genomes, prompts, Completions.of_ids([answer], 0), Scoring()).log_probs.sum())
        for answer in answers
    )
    assert (window > door) != slow
    assert [one.worth for one in refined.sampled] == [
        float(one.completion.strip() == ("door" if slow else "window")) for one in refined.sampled
    ]
    assert len(refined.sampled) == 48 and refined.sampled[-1].tokens == refined.costs.generated_tokens
