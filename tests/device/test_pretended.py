"""The pretended device refuses what CUDA refuses, and counts what CUDA would wait for."""

import pretended
import pytest
import torch
from torch import Tensor, nn


@pytest.fixture
def numbers(device: torch.device) -> Tensor:
    return torch.tensor([1.0, 2.0, 3.0], device=device)


def test_devices_do_not_mix(numbers: Tensor) -> None:
    elsewhere = torch.ones(3)
    for mixed in (
        lambda: numbers + elsewhere,
        lambda: torch.cat([numbers, elsewhere]),
        lambda: elsewhere[numbers.long() - 1],
        lambda: numbers.normal_(generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError, match=r"same device|tensor's device|on pretended"):
            mixed()
    with pytest.raises(RuntimeError):
        numbers.numpy()
    assert (numbers + torch.tensor(1.0)).tolist() == [2.0, 3.0, 4.0], "a number may lie elsewhere"


def test_waits_copies_and_kernels_are_counted(numbers: Tensor) -> None:
    with pretended.counted() as counts:
        doubled = numbers * 2
        doubled[1:].view(2, 1).copy_(torch.zeros(2, 1))
        assert doubled.tolist() == [2.0, 0.0, 0.0]
        assert int(doubled.argmax()) == 0 and doubled[doubled > 0].shape == (1,)
    assert counts.waits == {"_to_copy": 1, "_local_scalar_dense": 1, "index": 1}
    assert counts.copies == {"copy_": 1}
    assert counts.kernels == {"mul": 1, "argmax": 1, "gt": 1, "index": 1}


def test_gradients_and_tied_weights_are_the_devices(device: torch.device) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model(x).sum().backward()
    expected = x.grad
    pretended.moved(model)
    own = x.detach().to(device).requires_grad_()
    model(own).sum().backward()
    assert model[1].weight is model[0].weight and own.grad is not None and own.grad.device == device
    assert torch.allclose(own.grad.cpu(), expected)
