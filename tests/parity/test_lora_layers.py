"""The population layers against PEFT's own model, one adapter at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM

from evolora.engine.eager.generate import Completions, PromptBatch, generate
from evolora.engine.eager.lora_layers import PopulationModel
from evolora.models.base import BaseModel, load_base
from evolora.models.export import load_adapter, save_adapter
from evolora.models.genome import GenomeLayout
from evolora.models.lora import as_peft_model, lora_config, lora_layout
from evolora.rng import keyed_generator

INDIVIDUALS = 4
NEW_TOKENS = 12
VARIANTS = ("plain", "rslora", "patterns", "mlp")
Folder = Callable[[str], Path]


def genomes_for(layout: GenomeLayout, n: int = INDIVIDUALS, *, scale: float = 0.25, seed: int = 0) -> Tensor:
    return torch.randn(n, layout.genome_length, generator=keyed_generator(seed, "test genomes")) * scale


def prompts_for(rows: int = 6, *, seed: int = 0) -> PromptBatch:
    """Prompts of 2 to 7 tokens, left-padded. Token 0 only pads."""
    generator = keyed_generator(seed, "test prompts")
    lengths = [2 + row % 6 for row in range(rows)]
    ids = torch.zeros(rows, max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, -length:] = torch.randint(1, 100, (length,), generator=generator)
        mask[row, -length:] = 1
    return PromptBatch(ids, mask)


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


def greedy(
    population_model: PopulationModel, genomes: Tensor, prompts: PromptBatch, end: int, *, use_cache: bool = True
) -> Tensor:
    with population_model.adapted(genomes):
        ids = generate(
            population_model.model,
            prompts.repeat(len(genomes)),
            max_new_tokens=NEW_TOKENS,
            eos_token_ids=[end],
            pad_token_id=0,
            use_cache=use_cache,
        ).ids
    return torch.nn.functional.pad(ids, (0, NEW_TOKENS - ids.shape[1]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_greedy_text_equal_pefts(architecture: str, variant: str, model_folder: Folder) -> None:
    folder = model_folder(architecture)
    base = load_base(str(folder))
    config = variant_config(base, variant)
    layout, founder = lora_layout(base.model, config, seed=0)
    if variant == "patterns":
        assert len({module.rank for module in layout.modules}) > 1
        assert len({module.scaling for module in layout.modules}) > 1
    genomes, prompts = genomes_for(layout), prompts_for()
    population_model = PopulationModel(base.model, layout)
    untouched = logits_of(base.model, prompts)
    with population_model.adapted(genomes):
        found = logits_of(base.model, prompts.repeat(INDIVIDUALS)).unflatten(0, (INDIVIDUALS, -1))
    free = greedy(population_model, genomes, prompts, end=-1)
    end = an_end_that_occurs(free)
    texts = {
        use_cache: greedy(population_model, genomes, prompts, end, use_cache=use_cache).unflatten(0, (INDIVIDUALS, -1))
        for use_cache in (True, False)
    }
    # The comparison means something: varied text, individuals that differ from the base and from each other, and rows
    # that end early beside rows that do not.
    assert len(free.unique()) > 15
    ended = (texts[True] == end).any(-1)
    assert ended.any() and not ended.all()
    for i in range(INDIVIDUALS):
        keep = prompts.mask.bool()
        assert (found[i] - untouched)[keep].abs().max() > 0.1
        assert not torch.equal(texts[True][i], texts[True][i - 1])
        oracle = peft_oracle(folder, config, layout.to_state_dict(genomes[i]))
        assert_logits(found[i], logits_of(oracle, prompts), prompts.mask)
        for use_cache in (True, False):
            assert torch.equal(texts[use_cache][i], stock_generate(oracle, prompts, end, use_cache=use_cache))
    with population_model.adapted(founder[None]):
        assert torch.equal(logits_of(base.model, prompts), untouched)


def test_an_exported_adapter_runs_in_peft_as_the_individual_did(
    architecture: str, model_folder: Folder, tmp_path: Path
) -> None:
    folder = model_folder(architecture)
    base = load_base(str(folder))
    config = lora_config(base.model, r=4, alpha=6)
    layout, _ = lora_layout(base.model, config, seed=0)
    genomes, prompts = genomes_for(layout, 1), prompts_for()
    population_model = PopulationModel(base.model, layout)
    with population_model.adapted(genomes):
        logits = logits_of(base.model, prompts)
    text = greedy(population_model, genomes, prompts, end=-1)
    end = an_end_that_occurs(text)
    text = greedy(population_model, genomes, prompts, end)
    save_adapter(tmp_path, base, config, layout, genomes[0])
    oracle = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path).eval()
    assert_logits(logits_of(oracle, prompts), logits, prompts.mask)
    assert torch.equal(stock_generate(oracle, prompts, end, use_cache=True), text)


@pytest.mark.parametrize("variant", ["plain", "rslora", "patterns"])
def test_scaling_is_applied_once_however_often_the_adapter_is_saved(
    variant: str, model_folder: Folder, tmp_path: Path
) -> None:
    folder = model_folder("llama")
    base = load_base(str(folder))
    config = variant_config(base, variant)
    layout, _ = lora_layout(base.model, config, seed=0)
    first = genome = genomes_for(layout, 1)[0]
    prompts = prompts_for()
    population_model = PopulationModel(base.model, layout)
    with population_model.adapted(genome[None]):
        expected = logits_of(base.model, prompts)
    population_model.detach()
    for cycle in range(3):
        path = tmp_path / str(cycle)
        path.mkdir()
        save_adapter(path, base, config, layout, genome)
        config, state = load_adapter(path)
        layout, _ = lora_layout(base.model, config, seed=cycle)
        genome = layout.from_state_dict(state)
        assert torch.equal(genome, first)
        again = PopulationModel(base.model, layout)
        with again.adapted(genome[None]):
            assert torch.equal(logits_of(base.model, prompts), expected)
        again.detach()


def sampled(
    population_model: PopulationModel, genomes: Tensor, prompts: PromptBatch, seeds: Tensor, end: int
) -> Completions:
    """Completions with seeds [individuals, prompts]."""
    with population_model.adapted(genomes):
        return generate(
            population_model.model,
            prompts.repeat(len(genomes)),
            max_new_tokens=NEW_TOKENS,
            eos_token_ids=[end],
            pad_token_id=0,
            seeds=seeds.flatten().numpy().astype(np.uint64),
        )


def full(completions: Completions, n: int) -> Tensor:
    ids = torch.nn.functional.pad(completions.ids, (0, NEW_TOKENS - completions.ids.shape[1]))
    return ids.unflatten(0, (n, -1))


def test_an_individuals_text_does_not_depend_on_its_company(architecture: str, model_folder: Folder) -> None:
    base = load_base(str(model_folder(architecture)))
    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    n, genomes, prompts = 5, genomes_for(layout, 5), prompts_for(6)
    seeds = torch.randint(0, 2**62, (n, 6), generator=keyed_generator(0, "seeds"))
    population_model = PopulationModel(base.model, layout)
    end = an_end_that_occurs(greedy(population_model, genomes, prompts, end=-1))

    def both(rows: list[int], columns: list[int]) -> tuple[Tensor, Tensor]:
        part = PromptBatch(prompts.ids[columns], prompts.mask[columns])
        # A batch of short prompts needs less padding.
        start = int(part.mask.any(0).int().argmax())
        part = PromptBatch(part.ids[:, start:], part.mask[:, start:])
        written = greedy(population_model, genomes[rows], part, end).unflatten(0, (len(rows), -1))
        drawn = full(sampled(population_model, genomes[rows], part, seeds[rows][:, columns], end), len(rows))
        return written, drawn

    everyone, columns = list(range(n)), list(range(6))
    written, drawn = both(everyone, columns)
    assert not torch.equal(written, drawn)
    assert len(written.flatten(0, 1).unique(dim=0)) > n
    order, shuffled = [3, 0, 4, 2, 1], [5, 2, 0, 4, 1, 3]
    for rows, kept in [(order, columns), (everyone, shuffled), (order, shuffled), ([2], columns), ([4, 1], [0, 1])]:
        for whole, part in zip((written, drawn), both(rows, kept), strict=True):
            assert torch.equal(part, whole[rows][:, kept])


def test_outside_the_block_the_model_is_the_base(architecture: str, model_folder: Folder) -> None:
    folder = model_folder(architecture)
    pristine = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = prompts_for()
    pristine_logits = logits_of(pristine, prompts)
    weights = {name: value.clone() for name, value in pristine.state_dict().items()}
    base = load_base(str(folder))
    expected = logits_of(base.model, prompts)
    assert_logits(expected, pristine_logits, prompts.mask)  # by the kernels: rounded a little differently

    def is_the_base() -> None:
        assert torch.equal(logits_of(base.model, prompts), expected)
        state = base.model.state_dict()
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], weights[name]) for name in weights)
        assert not any(value.requires_grad or value.grad is not None for value in base.model.parameters())
        assert not base.model.training

    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    is_the_base()
    genomes = genomes_for(layout)
    population_model = PopulationModel(base.model, layout)
    is_the_base()
    with population_model.adapted(genomes[:1]):
        one = logits_of(base.model, prompts)
        with population_model.adapted(genomes[1:2]):
            two = logits_of(base.model, prompts)
        assert torch.equal(logits_of(base.model, prompts), one)  # the inner block gives back the outer one's genomes
    assert not torch.equal(one, two) and not torch.equal(one, expected)
    is_the_base()
    with pytest.raises(KeyError), population_model.adapted(genomes[:1]):
        raise KeyError
    is_the_base()
    with pytest.raises(ValueError, match="genomes must be"), population_model.adapted(genomes[:, 1:]):
        pass
    is_the_base()
    with as_peft_model(base.model, lora_config(base.model), state=layout.to_state_dict(genomes[0])) as peft_model:
        assert_logits(logits_of(peft_model, prompts), one, prompts.mask)
    is_the_base()
    with pytest.raises(KeyError), as_peft_model(base.model, lora_config(base.model)):
        raise KeyError
    is_the_base()
    rows = genomes[:2].clone().requires_grad_()
    with population_model.adapted(rows):
        base.model(input_ids=prompts.ids, attention_mask=prompts.mask).logits.square().mean().backward()
    assert rows.grad is not None and (rows.grad != 0).any(1).all()
    is_the_base()
    population_model.detach()
    with population_model.adapted(genomes[:1]):
        assert torch.equal(logits_of(base.model, prompts), expected)


def test_gradients_equal_pefts_and_rows_do_not_mix(architecture: str, model_folder: Folder) -> None:
    folder = model_folder(architecture)
    base = load_base(str(folder), dtype=torch.float64)
    config = lora_config(base.model, r=3)
    layout, _ = lora_layout(base.model, config, seed=0)
    n, prompts = 3, prompts_for(4)
    genomes = genomes_for(layout, n).double().requires_grad_()
    population_model = PopulationModel(base.model, layout)

    def losses(model: torch.nn.Module, times: int) -> Tensor:
        batch = prompts.repeat(times)
        logits = model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=positions(batch.mask)
        ).logits.log_softmax(-1)
        chosen = logits[:, :-1].gather(-1, batch.ids[:, 1:, None])[..., 0]
        return -(chosen * batch.mask[:, :-1]).unflatten(0, (times, -1)).sum((1, 2))

    with population_model.adapted(genomes):
        found = losses(base.model, n)
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


def test_dropout_is_on_only_when_asked_for(model_folder: Folder) -> None:
    base = load_base(str(model_folder("gpt2")))
    layout, founder = lora_layout(base.model, lora_config(base.model), seed=0)
    genomes, prompts = genomes_for(layout, 2), prompts_for()
    seen = prompts.mask.bool()
    population_model = PopulationModel(base.model, layout, dropout=0.3)
    batch = prompts.repeat(2)
    with population_model.adapted(genomes):
        plain = logits_of(base.model, batch)
        assert torch.equal(logits_of(base.model, batch), plain)
    with population_model.adapted(genomes, dropout_seed=0):
        assert not torch.equal(logits_of(base.model, batch), plain)
        with population_model.adapted(genomes):
            assert torch.equal(logits_of(base.model, batch), plain)
    with population_model.adapted(genomes):
        assert torch.equal(logits_of(base.model, batch), plain)
    with population_model.adapted(founder[None], dropout_seed=0):  # it drops the adapters' inputs, not the base's
        inside = logits_of(base.model, prompts)[seen]
    torch.testing.assert_close(inside, logits_of(base.model, prompts)[seen], atol=1e-5, rtol=1e-5)
    none = PopulationModel(base.model, layout, dropout=0.0)
    population_model.detach()
    with none.adapted(genomes, dropout_seed=0):
        assert torch.equal(logits_of(base.model, batch), plain)


def test_a_batch_that_cannot_be_split_names_the_module(model_folder: Folder) -> None:
    base = load_base(str(model_folder("llama")))
    layout, _ = lora_layout(base.model, lora_config(base.model), seed=0)
    population_model = PopulationModel(base.model, layout)
    prompts = prompts_for(5)
    with (
        pytest.raises(ValueError, match=r"layers\.0\.self_attn\.\w+: a batch of shape \[5, 6, 32\].* 3 individuals"),
        population_model.adapted(genomes_for(layout, 3)),
    ):
        logits_of(base.model, prompts)
