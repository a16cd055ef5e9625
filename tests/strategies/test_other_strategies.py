"""Every strategy behind ask and tell: it climbs, leaves the failed, resumes exactly; and each one's own formulas."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import evolora
from evolora.errors import InputError
from evolora.evolution.voting import plurality
from evolora.files import read_state, write_state
from evolora.models.genome import AdaptedModule, GenomeLayout
from evolora.population.population import Population
from evolora.runs.options import make_options
from evolora.strategies import (
    Eggroll,
    EggrollConfig,
    ESConfig,
    EvolutionStrategy,
    GAConfig,
    GeneticAlgorithm,
    Islands,
    PerturbationConfig,
    RandomPerturbation,
    RefinerAlone,
    SepCMAES,
    SepCMAESConfig,
    Strategy,
)
from evolora.strategies.es import centred_ranks

Floats = npt.NDArray[np.float64]


def small_layout() -> GenomeLayout:
    modules, offset = [], 0
    for index in range(3):
        modules.append(AdaptedModule(f"m{index}", f"a{index}", f"b{index}", 5, 4, 2, 2.0, offset, offset + 10))
        offset += 18
    return GenomeLayout(tuple(modules))


LAYOUT = small_layout()
LENGTH = LAYOUT.genome_length
FOUNDER = torch.randn(LENGTH, generator=torch.Generator().manual_seed(1))
TARGET = FOUNDER + 0.05 * torch.randn(LENGTH, generator=torch.Generator().manual_seed(2))

Maker = Callable[..., Strategy]


def ga(seed: int = 0, pop: int = 9) -> Strategy:
    return GeneticAlgorithm(FOUNDER, LAYOUT, GAConfig(pop=pop, mutation_adapt=0.2), seed=seed)


def islands(seed: int = 0, pop: int = 18) -> Strategy:
    return Islands(FOUNDER, LAYOUT, GAConfig(pop=pop, islands=2, mutation_adapt=0.2), seed=seed)


def es(seed: int = 0, pop: int = 9) -> EvolutionStrategy:
    return EvolutionStrategy(FOUNDER, ESConfig(pop=pop, scale=0.02, lr=1e-4), seed=seed)


def eggroll(seed: int = 0, pop: int = 9) -> Eggroll:
    return Eggroll(FOUNDER, LAYOUT, EggrollConfig(pop=pop, scale=0.02, lr=1e-4), seed=seed)


def sep_cmaes(seed: int = 0, pop: int = 9) -> SepCMAES:
    return SepCMAES(FOUNDER, SepCMAESConfig(pop=pop), seed=seed)


def random(seed: int = 0, pop: int = 9) -> RandomPerturbation:
    return RandomPerturbation(FOUNDER, PerturbationConfig(pop=pop), seed=seed)


def none(seed: int = 0, pop: int = 1) -> Strategy:
    return RefinerAlone(FOUNDER)


# How much of the squared distance to the target is left, at most, by their best guess after 60 generations. Random
# perturbation cannot leave the base's neighbourhood.
CLIMBERS: dict[Maker, tuple[float, float]] = {
    ga: (0.5, 0.8),
    islands: (0.4, 0.8),
    es: (0.3, 0.6),
    eggroll: (0.3, 0.6),
    sep_cmaes: (0.3, 0.8),
    random: (0.95, 0.98),
}
ALL: list[Maker] = [*CLIMBERS, none]


def bowl(genomes: torch.Tensor) -> Floats:
    """Smooth, its maximum 0 at the target, -1 at the founder."""
    distances = (genomes - TARGET).double().square().sum(1)
    return -(distances / (FOUNDER - TARGET).double().square().sum()).numpy()


def play(strategy: Strategy, generations: int, *, noise: float = 0.0, seed: int = 0) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(generations):
        population = strategy.ask()
        strategy.tell(population, bowl(population.genomes) + noise * generator.standard_normal(len(population)))


def refined(population: Population, row: int, genome: torch.Tensor, id: int, history: tuple[float, ...]) -> Population:
    """The population with one individual refined in generation 1, as the loop hands it back."""
    genomes, individuals = population.genomes.clone(), list(population.individuals)
    old = individuals[row]
    told = tuple((1, fitness) for fitness in history)
    genomes[row] = genome
    individuals[row] = dataclasses.replace(old, id=id, parents=(old.id,), operator="ppo", history=told)
    return Population(genomes, tuple(individuals))


@pytest.mark.parametrize("make", CLIMBERS)
def test_it_climbs_a_smooth_bowl(make: Maker) -> None:
    for seed in range(3):
        strategy = make(seed)
        play(strategy, 60)
        assert -bowl(strategy.ask().genomes[:1])[0] < CLIMBERS[make][0]


@pytest.mark.parametrize("make", CLIMBERS)
def test_it_climbs_a_noisy_bowl(make: Maker) -> None:
    left = []
    for seed in range(5):
        strategy = make(seed)
        play(strategy, 60, noise=0.1, seed=seed)
        left.append(-bowl(strategy.ask().genomes[:1])[0])
    assert np.mean(left) < CLIMBERS[make][1]


@pytest.mark.parametrize("make", CLIMBERS)
@settings(max_examples=10, deadline=None)
@given(failed=st.sets(st.integers(0, 8), max_size=8), seed=st.integers(0, 5))
def test_the_failed_leave_no_trace(make: Maker, failed: set[int], seed: int) -> None:
    """Whatever the genome of one that failed was, what comes next is the same, and nobody descends from it."""
    nexts = []
    for there in (0.0, 1e3):
        strategy = make(seed)
        population = strategy.ask()
        genomes = population.genomes.clone()
        fitness = bowl(genomes)
        rows = sorted(row for row in failed if row)
        fitness[rows] = math.nan
        genomes[rows] += there
        strategy.tell(Population(genomes, population.individuals), fitness)
        nexts.append(strategy.ask())
        lost = {population.individuals[row].id for row in rows}
        assert not any(lost & {each.id, *each.parents} for each in nexts[-1].individuals)
    assert torch.equal(nexts[0].genomes, nexts[1].genomes)
    assert nexts[0].individuals == nexts[1].individuals


@pytest.mark.parametrize("make", CLIMBERS)
def test_all_failed_is_an_error(make: Maker) -> None:
    strategy = make()
    with pytest.raises(ValueError, match="NaN"):
        strategy.tell(strategy.ask(), np.full(len(strategy.ask()), math.nan))


@pytest.mark.parametrize("make", CLIMBERS)
def test_it_starts_from_the_base(make: Maker) -> None:
    population = make().ask()
    assert population.individuals[0].id == 0
    assert population.individuals[0].operator == "base"
    assert torch.equal(population.genomes[0], FOUNDER)
    assert len({genome.numpy().tobytes() for genome in population.genomes}) == len(population)


@pytest.mark.parametrize("make", ALL)
def test_an_id_is_one_genome(make: Maker) -> None:
    strategy, known = make(), dict[int, torch.Tensor]()
    for generation in range(6):
        population = strategy.ask()
        again = strategy.ask()
        assert torch.equal(population.genomes, again.genomes)
        assert population.individuals == again.individuals
        ids = [each.id for each in population.individuals]
        assert len(set(ids)) == len(ids)
        assert strategy.new_id() not in {*known, *ids}
        for id, genome in zip(ids, population.genomes, strict=True):
            assert torch.equal(known.setdefault(id, genome.clone()), genome)
        fitness = bowl(population.genomes)
        strategy.tell(population, fitness if generation != 3 else np.zeros_like(fitness))


@pytest.mark.parametrize("make", ALL)
def test_a_resumed_search_is_the_same(make: Maker, tmp_path: Path) -> None:
    whole = make()
    play(whole, 3)
    write_state(tmp_path, whole.state_dict())
    resumed = make()
    resumed.load_state_dict(read_state(tmp_path))
    for _ in range(3):
        assert torch.equal(resumed.ask().genomes, whole.ask().genomes)
        assert resumed.ask().individuals == whole.ask().individuals
        assert resumed.metrics() == whole.metrics()
        play(whole, 1)
        play(resumed, 1)


@pytest.mark.parametrize("make", [es, eggroll, sep_cmaes])
def test_equal_fitness_moves_nothing(make: Maker) -> None:
    strategy = make()
    strategy.tell(strategy.ask(), np.zeros(len(strategy.ask())))
    after = strategy.ask()
    assert after.individuals[0].id == 0
    assert torch.equal(after.genomes[0], FOUNDER)
    assert not torch.equal(after.genomes[1], make().ask().genomes[1])  # other noise


@pytest.mark.parametrize("make", [es, eggroll, sep_cmaes])
def test_the_mean_is_a_finalist(make: Maker) -> None:
    assert make().favourites() == (0,)


@pytest.mark.parametrize("make", [es, eggroll])
@pytest.mark.parametrize("pop", [3, 4, 8, 9])
def test_antithetic_noise_sums_to_zero(make: Maker, pop: int) -> None:
    genomes = make(pop=pop).ask().genomes.double()
    assert len(genomes) == (pop if pop % 2 else pop - 1)
    noise = genomes[1:] - FOUNDER.double()
    assert (noise[0::2] + noise[1::2]).abs().max() < 1e-6
    assert 0.01 < noise.std() < 0.03


def test_the_mean_follows_the_formula() -> None:
    """In float64, from the genomes alone, over three generations."""
    strategy = es()
    mean, velocity = FOUNDER.double(), torch.zeros(LENGTH, dtype=torch.float64)
    for seed in range(3):
        population = strategy.ask()
        fitness = np.random.default_rng(seed).permutation(9).astype(float)
        utilities = np.argsort(np.argsort(fitness[1:])) / 7 - 0.5
        noise = (population.genomes[1:].double() - population.genomes[0].double()) / 0.02
        velocity = 0.9 * velocity + torch.from_numpy(utilities) @ noise / (8 * 0.02)
        mean = mean + 1e-4 * velocity
        strategy.tell(population, fitness)
        torch.testing.assert_close(strategy.ask().genomes[0].double(), mean, atol=1e-6, rtol=0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6))
def test_centred_ranks_are_centred_and_keep_the_order(values: list[tuple[int, int]]) -> None:
    fitness = np.array(values, dtype=float)
    ranks = centred_ranks(fitness)
    assert abs(ranks.sum()) < 1e-9
    assert np.abs(ranks).max() <= 0.5
    flat, places = fitness.ravel(), ranks.ravel()
    assert (np.sign(flat[:, None] - flat) == np.sign(np.round(places[:, None] - places, 12))).all()


@pytest.mark.parametrize("make", [es, eggroll])
def test_a_refined_individual_becomes_the_mean_if_it_is_fit_enough(make: Maker) -> None:
    for fitness_of_refined, becomes in ((0.9, True), (0.5, True), (0.4, False)):
        strategy = make()
        proposed = strategy.ask()
        fitness = np.full(9, 0.5)
        fitness[4] = fitness_of_refined
        id = strategy.new_id()
        population = refined(proposed, 4, TARGET, id, (0.5, fitness_of_refined))
        strategy.tell(population, fitness)
        after = strategy.ask()
        # The pairs were equally fit before the refinement: no step besides.
        assert torch.equal(after.genomes[0], TARGET if becomes else FOUNDER)
        assert after.individuals[0].id == (id if becomes else 0)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_eggroll_noise_has_the_rank_and_the_variance(rank: int) -> None:
    modules = (AdaptedModule("m", "a", "b", 30, 40, 8, 2.0, 0, 240),)
    layout = GenomeLayout(modules)
    strategy = Eggroll(torch.zeros(layout.genome_length), layout, EggrollConfig(pop=3, rank=rank), seed=0)
    draws = []
    for generation in range(200):
        strategy.generation = generation
        draws.append(strategy.noise(0))
        for _, *factors in layout.factors(draws[-1][None]):
            assert [int(torch.linalg.matrix_rank(factor[0])) for factor in factors] == [rank, rank]
    noise = torch.stack(draws)
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.square().mean()) == pytest.approx(1, abs=0.05)


def test_eggroll_updates_have_a_higher_rank_than_its_noise() -> None:
    modules = (AdaptedModule("m", "a", "b", 30, 40, 8, 2.0, 0, 240),)
    layout = GenomeLayout(modules)
    strategy = Eggroll(torch.zeros(layout.genome_length), layout, EggrollConfig(pop=9), seed=0)
    gradient = strategy._gradient(np.array([[0.5, -0.5], [0.4, -0.1], [0.3, 0.0], [0.2, 0.1]]))
    for _, *factors in layout.factors(gradient[None]):
        assert [int(torch.linalg.matrix_rank(factor[0])) for factor in factors] == [4, 4]


def test_a_long_injected_step_is_shortened_and_a_short_one_is_not() -> None:
    strategy = sep_cmaes()
    limit = math.sqrt(LENGTH) + 2 * LENGTH / (LENGTH + 2)
    direction = np.ones(LENGTH) / math.sqrt(LENGTH)
    mean = strategy.optimizer.mean.copy()
    for length, expected in ((1e6, limit), (0.5, 0.5)):
        found = strategy._counted_at(mean + 0.02 * length * direction, True, -1.0)
        np.testing.assert_allclose(np.linalg.norm(found - mean) / 0.02, expected, rtol=1e-6)


@pytest.mark.parametrize("row", [0, 4])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_sep_cmaes_moves_towards_a_refined_individual(row: int, rate: float) -> None:
    strategy = SepCMAES(FOUNDER, SepCMAESConfig(pop=9, rate=rate), seed=0)
    step = TARGET - FOUNDER
    fitness = np.arange(9) / 10
    fitness[row] = 2.0
    population = refined(strategy.ask(), row, TARGET, strategy.new_id(), (0.1, 2.0))
    strategy.tell(population, fitness)
    moved = strategy.ask().genomes[0] - FOUNDER
    assert float(moved @ step / step.square().sum()) > 0.2 * rate
    assert strategy.optimizer._sigma < 0.03


def test_sep_cmaes_at_the_size_of_a_lora_genome() -> None:
    strategy = SepCMAES(torch.zeros(70_000), SepCMAESConfig(pop=8), seed=0)
    for _ in range(3):
        population = strategy.ask()
        strategy.tell(population, -population.genomes.sub(0.05).square().mean(1).double().numpy())
    assert torch.isfinite(strategy.ask().genomes).all()
    assert 0 < float(strategy.ask().genomes[0].std()) < 0.02


def test_without_the_package_the_option_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(InputError, match=r"^strategy=sep-cmaes: .*pip install 'evolora\[cmaes\]'$"):
        evolora.evolve(task="arithmetic", strategy="sep-cmaes", out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_random_perturbation_keeps_the_best_by_their_mean() -> None:
    strategy = RandomPerturbation(FOUNDER, PerturbationConfig(pop=4, elites=2), seed=0)
    strategy.tell(strategy.ask(), np.array([0.0, 0.9, 0.6, 0.1]))
    assert [each.id for each in strategy.ask().individuals] == [1, 2, 4, 5]
    # 1 has the mean 0.5, 2 the mean 0.6, 4 has met one batch only.
    strategy.tell(strategy.ask(), np.array([0.1, 0.6, 0.55, 0.2]))
    assert [each.id for each in strategy.ask().individuals] == [2, 4, 6, 7]
    strategy.tell(strategy.ask(), np.array([math.nan, 0.1, 0.2, 0.0]))
    assert [each.id for each in strategy.ask().individuals][:2] == [4, 6]
    fresh = strategy.ask().genomes[2:] - FOUNDER
    assert float(fresh.std()) == pytest.approx(0.02, rel=0.2)


def test_votes() -> None:
    assert plurality([["a"], ["b"], ["c"]]) == [0]  # all equal: the best voter
    assert plurality([["a"], ["b"], ["c"], ["c"], ["b"]]) == [1]  # equally frequent: the better voter's
    assert plurality([["a", "x"], ["b", "y"], ["b ", "y"]]) == [1, 1]  # prompt by prompt, blanks at the ends aside
    with pytest.raises(ValueError, match="voter"):
        plurality([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "es", "pop": 2, "elites": 1}, "pop=2 with strategy=es: expected at least 3"),
        ({"strategy": "sep-cmaes", "pop": 2, "elites": 1}, "pop=2 with strategy=sep-cmaes"),
        ({"vote": 5}, "vote=5: expected at most finalists=4"),
        ({"strategy": "eggroll", "rank": 0}, "rank=0"),
        ({"strategy": "es", "strategy.lr": 0.0}, "strategy.lr=0.0"),
        ({"strategy": "sep-cmaes", "rate": 1.5}, "rate=1.5"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as refusal:
        make_options(options)
    assert str(refusal.value).startswith(message)


def figures(folder: Path) -> tuple[list[dict[str, object]], dict[str, object], bytes]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    own = ("time.", "run", "check")
    metrics = [{name: value for name, value in line.items() if not name.startswith(own)} for line in lines]
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("seconds", "time", "run", "name", "sealed", "sha256"):
        del summary[name]
    return metrics, summary, (folder / "best" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("strategy", ["es", "eggroll", "sep-cmaes", "random"])
def test_a_run_and_its_resumption(strategy: str, tmp_path: Path) -> None:
    options = {
        "task": "arithmetic", "strategy": strategy, "pop": 5, "eval_prompts": 4, "validation_prompts": 4,
        "rollout_prompts": 4, "rl_steps": 1, "max_new_tokens": 3, "lora_r": 2, "threads": 1, "vote": 3, "save_every": 1,
    }  # fmt: skip
    whole = evolora.evolve(gens=3, out=str(tmp_path / "whole"), **options)
    evolora.evolve(gens=2, out=str(tmp_path / "parts"), **options)
    parts = evolora.resume(tmp_path / "parts", options={"gens": 3})
    assert figures(parts.folder) == figures(whole.folder)
    vote = whole.summary["vote"]
    assert vote["voters"][0] == whole.summary["winner"]["id"]
    assert len(vote["voters"]) == 3
    assert vote["test"]["ci95"][0] <= vote["test"]["reward"] <= vote["test"]["ci95"][1]
    tokens = whole.history[-1]["tokens.evaluation"]
    assert whole.summary["tokens"]["evaluation"] > tokens
