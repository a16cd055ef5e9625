"""Adapters that the Hugging Face hub has, by their names."""

from pathlib import Path

from huggingface_hub import snapshot_download

from evolora.errors import InputError
from evolora.models.foreign import reason_of
from evolora.runs.keeping.names import find_run
from evolora.tasks.arrow import is_hub_name

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
# What may come with it: its tokenizer, chat template and card. A manifest would ask for files that are left there.
_BESIDE = ("*.json", "*.jinja", "*.txt", "*.model", "README.md")
_NOT = ("*/*", "manifest.json")


def run_or_adapter(text: str) -> Path:
    """The folder of a run or an adapter: its path, a run's name, or, where nothing here is called so, the copy of an
    adapter of the hub. Raises InputError for what the hub does not have."""
    folder = find_run(text)
    if folder.exists() or not is_hub_name(text):
        return folder
    return hub_adapter(text, text, besides=_BESIDE)


def hub_adapter(name: str, said: str, besides: tuple[str, ...] = ()) -> Path:
    """The folder of a copy of the hub's adapter of this name, with the files `besides` it. Raises InputError, which
    begins with what the user has `said`."""
    try:
        return Path(snapshot_download(name, allow_patterns=[*ADAPTER, *besides], ignore_patterns=list(_NOT)))
    except Exception as error:  # the hub's, the network's, and those of their libraries
        raise InputError(
            f"{said}: no folder here, and not to be had from the hub ({reason_of(error)}), expected an adapter"
        ) from None
