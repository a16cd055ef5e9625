"""One owner of a run's folder at a time, by a lock of the operating system that dies with its process."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evolora.errors import InputError

LOCK = "run.lock"

# A forked child has its parent's files, and would hold the parent's lock for as long as it lives.
_held: set[int] = set()


@contextmanager
def owned(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Own the run in `folder`, which exists, meanwhile. Where the file system cannot lock, `say` so and go on.

    Raises InputError when another process owns it, with its number and machine.
    """
    path = folder / LOCK
    handle = -1
    try:
        handle = _locked(path, folder)
        _held.add(handle)
    except OSError as error:
        say(f"{path}: cannot be locked ({error.strerror}); nothing keeps another process off this run")
    try:
        yield
    finally:
        if handle in _held:  # not in a child
            _held.discard(handle)
            with contextlib.suppress(OSError):
                path.unlink()  # before the lock goes: whoever has opened this file sees that it is gone
            os.close(handle)


def holder(folder: Path) -> str | None:
    """Who owns the run in `folder` now; None where nobody does, or the file system cannot tell."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(handle)
    except OSError:
        return None
    else:
        return None
    finally:
        os.close(handle)


def _locked(path: Path, folder: Path) -> int:
    """The open, locked file with this process's number in it."""
    tries = 3  # `holder` keeps the lock for a moment when it looks
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return handle
        except BlockingIOError:
            owner = _owner(handle)
            os.close(handle)
            if tries := tries - 1:
                time.sleep(0.01)
                continue
            raise InputError(
                f"{folder}: in use by {owner}, expected a folder that no other process works on; wait for it, or end it"
            ) from None
        except OSError:
            os.close(handle)
            raise
        os.close(handle)  # its owner has left, and has taken the file away


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _owner(handle: int) -> str:
    for _ in range(20):
        if (text := os.pread(handle, 1000, 0).decode("utf-8", "replace").strip()) != "":
            return text
        time.sleep(0.01)  # it has locked, and not written yet
    return "another process"


def _after_fork() -> None:
    for handle in _held:
        with contextlib.suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)
