"""Sessions: a named command is run once, and only the log says until when (thesis §6.3)."""

from __future__ import annotations

import pytest

from zraft.api import Code
from zraft.core.model import Command, EntryType
from zraft.errors import DecodeError
from zraft.machine.base import Ctx
from zraft.machine.kv import KV
from zraft.machine.kv_codec import encode_put
from zraft.machine.replica import MACHINE, SESSIONS, Outcome, Replica
from zraft.machine.session_ops import (
    Fate,
    Resolution,
    SessionOp,
    Terms,
    decode_op,
    decode_opened,
    decode_resolution,
    encode_op,
    encode_open,
    encode_resolution,
)
from zraft.machine.sessions import RESULT_OVERHEAD_BYTES
from zraft.wire_entry import EntryCodec, pack

CODEC = EntryCodec()
TTL_MS = 10_000


class Log:
    """A replica of a KV that is given one entry after the other; 10 ms of log time between two."""

    def __init__(self) -> None:
        self.replica = Replica(KV())
        self.now_ms = 0

    def entry(self, command: Command, *, after_ms: int = 10) -> Outcome:
        """Apply the next entry."""
        self.now_ms += after_ms
        payload = CODEC.encode(command, term=1, log_time_ms=self.now_ms)
        return self.replica.apply(self.replica.applied.index + 1, payload)

    def open(self, terms: Terms | None = None, *, after_ms: int = 10) -> int:
        """Open a session and return its id."""
        body = encode_open(terms or Terms(TTL_MS))
        outcome = self.entry(Command(body, EntryType.SESSION), after_ms=after_ms)
        assert outcome.code == Code.OK
        return outcome.index

    def op(self, session: int, op: SessionOp, sequence: int = 0) -> Outcome:
        """Keep, close, or resolve."""
        return self.entry(Command(encode_op(op), EntryType.SESSION, session, sequence))

    def resolve(self, session: int, sequence: int) -> Resolution:
        """Ask what became of a sequence of a living session."""
        outcome = self.op(session, SessionOp.RESOLVE, sequence)
        assert outcome.code == Code.OK
        return decode_resolution(outcome.result)

    def put(
        self, session: int, sequence: int, ack_below: int = 1, *, after_ms: int = 10, size: int = 1
    ) -> Outcome:
        """Apply a put that changes the store's revision if it is run."""
        body = encode_put(b"key", b"v" * size)
        command = Command(body, EntryType.COMMAND, session, sequence, ack_below)
        return self.entry(command, after_ms=after_ms)

    @property
    def revision(self) -> int:
        """One more than the commands that were run."""
        assert isinstance(self.replica.machine, KV)
        return self.replica.machine.revision


def test_a_repeated_command_is_not_run_again_and_has_the_first_result() -> None:
    """Retry applies twice (fluree #1839): here it has the result, and the index, of the first."""
    log = Log()
    session = log.open()
    first = log.put(session, 1)
    for _ in range(3):
        again = log.put(session, 1)
        assert (again.code, again.result, again.index) == (Code.OK, first.result, first.index)
    assert log.revision == 2
    assert log.put(session, 2).result != first.result
    assert log.revision == 3


def test_a_refusal_of_the_machine_is_a_result_and_is_repeated() -> None:
    """Poison stays refused, with the same words, also where it would be run by now."""
    log = Log()
    session = log.open()
    poison = Command(b"poison", EntryType.COMMAND, session, 1, 1)
    first = log.entry(poison)
    assert first.code == Code.INVALID
    again = log.put(session, 1)
    assert (again.code, again.result, again.index) == (Code.INVALID, first.result, first.index)
    assert log.revision == 1


def test_commands_of_one_session_may_arrive_in_any_order() -> None:
    """A retried one comes later than its successors; each is run once."""
    log = Log()
    session = log.open()
    for sequence in (3, 1, 2, 3, 1, 2):
        assert log.put(session, sequence).code == Code.OK
    assert log.revision == 4


def test_acknowledged_results_are_dropped_and_late_copies_refused() -> None:
    """Below ack_below nothing is kept and nothing is run; an older ack_below takes nothing back."""
    log = Log()
    session = log.open()
    for sequence in (1, 2, 3):
        log.put(session, sequence)
    assert log.replica.sessions.kept_bytes > 3 * RESULT_OVERHEAD_BYTES
    log.put(session, 4, ack_below=4)
    assert log.replica.sessions.kept_bytes < 2 * RESULT_OVERHEAD_BYTES
    for sequence in (1, 2, 3):
        late = log.put(session, sequence, ack_below=1)
        assert (late.code, late.index) == (Code.SESSION_EXPIRED, 0)
        assert log.replica.sessions.find(session, sequence) is None
    assert log.put(session, 4).index == log.replica.applied.index - 4
    assert log.revision == 5


def test_an_unknown_session_runs_nothing() -> None:
    """Never opened, closed, or an index that opened nothing."""
    log = Log()
    session = log.open()
    log.put(session, 1)
    assert log.op(session, SessionOp.CLOSE).code == Code.OK
    for unknown in (session, session + 1, 999):
        assert log.put(unknown, 1).code == Code.SESSION_EXPIRED
        for op in (SessionOp.KEEP, SessionOp.CLOSE, SessionOp.RESOLVE):
            assert log.op(unknown, op, 1).code == Code.SESSION_EXPIRED
    assert log.revision == 2
    assert log.replica.sessions.kept_bytes == log.replica.sessions.digest == 0


def test_expiry_is_judged_by_log_time_when_the_entry_is_applied() -> None:
    """A lease expired by some node's own clock (etcd #15247): here only entries move the time."""
    log = Log()
    session = log.open()
    assert log.put(session, 1, after_ms=TTL_MS - 1).code == Code.OK
    assert log.op(session, SessionOp.KEEP).code == Code.OK
    assert log.put(session, 2, after_ms=TTL_MS - 1).code == Code.OK
    assert log.put(session, 3, after_ms=TTL_MS).code == Code.SESSION_EXPIRED
    assert log.put(session, 1).code == Code.SESSION_EXPIRED, "it stays expired"
    assert log.revision == 3


def test_sessions_that_are_over_are_swept_out_by_any_entry() -> None:
    """Nobody has to come back for its memory to be freed."""
    log = Log()
    kept = log.open(Terms(10 * TTL_MS))
    for _ in range(5):
        log.put(log.open(), 1)
    log.entry(Command(b"", EntryType.NOOP), after_ms=TTL_MS + 1000)
    assert [session.session_id for session in log.replica.sessions] == [kept]
    assert log.replica.sessions.kept_bytes == 0


def test_of_too_many_sessions_the_longest_unused_ends() -> None:
    """The bound stands in the opening entry: nodes with other configurations agree."""
    log = Log()
    terms = Terms(TTL_MS, max_sessions=3)
    first, second, third = (log.open(terms) for _ in range(3))
    log.put(first, 1)
    fourth = log.open(terms)
    assert [s.session_id for s in log.replica.sessions] == [third, first, fourth]
    assert log.put(second, 1).code == Code.SESSION_EXPIRED
    log.open(Terms(TTL_MS, max_sessions=1))
    assert len(log.replica.sessions) == 1


def test_too_many_kept_bytes_end_the_longest_unused_sessions() -> None:
    """A client that acknowledges nothing can't fill the memory; its own session ends at last."""
    log = Log()
    terms = Terms(TTL_MS, max_bytes=5 * (RESULT_OVERHEAD_BYTES + 50))
    idle, greedy = log.open(terms), log.open(terms)
    log.put(idle, 1)
    outcomes = [log.put(greedy, sequence).code for sequence in range(1, 12)]
    assert Code.SESSION_EXPIRED in outcomes
    assert outcomes[0] == Code.OK
    assert log.replica.sessions.kept_bytes <= terms.max_bytes
    assert log.put(idle, 1).code == Code.SESSION_EXPIRED


def test_resolve_tells_what_became_of_a_command() -> None:
    """Applied, with its result; forgotten; refused by the machine, which is a result, too."""
    log = Log()
    session = log.open()
    first = log.put(session, 1)
    assert log.resolve(session, 1) == Resolution(Fate.APPLIED, first.index, 0, first.result)
    poison = log.entry(Command(b"poison", EntryType.COMMAND, session, 2, 2))
    assert log.resolve(session, 1) == Resolution(Fate.FORGOTTEN)
    assert log.resolve(session, 2) == (Fate.APPLIED, poison.index, Code.INVALID, poison.result)


def test_what_was_resolved_as_not_applied_never_is() -> None:
    """The gap is closed through the log: a copy that arrives later is not run."""
    log = Log()
    session = log.open()
    for _ in range(2):
        assert log.resolve(session, 5) == Resolution(Fate.WITHDRAWN)
    late = log.put(session, 5)
    assert late.code == Code.WITHDRAWN
    assert log.revision == 1
    assert log.put(session, 6, ack_below=6).code == Code.OK


def test_a_snapshot_keeps_sessions_and_results() -> None:
    """PySyncObj-like snapshots lose who did what: here a restored replica refuses doubles, too."""
    log = Log()
    sessions = [log.open(Terms(TTL_MS, max_bytes=40 << 20)) for _ in range(50)]
    firsts = {session: log.put(session, 1) for session in sessions}
    for sequence in range(2, 3000):
        log.put(sessions[7], sequence, after_ms=0)
    at, digest = log.replica.applied, log.replica.digest()
    chunks = log.replica.snapshot()
    log.put(sessions[0], 2)  # after the freeze
    parts = list(chunks)
    assert [name for name, _ in parts].count(SESSIONS) > 3
    assert max(len(chunk) for _, chunk in parts) < 70_000
    copy = Log()
    copy.replica.restore(at, parts)
    assert copy.replica.digest() == digest
    assert [s.session_id for s in copy.replica.sessions][-1] == sessions[7]
    copy.now_ms = at.log_time_ms
    revision = copy.revision
    for session, first in firsts.items():
        again = copy.put(session, 1, after_ms=0)
        assert (again.result, again.index) == (first.result, first.index)
    assert copy.revision == revision
    assert copy.put(sessions[0], 2).code == Code.OK


def test_a_snapshot_without_its_sessions_is_refused() -> None:
    """The header of the table counts them and has their hash."""
    log = Log()
    log.put(log.open(), 1)
    parts = [*log.replica.snapshot()]
    for lost in (1, 2):
        cut = parts[:lost] + parts[lost + 1 :]
        with pytest.raises(DecodeError):
            Replica(KV()).restore(log.replica.applied, cut)
    assert parts[3][0] == MACHINE


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", pack(1), pack([]), pack([9]), pack([1]), pack([1, 0, 1, 1]), pack([2, -1])],
)
def test_a_session_entry_that_makes_no_sense_is_a_refusal(body: bytes) -> None:
    """Not a crash: the entry is in every node's log."""
    log = Log()
    outcome = log.entry(Command(body, EntryType.SESSION))
    assert outcome.code == Code.INVALID
    assert len(log.replica.sessions) == 0


def test_bodies_and_results_come_back_as_they_went() -> None:
    """And what is longer, from a newer program, is read as far as it is known."""
    assert decode_op(encode_op(SessionOp.KEEP)) == (SessionOp.KEEP, [])
    assert decode_op(encode_open(Terms(1, 2, 3))) == (SessionOp.OPEN, [1, 2, 3])
    assert decode_opened(pack([1500, b"new"])) == 1500
    resolution = Resolution(Fate.APPLIED, 7, Code.INVALID, b"why")
    assert decode_resolution(encode_resolution(resolution)) == resolution
    for bad in (b"", pack([1]), pack([9, 1, 1, b""]), pack([1, 1, 1, 1])):
        with pytest.raises(DecodeError):
            decode_resolution(bad)


def test_the_clock_of_a_node_plays_no_part() -> None:
    """Two replicas that apply the same entries at any pace have the same table."""
    log, other = Log(), Replica(KV())
    payloads = []
    for number in range(50):
        body = encode_open(Terms(1000)) if number % 5 == 0 else encode_put(b"k", b"v")
        kind = EntryType.SESSION if number % 5 == 0 else EntryType.COMMAND
        command = Command(body, kind, 0 if number % 5 == 0 else 1, number, 0)
        payloads.append(CODEC.encode(command, term=1, log_time_ms=number * 190))
    for index, payload in enumerate(payloads, 1):
        log.replica.apply(index, payload)
    for index, payload in enumerate(payloads, 1):
        other.apply(index, payload)
    assert other.digest() == log.replica.digest()
    assert other.applied == Ctx(50, 1, 49 * 190)
    assert 0 < len(other.sessions) < 10
