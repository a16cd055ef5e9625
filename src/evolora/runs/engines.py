"""Who computes in a run: its devices, the engine of this process, and those that it deals slices to."""

import copy
import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from evolora.distributed.checking import tolerance_between_machines
from evolora.distributed.choose import deal
from evolora.distributed.remote import EngineSpec
from evolora.engine.base import Engine
from evolora.engine.budget import Budget
from evolora.engine.calibration import holds_much_heap
from evolora.engine.choose import Choice, choose_engine
from evolora.engine.options import EngineName, RecomputedName
from evolora.errors import InputError
from evolora.models.base import BaseModel
from evolora.models.checksums import weights_sha256
from evolora.models.genome import GenomeLayout
from evolora.runs.options import RunOptions


@dataclass(frozen=True)
class Engines:
    """The engine of this process, as it was `chosen`; whom the run asks, which is that one or who deals with several;
    and what the log says of them."""

    chosen: Choice
    asked: Engine
    words: str


def make_engines(
    base: BaseModel,
    layout: GenomeLayout,
    config: RunOptions,
    *,
    own_model: bool,
    devices: list[str],
    dealt: int | None,
    checkpointing: RecomputedName,
    an_operation: int,
    length: int,
    learns: bool,
    dropout: float,
    budget: Budget,
    say: Callable[[str], None],
    unless_done: ExitStack,
) -> Engines:
    """The engines of a run whose options have been resolved, for texts of up to `length` tokens; `dealt` rows are in a
    slice, where slices are dealt, and `an_operation` has so many threads. `unless_done` closes them. The model is the
    caller's `own_model`, or one that others can load by its name.

    Raises InputError for what cannot be had.
    """
    kind, products, slots, sleeps = (
        config.engine.type,
        config.engine.products,
        config.engine.vllm_slots,
        config.engine.vllm_sleep,
    )
    # Where workers write by vLLM, this process looks at what they say, and needs none.
    apart = kind == "vllm" and dealt is not None and config.workers.remote
    chosen = choose_engine(
        base.model,
        layout,
        threads=config.engine.threads if dealt is None else 1,
        kind="eager" if apart else kind,
        products=products,
        budget=budget if dealt is None else None,
        checkpointing=checkpointing,
        length=length,
        slots=slots,
        sleeps=sleeps,
    )
    unless_done.callback(chosen.engine.close)
    words = f"workers write by vLLM; {chosen.words} scores" if apart else chosen.words
    if dealt is None:
        return Engines(chosen, chosen.engine, words)
    if own_model and config.workers.remote:
        raise InputError("--workers with a model object: expected the name of a model, which each worker loads")

    def spec(device: str) -> EngineSpec:
        return EngineSpec(
            model=config.used().model,
            weights_sha256=weights_sha256(base.model),
            layout=layout,
            device=device,
            kind=kind if device == "cpu" or kind == "vllm" else "eager",
            products=products if device == "cpu" else "auto",
            checkpointing=checkpointing,
            threads=an_operation,
            learns=learns,
            dropout=dropout,
            length=length,
            slots=slots or dealt,  # a slice has no more genomes than rows
            sleeps=sleeps,
        )

    asked = deal(
        chosen.one,
        spec,
        config.workers,
        elsewhere=[
            functools.partial(_on_another, base.model, layout, kind, checkpointing, name) for name in devices[1:]
        ],
        tolerance=tolerance_between_machines(base.model),
        gives_back=holds_much_heap(base.model),
        rows=dealt,
        threads=an_operation,
        budget=budget,
        say=say,
    )
    unless_done.callback(asked.close)
    return Engines(chosen, asked, words)


def devices_of(used: RunOptions) -> list[str]:
    """All that a run computes on, the first of which has whatever is not dealt. Raises InputError."""
    names = [_device(name.strip()) for name in used.engine.device.split(",")]
    if len(names) == 1:
        return names
    said = f"--device {used.engine.device}"
    if len(set(names)) < len(names):
        raise InputError(f"{said}: expected devices that differ")
    if used.workers.remote:
        raise InputError(f"{said} with --workers: expected one device, each worker has its own (--workers-gpus)")
    if used.model.quantization is not None:
        raise InputError(f"{said} with --quantization {used.model.quantization}: expected one device")
    return names


def _on_another(
    model: PreTrainedModel, layout: GenomeLayout, kind: EngineName, checkpointing: RecomputedName, device: str
) -> Engine:
    """An engine on a copy of the model."""
    copied = copy.deepcopy(model).to(device)
    return choose_engine(copied, layout, kind=kind, checkpointing=checkpointing).engine


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name, dtype=torch.float64)  # which sampling needs
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise InputError(f"--device {name}: cannot be used: {str(error).splitlines()[0]}") from None
    return name
