"""A state machine together with what makes it a replicated one.

`Replica` takes the committed entries one after the other, each exactly once and in order. It keeps
where it is (`applied`), gives each entry to whom it is meant for, and turns what happened into an
`Outcome`: the same on every node, errors of the machine included. A command that a client names by
(session, sequence) is run once; its repetitions have the outcome of the first (`Sessions`).

    snapshot   sections, in this order: "sessions" (a header with the running digest, the client
               sessions), then "machine" (the machine's own chunks)
    digest     a running hash over (index, code, result, the hashes of the sessions and of the
               machine's own state) after every entry. Equal on all nodes at one index, and restored
               from a snapshot: two nodes that ever answered differently, or had different states,
               differ for good. The last few thousand are kept: `history` tells where two nodes
               parted.

The running hash is a multiply-and-add over 64 bits whose terms are CRC-32s: a hash against
mistakes, not against malice, equal for every Python and every PYTHONHASHSEED. A cryptographic hash
would be cheaper only over batches, but then the digest would exist only at their ends, and its
inner state could not be put into a snapshot. (The key-value store had this hash before; it costs a
node nothing new.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

from zraft.api import Code
from zraft.core.model import Entries, EntryType
from zraft.errors import DecodeError, VersionError
from zraft.machine.apply import (
    OnError,
    apply_safely,
    query_safely,
    restore_safely,
    snapshot_safely,
)
from zraft.machine.base import Ctx, StateMachine
from zraft.machine.history import DigestHistory
from zraft.machine.sessions import SWEEP_MS, Kept, Session, Sessions
from zraft.wire_entry import decode_entry, naturals, pack, unpack

FORMAT = 1  # of the section "sessions"
SESSIONS = "sessions"
MACHINE = "machine"

_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads small numbers over 64 bits
_COMMAND = int(EntryType.COMMAND)  # plain numbers: comparing with an enum's member is slower
_SESSION = int(EntryType.SESSION)
_new = tuple.__new__  # a NamedTuple made without its Python-level constructor: a third of the time
_OK, _INVALID = Code.OK, Code.INVALID

Section = tuple[str, bytes]
"""One chunk of a snapshot, and the section that it belongs to."""


class Outcome(NamedTuple):
    """What became of an applied entry. `result` is empty where the entry has none.

    `index` is where the command was run: of a repetition, earlier than the entry; 0: never was.
    """

    type: int
    term: int
    code: Code
    result: bytes
    index: int  # type: ignore[assignment]  # a field, not tuple.index


@dataclass(slots=True)
class Applying:
    """A run of committed entries, and how far it is applied."""

    entries: Entries
    position: int = 0


class Replica:
    """See the module. It is never reset: a node that lost its state makes a new one."""

    def __init__(self, machine: StateMachine, on_error: OnError | None = None) -> None:
        """Start before the first entry.

        Args:
            on_error: is told of exceptions that are defects of the machine.
        """
        self.machine = machine
        self.applied = Ctx(0, 0, 0)
        """Index, term and log time of the last applied entry."""
        self.history = DigestHistory()
        """The running digest after each of the last entries."""
        self.sessions = Sessions()
        self._on_error = on_error
        self._running = 0
        self._next_sweep_ms = SWEEP_MS

    def apply(self, index: int, payload: bytes) -> Outcome:
        """Apply the entry `index`, which follows the last one, and return what became of it."""
        entry_type, term, log_time_ms, session, sequence, ack_below, body = decode_entry(payload)
        ctx = _new(Ctx, (index, term, log_time_ms))
        if log_time_ms >= self._next_sweep_ms:
            self._sweep(log_time_ms)
        code, result, at_index = _OK, b"", index
        if entry_type == _COMMAND:
            if session:
                at_index, code, result = self._apply_once(ctx, session, sequence, ack_below, body)
            else:
                ok, result = apply_safely(self.machine, ctx, body, self._on_error)
                code = _OK if ok else _INVALID
        elif entry_type == _SESSION:
            named = session, sequence, body
            at_index, code, result = self.sessions.run(index, log_time_ms, named)
        state = self.sessions.digest + (self.machine.digest() or 0)
        mixed = (index << 32 ^ crc32(result, code)) + state
        self._running = running = (self._running * _ODD + mixed + 1) & _MASK
        self.history.append(running)
        self.applied = ctx
        return _new(Outcome, (entry_type, term, code, result, at_index))

    def _apply_once(
        self, ctx: Ctx, session: int, sequence: int, ack_below: int, body: bytes
    ) -> Kept:
        """Run a command that has a name, unless it was run before or its session is over."""
        begun = self.sessions.begin(session, sequence, ack_below, ctx.log_time_ms)
        if type(begun) is Kept:
            return begun
        assert type(begun) is Session
        ok, result = apply_safely(self.machine, ctx, body, self._on_error)
        kept = _new(Kept, (ctx.index, _OK if ok else _INVALID, result))
        self.sessions.keep(begun, sequence, kept)
        return kept

    def _sweep(self, log_time_ms: int) -> None:
        """End sessions that are over, once in each second of log time: equal on all nodes."""
        self.sessions.sweep(log_time_ms)
        self._next_sweep_ms = (log_time_ms // SWEEP_MS + 1) * SWEEP_MS

    def query(self, request: bytes) -> tuple[Code, bytes]:
        """Answer a read-only request from the state as it is now."""
        ok, answer = query_safely(self.machine, self.applied, request, self._on_error)
        return (_OK if ok else _INVALID), answer

    def digest(self) -> int:
        """Return the 64-bit hash of all results so far and of the present state."""
        parts = self._running, self.sessions.digest, self.machine.digest() or 0
        mixed = self.applied.index
        for part in parts:
            mixed = (mixed * _ODD + part) & _MASK
        return mixed

    def snapshot(self) -> Iterator[Section]:
        """Return the state in chunks. It is frozen when this returns: apply may run between two.

        Raises:
            MachineError: the machine has no snapshot; now, or from the iterator.
        """
        head = pack([FORMAT, self._running])
        return _sections(head, self.sessions.freeze(), snapshot_safely(self.machine))

    def restore(self, applied: Ctx, sections: Iterable[Section]) -> None:
        """Replace the state by a snapshot's, which was taken after the entry `applied`.

        The machine's chunks are handed through one by one, so memory stays bounded.

        Raises:
            DecodeError: these are not the sections of a snapshot; the state is as it was.
            VersionError: a newer program wrote them; the state is as it was.
            MachineError: the machine refused them; its state is not defined any more.
        """
        parts = _Parts(sections)
        running = _decode_head(next(parts.of(SESSIONS), b""))
        table = Sessions.thaw(parts.of(SESSIONS))
        restore_safely(self.machine, parts.of(MACHINE))
        self._running, self.sessions = running, table
        self.applied = applied
        self.history.restart(applied.index + 1)
        self._next_sweep_ms = (applied.log_time_ms // SWEEP_MS + 1) * SWEEP_MS


def _sections(
    head: bytes, sessions: Iterable[bytes], machine: Iterable[bytes]
) -> Iterator[Section]:
    yield SESSIONS, head
    for chunk in sessions:
        yield SESSIONS, chunk
    for chunk in machine:
        yield MACHINE, chunk


class _Parts:
    """The chunks of a snapshot, to be read section by section."""

    def __init__(self, sections: Iterable[Section]) -> None:
        self._rest = iter(sections)
        self._next = next(self._rest, None)

    def of(self, section: str) -> Iterator[bytes]:
        """Yield the chunks of a section until another one begins; DecodeError for a strange one."""
        while self._next is not None:
            name, chunk = self._next
            if name not in {SESSIONS, MACHINE}:
                raise DecodeError(f'a snapshot has a section "{name}", which is not known here')
            if name != section:
                return
            self._next = next(self._rest, None)
            yield chunk


def _decode_head(chunk: bytes) -> int:
    fields = unpack(chunk)
    if type(fields) is not list or len(fields) < 2:
        raise DecodeError("a snapshot's sessions have no header")
    version, running = naturals(fields[:2], "a snapshot's sessions")
    if version > FORMAT:
        raise VersionError(
            f"a snapshot whose sessions have format {version}",
            why=f"this zraft reads formats up to {FORMAT}",
        )
    return running
