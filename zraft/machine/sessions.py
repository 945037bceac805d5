"""Client sessions: what makes a repeated command happen once (thesis §6.3).

A command is named by (session, sequence). The table keeps the result of each until the client says,
by `ack_below`, that it needs it no more; a command whose name is known gets that result and is not
run again. The table is part of the replicated state: every change of it comes from an applied
entry, and from nothing else.

    unknown session, or one that is over; a sequence below `ack_below`   refused, never run
    a sequence that was run before                         the kept result, refusals too
    any other                                              run, and its result is kept

*Time* is log time, which is equal on all nodes and no wall clock: a session is over once an entry
is applied whose log time is `ttl_ms` or more past its last use. Who is over is found exactly when
it is used, and swept out whenever log time enters another second. *Bounds* come out of the entry
that opened a session, so that nodes with different configurations agree: of more than
`max_sessions` the ones that were not used for longest end, and so do they when the kept results
pass `max_bytes`.

The hash of the table is a sum over its sessions, weighted by their ids, and costs each change three
multiplications; it covers use, acknowledgement and which results are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from zraft.api import Code
from zraft.errors import DecodeError
from zraft.machine.session_ops import (
    Fate,
    Resolution,
    SessionOp,
    Terms,
    decode_op,
    decode_terms,
    encode_resolution,
)
from zraft.wire_entry import naturals, pack, unpack

RESULT_OVERHEAD_BYTES = 200  # what a kept result costs besides its bytes, roughly
CHUNK_BYTES = 64 << 10
SWEEP_MS = 1000
WITHDRAWN_TEXT = b"it was not applied, and was withdrawn when somebody asked what became of it"
EXPIRED_TEXT = b"the session is unknown, expired or closed, or its client needs this result no more"

_MASK = (1 << 64) - 1
_CODES = frozenset(Code)
_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio


class Kept(NamedTuple):
    """What became of a command, and the index at which it was applied."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    code: Code
    result: bytes


EXPIRED = Kept(0, Code.SESSION_EXPIRED, EXPIRED_TEXT)


@dataclass(slots=True, eq=False)
class Session:
    """One session. All times are log time."""

    session_id: int
    ttl_ms: int
    used_ms: int
    ack_below: int = 1
    results: dict[int, Kept] = field(default_factory=dict)  # by sequence
    weight: int = 0  # what the hash multiplies the session's numbers by

    def __post_init__(self) -> None:
        self.weight = self.session_id * _ODD & _MASK


class Sessions:
    """The table. Sessions stand in the order of their last use, the longest unused first."""

    def __init__(self) -> None:
        self._table: dict[int, Session] = {}
        self._newest: Session | None = None  # the one that stands last
        self._max_bytes = Terms().max_bytes
        self.kept_bytes = 0
        self.digest = 0

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._table.values())

    def find(self, session_id: int, sequence: int) -> Kept | None:
        """Return a kept result. Changes nothing: for a repetition that need not be logged."""
        session = self._table.get(session_id)
        if session is None or sequence < session.ack_below:
            return None
        return session.results.get(sequence)

    # What applied entries do

    def sweep(self, log_time_ms: int) -> None:
        """End every session that is over."""
        over = [s for s in self if s.used_ms + s.ttl_ms <= log_time_ms]
        for session in over:
            self._drop(session)

    def run(self, index: int, log_time_ms: int, entry: tuple[int, int, bytes]) -> Kept:
        """Apply a SESSION entry, of which this is (session, sequence, body)."""
        session_id, sequence, body = entry
        try:
            op, numbers = decode_op(body)
            terms = decode_terms(numbers) if op is SessionOp.OPEN else None
        except DecodeError as error:
            return Kept(index, Code.INVALID, error.what.encode())
        if terms is not None:
            self._open(index, log_time_ms, terms)
            return Kept(index, Code.OK, pack([terms.ttl_ms]))
        session = self.use(session_id, log_time_ms)
        if session is None:
            return EXPIRED
        result: list[object] = []
        if op is SessionOp.CLOSE:
            self._drop(session)
        elif op is SessionOp.RESOLVE:
            return Kept(index, Code.OK, encode_resolution(self._resolve(session, sequence, index)))
        return Kept(index, Code.OK, pack(result))

    def _open(self, index: int, log_time_ms: int, terms: Terms) -> None:
        self._max_bytes = terms.max_bytes
        while len(self._table) >= terms.max_sessions:
            self._drop(next(iter(self)))
        session = Session(index, terms.ttl_ms, log_time_ms)
        self._table[index] = self._newest = session
        self._mix(session, log_time_ms + 1)
        self._bound()

    def _resolve(self, session: Session, sequence: int, index: int) -> Resolution:
        """Say what became of a sequence; one that is open is withdrawn, so that the word holds."""
        if sequence < session.ack_below:
            return Resolution(Fate.FORGOTTEN)
        kept = session.results.get(sequence)
        if kept is None:
            self._mix(session, sequence)
            self.keep(session, sequence, Kept(index, Code.WITHDRAWN, WITHDRAWN_TEXT))
        if kept is None or kept.code is Code.WITHDRAWN:
            return Resolution(Fate.WITHDRAWN)
        return Resolution(Fate.APPLIED, *kept)

    def use(self, session_id: int, log_time_ms: int) -> Session | None:
        """Return a session that is not over, and note that it was used now."""
        session = self._table.get(session_id)
        if session is None:
            return None
        change = log_time_ms - session.used_ms
        if change >= session.ttl_ms:
            self._drop(session)
            return None
        if session is not self._newest:
            self._table[session_id] = self._table.pop(session_id)
            self._newest = session
        session.used_ms = log_time_ms
        self._mix(session, change)
        return session

    def begin(
        self, session_id: int, sequence: int, ack_below: int, log_time_ms: int
    ) -> Session | Kept:
        """Return the session in which a command is run next, or what there is to say already.

        A session that is returned gets the result, by `keep`. On the path of every write: it is
        `use` once more, so that the hash is changed once.
        """
        session = self._table.get(session_id)
        if session is None:
            return EXPIRED
        change = log_time_ms - session.used_ms
        if change >= session.ttl_ms:
            self._drop(session)
            return EXPIRED
        if session is not self._newest:
            self._table[session_id] = self._table.pop(session_id)
            self._newest = session
        session.used_ms = log_time_ms
        if ack_below > session.ack_below:
            change += self._acknowledge(session, ack_below)
        found: Session | Kept = session
        if sequence < session.ack_below:
            found = EXPIRED
        elif sequence in session.results:
            found = session.results[sequence]
        else:
            change += sequence
        self.digest = (self.digest + session.weight * change) & _MASK
        return found

    def keep(self, session: Session, sequence: int, kept: Kept) -> None:
        """Keep a result until it is acknowledged; too many bytes end the longest unused."""
        session.results[sequence] = kept
        self.kept_bytes += len(kept.result) + RESULT_OVERHEAD_BYTES
        if self.kept_bytes > self._max_bytes:
            self._bound()

    def _acknowledge(self, session: Session, ack_below: int) -> int:
        """Drop the results below `ack_below`; return what that is for the hash.

        They stand in the order in which they were run, and dropping ends at the first that is still
        needed: what stands behind it is not given out any more, and goes when it goes.
        """
        results = session.results
        change = ack_below - session.ack_below << 20
        while results:
            sequence = next(iter(results))
            if sequence >= ack_below:
                break
            self.kept_bytes -= len(results.pop(sequence).result) + RESULT_OVERHEAD_BYTES
            change -= sequence
        session.ack_below = ack_below
        return change

    def _bound(self) -> None:
        while self.kept_bytes > self._max_bytes:
            self._drop(next(iter(self)))

    def _drop(self, session: Session) -> None:
        del self._table[session.session_id]
        if session is self._newest:
            self._newest = None
        sizes = [len(kept.result) + RESULT_OVERHEAD_BYTES for kept in session.results.values()]
        self.kept_bytes -= sum(sizes)
        self._mix(session, -_number(session))

    def _mix(self, session: Session, change: int) -> None:
        self.digest = (self.digest + session.weight * change) & _MASK

    # Snapshots

    def freeze(self) -> Iterator[bytes]:
        """Return the table as it is now, in chunks; later changes do not show in them.

            header    [sessions, max_bytes, digest]
            chunk     [[session, ttl_ms, used_ms, ack_below, [result, …]], …]
            result    [sequence, index, code, bytes]

        A session with many results comes in several parts, one after the other.
        """
        head = pack([len(self), self._max_bytes, self.digest])
        frozen = [
            (s.session_id, s.ttl_ms, s.used_ms, s.ack_below, [*s.results.items()]) for s in self
        ]
        return _chunks(head, frozen)

    @classmethod
    def thaw(cls, chunks: Iterable[bytes]) -> Sessions:
        """Return the table that was frozen; DecodeError when it is not whole."""
        parts = iter(chunks)
        head = unpack(next(parts, b""))
        if type(head) is not list or len(head) < 3:
            raise DecodeError("a snapshot's sessions have no header")
        count, sessions = naturals(head, "a snapshot's sessions")[0], cls()
        sessions._max_bytes = head[1]
        for chunk in parts:
            records = unpack(chunk)
            if type(records) is not list:
                raise DecodeError("a snapshot's sessions are not an array")
            for record in records:
                sessions._take(record)
        for session in sessions:
            sessions._mix(session, _number(session))
        if (len(sessions), sessions.digest) != (count, head[2]):
            raise DecodeError("a snapshot's sessions do not have the hash of their header")
        return sessions

    def _take(self, record: object) -> None:
        if type(record) is not list or len(record) < 5 or type(record[4]) is not list:
            raise DecodeError("a snapshot's session is an array of five or more")
        session_id, ttl_ms, used_ms, ack_below = naturals(record[:4], "a snapshot's session")
        session = self._table.get(session_id)
        if session is None:
            session = self._table[session_id] = Session(session_id, ttl_ms, used_ms, ack_below)
        for item in record[4]:
            if type(item) is not list or len(item) < 4 or type(item[3]) is not bytes:
                raise DecodeError("a kept result is an array of four or more")
            sequence, index, code = naturals(item[:3], "a kept result")
            if sequence in session.results or code not in _CODES:
                raise DecodeError("a kept result that can not be")
            session.results[sequence] = Kept(index, Code(code), item[3])
            self.kept_bytes += len(item[3]) + RESULT_OVERHEAD_BYTES


def _number(session: Session) -> int:
    """Return what a session's weight is multiplied by in the hash of the table."""
    return session.used_ms + 1 + (session.ack_below - 1 << 20) + sum(session.results)


def _chunks(
    head: bytes, frozen: list[tuple[int, int, int, int, list[tuple[int, Kept]]]]
) -> Iterator[bytes]:
    yield head
    records: list[list[object]] = []
    size_bytes = 0
    for session_id, ttl_ms, used_ms, ack_below, results in frozen:
        items: list[list[object]] = []
        records.append([session_id, ttl_ms, used_ms, ack_below, items])
        size_bytes += 40
        for sequence, kept in results:
            items.append([sequence, kept.index, int(kept.code), kept.result])
            size_bytes += len(kept.result) + 30
            if size_bytes >= CHUNK_BYTES:
                yield pack(records)
                items = []
                records, size_bytes = [[session_id, ttl_ms, used_ms, ack_below, items]], 40
        if size_bytes >= CHUNK_BYTES:
            yield pack(records)
            records, size_bytes = [], 0
    if records:
        yield pack(records)
