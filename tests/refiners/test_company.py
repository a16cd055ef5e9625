"""An individual comes out of its refinement as it would alone: in any company, and however the batch is cut."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evolora.engine import split
from evolora.engine.base import Engine
from evolora.engine.budget import Budget
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.micro_batches import MicroBatchEngine
from evolora.engine.split import SplitEngine
from evolora.engine.text import Text
from evolora.models.base import BaseModel, load_base
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout
from evolora.population.evaluation import Evaluation
from evolora.refiners import GRPOConfig, GRPORefiner, PPOConfig, PPORefiner, RLOOConfig, RLOORefiner
from evolora.refiners.base import Refinement
from evolora.refiners.policy_gradient import PolicyGradientRefiner
from evolora.rewards import RewardScorer
from evolora.tasks.task import Example

EXAMPLES = [
    Example(text, {})
    for text in ("The sum of 4 and 3 is", "The English word for 'chat' is '", "2 + 2 =", "Write one line about the sea")
]
KINDS: dict[str, tuple[Any, Any]] = {
    "ppo": (PPORefiner, PPOConfig),
    "grpo": (GRPORefiner, GRPOConfig),
    "rloo": (RLOORefiner, RLOOConfig),
}
KEYS = [(1, 7), (1, 3), (1, 12)]
# Of what differs between individuals, something in each.
SETTINGS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "ppo": ("ppo", 0.0, {}),
    "ppo, dropout, minibatches": ("ppo", 0.05, {"minibatches": 2}),
    "ppo, dropout, individual critic, replay": ("ppo", 0.05, {"critic": "individual", "replay": 6}),
    "grpo, dropout": ("grpo", 0.05, {}),
    "grpo, dropout, skip, minibatches": ("grpo", 0.05, {"equal_groups": "skip", "minibatches": 2}),
    "grpo, skip, replay": ("grpo", 0.0, {"equal_groups": "skip", "replay": 6}),
    "grpo, dropout, led rate, dapo": ("grpo", 0.05, {"update_kl": 1e-4, "loss_type": "dapo", "minibatches": 3}),
    "grpo, dropout, skip, more minibatches than rows": ("grpo", 0.05, {"equal_groups": "skip", "minibatches": 9}),
    "grpo, early stop, KL target": ("grpo", 0.0, {"target_kl": 3e-4, "epochs": 3, "kl_target": 0.01}),
    "grpo, dropout, nucleus, cut ones masked, KL": (
        "grpo",
        0.05,
        {"top_p": 0.9, "mask_truncated": True, "kl_weight": 0.05, "minibatches": 2},
    ),
    "rloo, dropout, skip, everything": (
        "rloo",
        0.05,
        {
            "equal_groups": "skip",
            "minibatches": 2,
            "replay": 6,
            "update_kl": 1e-4,
            "kl_target": 0.01,
            "entropy_weight": 0.01,
        },
    ),
}


def reward(completions: Sequence[str], **_: object) -> list[float]:
    """Of each completion alone; equal in some groups and not in others."""
    return [float(zlib.crc32(text.encode()) % 2) for text in completions]


Made = tuple[BaseModel, GenomeLayout, Tensor]


def made(name: str, dtype: torch.dtype = torch.float32) -> Made:
    base = load_base(name)
    base.model.to(dtype)
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    noise = torch.randn(3, layout.genome_length, generator=torch.Generator().manual_seed(0))
    return base, layout, (founder + 0.02 * noise).to(dtype)


@pytest.fixture(scope="module")
def gpt2() -> Made:
    return made("tiny-gpt2")


@pytest.fixture(scope="module")
def exact() -> Made:
    return made("tiny-gpt2", torch.float64)


def refiner(of: Made, engine: Engine, setting: str, **more: Any) -> PolicyGradientRefiner[Any]:
    kind, dropout, options = SETTINGS[setting]
    make, config = KINDS[kind]
    samples = {} if kind == "ppo" else {"rollout_samples": 4}
    chosen = config(**{"max_new_tokens": 5, "rl_steps": 2, "lr": 1e-3, **samples, **options, **more})
    text, scorer = Text.of(of[0].model, of[0].tokenizer), RewardScorer(reward)
    result: PolicyGradientRefiner[Any] = make(engine, text, scorer, chosen, seed=0, dropout=dropout)
    if result.imitation is not None:
        ids = text.encode([" 7.", " cat'.", " sea", " waves.", " a", " the."])
        of_each = Evaluation.__new__(Evaluation)  # what `observe` reads of one
        object.__setattr__(of_each, "completion_ids", [ids])
        object.__setattr__(of_each, "rewards", np.ones((1, len(ids))))
        result.observe([*EXAMPLES, Example("One and one", {}), Example("The sea", {})], of_each)
    return result


def in_slices(
    make: Callable[[], PolicyGradientRefiner[Any]], genomes: Tensor, slices: Sequence[Sequence[int]]
) -> tuple[Tensor, list[dict[str, float]], PolicyGradientRefiner[Any]]:
    """The three by one refiner, slice by slice: what they are, by row, with what is said of them, and the refiner."""
    by = make()
    found: dict[int, tuple[Tensor, dict[str, float]]] = {}
    for rows in slices:
        refined: Refinement = by.refine(genomes[[*rows]], EXAMPLES, key=[KEYS[row] for row in rows], children=[*rows])
        found |= {row: (own, stats) for row, own, stats in zip(rows, refined.genomes, refined.stats, strict=True)}
    return torch.stack([found[row][0] for row in range(3)]), [found[row][1] for row in range(3)], by


def assert_as_alone(make: Callable[[], PolicyGradientRefiner[Any]], genomes: Tensor, tolerance: float) -> None:
    together, stats, by = in_slices(make, genomes, [[0, 1, 2]])
    apart, others, one_by_one = in_slices(make, genomes, [[2, 0], [1]])
    step = (together - genomes).norm(dim=1)
    assert (step > 0).all()
    assert ((together - apart).norm(dim=1) <= tolerance * step).all(), (together - apart).norm(dim=1) / step
    for own, other in zip(stats, others, strict=True):
        assert own.keys() == other.keys()
        for name, value in own.items():
            assert value == pytest.approx(other[name], rel=1e-3, abs=1e-4 if tolerance > 1e-8 else 1e-7), name
    # What is known to those who come next.
    for row in range(3):
        assert by.carried.of(row).keys() == one_by_one.carried.of(row).keys()
        for name, carried in by.carried.of(row).items():
            torch.testing.assert_close(carried, one_by_one.carried.of(row)[name], rtol=1e-3, atol=1e-5)
    for name, value in by.state_dict().items():
        other = one_by_one.state_dict()[name]
        if name == "critic":
            torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-5)
        elif name == "led_rate":
            assert value["factor"] == pytest.approx(other["factor"], rel=1e-3)
        elif name == "replay":
            assert value["prompts"].keys() == other["prompts"].keys()
            assert value["policy"] == pytest.approx(other["policy"])


@pytest.mark.parametrize("setting", SETTINGS)
def test_in_float64_it_is_the_same_far_below_a_step(exact: Made, setting: str) -> None:
    engine = EagerEngine(exact[0].model, exact[1])
    assert_as_alone(lambda: refiner(exact, engine, setting), exact[2], 1e-9)
    engine.close()


@pytest.mark.parametrize("setting", [name for name in SETTINGS if "dropout" in name])
def test_by_compiled_functions_it_is_the_same_up_to_rounding(gpt2: Made, setting: str) -> None:
    engine = CpuEngine(gpt2[0].model, gpt2[1])
    assert_as_alone(lambda: refiner(gpt2, engine, setting), gpt2[2], 1e-3)
    engine.close()


def test_llamas_come_out_the_same_by_parts_and_by_micro_batches(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut into the same parts the bits are the same; into others, and in other company, it is rounding."""
    monkeypatch.setattr(split, "LEAST_ROWS_SCORED", 1)
    of = made(str(model_folder("llama")), torch.float64)
    setting = "grpo, dropout, skip, minibatches"

    def refined(engine: Engine, slices: Sequence[Sequence[int]]) -> Tensor:
        return in_slices(lambda: refiner(of, engine, setting), of[2], slices)[0]

    def parts(threads: int) -> SplitEngine:
        return SplitEngine(EagerEngine(of[0].model, of[1]), lambda: EagerEngine(of[0].model, of[1]), threads=threads)

    whole = EagerEngine(of[0].model, of[1])
    expected = refined(whole, [[0, 1, 2]])
    step = (expected - of[2]).norm(dim=1)
    assert (step > 0).all()
    # Three parts are the three individuals, each as it is alone.
    assert torch.equal(refined(parts(3), [[0, 1, 2]]), refined(whole, [[0], [1], [2]]))
    for engine in (parts(2), MicroBatchEngine(whole, Budget(60))):
        for slices in ([[0, 1, 2]], [[1], [2, 0]]):
            assert ((refined(engine, slices) - expected).norm(dim=1) <= 1e-6 * step).all()  # its norms are in float32
