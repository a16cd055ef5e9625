"""Which engine a model gets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from evolora.engine.choose import choose_engine
from evolora.engine.options import ENGINES, EngineName
from evolora.models.base import load_base
from evolora.models.genome import GenomeLayout


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
