"""How a request ends: retries of what is safe, unknown outcomes, late answers, deadlines."""

from __future__ import annotations

import random

import pytest

from tests.client_shell import CLUSTER, READ, STALE, WRITE, Shell
from zraft.api import Code, Consistency, Reply
from zraft.client.pending import format_request_id, parse_request_id
from zraft.errors import (
    Busy,
    ControlError,
    InvalidCommand,
    OutcomeUnknown,
    RequestError,
    TooLargeError,
    Unavailable,
    Unsupported,
    ZraftError,
)

# Ids


def test_request_ids_have_a_text_form_and_back() -> None:
    """The client's nonce in 8 hex digits, a dash, and the number."""
    assert format_request_id(0x8F3C01AA << 32 | 19) == "8f3c01aa-19"
    for request_id in (0, 1, (1 << 64) - 1, 0x0000000A_FFFFFFFF):
        assert parse_request_id(format_request_id(request_id)) == request_id


@pytest.mark.parametrize(
    "text",
    ["", "8f3c01aa", "8f3c01aa-", "-19", "8f3c01a-1", "8F3C01AA-1", "8f3c01aa-4294967296",
     "8f3c01aa--1", "8f3c01aa-1 ", "8f3c01aa-²", "8f3c01aa-00000000001", "8f3c_1aa-1"],
)  # fmt: skip
def test_what_is_no_request_id_is_refused(text: str) -> None:
    """ControlError with why and try."""
    with pytest.raises(ControlError) as caught:
        parse_request_id(text)
    assert caught.value.why
    assert caught.value.try_


def test_ids_share_the_clients_nonce_and_count_on() -> None:
    """The upper half is drawn once, the lower half counts from 1."""
    shell = Shell()
    first, second = shell.submit(), shell.submit()
    assert first & 0xFFFFFFFF == 1
    assert second == first + 1
    assert Shell(seed=2).submit() >> 32 != first >> 32


# Refusals


@pytest.mark.parametrize("kind", [WRITE, READ])
@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.NOT_LEADER, Code.BUSY])
def test_what_was_certainly_not_applied_is_sent_again(kind: Consistency, code: Code) -> None:
    """With an id of its own, the same body, less time, and the first id for the caller."""
    shell = Shell()
    request_id = shell.submit(kind)
    (first,) = shell.turn()
    shell.answer(first, code)
    second = shell.run_until_sent()
    assert second[1].request_id != first[1].request_id
    assert second[1].body == first[1].body
    assert second[1].deadline_ms < first[1].deadline_ms
    shell.answer(second)
    (finished,) = shell.results()
    assert finished.request_id == request_id
    assert isinstance(finished.outcome, Reply)
    assert finished.via == f"n{second[0]}"


def test_a_hint_is_followed_at_once() -> None:
    """NOT_LEADER with a leader costs one more trip, and no pause."""
    shell = Shell()
    shell.submit()
    (first,) = shell.turn()
    leader = first[0] % 3 + 1
    shell.answer(first, Code.NOT_LEADER, leader=leader)
    ((key, _),) = shell.turn()
    assert key == leader


def test_hints_in_a_circle_are_followed_three_times_and_then_with_pauses() -> None:
    """Nodes that point at each other can not make a client spin."""
    shell = Shell()
    shell.submit(timeout_ms=5000)
    at_once = 0
    paused = 0
    shell.turn()
    while shell.core.outstanding:
        key, request = shell.sent[-1]
        shell.answer((key, request), Code.NOT_LEADER, leader=key % 3 + 1)
        if shell.turn():
            at_once += 1
            continue
        paused += 1
        sent = False
        while shell.core.outstanding and not sent:
            shell.now_ms = shell.wake_ms()
            sent = bool(shell.turn())
    assert at_once <= 3 * (paused + 1)
    assert paused < 60
    error = shell.result()
    assert isinstance(error, Unavailable)
    assert "text" in error.why


def test_a_node_that_hints_at_itself_is_not_asked_at_once() -> None:
    """It does not know what it says; there is a pause, and another node."""
    shell = Shell()
    shell.submit()
    (first,) = shell.turn()
    shell.answer(first, Code.NOT_LEADER, leader=first[0])
    assert shell.turn() == []
    second = shell.run_until_sent()
    assert second[0] != first[0]


def test_pauses_grow_from_20_to_500_ms_with_full_jitter() -> None:
    """The n-th pause is between 0 and 20 * 2^n ms, at most 500."""
    longest: dict[int, int] = {}
    for seed in range(200):
        shell = Shell(seed=seed)
        shell.submit(timeout_ms=60_000)
        sent = shell.run_until_sent()
        for number in range(1, 9):
            before_ms = shell.now_ms
            shell.answer(sent, Code.BUSY)
            sent = shell.run_until_sent()
            pause_ms = shell.now_ms - before_ms
            assert 1 <= pause_ms <= min(500, 20 << number) + 1
            longest[number] = max(longest.get(number, 0), pause_ms)
    assert all(longest[number] > 0.8 * min(500, 20 << number) for number in longest)


@pytest.mark.parametrize(
    ("code", "error"),
    [(Code.BUSY, Busy), (Code.UNAVAILABLE, Unavailable), (Code.NOT_LEADER, Unavailable)],
)
def test_a_write_that_was_only_refused_is_not_applied(
    code: Code, error: type[RequestError]
) -> None:
    """At the deadline the last refusal is the reason, and a retry is safe."""
    shell = Shell()
    shell.submit(timeout_ms=800)
    while shell.core.outstanding:
        for sent in shell.turn():
            shell.answer(sent, code)
        if shell.core.outstanding:
            shell.now_ms = shell.wake_ms()
    found = shell.result()
    assert type(found) is error
    assert found.retryable
    assert not found.maybe_applied
    assert found.request_id is not None
    assert "says: text" in found.why


def test_a_refused_write_is_not_sent_again_when_little_time_is_left() -> None:
    """A node could not refuse it again in time: certainly not applied would end as unknown."""
    shell = Shell()
    shell.submit(timeout_ms=1000)
    (sent,) = shell.turn()
    shell.now_ms += 850
    shell.answer(sent, Code.UNAVAILABLE)
    while shell.core.outstanding:
        assert shell.turn() == []
        if shell.core.outstanding:
            shell.now_ms = shell.wake_ms()
    found = shell.result()
    assert isinstance(found, Unavailable)
    assert not found.maybe_applied


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Code.INVALID, InvalidCommand),
        (Code.TOO_LARGE, TooLargeError),
        (Code.UNSUPPORTED, Unsupported),
    ],
)
@pytest.mark.parametrize("kind", [WRITE, READ, STALE])
def test_what_can_never_succeed_is_not_sent_again(
    kind: Consistency, code: Code, error: type[ZraftError]
) -> None:
    """The first answer is the last."""
    shell = Shell()
    shell.submit(kind)
    (sent,) = shell.turn()
    shell.answer(sent, code)
    found = shell.result()
    assert type(found) is error
    assert found.try_
    assert shell.turn(1000) == []


# Unknown outcomes


def test_an_unknown_outcome_is_never_sent_again() -> None:
    """UNKNOWN, a code from the future, a lost connection, the deadline: the write ends."""
    for end in ("unknown", "future", "lost", "deadline"):
        shell = Shell()
        shell.submit()
        (sent,) = shell.turn()
        if end == "unknown":
            shell.answer(sent, Code.UNKNOWN)
        elif end == "future":
            reply = Reply(sent[1].request_id, 99, sent[0], 1, 0, 0, b"")
            shell.core.on_replies(sent[0], CLUSTER, [reply], shell.now_ms)
        elif end == "lost":
            shell.core.on_disconnected(sent[0], shell.now_ms)
        else:
            assert shell.turn(5000) == []
        error = shell.result()
        assert isinstance(error, OutcomeUnknown), end
        assert error.maybe_applied
        assert not error.retryable
        assert error.request_id == format_request_id(sent[1].request_id)
        assert "may or may not have been applied" in error.what
        assert error.why
        assert error.try_
        assert shell.turn(10_000) == []


@pytest.mark.parametrize("code", [Code.UNKNOWN, Code.UNAVAILABLE])
def test_a_read_is_sent_again_whatever_became_of_it(code: Code) -> None:
    """It changes nothing, so trying again is always safe."""
    shell = Shell()
    shell.submit(READ)
    (sent,) = shell.turn()
    shell.answer(sent, code)
    shell.answer(shell.run_until_sent())
    assert isinstance(shell.result(), Reply)


def test_a_lost_connection_moves_reads_at_once_and_ends_writes_at_once() -> None:
    """In the same turn, not at the deadline; requests that were not sent yet are not lost."""
    shell = Shell()
    write, read = shell.submit(WRITE), shell.submit(READ)
    sent = shell.turn()
    queued = shell.submit(WRITE)
    lost_at = sent[0][0]
    shell.core.on_disconnected(lost_at, shell.now_ms)
    (finished,) = shell.results()
    assert finished.request_id == write
    assert isinstance(finished.outcome, OutcomeUnknown)
    assert finished.via == f"n{lost_at}"
    again = shell.turn()
    assert all(key != lost_at for key, _ in again)
    for moved in again:
        shell.answer(moved)
    assert {finished.request_id for finished in shell.results()} == {read, queued}


def test_answers_that_came_before_the_loss_count() -> None:
    """Only what was not answered is unknown."""
    shell = Shell()
    ids = [shell.submit() for _ in range(10)]
    sent = shell.turn()
    for answered in sent[:7]:
        shell.answer(answered)
    shell.core.on_disconnected(sent[0][0], shell.now_ms)
    outcomes = {finished.request_id: finished.outcome for finished in shell.results()}
    assert [isinstance(outcomes[one], Reply) for one in ids] == [True] * 7 + [False] * 3


def test_a_failed_send_is_no_outcome() -> None:
    """It was never sent, so it is sent again after a pause, writes too."""
    shell = Shell()
    shell.submit()
    (first,) = shell.turn()
    shell.core.on_send_failed(first[0], [first[1].request_id, 12345], shell.now_ms)
    assert shell.results() == []
    shell.answer(shell.run_until_sent())
    assert isinstance(shell.result(), Reply)


# Answers that nobody waits for


def test_late_doubled_and_foreign_answers_are_dropped_and_counted() -> None:
    """An answer to an earlier attempt is not taken for one to the present attempt."""
    shell = Shell(1)
    shell.submit()
    (first,) = shell.turn()
    shell.answer(first, Code.BUSY)
    second = shell.run_until_sent()
    shell.answer(first, Code.BUSY)  # doubled
    shell.answer(first)
    assert shell.turn() == []
    foreign = Reply(second[1].request_id, Code.OK, 1, 1, 1, 0, b"")
    shell.core.on_replies(1, b"foreign!", [foreign], shell.now_ms)
    assert shell.results() == []
    shell.answer(second)
    shell.answer(second)
    assert isinstance(shell.result(), Reply)
    assert shell.core.counters["replies_late"] == 3
    assert shell.core.counters["replies_foreign"] == 1


def test_a_cancelled_request_is_forgotten() -> None:
    """In the queue, in flight or waiting: no result, and its answer is late."""
    shell = Shell()
    flying = shell.submit()
    (sent,) = shell.turn()
    queued = shell.submit()
    shell.core.cancel(flying)
    shell.core.cancel(queued)
    shell.core.cancel(queued)
    shell.answer(sent)
    assert shell.turn(10_000) == []
    assert shell.results() == []
    assert shell.core.outstanding == 0


def test_answers_at_the_deadline_are_neither_lost_nor_doubled() -> None:
    """1,000 times within a millisecond of it, in either order: one end each, nothing sent twice."""
    rng = random.Random(4)
    shell = Shell()
    for number in range(1000):
        kind = rng.choice([WRITE, READ])
        request_id = shell.submit(kind, timeout_ms=20)
        (sent,) = shell.turn()
        due_ms = shell.now_ms + 20
        shell.now_ms = due_ms + rng.randrange(-1, 2)
        if rng.random() < 0.5:
            assert shell.turn() == [], number
        before = shell.core.counters["replies_late"]
        ended = shell.results()
        shell.answer(sent)
        late = shell.core.counters["replies_late"] - before
        assert shell.turn() == []
        ended += shell.results()
        assert [finished.request_id for finished in ended] == [request_id], number
        in_time = isinstance(ended[0].outcome, Reply)
        assert in_time is (late == 0), number
        if not in_time:
            assert type(ended[0].outcome) is (OutcomeUnknown if kind == WRITE else Unavailable)
        shell.now_ms = due_ms + 2
    assert shell.core.counters["retries"] == 0


# Time


def test_a_node_is_told_a_little_less_time_than_there_is() -> None:
    """A tenth, at most 100 ms, so that its own refusal arrives in time."""
    for timeout_ms, told_ms in ((10_000, 9_900), (500, 450), (5, 5), (1, 1)):
        shell = Shell()
        shell.submit(timeout_ms=timeout_ms)
        ((_, request),) = shell.turn()
        assert request.deadline_ms == told_ms


def test_a_request_without_time_ends_without_being_sent() -> None:
    """Unavailable: certainly not applied."""
    shell = Shell()
    shell.submit(timeout_ms=0)
    assert shell.turn() == []
    assert isinstance(shell.result(), Unavailable)


def test_the_next_deadline_is_never_in_the_past() -> None:
    """Nodes that refuse, hang, come up and go: the core is never due at once for ever."""
    for seed in range(30):
        rng = random.Random(seed)
        shell = Shell(seed=seed, connect=False)
        shell.submit(READ, timeout_ms=20_000)
        shell.submit(WRITE, timeout_ms=20_000)
        turns = 0
        while shell.core.outstanding:
            turns += 1
            shell.turn()
            for key in set(shell.connects):
                if rng.random() < 0.5:
                    shell.core.on_disconnected(key, shell.now_ms)
                elif rng.random() < 0.3:
                    shell.core.on_connected(key, shell.now_ms)
            shell.connects.clear()
            shell.turn()
            if shell.core.outstanding:
                shell.now_ms = shell.wake_ms()
        assert turns < 1500, seed


def test_finished_requests_leave_nothing_behind() -> None:
    """After 20,000 requests the tables are as small as before."""
    shell = Shell()
    for _ in range(200):
        for _ in range(100):
            shell.submit(timeout_ms=60_000)
        for sent in shell.turn(1):
            shell.answer(sent, leader=2)
        assert len(shell.results()) == 100
        shell.sent.clear()
        assert shell.core.next_deadline_ms() is None
    core = shell.core
    assert not core._table
    assert not core._queue
    assert not core._deadlines
    assert not core._later
    assert all(not node.in_flight for node in core.nodes.ring)
