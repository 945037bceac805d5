"""From segments to what a node knows: reads every record in file order and checks how they connect.

Checked beyond checksums, because a log can be sound batch by batch and still not be one log:
segment numbers, batch numbers and the chain run on; every segment belongs to the member; the term
never falls and a vote is never taken back (Raft §5.2); entries leave no gap; no entry has a term
above the hard state's; the log starts at index 1 or right after the last compaction.

The last hard state in file order counts. Entries replace everything at and after their first index.
A restart empties the log and lets it go on after a snapshot that was installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zraft.core.model import NOBODY, Configuration, Entries, EntryId, HardState, Recovered
from zraft.errors import ForeignDataError
from zraft.storage.base import Identity
from zraft.storage.segment import Segment, corrupt, segment_name, unpack_records


def may_follow(old: HardState, new: HardState) -> bool:
    """Whether a member may go from `old` to `new`: the term never falls, one vote per term."""
    if new.term != old.term:
        return new.term > old.term
    return old.voted_for in (NOBODY, new.voted_for)


class Replay:
    """Collects the log; feed it all segments in order, then `finish`."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._last: Segment | None = None
        self.hard_state = HardState()
        self.configuration = Configuration(())
        self.compacted = EntryId(0, 0)
        self._first_index = 1
        self._terms: list[int] = []
        self._payloads: list[bytes] = []
        self.starts: list[tuple[int, int]] = []
        """Number of each segment, and the first index of which it or a later one holds all."""

    def on_segment(self, segment: Segment) -> None:
        """Take in one segment.

        Raises:
            CorruptLogError: it does not continue the segment before it.
            ForeignDataError: it belongs to another cluster or member.
        """
        self._check_identity(segment)
        self._check_continues(segment)
        header = segment.header
        if self._last is None:
            self._first_index = header.first_index
        self.starts.append((header.number, header.first_index))
        self._on_hard_state(segment.path, 0, header.hard_state)
        self.configuration = header.configuration
        self.compacted = max(self.compacted, header.compacted)
        for batch in segment.batches:
            try:
                records = list(unpack_records(batch.body))
            except (ValueError, TypeError) as error:
                what = "a record of the wrong shape"
                raise corrupt(what, segment.path, batch.offset, str(error)) from error
            for record in records:
                if record.hard_state is not None:
                    self._on_hard_state(segment.path, batch.offset, record.hard_state)
                if record.entries is not None:
                    self._on_entries(segment.path, batch.offset, record.entries)
                if record.compacted is not None:
                    self.compacted = max(self.compacted, record.compacted)
                if record.restart is not None:
                    self._on_restart(segment.path, batch.offset, record.restart)
        self._last = segment

    def _check_identity(self, segment: Segment) -> None:
        found, own = segment.header.identity, self._identity
        if found == own:
            return
        raise ForeignDataError(
            f"{segment.path} belongs to member {found.member_id:016x} of cluster"
            f" {found.cluster_id:016x}",
            why=f"this is member {own.member_id:016x} of cluster {own.cluster_id:016x}",
            try_="put the right data directory back, or replace this member by a new one",
        )

    def _check_continues(self, segment: Segment) -> None:
        header, path = segment.header, segment.path
        if path.name != segment_name(header.number):
            raise corrupt("a segment under a wrong name", path, 0, f"it is number {header.number}")
        if self._last is None:
            return
        expected = self._last.header.number + 1
        if header.number != expected:
            missing = path.with_name(segment_name(expected))
            raise corrupt("a missing segment", missing, 0, f"{path.name} exists")
        first = segment.first.header
        if (first.number, first.chain) != (self._last.next_number, self._last.chain):
            why = f"it does not continue {self._last.path.name}"
            raise corrupt("a broken chain", path, 0, why)
        next_index = self._first_index + len(self._terms)
        if header.first_index != next_index:
            why = f"it starts at index {header.first_index}, the log is at {next_index}"
            raise corrupt("a gap in the log", path, 0, why)

    def _on_hard_state(self, path: Path, offset: int, new: HardState) -> None:
        if not may_follow(self.hard_state, new):
            why = f"{self.hard_state} can't be followed by {new}"
            raise corrupt("a term that falls or a second vote", path, offset, why)
        self.hard_state = new

    def _on_entries(self, path: Path, offset: int, entries: Entries) -> None:
        keep = entries.first_index - self._first_index
        if keep > len(self._terms):
            why = f"index {self._first_index + len(self._terms)} is missing"
            raise corrupt("a gap in the log", path, offset, why)
        if keep <= 0:
            self._first_index = entries.first_index
            self._terms, self._payloads = entries.terms, entries.payloads
            return
        del self._terms[keep:], self._payloads[keep:]
        self._terms += entries.terms
        self._payloads += entries.payloads

    def _on_restart(self, path: Path, offset: int, last_included: EntryId) -> None:
        if last_included.index <= self.compacted.index:
            why = f"{last_included} is installed after {self.compacted} was"
            raise corrupt("a snapshot that falls back", path, offset, why)
        self.compacted = last_included
        self._first_index = last_included.index + 1
        self._terms, self._payloads = [], []
        number, first_index = self.starts[-1]
        self.starts[-1] = (number, min(first_index, self._first_index))

    def finish(self) -> Recovered:
        """Return what is durable.

        Raises:
            CorruptLogError: segments at the start are missing, or a term is above the hard state's.
        """
        assert self._last is not None, "a log has a segment"
        first_index = self.compacted.index + 1
        if self._first_index > first_index:
            why = f"entries {first_index} to {self._first_index - 1} are in no segment"
            raise corrupt("segments missing at the start", self._last.path.parent, 0, why)
        drop = first_index - self._first_index
        terms, payloads = self._terms[drop:], self._payloads[drop:]
        highest = max(terms, default=self.compacted.term)
        if highest > self.hard_state.term:
            why = f"an entry has term {highest}, the hard state only {self.hard_state.term}"
            raise corrupt("a lost term", self._last.path, 0, why)
        entries = Entries(first_index, terms, payloads)
        return Recovered(self.hard_state, self.configuration, entries, self.compacted)


def replay(identity: Identity, segments: Sequence[Segment]) -> Recovered:
    """Return what these segments, in order, hold. Raises as `Replay` does."""
    log = Replay(identity)
    for segment in segments:
        log.on_segment(segment)
    return log.finish()
