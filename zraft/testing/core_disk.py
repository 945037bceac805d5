"""What a member of a `CoreCluster` finds after a crash: a disk that is a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zraft.core.model import (
    Command,
    Configuration,
    Entries,
    EntryId,
    HardState,
    Recovered,
    SnapshotMeta,
)
from zraft.core.ready import Ready
from zraft.errors import ForeignDataError
from zraft.wire_entry import EntryCodec

_CODEC = EntryCodec()


def payload_at(index: int, term: int) -> bytes:
    """Return the payload of a made-up entry: the same for the same index and term, everywhere."""
    return _CODEC.encode(Command(f"{index}.{term}".encode()), term=term, log_time_ms=0)


class StoredSnapshot(NamedTuple):
    """A made-up snapshot: what it says of itself, and every payload that it covers."""

    meta: SnapshotMeta
    payloads: tuple[bytes, ...]


class Disk:
    """What one member finds after a crash: its log after `compacted`, and its newest snapshot."""

    __slots__ = ("compacted", "hard_state", "lost", "payloads", "snapshot", "terms")

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.compacted = EntryId(0, 0)
        self.terms: list[int] = []
        self.payloads: list[bytes] = []
        self.snapshot: StoredSnapshot | None = None
        self.lost = False

    def lose(self) -> None:
        """Forget everything, for good: nobody starts from here again."""
        self.write([], HardState())
        self.lost = True

    def save(self, ready: Ready) -> None:
        """Persist what a Ready wants persisted; entries replace all from their first index on."""
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.snapshot is not None:
            assert self.snapshot is not None, "a snapshot is stored before it is installed"
            assert self.snapshot.meta == ready.snapshot
            self.compacted = ready.snapshot.last_id
            self.terms, self.payloads = [], []
        if ready.entries is not None:
            kept = ready.entries.first_index - self.compacted.index - 1
            assert 0 <= kept <= len(self.terms), "a hole in the log on disk"
            self.terms[kept:] = ready.entries.terms
            self.payloads[kept:] = ready.entries.payloads

    def compact(self, first_index: int) -> None:
        """Forget the entries before `first_index`."""
        count = first_index - self.compacted.index - 1
        if count > 0:
            self.compacted = EntryId(first_index - 1, self.terms[count - 1])
            del self.terms[:count], self.payloads[:count]

    def holds(self, index: int, term: int) -> bool:
        """Return whether the entry is on this disk, by itself or in a snapshot."""
        if self.snapshot is not None and index <= self.snapshot.meta.index:
            return True
        position = index - self.compacted.index - 1
        return 0 <= position < len(self.terms) and self.terms[position] == term

    def write(self, terms: Sequence[int], hard_state: HardState) -> None:
        """Replace everything by a log with these terms and made-up payloads."""
        self.hard_state = hard_state
        self.compacted, self.snapshot = EntryId(0, 0), None
        self.terms = list(terms)
        self.payloads = [payload_at(index, term) for index, term in enumerate(terms, 1)]

    def recover(self, configuration: Configuration) -> Recovered:
        """Return what a starting node reads.

        A snapshot that the log does not reach, or contradicts, takes its place (it was stored, and
        the crash came before it was installed).

        Raises:
            ForeignDataError: the disk was lost, and with it the votes that its member gave.
        """
        if self.lost:
            raise ForeignDataError("there is no log", why="the disk was lost")
        compacted, terms, payloads = self.compacted, self.terms, self.payloads
        meta = None if self.snapshot is None else self.snapshot.meta
        if meta is not None:
            configuration = meta.configuration
            if meta.last_id != compacted and not (
                compacted.index < meta.index <= compacted.index + len(terms)
                and terms[meta.index - compacted.index - 1] == meta.term
            ):
                compacted, terms, payloads = meta.last_id, [], []
                self.compacted, self.terms, self.payloads = compacted, [], []
        entries = Entries(compacted.index + 1, list(terms), list(payloads))
        return Recovered(self.hard_state, configuration, entries, compacted, meta)
