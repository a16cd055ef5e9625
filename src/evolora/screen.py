"""Text streams that never fail: nobody's work ends because what it says cannot be written."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Screen:
    """A stream whose text is lost, and nothing else, where the pipe is broken, the disk full, the file closed or not
    there at all; characters that its encoding lacks are replaced.

    >>> import io
    >>> ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    >>> Screen(ascii_only).write("naïve"), ascii_only.detach().getvalue()
    (5, b'na?ve')
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.lost: OSError | None = None
        """Why what was written is lost, but for a pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        # A signal's handler speaks while the stream is being written.
        with self._never_failing():
            if self._stream is not None:
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:
                    encoding = self._stream.encoding or "ascii"
                    self._stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._never_failing():
            if self._stream is not None:
                self._stream.flush()

    @contextlib.contextmanager
    def _never_failing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            pass
        except OSError as error:
            self.lost = error
        except (ValueError, RuntimeError):
            pass

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # it is closed
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def asked(question: str) -> bool:
    """Whether the user says yes."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
