"""The errors that users meet."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input, found before any work: one sentence that names the option or the file and line, what was found and
    what was expected. The command line prints it and exits with code 2."""


class RewardError(RuntimeError):
    """A reward function raised or returned something that is not one score per completion."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing, truncated or altered; the message names the file."""


def encodes(text: str) -> bool:
    """Whether text can be written as UTF-8: half of a surrogate pair, which JSON can escape, and which Python makes of
    bytes that are no UTF-8, cannot.

    >>> encodes("é"), encodes("\\udcff")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(subject: str, text: str) -> None:
    """Raise InputError for text that no UTF-8 file, or no file's name, can hold."""
    if not encodes(text):
        raise InputError(f"{subject}: found {_shown(text)}, expected text that can be encoded as UTF-8")
    if "\0" in text:
        raise InputError(f"{subject}: found {_shown(text)}, expected text without a NUL character")


@contextmanager
def names_refused() -> Iterator[None]:
    """Inside, a path that the system can hold no file at is an InputError: a name that is too long, a link that leads
    back to itself."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise InputError(f"{_shown(str(error.filename))}: {error.strerror}, expected another path") from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
