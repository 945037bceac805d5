"""Delivery between real sockets: both ways, after restarts, through faults, and nothing stale."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zmq

from zraft import clock
from zraft.core.messages import AppendEntries, Message, RequestVote
from zraft.core.model import Command, Entries, MemberId, Random
from zraft.errors import EXIT_LOCKED, ForeignDataError, StorageError, SupervisorError
from zraft.transport.links import Delivery, Fault
from zraft.transport.reports import Frame
from zraft.wire_entry import MAX_FRAME_BYTES, EntryCodec

if TYPE_CHECKING:
    from tests.transport.conftest import Net, Node


def test_messages_arrive_both_ways_in_order(net: Net) -> None:
    """What one node sends the other receives, unchanged, and each counts it."""
    first, second = net.pair()
    for number in range(100):
        first.vote(2, number)
        second.vote(1, 1000 + number)
    net.run(lambda: len(first.inbox) == len(second.inbox) == 100)
    assert second.numbers(1) == list(range(100))
    assert first.numbers(2) == list(range(1000, 1100))
    assert (first.counters["sent"], first.counters["received"], first.drops) == (100, 100, {})
    assert first.told("peer.connected") == [{"peer": "2", "endpoint": net.endpoints[2]}]


def test_tcp_works_like_ipc(net: Net) -> None:
    """On the loopback, ports below the ephemeral range: the same delivery."""
    net.use_tcp()
    first, second = net.pair()
    first.vote(2, 7)
    net.run(lambda: second.numbers(1) == [7])


def test_an_append_of_many_entries_arrives(net: Net) -> None:
    """A batch of entries goes through as it is, payload by payload."""
    first, second = net.pair()
    payloads = [
        EntryCodec().encode(Command(bytes(1000)), term=3, log_time_ms=i) for i in range(200)
    ]
    message = AppendEntries(1, 2, 3, 10, 3, 9, 5, Entries(11, [3] * 200, payloads))
    first.sockets.send([message])
    net.run(lambda: second.inbox == [message])


def test_a_message_too_large_for_a_frame_is_dropped_and_the_connection_lives(net: Net) -> None:
    """A frame above the limit would cut the connection: it does not leave."""
    first, second = net.pair()
    payload = EntryCodec().encode(Command(bytes(MAX_FRAME_BYTES)), term=3, log_time_ms=0)
    first.sockets.send([AppendEntries(1, 2, 3, 0, 0, 0, 0, Entries(1, [3], [payload]))])
    first.vote(2, 1)
    net.run(lambda: second.numbers(1) == [1])
    assert first.counters["sent_too_large"] == 1
    assert not first.told("peer.disconnected")


def test_nothing_sent_to_a_dead_peer_reaches_its_next_life(net: Net) -> None:
    """While a peer is down each send fails at once; after its restart only new messages come."""
    first, second = net.pair()
    net.kill(second)
    net.run(lambda: bool(first.downs))
    for number in range(50):
        first.vote(2, number)
    assert first.counters["sent_dropped"] == 50
    again = net.node(2, incarnation=2)
    net.run(lambda: first.sockets.connected(2))
    first.vote(2, 99)
    net.run(lambda: bool(again.inbox))
    assert again.numbers(1) == [99]


def test_a_restarted_peer_is_heard_within_a_second_by_a_busy_node(net: Net) -> None:
    """Restarts of a peer while the receiver's loop stands still black-hole nothing."""
    first, second = net.pair()
    for incarnation in range(2, 6):
        second = restart_while_busy(net, first, second, incarnation)
        second.vote(1, incarnation)
        first.busy = False
        assert net.run(lambda: bool(first.inbox)) < 1000
        assert first.numbers(2) == [incarnation]
        first.inbox.clear()
    assert first.sockets.incarnation(2) == 5


def restart_while_busy(net: Net, first: Node, second: Node, incarnation: int) -> Node:
    """Kill `second` and start its next life while the loop of `first` stands still."""
    first.busy = True
    net.kill(second)
    again = net.node(2, incarnation)
    net.run(lambda: again.sockets.connected(1))
    return again


def test_frames_of_older_lives_and_sockets_never_come_out(
    net: Net, encode: Callable[..., bytes]
) -> None:
    """Only the newest (incarnation, epoch) of a peer is heard; the rest is counted."""
    first = net.node(1)
    dealer = net.dealer(1)
    lives = [(2, 1, 1), (1, 9, 2), (2, 2, 3), (2, 1, 4), (3, 1, 5), (2, 2, 6), (3, 1, 7)]
    for incarnation, epoch, number in lives:
        vote = RequestVote(2, 1, 1, False, 1, number, min(number, 1))
        dealer.send(encode(vote, incarnation=incarnation, epoch=epoch))
    net.run(lambda: 7 in first.numbers(2))
    assert first.numbers(2) == [1, 3, 5, 7]
    assert first.counters["dropped_stale"] == 3


def test_duplicates_and_reordered_frames_do_come_out(
    net: Net, encode: Callable[..., bytes]
) -> None:
    """The transport does not repair what Raft has to stand."""
    first = net.node(1)
    dealer = net.dealer(1)
    for seq in (1, 3, 2, 2):
        vote = RequestVote(2, 1, 1, False, 1, seq, min(seq, 1))
        dealer.send(encode(vote, seq=(1 << 32) + seq))
    net.run(lambda: len(first.inbox) == 4)
    assert first.numbers(2) == [1, 3, 2, 2]


def test_receive_takes_at_most_the_limit_and_tells_what_is_left(net: Net) -> None:
    """A batch is bounded; `inbox_empty` is False while accepted messages wait behind it."""
    first, second = net.pair()
    second.busy = True
    for number in range(20):
        first.vote(2, number)
    poller = zmq.Poller()
    poller.register(second.sockets.inbox, zmq.POLLIN)
    found: list[Message] = []
    while len(found) < 20:
        assert poller.poll(10_000)
        batch = second.sockets.receive(8)
        assert len(batch) <= 8
        assert second.sockets.inbox_empty or len(batch) == 8
        found += batch
    assert second.sockets.receive(8) == []
    assert second.sockets.inbox_empty


def test_an_isolated_node_hears_nobody_and_nobody_hears_it(net: Net) -> None:
    """The fault is set on one node only; it drops at both of that node's ends until healed."""
    first, second = net.pair()
    fault = first.links.isolate([2])
    first.vote(2, 1)
    second.vote(1, 1)
    net.run(lambda: first.counters.get("dropped_fault") == 1)
    assert first.counters["sent_fault"] == 1
    assert fault.hits == 2
    assert (first.inbox, second.inbox) == ([], [])
    first.links.heal()
    first.vote(2, 2)
    second.vote(1, 2)
    net.run(lambda: bool(first.inbox and second.inbox))
    assert (first.numbers(2), second.numbers(1)) == ([2], [2])


def test_a_fault_with_an_end_is_lifted_and_reported(net: Net) -> None:
    """The node's timer ends the fault; the deadline is among those the loop waits for."""
    first, second = net.pair()
    first.links.isolate([2], until_ms=clock.now_ms() + 50)
    deadline_ms = first.sockets.next_deadline_ms()
    assert deadline_ms is not None
    assert deadline_ms <= clock.now_ms() + 50
    net.run(lambda: not first.links.active)
    assert [fields["rule"] for fields in first.told("fault.cleared")] == ["isolate 2"]
    first.vote(2, 1)
    net.run(lambda: second.numbers(1) == [1])


class Echoed(Fault):
    """Every frame passes twice: at once and 30 ms later."""

    kind = "echoed"

    def outgoing(
        self, dst: MemberId, lane: int, kind: int, delivery: Delivery, random: Random
    ) -> list[Delivery]:
        return [delivery, Delivery(delivery.deliver_at_ms + 30, delivery.frame)]

    def incoming(
        self, src: MemberId, lane: int, kind: int, delivery: Delivery, random: Random
    ) -> list[Delivery]:
        return [delivery, Delivery(delivery.deliver_at_ms + 30, delivery.frame)]


def test_a_rule_may_hold_frames_back_and_double_them(net: Net) -> None:
    """Two copies leave, two of each arrive: four messages, the last of them later."""
    first, second = net.pair()
    first.links.add(Echoed("f1", ()))
    second.links.add(Echoed("f1", ()))
    first.vote(2, 5)
    took_ms = net.run(lambda: len(second.inbox) == 4)
    assert second.numbers(1) == [5, 5, 5, 5]
    assert took_ms >= 30


def test_the_trace_hook_sees_each_frame_once(net: Net) -> None:
    """Sent, received and dropped frames are traced with kind, peer, epoch and seq."""
    first, second = net.pair()
    seen: list[tuple[str, Frame]] = []
    for node in (first, second):
        node.sockets.trace = lambda direction, _message, frame: seen.append((direction, frame))
    first.vote(2, 1)
    net.run(lambda: bool(second.inbox))
    second.links.isolate([1])
    second.vote(1, 1)
    assert [direction for direction, _ in seen] == ["sent", "received", "dropped"]
    sent, received, dropped = (frame for _, frame in seen)
    assert (sent.kind, sent.peer, sent.epoch, sent.seq) == ("RequestVote", 2, 1, (1 << 32) + 1)
    assert received == sent._replace(peer=1)
    assert dropped.reason == "sent_fault"


def test_what_nobody_answers_is_acknowledged_by_the_transport(net: Net) -> None:
    """A node that only receives says what it heard, and its sender's socket is left alone."""
    first, second = net.pair()
    lane = first.sockets._lanes[2]
    first.vote(2, 1)
    net.run(lambda: lane.renewal_deadline_ms() is None)
    assert second.counters == {"received": 1, "heard_sent": 1}
    assert first.counters == {"sent": 1}
    assert first.made_anew() == []


def test_a_data_directory_that_was_put_back_ends_its_process(
    net: Net, encode: Callable[..., bytes]
) -> None:
    """A peer that heard incarnation 5 tells incarnation 3, and that one raises exit code 65."""
    first = net.node(1)
    net.dealer(1).send(encode(incarnation=5))
    net.run(lambda: first.sockets.incarnation(2) == 5)
    second = net.node(2, incarnation=3)
    net.run(lambda: first.sockets.connected(2) and second.sockets.connected(1))
    second.busy = True
    second.vote(1, 1)
    net.run(lambda: bool(first.counters.get("rejected_sent")))
    poller = zmq.Poller()
    poller.register(second.sockets.inbox, zmq.POLLIN)
    assert poller.poll(10_000)
    with pytest.raises(ForeignDataError, match="older state") as caught:
        second.sockets.receive(64)
    assert caught.value.exit_code == 65
    assert "incarnation 5" in caught.value.why
    assert first.sockets.rejections.rolled_back() == [(2, 3, 5)]
    told = {"peer": "2", "incarnation": 3, "seen": 5}
    assert first.told("peer.rolled_back") == [told]
    assert first.inbox == [RequestVote(2, 1, 1, False, 1, 0, 0)]


def test_late_frames_of_its_own_past_do_not_end_a_process(
    net: Net, encode: Callable[..., bytes]
) -> None:
    """Frames from before a restart cause the same answer; the present life knows better."""
    first = net.node(1)
    second = net.node(2, incarnation=5)
    net.run(lambda: first.sockets.connected(2) and second.sockets.connected(1))
    second.vote(1, 1)
    net.run(lambda: bool(first.inbox))
    net.dealer(1).send(encode(incarnation=4))
    net.run(lambda: bool(first.counters.get("rejected_sent")))
    first.vote(2, 2)
    net.run(lambda: second.numbers(1) == [2])


def test_a_socket_file_is_closed_to_other_users(net: Net) -> None:
    """The ipc path is made with mode 0700, whatever the umask of the process is."""
    net.node(1)
    path = Path(net.endpoints[1].removeprefix("ipc://"))
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_port_in_use_names_its_holder_after_a_second(net: Net) -> None:
    """Exit code 75, with the process that listens there."""
    net.use_tcp()
    net.node(1)
    start_ms = clock.now_ms()
    with pytest.raises(SupervisorError, match="in use") as caught:
        net.node(1)
    assert clock.now_ms() - start_ms >= 1000
    assert caught.value.exit_code == EXIT_LOCKED
    assert "pid " in caught.value.why


def test_an_endpoint_that_can_not_be_bound_is_a_storage_error(net: Net) -> None:
    """A missing directory is named, and nothing is left open."""
    net.endpoints[1] = f"ipc://{net.directory}/missing/1"
    with pytest.raises(StorageError, match="missing"):
        net.node(1)


def test_fifty_new_sockets_leave_no_descriptor(
    net: Net, open_descriptors: Callable[[], int]
) -> None:
    """Making a lane anew releases the old socket with its monitor; messages still arrive."""
    first, second = net.pair()
    before = open_descriptors()
    lane = first.sockets._lanes[2]
    for epoch in itertools.count(2):
        lane.make_anew(clock.now_ms())
        assert lane.epoch == epoch
        if epoch == 51:
            break
    net.run(lambda: first.sockets.connected(2))
    first.vote(2, 1)
    net.run(lambda: second.numbers(1) == [1])
    net.run(lambda: open_descriptors() <= before)


def test_sockets_are_polled_as_sockets_and_not_by_their_descriptors(net: Net) -> None:
    """A ZeroMQ descriptor announces once, and a read may skip what announces the next news: a dead
    leader was then noticed by its timeout only (median fail-over 132 ms instead of 18)."""
    first, _ = net.pair()
    polled = [pollable for pollable, _ in first.sockets.pollables()]
    assert len(polled) >= 2
    assert [pollable for pollable in polled if isinstance(pollable, int)] == []
