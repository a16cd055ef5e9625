"""What a run chooses by measuring the machine once: CPU threads and the size of a batch."""

import contextlib
import ctypes
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from evolora.engine.options import RecomputedName
from evolora.models.quantization import entries

# The operations of a smaller model are too short to share: with 2 threads for each, a 2M-parameter model was up to 40
# times slower than with one as soon as anything else ran, which no measurement at the start can foresee.
SMALL_MODEL = 20_000_000
# More rows than these make no token cheaper (docs/performance.md).
MOST_ROWS = 512
# Elsewhere a step takes about as long for few rows as for many: as many as its memory holds, within reason.
MOST_ROWS_OF_DEVICE = 4096
_LEAST_ROWS = 8
# Rows of a large model that a part of a batch has at most: more are no faster, and the keys and values of those that
# are decoded later need no memory yet.
MOST_ROWS_DECODED = 48
# A second copy of a large model's weights is worth batches of up to so many rows.
MOST_ROWS_BY_PANELS = 96
# Logits of a chunk: 64 MiB in float32, whatever the vocabulary.
CHUNK = 2**24
# A precision whose products take so many times float32's is worth a word: there are CPUs without instructions for it.
_MUCH_SLOWER = 2.0
# glibc's heap has small objects, which its cache for each thread keeps, between the tensors of an update: what is free
# around them fits no tensor of the same size. In parts of what one layer has at a time (docs/performance.md).
_HOLES_OF_A_LAYER, _MOST_HOLES = 1 / 3, 6
# Selective gradient checkpointing computes one of so many layers again as a whole.
WHOLE_OF = 4


def choose_threads(
    model: PreTrainedModel, available: int, *, measure: Callable[[PreTrainedModel, int], float] | None = None
) -> int:
    """Threads on the CPU, of the `available` cores: all or, for a model whose operations share them, half (two hardware
    threads may share a core) if a batch of 64 tokens passes faster by a tenth. A small model elsewhere needs but one.
    """
    if model.device.type != "cpu":
        return threads_an_operation(model, available)
    if is_small(model) or available < 4:
        return available
    measure = measure or _seconds_a_pass
    all_cores, half = measure(model, available), measure(model, available // 2)
    return available // 2 if half * 1.1 < all_cores else available


def threads_an_operation(model: PreTrainedModel, threads: int) -> int:
    """How many of `threads` share one operation of `model`: all, or one if the model is small."""
    return 1 if is_small(model) else threads


def is_small(model: PreTrainedModel) -> bool:
    """Whether an operation of `model` is too short to be shared by threads."""
    return parameters_of(model) < SMALL_MODEL


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds_a_pass(model: PreTrainedModel, threads: int, repeats: int = 3) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    ids = torch.zeros(64, 1, dtype=torch.int64)
    try:
        with torch.no_grad():
            return _least_seconds(lambda: model(input_ids=ids, use_cache=False), repeats)
    finally:
        torch.set_num_threads(before)


def _least_seconds(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])  # the first one warms up


def slowdown(model: PreTrainedModel, *, measure: Callable[[torch.dtype, int], float] | None = None) -> float | None:
    """How many times as long as in float32 a product takes in the precision of `model`, on the CPU that it is on; None
    if that is little."""
    if model.device.type != "cpu" or model.dtype not in (torch.bfloat16, torch.float16):
        return None
    measure = measure or _seconds_a_product
    size = min(1024, int(model.config.get_text_config(decoder=True).hidden_size))
    times = measure(model.dtype, size) / measure(torch.float32, size)
    return times if times >= _MUCH_SLOWER else None


def _seconds_a_product(dtype: torch.dtype, size: int, repeats: int = 3) -> float:
    rows, weights = torch.ones(64, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    return _least_seconds(lambda: torch.nn.functional.linear(rows, weights), repeats)


def choose_rows(model: PreTrainedModel, length: int) -> int:
    """Rows of up to `length` tokens that go through the model together: as many as fit into half of the free memory, a
    power of two, at most `MOST_ROWS` on a CPU and `MOST_ROWS_OF_DEVICE` elsewhere."""
    most = MOST_ROWS if model.device.type == "cpu" else MOST_ROWS_OF_DEVICE
    fit = free_memory(model.device) // 2 // bytes_a_row(model, length)
    return max(_LEAST_ROWS, min(most, 1 << max(fit, 1).bit_length() - 1))


def bytes_a_row(model: PreTrainedModel, length: int, read: int | None = None, logits: int = 4) -> int:
    """Memory that a row of `length` tokens takes while it is completed: keys and values, one layer's activations over
    the prompt, the logits of one token in float32, of which there are so many copies where one is chosen. An estimate,
    on the safe side; where it is known that `read` tokens of the row are read at once, closer."""
    config = model.config.get_text_config(decoder=True)
    size = model.dtype.itemsize
    hidden, layers = config.hidden_size, config.num_hidden_layers
    heads = getattr(config, "num_attention_heads", None) or 1  # a recurrent model has none
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or hidden // heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    cache = 2 * layers * key_heads * head_size * length * size
    activations = (8 * hidden + 3 * inner) * length * size + heads * length * length * 4
    if read is None:
        cache *= 2
    else:
        activations = (4 * hidden + 2 * inner) * read * size
        cache += 2 * cache // layers  # rows leave by a copy of a layer's at a time
    return int(cache + activations + logits * config.vocab_size * 4)


def choose_checkpointing(model: PreTrainedModel, length: int, tokens: int) -> RecomputedName:
    """What an update of so many tokens, in texts of up to `length`, computes again: nothing of a small model. Of others
    every layer on a CPU, whose memory others want too; elsewhere as little as fits into half the free memory."""
    if is_small(model):
        return "off"
    if model.device.type == "cpu":
        return "on"
    ways: list[RecomputedName] = ["off", "selective"]
    room = free_memory(model.device) // 2
    fit = (way for way in ways if tokens * bytes_a_token_kept(model, length, way) <= room)
    return next(fit, "on")


def choose_update_tokens(
    model: PreTrainedModel, length: int, threads: int, checkpointing: RecomputedName = "off"
) -> int:
    """Tokens, in texts of up to `length`, whose activations one of `threads` keeps for a gradient: of half the free
    memory in all, of one text at least. Fewer would cost time: what is not kept is computed again."""
    room = free_memory(model.device) // 2 // threads
    return max(length, room // bytes_a_token_kept(model, length, checkpointing))


def bytes_a_token_kept(model: PreTrainedModel, length: int, checkpointing: RecomputedName = "off") -> int:
    """What an update's memory grows by with a token in a text of `length`: what is kept in all layers, and one layer's
    own on the way back. An estimate, of layers with a gate."""
    return sum(_kept_and_passing(model, length, checkpointing))


def bytes_of_an_update(
    model: PreTrainedModel, length: int, tokens: int, checkpointing: RecomputedName, *, compiled: bool = False
) -> int:
    """The tensors of a gradient of so many tokens, in texts of up to `length`, at their peak: on the way back one
    layer's own come after the output embedding's chunk, which has fewer copies where it is `compiled`."""
    kept, passing = _kept_and_passing(model, length, checkpointing)
    return tokens * kept + max(tokens * passing, bytes_of_a_chunk(model, tokens, copies=2 if compiled else 5))


def bytes_of_holes(model: PreTrainedModel, length: int, tokens: int, checkpointing: RecomputedName) -> int:
    """What a CPU's heap holds free between the tensors of such a gradient."""
    if model.device.type != "cpu":
        return 0
    _, passing = _kept_and_passing(model, length, checkpointing)
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    return int(tokens * passing * min(_MOST_HOLES, 1 + layers * _HOLES_OF_A_LAYER))


def _kept_and_passing(model: PreTrainedModel, length: int, checkpointing: RecomputedName) -> tuple[int, int]:
    """Bytes of a token that are kept in all layers, and that one layer has beside on the way back."""
    config = model.config.get_text_config(decoder=True)
    hidden, heads = config.hidden_size, getattr(config, "num_attention_heads", None) or 1
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = heads * (getattr(config, "head_dim", None) or hidden // heads)
    keys = width // heads * key_heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    scores = heads * (length if config._attn_implementation == "eager" else 1)
    size = model.dtype.itemsize
    # In float32 the inputs of two norms and two adapters; queries, keys and values for each head, and what they give;
    # an activation's input and result, and what a gate multiplies them by.
    whole = 4 * hidden * max(size, 4) + (4 * width + scores + 3 * inner) * size
    products = (3 * hidden + 2 * width + 2 * keys + heads + 2 * inner) * size
    selective = (hidden * size + (WHOLE_OF - 1) * products) / WHOLE_OF
    kept = {"off": whole, "selective": selective, "on": hidden * size}[checkpointing]
    gradients = 3 * inner * size
    again = 0 if checkpointing == "off" else whole
    return int(config.num_hidden_layers * kept), int(again + gradients)


def bytes_of_a_chunk(model: PreTrainedModel, tokens: int, *, copies: int) -> int:
    """What lives while the output embedding is computed for so many tokens, in chunks: logits, probabilities and their
    gradients, as so many `copies`."""
    return copies * 4 * min(CHUNK, tokens * int(model.config.get_text_config(decoder=True).vocab_size))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on `device`, or could be, as those of the system's cache of files; where the system does not
    say, 4 GB."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, AttributeError):
        if found := re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii")):
            return int(found[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30


def give_memory_back() -> None:
    """Let the system have what is free in this process's heap, where its C library can: glibc keeps it else."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def holds_much_heap(model: PreTrainedModel) -> bool:
    """Whether updates of `model` leave much of the process's heap free between them."""
    return model.device.type == "cpu" and not is_small(model)


def parameters_of(model: PreTrainedModel) -> int:
    """How many weights the model has."""
    return sum(entries(parameter) for parameter in model.parameters())
