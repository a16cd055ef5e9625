"""The rating page as the run sees it: a server in a thread of its own."""

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from evolora.errors import InputError
from evolora.human.guard import Guard
from evolora.human.status import PageStatus
from evolora.human.votes import VoteStore

_POLL_SECONDS = 0.2
_THREADS = 4


class RatingPage:
    """Serves the page from a daemon thread. The run sets `status` whenever it likes.

    `host` is an address in digits, or "localhost"; anything but this machine's own 127.0.0.1 lets others in who have
    the address with its token, unencrypted. `port` 0 takes a free one.

    Raises InputError for another host, for a port that cannot be had (`start`), and where flask or waitress is missing.
    """

    def __init__(self, store: VoteStore, *, host: str = "127.0.0.1", port: int = 0) -> None:
        name = "127.0.0.1" if host == "localhost" else host
        try:
            self._address = ipaddress.ip_address(name)
        except ValueError:
            raise InputError(f"the rating page's host is '{host}', expected an address such as 127.0.0.1.") from None
        if not 0 <= port < 65536:
            raise InputError(f"the rating page's port is {port}, expected 0 to 65535.")
        self.status = PageStatus()
        self._store = store
        self._port = port
        self._guard = Guard(any_address=not self._address.is_loopback)
        self._voted = threading.Event()
        self._closing = threading.Event()
        self._sockets: dict[int, Any] = {}
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Raise InputError where `start` would for want of a package or of the address."""
        _web()
        family = socket.AF_INET6 if self._address.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((str(self._address), self._port))
            except OSError as error:
                raise self._refused(error) from None

    def start(self) -> None:
        """Start to serve. From then on `url` is known."""
        create_server, create_app = _web()
        logging.getLogger("waitress").setLevel(logging.ERROR)  # its news would break into the run's own display
        app = create_app(self._store, lambda: self.status, self._guard, self._voted.set)
        try:
            self._server = create_server(
                app,
                map=self._sockets,
                host=str(self._address),
                port=self._port,
                threads=_THREADS,
                ident=None,
                clear_untrusted_proxy_headers=True,
            )
        except OSError as error:
            raise self._refused(error) from error
        self._thread = threading.Thread(target=self._serve, name="rating page", daemon=True)
        self._thread.start()

    def _refused(self, error: OSError) -> InputError:
        return InputError(
            f"the rating page's address {self._address} port {self._port} cannot be had ({error.strerror}), "
            "expected one that is free."
        )

    @property
    def url(self) -> str:
        """The address to open, with its token."""
        if self._server is None:
            raise RuntimeError("the rating page has not been started")
        host = "127.0.0.1" if str(self._address) == "0.0.0.0" else str(self._address)
        host = f"[{host}]" if self._address.version == 6 else host
        return f"http://{host}:{self._server.effective_port}/?token={self._guard.token}"

    def wait_for(
        self,
        count: int,
        generation: int,
        stop: Callable[[], bool],
        on_vote: Callable[[], None] | None = None,
    ) -> int:
        """Wait until `count` votes of the generation count, all its questions are decided, or `stop()`; returns how
        many votes count.

        `stop` is asked five times a second. `on_vote` is called, from this thread, whenever the number of votes has
        changed, and once at the start: the place to fit again and to set `status`. The status's generation and wanted
        votes are set to those waited for.
        """
        self.status = replace(self.status, generation=generation, wanted=count)
        before = -1
        while True:
            self._voted.clear()
            decided = self._store.count(generation)
            if decided != before and on_vote is not None:
                on_vote()
            before = decided
            if decided >= count or decided >= self._store.asked(generation) or stop():
                return decided
            self._voted.wait(_POLL_SECONDS)

    def close(self) -> None:
        """Stop to serve; the votes are in the store. May be called more than once."""
        if self._thread is None:
            return
        self._closing.set()
        if self._thread.is_alive():
            self._server.trigger.pull_trigger()
            self._thread.join(timeout=10)
        self._thread = None

    def _serve(self) -> None:
        from waitress import wasyncore

        while not self._closing.is_set():
            wasyncore.loop(timeout=1.0, use_poll=True, map=self._sockets, count=1)
        self._server.task_dispatcher.shutdown()
        wasyncore.close_all(self._sockets)

    def __enter__(self) -> "RatingPage":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _web() -> tuple[Any, Any]:
    """What makes a server, and what makes the app. Raises InputError where flask or waitress is missing."""
    try:
        from waitress.server import create_server

        from evolora.human.page import create_app
    except ImportError as error:
        raise InputError(
            f"the rating page needs {error.name}, which is not installed: pip install 'evolora[human]'."
        ) from error
    return create_server, create_app
