"""The bulk lanes over real sockets: chunks arrive, delay nobody, and survive peers that die."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import zmq

from zraft import clock
from zraft.core.messages import InstallSnapshot
from zraft.transport.bulk import MAX_BULK_FRAME_BYTES, BulkSockets
from zraft.transport.fault_kinds import MESSAGE_KINDS, Delay, Drop, Duplicate
from zraft.transport.links import Fault, Links
from zraft.wire_entry import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from tests.transport.conftest import Net

CLUSTER = b"cluster8"
SEED = 20231124
CHUNK_BYTES = 256 << 10
SIZE_BYTES = 64 << 20


def chunk(src: int, dst: int, number: int, size_bytes: int = CHUNK_BYTES) -> InstallSnapshot:
    """Return the chunk with that number of some snapshot."""
    data = random.Random(number).randbytes(size_bytes)
    offset = number * size_bytes
    return InstallSnapshot(src, dst, 3, 9, 2, SIZE_BYTES, 77, offset, zlib.crc32(data), data)


class End:
    """A BulkSockets and what came out of it; its turns are a part of the net's."""

    def __init__(self, net: Net, me: int, incarnation: int = 1) -> None:
        """Bind; `net` polls rarely, so turns come every few milliseconds."""
        self.me = me
        self.reading = True
        self.chunks: list[InstallSnapshot] = []
        self.events: list[tuple[str, dict[str, object]]] = []
        self.links = Links(random.Random(me))
        self.traced: list[tuple[str, str, str]] = []
        self._net = net
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sockets = BulkSockets(
            self._context,
            me=me,
            cluster=CLUSTER,
            incarnation=incarnation,
            bind=net.endpoints[me] + ".bulk",
            peers=net.endpoints,
            endpoint_of=self._endpoint_of,
            links=self.links,
            report=self._report,
            now_ms=clock.now_ms,
        )
        self.sockets.trace = lambda way, message, frame: self.traced.append(
            (way, frame.kind, frame.reason)
        )
        net.turns.append(self.turn)

    def _endpoint_of(self, peer: int) -> str | None:
        endpoint = self._net.endpoints.get(peer)
        return None if endpoint is None else f"{endpoint}.bulk"

    def _report(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))

    def counter(self, name: str) -> int:
        """Return one counter."""
        return self.sockets.counters()[f"bulk.{name}"]

    @property
    def drops(self) -> dict[str, int]:
        """Return the counters of dropped frames that are not zero."""
        return {n: c for n, c in self.sockets.counters().items() if c and ".dropped" in n}

    @property
    def numbers(self) -> list[int]:
        """Return which chunks arrived, in order."""
        return [message.offset // len(message.data) for message in self.chunks]

    def turn(self) -> None:
        """Do what a node's loop does with it."""
        for pollable, _ in self.sockets.pollables():
            self.sockets.on_ready(pollable)
        if self.reading:
            self.chunks += self.sockets.receive(4)
        self.sockets.on_timer(clock.now_ms())

    def send(self, peer: int, number: int, size_bytes: int = CHUNK_BYTES) -> bool:
        """Send a chunk if the lane takes it now."""
        return self.sockets.send(chunk(self.me, peer, number, size_bytes))

    def sends(self, peer: int, number: int) -> None:
        """Send a chunk, as soon as the lane takes it; of a new pipe a socket hears a bit later."""
        self._net.run(lambda: self.send(peer, number))

    def connect(self, peer: int) -> None:
        """Open a lane and wait until it has a connection."""
        self.sockets.open(peer)
        self._net.run(lambda: self.sockets.is_connected(peer))

    def kill(self) -> None:
        """Close everything, as the kernel does for a dead process."""
        if not self._context.closed:
            self._net.turns.remove(self.turn)
            self.sockets.close()
            self._context.destroy(linger=0)


@pytest.fixture
def end(net: Net) -> Iterator[Callable[..., End]]:
    """Return a function that makes an end; all are closed when the test is over."""
    ends: list[End] = []

    def make(me: int, incarnation: int = 1) -> End:
        ends.append(End(net, me, incarnation))
        return ends[-1]

    yield make
    for made in ends:
        made.kill()


def test_chunks_arrive_whole_and_in_order(net: Net, end: Callable[..., End]) -> None:
    """64 to 256 KiB each, more than any buffer on the way holds."""
    first, second = end(1), end(2)
    assert not first.send(2, 0), "there is no lane yet"
    first.connect(2)
    sent = 0

    def pump() -> bool:
        nonlocal sent
        while sent < 100 and first.send(2, sent, (64 << 10) + sent):
            sent += 1
        return len(second.chunks) == 100

    net.run(pump)
    assert [message.offset for message in second.chunks] == [
        number * ((64 << 10) + number) for number in range(100)
    ]
    assert all(zlib.crc32(m.data) == m.chunk_crc for m in second.chunks)
    assert second.counter("received") == first.counter("sent") == 100
    assert ("sent", "InstallSnapshot", "") in first.traced
    assert ("received", "InstallSnapshot", "") in second.traced


def test_a_lane_exists_only_while_it_is_open(
    net: Net, end: Callable[..., End], open_descriptors: Callable[[], int]
) -> None:
    """Idle nodes have no connection for chunks, and a closed lane leaves no descriptor behind."""
    first, second = end(1), end(2)
    assert len(first.sockets.pollables()) == 1
    before = open_descriptors()
    for round_number in range(3):
        first.connect(2)
        first.sockets.open(2)
        assert len(first.sockets.pollables()) == 2
        first.sends(2, round_number)
        net.run(lambda: len(second.chunks) > round_number)  # noqa: B023  # run at once
        first.sockets.shut(2)
        first.sockets.shut(2)
        assert len(first.sockets.pollables()) == 1
    net.run(lambda: open_descriptors() <= before)
    assert second.drops == {}, "every lane has a later epoch than the one before"


def test_a_full_bulk_lane_holds_up_no_heartbeat(net: Net, end: Callable[..., End]) -> None:
    """25 MiB wait for a peer that takes no chunk at all: votes pass them."""
    one, two = net.pair()
    first, second = end(1), end(2)
    second.reading = False
    first.connect(2)
    sent = 0

    def stuff() -> bool:
        nonlocal sent
        while sent < 100 and first.send(2, sent):
            sent += 1
        return sent == 100

    net.run(stuff)
    for number in range(1, 51):
        one.vote(2, number)
        net.run(lambda n=number: two.numbers(1)[-1:] == [n])  # type: ignore[misc]
    assert second.chunks == []
    second.reading = True
    net.run(lambda: second.numbers == list(range(sent)))


def test_a_peer_that_dies_in_the_middle_is_reached_again(net: Net, end: Callable[..., End]) -> None:
    """Chunks fail to leave while it is gone; its next life gets what is sent from then on."""
    first, second = end(1), end(2)
    first.connect(2)
    first.sends(2, 0)
    net.run(lambda: second.numbers == [0])
    second.reading = False
    first.sends(2, 1)
    second.kill()
    net.run(lambda: not first.sockets.is_connected(2))
    net.run(lambda: not first.send(2, 2))  # the socket hears of the pipe's end after its monitor
    again = end(2, incarnation=2)
    net.run(lambda: first.sockets.is_connected(2))
    first.sends(2, 3)
    net.run(lambda: again.numbers == [3])


def test_a_sender_that_dies_leaves_nothing_half_read(net: Net, end: Callable[..., End]) -> None:
    """A later life's chunks count, late ones of the earlier do not."""
    first, second = end(1), end(2)
    second.reading = False
    first.connect(2)
    first.sends(2, 0)
    first.kill()
    later = end(1, incarnation=2)
    later.connect(2)
    later.sends(2, 5)
    second.reading = True
    net.run(lambda: second.numbers[-1:] == [5])
    assert second.numbers in ([5], [0, 5])
    assert second.counter("dropped_stale") + len(second.numbers) <= 2


def test_a_renewed_lane_goes_on(net: Net, end: Callable[..., End]) -> None:
    """The sender saw no answer for too long: a new connection, a later epoch."""
    first, second = end(1), end(2)
    first.connect(2)
    first.sockets.renew(2)
    net.run(lambda: first.sockets.is_connected(2))
    first.sends(2, 1)
    net.run(lambda: second.numbers == [1])
    assert first.counter("lanes_made_anew") == 1


def test_without_a_handshake_the_lane_is_made_anew(net: Net, end: Callable[..., End]) -> None:
    """A foreign program sits on the endpoint for a while: libzmq may have given up for good."""
    first = end(1)
    net.endpoints[3] = net.endpoints[2] + ".bulk"
    net.listener(3)
    first.sockets.open(99)
    assert first.counter("sent_unknown_member") == 1
    first.sockets.open(2)
    net.run(lambda: first.counter("lanes_made_anew") >= 1)
    assert first.sockets.next_deadline_ms() is not None


def test_fault_rules_act_on_chunks(net: Net, end: Callable[..., End]) -> None:
    """Dropped, doubled, held back and cut off, by the names of the messages."""
    first, second = end(1), end(2)
    first.connect(2)
    kinds = [MESSAGE_KINDS["snapshot"]]
    dice = random.Random(SEED)

    def under(fault: Fault, number: int) -> None:
        first.links.add(fault)
        first.sends(2, number)

    drop = Drop("f1", [2], rate=1.0, random=dice, kinds=kinds)
    under(drop, 0)
    first.links.heal("f1")
    double = Duplicate("f2", [2], rate=1.0, random=dice, kinds=kinds)
    under(double, 1)
    first.links.heal("f2")
    delay = Delay("f3", [2], rate=1.0, random=dice, kinds=kinds, delay_ms=30)
    under(delay, 2)
    first.links.heal("f3")
    first.sends(2, 3)
    net.run(lambda: len(second.chunks) == 4)
    assert second.numbers == [1, 1, 3, 2]
    votes = Drop("f4", [2], rate=1.0, random=dice, kinds=[MESSAGE_KINDS["vote"]])
    under(votes, 4)
    net.run(lambda: second.numbers[-1:] == [4])
    second.links.isolate([1])
    first.sends(2, 5)
    net.run(lambda: second.counter("dropped_fault") == 1)


def test_frames_that_are_no_chunks_of_a_member_are_counted_by_reason(
    net: Net, end: Callable[..., End], encode: Callable[..., bytes]
) -> None:
    """Other clusters, receivers, senders, lanes and kinds; noise; and good ones still arrive."""
    first, second = end(1), end(2)
    dealer = net.stranger(zmq.DEALER)
    dealer.connect(net.endpoints[1] + ".bulk")
    good = encode(chunk(2, 1, 1), lane=1)
    dealer.send(encode(chunk(2, 1, 1), lane=1, cluster=b"another8"))
    dealer.send(encode(chunk(2, 1, 1), lane=0))
    dealer.send(encode(chunk(2, 3, 1), lane=1))
    dealer.send(encode(chunk(99, 1, 1), lane=1))
    dealer.send(encode(lane=1))  # a vote
    dealer.send(random.Random(SEED).randbytes(CHUNK_BYTES))
    dealer.send(good[:-1])
    dealer.send(good + b"\0")
    dealer.send(b"")
    dealer.send_multipart([b"1", b"2", b"3"])
    dealer.send(encode(chunk(2, 1, 1), lane=1, incarnation=7))
    dealer.send(good)
    net.run(lambda: sum(first.drops.values()) == 11)
    assert {name.removeprefix("bulk."): n for name, n in first.drops.items()} == {
        "dropped_cluster": 1,
        "dropped_lane": 1,
        "dropped_dst": 1,
        "dropped_src": 1,
        "dropped_unknown_kind": 1,
        "dropped_garbage": 4,
        "dropped_parts": 1,
        "dropped_stale": 1,
    }
    assert first.numbers == [1]
    net.run(lambda: bool(first.events))
    assert {name for name, _ in first.events} == {"peer.garbage"}
    assert {fields["socket"] for _, fields in first.events} == {"bulk"}
    second.connect(1)
    assert second.events == []


def test_raw_bytes_and_oversize_frames_change_nothing(net: Net, end: Callable[..., End]) -> None:
    """Noise costs the stranger its connection; a chunk that is too large never leaves."""
    first, second = end(1), end(2)
    net.endpoints[3] = net.endpoints[1] + ".bulk"
    for data in (random.Random(SEED).randbytes(4000), b"GET / HTTP/1.1\r\n\r\n", b"\xff\0\0"):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            net.raw(3).sendall(data)
    dealer = net.dealer(3)
    dealer.send(bytes(MAX_BULK_FRAME_BYTES + 1))
    second.connect(1)
    assert not second.send(1, 0, MAX_BULK_FRAME_BYTES)
    assert second.counter("sent_too_large") == 1
    assert MAX_BULK_FRAME_BYTES < MAX_FRAME_BYTES
    second.sends(1, 1)
    net.run(lambda: first.numbers == [1])
