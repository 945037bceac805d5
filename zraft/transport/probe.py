"""A raw connect: is anybody behind this endpoint?

A living process accepts, and so does a stopped one: the kernel does it for them. A dead one
refuses. So a refusal, or a Unix socket's missing path, is the only proof that a process is gone
that needs no timeout; everything else proves nothing.

A dying process is between the two. The kernel closes its descriptors one after the other, and may
close the connection that we lost before the listener: measured, up to a third of the first connects
are still accepted when the machine is busy. So an accepted probe listens. A living ZeroMQ socket
greets at once: the process lives, and the probe is over. A listener that closes hangs up without a
word: the probe connects again, and is refused now.

The probe never blocks and never says anything. What it waits for is a descriptor to poll, and it
ends after a second at the latest.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

import zmq

PROBE_MS = 1000  # from the first connect to the end of patience
MAX_CONNECTS = 5  # of a probe that is accepted and hung up on
_GREETING_BYTES = 64


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
    """Raw, non-blocking connects under way.

    `outcome` is None while undecided, then a word: "refused" and "no_path" mean a dead process,
    "greeted" a living one; "silent" (accepted, and no word in a second), "hung_up" (again and
    again) or the name of an errno prove nothing. Once it is decided, no descriptor is left.
    """

    def __init__(self, endpoint: str, deadline_ms: int) -> None:
        """Start connecting to an `ipc://` or `tcp://` endpoint."""
        self.deadline_ms = deadline_ms
        self.outcome: str | None = None
        self._ipc = endpoint.startswith("ipc://")
        self._address: str | tuple[str, int]
        self._address = endpoint.removeprefix("ipc://") if self._ipc else tcp_address(endpoint)
        self._socket: socket.socket | None = None
        self._accepted = False
        self._connects = 0
        if not self._ipc and not _is_numeric(self._address[0]):
            self._decide("unprobed")  # asking a name server would block the loop
        else:
            self._connect()

    @property
    def refused(self) -> bool:
        """Whether the process behind the endpoint is proven to be gone."""
        return self.outcome in {"refused", "no_path"}

    def pollable(self) -> tuple[int, int] | None:
        """Return the descriptor and the events to wait for; None once decided."""
        if self._socket is None:
            return None
        return self._socket.fileno(), zmq.POLLIN if self._accepted else zmq.POLLOUT

    def on_ready(self) -> None:
        """Take the kernel's decision, or what the other side said."""
        if self._socket is None:
            return
        if not self._accepted:
            self._on_connected(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            return
        try:
            greeting = self._socket.recv(_GREETING_BYTES)
        except BlockingIOError:
            return
        except OSError:
            greeting = b""
        if greeting:
            self._decide("greeted")
        elif self._connects < MAX_CONNECTS:
            self._connect()
        else:
            self._decide("hung_up")

    def on_timer(self, now_ms: int) -> None:
        """Give up once the time is over: it proves nothing."""
        if self.outcome is None and now_ms >= self.deadline_ms:
            self._decide("silent" if self._accepted else "ETIMEDOUT")

    def close(self) -> None:
        """Release the descriptor."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> None:
        self.close()
        self._connects += 1
        self._accepted = False
        family = socket.AF_UNIX
        if not self._ipc:
            family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        result = self._socket.connect_ex(self._address)
        if result != errno.EINPROGRESS:
            self._on_connected(result)

    def _on_connected(self, result: int) -> None:
        if result == 0:
            self._accepted = True
        elif result == errno.ECONNREFUSED:
            self._decide("refused")
        elif result == errno.ENOENT and self._ipc:
            self._decide("no_path")
        else:
            self._decide(errno.errorcode.get(result, str(result)))

    def _decide(self, outcome: str) -> None:
        self.outcome = outcome
        self.close()
