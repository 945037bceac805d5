"""Fakes of everything that a node's loop runs: they note what they are told, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import zmq

from zraft.api import Reply, Request
from zraft.core.messages import InstallSnapshot, Message, RequestVote
from zraft.core.model import MemberId
from zraft.node.clients import ForwardBatch, RequestBatch
from zraft.node.loop import Loop, LoopParts
from zraft.transport.base import PeerDown

HEARTBEAT_MS = 50
INBOX = cast("zmq.Socket[bytes]", 1000)
CLIENT = cast("zmq.Socket[bytes]", 1001)
SIGNALS_FD = 1002
BULK = cast("zmq.Socket[bytes]", 1003)
CHUNK = InstallSnapshot(2, 1, 1, 9, 1, 4, 1, 0, 1, b"data")
MESSAGE = RequestVote(2, 1, 1, False, 1, 0, 0)
REQUEST = Request(1, 0, 0, 0, 1000, 0, 0, b"")
REPLY = Reply(1, 0, 1, 1, 1, 1, b"")


class FakeClock:
    """Time that passes only when somebody says so."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000_000

    def now_ns(self) -> int:
        """Return the time."""
        return self.ns

    def now_ms(self) -> int:
        """Return the time."""
        return self.ns // 1_000_000

    def advance(self, ms: float) -> None:
        """Let time pass."""
        self.ns += int(ms * 1_000_000)


@dataclass
class World:
    """Every part of a loop at once; what it is asked to do goes to `calls`, in order."""

    clock: FakeClock
    calls: list[str] = field(default_factory=list)
    timeouts: list[int] = field(default_factory=list)
    ready: dict[object, int] = field(default_factory=dict)
    poll_takes_ms: float | None = None  # None: exactly the timeout
    registered: list[object] = field(default_factory=list)

    deadline_ms: int = 1 << 62
    lines_deadline_ms: int | None = None
    peers_deadline_ms: int | None = None
    flush_takes_ms: float = 0
    more: bool = False
    drained: bool = True
    handing_over: bool = False
    stopped_again_by: set[int] = field(default_factory=set)  # while it hands over
    waiting: int = 0
    leading: bool = False
    contact_ms: int | None = None
    taking_takes_ms: float = 0
    requests_until_ms: int = 0  # one in every turn

    inbox: list[Message] = field(default_factory=list)
    inbox_empty: bool = True
    downs_found: list[PeerDown] = field(default_factory=list)
    pollables_version: int = 0
    chunks: list[Message] = field(default_factory=list)
    bulk_version: int = 0
    bulk_deadline_ms: int | None = None
    batches: list[RequestBatch] = field(default_factory=list)
    forwarded: list[ForwardBatch] = field(default_factory=list)
    has_lost: bool = False
    taken: set[int] = field(default_factory=set)
    events: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    stop_asked: bool = False
    block_ms: int = 0
    stalls: list[int] = field(default_factory=list)
    times: dict[str, int] = field(default_factory=dict)
    fd: int = SIGNALS_FD
    inbox_socket: zmq.Socket[bytes] = INBOX

    def note(self, call: str, now_ms: int | None = None) -> None:
        """Remember a call and the time that it was told."""
        self.calls.append(call)
        if now_ms is not None:
            self.times[call] = now_ms


class Poller:
    """A zmq.Poller that finds ready what the world says, and lets time pass."""

    def __init__(self, world: World) -> None:
        self.world = world

    def register(self, pollable: object, events: int) -> None:
        """Note what is polled."""
        assert events
        self.world.registered.append(pollable)

    def unregister(self, pollable: object) -> None:
        """Note what is not polled any more."""
        self.world.registered.remove(pollable)

    def poll(self, timeout_ms: int) -> list[tuple[object, int]]:
        """Let the timeout pass, or the time that the test wants."""
        world = self.world
        world.timeouts.append(timeout_ms)
        takes_ms = world.poll_takes_ms
        if takes_ms is None:
            takes_ms = 0 if world.ready else timeout_ms
        world.clock.advance(takes_ms)
        return list(world.ready.items())


class UrgentPoller:
    """A zmq.Poller that never finds anything."""

    def __init__(self, world: World) -> None:
        self.world = world

    def register(self, pollable: object, events: int) -> None:
        """Take anything."""
        assert pollable
        assert events

    def poll(self, timeout_ms: int) -> list[tuple[object, int]]:
        """Let the timeout pass."""
        self.world.clock.advance(timeout_ms)
        return []


class Server:
    """Notes what the loop tells it."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def drained(self) -> bool:
        """As the world says."""
        return self.world.drained

    @property
    def handing_over(self) -> bool:
        """As the world says."""
        return self.world.handing_over

    @property
    def waiting(self) -> int:
        """As the world says."""
        return self.world.waiting

    def transfer(self, *, now_ms: int) -> object | None:
        """Note it; the world says whether somebody is there to take over."""
        self.world.note("transfer", now_ms)
        self.world.taken = set(self.world.stopped_again_by)
        return None if self.world.handing_over else "nobody there"

    def next_deadline_ms(self) -> int:
        """As the world says."""
        return self.world.deadline_ms

    def on_stall(self, late_ms: int, *, now_ms: int, grace: bool) -> None:
        """Note it."""
        self.world.stalls.append(late_ms)
        self.world.note("stall" if grace else "stall without grace", now_ms)

    def on_message(self, message: Message, *, now_ms: int) -> None:
        """Note it."""
        assert message in (MESSAGE, CHUNK)
        self.world.note("message" if message is MESSAGE else "chunk", now_ms)

    def on_peer_down(self, peer: MemberId, incarnation: int, *, now_ms: int) -> None:
        """Note it."""
        self.world.note(f"down {peer} {incarnation}", now_ms)

    def on_requests(self, client: bytes, requests: list[Request], *, now_ms: int) -> None:
        """Note it."""
        assert client
        self.world.note(f"requests {len(requests)}", now_ms)

    def on_forward_replies(self, leader: MemberId, replies: list[Reply], *, now_ms: int) -> None:
        """Note it."""
        self.world.note(f"replies {leader} {len(replies)}", now_ms)

    def on_forward_lost(self, leader: MemberId, *, now_ms: int) -> None:
        """Note it."""
        self.world.note(f"lost {leader}", now_ms)

    def on_timer(self, *, now_ms: int, inbox_empty: bool) -> None:
        """Note it."""
        self.world.note(f"timer {inbox_empty}", now_ms)

    def flush(self, *, now_ms: int) -> bool:
        """Note it, and take the time that the world says."""
        self.world.note("flush", now_ms)
        self.world.clock.advance(self.world.flush_takes_ms)
        return self.world.more

    def prepare_stop(self, *, now_ms: int) -> None:
        """Note it."""
        self.world.note("prepare stop", now_ms)

    def finish_stop(self, *, now_ms: int) -> None:
        """Note it."""
        self.world.note("finish stop", now_ms)


class Peers:
    """Peer sockets with the world's inbox."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def inbox(self) -> zmq.Socket[bytes]:
        """The receiving socket."""
        return INBOX

    @property
    def inbox_empty(self) -> bool:
        """As the world says."""
        return self.world.inbox_empty

    @property
    def pollables_version(self) -> int:
        """As the world says."""
        return self.world.pollables_version

    def pollables(self) -> list[tuple[zmq.Socket[bytes] | int, int]]:
        """The inbox, and one more with each version."""
        return [(INBOX, zmq.POLLIN), (2000 + self.world.pollables_version, zmq.POLLOUT)]

    def next_deadline_ms(self) -> int | None:
        """As the world says."""
        return self.world.peers_deadline_ms

    def on_ready(self, pollable: object) -> bool:
        """Note it."""
        return pollable is not INBOX

    def on_timer(self, now_ms: int) -> None:
        """Note it."""
        self.world.note("peers timer", now_ms)

    def receive(self, limit: int) -> Sequence[Message]:
        """Take messages out of the world's inbox."""
        self.world.note("receive")
        taken, self.world.inbox = self.world.inbox[:limit], self.world.inbox[limit:]
        self.world.inbox_empty = len(taken) < limit
        return taken

    def downs(self) -> list[PeerDown]:
        """As the world says."""
        return self.world.downs_found


class Bulk:
    """Bulk sockets with the world's chunks."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def inbox(self) -> zmq.Socket[bytes]:
        """The receiving socket."""
        return BULK

    @property
    def pollables_version(self) -> int:
        """As the world says."""
        return self.world.bulk_version

    def pollables(self) -> list[tuple[zmq.Socket[bytes] | int, int]]:
        """The inbox, and one more with each version."""
        return [(BULK, zmq.POLLIN), (3000 + self.world.bulk_version, zmq.POLLIN)]

    def next_deadline_ms(self) -> int | None:
        """As the world says."""
        return self.world.bulk_deadline_ms

    def on_ready(self, pollable: object) -> bool:
        """Note it, if it is ours."""
        if isinstance(pollable, int) and pollable >= 3000:
            self.world.note(f"bulk ready {pollable}")
            return True
        return False

    def on_timer(self, now_ms: int) -> None:
        """Note it."""
        self.world.note("bulk timer", now_ms)

    def receive(self, limit: int) -> Sequence[Message]:
        """Take chunks out of the world."""
        self.world.note("receive bulk")
        taken, self.world.chunks = self.world.chunks[:limit], self.world.chunks[limit:]
        return taken


class Clients:
    """Client sockets with the world's batches."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def has_lost(self) -> bool:
        """As the world says."""
        return self.world.has_lost

    def expect_leader(self, leader: MemberId, now_ms: int) -> None:
        """Note it."""
        self.world.note(f"expect {leader}", now_ms)

    def receive(self, ready: Mapping[Any, int]) -> list[RequestBatch]:
        """Hand out the batches; that takes the time that the world says."""
        assert ready is not None
        self.world.clock.advance(self.world.taking_takes_ms)
        if self.world.clock.now_ms() < self.world.requests_until_ms:
            return [RequestBatch(b"late", [REQUEST])]
        return self.world.batches

    def receive_forwarded(self, ready: Mapping[Any, int]) -> list[ForwardBatch]:
        """As the world says."""
        assert ready is not None
        return self.world.forwarded

    def flush_replies(self) -> None:
        """Note it."""
        self.world.note("flush replies")


class Control:
    """A control socket that asks for what the world says."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stop_asked = False
        self.block_ms = 0

    def run(self, ready: Mapping[Any, int]) -> None:
        """Note it."""
        assert ready is not None
        self.world.note("control")
        self.stop_asked = self.stop_asked or self.world.stop_asked
        self.world.stop_asked = False


class Signals:
    """Signals that the world sends."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fd = SIGNALS_FD

    def take(self) -> set[int]:
        """Hand them out."""
        self.world.note("signals")
        taken, self.world.taken = self.world.taken, set()
        return taken


class Telemetry:
    """Telemetry that remembers."""

    def __init__(self, world: World) -> None:
        self.world = world

    def emit(self, event: str, /, **fields: object) -> None:
        """Remember an event."""
        self.world.events.append((event, fields))

    def next_deadline_ms(self) -> int | None:
        """As the world says."""
        return self.world.lines_deadline_ms

    def flush(self, now_ms: int) -> None:
        """Note it."""
        self.world.note("lines", now_ms)

    def reopen(self) -> None:
        """Note it."""
        self.world.note("reopen")


class Housekeeping:
    """Housekeeping that remembers."""

    def __init__(self, world: World) -> None:
        self.world = world

    def prepare(self, budget_bytes: int) -> bool:
        """Note it."""
        self.world.note(f"prepare {budget_bytes}")
        return False

    def maybe_collect(self, now_ms: int) -> None:
        """Note it."""
        self.world.note("collect", now_ms)

    def report(self, now_ms: int) -> None:
        """Note it."""
        self.world.note("report", now_ms)


def leader_id() -> MemberId:
    """A leader that never changes."""
    return 2


def make_loop(world: World) -> Loop:
    """Return a loop in this world."""
    parts = LoopParts(
        poller=cast("zmq.Poller", Poller(world)),
        urgent=cast("zmq.Poller", UrgentPoller(world)),
        server=Server(world),
        peers=Peers(world),
        bulk=Bulk(world),
        clients=Clients(world),
        control=Control(world),
        signals=Signals(world),
        telemetry=Telemetry(world),
        housekeeping=Housekeeping(world),
        leader_id=leader_id,
        leads=lambda: world.leading,
        contact_ms=lambda: world.contact_ms,
    )
    return Loop(parts, heartbeat_ms=HEARTBEAT_MS, prealloc_bytes=1000)
