"""Options of the base model and its adapters."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from evolora.options import Options, option


def _modules(value: Any) -> Any:
    """A plain name is a list of one; `all-linear` and regular expressions stay text, as PEFT takes them."""
    if isinstance(value, list) and len(value) == 1 and not _is_name(value[0]):
        value = value[0]
    return [value] if isinstance(value, str) and value != "none" and _is_name(value) else value


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "all-linear" and re.fullmatch(r"[\w.-]*", value) is not None


def _listed(value: Any) -> Any:
    """One adapter is a list of one; paths are text."""
    values = value if isinstance(value, list | tuple) else [value]
    return value if value is None else [os.fspath(each) if isinstance(each, os.PathLike) else each for each in values]


Modules = Annotated[list[str] | str | None, BeforeValidator(_modules)]


BUNDLED_MODEL = "tiny-gpt2"
BUNDLED_FOLDER = str(Path(__file__).parents[1] / "assets" / BUNDLED_MODEL)


def is_bundled(name: str) -> bool:
    """Whether this names the bundled model: by its name or its folder, or as an object that was loaded from there.

    >>> is_bundled("tiny-gpt2"), is_bundled(f"<model {BUNDLED_FOLDER}>"), is_bundled("gpt2")
    (True, True, False)
    """
    return name.removeprefix("<model ").removesuffix(">") in (BUNDLED_MODEL, BUNDLED_FOLDER)


class ModelOptions(Options):
    """The base model."""

    name: str = option(BUNDLED_MODEL, "base model: tiny-gpt2 (bundled), a folder or a hub name", common=True)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "precision of the base model: auto (bfloat16 on a GPU that has it, else float32) or one of these"
    )
    revision: str | None = option(
        None, "branch, tag or commit of a hub name; default: its main branch. A run keeps the commit that it came to"
    )
    trust_remote_code: bool = option(
        False, "run the code that comes with the model, for somebody whom you trust; each command must be told anew"
    )
    attn_implementation: Literal["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] | None = (
        option(None, "how transformers computes attention; default: its own choice, sdpa for most models")
    )
    quantization: Literal["nf4", "int8"] | None = option(
        None, "keep the frozen base in four or eight bits, by bitsandbytes, under adapters in float32, as QLoRA does"
    )
    chat_template: str | None = option(
        None, "Jinja file of the chat template for data of chat messages; default: the tokenizer's own"
    )


class LoraOptions(Options):
    """The adapters, as PEFT lays them out."""

    prefixed: ClassVar[bool] = True

    r: int = option(8, "rank of the LoRA adapters", common=True, ge=1)
    alpha: int = option(16, "LoRA alpha: the adapter's output is scaled by alpha / r", ge=1)
    dropout: float = option(0.05, "dropout on the adapters' input during refinement", ge=0, lt=1)
    target_modules: Modules = option(
        None,
        "modules to adapt: names, all-linear, or a regular expression, as PEFT has it; default c_attn and c_proj for "
        "GPT-2, PEFT's own for others",
        alias="target_modules",
    )
    exclude_modules: Modules = option(
        None, "modules not to adapt: names or a regular expression, as PEFT has it", alias="exclude_modules"
    )
    init: Annotated[list[str] | None, BeforeValidator(_listed)] = option(
        None,
        "LoRA adapters to start from, folders or hub names: the first is individual 0, with which the run is compared, "
        "several are the first population; rank, alpha and modules are theirs, and the base model where none is named",
        common=True,
        alias="init",
    )
    rslora: bool = option(False, "scale the adapters by alpha / sqrt(r)", alias="rslora")
