"""The gradient from a decoding's tape against that of a pass of its own, in float64; and where there is no tape."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evolora.engine import split as split_engine
from evolora.engine.base import Completions, Decoding, Engine, Scoring, differentiable_scores
from evolora.engine.cpu import install
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.cpu.gpt2 import activations, decode
from evolora.engine.cpu.gpt2.activations import Gpt2Tape
from evolora.engine.cpu.gpt2.train import Gpt2Packs
from evolora.engine.cpu.levers import Levers
from evolora.engine.cpu.matmul import frozen_linear
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.eager.generate import PromptBatch, generate
from evolora.engine.eager.lora_layers import LoraLayers
from evolora.engine.split import SplitEngine, SplitTrace
from evolora.engine.text import Text
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
    return load_base(str(model_folder("uneven gpt2")))


def population(
    base: BaseModel, n: int, *, targets: str = "everything", rank: int = 8, **options: Any
) -> tuple[CpuEngine, Tensor]:
    config = lora_config(base.model, r=rank, target_modules=TARGETS[targets])
    layout, _ = lora_layout(base.model, config, seed=0)
    genomes = torch.randn(n, layout.genome_length, generator=torch.Generator().manual_seed(0)) * 0.1
    return CpuEngine(base.model, layout, **{"products": "compiled", **options}), genomes


def encode(base: BaseModel, prompts: list[str] = PROMPTS) -> list[list[int]]:
    ids: list[list[int]] = base.tokenizer(prompts)["input_ids"]
    return ids


def write(engine: Engine, genomes: Tensor | None, prompts: list[list[int]], **options: Any) -> Completions:
    rows = len(prompts) * (1 if genomes is None else len(genomes))
    chosen: dict[str, Any] = {
        "max_new_tokens": NEW_TOKENS,
        "ends": ENDS,
        "temperature": 0.8,
        "trace": True,
        "seeds": np.arange(rows, dtype=np.uint64),
    }
    return engine.generate(genomes, prompts, Decoding(pad=0, **{**chosen, **options}))


def weigh(log_probs: Tensor, entropy: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, log_probs.numel(), dtype=log_probs.dtype).view_as(log_probs)
    total = (log_probs * weights).sum()
    return total - 0.3 * (entropy * weights.flip(0)).sum() if entropy.requires_grad else total


def by_tape(
    engine: Engine, genomes: Tensor, prompts: list[list[int]], completions: Completions, entropy_gradient: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies, and the gradient of the genomes from both."""
    rows = genomes.clone().requires_grad_()
    how = Scoring(temperature=0.8, entropy_gradient=entropy_gradient)
    found = differentiable_scores(engine, rows, prompts, completions, how)
    (gradient,) = torch.autograd.grad(weigh(*found), rows)
    return found[0].detach(), found[1].detach(), gradient


def exactly(
    engine: CpuEngine, genomes: Tensor, base: BaseModel, prompts: list[list[int]], completions: Completions, *how: bool
) -> tuple[Tensor, Tensor, Tensor]:
    exact = EagerEngine(copy.deepcopy(base.model).double(), engine.layout)
    return by_tape(exact, genomes.double(), prompts, completions, *how)


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 2e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=tolerance * float(other.abs().max()), rtol=1e-3)


def as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models made from now on are as large ones, whose products are first made one by one, from plain weights, and
    later by whole layers."""
    monkeypatch.setattr(install, "is_small", lambda _: False)
    monkeypatch.setattr(frozen_linear, "_LEAST_PRODUCTS", 4)


@pytest.mark.parametrize("kind", ["small", "large", "torch's products"])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("individuals", "rank"), [(1, 8), (3, 8), (3, 3), (2, 11)])
def test_values_and_gradients_are_those_of_float64(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, kind: str, targets: str, individuals: int, rank: int
) -> None:
    if kind == "large":
        as_large(monkeypatch)
    products = "torch" if kind == "torch's products" else "compiled"
    engine, genomes = population(base, individuals, targets=targets, rank=rank, products=products)
    prompts = encode(base)
    completions = write(engine, genomes, prompts)
    lengths = completions.mask.sum(1)
    assert len(lengths.unique()) > 2, "they end at different steps"
    assert isinstance(completions.trace, Gpt2Tape)
    found = by_tape(engine, genomes, prompts, completions)
    assert_close(found, exactly(engine, genomes, base, prompts, completions))
    assert completions.log_probs is not None
    torch.testing.assert_close(found[0], completions.log_probs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "options"),
    [
        (PROMPTS[:1], {}),
        (PROMPTS[1:2] * 5, {}),
        (PROMPTS, {"ends": NEVER}),
        (PROMPTS, {"max_new_tokens": 1}),
        (PROMPTS, {"max_new_tokens": 2}),
        (PROMPTS, {"ends": list(range(100))}),
    ],
)
def test_few_rows_and_short_completions(base: BaseModel, prompts: list[str], options: dict[str, Any]) -> None:
    engine, genomes = population(base, 2)
    ids = encode(base, prompts)
    completions = write(engine, genomes, ids, **options)
    assert isinstance(completions.trace, Gpt2Tape)
    found = by_tape(engine, genomes, ids, completions, False)
    assert_close(found, exactly(engine, genomes, base, ids, completions, False))


@pytest.mark.parametrize(("individuals", "by_rows"), [(4, False), (1, True), (3, True)])
def test_parts_have_tapes_of_their_own(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, individuals: int, by_rows: bool
) -> None:
    monkeypatch.setattr(split_engine, "LEAST_ROWS_DECODED", 2)
    engine, genomes = population(base, individuals)
    parts = SplitEngine(engine, engine.replica, threads=2)
    prompts = encode(base)
    completions = write(parts, genomes, prompts)
    trace = completions.trace
    assert isinstance(trace, SplitTrace) and len(trace.parts) == len(trace.traces) == 2
    assert all(isinstance(own, Gpt2Tape) for own in trace.traces)
    rows = torch.cat([part.rows for part in trace.parts])
    assert rows.sort().values.tolist() == list(range(len(prompts) * individuals))
    assert {part.individuals == slice(0, individuals) for part in trace.parts} == {by_rows}
    found = by_tape(parts, genomes, prompts, completions)
    assert_close(found, exactly(engine, genomes, base, prompts, completions))


@pytest.mark.parametrize("least_rows", [1, 1000])
def test_threads_that_share_rows_or_products_write_one_tape(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, least_rows: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(decode, "_LEAST_ROWS", least_rows)
    engine, genomes = population(base, 3)
    prompts = encode(base)
    completions = write(engine, genomes, prompts)
    assert isinstance(completions.trace, Gpt2Tape)
    found = by_tape(engine, genomes, prompts, completions)
    assert_close(found, exactly(engine, genomes, base, prompts, completions))


@pytest.mark.parametrize("kind", ["small", "large"])
def test_a_tape_changes_nothing_that_is_written(base: BaseModel, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "large":
        as_large(monkeypatch)
    engine, genomes = population(base, 3)
    prompts = encode(base)
    found = [write(engine, genomes, prompts, trace=kept, features=True) for kept in (True, False)]
    assert [one.trace is not None for one in found] == [True, False]
    for name in ("ids", "mask", "log_probs", "features"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name


def test_a_tape_is_read_once_and_by_the_genomes_that_wrote_it(base: BaseModel) -> None:
    engine, genomes = population(base, 2)
    prompts = encode(base)
    completions = write(engine, genomes, prompts)
    with pytest.raises(ValueError, match="not those that wrote"):
        by_tape(engine, genomes + 1e-6, prompts, completions)
    before = genomes.clone()
    genomes += 1e-6  # those that it was written by, in place
    for given in (genomes, before):
        with pytest.raises(ValueError, match="not those that wrote"):
            by_tape(engine, given, prompts, completions)
    genomes.copy_(before)
    by_tape(engine, genomes, prompts, completions)
    with pytest.raises(RuntimeError, match="read once"):
        by_tape(engine, genomes, prompts, completions)


def test_a_genome_that_diverged_spoils_its_own_gradient_alone(base: BaseModel) -> None:
    engine, genomes = population(base, 3)
    prompts = encode(base)
    broken = genomes.clone()
    broken[1] = torch.nan
    completions = write(engine, broken, prompts, ends=NEVER)
    gradient = by_tape(engine, broken, prompts, completions)[2]
    sound = write(engine, genomes, prompts, ends=NEVER)
    rows = len(PROMPTS)
    assert torch.equal(completions.ids[:rows], sound.ids[:rows])
    assert gradient[[0, 2]].isfinite().all() and not gradient[1].isfinite().all()


@pytest.mark.parametrize(
    "case",
    ["another architecture", "too large", "no compiled step", "a hook on a norm", "on the MLP", "on the head"],
)
def test_without_a_tape_the_same_is_written(
    base: BaseModel, model_folder: Folder, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    if case == "another architecture":
        base = load_base(str(model_folder("llama")))
    elif case == "too large":
        monkeypatch.setattr(activations, "_MOST_BYTES", 10_000)
    elif case != "no compiled step":
        body = base.model.transformer
        hooked = {"a hook on a norm": body.ln_f, "on the MLP": body.h[1].mlp, "on the head": base.model.lm_head}
        hooked[case].register_forward_hook(lambda *_: None)
    layout, _ = lora_layout(base.model, lora_config(base.model, target_modules=None), seed=0)
    engine = CpuEngine(base.model, layout, products="compiled", levers=Levers(step=case != "no compiled step"))
    genomes = torch.randn(2, layout.genome_length, generator=torch.Generator().manual_seed(0)) * 0.1
    found, expected = (write(engine, genomes, encode(base), trace=kept) for kept in (True, False))
    assert found.trace is None
    assert torch.equal(found.ids, expected.ids) and torch.equal(found.mask, expected.mask)


def test_neither_the_base_nor_drafts_nor_whole_passes_have_a_tape(base: BaseModel) -> None:
    engine, genomes = population(base, 1)
    prompts = encode(base)
    assert write(engine, None, prompts).trace is None
    drafts = [[3, 4]] * len(PROMPTS)
    assert write(engine, genomes, prompts, drafts=drafts).trace is None
    assert write(engine, genomes, prompts).trace is not None
    batch = PromptBatch.of(prompts, pad=0, times=1, device=genomes.device)
    how = Decoding(max_new_tokens=3, ends=NEVER, pad=0, trace=True)
    with engine.layers.adapted(genomes):
        assert generate(engine.layers, engine.kernels, batch, how, use_cache=False).trace is None
        assert generate(engine.layers, engine.kernels, batch, how).trace is not None
    with engine.layers.adapted(genomes.requires_grad_()):
        assert generate(engine.layers, engine.kernels, batch, how).trace is not None


def test_two_populations_have_no_tape(base: BaseModel) -> None:
    engine, genomes = population(base, 2)
    outer = LoraLayers(engine.layers.model, engine.layout, layer=engine.kernels.layer)
    prompts = encode(base)
    with outer.adapted(genomes[:1].clone()):
        assert write(engine, genomes, prompts).trace is None
    assert write(engine, genomes, prompts).trace is not None


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

    def __init__(
        self,
        base: BaseModel,
        kind: str,
        prompts: list[str],
        dropout: float = 0.0,
        levers: Levers | None = None,
        **options: Any,
    ) -> None:
        refiner, config, own = REFINERS[kind]
        engine, genomes = population(base, 2, levers=levers)
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
            text = Text.of(base.model, base.tokenizer)
            made = refiner(engine, text, RewardScorer(short), config(**chosen), seed=0, dropout=dropout)
            examples = [Example(prompt, {}) for prompt in prompts]
            refinement = made.refine(genomes, examples, key=[(0, 0), (0, 1)])
        self.moved = (refinement.genomes - genomes).norm()
        self.genomes, self.stats = refinement.genomes, refinement.stats
        self.tapes, self.passes = len(read), len(passed)


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
def test_a_refinement_by_tapes_is_the_same_refinement(base: BaseModel, kind: str, options: dict[str, Any]) -> None:
    prompts = ["The sum of 4", "No", "Yes,"]
    if kind == "ppo":  # whose prompts have one completion each, and no groups
        options = {name: value for name, value in options.items() if name != "equal_groups"}
    found = Refined(base, kind, prompts, **options)
    epochs = options.get("epochs", 1)
    assert (found.tapes, found.passes) == (2, 2 * (epochs - 1)), "of two steps, in the first epoch of each"
    expected = Refined(base, kind, prompts, levers=Levers(trace=False), **options)
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
    engine, genomes = population(base, 2)
    prompts = encode(base)
    completions = write(engine, genomes, prompts)
    first = by_tape(engine, genomes, prompts, completions)
    shelf = engine.kernels._shelf
    (room,) = shelf
    again, unread = (write(engine, genomes, prompts) for _ in range(2))
    assert shelf == [] and np.shares_memory(again.trace.taken().last_hidden, room)
    assert not np.shares_memory(unread.trace.taken().last_hidden, room)
    for one, other in zip(by_tape(engine, genomes, prompts, again), first, strict=True):
        assert torch.equal(one, other)
    longer = write(engine, genomes, prompts, max_new_tokens=3 * NEW_TOKENS, ends=NEVER)
    found = by_tape(engine, genomes, prompts, longer)
    assert_close(found, exactly(engine, genomes, base, prompts, longer))
    assert shelf[0].size > room.size


@pytest.mark.parametrize("how", ["released", "of no use"])
def test_a_tape_that_is_not_read_leaves_its_room_too(base: BaseModel, how: str) -> None:
    engine, genomes = population(base, 2)
    prompts = encode(base)
    completions = write(engine, genomes, prompts)
    if how == "released":
        completions.release()
    else:  # with dropout the pass is another
        engine.score(genomes, prompts, completions, Scoring(gradient=True, dropout=0.3, dropout_seeds=np.arange(2)))
    assert len(engine.kernels._shelf) == 1
