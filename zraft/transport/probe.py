"""One raw connect: is anybody behind this endpoint?

A living process accepts, and so does a stopped one: the kernel does it for them. A dead one
refuses (measured: within 0.1 ms). So a refusal, or a Unix socket's missing path, is the only proof
that a process is gone that needs no timeout; everything else proves nothing. The probe never
blocks: on ipc the kernel decides at once, on tcp the descriptor becomes writable when it has
decided. It says nothing on the connection and closes it at once.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

PROBE_MS = 1000  # a tcp probe that is not decided by then proves nothing


def tcp_address(endpoint: str) -> tuple[str, int]:
    """Return host and port of a `tcp://` endpoint."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host.strip("[]"), int(port)


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Probe:
    """A raw, non-blocking connect under way.

    `outcome` is None while undecided, 0 when accepted, else an errno. Once it is decided the
    descriptor is closed; ECONNREFUSED on any transport and ENOENT on ipc mean a dead process.
    """

    def __init__(self, endpoint: str, deadline_ms: int) -> None:
        """Start connecting to an `ipc://` or `tcp://` endpoint."""
        self.deadline_ms = deadline_ms
        self.outcome: int | None = None
        self._ipc = endpoint.startswith("ipc://")
        address: str | tuple[str, int]
        if self._ipc:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            address = endpoint.removeprefix("ipc://")
        else:
            address = tcp_address(endpoint)
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        if not self._ipc and not _is_numeric(address[0]):
            self._decide(errno.EADDRNOTAVAIL)  # asking a name server would block the loop
            return
        result = self._socket.connect_ex(address)
        if result != errno.EINPROGRESS:
            self._decide(result)

    @property
    def refused(self) -> bool:
        """Whether the process behind the endpoint is proven to be gone."""
        return self.outcome == errno.ECONNREFUSED or (self._ipc and self.outcome == errno.ENOENT)

    @property
    def meaning(self) -> str:
        """The outcome in a word: "accepted" or the name of an errno."""
        if self.outcome == 0:
            return "accepted"
        return errno.errorcode.get(self.outcome or 0, "undecided")

    def fileno(self) -> int:
        """Return the descriptor to wait for (writable); -1 once decided."""
        return self._socket.fileno()

    def on_writable(self) -> None:
        """Take the kernel's decision."""
        if self.outcome is None:
            self._decide(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def on_timer(self, now_ms: int) -> None:
        """Give up on a connect that is not decided in time: it proves nothing."""
        if self.outcome is None and now_ms >= self.deadline_ms:
            self._decide(errno.ETIMEDOUT)

    def close(self) -> None:
        """Release the descriptor."""
        self._socket.close()

    def _decide(self, outcome: int) -> None:
        self.outcome = outcome
        self._socket.close()
