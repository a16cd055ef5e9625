"""A run's options as TOML."""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from evolora.errors import InputError
from evolora.runs.config import RunConfig


def read_config(path: Path) -> dict[str, Any]:
    """The options in a TOML file. Raises InputError when it is missing or malformed."""
    try:
        return _with_reward_text(path, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


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
        ):
            raise InputError(
                f"{path}: [[reward]] number {number} is {term}, expected a term (text) and, if need be, a weight "
                "(a number) and a gate (text)"
            )
        gate = f" * ({term['gate']})" if "gate" in term else ""
        parts.append(f"{term.get('weight', 1)} * ({term['term']}){gate}" if len(term) > 1 else f"({term['term']})")
    return {**options, "reward": " + ".join(parts)}


def config_toml(config: RunConfig) -> str:
    """Every option as TOML; options without a value are left out where that is their default, else `none`."""
    values = config.model_dump()
    for name, field in RunConfig.model_fields.items():
        if values[name] is None and field.default is not None:
            values[name] = "none"
    return tomli_w.dumps({name: value for name, value in values.items() if value is not None})
