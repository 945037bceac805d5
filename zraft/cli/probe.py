"""Measures when writes are accepted again: barrier writes to survivors until one succeeds.

A barrier changes nothing and is answered once it is applied. Nodes without a leader park it and
answer the moment they have one, so waiting costs neither time nor work, and two survivors asked at
a time are enough. One that refuses is asked again at once; one that keeps the barrier for long
makes way for the next, because it may have sent it to the leader that is gone. It owns its sockets
for the length of one measurement. This is no client: it retries without end, reads no results.
"""

from __future__ import annotations

import secrets
from collections import deque
from types import TracebackType
from typing import NamedTuple, Self

import zmq

from zraft import clock
from zraft.api import Code, Consistency, Flag, Reply, Request
from zraft.errors import ProtocolError
from zraft.paths import ClusterFile
from zraft.wire import decode_replies, encode_requests

RETRY_MS = 2
STUCK_MS = 40
DEADLINE_MS = 400
AT_ONCE = 2


class Accepted(NamedTuple):
    """The first write that was accepted: when it was answered, and in which term."""

    mono_ns: int
    term: int


class _Asked:
    """One survivor: its socket, the barrier that waits there, and when to ask it (again)."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self.waits_for = 0  # a request id, 0 for none
        self.next_ms = 0


class WriteProbe:
    """A context manager: its sockets exist, and connect, before anything is broken."""

    def __init__(self, file: ClusterFile, names: list[str]) -> None:
        self._cluster = file.cluster_bytes
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._nodes: deque[_Asked] = deque()
        self._next_id = secrets.randbits(48)
        for name in names:
            socket = self._context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, 10)
            socket.connect(file.endpoint(name, "client"))
            self._poller.register(socket, zmq.POLLIN)
            self._nodes.append(_Asked(socket))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.destroy(linger=0)

    def first_accepted(self, timeout_ms: int) -> Accepted | None:
        """Return the first accepted write, None when none was accepted in time."""
        end_ms = clock.monotonic_ms() + timeout_ms
        while self._nodes and (now_ms := clock.monotonic_ms()) < end_ms:
            asked = [self._nodes[place] for place in range(min(AT_ONCE, len(self._nodes)))]
            for node in asked:
                if now_ms >= node.next_ms:
                    self._ask(node, now_ms)
            wait_ms = min(node.next_ms for node in asked) - clock.monotonic_ms()
            ready = dict(self._poller.poll(max(0, min(wait_ms, end_ms - now_ms))))
            for node in [node for node in self._nodes if node.socket in ready]:
                if (accepted := self._take(node)) is not None:
                    return accepted
        return None

    def _ask(self, node: _Asked, now_ms: int) -> None:
        """Send a barrier; a node that keeps one for long makes way for the next survivor."""
        if node.waits_for:
            self._nodes.remove(node)
            self._nodes.append(node)
            node.waits_for, node.next_ms = 0, now_ms
            return
        self._next_id += 1
        barrier = Request(
            request_id=self._next_id,
            session=0,
            sequence=0,
            ack_below=0,
            deadline_ms=DEADLINE_MS,
            consistency=Consistency.WRITE,
            flags=Flag.BARRIER,
            body=b"",
        )
        node.next_ms = now_ms + STUCK_MS
        try:
            node.socket.send(encode_requests(self._cluster, [barrier]), zmq.NOBLOCK)
        except zmq.Again:
            return
        node.waits_for = self._next_id

    def _take(self, node: _Asked) -> Accepted | None:
        """Take what a node answered; a refusal of the last barrier is followed by another one."""
        while True:
            try:
                frame = node.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            mono_ns = clock.monotonic_ns()
            try:
                replies: list[Reply] = decode_replies(frame)[1]
            except ProtocolError:
                continue
            for reply in replies:
                if reply.code == Code.OK:
                    return Accepted(mono_ns, reply.term)
                if reply.request_id == node.waits_for:
                    node.waits_for = 0
                    node.next_ms = clock.monotonic_ms() + RETRY_MS
