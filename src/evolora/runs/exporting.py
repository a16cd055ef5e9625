"""What leaves a run: its adapter for others to load, the merged model, a GGUF file, and the hub where they may go."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from peft import LoraConfig

from evolora.environment import references
from evolora.errors import InputError
from evolora.files import temporary_folder, whole_folder
from evolora.models.base import TEMPLATE, BaseModel, load_chosen, with_tokenizer_of
from evolora.models.cards import CARD
from evolora.models.checksums import weights_sha256
from evolora.models.export import export_merged, load_adapter, name_base
from evolora.models.foreign import PICKLED, reason_of
from evolora.models.options import ModelOptions
from evolora.models.quantization import quantised_by
from evolora.runs.adapter import adapter_folder, is_run
from evolora.runs.config_file import read_run_config
from evolora.runs.identity import read_identity
from evolora.runs.initial import load_founder, named_base
from evolora.runs.options import make_options
from evolora.tasks.chat import use_template

# What llama.cpp calls the precisions.
_OUTTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@dataclass(frozen=True)
class Push:
    """To which repository of the hub what is exported goes, `private` if it is made for it."""

    repository: str
    private: bool = False


def export(
    path: Path,
    to: Path,
    *,
    merge: bool = False,
    checkpoint: str | None = None,
    base: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: str | None = None,
    llama_cpp: Path | None = None,
    push: Push | None = None,
) -> Path:
    """Copy an adapter out of a run, or write it merged into its base model, in the precision that its run had or the
    base's files have, or in `dtype`; with `llama_cpp`, a folder of its sources, as a GGUF file that its converter
    makes. `base` is the model's name and `revision` its revision, for an adapter that others are to use, in place of
    the folder that it was loaded from here. What was written is then uploaded, to `push`.

    Raises InputError where the merged model says something else than the adapter, and where the converter or the hub
    refuse; what has been written by then stays.
    """
    merge = merge or llama_cpp is not None
    if revision is not None and base is None:
        raise InputError(f"--revision {revision}: expected --base beside it, an adapter names the commit of its own")
    if dtype is not None and not merge:
        raise InputError(f"--dtype {dtype}: expected --merge or --gguf beside it, an adapter keeps its precision")
    if llama_cpp is not None and to.exists():
        raise InputError(f"--to {to}: exists already, expected a new file")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"--to {to}: exists already, expected a new or empty folder")
    converter = None if llama_cpp is None else _converter(llama_cpp)
    folder = adapter_folder(path, checkpoint)
    if push is not None:
        _check_push(push, None if merge else base or folder_named(folder))
    lora, state = load_adapter(folder)
    named = None if base is None else ModelOptions(name=base, revision=revision)
    into = _base_to_merge(path, folder, lora, named, trust_remote_code, dtype) if merge else None
    to = to.absolute()
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--to {to}: cannot be made ({error.strerror}), expected a new folder") from None
    if into is not None:
        card = folder / CARD
        said = card.read_text(encoding="utf-8") if card.is_file() else None

        def write(target: Path) -> None:
            export_merged(target, into, lora, state, card=said)

        if converter is None:
            write(to)
        else:
            _write_gguf(to, write, converter, dtype)
    else:
        with whole_folder(to) as temporary:
            for file in folder.iterdir():
                if file.is_file() and not file.name.startswith(("state.", "manifest.")) and file.suffix not in PICKLED:
                    shutil.copy2(file, temporary)
            if base is not None:
                name_base(temporary, base, revision)
    if push is not None:
        _upload(to, push)
    return to


def _base_to_merge(
    path: Path, folder: Path, lora: LoraConfig, base: ModelOptions | None, trust: bool, dtype: str | None
) -> BaseModel:
    """The base model that an adapter is merged into, with the adapter's tokenizer: that of its run, as its run loaded
    it and with the weights that it had, or the one that the user or the adapter names."""
    of_run = base is None and is_run(path)

    def refuse_quantised(method: str | None) -> None:
        if method is not None:
            raise InputError(
                f"{path}: its base was quantised ({method}), and nothing is merged into that, expected --base NAME, "
                "into whose own weights the adapter is merged"
            )

    if base is None:
        known = make_options(read_run_config(path)).model if of_run else ModelOptions()
        refuse_quantised(known.quantization)
        base = known.model_copy(update=dict(named_base(folder, lora)))
    name = base.name
    into = load_chosen(
        base.model_copy(update={"trust_remote_code": trust}),
        check=lambda model: refuse_quantised(quantised_by(model)),
        as_stored=not of_run,
    )
    if of_run and read_identity(path).fingerprint["model"]["weights"] != weights_sha256(into.model):
        raise InputError(
            f"{path}: the weights of its model {name} have changed since the run, expected the same, or --base {name} "
            "to take them as they are"
        )
    if dtype is not None:
        into.model.to(getattr(torch, dtype))
    if is_run(path):
        if (template := folder / TEMPLATE).is_file():
            use_template(into.tokenizer, template)
    else:
        into = with_tokenizer_of(into, folder)
    load_founder(into, folder, name)
    return into


def folder_named(adapter: Path) -> str | None:
    """The base model that an adapter names, where it is a folder or a variable of this machine."""
    if not (adapter / "adapter_config.json").is_file():
        return None
    name = str(load_adapter(adapter)[0].base_model_name_or_path)
    return name if Path(name).is_dir() or references(name) else None


def _converter(llama_cpp: Path) -> Path:
    script = llama_cpp / "convert_hf_to_gguf.py"
    if not script.is_file():
        raise InputError(f"--llama-cpp {llama_cpp}: found no {script.name}, expected the folder of llama.cpp's sources")
    return script


def _write_gguf(to: Path, write: Callable[[Path], None], converter: Path, dtype: str | None) -> None:
    """The merged model as one GGUF file, by way of a folder beside it."""
    beside = temporary_folder(to)
    try:
        write(beside / "model")
        outfile = beside / to.name
        outtype = [] if dtype is None else ["--outtype", _OUTTYPES[dtype]]
        arguments = [sys.executable, str(converter), str(beside / "model"), "--outfile", str(outfile), *outtype]
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not outfile.is_file():
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["nothing"]
            raise InputError(
                f"--llama-cpp {converter.parent}: {converter.name} ended with {done.returncode} and said "
                f"{said[-1].strip()[:300]!r}, expected a GGUF file"
            )
        outfile.replace(to)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check_push(push: Push, base: str | None) -> None:
    """What can be known of an upload before anything is written. `base` is what the adapter will name."""
    try:
        validate_repo_id(push.repository)
    except HFValidationError as error:
        raise InputError(f"--push {push.repository}: {reason_of(error)}") from None
    if base is not None and (Path(base).is_dir() or references(base)):
        raise InputError(
            f"--push {push.repository}: the adapter's base model is {base}, which is only here, expected --base NAME "
            "beside it, a model that others can load, or --merge"
        )
    if get_token() is None:
        raise InputError(f"--push {push.repository}: found no token, expected one in HF_TOKEN, or by 'hf auth login'")


def _upload(written: Path, push: Push) -> None:
    api = HfApi(library_name="evolora")
    try:
        api.create_repo(push.repository, private=push.private or None, exist_ok=True)
        if written.is_dir():
            api.upload_folder(repo_id=push.repository, folder_path=written, commit_message="Upload by evolora")
        else:
            api.upload_file(repo_id=push.repository, path_or_fileobj=written, path_in_repo=written.name)
    except Exception as error:  # the hub's, the network's, and those of their libraries
        raise InputError(
            f"--push {push.repository}: {reason_of(error)}; expected an upload, what was exported is in {written}"
        ) from None
