"""Files of models and adapters that somebody else made: looked at before a library reads them, and refused in a
sentence. None of their code is run unless the user says so, and nothing is unpickled."""

import json
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from evolora.errors import InputError, encodes
from evolora.reading import read_text

_INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")

_Names = list[StrictStr] | StrictStr | None
_Rank = Annotated[StrictInt, Field(ge=1)]
_Scale = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


class _AdapterConfig(BaseModel):
    """What is read of an adapter_config.json, with the types that PEFT takes for granted."""

    model_config = ConfigDict(extra="allow")

    peft_type: StrictStr = "LORA"
    task_type: StrictStr | None = None
    base_model_name_or_path: StrictStr | None = None
    revision: StrictStr | None = None
    r: _Rank = 8
    lora_alpha: _Scale = 8
    lora_dropout: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    target_modules: _Names = None
    exclude_modules: _Names = None
    layers_to_transform: list[StrictInt] | StrictInt | None = None
    layers_pattern: _Names = None
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Scale] | None = None
    fan_in_fan_out: StrictBool = False
    use_rslora: StrictBool = False
    inference_mode: StrictBool = False
    auto_mapping: dict[str, Any] | None = None


@contextmanager
def loading(subject: str) -> Iterator[None]:
    """Inside, a library reads what is not ours: whatever it raises is an InputError, and it warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (InputError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # also a panic of Rust code, which is no Exception
            raise InputError(f"{subject}: cannot be loaded: {reason_of(error)}") from None


def reason_of(error: BaseException) -> str:
    """The beginning of an exception's message on one line; its type where there is none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def read_object(subject: str, path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError for anything else."""
    try:
        text = read_text(path)
        value = json.loads(text)
        if "\\ud" in text.lower() and not encodes(json.dumps(value, ensure_ascii=False)):
            raise ValueError("half of a surrogate pair")
    except OSError as error:
        raise InputError(f"{subject}: {path.name} cannot be read ({error.strerror}), expected a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{subject}: {path.name} is not JSON ({reason_of(error)}), expected a JSON object") from None
    if not isinstance(value, dict):
        raise InputError(f"{subject}: {path.name} holds {type(value).__name__}, expected a JSON object")
    return value


def check_adapter_config(folder: Path) -> None:
    """Raise InputError where a value in the folder's adapter_config.json is of another type than PEFT expects."""
    values = read_object(str(folder), folder / "adapter_config.json")
    try:
        _AdapterConfig.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        found, message = f"{values[str(fault['loc'][0])]!r:.60}", str(fault["msg"])
        raise InputError(
            f"{folder}: adapter_config.json has {fault['loc'][0]} {found}: {message[0].lower()}{message[1:]}"
        ) from None
    if (kind := values.get("peft_type", "LORA")) != "LORA":
        raise InputError(f"{folder}: adapter_config.json has peft_type {kind!r:.60}, expected LORA")


def check_model_folder(subject: str, folder: Path, *, trusted: bool | None = None) -> None:
    """Look at a folder before its model is read. Raises InputError for what is no file where one should be, JSON that
    is none, and a model that comes with code of its own, unless that is `trusted`; None where it cannot be. A hub name
    is no folder, and looked at by its library."""
    if not folder.is_dir():
        return
    entries: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        try:
            mode = entry.stat().st_mode
        except OSError:  # a link that leads nowhere
            continue
        entries[entry.name] = entry
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"{subject}: {entry.name} is a device, pipe or socket, expected a file")
    if "config.json" not in entries:
        raise InputError(f"{subject}: found no config.json, expected a model folder or a hub name")
    config = read_object(subject, entries["config.json"])
    for name in ("generation_config.json", "tokenizer_config.json", "tokenizer.json", _INDEX):
        if name in entries:
            read_object(subject, entries[name])
    if "auto_map" in config and not trusted:
        refuse_code(subject, may_be_trusted=trusted is not None)


def refuse_code(subject: str, *, may_be_trusted: bool) -> NoReturn:
    """Raise InputError for a model that comes with code of its own."""
    trust = "--trust-remote-code, for somebody whom you trust, or " if may_be_trusted else ""
    never = "not run" if may_be_trusted else "never run"
    raise InputError(
        f"{subject}: config.json has an auto_map, code of its own, which is {never}, expected {trust}a model that "
        "transformers knows"
    )


def own_code(model: object) -> list[Path]:
    """The files of the code that came with a loaded model; none where its class is transformers' own."""
    package = type(model).__module__.rpartition(".")[0] + "."
    if not package.startswith("transformers_modules."):
        return []
    modules = [module for name, module in sys.modules.items() if name.startswith(package)]
    return sorted(Path(module.__file__) for module in modules if module.__file__)


def weight_files(subject: str, folder: Path) -> list[str]:
    """The files of a folder's weights. Raises InputError for an index that points out of the folder, and for weights
    that are missing or pickled, which loading would run as a program."""
    entries = {entry.name for entry in folder.iterdir() if entry.exists()}
    if "model.safetensors" in entries:
        return ["model.safetensors"]
    if _INDEX in entries:
        shards = read_object(subject, folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise InputError(f"{subject}: {_INDEX} has no weight_map from tensors to files, expected one")
        for name in sorted(set(shards.values())):
            if Path(name).name != name or not name.endswith(".safetensors") or name not in entries:
                raise InputError(
                    f"{subject}: {_INDEX} names {name[:80]!r}, expected .safetensors files in the same folder"
                )
        return sorted(set(shards.values()))
    pickled = sorted(name for name in entries if name.endswith(PICKLED))
    if pickled:
        raise InputError(
            f"{subject}: found pickled weights ({pickled[0]}), which loading would run as a program, expected "
            "model.safetensors"
        )
    raise InputError(f"{subject}: found no weights, expected model.safetensors")


def check_sizes(subject: str, config: Any, folder: Path) -> None:
    """Raise InputError for sizes in a model's configuration that are no sizes, or that are more than the weights in its
    folder can be: of each layer a vector, and of each token another."""
    text = config.get_text_config(decoder=True)
    sizes = {
        name: getattr(text, name, None)
        for name in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "max_position_embeddings")
    }
    for name, value in sizes.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{subject}: config.json has {name} {value!r:.60}, expected a positive number")
    width, layers, words = (sizes[name] or 1 for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    positions = sizes["max_position_embeddings"] or 0 if text.model_type == "gpt2" else 0
    if not folder.is_dir():
        return
    weight_bytes = sum((folder / name).stat().st_size for name in weight_files(subject, folder))
    if (least := width * (layers + words + positions)) > weight_bytes:
        raise InputError(
            f"{subject}: config.json asks for {layers} layers of width {width} and {words} tokens, at least "
            f"{least:.2g} weights, and the weights' files have {weight_bytes:.2g} bytes, expected what goes together"
        )
