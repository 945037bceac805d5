"""A cluster of `Server`s in one process: real core and machine; fake disk, network, clock.

Everything is delivered in order, at once, unless a node is `down` or `cut` off. Time moves only
through `run_for`.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from zraft.api import Consistency, Flag, Reply, Request
from zraft.core.messages import InstallSnapshot, Message
from zraft.core.model import Configuration, MemberId, Role, Settings
from zraft.core.notices import Notice
from zraft.core.raft import Raft
from zraft.machine.kv import KV
from zraft.node.ports import Limits
from zraft.node.server import Server
from zraft.storage.base import Identity
from zraft.storage.memory import MemoryStorage
from zraft.storage.snapshots import SnapshotStore
from zraft.testing.disk import SimulatedDisk
from zraft.transport.base import PeerDown
from zraft.wire import decode_header, decode_message, encode_message
from zraft.wire_entry import EntryCodec

CLUSTER = b"\x01" * 8


def ignore(event: str, /, **fields: object) -> None:
    """Nobody reads these reports."""


class FakePeers:
    """Encodes and decodes every message, as sockets would, and hands it to the bench."""

    def __init__(self, bench: ServerBench) -> None:
        self._bench = bench

    def send(self, messages: Sequence[Message]) -> None:
        """Queue each message for its receiver."""
        for message in messages:
            frame = encode_message(
                message, lane=0, cluster=CLUSTER, incarnation=1, epoch=1, seq=1, heard=0
            )
            self._bench.network.append(decode_message(*decode_header(frame)))

    def receive(self, limit: int) -> list[Message]:
        """The bench delivers by itself."""
        del limit
        return []

    def downs(self) -> list[PeerDown]:
        """Nothing is reported unless a test says so."""
        return []


class FakeBulk:
    """Chunks go the way of all other messages."""

    def __init__(self, peers: FakePeers) -> None:
        self._peers = peers

    def open(self, peer: MemberId) -> None:
        """There is a lane already."""

    def send(self, chunk: InstallSnapshot) -> bool:
        """Queue a chunk for its receiver."""
        self._peers.send([chunk])
        return True

    def renew(self, peer: MemberId) -> None:
        """Nothing is wrong with it."""

    def shut(self, peer: MemberId) -> None:
        """It stays."""

    def receive(self, limit: int) -> list[InstallSnapshot]:
        """The bench delivers by itself."""
        del limit
        return []


class FakePort:
    """Replies and forwards of one node."""

    def __init__(self, bench: ServerBench, me: MemberId) -> None:
        self._bench = bench
        self._me = me

    def reply(self, client: bytes, reply: Reply) -> None:
        """Answer a client, or the node that forwarded."""
        self._bench.on_reply(self._me, client, reply)

    def forward(self, leader: MemberId, requests: list[Request]) -> bool:
        """Pass on to a node that is up and not cut off."""
        bench = self._bench
        if not bench.reachable(self._me, leader):
            return False
        bench.forwards.append((self._me, leader, requests))
        return True


class ServerBench:
    """`nodes` servers with ids 1 … n. `answers[request_id]` holds the replies that clients got."""

    def __init__(
        self,
        nodes: int,
        limits: Limits | None = None,
        *,
        settings: Settings | None = None,
        thorough: bool = True,
    ) -> None:
        self.now_ms = 0
        self.slow_us = 0  # between two looks of a server at the clock that it works by
        self._work_us = 0
        self.ids = tuple(range(1, nodes + 1))
        self.network: list[Message] = []
        self.forwards: list[tuple[MemberId, MemberId, list[Request]]] = []
        self.answers: dict[int, list[Reply]] = defaultdict(list)
        self.notices: list[tuple[MemberId, Notice]] = []
        self.down: set[MemberId] = set()
        self.cut: set[MemberId] = set()
        self.servers: dict[MemberId, Server] = {}
        self._next_id = 1
        self._settings = Settings() if settings is None else settings
        self.disks = {me: SimulatedDisk() for me in self.ids}
        for me in self.ids:
            self.disks[me].mkdir(Path(f"/n{me}"))
            self.servers[me] = self._server(me, limits or Limits(), thorough)

    def _server(self, me: MemberId, limits: Limits, thorough: bool) -> Server:
        storage = MemoryStorage(Configuration(self.ids))
        raft = Raft(
            me,
            storage.load(),
            settings=self._settings._replace(lease=limits.lease_reads),
            codec=EntryCodec(),
            random=random.Random(me),
            now_ms=self.now_ms,
            thorough=thorough,
        )
        port, peers = FakePort(self, me), FakePeers(self)
        store = SnapshotStore(Path(f"/n{me}/snap"), Identity(1, me), files=self.disks[me])
        store.load()
        return Server(
            raft=raft,
            storage=storage,
            store=store,
            peers=peers,
            bulk=FakeBulk(peers),
            machine=KV(),
            replies=port,
            forwards=port,
            report=ignore,
            on_notice=lambda notice: self.notices.append((me, notice)),
            clock_ns=self._clock_ns,
            limits=limits,
        )

    def _clock_ns(self) -> int:
        self._work_us += self.slow_us
        return self._work_us * 1000

    def reachable(self, a: MemberId, b: MemberId) -> bool:
        """Whether something that `a` sends to `b` arrives."""
        gone = self.down | self.cut
        return a not in gone and b not in gone

    def on_reply(self, node: MemberId, client: bytes, reply: Reply) -> None:
        """A reply to a node that forwarded goes back through it; others are answers."""
        if client.startswith(b"node"):
            follower = int(client[4:])
            if self.reachable(node, follower):
                self.servers[follower].on_forward_replies(node, [reply], now_ms=self.now_ms)
        else:
            self.answers[reply.request_id].append(reply)

    def request(
        self,
        node: MemberId,
        body: bytes,
        *,
        consistency: Consistency = Consistency.WRITE,
        flags: Flag = Flag.NONE,
        deadline_ms: int = 5000,
        named: tuple[int, int, int] = (0, 0, 0),
        max_staleness_ms: int = 0,
    ) -> int:
        """Send one client request to `node` and return its id.

        `named`: session, sequence, ack_below.
        """
        request_id = self._next_id
        self._next_id += 1
        request = Request(request_id, *named, deadline_ms, consistency, flags, body)
        request = request._replace(max_staleness_ms=max_staleness_ms)
        self.servers[node].on_requests(b"client", [request], now_ms=self.now_ms)
        return request_id

    def settle(self) -> None:
        """Flush and deliver until nothing moves."""
        moved = True
        while moved:
            for me, server in self.servers.items():
                while me not in self.down and server.flush(now_ms=self.now_ms):
                    pass
            network, self.network = self.network, []
            forwards, self.forwards = self.forwards, []
            moved = bool(network or forwards)
            for message in network:
                if self.reachable(message.src, message.dst):
                    self.servers[message.dst].on_message(message, now_ms=self.now_ms)
            for follower, leader, requests in forwards:
                client = b"node%d" % follower
                self.servers[leader].on_requests(client, requests, now_ms=self.now_ms)

    def run_for(self, duration_ms: int) -> None:
        """Let time pass, from deadline to deadline."""
        end_ms = self.now_ms + duration_ms
        self.settle()
        while self.now_ms < end_ms:
            up = [server for me, server in self.servers.items() if me not in self.down]
            next_ms = min(server.next_deadline_ms() for server in up)
            self.now_ms = min(max(next_ms, self.now_ms + 1), end_ms)
            for server in up:
                server.on_timer(now_ms=self.now_ms, inbox_empty=True)
            self.settle()

    def leader(self) -> MemberId:
        """Return the leader of the highest term among the nodes that are up and not cut off."""
        leaders = [
            (server.raft.term, me)
            for me, server in self.servers.items()
            if me not in self.down | self.cut and server.raft.role is Role.LEADER
        ]
        assert leaders, "no leader"
        return max(leaders)[1]

    def follower(self) -> MemberId:
        """Return a node that is up, not cut off, and does not lead."""
        leader = self.leader()
        return next(me for me in self.ids if me != leader and me not in self.down | self.cut)

    def only_answer(self, request_id: int) -> Reply:
        """Return the one answer to a request."""
        answers = self.answers[request_id]
        assert len(answers) == 1, (request_id, answers)
        return answers[0]
