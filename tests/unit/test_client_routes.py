"""Where the client sends a request: leaders, connections, silence, targets, bare endpoints."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from tests.client_shell import CLUSTER, READ, STALE, WRITE, Shell
from zraft.api import Code, Flag, Reply
from zraft.client.core import (
    ANY_CLUSTER,
    ClientCore,
)
from zraft.client.nodes import PATIENCE_MS, RECREATE_MS, SILENCE_MS, Member, State
from zraft.errors import (
    Busy,
    ControlError,
    OutcomeUnknown,
    Unavailable,
)
from zraft.wire import MAX_CLIENT_FRAME_BYTES, MAX_REQUEST_BYTES, encode_requests

# Where a request goes


def test_nothing_is_sent_before_the_handshake() -> None:
    """A request waits for its connection, and leaves in the turn in which it is up."""
    shell = Shell(connect=False)
    shell.submit()
    assert shell.turn() == []
    (key,) = shell.connects
    shell.core.on_connected(key, shell.now_ms)
    ((sent_to, request),) = shell.turn()
    assert sent_to == key
    assert request.body == b"body"
    assert request.consistency == WRITE
    assert request.session == 0


def test_requests_of_one_turn_share_a_frame_up_to_its_size() -> None:
    """Many small ones go together; frames end before the receiver's limit."""
    shell = Shell(1)
    for _ in range(300):
        shell.submit()
    for _ in range(3):
        shell.submit(body=bytes(MAX_REQUEST_BYTES))
    shell.turn()
    shell.core.cancel(shell.submit())
    assert len(shell.sent) == 303
    again = Shell(1)
    for _ in range(300):
        again.submit()
    for _ in range(3):
        again.submit(body=bytes(MAX_REQUEST_BYTES))
    again.core.outgoing(again.now_ms)
    again.core.on_connected(1, again.now_ms)
    frames = again.core.outgoing(again.now_ms)
    assert [len(requests) for _, requests in frames] == [300, 1, 1, 1]
    for _, requests in frames:
        assert len(encode_requests(CLUSTER, requests)) <= MAX_CLIENT_FRAME_BYTES


def test_a_frame_has_at_most_a_thousand_requests() -> None:
    """A node takes them in bounded batches."""
    shell = Shell(1)
    for _ in range(2500):
        shell.submit()
    shell.core.outgoing(shell.now_ms)
    shell.core.on_connected(1, shell.now_ms)
    frames = shell.core.outgoing(shell.now_ms)
    assert [len(requests) for _, requests in frames] == [1000, 1000, 500]


def test_the_leader_that_an_answer_names_is_asked_next() -> None:
    """Also a good answer of a follower, which passed the request on."""
    shell = Shell()
    shell.submit()
    (sent,) = shell.turn()
    leader = sent[0] % 3 + 1
    shell.answer(sent, leader=leader)
    shell.submit()
    ((key, _),) = shell.turn()
    assert key == leader


def test_a_hint_of_an_older_term_does_not_win() -> None:
    """Answers may arrive out of order; the newer term knows better."""
    shell = Shell()
    for leader, term in ((2, 5), (3, 4)):
        shell.submit()
        (sent,) = shell.turn()
        shell.answer(sent, leader=leader, term=term)
    shell.submit()
    ((key, _),) = shell.turn()
    assert key == 2


def test_an_unknown_member_as_leader_is_nobody() -> None:
    """Hints are looked up in the client's own table; the one that serves stays in use."""
    shell = Shell()
    shell.submit()
    (sent,) = shell.turn()
    shell.answer(sent, leader=0xDEAD)
    shell.submit()
    ((key, _),) = shell.turn()
    assert key == sent[0]


def test_another_node_is_tried_when_a_connection_takes_too_long() -> None:
    """After 150 ms without a handshake the next node is asked too: nothing was sent yet."""
    shell = Shell(connect=False)
    shell.submit()
    shell.turn()
    assert len(shell.connects) == 1
    shell.turn(PATIENCE_MS - 1)
    assert len(shell.connects) == 1
    shell.turn(1)
    assert len(shell.connects) == 2
    shell.core.on_connected(shell.connects[1], shell.now_ms)
    ((key, _),) = shell.turn()
    assert key == shell.connects[1]


def test_a_refused_connection_is_left_at_once() -> None:
    """The next node in the ring is asked in the same turn."""
    shell = Shell(connect=False)
    shell.submit()
    for expected in (1, 2, 3):
        shell.turn()
        assert len(set(shell.connects)) == expected
        shell.core.on_disconnected(shell.connects[-1], shell.now_ms)
    assert shell.turn() == []


def test_refused_nodes_are_tried_again_with_growing_pauses_until_the_deadline() -> None:
    """Between 25 and 500 ms apart; and then: nothing was sent, Unavailable."""
    shell = Shell(1, connect=False)
    shell.submit(timeout_ms=10_000)
    times = []
    while shell.core.outstanding:
        shell.turn()
        while shell.connects:
            times.append(shell.now_ms)
            shell.core.on_disconnected(shell.connects.pop(), shell.now_ms)
        if shell.core.outstanding:
            shell.now_ms = shell.wake_ms()
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert all(25 <= pause <= 500 for pause in pauses)
    assert pauses[0] <= 50
    assert max(pauses) > 250
    error = shell.results()[0].outcome
    assert isinstance(error, Unavailable)
    assert "nothing was sent" in error.what
    assert "n1 refused the connection" in error.why
    assert error.try_


def test_a_connection_without_handshake_is_made_anew() -> None:
    """Every 2 s while somebody waits for it: a socket may be dead for good."""
    shell = Shell(1, connect=False)
    shell.submit(timeout_ms=60_000)
    shell.turn()
    for _ in range(3):
        shell.turn(RECREATE_MS - 1)
        count = len(shell.connects)
        shell.turn(1)
        assert len(shell.connects) == count + 1


# Silence


def test_a_silent_node_loses_its_reads_and_keeps_its_writes() -> None:
    """After a second without any answer; the writes may still be answered."""
    shell = Shell()
    write, read = shell.submit(WRITE), shell.submit(READ)
    (sent, _) = shell.turn()
    assert shell.turn(SILENCE_MS - 1) == []
    ((key, moved),) = shell.turn(1)
    assert key != sent[0]
    assert moved.consistency == READ
    shell.answer((key, moved))
    assert [finished.request_id for finished in shell.results()] == [read]
    shell.submit()
    ((later, _),) = shell.turn()
    assert later != sent[0]
    shell.answer(sent)
    assert [finished.request_id for finished in shell.results()] == [write]


def test_a_node_that_answers_others_is_not_silent() -> None:
    """Any answer shows that it lives: a slow read stays where it is."""
    shell = Shell()
    shell.submit(READ)
    shell.turn()
    for _ in range(5):
        shell.submit(WRITE)
        (other,) = shell.turn(SILENCE_MS // 2)
        shell.answer(other)
    assert len(shell.results()) == 5
    assert shell.core.outstanding == 1


def test_a_silent_node_with_nothing_in_flight_gets_a_new_connection() -> None:
    """Whatever that connection is, it carries no answers."""
    shell = Shell(1)
    shell.submit(timeout_ms=SILENCE_MS + 500)
    shell.turn()
    shell.turn(SILENCE_MS + 500)
    assert isinstance(shell.result(), OutcomeUnknown)
    assert shell.connects == [1]
    shell.submit()
    assert len(shell.turn()) == 1
    assert shell.connects == [1, 1]


def test_when_all_are_silent_requests_still_go_out() -> None:
    """A cluster without a leader is silent too: its nodes keep requests until there is one."""
    shell = Shell(2)
    for _ in range(2):
        shell.submit(timeout_ms=60_000)
        shell.turn()
        shell.turn(SILENCE_MS)
    shell.submit(timeout_ms=60_000)
    assert len(shell.turn()) == 1


# One node only


def test_a_target_is_the_only_node_that_is_asked() -> None:
    """No fail-over: its refusal is the answer, also one that would be tried again elsewhere."""
    for code, error in ((Code.UNAVAILABLE, Unavailable), (Code.BUSY, Busy)):
        shell = Shell()
        shell.submit(target="n2")
        ((key, request),) = shell.turn()
        assert key == 2
        shell.answer((key, request), code)
        assert type(shell.result()) is error


def test_a_targets_hint_is_told_and_not_followed() -> None:
    """The error names the leader."""
    shell = Shell()
    shell.submit(target="n2")
    (sent,) = shell.turn()
    shell.answer(sent, Code.NOT_LEADER, leader=3)
    error = shell.result()
    assert isinstance(error, Unavailable)
    assert error.leader_hint == "n3"


def test_a_target_that_refuses_or_is_lost_ends_the_request() -> None:
    """Refused: Unavailable at once. Lost: a read is Unavailable, a write is unknown."""
    shell = Shell(connect=False)
    shell.submit(target="n3")
    shell.turn()
    assert shell.connects == [3]
    shell.core.on_disconnected(3, shell.now_ms)
    error = shell.result()
    assert isinstance(error, Unavailable)
    assert "n3 refused the connection" in error.why
    shell = Shell()
    read, write = shell.submit(STALE, target="n1"), shell.submit(WRITE, target="n1")
    shell.turn()
    shell.core.on_disconnected(1, shell.now_ms)
    outcomes = {finished.request_id: type(finished.outcome) for finished in shell.results()}
    assert outcomes == {read: Unavailable, write: OutcomeUnknown}


def test_an_unknown_target_is_refused() -> None:
    """ControlError names those that are known."""
    with pytest.raises(ControlError, match='no node "n9"') as caught:
        Shell().submit(target="n9")
    assert "n1, n2, n3" in caught.value.why


# Endpoints without names


def test_the_cluster_and_the_members_are_learned_from_answers() -> None:
    """The first answer tells the cluster; a stale read's answer tells who lives at an endpoint."""
    members = [Member(-number, f"tcp://{number}", "") for number in (1, 2)]
    core = ClientCore(members, rng=random.Random(1))
    assert core.cluster == ANY_CLUSTER
    core.submit(b"", STALE, Flag.NONE, timeout_ms=1000, now_ms=0)
    core.outgoing(0)
    (key,) = core.take_connects()
    core.on_connected(key, 0)
    ((_, (request,)),) = core.outgoing(0)
    reply = Reply(request.request_id, Code.OK, 0xABCD, 3, 0, 0xABCD, b"")
    core.on_replies(key, CLUSTER, [reply], 1)
    assert core.cluster == CLUSTER
    found = core.nodes.of_member(0xABCD)
    assert found is not None
    assert found.key == key
    assert core.nodes.leader is found
    assert found.state is State.UP
    core.on_replies(key, b"foreign!", [reply], 2)
    assert core.counters["replies_foreign"] == 1
