"""Any text in Markdown, as text."""

import re

_LONGEST = 300


def code_span(text: str) -> str:
    """Any text as code on one line of Markdown, cut where it is long: no HTML, links or images come of it.

    >>> print(code_span("a `b`" + chr(10) + "<script>"))
    `` a `b`\\n<script> ``
    """
    # Backslashes and what cannot be seen are written as Python does.
    shown = repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")[1:-1] or " "
    fence = _fence(shown, 1)
    space = " " if len(fence) > 1 or shown != shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def fenced(text: str) -> str:
    """Lines of text as a block of code."""
    fence = _fence(text, 3)
    return f"{fence}text\n{text}\n{fence}"


def _fence(text: str, shortest: int) -> str:
    """As many backticks as do not occur in the text."""
    return "`" * max(shortest, 1 + max(map(len, re.findall("`+", text)), default=0))
