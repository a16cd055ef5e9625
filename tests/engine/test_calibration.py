"""What is chosen by measuring: threads and the size of a batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from evolora.engine import calibration
from evolora.engine.calibration import bytes_a_row, choose_rows, choose_threads, slowdown, threads_an_operation
from evolora.models.base import load_base


@pytest.fixture
def small(model_folder: Callable[[str], Path]) -> PreTrainedModel:
    return load_base(str(model_folder("gpt2"))).model


def test_a_small_models_operations_get_one_thread_and_its_parts_all(small: PreTrainedModel) -> None:
    assert choose_threads(small, 8, measure=lambda *_: pytest.fail("measured")) == 8
    assert threads_an_operation(small, 8) == 1


@pytest.mark.parametrize(("seconds", "threads"), [({8: 1.0, 4: 0.8}, 4), ({8: 1.0, 4: 0.95}, 8), ({8: 1.0, 4: 1.9}, 8)])
def test_large_models_get_all_cores_or_half(seconds: dict[int, float], threads: int) -> None:
    with torch.device("meta"):
        large = GPT2LMHeadModel(GPT2Config(n_layer=2))
    assert sum(parameter.numel() for parameter in large.parameters()) > calibration.SMALL_MODEL
    measured = choose_threads(_OnCpu(large), 8, measure=lambda _, n: seconds[n])
    assert measured == threads
    assert choose_threads(_OnCpu(large), 2) == 2
    assert threads_an_operation(_OnCpu(large), 8) == 8


class _OnCpu:
    """A model without memory that says it is on the CPU."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.parameters = model.parameters
        self.device = torch.device("cpu")


def test_a_measurement_leaves_the_threads_as_they_were(small: PreTrainedModel) -> None:
    before = torch.get_num_threads()
    assert calibration._seconds_a_pass(small, 1) > 0
    assert torch.get_num_threads() == before


def test_a_precision_for_which_the_processor_has_no_instructions_is_worth_a_word(small: PreTrainedModel) -> None:
    seconds = {torch.bfloat16: 1.2, torch.float32: 0.1}
    assert slowdown(small, measure=lambda *_: pytest.fail("float32 is what others are compared with")) is None
    half = small.to(torch.bfloat16)
    assert slowdown(half, measure=lambda dtype, _: seconds[dtype]) == pytest.approx(12)
    assert slowdown(half, measure=lambda *_: 0.1) is None
    assert calibration._seconds_a_product(torch.bfloat16, 8) > 0


def test_rows_fit_into_memory(small: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_rows(small, 20) == calibration.MOST_ROWS
    row = bytes_a_row(small, 20)
    for rows, chosen in ((1, 8), (64, 64), (100, 64), (10**6, 512)):
        monkeypatch.setattr(calibration, "free_memory", lambda _, rows=rows: 2 * rows * row)
        assert choose_rows(small, 20) == chosen
    assert bytes_a_row(small, 40) > bytes_a_row(small, 20)


def test_a_row_needs_no_more_than_estimated(small: PreTrainedModel) -> None:
    """Keys and values are the part that grows with everything: what is allocated for them is within the estimate."""
    ids = torch.ones(4, 20, dtype=torch.int64)
    with torch.no_grad():
        cache = small(input_ids=ids, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert 2 * held <= 4 * bytes_a_row(small, 20)
