"""The bare loop, zraft's yardstick: the messages and syncs of steady Raft with no Raft in it.

FROZEN: numbers of different versions are compared through it, so it must stay what it is. Only its
own bugs may be mended, and then every recorded ratio is void.

Node 0 leads for ever. Each turn it takes what one client sent, sends the batch to every follower
*before* its own disk starts, writes it (one write, one fdatasync), commits what a majority has
synced, applies that to a dict, and answers all of it in one frame. Terms, elections, log matching,
checks of what comes in, sessions and recovery are missing on purpose: what is left is what ZeroMQ,
MessagePack, the disk and Python cost.

As a program it is one node: `<number> <nodes> <socket directory> <data directory>`; it ends when
its standard input is closed.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import zlib
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack
import zmq

from zraft import clock
from zraft.testing.bench.helper import Helper, say_ready
from zraft.testing.bench.latency import Latencies

MODULE = "zraft.testing.bench.yardstick"
HWM = 100_000
LEADER_TURN = 2_000  # commands
FOLLOWER_TURN = 4_000
POLL_MS = 100
KEYS = 1_000
STDIN = 0

_pack = msgpack.packb
_unpack = msgpack.unpackb


class BareDisk:
    """The log on disk: length, checksum, body; one write and one fdatasync for each batch."""

    def __init__(self, path: Path) -> None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)

    def append(self, commands: list[bytes]) -> None:
        """Make a batch durable."""
        body = _pack(commands)
        os.write(self._fd, struct.pack("<II", len(body), zlib.crc32(body)) + body)
        os.fdatasync(self._fd)


def open_socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> Any:
    """Return a socket that holds many messages and forgets them when it is closed."""
    socket = context.socket(kind)
    socket.sndhwm = socket.rcvhwm = HWM
    socket.linger = 0
    return socket


def lead(nodes: int, sockets: str, disk: BareDisk) -> None:
    """Be node 0."""
    context = zmq.Context()
    clients = open_socket(context, zmq.ROUTER)
    clients.bind(f"ipc://{sockets}/c0")
    lanes = []
    for number in range(1, nodes):
        lane = open_socket(context, zmq.DEALER)
        lane.connect(f"ipc://{sockets}/p{number}")
        lanes.append(lane)
    poller = zmq.Poller()
    for pollable in (STDIN, clients, *lanes):
        poller.register(pollable, zmq.POLLIN)
    log: list[bytes] = []
    waiting: list[tuple[bytes, int]] = []
    match = [0] * len(lanes)
    store: dict[bytes, bytes] = {}
    commit = 0
    say_ready()
    while not any(ready == STDIN for ready, _ in poller.poll(POLL_MS)):
        for i, lane in enumerate(lanes):
            while lane.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                match[i] = max(match[i], _unpack(lane.recv(zmq.NOBLOCK)))
        new: list[bytes] = []
        while len(new) < LEADER_TURN and clients.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            client, body = clients.recv_multipart(zmq.NOBLOCK)
            for number, command in _unpack(body):
                new.append(command)
                waiting.append((client, number))
        if new:
            log.extend(new)
            frame = _pack([1, len(log) - len(new), commit, new])
            for lane in lanes:
                lane.send(frame, copy=False)
            disk.append(new)
        reached = sorted([len(log), *match])[(nodes - 1) // 2]
        if reached > commit:
            answers: dict[bytes, list[int]] = {}
            for i in range(commit, reached):
                operation = _unpack(log[i])
                store[operation[1]] = operation[2]
                answers.setdefault(waiting[i][0], []).append(waiting[i][1])
            commit = reached
            for client, numbers in answers.items():
                clients.send_multipart([client, _pack(numbers)])
    context.destroy(linger=0)


def follow(me: int, sockets: str, disk: BareDisk) -> None:
    """Be one of the others."""
    context = zmq.Context()
    peer = open_socket(context, zmq.ROUTER)
    peer.bind(f"ipc://{sockets}/p{me}")
    poller = zmq.Poller()
    for pollable in (STDIN, peer):
        poller.register(pollable, zmq.POLLIN)
    log: list[bytes] = []
    store: dict[bytes, bytes] = {}
    commit = applied = 0
    say_ready()
    while not any(ready == STDIN for ready, _ in poller.poll(POLL_MS)):
        got: list[bytes] = []
        leader = b""
        while len(got) < FOLLOWER_TURN and peer.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            leader, body = peer.recv_multipart(zmq.NOBLOCK)
            _, _, commit, commands = _unpack(body)
            got.extend(commands)
        if not leader:
            continue
        log.extend(got)
        disk.append(got)
        peer.send_multipart([leader, _pack(len(log))])
        for i in range(applied, min(commit, len(log))):
            operation = _unpack(log[i])
            store[operation[1]] = operation[2]
        applied = max(applied, min(commit, len(log)))
    context.destroy(linger=0)


class BareLoop:
    """The processes of a bare loop and its one client; a context manager."""

    def __init__(self, nodes: int, sockets: Path, data: Path) -> None:
        """Start them. Both directories exist and are empty."""
        self._nodes: list[Helper] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            for number in range(nodes):
                words = [str(number), str(nodes), str(sockets), str(data)]
                self._nodes.append(Helper(MODULE, words))
            for node in self._nodes:
                node.wait_ready()
            self._socket = open_socket(self._context, zmq.DEALER)
            self._socket.connect(f"ipc://{sockets}/c0")
            on_failure.pop_all()

    def __enter__(self) -> BareLoop:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._context.destroy(linger=0)
        for node in self._nodes:
            node.end()

    def load(self, *, count: int, outstanding: int, size_bytes: int) -> Latencies:
        """Write `count` values with so many outstanding, and return how long each took."""
        socket, value = self._socket, b"v" * size_bytes
        sent = done = 0
        sent_ns: deque[int] = deque()  # answers come in the order of the requests
        latencies = Latencies()
        while done < count:
            while sent < count and sent - done < outstanding:
                command = _pack([1, b"key%d" % (sent % KEYS), value])
                socket.send(_pack([[sent, command]]))
                sent_ns.append(clock.monotonic_ns())
                sent += 1
            for _ in _unpack(socket.recv()):
                latencies.add(clock.monotonic_ns() - sent_ns.popleft())
                done += 1
        return latencies.finish()


def main() -> None:
    """Be the node that the command line names."""
    me, nodes, sockets, data = sys.argv[1:5]
    disk = BareDisk(Path(data) / f"wal{me}")
    if me == "0":
        lead(int(nodes), sockets, disk)
    else:
        follow(int(me), sockets, disk)


if __name__ == "__main__":
    main()
