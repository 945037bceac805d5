"""A state machine together with what makes it a replicated one.

`Replica` takes the committed entries one after the other, each exactly once and in order. It keeps
where it is (`applied`), gives each entry to whom it is meant for, and turns what happened into an
`Outcome`: the same on every node, errors of the machine included.

    snapshot   sections, in this order: "sessions" (a header with the running digest, the client
               sessions), then "machine" (the machine's own chunks)
    digest     a running hash over (index, code, result, the machine's own hash of its state) after
               every entry. Equal on all nodes at one index, and restored from a snapshot: two nodes
               that ever answered differently, or had different states, differ for good. The last
               few thousand are kept: `history` tells where two nodes parted.

The running hash is a multiply-and-add over 64 bits whose terms are CRC-32s: a hash against
mistakes, not against malice, equal for every Python and every PYTHONHASHSEED. A cryptographic hash
would be cheaper only over batches, but then the digest would exist only at their ends, and its
inner state could not be put into a snapshot. (The key-value store had this hash before; it costs a
node nothing new.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple
from zlib import crc32

from zraft.api import Code
from zraft.core.model import EntryType
from zraft.errors import DecodeError, VersionError
from zraft.machine.apply import OnError, apply_safely, query_safely
from zraft.machine.base import Ctx, StateMachine
from zraft.machine.history import DigestHistory
from zraft.wire_entry import decode_entry, naturals, pack, unpack

FORMAT = 1  # of the section "sessions"
SESSIONS = "sessions"
MACHINE = "machine"

_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads small numbers over 64 bits
_COMMAND = int(EntryType.COMMAND)  # a plain number: comparing with an enum's member is slower
_OK, _INVALID = Code.OK, Code.INVALID

Section = tuple[str, bytes]
"""One chunk of a snapshot, and the section that it belongs to."""


class Outcome(NamedTuple):
    """What became of an applied entry. `result` is empty where the entry has none."""

    type: int
    term: int
    code: Code
    result: bytes


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
        self._on_error = on_error
        self._running = 0

    def apply(self, index: int, payload: bytes) -> Outcome:
        """Apply the entry `index`, which follows the last one, and return what became of it."""
        entry_type, term, log_time_ms, _, _, _, body = decode_entry(payload)
        ctx = Ctx(index, term, log_time_ms)
        code, result = _OK, b""
        if entry_type == _COMMAND:
            ok, result = apply_safely(self.machine, ctx, body, self._on_error)
            if not ok:
                code = _INVALID
        mixed = (index << 32 ^ crc32(result, code)) + (self.machine.digest() or 0)
        self._running = running = (self._running * _ODD + mixed + 1) & _MASK
        self.history.append(running)
        self.applied = ctx
        return Outcome(entry_type, term, code, result)

    def query(self, request: bytes) -> tuple[Code, bytes]:
        """Answer a read-only request from the state as it is now."""
        ok, answer = query_safely(self.machine, self.applied, request, self._on_error)
        return (_OK if ok else _INVALID), answer

    def digest(self) -> int:
        """Return the 64-bit hash of all results so far and of the present state."""
        state = self.machine.digest()
        return ((self._running ^ (state or 0)) * _ODD + self.applied.index) & _MASK

    def snapshot(self) -> Iterator[Section]:
        """Return the state in chunks. It is frozen when this returns: apply may run between two."""
        head = pack([FORMAT, self._running])
        return _sections(head, self.machine.snapshot())

    def restore(self, applied: Ctx, sections: Iterable[Section]) -> None:
        """Replace the state by a snapshot's, which was taken after the entry `applied`.

        The machine's chunks are handed through one by one, so memory stays bounded.

        Raises:
            DecodeError: these are not the sections of a snapshot; the state is as it was.
            VersionError: a newer program wrote them; the state is as it was.
        """
        parts = iter(sections)
        running = _decode_head(next(parts, None))
        self.machine.restore(_chunks_of_machine(parts))
        self._running = running
        self.applied = applied
        self.history.restart(applied.index + 1)


def _sections(head: bytes, machine: Iterable[bytes]) -> Iterator[Section]:
    yield SESSIONS, head
    for chunk in machine:
        yield MACHINE, chunk


def _decode_head(part: Section | None) -> int:
    if part is None or part[0] != SESSIONS:
        raise DecodeError("a snapshot does not begin with its sessions")
    fields = unpack(part[1])
    if type(fields) is not list or len(fields) < 2:
        raise DecodeError("a snapshot's sessions have no header")
    version, running = naturals(fields[:2], "a snapshot's sessions")
    if version > FORMAT:
        raise VersionError(
            f"a snapshot whose sessions have format {version}",
            why=f"this zraft reads formats up to {FORMAT}",
        )
    return running


def _chunks_of_machine(parts: Iterable[Section]) -> Iterator[bytes]:
    for section, chunk in parts:
        if section != MACHINE:
            raise DecodeError(f'a snapshot has a section "{section}" where none may be')
        yield chunk
