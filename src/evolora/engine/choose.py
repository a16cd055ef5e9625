"""Which engine a run gets, and in words why not a faster one."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from evolora.engine import cpu, vllm
from evolora.engine.base import Copies, Engine, Prepares, Replicates
from evolora.engine.budget import Budget
from evolora.engine.calibration import MOST_ROWS_DECODED, choose_checkpointing, holds_much_heap, is_small
from evolora.engine.combined import CombinedEngine, Writes, check_sampling
from evolora.engine.eager.checkpointing import decoder_layers
from evolora.engine.eager.engine import EagerEngine
from evolora.engine.micro_batches import MicroBatchEngine
from evolora.engine.options import ENGINES, CheckpointingName, EngineName, ProductsName, RecomputedName, Truncation
from evolora.engine.progress import Progress
from evolora.engine.split import SplitEngine
from evolora.errors import InputError
from evolora.models.genome import GenomeLayout

# What is written after a text that fills a block and one token more.
_NEW_TOKENS = 4


@dataclass(frozen=True)
class Choice:
    """An engine, and what the log says of it."""

    engine: Engine
    words: str
    one: Engine
    """The engine itself, where `engine` is several side by side."""

    def prepare(self, progress: Progress, *, learns: bool, dropout: float) -> None:
        """Do beforehand what the first use would wait for, in a run that refines genomes, if it `learns`, with so much
        dropout."""
        if isinstance(self.one, Prepares):
            self.one.prepare(progress, learns=learns, dropout=dropout)

    def copies(self) -> tuple[int, int]:
        """Bytes of further copies of the weights: of those that there are now, and at most."""
        return self.one.copies() if isinstance(self.one, Copies) else (0, 0)


def choose_engine(
    model: PreTrainedModel,
    layout: GenomeLayout,
    *,
    threads: int = 1,
    kind: EngineName = "auto",
    products: ProductsName = "auto",
    budget: Budget | None = None,
    checkpointing: RecomputedName = "off",
    length: int | None = None,
    slots: int | None = None,
    sleeps: bool = False,
) -> Choice:
    """The fastest engine that can run `model`, or the one that is asked for, on up to `threads` parts of a batch at a
    time, each of which keeps what the gradient needs of at most about as many tokens as the `budget` has, as far as
    `checkpointing` does not compute it again. Where vLLM writes, in so many `slots` and texts of up to `length` tokens,
    the eager engine scores, and has its memory for gradients if it `sleeps`.

    Raises InputError for one that is asked for and cannot.
    """
    kind, products = resolved(model, layout, kind, products)
    writer: Writes | None = None
    if kind == "vllm":
        writer, kind = _made("vllm", model, layout, length=length, slots=slots, sleeps=sleeps), "eager"
    engine, words = _engine(model, layout, kind, products)
    if isinstance(engine, EagerEngine):
        engine.checkpointing = checkpointing
    side_by_side = threads if model.device.type == "cpu" else 1
    most = None if is_small(model) else MOST_ROWS_DECODED

    def frugal(engine: Engine) -> Engine:
        gives_back = holds_much_heap(model)
        return engine if budget is None else MicroBatchEngine(engine, budget, gives_back=gives_back)

    whole = frugal(engine)
    if side_by_side > 1 and isinstance(engine, Replicates):
        replica = engine.replica
        whole = SplitEngine(whole, lambda: frugal(replica()), threads=side_by_side, most_rows=most)
    if writer is None:
        return Choice(whole, words, engine)
    return Choice(CombinedEngine(writer, whole), f"{writer.words}; {words} scores", CombinedEngine(writer, engine))


def resolved(
    model: PreTrainedModel, layout: GenomeLayout, kind: EngineName, products: ProductsName
) -> tuple[EngineName, ProductsName]:
    """What `auto` comes to on this machine, so that it can be written down.

    Raises InputError for what is asked for and cannot be had.
    """
    why = cpu.refuses(model, layout)
    if kind == "auto":
        kind = "cpu" if why is None else "eager"
        if products == "compiled" and why is not None:
            raise InputError(f"--products compiled: there is no cpu engine here: {why}, expected --products auto")
    if kind == "cpu" and why is not None:
        raise InputError(
            f"--engine cpu: cannot be had: {why}, expected what it needs, or --engine auto in a new run (a resumed one "
            "keeps its engine)"
        )
    if kind == "vllm" and (why := vllm.refuses(model, layout)) is not None:
        raise InputError(f"--engine vllm: cannot be had: {why}, expected --engine auto")
    if kind == "cpu" and products == "auto":
        from evolora.engine.cpu.matmul.choice import fastest_products

        products = fastest_products()
    return kind, products


def check_writer(
    devices: Sequence[str], *, truncation: Truncation | None, temperature: float, sleeps: bool = False
) -> None:
    """Raise InputError for what a run cannot have where vLLM writes."""
    check_sampling(truncation, temperature)
    if len(devices) > 1:
        raise InputError(
            f"--device {','.join(devices)} with --engine vllm: found several devices, expected one, where vLLM and "
            "what trains are; --workers has an engine of its own on each"
        )
    if torch.device(devices[0]).index:
        raise InputError(
            f"--device {devices[0]} with --engine vllm: found another than the first GPU, the only one where vLLM in "
            "this process runs, expected cuda, with that one alone in CUDA_VISIBLE_DEVICES"
        )
    if sleeps and devices[0] == "cpu":
        raise InputError("--vllm-sleep: found a CPU, where vLLM has no sleep mode, expected a GPU")


def kept_prefix(kind: EngineName, longest: int) -> int:
    """Tokens that texts have in common where an engine of this kind finds again what it computed of them; 0 where it
    does not, as in texts of up to `longest` tokens that are no longer."""
    return vllm.BLOCK if kind == "vllm" and longest > vllm.BLOCK + _NEW_TOKENS else 0


def resolved_checkpointing(
    model: PreTrainedModel, kind: EngineName, asked: CheckpointingName, *, length: int, tokens: int
) -> RecomputedName:
    """What `auto` comes to in updates of so many `tokens`, in texts of up to `length`.

    Raises InputError where what is asked for cannot be had.
    """
    if asked in ("on", "selective") and not decoder_layers(model):
        raise InputError(
            f"--gradient-checkpointing {asked}: transformers can checkpoint no layers of a "
            f"{model.config.model_type}, expected off"
        )
    if asked != "auto":
        return asked
    # Passes of an engine's own keep less, and are faster than the model's.
    own = kind == "cpu" and cpu.has_passes(model)
    return "off" if own or not decoder_layers(model) else choose_checkpointing(model, length, tokens)


def _engine(
    model: PreTrainedModel, layout: GenomeLayout, kind: EngineName, products: ProductsName
) -> tuple[Engine, str]:
    if kind == "cpu":
        return _made(kind, model, layout, products=products), f"{products} products"
    if model.device.type != "cpu":
        return _made(kind, model, layout), f"{kind} engine in {_precision(model.dtype)}"
    why = cpu.refuses(model, layout) if kind == "eager" else None
    return _made(kind, model, layout), f"{kind} engine" + (f" ({why})" if why else "")


def _precision(dtype: torch.dtype) -> str:
    """In words. Whether float32 is multiplied in TF32 is torch's own setting, which is left as it is."""
    if dtype != torch.float32:
        return str(dtype).removeprefix("torch.")
    exact = torch.get_float32_matmul_precision() == "highest"
    return "float32" if exact else "float32 multiplied in TF32 (torch.set_float32_matmul_precision)"


def _made(kind: str, *given: Any, **more: Any) -> Any:
    module, _, name = ENGINES[kind].partition(":")
    return getattr(importlib.import_module(module), name)(*given, **more)
