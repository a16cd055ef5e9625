"""Lines of JSON that name their run and vouch for the lines before them: a changed, lost or foreign one is found."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evolora.errors import CheckpointError
from evolora.runs.identity import check_run

_LINE = re.compile(rb'(\{.*"run": "([^"]*)"), "check": "([0-9a-f]{16})"\}')


def chained(content: Mapping[str, Any], run: str, before: str) -> tuple[str, str]:
    """The line of a JSON object, and its check, which is by the line and by the check of the line `before`."""
    text = json.dumps({**content, "run": run}).removesuffix("}")
    check = _check(text.encode(), before)
    return f'{text}, "check": "{check}"}}\n', check


def unchained(line: str) -> tuple[dict[str, Any], str]:
    """A line's JSON object, and its check. Raises ValueError when it is cut short."""
    content = json.loads(line)
    del content["run"]
    return content, content.pop("check")


def check_chain(path: Path, run: str, generations: int) -> None:
    """Raise CheckpointError, naming the line, when one of the first `generations` is missing or altered, InputError
    when it is of another run."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    before = ""
    for generation in range(1, generations + 1):
        if generation > len(lines):
            raise CheckpointError(f"{path}: has no line of generation {generation}, expected {generations} generations")
        found = _LINE.fullmatch(lines[generation - 1])
        if found is None or found[3].decode() != _check(found[1], before):
            raise CheckpointError(f"{path}: line {generation} is altered, or one is missing before it")
        before = found[3].decode()
        check_run(path, found[2].decode(), run)


def _check(text: bytes, before: str) -> str:
    return hashlib.sha256(before.encode() + text).hexdigest()[:16]
