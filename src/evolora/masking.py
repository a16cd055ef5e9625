"""What looks like a key is shown as `***`, and what `env:NAME` stood for as that again."""

import json
import re
import urllib.parse
from collections.abc import Mapping

HIDDEN = "***"

# What is shorter is no secret, and stands in too many words; what only looks like a key may be no secret either.
_SHORTEST, _SHORTEST_KEY = 4, 8
_concealed: dict[str, str] = {}

_KEY = r"(?:api|access|auth|client|private|secret)?(?:key|token|secret|password|passwd|passphrase|signature|sig)"
_NAME = rf"(?<![A-Za-z0-9]){_KEY}"
_SURE = r"(?<![A-Za-z0-9])(?:api|access|auth|client|private|secret)[_-]?(?:key|token|secret)"
_VALUE = r"""(?!["'\\]*env:[A-Za-z_])(?:(?P<q>\\?["'])(?P<quoted>.*?)(?P=q)|(?P<bare>[^\s"'&\\]+))"""
_KEYS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?P<name>{_NAME}\s?=(?!=)\s?){_VALUE}",
        rf"(?P<name>--(?:[A-Za-z0-9]+[_-]){{0,9}}{_KEY}\s+)(?!-){_VALUE}",
        rf"(?P<name>{_SURE}[\"']?\s?:\s?){_VALUE}",
        rf"(?P<name>\bauthorization[\"']?\s?[:=]\s?(?:[\"']?(?:bearer|basic|token)\s+)?+|\bbearer\s+){_VALUE}",
        r"(?P<name>://)(?!(?:env:[a-z_][a-z0-9_]*:?)+@)(?:[^/\s@\"':]*:)?(?P<quoted>)(?P<bare>[^/\s@\"']+)(?=@)",
        r"(?P<name>\b)(?P<quoted>)(?P<bare>(?:sk-|hf_|gh[pousr]_|xox[abp]-|akia)[a-z0-9_-]{16,})",
    )
)


def mask(text: str) -> str:
    """The text without keys: for the screen, errors, and what is published.

    >>> print(mask("http('https://h/x?api_key=S3cret&n=1')"), mask("command('score --key S3cret')"))
    http('https://h/x?api_key=***&n=1') command('score --key ***')
    >>> mask("https://me:S3cret@h/ --token=env:MY_TOKEN -H 'Authorization: Bearer S3cret'")
    "https://***@h/ --token=env:MY_TOKEN -H 'Authorization: Bearer ***'"
    """
    return _without_keys(concealed(text))


def keys_in(text: str) -> list[str]:
    """What looks like a key in the text."""
    found = [match["quoted"] or match["bare"] or "" for pattern in _KEYS for match in pattern.finditer(text)]
    return [key for key in found if key not in ("", HIDDEN)]


def conceal(value: str, reference: str = HIDDEN) -> None:
    """From now on `mask` puts `reference` in the place of `value`, however it is written."""
    if len(value) >= (_SHORTEST_KEY if reference == HIDDEN else _SHORTEST):
        quoted = [quote(value) for quote in (_quote_all, urllib.parse.quote, urllib.parse.quote_plus)]
        for written in (value, repr(value)[1:-1], json.dumps(value)[1:-1], *quoted):
            _concealed[written] = reference


def concealed(text: str) -> str:
    """The text without what `conceal` was told."""
    return _replaced(text, _concealed)


def concealed_bytes(data: bytes) -> bytes:
    """The same for what a program writes."""
    if not _concealed:
        return data
    return concealed(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def with_references(text: str) -> str:
    """The text with `env:NAME` for what that stood for in this process."""
    return _replaced(text, {value: reference for value, reference in _concealed.items() if reference != HIDDEN})


def conceals() -> bool:
    """Whether there is anything that must not be shown."""
    return bool(_concealed)


def _quote_all(value: str) -> str:
    return urllib.parse.quote(value, safe="")


def _replaced(text: str, others: Mapping[str, str]) -> str:
    for value in sorted(others, key=len, reverse=True):
        text = text.replace(value, others[value])
    return text


def _without_keys(text: str) -> str:
    for pattern in _KEYS:
        text = pattern.sub(lambda found: found["name"] + HIDDEN, text)
    return text
