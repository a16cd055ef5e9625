"""What rewards print: kept off the screen's live view, in a log that cannot grow without bound."""

import contextlib
import io
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from evolora.masking import concealed_bytes

FILE_LIMIT = 1_000_000
SCREEN_LIMIT = 64_000
_DROPPED = "[the rest of what the reward printed was dropped: {} kB are kept]\n"


class BoundedLog:
    """Takes up to `limit` bytes, then one line that says that the rest was dropped, then nothing more.

    With a path it appends to that file, whose whole size counts, so that several logs and several processes may share
    one; `limit` is then 1 MB. Without one it passes everything through to the stream given to `write`, up to 64 kB from
    one `begin` to the next.
    A file that cannot be written (a full disk) loses what was printed, not the reward. It is for its owner's eyes: what
    fails may print its keys. What `env:NAME` stands for is not written.
    """

    def __init__(self, path: Path | None = None, *, limit: int | None = None) -> None:
        self.path = path
        self.limit = limit if limit is not None else SCREEN_LIMIT if path is None else FILE_LIMIT
        self._lock = threading.Lock()
        self._passed = 0
        self._file: BinaryIO | None = None

    def write(self, text: str | bytes, through: TextIO | None = None) -> None:
        data = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
        data = concealed_bytes(data)
        if not data:
            return
        if isinstance(through, _Routed):  # it would come back here
            through = through.stream
        with self._lock, contextlib.suppress(OSError, ValueError):  # ValueError: a closed stream
            size = self._size()
            if size > self.limit:  # then the line that says so is there
                return
            if len(data) > self.limit - size:
                data = data[: self.limit - size] + ("\n" + _DROPPED.format(self.limit // 1000)).encode()
            self._passed += len(data)
            if self._file is not None:
                self._file.write(data)
            elif through is not None:
                through.write(data.decode("utf-8", "replace"))
                through.flush()

    def begin(self) -> None:
        """Another batch begins: without a file, as much again may pass."""
        with self._lock:
            self._passed = 0

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _size(self) -> int:
        if self.path is None:
            return self._passed
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._file = os.fdopen(handle, "ab", buffering=0)
        return self._file.seek(0, io.SEEK_END)


class _Scope:
    def __init__(self, log: BoundedLog) -> None:
        self.log = log
        self.before = set(threading.enumerate())
        self.others = {thread.ident for thread in self.before - set(_ours)} - {threading.get_ident()}


_lock = threading.Lock()
_scopes: list[_Scope] = []
_restored: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []
_streams: list[TextIO | None] = []
# Threads that were started inside `captured` and go on: what they print later is the reward's too.
_ours: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@contextlib.contextmanager
def captured(log: BoundedLog) -> Iterator[None]:
    """While inside, what this thread, and those that it starts, write to `sys.stdout` and `sys.stderr` goes to `log`,
    and so does what logging handlers write there. Threads that ran before, such as the live view's, are not touched.
    What goes to the file descriptors directly (C code, child processes) is not seen.
    """
    scope = _Scope(log)
    with _lock:
        if not _scopes:
            _install()
        _scopes.append(scope)
    try:
        yield
    finally:
        with _lock:
            _scopes.remove(scope)
            if not _scopes:
                _restore()
        _ours.update(set(threading.enumerate()) - scope.before)


def _install() -> None:
    out, err = sys.stdout, sys.stderr
    routed = _Routed(out), _Routed(err)
    _streams[:] = [out, err]
    # A handler holds on to the stream that it found when it was made.
    for handler in _stream_handlers():
        for stream, ours in zip((out, err), routed, strict=True):
            if handler.stream is stream and stream is not None:
                _restored.append((handler, stream))
                handler.stream = cast(TextIO, ours)
    sys.stdout, sys.stderr = cast(tuple[TextIO, TextIO], routed)


def _restore() -> None:
    sys.stdout, sys.stderr = _streams  # None where Python has no console
    for handler, stream in _restored:
        handler.stream = stream
    # Handlers that the reward made while it was called.
    for handler in _stream_handlers():
        if isinstance(handler.stream, _Routed) and handler.stream.stream is not None:
            handler.stream = handler.stream.stream
    _restored.clear()
    _streams.clear()


def _stream_handlers() -> Iterator["logging.StreamHandler[TextIO]"]:
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            # Not those that look `sys.stderr` up themselves each time.
            if isinstance(handler, logging.StreamHandler) and "stream" in vars(handler):
                yield handler


class _Routed(io.TextIOBase):
    """A stream that writes to the innermost scope's log, or to the stream that it stands for."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.buffer = _Bytes(self)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        here = threading.get_ident()
        for scope in reversed(_scopes):
            if here not in scope.others:
                scope.log.write(text, self.stream)
                return len(text)
        if self.stream is not None:
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self.stream.flush()

    def close(self) -> None:
        """The reward does not close the run's streams."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self.stream is None:
            raise OSError("there is no console")
        return self.stream.fileno()


class _Bytes(io.BufferedIOBase):
    def __init__(self, text: _Routed) -> None:
        self._text = text

    def write(self, data: object) -> int:
        found = bytes(data)  # type: ignore[call-overload]
        self._text.write(found.decode("utf-8", "replace"))
        return len(found)

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        pass
