"""Measures when writes are accepted again: barrier writes to every survivor until one succeeds.

A barrier changes nothing and is answered once it is applied. Nodes without a leader park it and
answer the moment they have one, so waiting costs neither time nor much work; now and then each node
gets a fresh one, because it may have sent the first to the leader that is gone. It owns its sockets
for the length of one measurement. This is no client: it retries without end and reads no results.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self

import zmq

from zraft import clock
from zraft.api import Code, Consistency, Flag, Reply, Request
from zraft.errors import ProtocolError
from zraft.paths import ClusterFile
from zraft.wire import decode_replies, encode_requests

AGAIN_MS = 25
DEADLINE_MS = 400


class Accepted(NamedTuple):
    """The first write that was accepted: when it was answered, and in which term."""

    mono_ns: int
    term: int


class WriteProbe:
    """A context manager: its sockets exist, and connect, before anything is broken."""

    def __init__(self, file: ClusterFile, names: list[str]) -> None:
        self._cluster = file.cluster_bytes
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._next_id = secrets.randbits(48)
        for name in names:
            socket = self._context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, 10)
            socket.connect(file.endpoint(name, "client"))
            self._poller.register(socket, zmq.POLLIN)
            self._sockets.append(socket)

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
        start_ms = clock.monotonic_ms()
        again_ms = start_ms
        while (now_ms := clock.monotonic_ms()) - start_ms < timeout_ms:
            if now_ms >= again_ms:
                self._ask_all()
                again_ms = now_ms + AGAIN_MS
            ready: Mapping[zmq.Socket[bytes], int] = dict(
                self._poller.poll(min(again_ms, start_ms + timeout_ms) - now_ms)
            )
            for socket in ready:
                if (accepted := self._take(socket)) is not None:
                    return accepted
        return None

    def _ask_all(self) -> None:
        for socket in self._sockets:
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
            try:
                socket.send(encode_requests(self._cluster, [barrier]), zmq.NOBLOCK)
            except zmq.Again:
                continue

    def _take(self, socket: zmq.Socket[bytes]) -> Accepted | None:
        """Take what a node answered; a refusal is answered by the next round."""
        while True:
            try:
                frame = socket.recv(zmq.NOBLOCK)
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
