"""What leaves a run: an ordinary PEFT adapter, or the base model with the adapter merged in."""

import json
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from evolora.errors import InputError
from evolora.files import temporary_folder, write_folder
from evolora.models.base import BaseModel
from evolora.models.foreign import check_adapter_config, loading
from evolora.models.genome import GenomeLayout
from evolora.models.lora import as_peft_model, set_state, wrapped

# In a run's folder: the LoRA configuration that it was given as an object.
PEFT_CONFIG = "peft_config.json"


def save_adapter(folder: Path, base: BaseModel, config: LoraConfig, layout: GenomeLayout, genome: Tensor) -> None:
    """Write `genome` [genome_length] as PEFT's `save_pretrained` does, into an existing folder."""
    as_peft_model(base.model, config, state=layout.to_state_dict(genome)).save_pretrained(folder)


def export_adapter(
    folder: Path, base: BaseModel, config: LoraConfig, layout: GenomeLayout, genome: Tensor, card: str
) -> None:
    """Write the adapter, the tokenizer and the model card, whole or not at all."""
    temporary = temporary_folder(folder)
    save_adapter(temporary, base, config, layout, genome)
    save_tokenizer(temporary, base)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    write_folder(folder, temporary)


def save_tokenizer(folder: Path, base: BaseModel) -> None:
    """Write the tokenizer as it was loaded: a fast one would keep the padding of its last call."""
    backend = getattr(base.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
    base.tokenizer.save_pretrained(folder)


def config_text(config: LoraConfig) -> str:
    """A LoRA configuration as JSON, from which `LoraConfig` makes the same again."""
    plain = LoraConfig().to_dict()
    said = {name: value for name, value in config.to_dict().items() if value != plain[name]}
    return json.dumps({name: sorted(value) if isinstance(value, set) else value for name, value in said.items()})


def export_merged(folder: Path, fresh: BaseModel, config: LoraConfig, state: dict[str, Tensor]) -> None:
    """Write the base with the adapter merged in by `merge_and_unload`, and the tokenizer. The base is `fresh`, nobody
    else's: merging changes the weights that it merges into."""
    temporary = temporary_folder(folder)
    peft_model = wrapped(fresh.model, config)
    set_state(peft_model, state)
    peft_model.merge_and_unload().save_pretrained(temporary)
    save_tokenizer(temporary, fresh)
    write_folder(folder, temporary)


def load_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """An adapter's configuration and state dict. Raises InputError when the folder holds none that can be read."""
    weights = folder / "adapter_model.safetensors"
    if not (folder / "adapter_config.json").is_file() or not weights.is_file():
        raise InputError(
            f"{folder}: found no adapter_config.json with adapter_model.safetensors, expected a PEFT adapter"
        )
    check_adapter_config(folder)
    with loading(str(folder)):
        return LoraConfig.from_pretrained(folder), load_file(weights)
