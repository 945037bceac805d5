"""The synchronous client: a thin shell that gives `ClientCore` sockets and a clock.

It owns a ZeroMQ context, one DEALER per node that was asked so far, and a monitor for each. Nothing
happens between two calls: no thread, no timer. A call sends what there is to send, waits for the
first thing that happens, takes it in, and so on until its request has ended.

A connection that is lost is seen at once: whatever had arrived is read first, then the socket is
closed and the core is told; a new one is made when it is needed. So a dead node costs nothing while
nobody asks it, and no socket can stay dead for good. That is also why IMMEDIATE is off, unlike on
the sockets between nodes: with it, libzmq drops what has arrived and was not read yet when a
connection ends (measured), and acknowledged writes would look unknown. What it guards against can
not happen here, since nothing is sent before the handshake and nothing is kept after a loss.

A client belongs to the thread and the process that made it.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Mapping, Sequence
from itertools import count
from threading import get_ident
from types import TracebackType
from typing import NamedTuple

import zmq

from zraft import clock
from zraft.api import Consistency, Flag, Reply
from zraft.client.core import ANY_CLUSTER, ClientCore, Finished
from zraft.client.interrupts import interrupt_later
from zraft.client.kv import KvClient
from zraft.client.nodes import Member
from zraft.errors import ControlError, DecodeError, VersionError, ZraftError
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


class Info(NamedTuple):
    """Where the last answer came from.

    `node` wrote it (the leader, when `via` passed the request on); `index` is that of the entry
    that was applied, or of the state that was read; `revision` is the store's, 0 when unknown.
    """

    node: str
    via: str
    member_id: int
    cluster_id: str
    term: int
    index: int  # type: ignore[assignment]  # a field, not tuple.index
    revision: int


class _Link:
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

    def close(self) -> None:
        """Close both sockets; what was not sent yet is dropped.

        The monitor is turned off first: an event for a monitor that is gone would block ZeroMQ's
        I/O thread for good, and every connection with it.
        """
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(0)


class Client:
    """A client of one cluster, for one thread.

    Args:
        cluster: the name of a cluster of this user and host; default `$ZRAFT_CLUSTER`, then
            `default`. A text with `://` in it is taken for `endpoints`.
        endpoints: the client endpoints of the nodes instead, as a list or separated by commas. The
            cluster's id is learned from the first answer; until then requests carry eight zero
            bytes, which any cluster accepts. Nodes are then named by their endpoints.
        timeout_s: how long a request may take if a call does not say otherwise, in seconds.
        environ: instead of the process's environment.

    Raises:
        NotRunning: there is no such cluster.
        ControlError: an endpoint or name is malformed.
    """

    def __init__(
        self,
        cluster: str | None = None,
        *,
        endpoints: str | Sequence[str] | None = None,
        timeout_s: float = 5.0,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        if cluster is not None and "://" in cluster:
            cluster, endpoints = None, cluster
        if endpoints is None:
            members, cluster_id = _members_of(cluster, os.environ if environ is None else environ)
        else:
            members, cluster_id = _members_at(endpoints), ANY_CLUSTER
        self.core = ClientCore(members, rng=random.Random(os.urandom(16)), cluster=cluster_id)
        self.timeout_s = timeout_s
        self.info: Info | None = None
        self.kv = KvClient(self)
        self._endpoints = {member.key: member.endpoint for member in members}
        self._owner = os.getpid(), get_ident()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._poller = zmq.Poller()
        self._links: dict[int, _Link] = {}
        self._by_socket: dict[object, tuple[_Link, bool]] = {}
        self._finished: dict[int, Finished] = {}
        self._closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Requests that have not ended may still be applied."""
        if self._closed or self._owner[0] != os.getpid():
            return
        self._closed = True
        for key in list(self._links):
            self._close_link(key)
        self._context.term()

    # Requests

    def call(
        self,
        body: bytes,
        consistency: Consistency,
        *,
        flags: Flag = Flag.NONE,
        timeout_s: float | None = None,
        at: str | None = None,
    ) -> Reply:
        """Send a request, wait for its end, and return the reply that says "ok".

        Raises:
            RequestError, TooLargeError: it did not end with "ok"; see `zraft.errors`.
        """
        request_id = self.submit(body, consistency, flags=flags, timeout_s=timeout_s, at=at)
        try:
            self._take_in(0)  # what happened since the last call: a lost connection, above all
            while request_id not in self._finished:
                self._turn(None)
        finally:
            self.core.cancel(request_id)  # after an interrupt nobody waits for it
            finished = self._finished.pop(request_id, None)
        assert finished is not None
        if isinstance(finished.outcome, ZraftError):
            raise finished.outcome
        self._note(finished.outcome, finished.via)
        return finished.outcome

    def barrier(self, *, timeout_s: float | None = None, at: str | None = None) -> Info:
        """Wait until a write that changes nothing is committed and applied; tell by whom."""
        self.call(b"", Consistency.WRITE, flags=Flag.BARRIER, timeout_s=timeout_s, at=at)
        assert self.info is not None
        return self.info

    def submit(
        self,
        body: bytes,
        consistency: Consistency,
        *,
        flags: Flag = Flag.NONE,
        timeout_s: float | None = None,
        at: str | None = None,
    ) -> int:
        """Take a request without waiting, and return its id. `wait` sends it, and returns its end.

        Requests that are submitted before the next `wait` share a frame.

        Args:
            at: the name of the only node to ask; there is no fail-over then.

        Raises:
            ControlError: there is no node `at`, or this is not the client's thread.
        """
        self._check_owner()
        timeout_ms = round(1000 * (self.timeout_s if timeout_s is None else timeout_s))
        return self.core.submit(
            body, consistency, flags, timeout_ms=timeout_ms, now_ms=clock.now_ms(), target=at
        )

    def wait(self, *, timeout_s: float | None = None) -> list[Finished]:
        """Send what was submitted, and return what has ended, at least one request if any is out.

        Returns an empty list when nothing is outstanding, or nothing ended within `timeout_s`
        (None: requests have their own deadlines).
        """
        self._check_owner()
        until_ms = None if timeout_s is None else clock.now_ms() + round(1000 * timeout_s)
        while not self._finished and self.core.outstanding:
            self._turn(until_ms)
            if until_ms is not None and clock.now_ms() >= until_ms:
                break
        finished, self._finished = list(self._finished.values()), {}
        return finished

    @property
    def outstanding(self) -> int:
        """The number of requests that have not ended."""
        return self.core.outstanding

    def _check_owner(self) -> None:
        if self._closed:
            raise ControlError("this client is closed", try_="make a new zraft.Client")
        if self._owner != (os.getpid(), get_ident()):
            raise ControlError(
                "this client belongs to another thread or process",
                why="its sockets can not be shared between threads, nor used after a fork",
                try_="make one zraft.Client per thread and process",
            )

    def _note(self, reply: Reply, via: str) -> None:
        member = self.core.nodes.of_member(reply.member_id)
        name = via if member is None else member.name
        cluster = self.core.cluster.hex()
        self.info = Info(name, via, reply.member_id, cluster, reply.term, reply.index, 0)

    # Sockets

    def _turn(self, until_ms: int | None) -> None:
        """Send what can be sent, wait for the first thing that happens, and take it in."""
        core, now_ms = self.core, clock.now_ms()
        for key, requests in core.outgoing(now_ms):
            frame = encode_requests(core.cluster, requests)
            try:
                self._links[key].socket.send(frame, zmq.NOBLOCK)
            except zmq.Again:
                core.on_send_failed(key, [request.request_id for request in requests], now_ms)
        for key in core.take_connects():
            self._open_link(key)
        self._collect()
        if not self._finished:
            deadline_ms = core.next_deadline_ms()
            if deadline_ms is None or (until_ms is not None and until_ms < deadline_ms):
                deadline_ms = until_ms
            assert deadline_ms is not None, "nothing is under way, and nothing to wait for"
            self._take_in(max(0, deadline_ms - now_ms))

    def _take_in(self, timeout_ms: int) -> None:
        """Wait for sockets and hand in what they have: answers first, then lost connections."""
        ready = self._poller.poll(timeout_ms)
        monitors: list[_Link] = []
        for socket, _ in ready:
            link, is_monitor = self._by_socket[socket]
            if is_monitor:
                monitors.append(link)
            else:
                self._receive(link, FRAMES_PER_TURN)
        for link in monitors:
            self._on_events(link)
        if ready:
            self._collect()

    def _collect(self) -> None:
        for finished in self.core.results():
            self._finished[finished.request_id] = finished

    def _receive(self, link: _Link, most: int | None) -> None:
        """Read up to `most` frames, None: all there are."""
        socket = link.socket
        received = 0
        while (most is None or received < most) and int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            frame = socket.recv(zmq.NOBLOCK)
            received += 1
            try:
                cluster, replies = decode_replies(frame)
            except (DecodeError, VersionError):
                self.core.counters["frames_bad"] += 1
                continue
            self.core.on_replies(link.key, cluster, replies, clock.now_ms())

    def _on_events(self, link: _Link) -> None:
        """Take in what became of a connection."""
        while self._links.get(link.key) is link:
            try:
                parts = link.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            (event,) = struct.unpack_from("=H", parts[0])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.core.on_connected(link.key, clock.now_ms())
            elif event != zmq.EVENT_MONITOR_STOPPED:
                self._receive(link, None)  # it had arrived before the connection ended
                self._close_link(link.key)
                self.core.on_disconnected(link.key, clock.now_ms())

    def _open_link(self, key: int) -> None:
        self._close_link(key)
        with interrupt_later():
            link = self._links[key] = _Link(self._context, key, self._endpoints[key])
        for socket, is_monitor in ((link.socket, False), (link.monitor, True)):
            self._poller.register(socket, zmq.POLLIN)
            self._by_socket[socket] = (link, is_monitor)

    def _close_link(self, key: int) -> None:
        link = self._links.pop(key, None)
        if link is not None:
            for socket in (link.socket, link.monitor):
                self._poller.unregister(socket)
                del self._by_socket[socket]
            link.close()


def _members_of(cluster: str | None, environ: Mapping[str, str]) -> tuple[list[Member], bytes]:
    """Return the nodes of a cluster of this host and its id."""
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
