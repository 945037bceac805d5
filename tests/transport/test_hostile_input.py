"""Strangers at the inbox and on a peer's endpoint: counters rise, and the node goes on."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import zmq

from zraft import clock
from zraft.wire_entry import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from tests.transport.conftest import Net

ZMTP_1_HELLO = b"\x01\x00" + b"\x06\x00hello"  # an empty identity, then a frame; no handshake
SEED = 20231123


def test_frames_that_are_not_for_this_member_are_counted_by_reason(
    net: Net, encode: Callable[..., bytes]
) -> None:
    """Another cluster, another receiver, an unknown sender, another lane: each has a counter."""
    first, second = net.pair()
    dealer = net.dealer(1)
    dealer.send(encode(cluster=b"another8"))
    dealer.send(encode(lane=1))
    dealer.send(bytes(encode()).replace(b"cluster8\x02\x01", b"cluster8\x02\x03"))
    dealer.send(bytes(encode()).replace(b"cluster8\x02\x01", b"cluster8\x63\x01"))
    expected = {"dropped_cluster": 1, "dropped_lane": 1, "dropped_dst": 1, "dropped_src": 1}
    net.run(lambda: first.drops == expected)
    second.vote(1, 1)
    net.run(lambda: first.numbers(2) == [1])


def test_malformed_messages_are_counted_and_good_ones_still_arrive(
    net: Net, encode: Callable[..., bytes]
) -> None:
    """Five parts, none, noise, deep nesting, an unknown kind: dropped, on one connection."""
    first, second = net.pair()
    dealer = net.dealer(1)
    dealer.send_multipart([b"1", b"2", b"3", b"4", b"5"])
    dealer.send(b"")
    dealer.send(b"\x91" * 500 + b"\xc0")
    dealer.send(b"\xdd\x00\x00\xff\xff" * 500)
    dealer.send(random.Random(SEED).randbytes(1000))
    dealer.send(encode().replace(b"\x01\x01\x00\xc4\x08cluster8", b"\x01\x63\x00\xc4\x08cluster8"))
    dealer.send(encode()[:-1])
    net.run(lambda: sum(first.drops.values()) == 7)
    assert first.drops == {
        "dropped_parts": 1,
        "dropped_garbage": 5,
        "dropped_unknown_kind": 1,
    }
    dealer.send(encode())
    second.vote(1, 1)
    net.run(lambda: len(first.inbox) == 2)


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_raw_bytes_on_the_endpoint_change_nothing_but_counters(net: Net, transport: str) -> None:
    """Noise, HTTP, half a greeting, and ZMTP/1.0, which libzmq takes for a peer."""
    if transport == "tcp":
        net.use_tcp()
    first, second = net.pair()
    noise = random.Random(SEED)
    for data in (
        noise.randbytes(4000),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03",
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + bytes(48) + noise.randbytes(400),
    ):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            net.raw(1).sendall(data)
    net.raw(1).sendall(ZMTP_1_HELLO)
    net.run(lambda: first.counters.get("dropped_garbage", 0) >= 1)
    second.vote(1, 1)
    first.vote(2, 2)
    net.run(lambda: first.numbers(2) == [1] and second.numbers(1) == [2])
    assert first.downs == []


def test_garbage_is_reported_once_a_second_with_its_count(net: Net) -> None:
    """A flood makes one line a second and reason, not one a frame."""
    first = net.node(1)
    dealer = net.dealer(1)
    dealer.send(b"noise")
    net.run(lambda: len(first.told("peer.garbage")) == 1)
    for _ in range(500):
        dealer.send(b"noise")
    net.run(lambda: first.counters["dropped_garbage"] == 501)
    reported_ms = net.run(lambda: len(first.told("peer.garbage")) == 2)
    assert reported_ms > 100
    counts = [fields["count"] for fields in first.told("peer.garbage")]
    assert counts == [1, 500]


def test_a_flood_of_garbage_is_bounded_and_stops_no_timer(net: Net) -> None:
    """Bad frames use up the limit of a batch, and a batch of nothing else counts as empty."""
    first = net.node(1)
    first.busy = True
    dealer = net.dealer(1)
    for _ in range(300):
        dealer.send(b"noise")
    poller = zmq.Poller()
    poller.register(first.sockets.inbox, zmq.POLLIN)
    while first.sockets.counters()["dropped_garbage"] < 300:
        before = first.sockets.counters()["dropped_garbage"]
        assert poller.poll(10_000)
        assert first.sockets.receive(64) == []
        assert first.sockets.inbox_empty
        assert first.sockets.counters()["dropped_garbage"] - before <= 64


def test_an_oversize_frame_costs_the_sender_its_connection_and_nobody_else(
    net: Net, encode: Callable[..., bytes]
) -> None:
    """A frame above 4 MiB never reaches the node; other peers do not notice."""
    first, second = net.pair()
    dealer = net.dealer(1)
    dealer.send(bytes(MAX_FRAME_BYTES + 1))
    second.vote(1, 1)
    net.run(lambda: first.numbers(2) == [1])
    dealer.send(encode())
    net.run(lambda: len(first.inbox) == 2)
    assert first.drops == {}


def test_a_publisher_on_a_peers_endpoint_is_outlived(net: Net) -> None:
    """libzmq gives up on a wrong socket type for good; the lane is made anew and recovers."""
    squatter = net.stranger(zmq.PUB)
    squatter.bind(net.endpoints[2])
    first = net.node(1)
    net.run(lambda: first.made_anew() == ["no_handshake"])
    assert not first.sockets.connected(2)
    squatter.close()
    second = net.node(2)

    net.turns.append(lambda: first.vote(2, 1))
    assert net.run(lambda: bool(second.inbox)) < 10_000
    assert first.downs == []


def test_a_web_server_on_a_peers_endpoint_is_outlived(net: Net) -> None:
    """It answers and closes each connection; the right node is reached after it is gone."""
    listener = net.listener(2)
    first = net.node(1)
    answered = 0

    def answer() -> None:
        nonlocal answered
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, OSError):
            return
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        answered += 1

    net.turns.append(answer)
    net.run(lambda: answered >= 5)
    events_before = len(first.events)
    net.turns.clear()
    listener.close()
    second = net.node(2)
    net.run(lambda: first.sockets.connected(2))
    first.vote(2, 1)
    net.run(lambda: bool(second.inbox))
    assert first.downs == []
    assert events_before < 20


def test_a_router_that_never_hears_on_a_peers_endpoint_is_outlived(net: Net) -> None:
    """A ROUTER that shakes hands and hears nothing of ours is suspected after a second."""
    squatter = net.stranger(zmq.ROUTER)
    squatter.bind(net.endpoints[2])
    first = net.node(1)
    net.run(lambda: first.sockets.connected(2))
    first.vote(2, 1)
    took_ms = net.run(lambda: "unheard" in first.made_anew())
    assert took_ms >= 900
    squatter.close()
    second = net.node(2)
    net.turns.append(lambda: first.vote(2, 2))
    net.run(lambda: 2 in second.numbers(1))


def test_a_peer_that_stays_away_costs_nothing(net: Net) -> None:
    """Between two tries the deadline is a second or more away, and no event wakes the loop."""
    first = net.node(1)
    net.run(lambda: first.made_anew() == ["no_handshake"])
    woken = 0
    poller = zmq.Poller()
    for pollable, events in first.sockets.pollables():
        poller.register(pollable, events)
    now_ms = clock.now_ms()
    deadline_ms = first.sockets.next_deadline_ms()
    assert deadline_ms is not None
    while clock.now_ms() < min(deadline_ms, now_ms + 500):
        woken += len(poller.poll(min(deadline_ms, now_ms + 500) - clock.now_ms()))
    assert deadline_ms - now_ms > 500
    assert woken == 0
