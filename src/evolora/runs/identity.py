"""Which run a folder is: its random id, and the fingerprint of all that its results depend on."""

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from evolora.errors import CheckpointError, InputError
from evolora.files import read_checked, write_checked

IDENTITY = "identity.json"
# In the folder of a run under several seeds.
SEEDS = "seeds.json"

Fingerprint = Mapping[str, Mapping[str, Any]]
"""Groups of named entries: plain values, or checksums."""


@dataclass(frozen=True)
class Identity:
    """The run's id of 32 hexadecimal digits, its fingerprint, and which differences from it were accepted since, each
    with the generation after which."""

    run: str
    fingerprint: Fingerprint
    changed: Sequence[Mapping[str, Any]] = ()
    made: datetime | None = None
    """When the run was begun; None of one that an older version began."""

    def write(self, folder: Path) -> None:
        made = {} if self.made is None else {"made": self.made.isoformat(timespec="seconds")}
        content = {"run": self.run, **made, "fingerprint": self.fingerprint, "changed": list(self.changed)}
        write_checked(folder / IDENTITY, content)


def new_identity(fingerprint: Fingerprint) -> Identity:
    """A new run's."""
    return Identity(secrets.token_hex(16), fingerprint, made=datetime.now().astimezone())


def read_identity(folder: Path) -> Identity:
    """The identity of the run in `folder`. Raises InputError where it has none, or one that is altered."""
    try:
        found = read_checked(folder / IDENTITY)
    except CheckpointError as fault:
        raise InputError(f"{fault}, expected what evolora wrote") from None
    if found is None or "fingerprint" not in found:
        raise InputError(
            f"{folder}: found no {IDENTITY} with a fingerprint, expected the folder of a run of this version of evolora"
        )
    made = datetime.fromisoformat(found["made"]) if "made" in found else None
    return Identity(found["run"], found["fingerprint"], found["changed"], made)


def run_id(folder: Path) -> str | None:
    """The id of the run in `folder`, or of one under several seeds; None where there is none that can be read."""
    try:
        path = folder / (SEEDS if (folder / SEEDS).is_file() else IDENTITY)
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    run = found.get("run") if isinstance(found, dict) else None
    return run if isinstance(run, str) else None


def check_run(path: Path, found: object, run: str) -> None:
    """Raise InputError where a file of the run says that it is another one's."""
    if found != run:
        said = "another version of evolora" if found is None else f"run {found}"
        raise InputError(f"{path}: is of {said}, expected what belongs to run {run}, which {IDENTITY} names")


def differences(before: Fingerprint, now: Fingerprint) -> Iterator[str]:
    """What differs, each in a few words: its name, the old value and the new one."""
    for group in dict.fromkeys((*before, *now)):
        old, new = before.get(group, {}), now.get(group, {})
        for name in dict.fromkeys((*old, *new)):
            if old.get(name) != new.get(name):
                yield f"{group} {name} {_short(old.get(name))} -> {_short(new.get(name))}".removeprefix("option ")


def but_for_seed(fingerprint: Fingerprint) -> Fingerprint:
    """What runs under several seeds have in common."""
    options = fingerprint.get("option", {})
    return {**fingerprint, "option": {name: value for name, value in options.items() if name != "--seed"}}


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return value[:8]  # a checksum
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def sha256_of(value: Any) -> str:
    """The checksum of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
