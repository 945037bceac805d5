"""The sockets of a client, and what happens on them, told to `ClientCore`.

A DEALER per node that was asked so far, and a monitor for each. Both shells use this: the
synchronous client polls the sockets, the asyncio one has the loop watch their descriptors.

A connection that is lost is seen at once: whatever had arrived is read first, then the socket is
closed and the core is told; a new one is made when it is needed. So a dead node costs nothing while
nobody asks it, and no socket can stay dead for good. That is also why IMMEDIATE is off, unlike on
the sockets between nodes: with it, libzmq drops what has arrived and was not read yet when a
connection ends (measured), and acknowledged writes would look unknown. What it guards against can
not happen here, since nothing is sent before the handshake and nothing is kept after a loss.
"""

from __future__ import annotations

import os
import random
import struct
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import count

import zmq

from zraft import clock
from zraft.client.core import ANY_CLUSTER, ClientCore
from zraft.client.interrupts import interrupt_later
from zraft.client.nodes import Member
from zraft.errors import ControlError, DecodeError, VersionError
from zraft.paths import DEFAULT_CLUSTER, cluster_dir, read_cluster_file
from zraft.wire import decode_replies, encode_requests
from zraft.wire_entry import MAX_FRAME_BYTES

FRAMES_PER_TURN = 64  # of one node
_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | _FAILURES
)
MAX_TIMEOUT_S = 10**9  # whoever wants to wait for good
_OPTIONS = {
    zmq.LINGER: 0,
    zmq.IMMEDIATE: 0,
    zmq.RCVHWM: 0,
    zmq.SNDHWM: 1000,
    zmq.RECONNECT_IVL: 50,
    zmq.RECONNECT_IVL_MAX: 500,
    zmq.HANDSHAKE_IVL: 2000,
    zmq.MAXMSGSIZE: MAX_FRAME_BYTES,
}
_monitor_numbers = count()


class Link:
    """A DEALER to a node, and the monitor that sees its connection come and go."""

    __slots__ = ("endpoint", "key", "monitor", "socket")

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], key: int, endpoint: str) -> None:
        self.key = key
        self.endpoint = endpoint
        self.socket = context.socket(zmq.DEALER)
        for option, value in _OPTIONS.items():
            self.socket.setsockopt(option, value)
        if endpoint.startswith("tcp:"):
            self.socket.setsockopt(zmq.CONNECT_TIMEOUT, 1000)
        address = f"inproc://client-monitor-{next(_monitor_numbers)}"
        self.socket.monitor(address, _WATCHED)
        self.monitor = context.socket(zmq.PAIR)
        self.monitor.setsockopt(zmq.LINGER, 0)
        self.monitor.setsockopt(zmq.RCVHWM, 0)
        self.monitor.connect(address)
        self.socket.connect(endpoint)

    def has_frames(self) -> bool:
        """Return whether a frame waits to be read."""
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def close(self) -> None:
        """Close both sockets; what was not sent yet is dropped.

        The monitor is turned off first: an event for a monitor that is gone would block ZeroMQ's
        I/O thread for good, and every connection with it.
        """
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)


class Sockets:
    """The links of one client. `watch` is told of each new one, `unwatch` before it is closed."""

    def __init__(
        self,
        core: ClientCore,
        endpoints: Mapping[int, str],
        watch: Callable[[Link], None],
        unwatch: Callable[[Link], None],
    ) -> None:
        self.links: dict[int, Link] = {}
        self._core = core
        self._endpoints = endpoints
        self._watch = watch
        self._unwatch = unwatch
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        # A context that is collected before its sockets waits for them for good. What this holds is
        # not collected before it has run, in which order ever the garbage is.
        self._forgotten = weakref.finalize(
            self, _end_forgotten, os.getpid(), self._context, self.links
        )
        self._forgotten.atexit = False  # pyzmq lets go of everything then

    def send(self, now_ms: int) -> None:
        """Let time pass for the core, send what it has to send, and connect where it wants to."""
        core = self._core
        for key, requests in core.outgoing(now_ms):
            frame = encode_requests(core.cluster, requests)
            try:
                self.links[key].socket.send(frame, zmq.NOBLOCK)
            except zmq.Again:
                core.on_send_failed(key, [request.request_id for request in requests], now_ms)
        for key in core.take_connects():
            self._open(key)

    def receive(self, link: Link, most: int | None) -> None:
        """Read up to `most` frames, None: all there are."""
        received = 0
        while (most is None or received < most) and link.has_frames():
            frame = link.socket.recv(zmq.NOBLOCK)
            received += 1
            try:
                cluster, replies = decode_replies(frame)
            except (DecodeError, VersionError):
                self._core.counters["frames_bad"] += 1
                continue
            self._core.on_replies(link.key, cluster, replies, clock.now_ms())

    def take_events(self, link: Link) -> None:
        """Take in what became of a connection."""
        while self.links.get(link.key) is link:
            try:
                parts = link.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            (event,) = struct.unpack_from("=H", parts[0])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._core.on_connected(link.key, clock.now_ms())
            elif event != zmq.EVENT_MONITOR_STOPPED:
                self.receive(link, None)  # it had arrived before the connection ended
                self._close_link(link.key)
                self._core.on_disconnected(link.key, clock.now_ms())

    def close(self) -> None:
        """Close all links and end ZeroMQ's thread."""
        self._forgotten.detach()
        for key in list(self.links):
            self._close_link(key)
        self._context.term()

    def _open(self, key: int) -> None:
        self._close_link(key)
        with interrupt_later():
            link = self.links[key] = Link(self._context, key, self._endpoints[key])
        self._watch(link)

    def _close_link(self, key: int) -> None:
        link = self.links.pop(key, None)
        if link is not None:
            self._unwatch(link)
            link.close()


def _end_forgotten(
    pid: int, context: zmq.Context[zmq.Socket[bytes]], links: dict[int, Link]
) -> None:
    """Do what `close` does for a client that nobody has any more; not in a fork of its process."""
    if os.getpid() != pid:
        return
    for link in links.values():
        link.close()
    context.term()
    warnings.warn("a zraft client was not closed", ResourceWarning, stacklevel=2)


def to_timeout_ms(timeout_s: float) -> int:
    """Return a timeout in ms; ControlError when it is none."""
    if not 0 <= timeout_s <= MAX_TIMEOUT_S:
        raise ControlError(
            f"a timeout of {timeout_s!r} seconds is impossible",
            why=f"it is how long a request may take: from 0 to {MAX_TIMEOUT_S}",
            try_="5 is the default",
        )
    return round(1000 * timeout_s)


def make_core(
    cluster: str | None,
    endpoints: str | Sequence[str] | None,
    environ: Mapping[str, str] | None,
) -> tuple[ClientCore, dict[int, str]]:
    """Return the core of a new client, and the endpoints of its nodes by their keys.

    Arguments and errors are those of `Client`.
    """
    members, cluster_id = find_members(
        cluster, endpoints, os.environ if environ is None else environ
    )
    rng = random.Random(os.urandom(16))
    core = ClientCore(members, rng=rng, cluster=cluster_id or ANY_CLUSTER)
    return core, {member.key: member.endpoint for member in members}


def find_members(
    cluster: str | None, endpoints: str | Sequence[str] | None, environ: Mapping[str, str]
) -> tuple[list[Member], bytes | None]:
    """Return the nodes that a client is to ask, and their cluster's id, None when not known.

    Args:
        cluster: a name, or a text with `://` in it, which is taken for `endpoints`.

    Raises:
        NotRunning: there is no such cluster.
        ControlError: an endpoint or name is malformed.
    """
    if cluster is not None and "://" in cluster:
        cluster, endpoints = None, cluster
    if endpoints is not None:
        return _members_at(endpoints), None
    name = cluster or environ.get("ZRAFT_CLUSTER") or DEFAULT_CLUSTER
    file = read_cluster_file(cluster_dir(name, environ))
    members = [
        Member(file.member_id(node), node, file.endpoint(node, "client")) for node in file.names
    ]
    return members, file.cluster_bytes


def _members_at(endpoints: str | Sequence[str]) -> list[Member]:
    """Return nodes of which only the endpoints are known."""
    listed = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    found = [endpoint.strip() for endpoint in listed if endpoint.strip()]
    bad = [endpoint for endpoint in found if not endpoint.startswith(("ipc://", "tcp://"))]
    if bad or not found:
        raise ControlError(
            f'"{bad[0]}" is not an endpoint' if bad else "no endpoint is given",
            why="an endpoint is tcp://HOST:PORT or ipc://PATH",
            try_="zraft.Client(endpoints='tcp://127.0.0.1:21001,tcp://127.0.0.1:21003')",
        )
    return [Member(-number, endpoint, endpoint) for number, endpoint in enumerate(found, 1)]
