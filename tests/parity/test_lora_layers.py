"""The adapted layers of an engine's tree against PEFT's own model, one adapter at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM

from evolora.engine.base import Decoding
from evolora.engine.cpu.engine import CpuEngine
from evolora.engine.eager.dropout import token_keys
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.eager.generate import PromptBatch, generate
from evolora.models.base import BaseModel, load_base
from evolora.models.export import load_adapter, save_adapter
from evolora.models.genome import GenomeLayout
from evolora.models.lora import as_peft_model, lora_config, lora_layout
from evolora.rng import keyed_generator

INDIVIDUALS = 4
NEW_TOKENS = 12
VARIANTS = ("plain", "rslora", "patterns", "mlp")
Folder = Callable[[str], Path]
Kind = type[EagerEngine]


@pytest.fixture(params=[EagerEngine, CpuEngine])
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


def genomes_for(layout: GenomeLayout, n: int = INDIVIDUALS, *, scale: float = 0.25, seed: int = 0) -> Tensor:
    return torch.randn(n, layout.genome_length, generator=keyed_generator(seed, "test genomes")) * scale


def prompts_for(rows: int = 6, *, seed: int = 0) -> list[list[int]]:
    """Prompts of 2 to 7 tokens. Token 0 only pads."""
    generator = keyed_generator(seed, "test prompts")
    return [torch.randint(1, 100, (2 + row % 6,), generator=generator).tolist() for row in range(rows)]


def padded(prompts: list[list[int]], times: int = 1) -> PromptBatch:
    return PromptBatch.of(prompts, pad=0, times=times, device=torch.device("cpu"))


def variant_config(base: BaseModel, variant: str) -> LoraConfig:
    if variant == "mlp":
        names = {"gpt2": ["c_fc", "mlp.c_proj"], "gpt_neox": ["dense_h_to_4h", "dense_4h_to_h"]}
        targets = names.get(base.model.config.model_type, ["gate_proj", "up_proj", "down_proj"])
        return lora_config(base.model, r=3, alpha=5, target_modules=targets)
    config = lora_config(base.model, r=4, alpha=6, use_rslora=variant == "rslora")
    if variant == "patterns":
        # Whole paths and suffixes, as PEFT matches both.
        patterns = {
            "gpt2": ({"h.0.attn.c_attn": 2, "c_proj": 5}, {"c_attn": 9}),
            "gpt_neox": ({"layers.0.attention.query_key_value": 2}, {"layers.1.attention.query_key_value": 9}),
        }
        config.rank_pattern, config.alpha_pattern = patterns.get(
            base.model.config.model_type, ({"q_proj": 2}, {"layers.1.self_attn.q_proj": 9})
        )
    return config


def peft_oracle(folder: Path, config: LoraConfig, state: dict[str, Tensor]) -> PeftModel:
    """PEFT's own model on a separately loaded base."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    outcome = set_peft_model_state_dict(model, state)
    assert not outcome.unexpected_keys
    assert not [key for key in outcome.missing_keys if "lora" in key]
    return model.eval()


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def logits_of(model: torch.nn.Module, prompts: PromptBatch) -> Tensor:
    with torch.no_grad():
        return model(input_ids=prompts.ids, attention_mask=prompts.mask, position_ids=positions(prompts.mask)).logits


def adapted_logits(engine: EagerEngine, genomes: Tensor, prompts: PromptBatch, *, dropout: float = 0.0) -> Tensor:
    with engine.layers.adapted(genomes):
        if dropout:
            engine.layers.drop(
                dropout, token_keys(prompts.ids, prompts.mask, np.arange(len(prompts.ids), dtype=np.uint64))
            )
        return logits_of(engine.layers.model, prompts)


def assert_logits(found: Tensor, expected: Tensor, mask: Tensor) -> None:
    """Equal on real tokens, relative to the logits' size; what is computed on padding means nothing."""
    keep = mask.bool()
    torch.testing.assert_close(found[keep], expected[keep], atol=1e-5, rtol=1e-5)


def an_end_that_occurs(rows: Tensor) -> int:
    """A token that ends some rows early and others not at all."""
    inside = rows[:, 1:-2]
    counts = {int(token): int((inside == token).any(1).sum()) for token in inside.unique()}
    share = {token: count for token, count in counts.items() if 0 < count < len(rows) and token != 0}
    assert share, "no token occurs in some rows and not in others"
    return max(share, key=lambda token: (share[token] <= len(rows) * 0.7, share[token]))


def stock_generate(model: torch.nn.Module, prompts: PromptBatch, end: int, *, use_cache: bool) -> Tensor:
    """The oracle's completions, padded on the right with token 0 to NEW_TOKENS."""
    ids = model.generate(
        input_ids=prompts.ids,
        attention_mask=prompts.mask,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=end,
        pad_token_id=0,
        use_cache=use_cache,
    )[:, prompts.ids.shape[1] :]
    return torch.nn.functional.pad(ids, (0, NEW_TOKENS - ids.shape[1]))


def written(
    engine: EagerEngine, genomes: Tensor, prompts: list[list[int]], end: int, seeds: Tensor | None = None
) -> Tensor:
    """Completions [individuals, prompts, NEW_TOKENS], sampled with seeds [individuals, prompts] or greedy."""
    drawn = None if seeds is None else seeds.flatten().numpy().astype(np.uint64)
    how = Decoding(max_new_tokens=NEW_TOKENS, ends=[end], pad=0, seeds=drawn)
    return full(engine.generate(genomes, prompts, how).ids, len(genomes))


def full(ids: Tensor, n: int) -> Tensor:
    return torch.nn.functional.pad(ids, (0, NEW_TOKENS - ids.shape[1])).unflatten(0, (n, -1))


def greedy(
    engine: EagerEngine, genomes: Tensor, prompts: list[list[int]], end: int, *, use_cache: bool = True
) -> Tensor:
    how = Decoding(max_new_tokens=NEW_TOKENS, ends=[end], pad=0)
    if use_cache:
        return full(engine.generate(genomes, prompts, how).ids, len(genomes))
    with engine.layers.adapted(genomes):
        batch = padded(prompts, len(genomes))
        return full(generate(engine.layers, engine.kernels, batch, how, use_cache=False).ids, len(genomes))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_greedy_text_equal_pefts(kind: Kind, architecture: str, variant: str, model_folder: Folder) -> None:
    folder = model_folder(architecture)
    base = load_base(str(folder))
    config = variant_config(base, variant)
    layout, founder = lora_layout(base.model, config, seed=0)
    if variant == "patterns":
        assert len({module.rank for module in layout.modules}) > 1
        assert len({module.scaling for module in layout.modules}) > 1
    genomes, prompts = genomes_for(layout), prompts_for()
    batch = padded(prompts)
    engine = kind(base.model, layout)
    untouched = logits_of(engine.layers.model, batch)
    found = adapted_logits(engine, genomes, padded(prompts, INDIVIDUALS)).unflatten(0, (INDIVIDUALS, -1))
    free = greedy(engine, genomes, prompts, end=-1)
    end = an_end_that_occurs(free.flatten(0, 1))
    texts = {use_cache: greedy(engine, genomes, prompts, end, use_cache=use_cache) for use_cache in (True, False)}
    # The comparison means something: varied text, individuals that differ from the base and from each other, and rows
    # that end early beside rows that do not.
    assert len(free.unique()) > 15
    ended = (texts[True] == end).any(-1)
    assert ended.any() and not ended.all()
    for i in range(INDIVIDUALS):
        keep = batch.mask.bool()
        assert (found[i] - untouched)[keep].abs().max() > 0.1
        assert not torch.equal(texts[True][i], texts[True][i - 1])
        oracle = peft_oracle(folder, config, layout.to_state_dict(genomes[i]))
        assert_logits(found[i], logits_of(oracle, batch), batch.mask)
        for use_cache in (True, False):
            assert torch.equal(texts[use_cache][i], stock_generate(oracle, batch, end, use_cache=use_cache))
    assert torch.equal(adapted_logits(engine, founder[None], batch), untouched)


def test_an_exported_adapter_runs_in_peft_as_the_individual_did(
    kind: Kind, architecture: str, model_folder: Folder, tmp_path: Path
) -> None:
    folder = model_folder(architecture)
    base = load_base(str(folder))
    config = lora_config(base.model, r=4, alpha=6)
    layout, _ = lora_layout(base.model, config, seed=0)
    genomes, prompts = genomes_for(layout, 1), prompts_for()
    batch = padded(prompts)
    engine = kind(base.model, layout)
    logits = adapted_logits(engine, genomes, batch)
    end = an_end_that_occurs(greedy(engine, genomes, prompts, end=-1)[0])
    text = greedy(engine, genomes, prompts, end)[0]
    save_adapter(tmp_path, base, config, layout, genomes[0])
    oracle = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path).eval()
    assert_logits(logits_of(oracle, batch), logits, batch.mask)
    assert torch.equal(stock_generate(oracle, batch, end, use_cache=True), text)


@pytest.mark.parametrize("variant", ["plain", "rslora", "patterns"])
def test_scaling_is_applied_once_however_often_the_adapter_is_saved(
    variant: str, model_folder: Folder, tmp_path: Path
) -> None:
    folder = model_folder("llama")
    base = load_base(str(folder))
    config = variant_config(base, variant)
    layout, _ = lora_layout(base.model, config, seed=0)
    first = genome = genomes_for(layout, 1)[0]
    batch = padded(prompts_for())
    expected = adapted_logits(CpuEngine(base.model, layout), genome[None], batch)
    for cycle in range(3):
        path = tmp_path / str(cycle)
        path.mkdir()
        save_adapter(path, base, config, layout, genome)
        config, state = load_adapter(path)
        layout, _ = lora_layout(base.model, config, seed=cycle)
        genome = layout.from_state_dict(state)
        assert torch.equal(genome, first)
        assert torch.equal(adapted_logits(CpuEngine(base.model, layout), genome[None], batch), expected)


def test_an_individuals_text_does_not_depend_on_its_company(
    kind: Kind, architecture: str, model_folder: Folder
) -> None:
    base = load_base(str(model_folder(architecture)))
    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    n, genomes, prompts = 5, genomes_for(layout, 5), prompts_for(6)
    seeds = torch.randint(0, 2**62, (n, 6), generator=keyed_generator(0, "seeds"))
    engine = kind(base.model, layout)
    end = an_end_that_occurs(greedy(engine, genomes, prompts, end=-1).flatten(0, 1))

    def both(rows: list[int], columns: list[int]) -> tuple[Tensor, Tensor]:
        part = [prompts[column] for column in columns]
        drawn = written(engine, genomes[rows], part, end, seeds[rows][:, columns])
        return written(engine, genomes[rows], part, end), drawn

    everyone, columns = list(range(n)), list(range(6))
    greedily, drawn = both(everyone, columns)
    assert not torch.equal(greedily, drawn)
    assert len(greedily.flatten(0, 1).unique(dim=0)) > n
    order, shuffled = [3, 0, 4, 2, 1], [5, 2, 0, 4, 1, 3]
    for rows, kept in [(order, columns), (everyone, shuffled), (order, shuffled), ([2], columns), ([4, 1], [0, 1])]:
        for whole, part in zip((greedily, drawn), both(rows, kept), strict=True):
            assert torch.equal(part, whole[rows][:, kept])


def test_outside_the_block_the_tree_is_the_base_and_the_model_always(
    kind: Kind, architecture: str, model_folder: Folder
) -> None:
    folder = model_folder(architecture)
    prompts = padded(prompts_for())
    base = load_base(str(folder))
    pristine_logits = logits_of(base.model, prompts)
    weights = {name: value.clone() for name, value in base.model.state_dict().items()}
    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    genomes = genomes_for(layout)
    engine = kind(base.model, layout)
    tree = engine.layers.model
    expected = logits_of(tree, prompts)
    assert_logits(expected, pristine_logits, prompts.mask)  # by kernels: rounded a little differently

    def is_untouched() -> None:
        assert torch.equal(logits_of(base.model, prompts), pristine_logits)
        state = base.model.state_dict()
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], weights[name]) for name in weights)
        assert not any(value.requires_grad or value.grad is not None for value in base.model.parameters())
        assert not base.model.training

    def is_the_base() -> None:
        assert torch.equal(logits_of(tree, prompts), expected)
        assert not any(value.requires_grad or value.grad is not None for value in tree.parameters())
        assert not tree.training
        is_untouched()

    is_the_base()
    with engine.layers.adapted(genomes[:1]):
        one = logits_of(tree, prompts)
        is_untouched()
        with pytest.raises(RuntimeError, match="one call at a time"), engine.layers.adapted(genomes[1:2]):
            pass
        assert torch.equal(logits_of(tree, prompts), one)  # who was refused leaves the genomes as they were
    two = adapted_logits(engine, genomes[1:2], prompts)
    assert not torch.equal(one, two) and not torch.equal(one, expected)
    is_the_base()
    with pytest.raises(KeyError), engine.layers.adapted(genomes[:1]):
        raise KeyError
    is_the_base()
    with pytest.raises(ValueError, match="genomes must be"), engine.layers.adapted(genomes[:, 1:]):
        pass
    is_the_base()
    peft_model = as_peft_model(base.model, lora_config(base.model), state=layout.to_state_dict(genomes[0]))
    assert_logits(logits_of(peft_model, prompts), one, prompts.mask)
    is_the_base()
    rows = genomes[:2].clone().requires_grad_()
    with engine.layers.adapted(rows):
        tree(input_ids=prompts.ids, attention_mask=prompts.mask).logits.square().mean().backward()
    assert rows.grad is not None and (rows.grad != 0).any(1).all()
    is_the_base()
    engine.close()
    assert torch.equal(adapted_logits(engine, genomes[:1], prompts), expected)


def test_gradients_equal_pefts_and_rows_do_not_mix(kind: Kind, architecture: str, model_folder: Folder) -> None:
    folder = model_folder(architecture)
    base = load_base(str(folder), dtype=torch.float64)
    config = lora_config(base.model, r=3)
    layout, _ = lora_layout(base.model, config, seed=0)
    n, prompts = 3, prompts_for(4)
    genomes = genomes_for(layout, n).double().requires_grad_()
    engine = kind(base.model, layout)

    def losses(model: torch.nn.Module, times: int) -> Tensor:
        batch = padded(prompts, times)
        logits = model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=positions(batch.mask)
        ).logits.log_softmax(-1)
        chosen = logits[:, :-1].gather(-1, batch.ids[:, 1:, None])[..., 0]
        return -(chosen * batch.mask[:, :-1]).unflatten(0, (times, -1)).sum((1, 2))

    with engine.layers.adapted(genomes):
        found = losses(engine.layers.model, n)
    gradients = [torch.autograd.grad(found[i], genomes, retain_graph=True)[0] for i in range(n)]
    for i in range(n):
        oracle = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
        set_peft_model_state_dict(oracle, layout.to_state_dict(genomes[i].detach()))
        oracle = oracle.double().eval()
        loss = losses(oracle, 1)[0]
        torch.testing.assert_close(found[i], loss, atol=1e-10, rtol=1e-10)
        loss.backward()
        # PEFT's parameter names carry the adapter's name; the state dict's keys do not.
        expected = {
            name.replace(".default.", "."): parameter.grad
            for name, parameter in oracle.named_parameters()
            if parameter.requires_grad
        }
        row = layout.to_state_dict(gradients[i][i])
        assert row.keys() == expected.keys()
        for key, value in row.items():
            assert value.abs().max() > 1e-6
            torch.testing.assert_close(value, expected[key], atol=1e-10, rtol=1e-10)
        others = [j for j in range(n) if j != i]
        assert (gradients[i][others] == 0).all()


def test_dropout_is_on_only_when_asked_for(kind: Kind, model_folder: Folder) -> None:
    base = load_base(str(model_folder("gpt2")))
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    genomes, prompts = genomes_for(layout, 2), prompts_for()
    alone, batch = padded(prompts), padded(prompts, 2)
    seen = alone.mask.bool()
    engine = kind(base.model, layout)
    plain = adapted_logits(engine, genomes, batch)
    assert torch.equal(adapted_logits(engine, genomes, batch), plain)
    assert not torch.equal(adapted_logits(engine, genomes, batch, dropout=0.3), plain)
    assert torch.equal(adapted_logits(engine, genomes, batch), plain)
    # It drops the adapters' inputs, not the base's.
    inside = adapted_logits(engine, founder[None], alone, dropout=0.3)[seen]
    torch.testing.assert_close(inside, logits_of(engine.layers.model, alone)[seen], atol=1e-5, rtol=1e-5)


def test_a_batch_that_cannot_be_split_names_the_module(kind: Kind, model_folder: Folder) -> None:
    base = load_base(str(model_folder("llama")))
    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    engine = kind(base.model, layout)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.\w+: a batch of shape \[5, 6, 32\].* 3 individuals"):
        adapted_logits(engine, genomes_for(layout, 3), padded(prompts_for(5)))
