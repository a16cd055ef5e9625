"""A fitness beside the reward: it selects, accepts, validates and wins; what RL follows is only followed."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evolora.errors import InputError
from evolora.evolution.acceptance import entering, standing
from evolora.evolution.allowance import Allowance
from evolora.evolution.loop import Evolution, LoopConfig
from evolora.evolution.winner import best_finalists
from evolora.fitness.base import Judged
from evolora.models.cost import Cost, Costs
from evolora.models.genome import AdaptedModule, GenomeLayout
from evolora.population.evaluation import Drafts, Evaluation, Evaluator
from evolora.population.judging import JudgingEvaluator
from evolora.population.lineage import Lineage
from evolora.population.population import Individual
from evolora.population.remembering import RememberingEvaluator
from evolora.refiners import Refinement, Refiner
from evolora.strategies import GAConfig, GeneticAlgorithm
from evolora.tasks.task import Example, Task

LAYOUT = GenomeLayout((AdaptedModule("m", "a", "b", 3, 4, 2, 2.0, 0, 6),))
SPLITS = {name: tuple(Example(f"{name} {n}", {}) for n in range(20)) for name in ("train", "validation", "test")}
TASK = Task(name="hill", reward="none", held_out=True, columns=(), **SPLITS)
Of = Callable[[float], float]


class Written(Evaluator):
    """An individual writes its mean weight, which earns what `reward` makes of it."""

    def __init__(self, reward: Of) -> None:
        self.reward = reward

    def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
        means = genomes.mean(dim=1).tolist()
        rewards = np.array([[self.reward(mean)] * len(examples) for mean in means])
        texts = [[repr(mean)] * len(examples) for mean in means]
        return Evaluation(rewards.mean(1), rewards, texts, Cost(), 0, [[[1]] * len(examples)] * len(means))


class Wanted:
    """Judges what was written by `value`, prompt by prompt or as a whole."""

    name, varies = "wanted", False
    scorer: Any = None

    def __init__(self, value: Of, *, whole: bool = False) -> None:
        self.value = value
        self.whole = whole

    def judged(self, examples: Sequence[Example], texts: Any, ids: Any) -> list[Judged]:
        found = []
        for own in texts:
            value = self.value(float(own[0]))
            by_prompt = None if self.whole else np.full(len(examples), value)
            again = (lambda rows, value=value: value) if self.whole else None
            found.append(Judged(value, 0, by_prompt, again, len(examples)))
        return found


class Climbs(Refiner):
    """Goes up by as much in every weight."""

    name = "ppo"

    def __init__(self, step: float) -> None:
        self.step = step
        self.observed: list[float] = []

    def refine(self, genomes: Tensor, examples: Sequence[Example], **more: Any) -> Refinement:
        costs = Costs({"evaluation": Cost(), "rollout": Cost(), "update": Cost()})
        return Refinement(genomes + self.step, [{"kl": 0.0}] * len(genomes), costs, 0)

    def observe(self, examples: Sequence[Example], evaluation: Evaluation) -> None:
        self.observed += evaluation.rewards[:, 0].tolist()

    def keep(self, individuals: Sequence[Individual]) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


def made(reward: Of, wanted: Of, *, step: float = 0.1, whole: bool = False, **options: Any) -> Evolution:
    ga = GAConfig(pop=4, elites=2, average=0.0, mutation_scale=0.001)
    return Evolution(
        strategy=GeneticAlgorithm(torch.zeros(14), LAYOUT, ga, seed=0),
        refiner=Climbs(step),
        evaluator=JudgingEvaluator(Written(reward), Wanted(wanted, whole=whole), samples=1),
        task=TASK,
        lineage=Lineage(),
        config=LoopConfig(**{"eval_prompts": 8, "rollout_prompts": 16, "rl_steps": 1, "pop": 4, **options}),
    )


@pytest.mark.parametrize("whole", [False, True])
def test_a_hacked_reward_is_followed_and_neither_enters_nor_wins(whole: bool) -> None:
    evolution = made(reward=lambda mean: mean, wanted=lambda mean: -abs(mean), whole=whole)
    steps = [evolution.step() for _ in range(3)]
    assert all(step["ppo.gain"] < 0 and step["ppo.accepted"] == 0 for step in steps)
    winner, fitness, _ = best_finalists(evolution, 1)
    assert winner.individuals[0].id == 0 and fitness[0] == 0.0
    # RL is shown what completions earn, not what they are worth.
    assert isinstance(evolution.refiner, Climbs) and max(evolution.refiner.observed) > 0.09


def test_accepting_always_shows_both_curves_part() -> None:
    evolution = made(reward=lambda mean: mean, wanted=lambda mean: -abs(mean), accept="always", refine=4)
    last = [evolution.step() for _ in range(2)][-1]
    assert last["validation.reward"] > last["validation.base_reward"] + 0.05 and last["population.reward"] > 0.05
    assert last["validation"] < 0 and last["fitness.best"] < 0
    assert evolution.rewards == (last["validation.base_reward"], last["validation.reward"])


def test_a_cold_start_leaves_zero_by_the_reward() -> None:
    def wanted(mean: float) -> float:
        return float(mean > 0.25)

    evolution = made(reward=lambda mean: mean, wanted=wanted)
    steps = [evolution.step() for _ in range(4)]
    assert steps[0]["fitness.best"] == 0.0 and steps[0]["ppo.accepted"] == 1
    assert steps[-1]["validation"] == 1.0
    # Where the reward leads down nobody is taken along, and the best by the reward stays the best.
    down = made(reward=lambda mean: -mean, wanted=wanted)
    assert [down.step()["ppo.accepted"] for _ in range(2)] == [0, 0]


def test_one_reward_alone_is_accepted_as_ever() -> None:
    evaluation = Evaluation(np.array([0.5]), np.array([[0.5, 0.5]]), [], Cost(), 0, [])
    slightly_less = Evaluation(np.array([0.4]), np.array([[0.0, 0.8]]), [], Cost(), 0, [])
    assert not entering("better", evaluation, [0], slightly_less, seed=0)[0]
    assert entering("better", evaluation, [0], evaluation, seed=0)[0]


def judged(scores: Sequence[float], reward: float) -> Evaluation:
    values = np.array(scores)
    own = Judged(float(values.mean()), 0, values)
    return Evaluation(np.array([own.fitness]), np.full((1, len(values)), reward), [], Cost(), 0, [], judged=[own])


@pytest.mark.parametrize(
    ("child", "reward", "enters"),
    [
        ([1, 0, 1, 0, 1, 0, 1, 0], 0.5, True),  # equal in both
        ([1, 0, 1, 0, 1, 0, 1, 0], 0.4, False),  # equally fit, and earns less
        ([0, 1, 1, 0, 1, 0, 0, 0], 0.6, True),  # within the noise
        ([0, 1, 1, 0, 1, 0, 0, 0], 0.4, False),
        ([0, 0, 0, 0, 0, 0, 0, 0], 0.9, False),  # beyond it
        ([1, 1, 1, 0, 1, 0, 1, 0], 0.1, True),  # fitter
        ([math.nan] * 8, 0.9, False),
    ],
)
def test_a_refinement_is_refused_beyond_the_noise_and_else_by_the_reward(
    child: list[float], reward: float, enters: bool
) -> None:
    before = judged([1, 0, 1, 0, 1, 0, 1, 0], 0.5)
    assert entering("better", before, [0], judged(child, reward), seed=0).tolist() == [enters]
    assert entering("always", before, [0], judged(child, reward), seed=0).tolist() == [not math.isnan(child[0])]


def test_equals_are_told_apart_by_the_reward_and_others_are_not() -> None:
    fitness = [0.0, 0.5, 0.0, math.nan, 0.5, 1e-12]
    rewards = np.array([[0.3], [0.1], [0.2], [9.0], [0.4], [0.0]])
    owns = [Judged(value, 0, np.array([value])) for value in fitness]
    found = standing(Evaluation(np.array(fitness), rewards, [], Cost(), 0, [], judged=owns))
    assert np.argsort(-np.nan_to_num(found, nan=-1.0), kind="stable").tolist() == [4, 1, 5, 0, 2, 3]
    assert np.nanmax(np.abs(found - fitness)) < 1e-8
    alone = Evaluation(np.array(fitness), rewards, [], Cost(), 0, [])
    assert standing(alone) is alone.fitness


def test_a_fitness_of_the_whole_does_not_race() -> None:
    evolution = made(lambda mean: mean, lambda mean: mean, whole=True, racing=0.05, racing_block=4)
    with pytest.raises(InputError, match=r"^--racing 0.05 with a --fitness that judges the whole: expected none"):
        evolution.step()


def test_a_fitness_by_prompt_does() -> None:
    evolution = made(lambda mean: -mean, lambda mean: mean, racing=0.4, racing_block=2, eval_prompts=16)
    evolution.config = evolution.config.model_copy(update={"elites": 1})
    assert [evolution.step()["racing.dropped"] for _ in range(2)][-1] > 0


@pytest.mark.parametrize("remember", [True, False])
def test_where_all_are_equally_fit_the_base_wins_and_there_is_no_soup(remember: bool) -> None:
    evolution = made(lambda mean: mean, lambda mean: 0.0, soup=4, accept="always", remember=remember)
    for _ in range(3):
        evolution.step()
    winner, fitness, _ = best_finalists(evolution, 1)
    assert (winner.individuals[0].id, winner.individuals[0].operator, fitness[0]) == (0, "base", 0.0)
    assert not evolution.lineage.query("SELECT 1 FROM fitness WHERE stage = 'soup'")


def test_what_the_rewards_were_is_known_after_a_checkpoint() -> None:
    evolution = made(lambda mean: mean, lambda mean: -mean)
    evolution.step()
    state = evolution.state_dict()
    again = made(lambda mean: mean, lambda mean: -mean)
    again.load_state_dict({**state, **json.loads(json.dumps({name: state[name] for name in ("rewards", "earned")}))})
    assert (again.rewards, again.earned) == (evolution.rewards, evolution.earned)
    assert evolution.earned is not None and evolution.earned[0] < evolution.earned[1]


def test_under_a_budget_the_whole_is_judged_once_all_its_parts_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evolora.evolution.allowance.FIRST", 8)
    evolution = made(lambda mean: mean, lambda mean: mean, whole=True)
    evolution.step()
    evolution.allowance = Allowance(tokens=1e9)
    judged: list[int] = []
    assert isinstance(evolution.evaluator, JudgingEvaluator)
    fitness: Any = evolution.evaluator.fitness
    judge = fitness.judged
    monkeypatch.setattr(fitness, "judged", lambda *asked: judged.append(len(asked[0])) or judge(*asked))
    _, evaluation, examples = evolution.measure_finalists(evolution.hall_of_fame.members)
    assert judged == [20] == [len(examples)] and all(own.prompts == 20 for own in evaluation.judged)


def test_samples_are_an_individuals_own_and_are_remembered_by_their_numbers() -> None:
    asked: list[list[int | None]] = []

    class Draws(Written):
        def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
            assert drafts is None
            asked.append([example.draw for example in examples])
            return super().evaluate(genomes, examples)

    remembering = RememberingEvaluator(Draws(lambda mean: mean))
    evaluator = JudgingEvaluator(remembering, Wanted(lambda mean: mean), samples=3)
    both = [evaluator.evaluate(torch.ones(2, 14), TASK.train[:2], drafts=[[[1]] * 2] * 2) for _ in range(2)]
    assert asked == [[0, 1, 2, 0, 1, 2]], "equal genomes are asked once, and nobody a second time"
    assert [example.prompt for example in both[1].examples] == ["train 0"] * 3 + ["train 1"] * 3
    assert both[0].fitness.tolist() == both[1].fitness.tolist() == [1.0, 1.0]
