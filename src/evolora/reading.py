"""Files of somebody else are opened here: regular ones only."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_file(path: Path | str) -> BinaryIO:
    """Open a file for reading, a regular one or a link to such: a pipe or a device would be waited for, or have no end.

    Raises OSError, whose `strerror` says so, for anything else.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, "rb")
    kind = "a folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "a device, pipe or socket"
    os.close(handle)
    raise OSError(errno.EINVAL, f"it is {kind}, no file", str(path))


def read_text(path: Path | str) -> str:
    """The text of a file. Raises OSError as `open_file` does, and UnicodeDecodeError for what is not UTF-8."""
    with open_file(path) as file:
        return file.read().decode("utf-8")
