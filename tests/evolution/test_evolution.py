"""The loop's promises, on a strategy and evaluator small enough to see through."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evolora.evolution import loop
from evolora.evolution.loop import Evolution, LoopConfig
from evolora.evolution.racing import Race, losers, race
from evolora.evolution.winner import best_finalists, choose_winner, finalists, ranked
from evolora.models.cost import Cost, Costs
from evolora.models.genome import AdaptedModule, GenomeLayout
from evolora.population.evaluation import Drafts, Evaluation, Evaluator
from evolora.population.lineage import Lineage
from evolora.population.population import Hyperparameters, Individual, Population, genome_sha256, newest
from evolora.population.remembering import RememberingEvaluator
from evolora.refiners import Refinement, Refiner
from evolora.strategies import (
    ESConfig,
    EvolutionStrategy,
    GAConfig,
    GeneticAlgorithm,
    PBTConfig,
    PopulationBasedTraining,
    RefinerAlone,
)
from evolora.tasks.task import Example, Task

LAYOUT = GenomeLayout((AdaptedModule("m", "a", "b", 3, 4, 2, 2.0, 0, 6),))
TASK = Task(
    name="hill",
    train=tuple(Example(f"train {n}", {}) for n in range(40)),
    validation=tuple(Example(f"validation {n}", {}) for n in range(10)),
    test=tuple(Example(f"test {n}", {}) for n in range(10)),
    reward="none",
    held_out=True,
    columns=(),
)
REFINED = Costs({"evaluation": Cost(), "rollout": Cost(5, 50, 0.25), "update": Cost(10, 300, 0.5)})


class Hill(Evaluator):
    """Fitness is minus the distance from 1: what the genome is, not who shares the batch."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
        self.seen.append([example.prompt for example in examples])
        fitness = -(genomes - 1).norm(dim=1).double().numpy()
        rewards = np.repeat(fitness[:, None], len(examples), axis=1)
        texts, ids = ([[each] * len(examples) for _ in fitness] for each in ("text", [1]))
        return Evaluation(fitness, rewards, texts, Cost(tokens=len(fitness), flops=7), 0, ids)


class Step(Refiner):
    """A refiner that goes a fixed way towards (or away from) the top."""

    def __init__(self, size: float, name: str = "ppo") -> None:
        self.size = size
        self.name = name
        self.calls: list[tuple[list[str], list[tuple[int, ...]]]] = []
        self.children: list[list[int]] = []
        self.hyperparameters: list[list[Hyperparameters | None]] = []
        self.kept: set[int] = set()

    def refine(
        self,
        genomes: Tensor,
        examples: Sequence[Example],
        *,
        key: Sequence[tuple[int, ...]],
        children: Sequence[int] | None = None,
        hyperparameters: Sequence[Hyperparameters | None] | None = None,
        steps: int | None = None,
        progress: float = 0.0,
    ) -> Refinement:
        self.progress = progress
        assert children is not None
        self.calls.append(([example.prompt for example in examples], list(key)))
        self.children.append(list(children))
        self.hyperparameters.append(list(hyperparameters or ()))
        return Refinement(genomes + self.size * (1 - genomes), [{"kl": 0.0}] * len(key), REFINED, 0)

    def keep(self, individuals: Sequence[Individual]) -> None:
        self.kept = {individual.id for individual in individuals}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def make_evolution(step: float | None = 0.5, **options: Any) -> Evolution:
    return Evolution(
        strategy=GeneticAlgorithm(torch.zeros(14), LAYOUT, GAConfig(pop=6, elites=2, average=0.0), seed=0),
        refiner=None if step is None else Step(step),
        evaluator=Hill(),
        task=TASK,
        lineage=Lineage(),
        config=LoopConfig(**{"eval_prompts": 8, "rollout_prompts": 16, "rl_steps": 1, "refine": 2, **options}),
    )


def test_the_refiners_name_marks_its_metrics_and_its_individuals() -> None:
    evolution = make_evolution()
    evolution.refiner = Step(0.5, name="rloo")
    metrics = evolution.step()
    assert (metrics["rloo.refined"], metrics["rloo.accepted"], metrics["best.operator"]) == (2, 2, "rloo")
    assert not [name for name in metrics if name.startswith("ppo")]


def test_the_refiner_is_told_how_much_of_the_run_is_done() -> None:
    evolution = make_evolution()
    assert isinstance(evolution.refiner, Step)
    for progress in (0.0, 0.25):
        evolution.step(progress)
        assert evolution.refiner.progress == progress


def test_the_refined_take_their_parents_place_in_the_next_population() -> None:
    evolution = make_evolution(step=0.5)
    before = evolution.strategy.ask()
    metrics = evolution.step()
    assert (metrics["ppo.refined"], metrics["ppo.accepted"]) == (2, 2)
    after = evolution.strategy.ask()
    assert [individual.operator for individual in after.individuals[:2]] == ["ppo", "ppo"]
    for row in range(2):
        parent = [individual.id for individual in before.individuals].index(after.individuals[row].parents[0])
        assert torch.equal(after.genomes[row], before.genomes[parent] + 0.5 * (1 - before.genomes[parent]))
    assert metrics["ppo.gain"] > 0


def test_the_refiner_knows_whom_it_makes_and_who_lives() -> None:
    evolution = make_evolution()
    refiner = evolution.refiner
    assert isinstance(refiner, Step)
    for _ in range(3):
        evolution.step()
        assert not evolution.hall_of_fame.empty
        living = evolution.strategy.ask().join(evolution.hall_of_fame.members)
        assert refiner.kept == {individual.id for individual in living.individuals}
        refined = [individual.id for individual in living.individuals if individual.operator == "ppo"]
        assert set(refiner.children[-1]) <= set(refined), "all of them were let in"


@pytest.mark.parametrize("step", [None, 0.2])
def test_the_last_mean_of_a_strategy_can_win_though_nobody_has_measured_it(step: float | None) -> None:
    evolution = make_evolution(step=step, refine=1)
    evolution.strategy = EvolutionStrategy(torch.zeros(14), ESConfig(pop=7, scale=0.02, lr=1e-3), seed=0)
    for _ in range(4):
        evolution.step()
    mean = evolution.strategy.ask().individuals[0]
    assert (mean.operator, mean.history) == ("es", ())
    winner, fitness = choose_winner(evolution)
    assert winner.individuals[0].id == mean.id
    best, values, _ = best_finalists(evolution, 3)
    assert best.individuals[0].id == mean.id
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    assert values[0] == fitness
    if step is not None:  # four refinements of 20% each, one on the other
        assert 0.4 < float(winner.genomes[0].mean()) < 0.8


def test_children_of_the_refined_do_not_undo_what_rl_has_found() -> None:
    """With a step smaller than the mutation scale, the scale comes down to it; a larger one leaves it; so does keep."""
    founder = Individual(id=0, parents=(), operator="base", born=0, mutation_scale=0.02)
    for step, rule, expected in (
        (0.001, "step", 0.001),
        (0.5, "step", 0.02),
        (0.001, "keep", 0.02),
        (0.0, "step", 0.02),
    ):
        evolution = make_evolution(step=step, refined_scale=rule, accept="always", refine=1)
        evolution.strategy = RefinerAlone(torch.zeros(14))
        evolution.strategy.population = Population(torch.zeros(1, 14), (founder,))
        evolution.step()
        (refined,) = evolution.strategy.ask().individuals
        assert refined.operator == "ppo"
        assert refined.mutation_scale == pytest.approx(expected)


def test_the_worse_are_turned_away_unless_always_accepted() -> None:
    evolution = make_evolution(step=-0.5)
    metrics = evolution.step()
    assert metrics["ppo.accepted"] == 0
    assert metrics["ppo.gain"] < 0
    assert all(individual.operator != "ppo" for individual in evolution.strategy.ask().individuals)
    evolution = make_evolution(step=-0.5, accept="always")
    assert evolution.step()["ppo.accepted"] == 2


def test_the_refined_are_judged_on_their_parents_prompts_which_training_did_not_see() -> None:
    evolution = make_evolution()
    evolution.step()
    assert isinstance(evolution.evaluator, Hill)
    assert isinstance(evolution.refiner, Step)
    _, population, refined, validation = evolution.evaluator.seen
    training, key = evolution.refiner.calls[0]
    assert population == refined
    assert len(training) == 16
    assert not set(training) & set(population)
    assert all(prompt.startswith("train") for prompt in population + training)
    assert validation == [example.prompt for example in TASK.validation]
    assert [generation for generation, _ in key] == [1, 1]
    evolution.step()
    assert evolution.evaluator.seen[4] != population, "prompts change from generation to generation"


def test_few_prompts_come_up_several_times_in_a_rollout() -> None:
    evolution = make_evolution()
    evolution.task = replace(TASK, train=TASK.train[:1])
    evolution.step()
    assert isinstance(evolution.evaluator, Hill)
    assert isinstance(evolution.refiner, Step)
    assert evolution.refiner.calls[0][0] == ["train 0"] * 16
    assert evolution.evaluator.seen[1] == ["train 0"], "greedy completions of a prompt are all the same"


def test_the_test_split_is_never_seen_by_the_loop() -> None:
    evolution = make_evolution()
    for _ in range(3):
        evolution.step()
    choose_winner(evolution)
    assert isinstance(evolution.evaluator, Hill)
    assert not any(prompt.startswith("test") for seen in evolution.evaluator.seen for prompt in seen)


def test_the_winner_is_never_worse_than_the_base_on_validation() -> None:
    evolution = make_evolution(step=-0.9, accept="always")
    for _ in range(4):
        evolution.step()
    assert 0 in [individual.id for individual in finalists(evolution).individuals]
    _, fitness = choose_winner(evolution)
    assert fitness >= -math.sqrt(14)


def test_improvement_and_ids() -> None:
    evolution = make_evolution(step=0.1)
    fitness = [evolution.step()["fitness.best"] for _ in range(12)]
    assert fitness[-1] > 0.5 * fitness[0]
    ids = [individual.id for individual in evolution.strategy.ask().individuals]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("step", [None, 0.5])
def test_a_loop_taken_up_again_goes_on_as_if_it_had_never_stopped(step: float | None) -> None:
    whole = make_evolution(step)
    for _ in range(2):
        whole.step()
    resumed = make_evolution(step)
    resumed.load_state_dict(whole.state_dict())
    for _ in range(2):
        expected, found = whole.step(), resumed.step()
        assert found["time.loop"] > resumed.state_dict()["spent.time.evaluation"] > 0
        assert {k: v for k, v in expected.items() if "time" not in k} == {
            k: v for k, v in found.items() if "time" not in k
        }
    assert torch.equal(choose_winner(whole)[0].genomes, choose_winner(resumed)[0].genomes)


@pytest.mark.parametrize("strategy", ["ga", "es"])
def test_a_generation_without_a_score_selects_nobody(strategy: str) -> None:
    evolution = make_evolution()
    if strategy == "es":
        evolution.strategy = EvolutionStrategy(torch.zeros(14), ESConfig(pop=5), seed=0)

    class Silent(Hill):
        def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
            fitness = np.full(len(genomes), math.nan)
            rewards = np.full((len(genomes), len(examples)), math.nan)
            texts, ids = ([[each] * len(examples) for _ in fitness] for each in ("text", [1]))
            return Evaluation(fitness, rewards, texts, Cost(), 0, ids)

    scored, evolution.evaluator = evolution.evaluator, Silent()
    before = evolution.strategy.ask()
    measured = evolution.step()
    assert measured["failed"] == len(before) and measured["best.id"] is None and math.isnan(measured["fitness.best"])
    assert evolution.strategy.ask() is before
    nobody, fitness = choose_winner(evolution)
    assert math.isnan(fitness) and nobody.individuals[0].id == evolution.base().id
    evolution.evaluator = scored
    assert evolution.step()["generation"] == 2 and evolution.strategy.ask() is not before
    evolution.evaluator = Silent()  # also on the validation split
    winner, fitness = choose_winner(evolution)
    latest = {one.id: one.history[-1][1] for one in finalists(evolution).individuals if one.history}
    assert math.isnan(fitness) and latest[winner.individuals[0].id] == max(latest.values())


@pytest.mark.parametrize(("elites", "refine"), [(2, 1), (1, 3), (3, 3)])
def test_a_race_keeps_as_many_as_are_needed_and_its_seed_is_the_generations(
    elites: int, refine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[list[int]] = []
    for _ in range(2):
        seeds: list[int] = []

        def spy(*args: Any, seen: list[int] = seeds, **options: Any) -> Race:
            seen.append(options["seed"])
            found = race(*args, **options)
            stayed = ~np.isnan(found.evaluation.rewards).any(axis=1)
            assert stayed.sum() == max(elites, refine), "all differ on every prompt: nobody stays who is not needed"
            return found

        monkeypatch.setattr(loop, "race", spy)
        evolution = make_evolution(0.01, elites=elites, refine=refine, racing=0.4, racing_block=4)
        dropped = [evolution.step()["racing.dropped"] for _ in range(3)]
        assert dropped == [6 - max(elites, refine)] * 3
        runs.append(seeds)
    assert runs[0] == runs[1] and len(set(runs[0])) == 3


class Ledger(Hill):
    """A Hill that writes down each genome and prompt that it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []

    def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
        self.asked += [(genome_sha256(genome), example.prompt) for genome in genomes for example in examples]
        return super().evaluate(genomes, examples, drafts=drafts)


# Steps of 0 leave the refined as their parents were; a few prompts of many come up again now and then.
@pytest.mark.parametrize("racing", [None, 0.4])
@pytest.mark.parametrize("step", [None, 0.0, 0.01])
def test_nobody_is_asked_twice_and_only_the_living_are_remembered(step: float | None, racing: float | None) -> None:
    evolution, ledger = make_evolution(step, racing=racing, racing_block=4), Ledger()
    evolution.evaluator = memory = RememberingEvaluator(ledger)
    for _ in range(8):
        evolution.step()
        assert not evolution.hall_of_fame.empty
        living = evolution.strategy.ask().join(evolution.hall_of_fame.members).genomes
        assert set(memory.memory) <= {genome_sha256(genome) for genome in living}
    choose_winner(evolution)
    assert len(ledger.asked) == len(set(ledger.asked))
    assert len(ledger.asked) > 8 * 4 * 4, "children are asked"


def make_pbt(seed: int = 0) -> Evolution:
    evolution = make_evolution(step=0.2, refine=6, accept="always", refined_scale="keep")
    evolution.strategy = PopulationBasedTraining(torch.zeros(14), PBTConfig(pop=6, share=0.4), seed=seed)
    return evolution


def test_perturbed_hyperparameters_survive_a_resume_and_are_used() -> None:
    """Ray's restore put the original ones back (https://github.com/ray-project/ray/issues/62173)."""
    whole = make_pbt()
    begun = [individual.hyperparameters for individual in whole.strategy.ask().individuals]
    for _ in range(4):
        whole.step()
    perturbed = {individual.id: individual.hyperparameters for individual in whole.strategy.ask().individuals}
    assert not set(perturbed.values()) <= set(begun)
    state = whole.state_dict()
    rest = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    resumed = make_pbt()
    resumed.load_state_dict({**state, **json.loads(json.dumps(rest))})
    resumed.step()
    assert isinstance(resumed.refiner, Step)
    ((_, key),), (used,) = resumed.refiner.calls, resumed.refiner.hyperparameters
    assert {id: own for (_, id), own in zip(key, used, strict=True)} == perturbed
    whole.step()
    for one, other in zip(whole.strategy.ask().individuals, resumed.strategy.ask().individuals, strict=True):
        assert one == other and one.hyperparameters is not None


def test_under_pbt_everybody_is_refined_and_keeps_its_hyperparameters() -> None:
    evolution = make_pbt()
    before = evolution.strategy.ask()
    metrics = evolution.step()
    assert (metrics["ppo.refined"], metrics["ppo.accepted"]) == (6, 6)
    own = {individual.id: individual.hyperparameters for individual in before.individuals}
    after = evolution.strategy.ask().individuals
    refined = [individual for individual in after if individual.operator == "ppo"]
    assert len(refined) == 4 and [individual.operator for individual in after].count("copy") == 2
    assert all(individual.hyperparameters == own[individual.parents[0]] for individual in refined)


def test_costs_add_up_by_purpose_and_go_on_after_a_resume() -> None:
    evolution = make_evolution(rollout_prompts=4)
    lines = [evolution.step() for _ in range(2)]
    resumed = make_evolution(rollout_prompts=4)
    resumed.load_state_dict(evolution.state_dict())
    lines.append(resumed.step())
    for number, line in enumerate(lines, 1):
        # Six individuals, two refined and the best; once at the start, the base.
        assert line["tokens.evaluation"] == 9 * number + 1
        assert line["flops.evaluation"] == 7 * (3 * number + 1), "each is one call"
        assert (line["tokens.rollout"], line["flops.rollout"], line["time.rollout"]) == (
            5 * number, 50 * number, 0.25 * number,
        )  # fmt: skip
        assert (line["tokens.update"], line["flops.update"], line["time.update"]) == (
            10 * number, 300 * number, 0.5 * number,
        )  # fmt: skip
    assert lines[1]["time.loop"] == lines[0]["time.generation"] + lines[1]["time.generation"]
    assert lines[2]["time.loop"] == lines[1]["time.loop"] + lines[2]["time.generation"]
    for line in lines:
        assert 0 < line["time.evaluation"] < line["time.loop"]


def test_one_lineage_is_refined_on_and_on_unless_it_clearly_loses() -> None:
    evolution = make_evolution(0.05, refine=1, refine_whom="lineage", accept="always")
    refiner = evolution.refiner
    assert isinstance(refiner, Step)
    for _ in range(6):
        evolution.step()
    # Hill's rewards are the same on all prompts, so any gap is clear: who is refined is the best or the one before.
    parents = [key[0][1] for _, key in refiner.calls]
    followed = [parent == child[0] for parent, child in zip(parents[1:], refiner.children, strict=False)]
    assert any(followed)
    refiner.size = -5.0
    evolution.step()
    ruined = refiner.children[-1][0]
    evolution.step()
    assert refiner.calls[-1][1][0][1] != ruined


def test_every_rollout_of_a_refinement_has_prompts_of_its_own() -> None:
    evolution = make_evolution(0.1, refine=1, rollout_prompts=3, rl_steps=4)
    evolution.step()
    assert isinstance(evolution.refiner, Step)
    prompts, _ = evolution.refiner.calls[0]
    assert len(prompts) == len(set(prompts)) == 12


def test_a_lineage_that_failed_is_not_refined_again() -> None:
    evolution = make_evolution(0.1, refine=1, refine_whom="lineage", accept="always")
    evolution.step()
    population = evolution.strategy.ask()
    evaluation = Hill().evaluate(population.genomes, TASK.train[:8])
    head = max(range(len(population)), key=lambda row: (population.individuals[row].operator == "ppo", row))
    assert population.individuals[head].operator == "ppo"
    evaluation.rewards[head], evaluation.fitness[head] = np.nan, np.nan
    assert evolution._to_be_refined(population, evaluation) == [int(np.nanargmax(evaluation.fitness))]


@pytest.mark.parametrize(("won", "displaced"), [(6, False), (12, True)])
def test_a_lineage_gives_way_at_a_level_that_counts_its_rivals(won: int, displaced: bool) -> None:
    """By luck alone a row wins all of six prompts once in 64: the best of many does so too often to displace anyone."""
    evolution = make_evolution(0.1, refine=1, refine_whom="lineage", accept="always")
    evolution.step()
    population = evolution.strategy.ask()
    evaluation = Hill().evaluate(population.genomes, TASK.train[:16])
    head = max(range(len(population)), key=lambda row: (population.individuals[row].operator == "ppo", row))
    lucky = (head + 1) % len(population)
    evaluation.rewards[:] = 0.5
    evaluation.rewards[lucky, :won] = 1.0
    evaluation.fitness[:] = evaluation.rewards.mean(axis=1)
    assert evolution._to_be_refined(population, evaluation) == [lucky if displaced else head]
    pair = evaluation.rewards[[lucky, head]]
    assert losers(pair, keep=1, level=0.05, seed=0) == {1}, "of two the level itself would do"


def test_what_becomes_of_the_refined_is_counted() -> None:
    evolution = make_evolution(refine=3)
    first = evolution.step()
    # Two are elites; the third is chosen as a parent, or nobody's.
    assert first["ppo.kept"] == 2
    assert first["ppo.kept"] + first["ppo.selected"] + first["ppo.discarded"] == first["ppo.accepted"] == 3
    proposal = evolution.strategy.ask().individuals
    assert first["ppo.living"] == sum(one.operator == "ppo" for one in proposal) == 2
    assert isinstance(evolution.refiner, Step)
    gone = set(evolution.refiner.children[0]) - {one.id for one in proposal}
    assert first["ppo.selected"] == len(gone & {parent for one in proposal for parent in one.parents})
    # Nobody enters: what lives on is from before.
    evolution.refiner.size = -5.0
    second = evolution.step()
    assert [second[f"ppo.{name}"] for name in ("kept", "selected", "discarded")] == [0, 0, 0]
    assert second["ppo.living"] == sum(one.operator == "ppo" for one in evolution.strategy.ask().individuals) > 0


def validated(evolution: Evolution) -> list[str]:
    """The operators of those that met the validation prompts, by generation, the base's aside."""
    query = (
        "SELECT operator FROM fitness JOIN individuals ON fitness.individual = individuals.id "
        "WHERE stage = 'validation' AND individuals.id > 0 ORDER BY fitness.generation"
    )
    return [operator for (operator,) in evolution.lineage.query(query)]


def follow(step: float, generations: int, **options: Any) -> Evolution:
    """A loop around one lineage with its average."""
    evolution = make_evolution(step, refine=1, refine_whom="lineage", accept="always", **options)
    evolution.strategy = GeneticAlgorithm(torch.zeros(14), LAYOUT, GAConfig(pop=6, elites=2, average=0.4), seed=0)
    for _ in range(generations):
        evolution.step()
    return evolution


def test_an_average_is_validated_unless_it_clearly_lags() -> None:
    assert validated(follow(0.3, 4)) == ["ppo"] * 4
    # Two prompts tell nothing apart.
    assert validated(follow(0.3, 4, eval_prompts=2)) == ["ppo", "average", "average", "average"]


def test_where_rewards_vary_the_average_wins_unless_another_is_clearly_better() -> None:
    evolution = follow(0.3, 3, remember=False)
    candidates = finalists(evolution)
    average = newest(candidates, "average")
    assert average is not None
    assert candidates.individuals[average].id in {one.id for one in evolution.strategy.ask().individuals}
    assert candidates.individuals[average].history == (), "the newest, that no generation has measured"
    other = next(row for row in range(1, len(candidates)) if row != average)
    whole = Hill().evaluate(candidates.genomes, TASK.validation)

    def first(gaps: list[float], base: float = -1.0) -> int:
        rewards = np.full_like(whole.rewards, -2.0)
        rewards[0], rewards[average], rewards[other] = base, 0.0, gaps
        return ranked(evolution, candidates, replace(whole, rewards=rewards, fitness=rewards.mean(axis=1)))[0]

    lucky, better = [1.0, -0.9] * 5, [0.2] * 10
    assert (first(lucky), first(better), first(lucky, base=0.01)) == (average, other, other)
    evolution.config = evolution.config.model_copy(update={"remember": True})
    assert first(lucky) == other


class Ends(Hill):
    """A hill on whose top an individual loses `miss` on the first prompt, or fails."""

    def __init__(self, miss: float) -> None:
        super().__init__()
        self.miss = miss

    def evaluate(self, genomes: Tensor, examples: Sequence[Example], *, drafts: Drafts | None = None) -> Evaluation:
        found = super().evaluate(genomes, examples, drafts=drafts)
        rewards = found.rewards.copy()
        rewards[np.isclose(genomes[:, 0].numpy(), 1), 0] -= self.miss
        return replace(found, rewards=rewards, fitness=rewards.mean(axis=1))


def last_ones(evaluator: Evaluator, levels: Sequence[float], soup: int) -> Evolution:
    """A run that has ended with the base and finalists whose weights are all alike, one level each."""
    evolution = make_evolution(soup=soup)
    evolution.step()
    evolution.evaluator = evaluator
    people = [
        Individual(id=number, parents=(0,), operator="ppo", born=1, mutation_scale=0.02)
        for number in range(100, 100 + len(levels))
    ]
    genomes = torch.tensor(levels)[:, None].expand(-1, 14)
    base = evolution.hall_of_fame.members.select([0])
    candidates = base.join(Population(genomes, tuple(people)))
    others = {individual.id for individual in evolution.strategy.ask().individuals}
    known = others | {individual.id for individual in candidates.individuals}
    evolution.hall_of_fame = SimpleNamespace(members=candidates, ids=known)  # type: ignore[assignment]
    return evolution


def test_the_average_of_the_finalists_wins_where_it_is_no_worse() -> None:
    evolution = last_ones(Hill(), [0.9, 1.1, 0.2, 0.5], soup=2)
    known = evolution.strategy.new_id()
    best, fitness, _ = best_finalists(evolution, 3)
    assert [one.operator for one in best.individuals] == ["soup", "ppo", "ppo"]
    made = best.individuals[0]
    assert made.id > known and made.parents in [(100, 101), (101, 100)] and made.history == ()
    assert torch.allclose(best.genomes[0], torch.ones(14)) and fitness[0] == pytest.approx(0, abs=1e-6)
    query = "SELECT individual, fitness FROM fitness WHERE stage = 'soup'"
    assert evolution.lineage.query(query) == [(made.id, fitness[0])]
    assert evolution.lineage.query(f"SELECT generation FROM individuals WHERE id = {made.id}") == [(2,)]
    evolution.lineage.rewind(1)
    assert not evolution.lineage.query(f"SELECT id FROM individuals WHERE id = {made.id}")


@pytest.mark.parametrize(
    ("evaluator", "levels", "soup", "operator", "measured"),
    [
        (Hill(), [0.9, 0.1], 2, "ppo", 2),  # worse than the best on every prompt alike
        (Hill(), [0.9, 1.1], 0, "ppo", 1),  # no soup is asked for
        (Hill(), [0.9, -0.5], 2, "ppo", 1),  # one of the two is worse than the base
        (Hill(), [-0.5, -0.9], 2, "base", 1),
        (Ends(miss=5.0), [0.9, 1.1], 2, "soup", 2),  # worse on one prompt of ten: not more than chance
        (Ends(miss=math.nan), [0.9, 1.1], 2, "ppo", 2),  # the reward could not score it
    ],
)
def test_the_average_of_the_finalists_gives_way(
    evaluator: Hill, levels: list[float], soup: int, operator: str, measured: int
) -> None:
    evolution = last_ones(evaluator, levels, soup)
    evaluator.seen.clear()
    winner, _ = choose_winner(evolution)
    assert winner.individuals[0].operator == operator
    assert len(evaluator.seen) == measured


def test_where_rewards_vary_nobody_is_averaged() -> None:
    evolution = last_ones(Hill(), [0.9, 1.1], soup=2)
    evolution.config = evolution.config.model_copy(update={"remember": False})
    assert choose_winner(evolution)[0].individuals[0].operator == "ppo"
