"""The pretended device, and tiny models on it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pretended
import pytest
import torch

from evolora.models.base import BaseModel, load_base


@pytest.fixture
def device() -> Iterator[torch.device]:
    with pretended.pretended() as found:
        yield found


@pytest.fixture
def placed(device: torch.device, model_folder: Callable[[str], Path]) -> Callable[..., BaseModel]:
    """A tiny model by its architecture: on the CPU, or on the device."""

    def load(architecture: str, *, on_device: bool, dtype: torch.dtype = torch.float32) -> BaseModel:
        base = load_base(str(model_folder(architecture)), dtype=dtype)
        if on_device:
            pretended.moved(base.model)
        return base

    return load
