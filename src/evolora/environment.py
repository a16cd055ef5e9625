"""`env:NAME` in a text stands for that environment variable: it is looked up where the text is used, and only there."""

import os
import re
from collections.abc import Callable

from evolora.errors import InputError
from evolora.masking import conceal

# Not the end of a module's name, as in my.env:function.
_REFERENCE = re.compile(r"(?<![\w.])env:([A-Za-z_][A-Za-z0-9_]*)")


def references(text: object) -> list[str]:
    """The variables that a text names.

    >>> references("https://h/?key=env:KEY&user=env:USER_1"), references("my_env:function"), references(3)
    (['KEY', 'USER_1'], [], [])
    """
    return _REFERENCE.findall(text) if isinstance(text, str) else []


def unset(text: object) -> str | None:
    """The first variable that a text names and that has no value."""
    return next((name for name in references(text) if not os.environ.get(name)), None)


def resolved(text: str, written: Callable[[str], str] = str) -> str:
    """The text with the variables' values, as `written` writes them, which no message shows from then on.

    Raises InputError for a variable that has no value."""
    if (missing := unset(text)) is not None:
        raise InputError(f"env:{missing}: the environment variable {missing} is not set, expected a value in it.")

    def value(found: re.Match[str]) -> str:
        conceal(os.environ[found[1]], found[0])
        return written(os.environ[found[1]])

    return _REFERENCE.sub(value, text)
