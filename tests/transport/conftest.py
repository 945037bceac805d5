"""Real sockets in one process: every node has its own context, and a loop of the test turns them.

Nothing here sleeps: `net.run(until)` polls all sockets of all nodes until the condition holds, and
fails after a generous deadline with what the nodes have counted and reported.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zmq

from zraft import clock, wire
from zraft.core.messages import Message, RequestVote
from zraft.errors import ZraftError
from zraft.transport.base import PeerDown
from zraft.transport.links import Links
from zraft.transport.peers import PeerSockets

CLUSTER = b"cluster8"
DEADLINE_MS = 20_000

CHILD = """
import sys, zmq
context = zmq.Context()
router = context.socket(zmq.ROUTER)
router.bind(sys.argv[1])
print("bound", flush=True)
while True:
    router.recv_multipart()
"""


class Node:
    """A PeerSockets with the little loop that it needs, and what came out of it."""

    def __init__(self, net: Net, me: int, incarnation: int) -> None:
        """Bind and start connecting to the other members of `net`."""
        self.me = me
        self.busy = False  # a busy node's loop does not run at all
        self.inbox: list[Message] = []
        self.downs: list[PeerDown] = []
        self.events: list[tuple[str, dict[str, object]]] = []
        self.links = Links(random.Random(me))
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self.sockets = self._make_sockets(net, incarnation)
        except ZraftError:
            self.context.destroy(linger=0)
            raise

    def _make_sockets(self, net: Net, incarnation: int) -> PeerSockets:
        return PeerSockets(
            self.context,
            me=self.me,
            cluster=CLUSTER,
            incarnation=incarnation,
            bind=net.endpoints[self.me],
            endpoints=net.endpoints,
            links=self.links,
            report=self._report,
            now_ms=clock.now_ms,
            label=str,
        )

    def _report(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))

    def told(self, event: str) -> list[dict[str, object]]:
        """Return the fields of each event of that name."""
        return [fields for name, fields in self.events if name == event]

    @property
    def counters(self) -> dict[str, int]:
        """Return the counters that are not zero."""
        return {name: count for name, count in self.sockets.counters().items() if count}

    @property
    def drops(self) -> dict[str, int]:
        """Return the counters of dropped frames that are not zero."""
        return {name: count for name, count in self.counters.items() if "dropped" in name}

    def made_anew(self) -> list[object]:
        """Return the reasons for which sockets were made anew."""
        return [fields["reason"] for fields in self.told("peer.reconnected")]

    def vote(self, dst: int, number: int) -> None:
        """Send a small message that carries a number."""
        self.sockets.send([RequestVote(self.me, dst, 1, False, 1, number, min(number, 1))])

    def numbers(self, src: int) -> list[int]:
        """Return the numbers that arrived from `src`, in order."""
        return [m.last_log_index for m in self.inbox if isinstance(m, RequestVote) and m.src == src]

    def turn(self) -> None:
        """Do what a node's loop does after its poll."""
        self.inbox += self.sockets.receive(64)
        self.downs += self.sockets.downs()
        self.sockets.on_timer(clock.now_ms())

    def kill(self) -> None:
        """Close everything, as the kernel does for a dead process."""
        self.sockets.close()
        self.context.destroy(linger=0)


class Net:
    """The nodes, raw sockets and child processes of one test, and their directory."""

    def __init__(self, directory: Path) -> None:
        """Make nothing yet; the members are 1 and 2, on ipc."""
        self.directory = directory
        self.endpoints = {me: f"ipc://{directory}/{me}" for me in (1, 2)}
        self.nodes: list[Node] = []
        self.turns: list[Callable[[], None]] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._strangers: list[zmq.Socket[bytes]] = []
        self._raw: list[socket.socket] = []
        self._children: list[subprocess.Popen[bytes]] = []

    def node(self, me: int, incarnation: int = 1) -> Node:
        """Start a node."""
        node = Node(self, me, incarnation)
        self.nodes.append(node)
        return node

    def pair(self) -> tuple[Node, Node]:
        """Start nodes 1 and 2 and wait until they are connected both ways."""
        first, second = self.node(1), self.node(2)
        self.run(lambda: first.sockets.connected(2) and second.sockets.connected(1))
        return first, second

    def kill(self, node: Node) -> None:
        """End a node without a word to anybody."""
        self.nodes.remove(node)
        node.kill()

    def run(self, until: Callable[[], bool], deadline_ms: int = DEADLINE_MS) -> int:
        """Turn all loops until the condition holds; return how many milliseconds it took."""
        start_ms = clock.now_ms()
        while True:
            self._poll()
            for node in self.nodes:
                if not node.busy:
                    node.turn()
            for extra in self.turns:
                extra()
            elapsed_ms = clock.now_ms() - start_ms
            if until():
                return elapsed_ms
            if elapsed_ms > deadline_ms:
                seen = [(node.me, node.counters, node.downs, node.events) for node in self.nodes]
                pytest.fail(f"not within {deadline_ms} ms; nodes: {seen}")

    def _poll(self) -> None:
        poller = zmq.Poller()
        deadline_ms = clock.now_ms() + 5
        awake = [node for node in self.nodes if not node.busy]
        for node in awake:
            for pollable, events in node.sockets.pollables():
                poller.register(pollable, events)
            due_ms = node.sockets.next_deadline_ms()
            deadline_ms = min(deadline_ms, deadline_ms if due_ms is None else due_ms)
        ready = poller.poll(max(1, deadline_ms - clock.now_ms()))
        for pollable, _ in ready:
            for node in awake:
                if node.sockets.on_ready(pollable):
                    break

    def stranger(self, kind: int) -> zmq.Socket[bytes]:
        """Return a bare ZeroMQ socket of a stranger."""
        found = self._context.socket(kind)
        found.set(zmq.LINGER, 0)
        self._strangers.append(found)
        return found

    def dealer(self, me: int) -> zmq.Socket[bytes]:
        """Return a stranger's DEALER, connected to the inbox of a node."""
        dealer = self.stranger(zmq.DEALER)
        dealer.connect(self.endpoints[me])
        return dealer

    def raw(self, me: int) -> socket.socket:
        """Return a plain connection to the inbox of a node."""
        endpoint = self.endpoints[me]
        address: str | tuple[str, int]
        if endpoint.startswith("ipc://"):
            plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            address = endpoint.removeprefix("ipc://")
        else:
            plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            host, port = endpoint.removeprefix("tcp://").split(":")
            address = (host, int(port))
        plain.connect(address)
        self._raw.append(plain)
        return plain

    def listener(self, me: int) -> socket.socket:
        """Return a plain listener on the endpoint of a node, as a foreign program has it."""
        path = Path(self.endpoints[me].removeprefix("ipc://"))
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        self._raw.append(listener)
        return listener

    def child(self, me: int) -> subprocess.Popen[bytes]:
        """Start a process that binds a ROUTER in place of a node; it has bound on return."""
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, self.endpoints[me]], stdout=subprocess.PIPE
        )
        self._children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"bound\n"
        return child

    def use_tcp(self) -> None:
        """Give every member a free port of the loopback, below the ephemeral range."""
        candidates = iter(range(20_000 + os.getpid() % 10_000, 32_768))
        for me in self.endpoints:
            for port in candidates:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) != 0:
                        self.endpoints[me] = f"tcp://127.0.0.1:{port}"
                        break

    def close(self) -> None:
        """End everything."""
        for node in self.nodes:
            node.kill()
        for plain in self._raw:
            plain.close()
        for child in self._children:
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
        self._context.destroy(linger=0)


@pytest.fixture
def net() -> Iterator[Net]:
    """A net without nodes, in a directory with a path short enough for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="zt", dir="/tmp"))
    found = Net(directory)
    yield found
    found.close()
    shutil.rmtree(directory)


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Return a function that makes a valid frame from 2 to 1, except for what is changed."""

    def frame(message: Message | None = None, **changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "lane": 0,
            "cluster": CLUSTER,
            "incarnation": 1,
            "epoch": 1,
            "seq": 1 << 32,
            "heard": 0,
        }
        return wire.encode_message(
            message or RequestVote(2, 1, 1, False, 1, 0, 0), **(fields | changes)
        )

    return frame


@pytest.fixture
def open_descriptors() -> Callable[[], int]:
    """Return a function that counts this process's open descriptors."""

    def count() -> int:
        found: Sequence[str] = os.listdir("/proc/self/fd")
        return len(found)

    return count
