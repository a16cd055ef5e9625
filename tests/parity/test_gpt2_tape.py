"""The gradient from a decoding's tape against that of a pass of its own, in float64; and where there is no tape."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evolora.engine import split as data_parallel
from evolora.engine.cpu.gpt2 import activations as gpt2_tape
from evolora.engine.cpu.gpt2.activations import Gpt2Tape
from evolora.engine.cpu.gpt2.train import Gpt2Packs
from evolora.engine.cpu.install import use_kernels
from evolora.engine.eager.generate import Completions, PromptBatch, completion_log_probs, encode, generate
from evolora.engine.eager.lora_layers import PopulationModel
from evolora.engine.split import population_generate, population_log_probs
from evolora.models.base import BaseModel, load_base
from evolora.models.lora import lora_config, lora_layout
from evolora.refiners import GRPOConfig, GRPORefiner, PPOConfig, PPORefiner, RLOOConfig, RLOORefiner
from evolora.rewards import RewardScorer
from evolora.tasks.task import Example

Folder = Callable[[str], Path]

NEW_TOKENS = 9
# Some of these end most completions early, at different steps: rows leave the batch.
ENDS, NEVER = list(range(20)), [100]
PROMPTS = ["The sum of 4 and 3 is", "Yes,", "The sum of 4", "Yes,", "No", "The sum of 4 and 3 is"]
TARGETS = {
    "as GPT-2's are": ["c_attn", "c_proj"],
    "everything": ["c_attn", "c_proj", "c_fc"],
    "one": ["attn.c_proj"],
}


@pytest.fixture
def base(model_folder: Folder) -> BaseModel:
    loaded = load_base(str(model_folder("uneven gpt2")))
    use_kernels(loaded.model, "compiled")
    return loaded


def population(
    base: BaseModel, n: int, *, targets: str = "everything", rank: int = 8
) -> tuple[PopulationModel, Tensor]:
    config = lora_config(base.model, r=rank, target_modules=TARGETS[targets])
    layout, _ = lora_layout(base.model, config, seed=0)
    genomes = torch.randn(n, layout.genome_length, generator=torch.Generator().manual_seed(0)) * 0.1
    return PopulationModel(base.model, layout), genomes


def write(
    population_model: PopulationModel, genomes: Tensor | None, prompts: PromptBatch, **options: Any
) -> Completions:
    chosen: dict[str, Any] = {
        "max_new_tokens": NEW_TOKENS,
        "eos_token_ids": ENDS,
        "temperature": 0.8,
        "keep_tape": True,
    }
    seeds = np.arange(len(prompts.ids), dtype=np.uint64)
    return population_generate(population_model, genomes, prompts, pad_token_id=0, seeds=seeds, **{**chosen, **options})


def weigh(log_probs: Tensor, entropy: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, log_probs.numel(), dtype=log_probs.dtype).view_as(log_probs)
    total = (log_probs * weights).sum()
    return total - 0.3 * (entropy * weights.flip(0)).sum() if entropy.requires_grad else total


def by_tape(
    population_model: PopulationModel, genomes: Tensor, prompts: PromptBatch, completions: Completions, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies, and the gradient of the genomes from both."""
    rows = genomes.clone().requires_grad_()
    found = population_log_probs(
        population_model, rows, prompts, completions, temperature=0.8, tapes=completions.tapes, **options
    )
    (gradient,) = torch.autograd.grad(weigh(*found), rows)
    return found[0].detach(), found[1].detach(), gradient


def exactly(
    population_model: PopulationModel, genomes: Tensor, prompts: PromptBatch, completions: Completions, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    double = copy.deepcopy(population_model.model).double()
    exact, rows = PopulationModel(double, population_model.layout), genomes.double().requires_grad_()
    with exact.adapted(rows):
        found = completion_log_probs(double, prompts, completions, temperature=0.8, **options)
    (gradient,) = torch.autograd.grad(weigh(*found), rows)
    return found[0].detach(), found[1].detach(), gradient


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 2e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=tolerance * float(other.abs().max()), rtol=1e-3)


def as_large(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model whose products are first made one by one, from plain weights, and later by whole layers."""
    monkeypatch.setattr("evolora.engine.cpu.install.is_small", lambda _: False)
    monkeypatch.setattr("evolora.engine.cpu.matmul.frozen_linear._LEAST_PRODUCTS", 4)
    use_kernels(base.model, "compiled")


@pytest.mark.parametrize("kind", ["small", "large", "torch's products"])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("individuals", "rank"), [(1, 8), (3, 8), (3, 3), (2, 11)])
def test_values_and_gradients_are_those_of_float64(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, kind: str, targets: str, individuals: int, rank: int
) -> None:
    if kind == "large":
        as_large(base, monkeypatch)
    if kind == "torch's products":
        use_kernels(base.model, "torch")
    population_model, genomes = population(base, individuals, targets=targets, rank=rank)
    prompts = encode(base.tokenizer, PROMPTS, "cpu").repeat(individuals)
    completions = write(population_model, genomes, prompts)
    lengths = completions.mask.sum(1)
    assert len(lengths.unique()) > 2, "they end at different steps"
    found = by_tape(population_model, genomes, prompts, completions)
    assert_close(found, exactly(population_model, genomes, prompts, completions))
    assert completions.log_probs is not None
    torch.testing.assert_close(found[0], completions.log_probs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "options"),
    [
        (PROMPTS[:1], {}),
        (PROMPTS[1:2] * 5, {}),
        (PROMPTS, {"eos_token_ids": NEVER}),
        (PROMPTS, {"max_new_tokens": 1}),
        (PROMPTS, {"max_new_tokens": 2}),
        (PROMPTS, {"eos_token_ids": list(range(100))}),
    ],
)
def test_few_rows_and_short_completions(base: BaseModel, prompts: list[str], options: dict[str, Any]) -> None:
    population_model, genomes = population(base, 2)
    batch = encode(base.tokenizer, prompts, "cpu").repeat(2)
    completions = write(population_model, genomes, batch, **options)
    found = by_tape(population_model, genomes, batch, completions, entropy_gradient=False)
    assert_close(found, exactly(population_model, genomes, batch, completions, entropy_gradient=False))


@pytest.mark.parametrize(("individuals", "by_rows"), [(4, False), (1, True), (3, True)])
def test_parts_have_tapes_of_their_own(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, individuals: int, by_rows: bool
) -> None:
    monkeypatch.setattr(data_parallel, "LEAST_ROWS_DECODED", 2)
    population_model, genomes = population(base, individuals)
    population_model.threads = 2
    prompts = encode(base.tokenizer, PROMPTS, "cpu").repeat(individuals)
    completions = write(population_model, genomes, prompts)
    assert len(completions.tapes) == 2
    assert torch.cat([tape.rows for tape in completions.tapes]).sort().values.tolist() == list(range(len(prompts.ids)))
    assert {tape.individuals == slice(0, individuals) for tape in completions.tapes} == {by_rows}
    found = by_tape(population_model, genomes, prompts, completions)
    assert_close(found, exactly(population_model, genomes, prompts, completions))


@pytest.mark.parametrize("least_rows", [1, 1000])
def test_threads_that_share_rows_or_products_write_one_tape(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, least_rows: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("evolora.engine.cpu.gpt2.decode._LEAST_ROWS", least_rows)
    population_model, genomes = population(base, 3)
    prompts = encode(base.tokenizer, PROMPTS, "cpu").repeat(3)
    completions = write(population_model, genomes, prompts)
    assert len(completions.tapes) == 1
    found = by_tape(population_model, genomes, prompts, completions)
    assert_close(found, exactly(population_model, genomes, prompts, completions))


@pytest.mark.parametrize("kind", ["small", "large"])
def test_a_tape_changes_nothing_that_is_written(base: BaseModel, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "large":
        as_large(base, monkeypatch)
    population_model, genomes = population(base, 3)
    prompts = encode(base.tokenizer, PROMPTS, "cpu").repeat(3)
    found = [write(population_model, genomes, prompts, keep_tape=kept, keep_features=True) for kept in (True, False)]
    assert [len(one.tapes) for one in found] == [1, 0]
    for name in ("ids", "mask", "log_probs", "features"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name


def test_a_tape_is_read_once_and_by_the_genomes_that_wrote_it(base: BaseModel) -> None:
    population_model, genomes = population(base, 2)
    prompts = encode(base.tokenizer, PROMPTS, "cpu").repeat(2)
    completions = write(population_model, genomes, prompts)
    with pytest.raises(ValueError, match="not those that wrote"):
        by_tape(population_model, genomes + 1e-6, prompts, completions)
    before = genomes.clone()
    genomes += 1e-6  # those that it was written by, in place
    for given in (genomes, before):
        with pytest.raises(ValueError, match="not those that wrote"):
            by_tape(population_model, given, prompts, completions)
    genomes.copy_(before)
    by_tape(population_model, genomes, prompts, completions)
    with pytest.raises(RuntimeError, match="read once"):
        by_tape(population_model, genomes, prompts, completions)


def test_a_genome_that_diverged_spoils_its_own_gradient_alone(base: BaseModel) -> None:
    population_model, genomes = population(base, 3)
    prompts = encode(base.tokenizer, PROMPTS, "cpu").repeat(3)
    broken = genomes.clone()
    broken[1] = torch.nan
    completions = write(population_model, broken, prompts, eos_token_ids=NEVER)
    gradient = by_tape(population_model, broken, prompts, completions)[2]
    sound = write(population_model, genomes, prompts, eos_token_ids=NEVER)
    rows = len(PROMPTS)
    assert torch.equal(completions.ids[:rows], sound.ids[:rows])
    assert gradient[[0, 2]].isfinite().all() and not gradient[1].isfinite().all()


@pytest.fixture
def refused(
    base: BaseModel, model_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], BaseModel]]:
    hooks: list[Any] = []

    def prepare(case: str) -> BaseModel:
        if case == "another architecture":
            return load_base(str(model_folder("llama")))
        body = base.model.transformer
        if case == "too large":
            monkeypatch.setattr(gpt2_tape, "_MOST_BYTES", 10_000)
        elif case == "no compiled step":
            monkeypatch.setattr("evolora.engine.eager.decoder.Gpt2Step.of", lambda *_: None)
        else:
            module = {"a hook on a norm": body.ln_f, "on the MLP": body.h[1].mlp, "on the head": base.model.lm_head}[
                case
            ]
            hooks.append(module.register_forward_hook(lambda *_: None))
        return base

    yield prepare
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    "case",
    ["another architecture", "too large", "no compiled step", "a hook on a norm", "on the MLP", "on the head"],
)
def test_without_a_tape_the_same_is_written(refused: Callable[[str], BaseModel], case: str) -> None:
    base = refused(case)
    layout, _ = lora_layout(base.model, lora_config(base.model, target_modules=None), seed=0)
    population_model = PopulationModel(base.model, layout)
    genomes = torch.randn(2, layout.genome_length, generator=torch.Generator().manual_seed(0)) * 0.1
    prompts = encode(base.tokenizer, PROMPTS, "cpu").repeat(2)
    found, expected = (write(population_model, genomes, prompts, keep_tape=kept) for kept in (True, False))
    assert found.tapes == ()
    assert torch.equal(found.ids, expected.ids) and torch.equal(found.mask, expected.mask)
    population_model.detach()


def test_neither_the_base_nor_drafts_nor_whole_passes_have_a_tape(base: BaseModel) -> None:
    population_model, genomes = population(base, 1)
    prompts = encode(base.tokenizer, PROMPTS, "cpu")
    assert write(population_model, None, prompts).tapes == ()
    drafts = [[3, 4]] * len(PROMPTS)
    assert write(population_model, genomes, prompts, drafts=drafts).tapes == ()
    with population_model.adapted(genomes):
        options: dict[str, Any] = {"max_new_tokens": 3, "eos_token_ids": NEVER, "pad_token_id": 0, "keep_tape": True}
        assert generate(base.model, prompts, use_cache=False, **options).tapes == ()
        assert len(generate(base.model, prompts, **options).tapes) == 1
    with population_model.adapted(genomes.requires_grad_()):
        assert len(generate(base.model, prompts, **options).tapes) == 1


def test_two_populations_have_no_tape(base: BaseModel) -> None:
    outer, others = population(base, 1)
    population_model, genomes = population(base, 2)
    prompts = encode(base.tokenizer, PROMPTS, "cpu").repeat(2)
    with outer.adapted(others):
        assert write(population_model, genomes, prompts).tapes == ()
    assert len(write(population_model, genomes, prompts).tapes) == 1


REFINERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ppo": (PPORefiner, PPOConfig, {}),
    "grpo": (GRPORefiner, GRPOConfig, {"rollout_samples": 4}),
    "rloo": (RLOORefiner, RLOOConfig, {"rollout_samples": 4}),
}


def short(completions: list[str], prompts: list[str], **_: object) -> list[float]:
    """All that follows "Yes," earns the same."""
    return [0.5 if prompt == "Yes," else -float(len(text)) for prompt, text in zip(prompts, completions, strict=True)]


class Refined:
    """A refinement of two genomes, and how many tapes it has read and passes it has made for a gradient."""

    def __init__(self, base: BaseModel, kind: str, prompts: list[str], dropout: float = 0.0, **options: Any) -> None:
        refiner, config, own = REFINERS[kind]
        population_model, genomes = population(base, 2)
        population_model.dropout = dropout
        chosen = {"rl_steps": 2, "epochs": 1, "max_new_tokens": NEW_TOKENS, "target_kl": None, **own, **options}
        read, passed = [], []
        gradient, forward = Gpt2Tape.gradient, Gpt2Packs.forward
        with pytest.MonkeyPatch.context() as patch:

            def noted(*arguments: Any) -> Tensor:
                read.append(1)
                return gradient(*arguments)

            def counted(self: Gpt2Packs, hidden: Tensor, attend: Any, kept: Any, *others: Any) -> Any:
                if kept is not None:
                    passed.append(1)
                return forward(self, hidden, attend, kept, *others)

            patch.setattr(Gpt2Tape, "gradient", noted)
            patch.setattr(Gpt2Packs, "forward", counted)
            refinement = refiner(
                population_model, base.tokenizer, RewardScorer(short), config(**chosen), seed=0
            ).refine(genomes, [Example(prompt, {}) for prompt in prompts], key=[(0, 0), (0, 1)])
        self.moved = (refinement.genomes - genomes).norm()
        self.genomes, self.stats = refinement.genomes, refinement.stats
        self.tapes, self.passes = len(read), len(passed)
        population_model.detach()


@pytest.mark.parametrize("kind", REFINERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"epochs": 2},
        {"entropy_weight": 0.1, "kl_weight": 0.1},
        {"temperature": 0.7, "equal_groups": "skip"},
    ],
)
def test_a_refinement_by_tapes_is_the_same_refinement(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any]
) -> None:
    prompts = ["The sum of 4", "No", "Yes,"]
    found = Refined(base, kind, prompts, **options)
    epochs = options.get("epochs", 1)
    assert (found.tapes, found.passes) == (2, 2 * (epochs - 1)), "of two steps, in the first epoch of each"
    monkeypatch.setattr(Gpt2Tape, "of", lambda *_, **__: None)
    expected = Refined(base, kind, prompts, **options)
    assert (expected.tapes, expected.passes) == (0, 2 * epochs)
    assert found.moved > 0
    assert (found.genomes - expected.genomes).norm() < 0.02 * expected.moved
    for one, other in zip(found.stats, expected.stats, strict=True):
        assert one == {name: pytest.approx(value, rel=1e-3, abs=1e-5) for name, value in other.items()}


@pytest.mark.parametrize(
    ("prompts", "options"),
    [
        (["The sum of 4", "No"], {"dropout": 0.1}),
        (["The sum of 4", "No"], {"minibatches": 2}),
        # Half the rows have no part in the update: a pass over the others is cheaper than the way back through all.
        (["The sum of 4", "Yes,"], {"equal_groups": "skip"}),
    ],
)
def test_what_is_not_the_rollouts_own_pass_is_computed(
    base: BaseModel, prompts: list[str], options: dict[str, Any]
) -> None:
    found = Refined(base, "grpo", prompts, **options)
    assert found.tapes == 0 and found.passes >= 2


def test_a_tape_that_was_read_leaves_its_room_to_the_next(base: BaseModel) -> None:
    population_model, genomes = population(base, 2)
    prompts = encode(base.tokenizer, PROMPTS, "cpu").repeat(2)
    completions = write(population_model, genomes, prompts)
    first = by_tape(population_model, genomes, prompts, completions)
    (room,) = population_model.tape_rooms
    again, unread = (write(population_model, genomes, prompts) for _ in range(2))
    assert population_model.tape_rooms == [] and np.shares_memory(again.tapes[0].taken().last_hidden, room)
    assert not np.shares_memory(unread.tapes[0].taken().last_hidden, room)
    for one, other in zip(by_tape(population_model, genomes, prompts, again), first, strict=True):
        assert torch.equal(one, other)
    longer = write(population_model, genomes, prompts, max_new_tokens=3 * NEW_TOKENS, eos_token_ids=NEVER)
    found = by_tape(population_model, genomes, prompts, longer)
    assert_close(found, exactly(population_model, genomes, prompts, longer))
    assert population_model.tape_rooms[0].size > room.size
