"""The client side of a node: one bound ROUTER for requests, one DEALER per leader to forward to.

It owns these sockets and their monitors, and turns frames into requests and replies into frames. It
never waits, never raises for what arrives, and keeps nothing but the replies of one turn:

    client ──DEALER──▶ ROUTER  receive()  → Server.on_requests
                       ROUTER ◀── flush_replies() ◀── reply()          one frame per client and turn
    leader's ROUTER ◀── forward() ── DEALER  receive_forwarded() → Server.on_forward_replies / _lost

A reply that can't leave is dropped and counted: the client is gone, or reads nothing, and its own
deadline tells it. (ROUTER_MANDATORY: without it such losses would not even be seen.) Receive marks
are off, because libzmq 4.3.5 aborts when one is reached while the other side sends ZMTP heartbeats;
what bounds memory is the size of a frame, prompt draining, and the server's refusal when too many
requests wait.

A forwarding DEALER that lost its connection is closed, never re-used: what was sent on it and not
answered may have been applied or not, and that is what `lost` says. Answers that had arrived before
are delivered first; for that IMMEDIATE is off: with it, libzmq 4.3.5 drops what has arrived and was
not read yet when a connection ends, and a write that the leader acknowledged before it died would
look unknown. What it guards against can not happen here, since nothing is sent before the handshake
and nothing is kept after a loss. A new DEALER is made for the next request. Its inbound frames have
no limit of size: a connecting socket that refuses a frame is dead for good, and the leader splits
its replies.

What a fault cuts between two nodes is cut for forwarding, too, or an isolated node would reach the
leader through the back door: nothing is sent, and answers vanish, so that requests under way stay
without one, as in a real partition, until their deadlines.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import zmq

from zraft import clock, crashpoints
from zraft.api import Reply, Request
from zraft.core.model import NOBODY, MemberId
from zraft.errors import DecodeError, VersionError
from zraft.node.rejects import Rejects
from zraft.transport.bind import HANDSHAKE_MS, make_router, set_tcp_options
from zraft.transport.links import Links
from zraft.wire import (
    MAX_CLIENT_FRAME_BYTES,
    MAX_REQUEST_BYTES,
    UnknownKind,
    decode_replies,
    decode_requests,
    encode_replies,
    encode_requests,
)

ANY_CLUSTER = bytes(8)  # what a client says that does not know the cluster's id yet
MAX_FRAMES = 512  # of clients, a turn; the rest waits in the socket
MAX_REQUESTS = 1024  # a turn; the frame that passes it is still taken whole
MAX_BYTES = 4 << 20  # a turn
MAX_FORWARDED_FRAMES = 256  # of one leader, a turn
RECONNECT_MS = 25  # between two attempts to reach the same leader
REPLY_FRAME_BYTES = 1 << 20  # a frame is closed when the next reply would pass this
_OVERHEAD_BYTES = 80  # of a request or reply around its body, at most
_FRAME_HEAD_BYTES = 64

_Item = TypeVar("_Item", Request, Reply)

Ready = Mapping[Any, int]
"""What the poller returned: socket or descriptor → events."""


class RequestBatch(NamedTuple):
    """The requests of one frame, and who sent it: the identity that its ROUTER gave it."""

    client: bytes
    requests: list[Request]


class ForwardBatch(NamedTuple):
    """What came from a leader: replies, and then perhaps that the connection is lost."""

    leader: MemberId
    replies: list[Reply]
    lost: bool


@dataclass(slots=True)
class _Link:
    """A DEALER to a leader's client socket, with the monitor that sees it come and go."""

    leader: MemberId
    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    connected: bool = False
    sent: bool = False


class ClientSockets:
    """See the module. `poller` learns of every socket that is opened and closed here."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        poller: zmq.Poller,
        *,
        cluster: bytes,
        endpoint_of: Callable[[MemberId], str | None],
        rejects: Rejects,
        links: Links,
    ) -> None:
        """Open nothing yet.

        Args:
            cluster: the cluster id, eight bytes.
            endpoint_of: a member's client endpoint; None for unknown members and for this node.
            rejects: counts what is no request or reply.
            links: the faults between this node and the others.
        """
        self._context = context
        self._poller = poller
        self._cluster = cluster
        self._endpoint_of = endpoint_of
        self._rejects = rejects
        self._faults = links
        self._router: zmq.Socket[bytes] | None = None
        self._links: dict[MemberId, _Link] = {}
        self._broken: list[ForwardBatch] = []
        self._expected: MemberId = NOBODY
        self._reconnect_ms = 0
        self._replies: dict[bytes, list[Reply]] = {}
        self.requests_received = 0
        self.replies_sent = 0
        self.replies_dropped = 0
        self.requests_forwarded = 0

    def bind(self, endpoint: str) -> zmq.Socket[bytes]:
        """Bind the client socket and return it: requests arrive now.

        Raises:
            SupervisorError: the address stays in use (exit code 75).
            StorageError: it can not be bound for another reason.
        """
        router = make_router(
            self._context,
            endpoint,
            max_frame_bytes=MAX_CLIENT_FRAME_BYTES,
            mandatory=True,
            now_ms=clock.now_ms,
        )
        self._router = router
        self._poller.register(router, zmq.POLLIN)
        return router

    def receive(self, ready: Ready) -> list[RequestBatch]:
        """Return what clients sent, in order, bounded; what is no request of ours is counted."""
        batches: list[RequestBatch] = []
        router = self._router
        if router is None or router not in ready:
            return batches
        requests = size_bytes = 0
        for _ in range(MAX_FRAMES):
            try:
                parts = router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            batch = self._decode(parts)
            if batch is None:
                continue
            batches.append(batch)
            requests += len(batch.requests)
            size_bytes += len(parts[1])
            if requests >= MAX_REQUESTS or size_bytes >= MAX_BYTES:
                break
        self.requests_received += requests
        return batches

    def _decode(self, parts: Sequence[bytes]) -> RequestBatch | None:
        if len(parts) != 2:
            self._rejects.count("client", "frames")
            return None
        try:
            cluster, requests = decode_requests(parts[1])
        except DecodeError as error:
            self._rejects.count("client", "kind" if isinstance(error, UnknownKind) else "decode")
            return None
        except VersionError:
            self._rejects.count("client", "version")
            return None
        if cluster not in (self._cluster, ANY_CLUSTER):
            self._rejects.count("client", "cluster")
            return None
        return RequestBatch(parts[0], requests)

    # Replies

    def reply(self, client: bytes, reply: Reply) -> None:
        """Put a reply into this turn's frame for `client`."""
        waiting = self._replies.get(client)
        if waiting is None:
            self._replies[client] = [reply]
        else:
            waiting.append(reply)

    def flush_replies(self) -> None:
        """Send this turn's replies, one frame per client; what can't leave is dropped, counted."""
        if not self._replies:
            return
        if crashpoints.armed:
            crashpoints.reach("reply.before-send")
        replies, self._replies = self._replies, {}
        router = self._router
        for client, items in replies.items():
            for group in _groups(items, REPLY_FRAME_BYTES):
                if router is None:
                    self.replies_dropped += len(group)
                    continue
                try:
                    router.send_multipart(
                        (client, encode_replies(self._cluster, group)), zmq.NOBLOCK
                    )
                except zmq.ZMQError as error:
                    # EHOSTUNREACH: the client is gone. EAGAIN: it does not read.
                    if error.errno not in {zmq.EHOSTUNREACH, zmq.EAGAIN}:
                        raise
                    self.replies_dropped += len(group)
                else:
                    self.replies_sent += len(group)
        if crashpoints.armed:
            crashpoints.reach("reply.sent")

    # Forwarding

    def expect_leader(self, leader: MemberId, now_ms: int) -> None:
        """Connect to the client socket of `leader` now, so that the first request need not wait.

        Links to other members that never got a connection are given up. A lost link is made anew
        here, at most every RECONNECT_MS.
        """
        if leader == self._expected and (leader == NOBODY or leader in self._links):
            return
        if leader == self._expected and now_ms < self._reconnect_ms:
            return
        self._expected = leader
        self._reconnect_ms = now_ms + RECONNECT_MS
        for link in [*self._links.values()]:
            if link.leader != leader and not link.connected and not link.sent:
                self._close_link(link)
        if leader != NOBODY and leader not in self._links:
            self._connect(leader)

    def can_forward(self, leader: MemberId) -> bool:
        """Return whether a connection to `leader` stands, as far as is known."""
        link = self._links.get(leader)
        return link is not None and link.connected

    def forward(self, leader: MemberId, requests: list[Request]) -> bool:
        """Hand requests to the leader's client socket; False: certainly nothing was sent.

        When only a part of them could be sent, the link is closed and `lost` tells of all of them.
        """
        if self._faults.active and self._faults.cut(leader, outgoing=True):
            return False
        link = self._links.get(leader) or self._connect(leader)
        if link is None or not link.connected:
            return False
        if any(len(request.body) > MAX_REQUEST_BYTES for request in requests):
            return False
        if crashpoints.armed:
            crashpoints.reach("forward.before-send")
        limit_bytes = MAX_CLIENT_FRAME_BYTES - _FRAME_HEAD_BYTES
        for position, group in enumerate(_groups(requests, limit_bytes)):
            try:
                link.socket.send(encode_requests(self._cluster, group), zmq.NOBLOCK)
            except zmq.Again:
                if position == 0:
                    return False
                self._lose(link)
                return True
            link.sent = True
            self.requests_forwarded += len(group)
        if crashpoints.armed:
            crashpoints.reach("forward.sent")
        return True

    @property
    def has_lost(self) -> bool:
        """Whether `receive_forwarded` has something to tell that no socket announces."""
        return bool(self._broken)

    def receive_forwarded(self, ready: Ready) -> list[ForwardBatch]:
        """Return what leaders answered, and which of them were lost after that."""
        batches, self._broken = self._broken, []
        for link in [*self._links.values()]:
            if link.socket in ready:
                replies = self._drain(link, MAX_FORWARDED_FRAMES)
                if replies:
                    batches.append(ForwardBatch(link.leader, replies, lost=False))
            if link.monitor in ready and self._is_over(link):
                self._lose(link)
        if self._broken:
            broken, self._broken = self._broken, []
            batches += broken
        return batches

    def _connect(self, leader: MemberId) -> _Link | None:
        endpoint = self._endpoint_of(leader)
        if endpoint is None:
            return None
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IMMEDIATE, 0)
        dealer.setsockopt(zmq.SNDHWM, 1000)
        dealer.setsockopt(zmq.RCVHWM, 0)
        dealer.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        dealer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        if endpoint.startswith("tcp:"):
            dealer.setsockopt(zmq.CONNECT_TIMEOUT, 1000)
            set_tcp_options(dealer)
        monitor = dealer.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        )
        dealer.connect(endpoint)
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(monitor, zmq.POLLIN)
        link = self._links[leader] = _Link(leader, dealer, monitor)
        return link

    def _is_over(self, link: _Link) -> bool:
        """Read the monitor; True when the connection ended or can never be made."""
        while True:
            try:
                parts = link.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            (event,) = struct.unpack_from("=H", parts[0])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                link.connected = True
            else:
                return True

    def _lose(self, link: _Link) -> None:
        """Close a link; what had arrived on it is delivered, then that it is lost."""
        replies = self._drain(link, sys.maxsize)
        if link.sent or replies:
            self._broken.append(ForwardBatch(link.leader, replies, lost=True))
        self._close_link(link)

    def _drain(self, link: _Link, limit: int) -> list[Reply]:
        replies: list[Reply] = []
        for _ in range(limit):
            try:
                parts = link.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if self._faults.active and self._faults.cut(link.leader, outgoing=False):
                continue
            try:
                if len(parts) != 1:
                    raise DecodeError("a reply is one frame")
                cluster, items = decode_replies(parts[0])
            except (DecodeError, VersionError):
                self._rejects.count("forward", "decode")
                continue
            if cluster == self._cluster:
                replies += items
            else:
                self._rejects.count("forward", "cluster")
        return replies

    def _close_link(self, link: _Link) -> None:
        del self._links[link.leader]
        self._poller.unregister(link.socket)
        self._poller.unregister(link.monitor)
        link.socket.disable_monitor()
        link.monitor.close(0)
        link.socket.close(0)

    # The rest

    def counters(self) -> dict[str, int]:
        """Return the counters for `status`."""
        return {
            "client.requests": self.requests_received,
            "client.replies": self.replies_sent,
            "client.replies_dropped": self.replies_dropped,
            "client.forwarded": self.requests_forwarded,
        }

    def close(self, linger_ms: int = 0) -> None:
        """Close every socket; replies that were flushed may take `linger_ms` to leave."""
        for link in [*self._links.values()]:
            self._close_link(link)
        if self._router is not None:
            self._poller.unregister(self._router)
            self._router.close(linger_ms)
            self._router = None


def _groups(items: list[_Item], limit_bytes: int) -> Iterator[list[_Item]]:
    """Cut a list into runs whose frames stay within `limit_bytes`; one item may pass it alone."""
    start = size_bytes = 0
    for position, item in enumerate(items):
        added_bytes = len(item.body) + _OVERHEAD_BYTES
        if size_bytes and size_bytes + added_bytes > limit_bytes:
            yield items[start:position]
            start, size_bytes = position, 0
        size_bytes += added_bytes
    yield items[start:]
