"""The client side of a node over real sockets in one process: requests, replies, forwarding."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
import zmq

from zraft import clock, wire
from zraft.api import Code, Reply, Request
from zraft.node.clients import (
    ANY_CLUSTER,
    MAX_REQUESTS,
    REPLY_FRAME_BYTES,
    ClientSockets,
    ForwardBatch,
    RequestBatch,
)
from zraft.node.rejects import REPORT_EVERY_MS, Rejects
from zraft.transport.links import Cut, Links

CLUSTER = b"cluster8"
LEADER = 7
STRANGER = 8
DEADLINE_MS = 10_000


def request(number: int, body: bytes = b"x") -> Request:
    """A write."""
    return Request(number, 0, 0, 0, 1000, 0, 0, body)


def reply(number: int, body: bytes = b"x") -> Reply:
    """An answer."""
    return Reply(number, Code.OK, 1, 1, 1, 1, body)


class Bench:
    """A node's client sockets and a leader's, each with what a loop keeps for them."""

    def __init__(self, directory: Path) -> None:
        """Bind both."""
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.reports: list[dict[str, object]] = []
        self.node_endpoint = f"ipc://{directory}/node"
        self.leader_endpoint = f"ipc://{directory}/leader"
        self.pollers: dict[ClientSockets, zmq.Poller] = {}
        self.links = Links(random.Random(1))
        self.rejects = Rejects(lambda _event, **fields: self.reports.append(fields))
        self.node = self.sockets()
        self.node.bind(self.node_endpoint)
        self._dealers: list[zmq.Socket[bytes]] = []

    def sockets(self) -> ClientSockets:
        """Return unbound client sockets of one more node."""
        poller = zmq.Poller()
        found = ClientSockets(
            self.context,
            poller,
            cluster=CLUSTER,
            endpoint_of={LEADER: self.leader_endpoint}.get,
            rejects=self.rejects,
            links=self.links,
        )
        self.pollers[found] = poller
        return found

    def leader(self) -> ClientSockets:
        """Bind a leader's client sockets and return them."""
        found = self.sockets()
        found.bind(self.leader_endpoint)
        return found

    def dealer(self) -> zmq.Socket[bytes]:
        """Return a client that is connected to the node."""
        dealer = self.context.socket(zmq.DEALER)
        dealer.set(zmq.LINGER, 0)
        dealer.connect(self.node_endpoint)
        self._dealers.append(dealer)
        return dealer

    def receive(self, sockets: ClientSockets, count: int = 1) -> list[RequestBatch]:
        """Wait for so many frames of requests."""
        found: list[RequestBatch] = []

        def enough() -> bool:
            found.extend(sockets.receive(dict(self.pollers[sockets].poll(10))))
            return len(found) >= count

        self.until(enough)
        return found

    def forwarded(self, until: Callable[[list[ForwardBatch]], bool]) -> list[ForwardBatch]:
        """Turn the node's forwarding until enough came of it."""
        found: list[ForwardBatch] = []

        def enough() -> bool:
            found.extend(self.node.receive_forwarded(dict(self.pollers[self.node].poll(10))))
            return until(found)

        self.until(enough)
        return found

    def connect(self) -> None:
        """Connect the node to the leader."""
        self.node.expect_leader(LEADER, clock.now_ms())
        self.forwarded(lambda _: self.node.can_forward(LEADER))

    def until(self, condition: Callable[[], bool]) -> None:
        """Fail if the condition does not hold in time."""
        deadline_ms = clock.now_ms() + DEADLINE_MS
        while not condition():
            assert clock.now_ms() < deadline_ms

    def close(self) -> None:
        """Close everything."""
        for sockets in self.pollers:
            sockets.close()
        for dealer in self._dealers:
            dealer.close(0)
        self.context.destroy(linger=0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A bench in a directory with a short path."""
    directory = Path(tempfile.mkdtemp(prefix="zc"))
    found = Bench(directory)
    yield found
    found.close()
    shutil.rmtree(directory)


def test_requests_arrive_in_order_with_their_sender(bench: Bench) -> None:
    """Each frame is one batch; the identity that replies need comes with it."""
    first, second = bench.dealer(), bench.dealer()
    first.send(wire.encode_requests(CLUSTER, [request(1), request(2)]))
    (batch,) = bench.receive(bench.node)
    assert [r.request_id for r in batch.requests] == [1, 2]
    second.send(wire.encode_requests(ANY_CLUSTER, [request(3)]))
    (other,) = bench.receive(bench.node)
    assert other.client != batch.client
    bench.node.reply(other.client, reply(3))
    bench.node.reply(batch.client, reply(1))
    bench.node.reply(batch.client, reply(2))
    bench.node.flush_replies()
    cluster, replies = wire.decode_replies(first.recv())
    assert (cluster, [r.request_id for r in replies]) == (CLUSTER, [1, 2])
    assert wire.decode_replies(second.recv())[1] == [reply(3)]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([b"two", b"parts"], "frames"),
        ([b""], "decode"),
        ([b"\x91" * 500 + b"\xc0"], "decode"),
        ([msgpack.packb([1, 32, CLUSTER, [[1, 2]]])], "decode"),
        ([msgpack.packb([2, 32, CLUSTER, []])], "version"),
        ([msgpack.packb([1, 33, CLUSTER, []])], "kind"),
        ([wire.encode_requests(b"foreign8", [])], "cluster"),
    ],
)
def test_what_is_no_request_of_ours_is_counted(
    bench: Bench, parts: list[bytes], reason: str
) -> None:
    """Garbage is dropped with its reason, and what comes after it is served."""
    dealer = bench.dealer()
    dealer.send_multipart(parts)
    dealer.send(wire.encode_requests(CLUSTER, [request(1)]))
    (batch,) = bench.receive(bench.node)
    assert len(batch.requests) == 1
    assert bench.rejects.counters() == {f"client.dropped.{reason}": 1}


def test_a_turn_takes_a_bounded_number_of_requests(bench: Bench) -> None:
    """What is beyond the bound waits in the socket for the next turn."""
    dealer = bench.dealer()
    frame = wire.encode_requests(CLUSTER, [request(n) for n in range(MAX_REQUESTS // 4)])
    for _ in range(6):
        dealer.send(frame)
    poller = bench.pollers[bench.node]
    taken: list[int] = []

    def all_taken() -> bool:
        batches = bench.node.receive(dict(poller.poll(10)))
        taken.append(len(batches))
        return sum(taken) == 6

    bench.until(all_taken)
    assert max(taken) <= 4


def test_a_reply_to_a_client_that_is_gone_is_a_counted_loss(bench: Bench) -> None:
    """Nothing is raised, nothing is kept."""
    dealer = bench.dealer()
    dealer.send(wire.encode_requests(CLUSTER, [request(1)]))
    (batch,) = bench.receive(bench.node)
    dealer.close(0)

    def lost() -> bool:
        bench.node.reply(batch.client, reply(1))
        bench.node.flush_replies()
        return bench.node.replies_dropped > 0

    bench.until(lost)


def test_replies_that_are_too_much_for_one_frame_come_in_several(bench: Bench) -> None:
    """A frame stays within a bound, except for one reply that passes it alone."""
    dealer = bench.dealer()
    dealer.send(wire.encode_requests(CLUSTER, [request(1)]))
    (batch,) = bench.receive(bench.node)
    sizes = [10, REPLY_FRAME_BYTES // 2, REPLY_FRAME_BYTES // 2, 2 * REPLY_FRAME_BYTES, 10, 10]
    for number, size in enumerate(sizes):
        bench.node.reply(batch.client, reply(number, bytes(size)))
    bench.node.flush_replies()
    found: list[list[int]] = []
    while sum(map(len, found)) < len(sizes):
        frame = dealer.recv()
        replies = wire.decode_replies(frame)[1]
        assert len(replies) == 1 or len(frame) <= REPLY_FRAME_BYTES
        found.append([r.request_id for r in replies])
    assert found == [[0, 1], [2], [3], [4, 5]]


def test_without_a_connection_nothing_is_forwarded(bench: Bench) -> None:
    """False is a promise: nothing was sent, so the request may go elsewhere."""
    assert not bench.node.forward(STRANGER, [request(1)])
    assert not bench.node.forward(LEADER, [request(1)])
    leader = bench.leader()
    bench.connect()
    assert bench.node.forward(LEADER, [request(2)])
    (batch,) = bench.receive(leader)
    assert batch.requests == [request(2)]


def test_the_leader_answers_through_the_node(bench: Bench) -> None:
    """Requests go to the leader's client socket, its replies come back with the leader's id."""
    leader = bench.leader()
    bench.connect()
    assert bench.node.forward(LEADER, [request(1), request(2)])
    (batch,) = bench.receive(leader)
    leader.reply(batch.client, reply(1))
    leader.reply(batch.client, reply(2))
    leader.flush_replies()
    (answer,) = bench.forwarded(bool)
    assert answer == ForwardBatch(LEADER, [reply(1), reply(2)], lost=False)


def test_many_requests_are_forwarded_in_frames_that_the_leader_takes(bench: Bench) -> None:
    """A frame beyond the leader's limit would cut the connection: they are split."""
    leader = bench.leader()
    bench.connect()
    requests = [request(number, bytes(300_000)) for number in range(8)]
    assert bench.node.forward(LEADER, requests)
    found: list[Request] = []

    def all_there() -> bool:
        for batch in leader.receive(dict(bench.pollers[leader].poll(10))):
            found.extend(batch.requests)
        return len(found) == len(requests)

    bench.until(all_there)
    assert found == requests
    assert not bench.node.forward(LEADER, [request(9, bytes(wire.MAX_CLIENT_FRAME_BYTES))])
    assert bench.node.can_forward(LEADER)


def test_answers_that_arrived_come_before_the_loss(bench: Bench) -> None:
    """When the leader goes, what it had answered counts; of the rest nobody knows."""
    leader = bench.leader()
    bench.connect()
    assert bench.node.forward(LEADER, [request(1), request(2)])
    (batch,) = bench.receive(leader)
    leader.reply(batch.client, reply(1))
    leader.flush_replies()
    leader.close(1000)
    found = bench.forwarded(lambda batches: any(batch.lost for batch in batches))
    assert [r for batch in found for r in batch.replies] == [reply(1)]
    assert [batch.lost for batch in found][-1] is True
    assert not bench.node.can_forward(LEADER)


def test_an_answer_that_nobody_read_survives_the_end_of_its_connection(bench: Bench) -> None:
    """A write that was acknowledged right before the leader died is not reported unknown."""
    leader = bench.leader()
    bench.connect()
    assert bench.node.forward(LEADER, [request(1)])
    (batch,) = bench.receive(leader)
    leader.reply(batch.client, reply(1))
    leader.flush_replies()
    poller = bench.pollers[bench.node]
    bench.until(lambda: bool(poller.poll(10)))
    leader.close(1000)

    def ended() -> bool:
        sockets = [s for s, _ in poller.poll(10) if isinstance(s, zmq.Socket)]
        return any(s.getsockopt(zmq.TYPE) == zmq.PAIR for s in sockets)

    bench.until(ended)
    found = bench.forwarded(lambda batches: any(batch.lost for batch in batches))
    assert [r for batch in found for r in batch.replies] == [reply(1)]


def test_nothing_is_forwarded_through_a_cut(bench: Bench) -> None:
    """Cut on the way out: False, and nothing was sent. Healed, the same link serves."""
    leader = bench.leader()
    bench.connect()
    fault = bench.links.add(Cut("f1", to=[LEADER], from_=[]))
    assert not bench.node.forward(LEADER, [request(1)])
    assert fault.hits == 1
    bench.links.heal()
    assert bench.node.forward(LEADER, [request(2)])
    (batch,) = bench.receive(leader)
    assert batch.requests == [request(2)]


def test_answers_do_not_come_back_through_a_cut(bench: Bench) -> None:
    """Cut on the way back: the answer vanishes, the link is not lost, the next answer arrives."""
    leader = bench.leader()
    bench.connect()
    assert bench.node.forward(LEADER, [request(1)])
    (batch,) = bench.receive(leader)
    fault = bench.links.add(Cut("f1", to=[], from_=[LEADER]))
    leader.reply(batch.client, reply(1))
    leader.flush_replies()
    assert bench.forwarded(lambda _: fault.hits == 1) == []
    bench.links.heal()
    leader.reply(batch.client, reply(2))
    leader.flush_replies()
    assert bench.forwarded(bool) == [ForwardBatch(LEADER, [reply(2)], lost=False)]


def test_a_lost_leader_is_reached_again_when_it_is_back(bench: Bench) -> None:
    """The link is made anew, and nothing sent on the old one comes out of the new one."""
    leader = bench.leader()
    bench.connect()
    assert bench.node.forward(LEADER, [request(1)])
    leader.close()
    bench.forwarded(lambda batches: any(batch.lost for batch in batches))
    again = bench.leader()

    def connected() -> bool:
        bench.node.expect_leader(LEADER, clock.now_ms())
        bench.node.receive_forwarded(dict(bench.pollers[bench.node].poll(5)))
        return bench.node.can_forward(LEADER)

    bench.until(connected)
    assert bench.node.forward(LEADER, [request(2)])
    (batch,) = bench.receive(again)
    assert batch.requests == [request(2)]


def test_links_to_members_that_do_not_lead_are_given_up(bench: Bench) -> None:
    """A link that never got a connection is closed when another member is expected to lead."""
    bench.node.expect_leader(LEADER, clock.now_ms())
    assert len(bench.pollers[bench.node].sockets) == 3
    bench.node.expect_leader(0, clock.now_ms())
    assert len(bench.pollers[bench.node].sockets) == 1


def test_drops_are_reported_once_a_second_and_reason() -> None:
    """Whoever sends garbage does not fill the log; the counts are complete."""
    reports: list[dict[str, object]] = []
    rejects = Rejects(lambda _event, **fields: reports.append(fields))
    for now_ms in range(0, 3 * REPORT_EVERY_MS, 10):
        rejects.count("client", "decode")
        rejects.report(now_ms)
    rejects.count("ctl", "decode")
    rejects.report(3 * REPORT_EVERY_MS)
    client = [r for r in reports if r["socket"] == "client"]
    assert [r["count"] for r in client] == [1, 100, 100, 99]
    assert [r["count"] for r in reports if r["socket"] == "ctl"] == [1]
    assert rejects.counters() == {"client.dropped.decode": 300, "ctl.dropped.decode": 1}
