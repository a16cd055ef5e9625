"""A run's options as TOML."""

import hashlib
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from evolora.errors import CheckpointError, InputError
from evolora.reading import read_text
from evolora.rewards.options import is_finite
from evolora.runs.options import RunOptions, Source
from evolora.runs.parts import Vocabulary, is_part
from evolora.runs.speech import Speech

# Of every configuration that was written when options were not in parts.
_OLDER = {"es_scale", "pbt_share"}
_SUM = "# sha256 "
_DEEPEST = 10
_SWITCHES = ("on", "off", "true", "false", "yes", "no")
_DEEP_KEY = re.compile(rf"^[ \t\[]*[\w-]+([ \t]*\.[ \t]*[\w-]+){{{_DEEPEST},}}", re.MULTILINE)
_TOO_DEEP = f"tables or lists are nested deeper than {_DEEPEST} levels, expected options in the tables of their parts"


def read_config(path: Path) -> Source:
    """The words of a TOML file: options by their names, or in the tables of their parts. Raises InputError when it is
    missing or malformed."""
    values = _read(path)
    if values.keys() >= _OLDER:
        raise InputError(_older(path))
    words: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict) and is_part(name):
            words += [(f"{name}.{each}", one) for each, one in value.items()] or [(name, value)]
        else:
            words.append((name, value))
    return Source(words, Speech("toml", str(path)))


def read_run_config(folder: Path) -> Source:
    """The options of the run in `folder`, but whether code of its model is trusted: that is for who uses it to say.
    Raises InputError for a run of an older version."""
    path = folder / "config.toml"
    if any(not isinstance(value, dict) for value in _read(path).values()):
        raise InputError(_older(path))
    said, vocabulary = read_config(path), Vocabulary({})
    trust = [word for word, place in vocabulary.words.items() if place == ("model", "trust_remote_code")]
    return replace(said, words=[word for word in said.words if word[0].replace("-", "_") not in trust])


def _older(path: Path) -> str:
    return (
        f"{path}: found the options of an older version of evolora, which were not in parts such as [evolution], "
        "expected those of this version: use the version that wrote it, or start a new run"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
        if _DEEP_KEY.search(text):  # which tomllib takes long to read
            raise InputError(f"{path}: {_TOO_DEEP}")
        values = tomllib.loads(text)
    except OSError as error:
        switch = " (what is on or off takes no value: --rare-hits, --no-rare-hits)" * (str(path) in _SWITCHES)
        raise InputError(f"{path}: {error.strerror}, expected a configuration file{switch}") from None
    except RecursionError:
        raise InputError(f"{path}: {_TOO_DEEP}") from None
    except ValueError as error:  # TOML's, what is not UTF-8, and whole numbers of thousands of digits
        raise InputError(f"{path}: not valid TOML: {error}") from None
    if _depth(values) > _DEEPEST:
        raise InputError(f"{path}: {_TOO_DEEP}")
    return _with_reward_text(path, values)


def _depth(value: Any) -> int:
    """How deep tables and lists are nested, but no further than is of interest."""
    level, depth = [value], 0
    while level and depth <= _DEEPEST:
        inner = [list(each.values()) if isinstance(each, dict) else each for each in level]
        level, depth = [one for each in inner if isinstance(each, list) for one in each], depth + 1
    return depth


def _with_reward_text(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The options with `[[reward]]` tables, a weighted sum of terms with an optional gate each, as one expression."""
    terms = options.get("reward")
    if not isinstance(terms, list):
        return options
    parts = []
    for number, term in enumerate(terms, 1):
        known = {"term": str, "weight": (int, float), "gate": str}
        if (
            not isinstance(term, dict)
            or "term" not in term
            or any(
                name not in known or isinstance(value, bool) or not isinstance(value, known[name])  # type: ignore[arg-type]
                for name, value in term.items()
            )
            or not is_finite(term.get("weight", 1))
        ):
            raise InputError(
                f"{path}: [[reward]] number {number} is {term}, expected a term (text) and, if need be, a weight "
                "(a finite number) and a gate (text)"
            )
        gate = f" * ({term['gate']})" if "gate" in term else ""
        parts.append(f"{term.get('weight', 1)} * ({term['term']}){gate}" if len(term) > 1 else f"({term['term']})")
    return {**options, "reward": " + ".join(parts)}


def with_checksum(text: str) -> str:
    """TOML with its checksum as a comment at its end."""
    return f"{text}{_SUM}{hashlib.sha256(text.encode()).hexdigest()}\n"


def check_config(folder: Path) -> None:
    """Raise CheckpointError when the run's `config.toml` is not as evolora wrote it."""
    path = folder / "config.toml"
    try:
        text, _, _ = (whole := path.read_text(encoding="utf-8")).rpartition(_SUM)
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(f"{path}: missing or unreadable") from None
    if whole != with_checksum(text):
        raise CheckpointError(f"{path}: edited or altered, its checksum differs")


def config_toml(config: RunOptions) -> str:
    """Every option as TOML, part by part; options without a value are left out where that is their default, else
    `none`."""
    parts: dict[str, dict[str, Any]] = {}
    for part, values in config.parts().items():
        written = {
            name: "none" if value is None else value
            for name, value in values.items()
            if value is not None or config.vocabulary.fields[part, name].default is not None
        }
        parts |= {part: written} if written else {}
    return tomli_w.dumps(parts)
