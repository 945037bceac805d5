"""Writes with a name: repeated until that is sure, and never executed twice in silence."""

from __future__ import annotations

import random
from typing import cast

import pytest

from tests.client_shell import CLUSTER, READ, WRITE, Shell
from zraft.api import Code, Flag, Reply, Request
from zraft.client.core import ClientCore
from zraft.client.nodes import Member
from zraft.client.pending import WITHOUT_SESSION, format_name, parse_name
from zraft.client.sessions import MAX_UNKNOWN, ClientSession
from zraft.errors import (
    ControlError,
    OutcomeUnknown,
    SessionExpired,
    Unavailable,
    Withdrawn,
)
from zraft.machine.session_ops import SessionOp, encode_op
from zraft.wire_entry import pack

TTL_MS = 60_000
SESSION = 0x1F


def opened(shell: Shell) -> ClientSession:
    """Return a session that the cluster has opened for a first write, which is in flight."""
    session = ClientSession()
    shell.submit(session=session)
    answer_open(shell, shell.run_until_sent())
    return session


def answer_open(shell: Shell, sent: tuple[int, Request], session_id: int = SESSION) -> None:
    key, request = sent
    assert (request.flags, request.body) == (Flag.SESSION, encode_op(SessionOp.OPEN))
    reply = Reply(request.request_id, Code.OK, key, 1, session_id, key, pack([TTL_MS]))
    shell.core.on_replies(key, CLUSTER, [reply], shell.now_ms)


def outcome(shell: Shell) -> object:
    (finished,) = shell.results()
    return finished.outcome


# Ids


def test_a_request_id_of_a_session_has_a_text_form_and_back() -> None:
    """The session in hex and the sequence."""
    assert format_name((0x1F, 3)) == "1f-3"
    for name in ((1, 1), (1 << 40, 4_000_000_000)):
        assert parse_name(format_name(name)) == name


@pytest.mark.parametrize("text", ["", "1f", "1f-", "-3", "0-3", "1f-0", "1F-3", "1f-3-4", "1f-²"])
def test_what_is_no_request_id_of_a_session_is_refused(text: str) -> None:
    """ControlError with why and try."""
    with pytest.raises(ControlError) as caught:
        parse_name(text)
    assert caught.value.why
    assert caught.value.try_


def test_an_id_without_a_session_is_not_taken_for_one_with() -> None:
    """Nobody remembers such a request, and a session's number never is that high."""
    for seed in range(20):
        core = ClientCore([Member(1, "n1", "")], rng=random.Random(seed))
        request_id = core.submit(b"", WRITE, timeout_ms=1, now_ms=1)
        assert request_id >> 32 & WITHOUT_SESSION
    with pytest.raises(ControlError, match="without a session"):
        parse_name("8f3c01aa-19")


# Opening


def test_a_session_is_opened_by_its_first_write_and_once() -> None:
    """Writes wait for it and go out in order, named 1, 2, 3; a read does not wait."""
    shell, session = Shell(), ClientSession()
    ids = [shell.submit(body=b"%d" % n, session=session) for n in range(3)]
    shell.submit(READ, session=session)
    sent = shell.turn()
    assert [request.consistency for _, request in sent] == [WRITE, READ]
    assert not session.session_id
    answer_open(shell, sent[0])
    writes = [request for _, request in shell.turn()]
    assert [(w.session, w.sequence, w.body) for w in writes] == [
        (SESSION, 1, b"0"),
        (SESSION, 2, b"1"),
        (SESSION, 3, b"2"),
    ]
    assert ids[0] == writes[0].request_id


def test_an_opening_that_is_lost_is_sent_again() -> None:
    """A session that nobody uses harms nobody."""
    shell, session = Shell(), ClientSession()
    shell.submit(session=session)
    key, _ = shell.run_until_sent()
    shell.core.on_disconnected(key, shell.now_ms)
    answer_open(shell, shell.run_until_sent())
    ((_, write),) = shell.turn()
    assert (write.session, write.sequence) == (SESSION, 1)


def test_without_a_session_the_write_was_certainly_not_sent() -> None:
    """The opening may have been applied; the write was not, and that is what is told."""
    shell, session = Shell(), ClientSession()
    shell.submit(session=session, timeout_ms=500)
    shell.run_until_sent()
    shell.turn(500)
    error = outcome(shell)
    assert isinstance(error, Unavailable)
    assert "no session could be opened" in error.what
    assert shell.core.outstanding == 0, "the opening has ended with it, and nobody is told"


def test_a_session_that_was_idle_for_half_its_life_is_not_used_again() -> None:
    """Expiry is for the log to decide: the client stays away from the edge."""
    shell = Shell()
    session = opened(shell)
    shell.answer(shell.turn()[0])
    shell.now_ms += TTL_MS // 2 + 1
    shell.submit(session=session)
    answer_open(shell, shell.run_until_sent(), session_id=99)
    ((_, write),) = shell.turn()
    assert (write.session, write.sequence, write.ack_below) == (99, 1, 1)


# What is repeated


def test_a_write_of_a_session_outlives_connections_and_unknown_answers() -> None:
    """Each attempt has another id on the wire and the same name; the caller hears one "ok"."""
    shell = Shell()
    opened(shell)
    key, first = shell.turn()[0]
    shell.core.on_disconnected(key, shell.now_ms)
    sent = shell.run_until_sent()
    shell.answer(sent, Code.UNKNOWN)
    again = shell.run_until_sent()
    names = {(r.session, r.sequence) for r in (first, sent[1], again[1])}
    assert names == {(SESSION, 1)}
    assert len({first.request_id, sent[1].request_id, again[1].request_id}) == 3
    shell.answer(again)
    assert isinstance(shell.result(), Reply)


def test_a_silent_node_keeps_a_write_of_a_session_for_a_second_only() -> None:
    """A paused leader: the write goes to another node, and the late answer is dropped."""
    shell = Shell()
    opened(shell)
    key, _ = shell.turn()[0]
    other, _ = shell.run_until_sent()
    assert other != key


@pytest.mark.parametrize("last", [Code.UNAVAILABLE, Code.NOT_LEADER, Code.BUSY, Code.UNKNOWN, 99])
def test_a_write_that_was_never_answered_for_certain_stays_unknown(last: int) -> None:
    """What the last attempt met says nothing about the first; the error carries the id.

    "Unknown" as the last word, and a code of a newer node, were taken for "not applied" once
    (simulator, seed 53).
    """
    shell = Shell()
    session = opened(shell)
    key, _ = shell.turn()[0]
    shell.core.on_disconnected(key, shell.now_ms)
    while shell.core.outstanding:
        shell.now_ms = max(shell.now_ms, shell.wake_ms())
        for sent in shell.turn():
            shell.answer(sent, cast("Code", last))
    error = outcome(shell)
    assert isinstance(error, OutcomeUnknown)
    assert error.request_id == f"{SESSION:x}-1"
    assert "resolve" in error.try_[0]
    assert session.ack_below() == 1, "its result may still be asked for"


def test_a_write_that_goes_to_one_node_only_is_not_taken_elsewhere() -> None:
    """`at` has no fail-over, with or without a session."""
    shell = Shell()
    session = opened(shell)
    shell.answer(shell.turn()[0])
    shell.results()
    shell.submit(session=session, target="n2")
    key, _ = shell.run_until_sent()
    shell.core.on_disconnected(key, shell.now_ms)
    assert isinstance(outcome(shell), OutcomeUnknown)


def test_busy_is_waited_out_for_as_long_as_the_node_says() -> None:
    """`delay_ms` is the least."""
    shell = Shell()
    shell.submit()
    key, request = shell.run_until_sent()
    reply = Reply(request.request_id, Code.BUSY, key, 1, 0, key, b"full", delay_ms=700)
    shell.core.on_replies(key, CLUSTER, [reply], shell.now_ms)
    before_ms = shell.now_ms
    shell.run_until_sent()
    assert shell.now_ms > before_ms + 700


# Which results are wanted


def test_results_are_acknowledged_up_to_the_first_that_has_not_ended() -> None:
    """The cluster may drop the others; a hole keeps what comes after it."""
    shell = Shell()
    session = opened(shell)
    first = shell.turn()[0]
    for _ in range(3):
        shell.submit(session=session)
    later = shell.turn()
    assert [request.ack_below for _, request in later] == [1, 1, 1]
    for sent in later:
        shell.answer(sent)
    assert session.ack_below() == 1
    shell.answer(first)
    shell.submit(session=session)
    ((_, request),) = shell.turn()
    assert (request.sequence, request.ack_below) == (5, 5)


def with_unknown(shell: Shell) -> ClientSession:
    """Return a session of which the first write was sent and lost."""
    session = ClientSession()
    shell.submit(session=session, timeout_ms=900)
    answer_open(shell, shell.run_until_sent())
    shell.core.on_disconnected(shell.turn()[0][0], shell.now_ms)
    shell.turn(900)
    assert isinstance(outcome(shell), OutcomeUnknown)
    return session


@pytest.mark.parametrize(
    ("flags", "code"),
    [(Flag.SESSION, Code.OK), (Flag.NONE, Code.OK), (Flag.NONE, Code.WITHDRAWN)],
)
def test_who_asks_or_repeats_and_is_told_needs_the_result_no_more(flags: Flag, code: Code) -> None:
    """Else one unknown outcome kept all later results of the session, which was never closed."""
    shell = Shell()
    session = with_unknown(shell)
    shell.submit(name=(SESSION, 1), flags=flags, body=encode_op(SessionOp.RESOLVE))
    assert session.ack_below() == 1
    assert session.end() is None
    shell.answer(shell.run_until_sent(), code)
    shell.submit(session=session)
    _, write = shell.run_until_sent()
    assert (write.sequence, write.ack_below) == (2, 2)


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.BUSY, Code.UNKNOWN, Code.INVALID])
@pytest.mark.parametrize("flags", [Flag.SESSION, Flag.NONE])
def test_who_asks_or_repeats_and_is_not_told_still_wants_the_result(
    flags: Flag, code: Code
) -> None:
    """That a repetition was refused says nothing of the first attempt."""
    shell = Shell()
    session = with_unknown(shell)
    shell.submit(name=(SESSION, 1), flags=flags, timeout_ms=400, body=encode_op(SessionOp.RESOLVE))
    while shell.core.outstanding:
        shell.now_ms = max(shell.now_ms, shell.wake_ms())
        for sent in shell.turn():
            shell.answer(sent, code)
    assert not isinstance(outcome(shell), Reply)
    assert session.ack_below() == 1
    assert session.end() is None


def test_a_question_about_a_write_that_is_under_way_does_not_end_it() -> None:
    """It ends by its own answer, and until then its result is wanted."""
    shell = Shell()
    session = opened(shell)
    write = shell.turn()[0]
    shell.submit(name=(SESSION, 1), flags=Flag.SESSION, body=encode_op(SessionOp.RESOLVE))
    shell.answer(shell.run_until_sent())
    assert session.ack_below() == 1
    shell.answer(write, Code.WITHDRAWN)
    assert session.ack_below() == 2
    assert session.end() == (SESSION, 0)


def test_unknown_outcomes_are_kept_up_to_a_bound() -> None:
    """A client that never asks can not make the cluster keep results for ever."""
    session = ClientSession(session_id=SESSION)
    for _ in range(MAX_UNKNOWN + 5):
        session.settle(session.next_name(), 1, known=False)
    assert session.ack_below() == 6
    assert len(session.wanted) == MAX_UNKNOWN


# Ends that only sessions have


def test_an_expired_session_is_an_error_and_the_next_write_opens_another() -> None:
    """Never a second execution in silence."""
    shell = Shell()
    session = opened(shell)
    shell.answer(shell.turn()[0], Code.SESSION_EXPIRED)
    error = shell.result()
    assert isinstance(error, SessionExpired)
    assert error.request_id == f"{SESSION:x}-1"
    shell.submit(session=session)
    answer_open(shell, shell.run_until_sent(), session_id=99)
    assert shell.turn()[0][1].session == 99


def test_a_withdrawn_write_is_an_error_of_its_own() -> None:
    """Somebody asked what became of it: it never will be applied."""
    shell = Shell()
    opened(shell)
    shell.answer(shell.turn()[0], Code.WITHDRAWN)
    assert isinstance(shell.result(), Withdrawn)


def test_a_write_can_be_repeated_by_its_id_in_another_process() -> None:
    """It acknowledges nothing: what else that session's client waits for is not known here."""
    shell = Shell()
    shell.submit(name=(SESSION, 7))
    sent = shell.run_until_sent()
    assert (sent[1].session, sent[1].sequence, sent[1].ack_below) == (SESSION, 7, 1)
    shell.core.on_disconnected(sent[0], shell.now_ms)
    again = shell.run_until_sent()
    assert (again[1].session, again[1].sequence) == (SESSION, 7)
    shell.answer(again)
    assert isinstance(shell.result(), Reply)


def test_what_is_about_a_session_is_never_an_unknown_outcome() -> None:
    """A question may be asked again, and an answer that does not come changes nothing."""
    shell = Shell()
    body = encode_op(SessionOp.RESOLVE)
    shell.submit(name=(SESSION, 7), flags=Flag.SESSION, body=body, timeout_ms=400)
    sent = shell.run_until_sent()
    shell.core.on_disconnected(sent[0], shell.now_ms)
    again = shell.run_until_sent()
    assert (again[1].session, again[1].sequence, again[1].flags) == (SESSION, 7, Flag.SESSION)
    shell.turn(400)
    assert isinstance(shell.result(), Unavailable)
