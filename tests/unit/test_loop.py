"""The loop with fakes: the order of a turn, exact waiting, the stall guard, stopping."""

from __future__ import annotations

import signal
from typing import cast

import pytest

from tests.unit.loop_fakes import (
    BULK,
    CHUNK,
    CLIENT,
    INBOX,
    MESSAGE,
    REPLY,
    REQUEST,
    SIGNALS_FD,
    Control,
    FakeClock,
    World,
    make_loop,
)
from zraft.node import loop as loop_module
from zraft.node.clients import ForwardBatch, RequestBatch
from zraft.node.loop import (
    BULK_BATCH,
    IDLE_WINDOW_MS,
    LINES_SLACK_MS,
    MAX_WAIT_MS,
    PEER_BATCH,
    PEER_BATCHES,
    STOP_QUIET_MS,
)
from zraft.transport.base import PeerDown

STEPS_OF_A_STOP = ["transfer", "prepare stop", "finish stop"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world at rest."""
    clock = FakeClock()
    monkeypatch.setattr(loop_module, "clock", clock)
    return World(clock)


def test_a_turn_has_one_order(world: World) -> None:
    """Operators, peers, clients, timers, flush, replies, housekeeping, diagnostics."""
    loop = make_loop(world)
    world.ready = {SIGNALS_FD: 1, INBOX: 1}
    world.taken = {signal.SIGHUP, signal.SIGUSR1}
    world.inbox = [MESSAGE]
    world.downs_found = [PeerDown(3, 7)]
    world.batches = [RequestBatch(b"c", [REQUEST, REQUEST])]
    world.forwarded = [ForwardBatch(2, [REPLY], lost=True)]
    assert loop.turn() is None
    assert world.calls == [
        "signals",
        "control",
        "receive",
        "message",
        "down 3 7",
        "requests 2",
        "replies 2 1",
        "lost 2",
        "peers timer",
        "bulk timer",
        "timer True",
        "flush",
        "flush replies",
        "expect 2",
        "prepare 1000",
        "report",
        "reopen",
        "lines",
    ]


def test_it_waits_exactly_until_the_next_deadline(world: World) -> None:
    """Rounded up to whole milliseconds, never negative, never longer than a second."""
    loop = make_loop(world)
    now_ms = world.clock.now_ms()
    world.deadline_ms = now_ms + 37
    world.clock.advance(0.4)
    loop.turn()
    assert world.timeouts.pop() == 37  # not 36: poll would return before the deadline and spin
    world.deadline_ms = world.clock.now_ms() - 5
    loop.turn()
    assert world.timeouts.pop() == 0
    world.deadline_ms = 1 << 62
    loop.turn()
    assert world.timeouts.pop() == MAX_WAIT_MS


def test_the_earliest_deadline_counts(world: World) -> None:
    """The transport's deadlines count as the server's do; diagnostics are given some slack."""
    loop = make_loop(world)
    world.deadline_ms = world.clock.now_ms() + 500
    world.peers_deadline_ms = world.clock.now_ms() + 20
    loop.turn()
    assert world.timeouts.pop() == 20
    world.peers_deadline_ms = None
    world.deadline_ms = world.clock.now_ms() + 500
    world.lines_deadline_ms = world.clock.now_ms() + 10
    loop.turn()
    assert world.timeouts.pop() == 10 + LINES_SLACK_MS


def test_more_to_apply_means_poll_without_waiting(world: World) -> None:
    """While entries wait to be applied the loop only looks whether something came in."""
    loop = make_loop(world)
    world.more = True
    loop.turn()
    loop.turn()
    assert world.timeouts[-1] == 0
    assert "prepare 1000" not in world.calls
    world.more = False
    loop.turn()
    world.has_lost = True
    loop.turn()
    assert world.timeouts[-1] == 0


def test_the_clock_is_read_again_after_requests_were_taken(world: World) -> None:
    """A request must not be judged by a time from before it was there."""
    loop = make_loop(world)
    world.batches = [RequestBatch(b"c", [REQUEST])]
    world.ready = {CLIENT: 1}
    world.taking_takes_ms = 30
    woke_ms = world.clock.now_ms()
    loop.turn()
    assert world.times["requests 1"] == woke_ms + 30
    assert world.times["timer True"] == woke_ms + 30


def test_the_inbox_is_drained_in_bounded_batches(world: World) -> None:
    """A flood is taken in pieces, and the timers are told that more is waiting."""
    loop = make_loop(world)
    world.ready = {INBOX: 1}
    world.inbox = [MESSAGE] * (PEER_BATCH * PEER_BATCHES + 5)
    loop.turn()
    assert world.calls.count("message") == PEER_BATCH * PEER_BATCHES
    assert "timer False" in world.calls
    loop.turn()
    assert world.inbox == []
    assert "timer True" in world.calls


def test_overshoot_of_the_poll_is_a_stall(world: World) -> None:
    """A process that was paused in poll wakes late; the server hears it before anything else."""
    loop = make_loop(world)
    world.deadline_ms = world.clock.now_ms() + 100
    world.poll_takes_ms = 100 + 26
    loop.turn()
    assert world.stalls == [26]
    assert world.calls[0] == "stall"
    assert world.events == [("loop.stalled", {"late_ms": 26, "turn_ms": 0})]


def test_waking_in_time_is_no_stall(world: World) -> None:
    """Up to half a heartbeat (or 20 ms) late is in time, and an early message is early."""
    loop = make_loop(world)
    world.deadline_ms = world.clock.now_ms() + 100
    world.poll_takes_ms = 100 + 25
    loop.turn()
    world.deadline_ms = world.clock.now_ms() + 100
    world.poll_takes_ms = 3
    world.ready = {INBOX: 1}
    loop.turn()
    assert world.stalls == []


def test_a_long_turn_is_a_stall_of_the_next(world: World) -> None:
    """Late is the poll's overshoot plus the length of the turn before."""
    loop = make_loop(world)
    world.flush_takes_ms = 300
    world.deadline_ms = world.clock.now_ms()
    loop.turn()
    assert world.stalls == []
    world.flush_takes_ms = 0
    loop.turn()
    assert world.stalls == [300]
    assert (loop.stalls, loop.worst_late_ms) == (1, 300)


def test_long_turns_and_silences_of_the_leader_are_counted_by_their_length(world: World) -> None:
    """The counters only rise, so two looks tell what was in between."""
    loop = make_loop(world)
    for length_ms in (5, 15, 60, 200):
        world.flush_takes_ms = length_ms
        world.deadline_ms = world.clock.now_ms()
        loop.turn()
    world.flush_takes_ms = 0
    for contact_ms in (1000, 1040, 1040, 1170, None, 9000):
        world.contact_ms = contact_ms
        loop.turn()
    counters = loop.counters()
    limits = (10, 20, 50, 75, 125)
    assert [counters[f"loop.turns_over_{limit}ms"] for limit in limits] == [3, 2, 2, 1, 1]
    assert [counters[f"leader.silences_over_{limit}ms"] for limit in limits] == [2, 2, 1, 1, 1]


def test_stalls_are_reported_once_a_second(world: World) -> None:
    """Every stall counts for the timers; the log gets one line a second."""
    loop = make_loop(world)
    world.flush_takes_ms = 100
    for _ in range(5):
        world.deadline_ms = world.clock.now_ms()
        loop.turn()
    assert world.stalls == [100] * 4
    assert len(world.events) == 1


def test_a_blocked_loop_blocks_for_as_long_as_it_was_asked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verb `block` is a stall on purpose: nothing else runs meanwhile, then all goes on."""
    blocked: list[int] = []

    class FakePoll:
        def poll(self, ms: int) -> None:
            blocked.append(ms)

    monkeypatch.setattr("zraft.node.loop.select.poll", FakePoll)
    loop = make_loop(world)
    cast("Control", loop._parts.control).block_ms = 400
    loop.turn()
    loop.turn()
    assert blocked == [400]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_loop_in_order(world: World, number: signal.Signals) -> None:
    """Nobody to hand over to: requests are refused, leadership is given up, replies leave."""
    loop = make_loop(world)
    world.ready = {SIGNALS_FD: 1}
    world.poll_takes_ms = 1
    world.taken = {number}
    assert loop.run() == number.name
    order = [call for call in world.calls if call in STEPS_OF_A_STOP]
    assert order == STEPS_OF_A_STOP
    assert world.calls[-3:] == ["finish stop", "flush", "flush replies"]
    assert ("node.stopping", {"reason": number.name}) in world.events


def test_a_stop_hands_over_before_it_refuses_requests(world: World) -> None:
    """The loop serves on while leadership moves, for a second at most; then it stops anyway."""
    loop = make_loop(world)
    world.stop_asked = True
    world.handing_over = True
    world.deadline_ms = world.clock.now_ms()
    world.flush_takes_ms = 60
    before_ms = world.clock.now_ms()
    assert loop.run() == "control"
    between = world.calls[world.calls.index("transfer") : world.calls.index("prepare stop")]
    assert between.count("flush") >= 10
    assert 1000 <= world.times["prepare stop"] - before_ms <= 1200


def test_a_second_stop_ends_the_hand_over(world: World) -> None:
    """Who asks twice is in a hurry: leadership is given up at once."""
    loop = make_loop(world)
    world.handing_over = True
    world.ready = {SIGNALS_FD: 1}
    world.taken = {signal.SIGTERM}
    world.stopped_again_by = {signal.SIGTERM}
    before_ms = world.clock.now_ms()
    assert loop.run() == "SIGTERM"
    assert world.times["prepare stop"] == before_ms
    assert world.calls[-3:] == ["finish stop", "flush", "flush replies"]


def test_a_stop_waits_a_moment_for_what_is_in_the_log(world: World) -> None:
    """Undecided proposals get half a second, not more."""
    loop = make_loop(world)
    world.stop_asked = True
    world.drained = False
    world.deadline_ms = world.clock.now_ms()
    world.flush_takes_ms = 60
    before_ms = world.clock.now_ms()
    assert loop.run() == "control"
    assert world.calls[-4] == "lines"
    assert world.calls[-3:] == ["finish stop", "flush", "flush replies"]
    assert 500 <= world.times["finish stop"] - before_ms <= 700


def test_a_stop_refuses_requests_until_none_is_under_way(world: World) -> None:
    """Sockets close after 20 ms without a request: what they held then would be lost."""
    loop = make_loop(world)
    world.stop_asked = True
    assert loop.run() == "control"
    waited_ms = world.times["finish stop"] - world.times["prepare stop"]
    assert waited_ms == STOP_QUIET_MS, "and not until some deadline"
    late = make_loop(world)
    world.stop_asked = True
    world.requests_until_ms = world.clock.now_ms() + 3 * STOP_QUIET_MS
    world.poll_takes_ms = 5
    assert late.run() == "control"
    quiet_ms = world.times["finish stop"] - world.times["requests 1"]
    assert STOP_QUIET_MS <= quiet_ms <= STOP_QUIET_MS + 5


def test_a_client_that_never_stops_does_not_keep_a_node_up(world: World) -> None:
    """Half a second is enough for everybody."""
    loop = make_loop(world)
    world.stop_asked = True
    world.requests_until_ms = 1 << 62
    world.poll_takes_ms = 5
    before_ms = world.clock.now_ms()
    assert loop.run() == "control"
    assert 500 <= world.times["finish stop"] - before_ms <= 510


def test_what_the_peers_wait_for_is_polled(world: World) -> None:
    """When the transport's sockets change, the poller forgets the old ones and knows the new."""
    loop = make_loop(world)
    loop.turn()
    assert sorted(cast("list[int]", world.registered)) == [1000, SIGNALS_FD, 1003, 2000, 3000]
    world.pollables_version = 1
    loop.turn()
    assert sorted(cast("list[int]", world.registered)) == [1000, SIGNALS_FD, 1003, 2001, 3000]
    world.bulk_version = 1
    loop.turn()
    assert sorted(cast("list[int]", world.registered)) == [1000, SIGNALS_FD, 1003, 2001, 3001]


def test_chunks_come_after_clients_and_a_few_at_a_time(world: World) -> None:
    """A snapshot of thousands of chunks waits behind everybody, and never fills a turn."""
    loop = make_loop(world)
    world.ready = {BULK: 1, 3000: 1}
    world.chunks = [CHUNK] * (BULK_BATCH + 1)
    world.batches = [RequestBatch(b"c", [REQUEST])]
    loop.turn()
    calls = world.calls
    assert calls.count("chunk") == BULK_BATCH
    assert calls.index("requests 1") < calls.index("chunk") < calls.index("peers timer")
    assert "bulk ready 3000" in calls
    loop.turn()
    assert calls.count("chunk") == BULK_BATCH + 1


def test_without_chunks_the_bulk_socket_is_left_alone(world: World) -> None:
    """No system call for it in turns that are about other things; a chunk held back is due."""
    loop = make_loop(world)
    loop.turn()
    assert "receive bulk" not in world.calls
    world.bulk_deadline_ms = world.clock.now_ms() + 7
    loop.turn()
    assert world.timeouts.pop() == 7
    assert "receive bulk" in world.calls


def test_garbage_is_collected_only_by_an_idle_loop_with_time_at_hand(world: World) -> None:
    """Little came in for a whole window and since, and the next deadline is far."""
    loop = make_loop(world)
    world.ready = {INBOX: 1}

    def collects(*, messages: int, gap_ms: int) -> bool:
        for _ in range(10):
            world.calls.clear()
            world.inbox = [MESSAGE] * messages
            world.deadline_ms = world.clock.now_ms() + gap_ms
            loop.turn()
            world.clock.advance(IDLE_WINDOW_MS / 5)
        return "collect" in world.calls

    assert collects(messages=1, gap_ms=100)
    assert not collects(messages=40, gap_ms=100)
    assert not collects(messages=1, gap_ms=5)
    assert collects(messages=1, gap_ms=100)


def test_an_idle_leader_takes_all_answers_to_a_heartbeat_in_one_turn(world: World) -> None:
    """When only answers that nobody waits for came in, it reads a millisecond later."""
    loop = make_loop(world)
    world.leading = True
    for _ in range(10):
        loop.turn()
        world.clock.advance(IDLE_WINDOW_MS / 5)
    world.ready = {INBOX: 1}

    def gathers() -> bool:
        woke_ms = world.clock.now_ms()
        loop.turn()
        return world.times["timer True"] > woke_ms

    assert gathers()
    world.waiting = 1  # somebody waits for these answers
    assert not gathers()
    world.waiting, world.leading = 0, False
    assert not gathers()
    world.leading, world.ready = True, {INBOX: 1, CLIENT: 1}
    assert not gathers()
