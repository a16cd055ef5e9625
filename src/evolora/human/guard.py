"""Who may use the page: bearers of the token, from the page itself, under a name that is this machine's own."""

import hmac
import ipaddress
import socket
from dataclasses import dataclass, field
from secrets import token_urlsafe


@dataclass(frozen=True)
class Guard:
    """The checks that each request passes before anything else happens.

    `token` opens the page once, in its address; from then on the browser shows `session`, a cookie that scripts cannot
    read and that no other site's page can make it send. `any_address`: the page listens to other machines too.

    The names that a request may come under keep DNS rebinding out: a foreign page whose own name suddenly means
    127.0.0.1 still sends its own name as the host. Addresses in digits cannot be rebound.
    """

    any_address: bool = False
    token: str = field(default_factory=lambda: token_urlsafe(32))
    session: str = field(default_factory=lambda: token_urlsafe(32))

    def opens(self, token: str) -> bool:
        """Whether this is the token of the page's address."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    def knows(self, session: str) -> bool:
        """Whether this is the cookie that the page gave out."""
        return hmac.compare_digest(session.encode(), self.session.encode())

    def host_is_own(self, host: str) -> bool:
        """Whether a Host header names this machine; the port may differ (a forwarded one).

        >>> guard = Guard()
        >>> [guard.host_is_own(host) for host in ("127.0.0.1:8000", "localhost", "10.0.0.7:80", "evil.example:80", "")]
        [True, True, False, False, False]
        >>> [Guard(any_address=True).host_is_own(host) for host in ("10.0.0.7:80", "evil.example:80")]
        [True, False]
        """
        name = _without_port(host).lower()
        if name == "localhost":
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return self.any_address and name in (socket.gethostname().lower(), socket.getfqdn().lower())
        return self.any_address or address.is_loopback

    def origin_is_own(self, origin: str, host: str) -> bool:
        """Whether a request that changes something says, by its Origin, that it comes from a page of its own host and
        port. Browsers always say; a request that does not is refused."""
        return bool(host) and origin == f"http://{host}"


def _without_port(host: str) -> str:
    if host.startswith("["):  # IPv6
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
