"""Costs: the nominal operations against torch's own count, and what is counted of evaluations and refinements."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from evolora import GRPOConfig, PPOConfig
from evolora.engine.choose import choose_engine
from evolora.engine.text import Text
from evolora.models.base import BaseModel, load_base
from evolora.models.cost import PURPOSES, Cost, Costs, ModelSize
from evolora.models.lora import lora_config, lora_layout
from evolora.population.evaluation import LocalEvaluator
from evolora.refiners import GRPORefiner, PPORefiner
from evolora.rewards import RewardScorer
from evolora.tasks.task import Example

LAYERS, WIDTH, VOCABULARY, TEXTS, LENGTH = 6, 48, 200, 3, 20


@dataclass(frozen=True)
class Counted:
    """What torch counts for a GPT-2 with LoRA on texts of one length, and the size of that model."""

    size: ModelSize
    forward: int
    backward: int


@pytest.fixture(scope="module")
def counted() -> Counted:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=64, attn_implementation="eager"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
        layout, _ = lora_layout(model, lora_config(model), seed=0)
        size = ModelSize.of(model, adapter=layout.genome_length)
        peft_model = get_peft_model(model, lora_config(model, dropout=0.0)).eval()
    with FlopCounterMode(display=False) as counter:
        logits = peft_model(input_ids=torch.arange(TEXTS * LENGTH).view(TEXTS, LENGTH) % VOCABULARY).logits
        forward = counter.get_total_flops()
        logits.log_softmax(-1).sum().backward()
    return Counted(size, forward, counter.get_total_flops() - forward)


def above_the_diagonal(products: int) -> int:
    """What a plain product of attention computes in vain for tokens that a causal model does not see."""
    unseen = LENGTH * LENGTH - LENGTH * (LENGTH + 1) // 2
    return products * 2 * LAYERS * WIDTH * unseen * TEXTS


def test_weights_are_those_of_matrices_and_of_the_tied_output_layer(counted: Counted) -> None:
    block = 4 * WIDTH * WIDTH + 2 * WIDTH * 4 * WIDTH
    adapter = LAYERS * 8 * ((WIDTH + 3 * WIDTH) + (WIDTH + WIDTH) + (4 * WIDTH + WIDTH))
    assert counted.size == ModelSize(LAYERS * block + VOCABULARY * WIDTH, LAYERS, WIDTH, adapter)


def test_a_forward_pass_is_what_torch_counts(counted: Counted) -> None:
    nominal = counted.size.forward([LENGTH] * TEXTS)
    assert nominal == counted.forward - above_the_diagonal(2)
    assert nominal == pytest.approx(counted.forward, rel=0.05)


def test_a_backward_pass_is_what_torch_counts_but_for_the_first_layers_input(counted: Counted) -> None:
    nominal = counted.size.backward([LENGTH] * TEXTS)
    # The embeddings want no gradient, so the first layer's product and its A have none to give back.
    first = 2 * TEXTS * LENGTH * (WIDTH * 3 * WIDTH + 8 * WIDTH)
    assert nominal == counted.backward - above_the_diagonal(4) + first
    assert nominal == pytest.approx(counted.backward, rel=0.05)


def test_every_architecture_has_a_size(architecture: str, model_folder: Callable[[str], Path]) -> None:
    """Parameters, less what multiplies nothing: the input embeddings, biases and norms."""
    model = AutoModelForCausalLM.from_pretrained(model_folder(architecture), attn_implementation="eager")
    size = ModelSize.of(model, adapter=0)
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim < 2)
    tables = {id(table): table.numel() for table in (model.get_input_embeddings().weight,)}
    if architecture == "gpt2":
        tables[id(model.transformer.wpe.weight)] = model.transformer.wpe.weight.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    output = model.get_output_embeddings().weight.numel() if tied else 0
    assert size.weights == total - vectors - sum(tables.values()) + output
    assert (size.layers, size.width) == (2, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(1, 16, dtype=torch.int64))
    assert size.forward([16]) == pytest.approx(counter.get_total_flops(), rel=0.08)


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=6), st.lists(st.integers(1, 50), max_size=6))
def test_operations_add_up_over_texts(some: list[int], others: list[int]) -> None:
    size = ModelSize(weights=1000, layers=3, width=16, adapter=70)
    for count in (size.forward, size.backward):
        assert count(some) + count(others) == count([*others, *some])
    difference = size.forward(some) - size.forward(some, adapted=False)
    assert difference == 2 * 70 * sum(some)


costs = st.builds(Cost, st.integers(0, 10**6), st.integers(0, 10**18), st.floats(0, 1e6), st.integers(0, 10**12))


@settings(deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(PURPOSES, costs)))
def test_metrics_hold_all_that_was_spent(by_purpose: dict[Any, Cost]) -> None:
    spent = Costs(dict(by_purpose))
    assert Costs.from_metrics(spent.metrics()) == spent
    kinds = ("tokens", "flops", "time", "time.memory")
    assert set(spent.metrics()) == {f"{kind}.{purpose}" for kind in kinds for purpose in PURPOSES}
    twice = Costs(dict(by_purpose))
    twice += spent
    assert twice.flops == 2 * spent.flops
    assert twice.generated_tokens == 2 * (by_purpose["evaluation"].tokens + by_purpose["rollout"].tokens)


def test_seconds_are_those_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([1.0, 3.5, 10.0, 10.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    spent = Costs()
    for _ in range(2):
        with spent.timed("rollout"):
            pass
    assert spent.by_purpose["rollout"].seconds == 2.75
    assert spent.by_purpose["evaluation"] == spent.by_purpose["update"] == Cost()


EXAMPLES = [
    Example(text, {}) for text in ("4 + 3 =", "The English word for 'chat' is '", "4 + 3 =", "The sum of 2 and")
]


def length_of_text(completions: list[str], **_: Any) -> list[float]:
    return [len(set(text)) / 10 for text in completions]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base("tiny-gpt2")


def lengths(base: BaseModel, completion_ids: list[list[int]]) -> list[int]:
    """Of a prompt and its completion, but for the last token."""
    prompts = [len(base.tokenizer(example.prompt)["input_ids"]) for example in EXAMPLES]
    return [prompt + len(ids) - 1 for prompt, ids in zip(prompts, completion_ids, strict=True)]


@pytest.mark.parametrize("rows_per_slice", [2, 512])
@pytest.mark.parametrize("draft_rows", [0, 512])
def test_an_evaluation_costs_the_same_in_any_batch(base: BaseModel, rows_per_slice: int, draft_rows: int) -> None:
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    genomes = founder + 0.05 * torch.randn(3, len(founder), generator=torch.Generator().manual_seed(0))
    evaluator = LocalEvaluator(
        choose_engine(base.model, layout).engine, Text.of(base.model, base.tokenizer), RewardScorer(length_of_text),
        max_new_tokens=6, rows_per_slice=rows_per_slice, draft_rows=draft_rows,
    )  # fmt: skip
    found = evaluator.evaluate(genomes, EXAMPLES)
    size = ModelSize.of(base.model, adapter=layout.genome_length)
    expected = Cost(
        sum(len(ids) for row in found.completion_ids for ids in row),
        sum(size.forward(lengths(base, row)) for row in found.completion_ids),
    )
    assert found.cost == expected and expected.tokens > len(genomes) * len(EXAMPLES)
    assert evaluator.evaluate(genomes, EXAMPLES, drafts=found.completion_ids).cost == expected


@pytest.mark.parametrize(("kl_weight", "epochs", "minibatches"), [(0.02, 1, 1), (0.0, 1, 2), (0.02, 3, 2)])
def test_a_refinement_costs_its_rollouts_and_a_pass_an_epoch(
    base: BaseModel, kl_weight: float, epochs: int, minibatches: int
) -> None:
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    seen: list[list[list[int]]] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.append(completion_ids)
        return length_of_text(completions)

    config = PPOConfig(
        max_new_tokens=6, rl_steps=2, kl_weight=kl_weight, epochs=epochs, minibatches=minibatches, target_kl=None
    )
    engine, text = choose_engine(base.model, layout).engine, Text.of(base.model, base.tokenizer)
    refiner = PPORefiner(engine, text, RewardScorer(reward), config, seed=0, dropout=0.05)
    found = refiner.refine(founder.repeat(2, 1), EXAMPLES, key=[(1, 0), (1, 1)]).costs.by_purpose
    size = ModelSize.of(base.model, adapter=layout.genome_length)
    read = [length for ids in seen for half in (ids[:4], ids[4:]) for length in lengths(base, half)]
    tokens = sum(len(ids) for rollout in seen for ids in rollout)
    reference = size.forward(read, adapted=False) if kl_weight else 0
    assert len(seen) == 2 and found["evaluation"] == Cost()
    assert replace(found["rollout"], seconds=0, memory=0) == Cost(tokens, size.forward(read) + reference)
    passes = epochs * (size.forward(read) + size.backward(read))
    assert replace(found["update"], seconds=0, memory=0) == Cost(epochs * tokens, passes)
    assert found["rollout"].seconds > 0 and found["update"].seconds > 0


def test_passes_that_an_early_stop_saves_cost_nothing(base: BaseModel) -> None:
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    costs = []
    for target_kl in (None, 1e-12):
        config = GRPOConfig(
            max_new_tokens=6, rl_steps=1, epochs=4, rollout_samples=8, lr=0.01, target_kl=target_kl, kl_weight=0.0
        )
        engine, text = choose_engine(base.model, layout).engine, Text.of(base.model, base.tokenizer)
        refiner = GRPORefiner(engine, text, RewardScorer(length_of_text), config, seed=0)
        costs.append(refiner.refine(founder[None], EXAMPLES, key=[(1, 0)]).costs.by_purpose)
    without, stopped = costs
    assert without["rollout"].flops == stopped["rollout"].flops
    assert without["update"].tokens == 4 * without["rollout"].tokens
    # The second pass finds the policy moved, and is the last.
    assert stopped["update"].tokens == 2 * stopped["rollout"].tokens
    assert 2 * stopped["update"].flops == without["update"].flops
