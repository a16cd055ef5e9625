"""Which run a folder is."""

import json
import secrets
from pathlib import Path

from evolora.files import write_text

IDENTITY = "identity.json"


def write_identity(folder: Path) -> str:
    """Give the new run in `folder` its identity; its random id of 32 hexadecimal digits."""
    run = secrets.token_hex(16)
    write_text(folder / IDENTITY, json.dumps({"run": run}, indent=1) + "\n")
    return run


def run_id(folder: Path) -> str | None:
    """The id of the run in `folder`; None where there is none that can be read."""
    try:
        found = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    run = found.get("run") if isinstance(found, dict) else None
    return run if isinstance(run, str) else None
