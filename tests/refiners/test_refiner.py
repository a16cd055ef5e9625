"""Refinement on the individuals' own rows: what it moves, what it must not move, and that it improves."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evolora.engine.base import Completions, Decoding, Scoring, differentiable_scores
from evolora.engine.choose import choose_engine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.text import Text
from evolora.errors import InputError
from evolora.models.base import BaseModel, load_base
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout
from evolora.population.evaluation import LocalEvaluator
from evolora.population.population import Hyperparameters, Individual
from evolora.refiners import (
    GRPOConfig,
    GRPORefiner,
    PolicyGradientRefiner,
    PPOConfig,
    PPORefiner,
    RLOOConfig,
    RLOORefiner,
)
from evolora.refiners.advantages import equal_groups, group_signal, unequal_groups
from evolora.refiners.critic import Critic
from evolora.refiners.kl_control import adapted_kl_weight
from evolora.refiners.optimiser import RowAdam
from evolora.refiners.policy_gradient import Minibatch
from evolora.refiners.rollouts import Share
from evolora.refiners.rollouts import statistics as statistics_of
from evolora.rewards import RewardScorer
from evolora.tasks.task import Example, load_task

TRAIN = load_task(task="translate").train
EXAMPLES = list(TRAIN[:12])
KINDS = {"ppo": (PPORefiner, PPOConfig), "grpo": (GRPORefiner, GRPOConfig), "rloo": (RLOORefiner, RLOOConfig)}
kinds = pytest.mark.parametrize("kind", KINDS)


def short(completions: Sequence[str], **_: object) -> list[float]:
    """A reward that the untouched base does not maximise, easily learned: few characters."""
    return [1 / (1 + len(text.strip())) for text in completions]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("tiny-gpt2")


@pytest.fixture(scope="module")
def founder(base: BaseModel) -> tuple[GenomeLayout, Tensor]:
    return lora_layout(base.model, lora_config(base.model), seed=0)


def make(
    kind: str,
    base: BaseModel,
    layout: GenomeLayout,
    *,
    dropout: float = 0.0,
    reward: object = short,
    seed: int = 0,
    **options: Any,
) -> PolicyGradientRefiner[Any]:
    refiner, config = KINDS[kind]
    if kind != "ppo":
        options = {"rollout_samples": 3, **options}
    return refiner(
        choose_engine(base.model, layout).engine,
        Text.of(base.model, base.tokenizer),
        RewardScorer(reward),  # type: ignore[arg-type]
        config(**{"max_new_tokens": 8, **options}),
        seed=seed,
        dropout=dropout,
    )


def make_refiner(base: BaseModel, layout: GenomeLayout, **options: Any) -> PPORefiner:
    refiner = make("ppo", base, layout, **options)
    assert isinstance(refiner, PPORefiner)
    return refiner


def population(founder: tuple[GenomeLayout, Tensor], count: int) -> Tensor:
    layout, genome = founder
    noise = torch.randn(count, layout.genome_length, generator=torch.Generator().manual_seed(3))
    return genome + 0.005 * noise


@kinds
def test_refining_moves_the_elites_nobody_else_and_never_the_base(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, _ = founder
    genomes = population(founder, 4)
    before = genomes.clone()
    weights = {name: value.clone() for name, value in base.model.state_dict().items()}
    refiner = make(kind, base, layout, dropout=0.05)
    refined = refiner.refine(genomes[[1, 3]], EXAMPLES, key=[(1, 1), (1, 3)])
    assert torch.equal(genomes, before), "the population itself is untouched"
    for row, parent in enumerate((1, 3)):
        moved = {
            module.name: bool((a[row] != old_a[parent]).any() and (b[row] != old_b[parent]).any())
            for (module, a, b), (_, old_a, old_b) in zip(
                layout.factors(refined.genomes), layout.factors(before), strict=True
            )
        }
        assert all(moved.values()), f"A and B of every adapted layer move: {moved}"
    assert all(torch.equal(weights[name], value) for name, value in base.model.state_dict().items())
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert not refined.genomes.requires_grad


@kinds
def test_elites_refined_together_come_out_as_alone(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    """Rows share a batch and nothing else. Not to the bit: products of other shapes round otherwise, and Adam's first
    step divides by the gradient's own size."""
    layout, _ = founder
    genomes = population(founder, 3)
    keys = [(1, 5), (1, 6), (1, 7)]
    together = make(kind, base, layout, lr=1e-4, rl_steps=1).refine(genomes, EXAMPLES, key=keys)
    for row in range(3):
        alone = make(kind, base, layout, lr=1e-4, rl_steps=1).refine(
            genomes[row : row + 1], EXAMPLES, key=keys[row : row + 1]
        )
        moved = (together.genomes[row] - genomes[row]).norm()
        apart = (together.genomes[row] - alone.genomes[0]).norm()
        assert apart < 0.02 * moved
        for name in ("reward", "kl", "length", "entropy"):
            assert alone.stats[0][name] == pytest.approx(together.stats[row][name], abs=1e-4)


def test_refining_is_repeatable_and_keyed(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    layout, genome = founder

    def refine(generation: int = 1, individual: int = 0, seed: int = 0) -> Tensor:
        refiner = make_refiner(base, layout, dropout=0.05, seed=seed)
        return refiner.refine(genome[None], EXAMPLES, key=[(generation, individual)]).genomes

    state = torch.random.get_rng_state()
    first = refine()
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    torch.rand(7)
    assert torch.equal(first, refine())
    for other in (refine(generation=2), refine(individual=1), refine(seed=1)):
        assert not torch.equal(first, other)


def test_each_step_that_is_asked_for_has_a_part_of_the_prompts(
    base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, genome = founder
    asked: list[list[str]] = []

    def reward(completions: list[str], prompts: list[str]) -> list[float]:
        asked.append(prompts)
        return [float(len(text)) for text in completions]

    prompts = [example.prompt for example in TRAIN[:6]]
    refiner = make_refiner(base, layout, reward=reward, rl_steps=2)
    refiner.refine(genome[None], list(TRAIN[:6]), key=[(1, 0)], steps=3)
    assert asked == [prompts[:2], prompts[2:4], prompts[4:]]
    asked.clear()
    refiner.refine(genome[None], list(TRAIN[:6]), key=[(1, 0)])
    assert asked == [prompts, prompts]


@kinds
def test_refining_improves_greedy_fitness(kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    layout, genome = founder
    refiner = make(kind, base, layout, rl_steps=8, target_kl=None)
    evaluator = LocalEvaluator(refiner.engine, refiner.writer.text, refiner.scorer, max_new_tokens=8)
    refined = refiner.refine(genome[None], list(TRAIN[: 48 // refiner.config.rollout_samples]), key=[(1, 0)])
    held_out = list(TRAIN[48:80])
    before, after = evaluator.evaluate(torch.stack([genome, refined.genomes[0]]), held_out).fitness
    assert after > 1.3 * before


def test_a_tiny_target_kl_stops_the_updates(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    layout, genome = founder
    free = make_refiner(base, layout, rl_steps=1, epochs=6, target_kl=None, lr=3e-3).refine(
        genome[None], EXAMPLES, key=[(1, 0)]
    )
    held = make_refiner(base, layout, rl_steps=1, epochs=6, target_kl=1e-5, lr=3e-3).refine(
        genome[None], EXAMPLES, key=[(1, 0)]
    )
    assert (free.stats[0]["updates"], free.stats[0]["stopped"]) == (6, 0)
    assert held.stats[0]["updates"] < 6
    assert held.stats[0]["stopped"] == 1
    assert (held.genomes - genome).norm() < (free.genomes - genome).norm()


@kinds
def test_the_kl_weight_holds_the_policy_near_the_base(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, genome = founder

    def kl(weight: float) -> float:
        refiner = make(kind, base, layout, kl_weight=weight, rl_steps=10, target_kl=None, lr=2e-3)
        examples = list(TRAIN[: 32 // refiner.config.rollout_samples])
        return refiner.refine(genome[None], examples, key=[(1, 0)]).stats[0]["kl_k3"]

    assert kl(1.0) < 0.5 * kl(1e-6)


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_ppo_is_held_by_its_kl_wherever_it_stands(
    place: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, genome = founder

    def kl(weight: float) -> float:
        refiner = make_refiner(base, layout, kl_place=place, kl_weight=weight, rl_steps=10, target_kl=None, lr=2e-3)
        return refiner.refine(genome[None], list(TRAIN[:32]), key=[(1, 0)]).stats[0]["kl_k3"]

    assert kl(1.0) < 0.5 * kl(1e-6)


def test_a_kl_in_the_loss_is_no_credit(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    layout, genome = founder

    def credit(**options: Any) -> Tensor:
        refiner = make_refiner(base, layout, **options)
        refiner.begin([{}])
        rollout = refiner.collect(torch.randn_like(genome)[None] * 0.02, EXAMPLES, [(1, 0, 0)])
        return refiner.credit(rollout)[0]

    torch.manual_seed(0)
    without = credit(kl_weight=0.0)
    torch.manual_seed(0)
    assert torch.equal(credit(kl_weight=0.5, kl_place="loss"), without)
    torch.manual_seed(0)
    assert not torch.allclose(credit(kl_weight=0.5, kl_place="reward"), without)


def test_the_reference_is_the_genome_that_it_is_told(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    layout, genome = founder
    other = genome + 0.05 * torch.randn(genome.shape, generator=torch.Generator().manual_seed(0))
    refiner = make_refiner(base, layout, kl_weight=0.1)
    off = []
    for told in (None, other):
        if told is not None:
            refiner.keep_to(told)
        rollout = refiner.collect(torch.stack([genome, other]), EXAMPLES, [(1, 0, 0), (1, 1, 0)])
        gaps = (rollout.log_probs - rollout.reference_log_probs).abs() * rollout.mask
        off.append(gaps.amax((1, 2)) > 1e-3)
    assert [each.tolist() for each in off] == [[False, True], [True, False]]


@kinds
def test_without_a_penalty_the_reference_is_not_asked(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, genome = founder
    without, tiny = (make(kind, base, layout, kl_weight=weight, rl_steps=2) for weight in (0.0, 1e-12))
    examples = list(TRAIN[: 32 // without.config.rollout_samples])
    free, held = (refiner.refine(genome[None], examples, key=[(1, 0)]) for refiner in (without, tiny))
    assert held.stats[0].keys() - free.stats[0].keys() == {"kl", "kl_k3"}
    torch.testing.assert_close(free.genomes, held.genomes, atol=1e-5, rtol=0)


def test_equal_rewards_teach_nothing_but_the_kl(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    layout, genome = founder
    refiner = make_refiner(base, layout, reward=lambda completions: [1.0] * len(completions), kl_weight=0.0, rl_steps=1)
    refiner.critic.shared[-1] = 1.0  # a critic that knows the answer leaves no advantage
    refined = refiner.refine(genome[None], EXAMPLES, key=[(1, 0)])
    assert refined.stats[0]["grad_norm"] < 1e-3


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_groups_of_equal_rewards_teach_nothing_and_are_counted(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, genome = founder

    def refine(reward: object) -> dict[str, float]:
        refiner = make(kind, base, layout, reward=reward, kl_weight=0.0, rl_steps=1, rollout_samples=2)
        return refiner.refine(genome[None], EXAMPLES, key=[(1, 0)]).stats[0]

    nothing = refine(lambda completions: [0.1] * len(completions))
    assert (nothing["equal_groups"], nothing["grad_norm"]) == (1, pytest.approx(0, abs=1e-4))
    # Of twelve prompts every third has a better and a worse completion.
    some = refine(lambda completions: [float(row % 6 == 0) for row in range(len(completions))])
    assert some["equal_groups"] == pytest.approx(2 / 3)
    assert some["grad_norm"] > 0.01


def worthless(completions: Sequence[str], **_: object) -> list[float]:
    return [0.0] * len(completions)


def tells_some_apart(completions: Sequence[str], prompts: Sequence[str], **_: object) -> list[float]:
    """Of half of the prompts all completions earn the same, whatever they are."""
    earned = short(completions)
    return [reward if len(prompt) % 2 else 0.5 for reward, prompt in zip(earned, prompts, strict=True)]


@kinds
def test_groups_of_equal_rewards_are_left_out_of_updates(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    """What is learned is what the other prompts alone teach, and only they are paid for."""
    layout, genome = founder
    assert 0 < sum(len(example.prompt) % 2 for example in EXAMPLES) < len(EXAMPLES)
    options = {"rl_steps": 1, "rollout_samples": 3, "kl_weight": 0.02, "reward": tells_some_apart, "lr": 1e-3}
    found = {}
    for rule in ("skip", "keep"):
        refiner = make(kind, base, layout, equal_groups=rule, **options)
        rollout = refiner.collect(genome[None], EXAMPLES, [(1, 0, 0)])
        apart = refiner.told_apart(rollout)
        odd = torch.tensor([len(example.prompt) % 2 == 1 for example in EXAMPLES]).repeat_interleave(3)
        assert bool(apart.all()) if rule == "keep" else not bool(apart[0, ~odd].any())
        found[rule] = refiner.refine(genome[None], EXAMPLES, key=[(1, 0)]), int(apart.sum())
    (skipped, fewer), (kept, all_rows) = found["skip"], found["keep"]
    assert 0 < fewer < all_rows == 36
    update = {rule: found[rule][0].costs.by_purpose["update"] for rule in found}
    assert update["skip"].tokens < update["keep"].tokens and update["skip"].flops < update["keep"].flops
    assert not torch.equal(skipped.genomes, genome[None]) and not torch.equal(skipped.genomes, kept.genomes)


@kinds
def test_elites_that_skip_different_groups_come_out_as_alone(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, _ = founder
    genomes = population(founder, 2)
    options = {"rl_steps": 1, "rollout_samples": 2, "reward": tells_some_apart, "equal_groups": "skip"}
    together = make(kind, base, layout, **options).refine(genomes, EXAMPLES, key=[(1, 0), (1, 1)])
    for row in range(2):
        alone = make(kind, base, layout, **options).refine(genomes[row : row + 1], EXAMPLES, key=[(1, row)])
        step = (alone.genomes[0] - genomes[row]).abs().max()
        assert float((together.genomes[row] - alone.genomes[0]).abs().max()) < 0.05 * float(step)


@settings(deadline=None)
@given(st.floats(-1e3, 1e3), st.integers(2, 9))
def test_equal_scores_are_equal_however_their_mean_is_rounded(score: float, size: int) -> None:
    scores, scored = torch.full((1, size), score), torch.ones(1, size)
    assert not bool(unequal_groups(scores, scored, group_size=size).any())
    assert float(group_signal(scores, scored, group_size=size, noise=0.0)) == 0
    assert float(equal_groups(scores, scored, group_size=size)) == 1


@kinds
def test_completions_that_were_cut_are_left_out_of_updates_and_their_rewards_count(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, genome = founder
    found = {}
    for masked in (True, False):
        refiner = make(kind, base, layout, mask_truncated=masked, rl_steps=1, rollout_samples=3, max_new_tokens=3)
        rollout = refiner.collect(genome[None], EXAMPLES, [(1, 0, 0)])
        end = torch.tensor(refiner.writer.text.ends)
        ended = torch.tensor([bool(torch.isin(torch.tensor(row[-1]), end)) for row in rollout.completions.rows()])
        assert 0 < int(ended.sum()) < len(ended), "some are cut and some are not"
        assert torch.equal(refiner.told_apart(rollout)[0], ended if masked else torch.ones_like(ended))
        assert bool(rollout.scored.all())
        found[masked] = refiner.refine(genome[None], EXAMPLES, key=[(1, 0)])
    assert found[True].stats[0]["reward"] == found[False].stats[0]["reward"]
    assert not torch.equal(found[True].genomes, found[False].genomes)


@pytest.mark.parametrize("options", [{"kl_place": "reward"}, {"kl_place": "loss"}, {"kind": "grpo"}, {"kind": "rloo"}])
def test_with_a_truncation_ratios_are_within_what_was_kept_and_the_kl_over_everything(
    options: dict[str, Any], base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, _ = founder
    genomes = 4 * population(founder, 1)
    refiner = make(options.pop("kind", "ppo"), base, layout, top_p=0.7, kl_weight=0.5, rl_steps=1, **options)
    rollout = refiner.collect(genomes, EXAMPLES, [(1, 0, 0)])
    whole = replace(rollout.completions, kept=None, features=None, trace=None)
    engine, how = refiner.engine, Scoring()
    own, reference = (engine.score(who, rollout.prompts, whole, how).log_probs for who in (genomes, None))
    torch.testing.assert_close(rollout.whole_log_probs[0], own, atol=1e-4, rtol=0)
    torch.testing.assert_close(rollout.reference_log_probs[0], reference, atol=1e-4, rtol=0)
    assert (rollout.log_probs >= rollout.whole_log_probs - 1e-4).all()
    kl = ((own - reference) * rollout.mask[0]).sum(-1).mean()
    assert float(statistics_of(rollout)["kl"]) == pytest.approx(float(kl), abs=1e-3)
    # The gradient at the sampling weights, where all ratios are 1: that of the losses' terms, by whole passes.
    rows = genomes.clone().requires_grad_()
    refiner.begin([{}])
    advantages, _ = refiner.credit(rollout)
    share = Share.of([torch.arange(rollout.scores.shape[1])], rows.device)
    losses = refiner.losses(rows, rollout, advantages, share, [0])
    assert float(losses["approx_kl"]) < 1e-6
    losses["loss"].sum().backward()
    kept = replace(rollout.completions, features=None, trace=None)

    def by_the_formula(of: Any) -> Tensor:
        again = genomes.clone().requires_grad_()
        log_probs, full = (
            differentiable_scores(engine, again, rollout.prompts, each, how)[0][None] for each in (kept, of)
        )
        batch = Minibatch(
            log_probs=log_probs,
            whole_log_probs=full,
            old_log_probs=log_probs.detach(),
            reference_log_probs=reference[None],
            advantages=advantages,
            mask=rollout.mask,
            batch_tokens=rollout.mask.sum((-1, -2)),
            kl_weight=refiner.settings(rollout).kl_weight,
        )
        refiner.policy_loss(batch)[0].sum().backward()
        assert again.grad is not None
        return again.grad

    assert rows.grad is not None
    assert (rows.grad - by_the_formula(whole)).norm() < 1e-3 * rows.grad.norm()
    in_the_loss = refiner.name == "grpo" or getattr(refiner.config, "kl_place", None) == "loss"
    assert ((rows.grad - by_the_formula(kept)).norm() > 1e-2 * rows.grad.norm()) == in_the_loss


def test_an_engine_that_does_not_truncate_is_refused(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    refiner = make("grpo", base, founder[0], top_k=3)

    class Plain(EagerEngine):
        def _generate(self, prompts: Any, how: Decoding, times: int) -> Completions:
            return super()._generate(prompts, replace(how, truncation=None), times)

    refiner.writer = replace(refiner.writer, engine=Plain(base.model, founder[0]))
    with pytest.raises(InputError, match=r"--top-k.*Plain, that samples of whole distributions"):
        refiner.refine(founder[1][None], EXAMPLES)


def test_where_all_groups_are_equal_no_update_is_made(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    layout, genome = founder
    refiner = make("ppo", base, layout, equal_groups="skip", rollout_samples=2, reward=worthless)
    refined = refiner.refine(genome[None], EXAMPLES, key=[(1, 0)])
    assert torch.equal(refined.genomes, genome[None])
    assert refined.stats[0]["updates"] == 0 and refined.costs.by_purpose["update"].tokens == 0
    assert all(math.isfinite(value) for value in refined.stats[0].values())


def test_the_more_a_rollout_tells_the_less_is_taught_again(
    base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, genome = founder
    engine, text = choose_engine(base.model, layout).engine, Text.of(base.model, base.tokenizer)
    evaluator = LocalEvaluator(engine, text, RewardScorer(short), max_new_tokens=8)
    taught = {}
    for name, reward in (("nothing", worthless), ("much", short)):
        refiner = make("ppo", base, layout, replay=12, rollout_samples=4, rl_steps=1, reward=reward)
        evaluation = evaluator.evaluate(genome[None], EXAMPLES)
        answer = base.tokenizer(" window")["input_ids"]  # nobody says that
        evaluation.completion_ids[0][:] = [list(answer) for _ in EXAMPLES]
        evaluation.rewards[:] = 2.0
        refiner.observe(EXAMPLES, evaluation)
        stats = refiner.refine(genome[None], EXAMPLES, key=[(1, 0)]).stats[0]
        taught[name] = stats["taught"]
        assert stats["lessons"] == len(EXAMPLES)
    assert taught["nothing"] == len(EXAMPLES) and taught["much"] < len(EXAMPLES) / 2


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_completions_without_a_score_are_in_no_group(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    """The credit, loss and gradient are those of a rollout that never had them: here the third of each group."""
    layout, genome = founder

    def two_of_three(completions: list[str]) -> list[float | None]:
        return [None if row % 3 == 2 else float(len(text)) for row, text in enumerate(completions)]

    refiner = make(kind, base, layout, reward=two_of_three)
    rollout = refiner.collect(genome[None] + 0.01, EXAMPLES, [(1, 0, 0)])
    kept = torch.arange(3 * len(EXAMPLES)).reshape(-1, 3)[:, :2].flatten()
    smaller = make(kind, base, layout, rollout_samples=2)
    names = ("scores", "mask", "log_probs", "whole_log_probs", "reference_log_probs", "ended")
    tensors = {name: getattr(rollout, name)[:, kept] for name in names}
    advantages, stats = refiner.credit(rollout)
    expected, expected_stats = smaller.credit(replace(rollout, **tensors))
    assert (advantages[:, 2::3] == 0).all()
    torch.testing.assert_close(advantages[:, kept], expected)
    assert torch.equal(stats["equal_groups"], expected_stats["equal_groups"])
    rows = (genome[None] + 0.012).requires_grad_()
    gradients = []
    for part in (torch.arange(3 * len(EXAMPLES)), kept):
        losses = refiner.losses(rows, rollout, advantages, Share.of([part], rows.device), [0])
        gradients.append(torch.autograd.grad(losses["loss"].sum(), rows)[0])
    if kind == "grpo":  # by the rollout's tokens, of which the part is as many as of its rows
        gradients[1] *= 2 / 3
    assert gradients[0].isfinite().all() and gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[0].norm()


def test_a_group_has_at_least_two_completions() -> None:
    for config in (GRPOConfig, RLOOConfig):
        with pytest.raises(ValueError, match="rollout_samples=1"):
            config(rollout_samples=1)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_groups_need_neither_features_nor_state(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, genome = founder
    refiner = make(kind, base, layout)
    assert refiner.collect(genome[None], EXAMPLES[:2], [(1, 0, 0)]).features is None
    assert refiner.state_dict() == {}
    assert refiner.name == kind


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_group_individual_that_diverges_harms_nobody(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, genome = founder
    wild = make(kind, base, layout, lr=1e12, rl_steps=3, target_kl=None).refine(genome[None], EXAMPLES, key=[(1, 0)])
    assert torch.isfinite(wild.genomes).all()
    both = torch.cat([genome[None], genome[None] * float("nan")])
    together = make(kind, base, layout, lr=1e-4, rl_steps=1).refine(both, EXAMPLES, key=[(1, 0), (1, 1)])
    alone = make(kind, base, layout, lr=1e-4, rl_steps=1).refine(genome[None], EXAMPLES, key=[(1, 0)])
    moved = (alone.genomes[0] - genome).norm()
    assert (together.genomes[0] - alone.genomes[0]).norm() < 0.02 * moved


def test_an_individual_that_diverges_harms_nobody(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    """Adam at an absurd rate drives logits to infinity; the genome and the critic must come out finite all the same."""
    layout, genome = founder
    refiner = make_refiner(base, layout, lr=1e12, rl_steps=3, target_kl=None)
    refined = refiner.refine(genome[None], EXAMPLES, key=[(1, 0)])
    assert torch.isfinite(refined.genomes).all()
    assert torch.isfinite(refiner.critic.shared).all()
    broken = genome[None] * float("nan")
    both = make_refiner(base, layout, lr=1e-4, rl_steps=1)
    together = both.refine(torch.cat([genome[None], broken]), EXAMPLES, key=[(1, 0), (1, 1)])
    alone = make_refiner(base, layout, lr=1e-4, rl_steps=1).refine(genome[None], EXAMPLES, key=[(1, 0)])
    moved = (alone.genomes[0] - genome).norm()
    assert (together.genomes[0] - alone.genomes[0]).norm() < 0.02 * moved
    assert torch.isfinite(both.critic.shared).all()


def test_completions_without_a_score_do_not_count(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    layout, genome = founder
    seen: list[int] = []

    def half(completions: list[str], prompts: list[str]) -> list[float | None]:
        seen.append(len(prompts))
        return [None if index % 2 else float(len(text)) for index, text in enumerate(completions)]

    rollout = make_refiner(base, layout, reward=half).collect(genome[None], EXAMPLES, [(1, 0, 0)])
    assert seen == [len(EXAMPLES)]
    assert not rollout.mask[0, 1::2].any()
    assert rollout.mask[0, ::2, 0].all()
    none = make_refiner(base, layout, reward=lambda completions: [None] * len(completions))
    refined = none.refine(genome[None], EXAMPLES, key=[(1, 0)])
    assert torch.isfinite(refined.genomes).all()
    assert torch.equal(refined.genomes[0], genome)


def test_the_rollout_is_of_the_policy_and_the_reference_is_the_base(
    base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, genome = founder
    refiner = make_refiner(base, layout, rollout_samples=2)
    untouched = refiner.collect(genome[None], EXAMPLES, [(1, 0, 0)])
    assert untouched.scores.shape == (1, 2 * len(EXAMPLES))
    gap = (untouched.log_probs - untouched.reference_log_probs)[untouched.mask].abs().max()
    assert gap < 1e-4, "the founder is the base"
    moved = refiner.collect(genome[None] + 0.05, EXAMPLES, [(1, 0, 0)])
    assert (moved.log_probs - moved.reference_log_probs)[moved.mask].abs().max() > 0.01


def test_the_critic_learns_and_is_kept(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 64, 3, 16, generator=generator, dtype=torch.float64)
    truth = torch.stack([features[0, ..., 0], -features[1, ..., 1]]) * 0.3
    mask = torch.ones(2, 64, 3, dtype=torch.bool)
    critic = Critic(16, lr=0.05, epochs=300, clip_range=10.0, dtype=torch.float64)
    heads, loss = critic.fit(critic.heads(2, torch.device("cpu")), features, truth, mask)
    spread = truth.var(dim=(1, 2)) / 2
    assert (loss < 0.2 * spread).all(), "each head learns its own individual's values"
    critic.keep(heads)
    assert torch.equal(critic.heads(3, torch.device("cpu"))[2], heads.mean(0))
    other = Critic(16, lr=0.05, epochs=1, clip_range=0.2, dtype=torch.float64)
    other.load_state_dict(critic.state_dict())
    assert torch.equal(other.shared, critic.shared)
    layout, genome = founder
    refiner = make_refiner(base, layout)
    refiner.refine(genome[None], EXAMPLES, key=[(1, 0)])
    assert refiner.state_dict()["critic"].abs().sum() > 0
    assert not math.isnan(float(refiner.state_dict()["critic"].sum()))


def test_prompts_reach_the_reward_with_their_columns(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    layout, genome = founder
    calls: list[tuple[list[str], list[object]]] = []

    def reward(prompts: list[str], completions: list[str], answer: list[object]) -> list[float]:
        calls.append((prompts, answer))
        return [0.0] * len(completions)

    examples = [Example(f"{n} + 1 =", {"answer": n + 1}) for n in range(3)]
    make_refiner(base, layout, reward=reward).collect(genome.repeat(2, 1), examples, [(1, 0, 0), (1, 1, 0)])
    assert calls == [(["0 + 1 =", "1 + 1 =", "2 + 1 ="] * 2, [1, 2, 3] * 2)]


@kinds
def test_the_trajectory_has_the_genomes_after_each_step(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, _ = founder
    genomes = population(founder, 2)
    refined = make(kind, base, layout, rl_steps=3).refine(genomes, EXAMPLES, key=[(1, 0), (1, 1)])
    shorter = make(kind, base, layout, rl_steps=2).refine(genomes, EXAMPLES, key=[(1, 0), (1, 1)])
    assert refined.trajectory is not None and shorter.trajectory is not None
    assert refined.trajectory.shape == (3, *genomes.shape)
    assert torch.equal(refined.trajectory[-1], refined.genomes)
    assert torch.equal(refined.trajectory[:2], shorter.trajectory)
    assert (shorter.trajectory[0] != shorter.trajectory[1]).any(dim=1).all()


def people(*lines: tuple[int, ...]) -> list[Individual]:
    """Individuals by (id, parents...)."""
    return [
        Individual(id=id, parents=tuple(parents), operator="x", born=1, mutation_scale=0.1) for id, *parents in lines
    ]


@kinds
def test_the_optimiser_travels_with_the_individual_and_its_children(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    """Whose ancestors were refined steps as if their Adam had never stopped; after a checkpoint too."""
    layout, genome = founder

    def after(*, travels: bool, resumed: bool = False, lineage: Sequence[tuple[int, ...]] = ((1, 0),)) -> Tensor:
        refiner = make(kind, base, layout, rl_steps=2, target_kl=None, keep_optimiser=travels)
        first = refiner.refine(genome[None], EXAMPLES, key=[(1, 0)], children=[1])
        refiner.keep(people(*lineage))
        if resumed:
            state = refiner.state_dict()
            refiner = make(kind, base, layout, rl_steps=2, target_kl=None, keep_optimiser=travels)
            refiner.load_state_dict(state)
        youngest = lineage[-1][0]
        return refiner.refine(first.genomes, EXAMPLES, key=[(2, youngest)], children=[99]).genomes

    fresh, travelled = after(travels=False), after(travels=True)
    assert not torch.equal(fresh, travelled)
    assert torch.equal(travelled, after(travels=True, resumed=True))
    # Draws are keyed by the id: a child has others, and so has a stranger.
    child, stranger = ((1, 0), (7, 1)), ((1, 0), (7, 3))
    assert torch.equal(after(travels=True, lineage=stranger), after(travels=False, lineage=stranger))
    assert not torch.equal(after(travels=True, lineage=child), after(travels=False, lineage=child))


def test_what_travels_is_torchs_own_optimiser(
    base: BaseModel, founder: tuple[GenomeLayout, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients of two refinements, put through one Adam of torch's, give the same genome."""
    layout, genome = founder
    gradients: list[Tensor] = []
    step = RowAdam.step

    def spy(self: RowAdam, gradient: Tensor, active: Tensor) -> Tensor:
        assert active.all()
        gradients.append(gradient.clone())
        return step(self, gradient, active)

    monkeypatch.setattr(RowAdam, "step", spy)
    refiner = make_refiner(base, layout, rl_steps=2, target_kl=None, keep_optimiser=True)
    refined = genome[None]
    for generation in range(2):
        refined = refiner.refine(refined, EXAMPLES, key=[(generation, generation)], children=[generation + 1]).genomes
        refiner.keep(people((generation + 1, generation)))
    expected = genome[None].clone().requires_grad_()
    adam = torch.optim.Adam([expected], lr=refiner.config.lr)
    assert len(gradients) == 2 * 2 * refiner.config.epochs
    for gradient in gradients:
        expected.grad = gradient
        adam.step()
    assert torch.equal(refined, expected.detach())


def test_a_row_that_stopped_early_does_not_depend_on_its_company(
    base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    """A stopped row's Adam waits: it gathers no moments while others go on."""
    layout, genome = founder
    options: dict[str, Any] = {"rl_steps": 1, "epochs": 4, "target_kl": 0.02, "keep_optimiser": True}
    wild = Hyperparameters(lr=2e-2, kl_weight=0.02, entropy_weight=0.0)
    tame = Hyperparameters(lr=1e-6, kl_weight=0.02, entropy_weight=0.0)
    together = make_refiner(base, layout, **options)
    both = together.refine(
        genome.repeat(2, 1), EXAMPLES, key=[(1, 0), (1, 1)], children=[2, 3], hyperparameters=[wild, tame]
    )
    alone = make_refiner(base, layout, **options)
    alone.refine(genome[None], EXAMPLES, key=[(1, 0)], children=[2], hyperparameters=[wild])
    assert [stats["stopped"] for stats in both.stats] == [1, 0]
    mine, expected = together.carried.of(2), alone.carried.of(2)
    assert int(mine["adam.steps"]) == int(expected["adam.steps"]) < 4
    for name in ("adam.first", "adam.second"):
        assert (mine[name] - expected[name]).norm() < 0.02 * expected[name].norm()


OWN = [
    Hyperparameters(lr=1e-4, kl_weight=0.02, entropy_weight=0.0),
    Hyperparameters(lr=3e-4, kl_weight=0.5, entropy_weight=0.05),
    Hyperparameters(lr=5e-5, kl_weight=0.0, entropy_weight=0.3),
]


@kinds
def test_rows_of_different_hyperparameters_come_out_as_alone_with_those_options(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, _ = founder
    genomes = population(founder, 3) + 0.01  # away from the base, where the KL has a gradient
    keys = [(1, 5), (1, 6), (1, 7)]
    options: dict[str, Any] = {"rl_steps": 1, "epochs": 1, "target_kl": None}
    mixed = make(kind, base, layout, **options).refine(genomes, EXAMPLES, key=keys, hyperparameters=OWN)
    plain = make(kind, base, layout, lr=1e-4, **options).refine(genomes, EXAMPLES, key=keys)
    for row, own in enumerate(OWN):
        refiner = make(
            kind, base, layout, lr=own.lr, kl_weight=own.kl_weight, entropy_weight=own.entropy_weight, **options
        )
        alone = refiner.refine(genomes[row : row + 1], EXAMPLES, key=keys[row : row + 1])
        moved = (alone.genomes[0] - genomes[row]).norm()
        assert (mixed.genomes[row] - alone.genomes[0]).norm() < 0.02 * moved
        if row:  # The weights matter, not the learning rate alone: the direction is another.
            direction = (plain.genomes[row] - genomes[row]) * (own.lr / 1e-4)
            assert (genomes[row] + direction - alone.genomes[0]).norm() > 0.1 * moved
        found = {name: mixed.stats[row][name] for name in ("lr", "kl_weight", "entropy_weight")}
        assert found == pytest.approx({"lr": own.lr, "kl_weight": own.kl_weight, "entropy_weight": own.entropy_weight})
    assert "lr" not in plain.stats[0]


@kinds
def test_an_individual_without_hyperparameters_has_the_options(
    kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]
) -> None:
    layout, _ = founder
    genomes, keys = population(founder, 2), [(1, 5), (1, 6)]
    refiner = make(kind, base, layout, lr=OWN[1].lr, kl_weight=OWN[1].kl_weight, entropy_weight=OWN[1].entropy_weight)
    given = refiner.refine(genomes, EXAMPLES, key=keys, hyperparameters=[OWN[1], None])
    plain = make(kind, base, layout, lr=OWN[1].lr, kl_weight=OWN[1].kl_weight, entropy_weight=OWN[1].entropy_weight)
    assert torch.equal(given.genomes, plain.refine(genomes, EXAMPLES, key=keys).genomes)


def test_what_does_not_fit_the_genomes_is_refused(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    layout, genome = founder
    refiner = make_refiner(base, layout)
    for options in ({"key": []}, {"children": [1, 2]}, {"hyperparameters": OWN}):
        ((name, values),) = options.items()
        with pytest.raises(ValueError, match=f"1 genomes with {len(values)} {name}"):  # type: ignore[arg-type]
            refiner.refine(genome[None], EXAMPLES, **{"key": [(1, 0)], **options})  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    weight=st.floats(1e-6, 10),
    kl=st.floats(-5, 50),
    completions=st.integers(0, 500),
    target=st.floats(0.01, 20),
    horizon=st.floats(1, 10_000),
)
def test_the_kl_weight_goes_up_above_the_target_and_down_below(
    weight: float, kl: float, completions: int, target: float, horizon: float
) -> None:
    adapted = float(
        adapted_kl_weight(
            torch.tensor([weight], dtype=torch.float64),
            torch.tensor([kl], dtype=torch.float64),
            torch.tensor([completions]),
            target=target,
            horizon=horizon,
        )
    )
    # lm-human-preferences' AdaptiveKLController, but for the horizon's limit.
    error = min(max(kl / target - 1, -0.2), 0.2)
    assert adapted == pytest.approx(weight * (1 + error * min(completions, horizon) / horizon), rel=1e-12)
    assert 0.8 * weight <= adapted * (1 + 1e-12) and adapted <= 1.2 * weight * (1 + 1e-12)


def test_a_kl_that_is_no_number_leaves_its_weight_and_no_others() -> None:
    weights, kl = torch.tensor([0.1, 0.1, 0.1]), torch.tensor([math.nan, math.inf, 9.0])
    adapted = adapted_kl_weight(weights, kl, torch.tensor([8, 8, 8]), target=3.0, horizon=8)
    torch.testing.assert_close(adapted, torch.tensor([0.1, 0.12, 0.12]))


@kinds
def test_the_kl_weight_follows_its_target(kind: str, base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    layout, genome = founder
    options: dict[str, Any] = {"kl_weight": 0.2, "target_kl": None, "lr": 4e-3, "rl_steps": 1, "kl_horizon": 12}
    if kind == "ppo":
        options["kl_place"] = "reward"  # where a weight of this size is felt in sixteen steps

    def late(stats: list[dict[str, float]]) -> float:
        """The KL of most of the last eight: one rollout's is a matter of chance, and so of rounding."""
        return statistics.median(row["kl_k3"] for row in stats[-8:])

    def refine(target: float) -> tuple[list[dict[str, float]], PolicyGradientRefiner[Any]]:
        """Sixteen refinements, each of the last one's child."""
        refiner = make(kind, base, layout, kl_target=target, **options)
        genomes, stats = genome[None], []
        for generation in range(16):
            refined = refiner.refine(genomes, EXAMPLES, key=[(generation, generation)], children=[generation + 1])
            refiner.keep(people((generation + 1, generation)))
            genomes = refined.genomes
            stats.append(refined.stats[0])
        return stats, refiner

    tight, refiner = refine(0.1)
    loose, _ = refine(50.0)
    assert late(tight) < 0.6 * late(loose)
    for before, after in itertools.pairwise(tight):
        error = min(max(before["kl"] / 0.1 - 1, -0.2), 0.2)
        assert after["kl_weight"] == pytest.approx(before["kl_weight"] * (1 + error), rel=1e-5)
    # A child goes on from its parent's weight, also after a checkpoint; a stranger begins anew.
    resumed = make(kind, base, layout, kl_target=0.1, **options)
    resumed.load_state_dict(refiner.state_dict())
    resumed.keep(people((16, 15), (18, 16)))
    stats = resumed.refine(genome.repeat(2, 1), EXAMPLES, key=[(20, 18), (20, 19)]).stats
    assert [each["kl_weight"] for each in stats] == pytest.approx([float(refiner.carried.of(16)["kl_weight"]), 0.2])
    assert stats[0]["kl_weight"] != pytest.approx(0.2)


def test_heads_of_their_own_travel_with_individuals(base: BaseModel, founder: tuple[GenomeLayout, Tensor]) -> None:
    layout, _ = founder

    def begun(kind: str) -> list[Tensor]:
        refiner = make_refiner(base, layout, critic=kind, rl_steps=1)
        both = refiner.refine(population(founder, 2), EXAMPLES, key=[(1, 0), (1, 1)], children=[2, 3])
        trained = refiner._heads.clone()
        assert (trained[0] != trained[1]).any() and torch.isfinite(both.genomes).all()
        refiner.keep(people((2, 0), (4, 3), (5, 9)))
        resumed = make_refiner(base, layout, critic=kind, rl_steps=1)
        resumed.load_state_dict(refiner.state_dict())
        resumed.begin([resumed.carried.of(id) for id in (2, 4, 5)])
        return [*trained, *resumed._heads]

    one, two, *heads = begun("individual")
    assert all(torch.equal(*pair) for pair in zip(heads, (one, two, (one + two) / 2), strict=True))
    one, two, *heads = begun("shared")
    assert all(torch.equal(head, (one + two) / 2) for head in heads)
