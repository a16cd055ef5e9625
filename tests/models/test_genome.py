"""Genome <-> PEFT state dict, exactly and both ways; what does not fit is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model, get_peft_model_state_dict
from torch import Tensor

from evolora.models.base import load_base
from evolora.models.genome import AdaptedModule, GenomeLayout
from evolora.models.lora import as_peft_model, lora_config, lora_layout
from evolora.rng import keyed_generator


def a_layout(shapes: list[tuple[int, int, int]]) -> GenomeLayout:
    """A layout of modules with (in_features, out_features, rank)."""
    modules: list[AdaptedModule] = []
    offset = 0
    for index, (inside, outside, rank) in enumerate(shapes):
        name = f"layer{index}"
        a, b = f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"
        modules.append(AdaptedModule(name, a, b, inside, outside, rank, 2.0, offset, offset + rank * inside))
        offset += rank * (inside + outside)
    return GenomeLayout(tuple(modules))


SIZES = st.integers(1, 5)
LAYOUTS = st.lists(st.tuples(SIZES, SIZES, SIZES), min_size=1, max_size=4).map(a_layout)


@settings(max_examples=50, deadline=None)
@given(LAYOUTS, st.integers(0, 1000))
def test_the_round_trip_is_exact(layout: GenomeLayout, seed: int) -> None:
    genomes = torch.randn(3, layout.genome_length, generator=keyed_generator(seed, "genome"))
    for row in genomes:
        state = layout.to_state_dict(row)
        assert torch.equal(layout.from_state_dict(state), row)
        assert torch.equal(layout.from_state_dict(dict(reversed(state.items()))), row)
        for module in layout.modules:  # the offsets that the layout states are those that it uses
            a = row[module.a_offset : module.a_offset + module.a_size].view(module.rank, module.in_features)
            b = row[module.b_offset : module.b_offset + module.b_size].view(module.out_features, module.rank)
            assert torch.equal(state[module.a_key], a) and torch.equal(state[module.b_key], b)
    for _, a, b in layout.factors(genomes):
        a.fill_(1)
        b.fill_(2)
    assert ((genomes == 1) | (genomes == 2)).all()  # views, without gaps


def test_the_state_dict_is_a_copy() -> None:
    layout = a_layout([(2, 3, 1)])
    genome = torch.ones(5)
    layout.to_state_dict(genome)["base_model.model.layer0.lora_A.weight"].zero_()
    assert torch.equal(genome, torch.ones(5))


def test_the_state_dict_is_pefts(architecture: str, model_folder: Callable[[str], Path]) -> None:
    base = load_base(str(model_folder(architecture)))
    config = lora_config(base.model, r=3)
    layout, _ = lora_layout(base.model, config, seed=0)
    genome = torch.randn(layout.genome_length, generator=keyed_generator(0, "genome"))
    state = layout.to_state_dict(genome)
    found = get_peft_model_state_dict(as_peft_model(base.model, config, state=state))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert torch.equal(layout.from_state_dict(found), genome)
    plain = get_peft_model_state_dict(get_peft_model(load_base(base.path).model, config))
    assert {key: value.shape for key, value in plain.items()} == {key: value.shape for key, value in state.items()}


def missing(state: dict[str, Tensor], key: str) -> None:
    del state[key]


def unknown(state: dict[str, Tensor], key: str) -> None:
    state[key.replace("layers.1", "layers.7")] = state[key]


def renamed(state: dict[str, Tensor], key: str) -> None:
    state[key.replace(".weight", ".default.weight")] = state.pop(key)


def transposed(state: dict[str, Tensor], key: str) -> None:
    state[key] = state[key].T


def another_rank(state: dict[str, Tensor], key: str) -> None:
    state[key] = state[key][:1]


def emptied(state: dict[str, Tensor], _: str) -> None:
    state.clear()


@pytest.mark.parametrize("damage", [missing, unknown, renamed, transposed, another_rank, emptied])
def test_an_adapter_that_does_not_fit_is_refused(
    damage: Callable[[dict[str, Tensor], str], None], model_folder: Callable[[str], Path]
) -> None:
    base = load_base(str(model_folder("llama")))
    config = lora_config(base.model)
    layout, genome = lora_layout(base.model, config, seed=0)
    state = layout.to_state_dict(genome)
    damage(state, "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight")
    with pytest.raises(ValueError, match="does not fit the layout: base_model"):
        layout.from_state_dict(state)
    with pytest.raises((ValueError, RuntimeError)):
        as_peft_model(base.model, config, state=state)
    assert not any("lora" in name for name, _ in base.model.named_modules())


@pytest.mark.parametrize("shape", [(5,), (2, 4), (2, 6), (1, 1, 5)])
def test_genomes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"genomes must be \[n, 5\]"):
        list(a_layout([(2, 3, 1)]).factors(torch.zeros(shape)))
