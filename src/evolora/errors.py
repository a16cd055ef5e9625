"""The errors that users meet. None of them shows a key."""

import errno
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from evolora.masking import mask

# What torch, its libraries and Python's threads say when there is no more of something.
_NO_MORE = re.compile("out of memory|not enough memory|can(no|')t allocate memory|ALLOC_FAILED|can't start new thread")


class _Masked:
    def __init__(self, *arguments: object) -> None:
        super().__init__(*(mask(each) if isinstance(each, str) else each for each in arguments))


class InputError(_Masked, ValueError):
    """Bad input, found before any work: one sentence that names the option or the file and line, what was found and
    what was expected. The command line prints it and exits with code 2."""


class RewardError(_Masked, RuntimeError):
    """A reward function raised or returned something that is not one score per completion."""


class EngineError(_Masked, RuntimeError):
    """An engine does not compute what the model does. It is `mended` where whoever did not is gone: what was asked of
    it can be asked again."""

    mended = False


class CheckpointError(_Masked, RuntimeError):
    """A checkpoint is missing, truncated or altered; the message names the file."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that there is no more memory, of the machine or of a device.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("CUDA out of memory.")), out_of_memory(RuntimeError())
    (True, True, False)
    """
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MORE.search(str(error))))


def ran_out(error: BaseException) -> str | None:
    """What the machine lacked, in a sentence: memory, a disk's room, a file that can be read; None for an error of
    another kind."""
    first = (str(error).splitlines() or [""])[0][:300]
    if out_of_memory(error):
        return f"out of memory: {first}".removesuffix(": ")
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{where}" if error.strerror else first or type(error).__name__
    if isinstance(error, sqlite3.Error):
        return f"a database of the run: {first}"
    # safetensors' name for what is an OSError elsewhere
    if isinstance(error, UnicodeError) or type(error).__name__ == "SafetensorError":
        return first
    return None


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
