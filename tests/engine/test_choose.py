"""Which engine a model gets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from evolora.engine.choose import choose_engine, resolved
from evolora.engine.options import ENGINES, EngineName
from evolora.errors import InputError
from evolora.models.base import load_base
from evolora.models.genome import GenomeLayout
from evolora.models.lora import lora_config, lora_layout


def test_an_engine_is_made_by_the_name_that_it_has_in_the_options(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"auto", *ENGINES} == set(get_args(EngineName))
    monkeypatch.setitem(ENGINES, "mine", ENGINES["eager"])  # type: ignore[misc]
    mine: Any = "mine"
    model = load_base(str(model_folder("gpt2"))).model
    chosen = {kind: choose_engine(model, GenomeLayout(()), kind=kind) for kind in (mine, "eager", "cpu", "auto")}
    assert [type(each.engine).__name__ for each in chosen.values()] == 2 * ["EagerEngine"] + 2 * ["CpuEngine"]
    assert (chosen[mine].words, chosen["eager"].words) == ("mine engine", "eager engine")
    assert chosen["cpu"].words == chosen["auto"].words
    for each in chosen.values():
        each.engine.close()


def test_vllm_is_taken_only_where_it_is_asked_for_and_says_what_is_missing(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_base(str(model_folder("llama"))).model
    layout, _ = lora_layout(model, lora_config(model), seed=0)
    monkeypatch.setattr("evolora.engine.vllm.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--engine vllm: cannot be had: vLLM is not installed.*docs/engines\.md"):
        resolved(model, layout, "vllm", "auto")
    monkeypatch.setattr("evolora.engine.vllm.refuses", lambda model, layout: None)
    assert resolved(model, layout, "vllm", "auto") == ("vllm", "auto")
    assert resolved(model, layout, "auto", "auto")[0] != "vllm"
    head = type(layout)((replace(layout.modules[0], name="lm_head"),))
    monkeypatch.undo()
    with pytest.raises(InputError, match="the output embedding is adapted"):
        resolved(model, head, "vllm", "auto")
    with pytest.raises(InputError, match="vLLM has no float64"):
        resolved(model.double(), layout, "vllm", "auto")
