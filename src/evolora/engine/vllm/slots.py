"""Genomes into vLLM: straight into its LoRA slots, or by way of files where a version has no such slots."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from evolora.engine.vllm.loading import LLM, BaseLinearLayerWithLoRA, LoRARequest
from evolora.errors import InputError
from evolora.models.genome import AdaptedModule, GenomeLayout


class Adapters(Protocol):
    """How vLLM gets genomes."""

    words: str
    """What the log says of it."""

    def put(self, genomes: Tensor) -> list[LoRARequest]:
        """Make `genomes` [n, genome_length], no more than there are slots, vLLM's adapters; what asks for each."""
        ...

    def close(self) -> None:
        """Let go of what is kept outside of vLLM."""
        ...


def adapters(llm: LLM, layout: GenomeLayout, slots: int) -> Adapters:
    """The faster way that this version of vLLM has."""
    found = llm.apply_model(lambda model: _places(model, layout))[0]
    if found is None:
        return ByFiles(layout)
    return InSlots(llm, layout, found, slots)


@dataclass(frozen=True)
class Place:
    """Where the factors of one adapted module go: A [slots, 1, rank, in], B [slots, 1, out, rank], whose rank may be
    larger than the module's."""

    module: AdaptedModule
    a: Tensor
    b: Tensor


class InSlots:
    """Copies genomes into vLLM's stacked LoRA weights. Its adapters are registered and activated once, with zeros, as
    many as there are slots: it has no reason to load or to move one, and writes to the slots no more."""

    words = "genomes are copied into its LoRA slots"

    def __init__(self, llm: LLM, layout: GenomeLayout, places: list[Place], slots: int) -> None:
        self._llm, self._layout, self._places = llm, layout, places
        # No path is read of an adapter that is registered.
        self._requests = [LoRARequest(f"slot-{number}", number, "memory") for number in range(1, slots + 1)]
        llm.apply_model(self._register)

    def _register(self, model: nn.Module) -> None:
        manager: Any = model.lora_manager
        nothing = manager.create_dummy_lora(self._requests[0].lora_int_id, 1, model.embedding_modules)
        for request in self._requests:
            manager.add_adapter(nothing.clone(request.lora_int_id))
            manager.activate_adapter(request.lora_int_id)

    def put(self, genomes: Tensor) -> list[LoRARequest]:
        """See `Adapters.put`."""
        asked = self._requests[: len(genomes)]

        @torch.no_grad()
        def copy(model: nn.Module) -> None:
            ids: list[int | None] = model.lora_manager.lora_index_to_id  # type: ignore[union-attr, assignment]
            at = torch.tensor([ids.index(request.lora_int_id) for request in asked])
            for place, (module, a, b) in zip(self._places, self._layout.factors(genomes), strict=True):
                rows = at.to(place.a.device)
                place.a[rows, 0, : module.rank] = a.to(place.a)
                place.b[rows, 0, :, : module.rank] = (b * module.scaling).to(place.b)

        self._llm.apply_model(copy)
        return asked

    def close(self) -> None:
        """See `Adapters.close`."""


def _places(model: nn.Module, layout: GenomeLayout) -> list[Place] | None:
    """Where each module's factors go; None where this version of vLLM keeps them otherwise.

    Raises InputError for a module that vLLM does not adapt.
    """
    manager: Any = getattr(model, "lora_manager", None)
    needed = ("modules", "packed_modules", "lora_index_to_id", "create_dummy_lora", "add_adapter", "activate_adapter")
    if any(not hasattr(manager, name) for name in needed):
        return None
    parts = {
        name: (layer, index)
        for layer, names in ({name: [name] for name in manager.modules} | manager.packed_modules).items()
        for index, name in enumerate(names)
    }
    found = []
    for module in layout.modules:
        layer_name, index = parts.get(module.name, ("", 0))
        layer = manager.modules.get(layer_name)
        if not isinstance(layer, BaseLinearLayerWithLoRA):
            raise InputError(f"--engine vllm: cannot be had: vLLM adapts no {module.name}, expected --engine auto")
        if not hasattr(layer, "lora_a_stacked") or not hasattr(layer, "lora_b_stacked"):
            return None
        a, b = layer.lora_a_stacked[index], layer.lora_b_stacked[index]
        rank = a.shape[2]
        if a.shape[1:] != (1, rank, module.in_features) or b.shape[1:] != (1, module.out_features, rank):
            return None
        found.append(Place(module, a, b))
    return found


class ByFiles:
    """Writes genomes as PEFT adapters, each with a name and a number of its own, and has vLLM read them."""

    words = "genomes go through files in memory, for this version has no LoRA slots to copy them into"

    def __init__(self, layout: GenomeLayout) -> None:
        self._layout = layout
        shared = Path("/dev/shm")
        self._folder = Path(tempfile.mkdtemp(prefix="evolora-", dir=shared if shared.is_dir() else None))
        self._numbers = count(1)
        self._written: list[Path] = []

    def put(self, genomes: Tensor) -> list[LoRARequest]:
        """See `Adapters.put`."""
        for folder in self._written:
            shutil.rmtree(folder)
        self._written = []
        requests = []
        rank = max(module.rank for module in self._layout.modules)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": rank,  # B is scaled
            "target_modules": sorted({module.name.rpartition(".")[2] for module in self._layout.modules}),
        }
        for genome in genomes.detach().cpu():
            number = next(self._numbers)
            folder = self._folder / str(number)
            folder.mkdir()
            self._written.append(folder)
            state = {}
            for module, a, b in self._layout.factors(genome[None]):
                state[module.a_key] = a[0].contiguous()
                state[module.b_key] = (b[0] * module.scaling).contiguous()
            save_file(state, folder / "adapter_model.safetensors")
            (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
            requests.append(LoRARequest(f"genome-{number}", number, str(folder)))
        return requests

    def close(self) -> None:
        """See `Adapters.close`."""
        shutil.rmtree(self._folder, ignore_errors=True)
