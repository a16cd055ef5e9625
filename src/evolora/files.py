"""Checkpoints and other files that survive a kill: written to a temporary name, synced, renamed, checksummed."""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from evolora.errors import CheckpointError, InputError

MANIFEST = "manifest.json"
_SUM = "sha256"
# In a state, how a float is written that JSON has no number for.
_FLOAT = "<float>"


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a file whole or not at all; a `private` one for its owner's eyes only."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.unlink(missing_ok=True)  # whose mode it would keep
    mode = 0o600 if private else 0o666
    try:
        with open(temporary, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # a full disk
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_checked(path: Path, content: Mapping[str, Any], *, private: bool = False) -> None:
    """Write a JSON object with its own checksum in it, as `write_text`."""
    text = json.dumps({**content, _SUM: _content_sha256(content)}, indent=2, allow_nan=False) + "\n"
    write_text(path, text, private=private)


def read_checked(path: Path) -> dict[str, Any] | None:
    """What `write_checked` wrote; None where there is no such file. Raises CheckpointError when it is altered."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{path}: truncated or altered, it cannot be read") from None
    if not isinstance(found, dict) or _SUM not in found:
        raise CheckpointError(f"{path}: found no checksum in it, altered or of an older version")
    if found.pop(_SUM) != _content_sha256(found):
        raise CheckpointError(f"{path}: altered, its checksum differs")
    return found


def write_folder(folder: Path, temporary: Path) -> None:
    """Give a finished temporary folder its name, replacing what has it: readers see the old one or the new one."""
    for file in sorted(temporary.rglob("*")):
        if file.is_file():
            _sync_file(file)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def temporary_folder(folder: Path) -> Path:
    """An empty folder beside `folder`, to be filled and handed to `write_folder`."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to be filled; then it gets its name, or is gone where it could not be filled: a full disk."""
    temporary = temporary_folder(folder)
    try:
        yield temporary
        write_folder(folder, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and JSON values, by name, as `state.safetensors` and `state.json`."""
    from safetensors.torch import save_file
    from torch import Tensor

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    save_file(tensors, folder / "state.safetensors")
    write_text(folder / "state.json", json.dumps(without_nan(rest, _spelled), indent=1, allow_nan=False))


def read_state(folder: Path) -> dict[str, Any]:
    """The state that `write_state` wrote. The floats come back bit for bit."""
    from safetensors.torch import load_file

    text = (folder / "state.json").read_text(encoding="utf-8")
    rest: dict[str, Any] = json.loads(text, object_hook=lambda read: float(read[_FLOAT]) if _FLOAT in read else read)
    return {**load_file(folder / "state.safetensors"), **rest}


def without_nan(value: Any, instead: Callable[[float], Any] = lambda _: None) -> Any:
    """A JSON value with null, or something else, in the place of NaN and infinity, which are no JSON.

    >>> without_nan({"a": [1.5, float("nan")]})
    {'a': [1.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else instead(value)
    if isinstance(value, Mapping):
        return {key: without_nan(each, instead) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(each, instead) for each in value]
    return value


def _spelled(value: float) -> dict[str, str]:
    return {_FLOAT: repr(float(value))}


def seal(folder: Path) -> None:
    """Write the checksums of all files of a finished folder into its manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    write_text(folder / MANIFEST, json.dumps(sums, indent=1))


def verify(folder: Path, *, besides: Collection[str] = ()) -> None:
    """Raise CheckpointError, naming the file, when a sealed folder is incomplete or altered; `besides` may be."""
    if (sums := _manifest(folder)) is None:
        raise CheckpointError(f"{folder / MANIFEST}: missing or unreadable")
    for name, expected in sums.items():
        path = folder / name
        if name in besides:
            continue
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if file_sha256(path) != expected:
            raise CheckpointError(f"{path}: truncated or altered, its checksum differs")


def check_regular(folder: Path) -> None:
    """Raise InputError where a run's or an adapter's folder holds what is neither a file nor a folder: reading a pipe
    or a device may never end."""
    for path in folder.rglob("*"):
        if not path.is_file() and not path.is_dir() and (path.exists() or path.is_symlink()):
            raise InputError(f"{path}: found neither a file nor a folder, expected what a run leaves")


def user_cache() -> Path:
    """The user's own folder for what can be made again; `EVOLORA_CACHE` names another. RuntimeError without a home."""
    if own := os.environ.get("EVOLORA_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches/evolora").expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "evolora" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "evolora"


def is_sealed(folder: Path) -> bool:
    """Whether a folder that may be anybody's has a manifest of ours."""
    return _manifest(folder) is not None


def _manifest(folder: Path) -> dict[str, str] | None:
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(sums, dict) and all(isinstance(value, str) and len(value) == 64 for value in sums.values())
    return sums if ours and sums else None


def checkpoint_folder(run: Path, generation: int) -> Path:
    """Where the checkpoint after `generation` generations lies."""
    return run / "checkpoints" / f"gen{generation:04d}"


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, the newest last: gen10000 comes after gen9999. What else lies there, such
    as a copy that somebody made, is none."""
    found = [path for path in (run / "checkpoints").glob("gen*") if re.fullmatch(r"gen\d{4,}", path.name)]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def newest_checkpoint(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that is whole, and what is wrong with each newer one.

    Raises CheckpointError when there are checkpoints and none is whole: starting over in silence would lose the run.
    """
    faults: list[str] = []
    for folder in reversed(checkpoints(run)):
        try:
            verify(folder)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        return folder, faults
    if faults:
        raise CheckpointError(f"no checkpoint of {run} is whole: {'; '.join(faults)}")
    return None, []


def file_sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
