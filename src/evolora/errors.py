"""The errors that users meet. None of them shows a key."""

import re
import sqlite3

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


class CheckpointError(_Masked, RuntimeError):
    """A checkpoint is missing, truncated or altered; the message names the file."""


def ran_out(error: BaseException) -> str | None:
    """What the machine lacked, in a sentence: memory, a disk's room, a file that can be read; None for an error of
    another kind."""
    first = (str(error).splitlines() or [""])[0][:300]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MORE.search(str(error))):
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
