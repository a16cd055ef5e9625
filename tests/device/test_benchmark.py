"""The benchmark of a GPU, rehearsed where there is none."""

import json
from pathlib import Path

import gpu
import pretended
import pytest
import torch
from torch import Tensor

from evolora.models.base import BUNDLED_MODEL, load_base


def test_it_measures_and_finds_the_same_as_peft(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = gpu.random_subject("tiny", "cpu", torch.float32, load_base(BUNDLED_MODEL).tokenizer)
    placed = gpu.Subject("tiny", subject.shape, pretended.moved(subject.model), subject.tokenizer)
    assert placed.engine.device == device
    found = gpu.equality(placed)
    assert found["first tokens that are PEFT's"] == "24 of 24"
    assert found["largest difference of log-probabilities"] < 1e-4
    assert all(value > 0 for value in gpu.decoding(placed).values())
    monkeypatch.setattr(gpu, "trl_seconds", lambda _: 1.0)  # TRL's own way to a device is accelerate's
    assert gpu.update(placed)["seconds an update"] > 0


def test_what_fails_is_named_and_the_rest_is_written(tmp_path: Path) -> None:
    report = gpu.Report(tmp_path / "gpu.json", torch.device("cpu"), minutes=1)
    report.part("broken", lambda: {"never": 1 / 0})
    report.part("whole", lambda: {"tokens a second": 2.0})
    report.end = 0.0
    report.part("late", lambda: {"never": Tensor()})
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert "ZeroDivisionError" in parts["broken"]["failed"] and parts["whole"]["tokens a second"] == 2.0
    assert parts["late"] == {"not measured": "no time left"} and report.failed == 1
