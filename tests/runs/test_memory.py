"""Sizes that no machine has room for are refused before any weights are read."""

from pathlib import Path
from typing import Any

import pytest

from evolora import evolve
from evolora.errors import InputError
from evolora.models import base


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"pop": 10**10}, "pop=10000000000 with lora_r=8"),
        ({"lora_r": 10**10}, "pop=8 with lora_r=10000000000"),
        ({"max_new_tokens": 10**9}, "max_new_tokens=1000000000: expected fewer than the model's"),
        ({"rollout_prompts": 10**12}, "rollout_prompts=1000000000000 with rollout_samples="),
        ({"elites": 10**9}, "elites=1000000000: expected fewer than pop=8"),
    ],
)
def test_sizes(words: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(base.AutoModelForCausalLM, "from_pretrained", read)
    with pytest.raises(InputError) as caught:
        evolve(out=tmp_path / "out", **words)
    assert said in str(caught.value) and not (tmp_path / "out").exists()
