"""What need not be evaluated: what is remembered, and who clearly loses."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.evolution.racing import losers, race
from evolora.models.base import load_base
from evolora.models.cost import Cost
from evolora.models.lora import lora_config, lora_layout
from evolora.population.evaluation import Drafts, Evaluation, Evaluator, LocalEvaluator, mean_fitness
from evolora.population.population import genome_sha256
from evolora.population.remembering import RememberingEvaluator
from evolora.rewards import RewardScorer
from evolora.tasks.task import Example


class Counting(Evaluator):
    """A reward for each genome and prompt, and what was asked."""

    def __init__(self, failed: int = 0) -> None:
        self.asked: list[tuple[float, str]] = []
        self.drafts: list[Drafts | None] = []
        self.failed = failed

    def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
        pairs = [[(float(genome[0]), example.prompt) for example in examples] for genome in genomes]
        self.asked += [pair for row in pairs for pair in row]
        self.drafts.append(drafts)
        rewards = np.array([[reward_of(*pair) for pair in row] for row in pairs])
        texts = [[f"{value} {prompt}" for value, prompt in row] for row in pairs]
        ids = [[[int(value), len(prompt)] for value, prompt in row] for row in pairs]
        return Evaluation(mean_fitness(rewards), rewards, texts, Cost(len(genomes) * len(examples)), self.failed, ids)


def reward_of(value: float, prompt: str) -> float:
    return math.nan if (value, prompt) == (2.0, "b") else value + len(prompt) / 10 + ord(prompt[0]) / 100


def examples_of(prompts: Sequence[str]) -> list[Example]:
    return [Example(prompt, {"target": prompt * 2}) for prompt in prompts]


def genomes_of(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None].repeat(1, 3)


def assert_equal(found: Evaluation, expected: Evaluation) -> None:
    assert np.array_equal(found.fitness, expected.fitness, equal_nan=True)
    assert np.array_equal(found.rewards, expected.rewards, equal_nan=True)
    assert found.completions == expected.completions and found.completion_ids == expected.completion_ids


@settings(max_examples=80, deadline=None)
@given(
    rounds=st.lists(
        st.tuples(
            st.lists(st.integers(0, 3), min_size=1, max_size=5),
            st.lists(st.sampled_from("abcd"), min_size=1, max_size=5),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_remembering_changes_nothing_but_the_work(rounds: list[tuple[list[int], list[str], bool]]) -> None:
    inner = Counting()
    remembering = RememberingEvaluator(inner)
    known: set[tuple[float, str]] = set()
    for values, prompts, forget in rounds:
        genomes, examples = genomes_of(values), examples_of(prompts)
        inner.asked.clear()
        found = remembering.evaluate(genomes, examples)
        wanted = {(float(value), prompt) for value in values for prompt in prompts}
        assert sorted(inner.asked) == sorted(wanted - known)
        assert found.cost.tokens == len(inner.asked)
        assert_equal(found, Counting().evaluate(genomes, examples))
        known |= wanted
        if forget:
            remembering.keep(genomes[:1])
            known = {pair for pair in known if pair[0] == float(values[0])}
        # A resumed run knows the same.
        other = RememberingEvaluator(inner)
        other.load_state_dict(remembering.state_dict())
        remembering = other


def test_the_same_prompt_with_other_columns_is_another_example() -> None:
    inner = Counting()
    remembering = RememberingEvaluator(inner)
    for target in ("1", "2", "1"):
        remembering.evaluate(genomes_of([1]), [Example("a", {"target": target})])
    assert len(inner.asked) == 2


def test_a_long_prompt_is_not_in_the_checkpoint_once_for_each_genome() -> None:
    remembering = RememberingEvaluator(Counting())
    sizes = []
    for length in (1, 100_000):
        remembering.keep(genomes_of([]))
        remembering.evaluate(genomes_of([1, 2, 3]), [Example("a", {"context": "x" * length})])
        sizes.append(len(json.dumps(remembering.state_dict())))
    assert sizes[0] == sizes[1]


def test_rewards_that_failed_are_asked_again() -> None:
    inner = Counting(failed=1)
    remembering = RememberingEvaluator(inner)
    for _ in range(2):
        assert remembering.evaluate(genomes_of([1]), examples_of("a")).failed == 1
    assert len(inner.asked) == 2


def test_drafts_follow_what_is_missing() -> None:
    inner = Counting()
    remembering = RememberingEvaluator(inner)
    remembering.evaluate(genomes_of([1]), examples_of("b"))
    drafts = [[[10], [11], [12]], [[20], [21], [22]]]
    remembering.evaluate(genomes_of([1, 2]), examples_of("abc"), drafts=drafts)
    assert sorted(map(str, inner.drafts[1:])) == ["[[[10], [12]]]", "[[[20], [21], [22]]]"]


def test_a_model_that_remembers_writes_what_it_wrote() -> None:
    base = load_base("tiny-gpt2")
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    genomes = founder + 0.05 * torch.randn(3, len(founder), generator=torch.Generator().manual_seed(0))
    scorer = RewardScorer(lambda completions: [len(text) / 10 for text in completions])
    engine, text = choose_engine(base.model, layout).engine, Text.of(base.model, base.tokenizer)
    plain = LocalEvaluator(engine, text, scorer, max_new_tokens=6, draft_rows=99)
    examples = [Example(f"Translate '{word}' to English:", {}) for word in ("chat", "chien", "pain", "eau")]
    expected = plain.evaluate(genomes, examples)
    assert_equal(plain.evaluate(genomes, examples, drafts=expected.completion_ids), expected)
    wrong = [[[5] * 6 for _ in examples] for _ in genomes]
    assert_equal(plain.evaluate(genomes, examples, drafts=wrong), expected)
    remembering = RememberingEvaluator(plain)
    remembering.evaluate(genomes[1:], examples[:3])
    found = remembering.evaluate(genomes[[0, 1, 2, 1]], examples)
    assert found.completions == [expected.completions[row] for row in (0, 1, 2, 1)]
    assert found.cost.tokens < expected.cost.tokens and found.cost.flops < expected.cost.flops
    again = remembering.evaluate(genomes, examples)
    assert again.cost == Cost() and again.completions == expected.completions


def test_forgetting_is_by_content() -> None:
    remembering = RememberingEvaluator(Counting())
    remembering.evaluate(genomes_of([1, 2]), examples_of("a"))
    remembering.keep(genomes_of([2]).clone())
    assert set(remembering.memory) == {genome_sha256(genomes_of([2])[0])}


def noisy(n: int, prompts: int, gaps: Sequence[float], seed: int = 0, spread: float = 0.3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    hard = generator.normal(0, 1, prompts)  # prompts differ much more than individuals
    return hard + np.asarray(gaps)[:n, None] + generator.normal(0, spread, (n, prompts))


def test_paired_prompts_tell_a_clear_loser() -> None:
    rewards = noisy(4, 24, [0.0, -0.05, -1.0, 0.3])
    found = losers(rewards, keep=1, level=0.01, seed=0)
    assert 2 in found and 3 not in found
    assert losers(rewards, keep=4, level=0.01, seed=0) == set()


@pytest.mark.parametrize("power", [-60, 0, 30])
def test_the_scale_of_rewards_does_not_decide_a_race(power: int) -> None:
    # Sevenths, whose sums round: the same gaps in another order are a tie.
    for seed in range(200):
        rewards = np.random.default_rng(seed).integers(0, 7, (6, 16)) / 7
        found = losers(rewards * 2.0**power, keep=1, level=0.05, seed=seed)
        assert found == losers(rewards, keep=1, level=0.05, seed=seed)


def test_equals_are_rarely_dropped() -> None:
    dropped = sum(len(losers(noisy(2, 16, [0, 0], seed=seed), keep=1, level=0.05, seed=seed)) for seed in range(400))
    # The better of the two is the reference, so the test is of the better half: twice the level at most.
    assert dropped / 400 < 0.13


def test_who_has_no_score_is_no_loser() -> None:
    rewards = np.array([[1.0] * 12, [math.nan] * 12, [math.nan, 0.0] * 6])
    assert losers(rewards, keep=1, level=0.05, seed=0) == {2}
    assert losers(rewards[1:2], keep=1, level=0.05, seed=0) == set()
    assert losers(np.full((3, 4), math.nan), keep=1, level=0.05, seed=0) == set()


class Table(Evaluator):
    def __init__(self, rewards: np.ndarray) -> None:
        self.rewards = rewards
        self.count = 0

    def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
        rows, columns = genomes[:, 0].long().tolist(), [int(example.prompt) for example in examples]
        self.count += len(rows) * len(columns)
        part = self.rewards[np.ix_(rows, columns)]
        texts, ids = ([[each] * len(columns) for _ in rows] for each in ("text", [1]))
        return Evaluation(mean_fitness(part), part, texts, Cost(part.size), 0, ids)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(1, 3), st.integers(1, 16))
def test_a_race_never_puts_a_dropped_one_above_one_that_stayed(seed: int, n: int, keep: int, block: int) -> None:
    gaps = np.random.default_rng(seed).choice([0.0, -0.2, -2.0], n)
    rewards = noisy(n, 32, gaps, seed)
    table = Table(rewards)
    examples = [Example(str(column), {}) for column in range(32)]
    found = race(table, genomes_of(range(n)), examples, keep=keep, block=block, level=0.05, seed=seed)
    stayed = ~np.isnan(found.evaluation.rewards).any(1)
    assert stayed.sum() >= min(keep, n) and found.dropped == (~stayed).sum()
    assert table.count + found.saved == rewards.size and found.evaluation.cost.tokens == table.count
    assert np.allclose(found.evaluation.fitness[stayed], rewards[stayed].mean(1))
    if found.dropped:
        assert found.evaluation.fitness[~stayed].max() < found.evaluation.fitness[stayed].min()
    assert not np.isnan(found.evaluation.fitness).any()


def test_a_race_saves_most_when_most_are_bad() -> None:
    table = Table(noisy(8, 32, [0, 0, -2, -2, -2, -2, -2, -2]))
    examples = [Example(str(column), {}) for column in range(32)]
    found = race(table, genomes_of(range(8)), examples, keep=2, block=8, level=0.05, seed=0)
    assert found.dropped == 6 and found.saved == 6 * 24


def test_evidence_adds_up_over_blocks() -> None:
    # Two prompts alone never tell at this level (p = 1/4), six do (p = 1/64), four do not quite (1/16).
    table = Table(np.stack([np.ones(32), np.zeros(32)]))
    examples = [Example(str(column), {}) for column in range(32)]
    found = race(table, genomes_of(range(2)), examples, keep=1, block=2, level=0.05, seed=0)
    assert (found.dropped, found.saved) == (1, 26)


def test_no_loss_is_more_certain_than_the_flips_can_tell() -> None:
    rewards = np.stack([np.ones(32), np.zeros(32)])
    assert losers(rewards, keep=1, level=1 / 2002, seed=0) == set()
    assert losers(rewards, keep=1, level=1 / 2000, seed=0) == {1}


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5, -0.1])
def test_a_level_is_between_0_and_1(level: float) -> None:
    from evolora.runs.options import make_options

    with pytest.raises(ValueError, match="racing"):
        make_options({"racing": level})
