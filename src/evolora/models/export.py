"""What leaves a run: an ordinary PEFT adapter, or the base model with the adapter merged in."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evolora.errors import InputError
from evolora.files import seal, whole_folder, write_text
from evolora.masking import mask, with_references
from evolora.models.base import BUNDLED_MODEL, BaseModel, model_path
from evolora.models.cards import CARD, based_on, of_merged
from evolora.models.foreign import check_adapter_config, loading
from evolora.models.genome import GenomeLayout
from evolora.models.lora import as_peft_model, check_lora, finished, set_state, wrapped

# How many times the rounding of a layer's largest output its merged weights may change it, by the bytes of a number.
_ROUNDINGS = {2: 4.0, 4: 64.0, 8: 64.0}
# The same for logits, behind all layers.
_ROUNDINGS_OF_LOGITS = {2: 16.0, 4: 8192.0, 8: 8192.0}
_TEXT = "The answer to the question of two words is"

# In a run's folder: the LoRA configuration that it was given as an object.
PEFT_CONFIG = "peft_config.json"

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def save_adapter(folder: Path, base: BaseModel, config: LoraConfig, layout: GenomeLayout, genome: Tensor) -> None:
    """Write `genome` [genome_length] as PEFT's `save_pretrained` does, into an existing folder, without PEFT's card,
    which says nothing but where the base model lies."""
    peft_model = as_peft_model(base.model, config, state=layout.to_state_dict(genome))
    peft_model.peft_config["default"].revision = base.revision
    peft_model.save_pretrained(folder)
    (folder / CARD).unlink(missing_ok=True)
    if base.path != model_path(BUNDLED_MODEL) and with_references(base.path) != base.path:
        name_base(folder, with_references(base.path), base.revision)


def shown_model(name: str) -> str:
    """A model's name as others may read it: of a folder the last part."""
    return mask(Path(name).name if Path(name).is_dir() else name)


def shown_adapter(name: str) -> str:
    """An adapter's name as others may read it: of a folder the last part, and whose best it is."""
    path = Path(name)
    return mask("/".join(path.parts[-2:] if path.name == "best" else path.parts[-1:]) if path.is_dir() else name)


def name_base(folder: Path, base: str, revision: str | None) -> None:
    """Let the adapter in `folder`, and its card, name `base` as its base model, and its revision."""
    config, card = folder / "adapter_config.json", folder / CARD
    known = json.loads(config.read_text(encoding="utf-8"))
    known |= {"base_model_name_or_path": base, "revision": revision}
    write_text(config, json.dumps(known, indent=2, sort_keys=True))
    if card.is_file():
        write_text(card, based_on(card.read_text(encoding="utf-8"), base if is_hub_name(base) else None))


def is_hub_name(name: str) -> bool:
    """Whether others may find a model of this name: no folder of this machine, nor the bundled one."""
    return name != BUNDLED_MODEL and _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def export_adapter(
    folder: Path, base: BaseModel, config: LoraConfig, layout: GenomeLayout, genome: Tensor, card: str
) -> None:
    """Write the adapter, the tokenizer and the model card, whole or not at all, and sealed."""
    with whole_folder(folder) as temporary:
        save_adapter(temporary, base, config, layout, genome)
        save_tokenizer(temporary, base)
        (temporary / CARD).write_text(card, encoding="utf-8")
        seal(temporary)


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


def export_merged(
    folder: Path,
    fresh: BaseModel,
    config: LoraConfig,
    state: dict[str, Tensor],
    *,
    card: str | None = None,
    sealed: bool = False,
) -> None:
    """Write the base with the adapter merged in by `merge_and_unload`, its generation config and its tokenizer, and the
    `card` that the adapter has; `sealed`, with a manifest. The base is `fresh`, nobody else's: merging changes the
    weights that it merges into. Raises InputError where the merged model says something else than the adapted one."""
    check_lora(config)  # before PEFT imports what some of its fields name
    peft_model = wrapped(fresh.model, config)
    set_state(peft_model, state)
    merged = _merged(peft_model, fresh.tokenizer)
    with whole_folder(folder) as temporary:
        merged.save_pretrained(temporary)
        save_tokenizer(temporary, fresh)
        if card is not None:
            write_text(temporary / CARD, of_merged(card))
        if sealed:
            seal(temporary)


@torch.no_grad()
def _merged(peft_model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The model with the adapter merged in, each of its layers compared with PEFT's adapted one, and its logits on two
    uneven prompts with the adapted model's. Raises InputError for what says something else."""
    peft_model.eval()
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in peft_model.named_modules()
        if isinstance(module, LoraLayer)
    }
    generator = torch.Generator().manual_seed(0)
    weight = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    inputs = {
        name: torch.randn(4, layer.in_features, generator=generator).to(weight[name]) for name, layer in layers.items()
    }
    expected = {name: layer(inputs[name]) for name, layer in layers.items()}
    tokens = tokenizer(_TEXT)["input_ids"] or [tokenizer.eos_token_id] * 8  # a tiny vocabulary has no such letters
    prompts = [torch.tensor([ids], device=peft_model.device) for ids in (tokens[:2], tokens)]
    said = [peft_model(input_ids=ids).logits for ids in prompts]
    merged = peft_model.merge_and_unload()
    for name, right in expected.items():
        _need_equal(name, merged.get_submodule(name)(inputs[name]), right, _ROUNDINGS)
    for ids, right in zip(prompts, said, strict=True):
        _need_equal(f"the logits of {ids.shape[1]} tokens", merged(input_ids=ids).logits, right, _ROUNDINGS_OF_LOGITS)
    return merged


def _need_equal(what: str, found: Tensor, right: Tensor, roundings: Mapping[int, float]) -> None:
    off, largest = float((found - right).abs().max()), float(right.abs().max())
    allowed = roundings[right.itemsize] * torch.finfo(right.dtype).eps * largest
    if not off <= allowed:
        raise InputError(
            f"--merge: {what}: merged, it differs from the adapter's by {off:.2g}, where the largest is {largest:.2g}, "
            f"expected rounding alone, at most {allowed:.2g}; in --dtype float32 there is less"
        )


def load_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """An adapter's configuration and state dict. Raises InputError when the folder holds none that can be read."""
    weights = folder / "adapter_model.safetensors"
    if not (folder / "adapter_config.json").is_file() or not weights.is_file():
        raise InputError(
            f"{folder}: found no adapter_config.json with adapter_model.safetensors, expected a PEFT adapter"
        )
    check_adapter_config(folder)
    with loading(str(folder)):
        config, state = LoraConfig.from_pretrained(folder), load_file(weights)
    return finished(config, str(folder)), state
