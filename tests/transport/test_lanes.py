"""When a lane is made anew: with real sockets that lead nowhere, and a clock of the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from zraft.transport.lanes import OutgoingLane

START_MS = 1_000_000


@pytest.fixture
def lane() -> Iterator[OutgoingLane]:
    """A lane to an abstract address where nobody listens."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    found = OutgoingLane(
        context, me=1, peer=2, endpoint="ipc://@zraft-nobody", incarnation=7, now_ms=START_MS
    )
    yield found
    found.close()
    context.destroy(linger=0)


def pretend_sent(lane: OutgoingLane, now_ms: int) -> None:
    """Do what `send` does once the socket took the frame."""
    lane.seq += 1
    lane._note_sent(lane.seq, now_ms)


def test_seq_starts_at_the_incarnation_and_goes_on_over_sockets(lane: OutgoingLane) -> None:
    """A later life's seq is always higher; a new socket changes the epoch, not the count."""
    assert (lane.epoch, lane.seq) == (1, 7 << 32)
    lane.seq += 5
    lane.make_anew(START_MS + 1000)
    assert (lane.epoch, lane.seq) == (2, (7 << 32) + 5)


def test_without_a_connection_a_frame_is_refused_at_once(lane: OutgoingLane) -> None:
    """IMMEDIATE: nothing is queued for a peer that is not there."""
    assert lane.send(b"frame", START_MS, 1) is False


def test_without_a_handshake_it_is_made_anew_after_1_s_then_ever_later(
    lane: OutgoingLane,
) -> None:
    """Tries come after 1, 2, 4, 8 and then every 10 seconds."""
    waits, now_ms = [], START_MS
    for _ in range(6):
        due_ms = lane.renewal_deadline_ms()
        assert due_ms is not None
        waits.append(due_ms - now_ms)
        now_ms = due_ms
        assert lane.make_anew(now_ms) == "no_handshake"
    assert waits == [1000, 2000, 4000, 8000, 10_000, 10_000]


def test_silence_alone_is_normal(lane: OutgoingLane) -> None:
    """A connected lane on which nothing was sent has no deadline."""
    lane.connected = True
    assert lane.renewal_deadline_ms() is None


def test_a_frame_that_is_not_heard_in_1_s_condemns_the_socket(lane: OutgoingLane) -> None:
    """The oldest frame nobody heard counts; later ones do not put it off."""
    lane.connected = True
    pretend_sent(lane, START_MS + 5000)
    pretend_sent(lane, START_MS + 5900)
    assert lane.renewal_deadline_ms() == START_MS + 6000
    assert lane.make_anew(START_MS + 6000) == "unheard"


def test_a_frame_that_is_heard_clears_the_suspicion(lane: OutgoingLane) -> None:
    """`heard` at the last frame ends it; before the last frame the second starts over."""
    lane.connected = True
    pretend_sent(lane, START_MS + 5000)
    first = lane.seq
    pretend_sent(lane, START_MS + 5100)
    lane.on_heard(first - 1, START_MS + 5200)
    assert lane.renewal_deadline_ms() == START_MS + 6000
    lane.on_heard(first, START_MS + 5300)
    assert lane.renewal_deadline_ms() == START_MS + 6300
    lane.on_heard(lane.seq, START_MS + 5400)
    assert lane.renewal_deadline_ms() is None


def test_a_heard_that_was_never_sent_proves_nothing(lane: OutgoingLane) -> None:
    """A peer that claims to have heard the future does not keep a dead lane alive."""
    lane.connected = True
    pretend_sent(lane, START_MS + 5000)
    lane.on_heard(lane.seq + 1, START_MS + 5100)
    assert lane.renewal_deadline_ms() == START_MS + 6000


def test_the_back_off_starts_over_once_the_lane_works(lane: OutgoingLane) -> None:
    """After a frame was heard, the next failure is repaired after a second again."""
    now_ms = START_MS
    for _ in range(5):
        now_ms = lane.renewal_deadline_ms() or 0
        lane.make_anew(now_ms)
    lane.connected = True
    pretend_sent(lane, now_ms)
    lane.on_heard(lane.seq, now_ms)
    pretend_sent(lane, now_ms + 100)
    assert lane.renewal_deadline_ms() == now_ms + 1100


def test_a_peer_that_started_anew_is_tried_again_at_once(lane: OutgoingLane) -> None:
    """A frame of a new incarnation ends the long back-off, never below one try a second."""
    now_ms = START_MS
    for _ in range(5):
        now_ms = lane.renewal_deadline_ms() or 0
        lane.make_anew(now_ms)
    lane.on_peer_started(8)
    assert lane.renewal_deadline_ms() == now_ms + 1000


def test_a_socket_that_served_long_enough_is_not_held_against_the_next(
    lane: OutgoingLane,
) -> None:
    """Two failures far apart are two first failures: the back-off does not add up over days."""
    lane.make_anew(START_MS + 1000)
    assert lane.backoff_ms == 2000
    lane.make_anew(START_MS + 60_000)
    assert lane.backoff_ms == 2000


def test_what_was_received_is_owed_an_answer_within_half_a_second(lane: OutgoingLane) -> None:
    """The first frame that nobody answered counts; without a connection nothing can be told."""
    assert lane.owed_deadline_ms() is None
    lane.owe(START_MS)
    assert lane.owed_deadline_ms() is None
    lane.connected = True
    lane.owe(START_MS + 400)
    assert lane.owed_deadline_ms() == START_MS + 500
    lane.put_off_owed(START_MS + 500)
    assert lane.owed_deadline_ms() == START_MS + 1000
