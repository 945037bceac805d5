"""The production log over a simulated disk, and beside it a shadow: what is durable, known exactly.

The shadow is what the invariants ask. It is not the log's own opinion: it takes a batch in only
when `sync` has returned, and after a crash the recovered log is compared with it. Recovery must
give either all that was synced, or that and the whole batch that was under way; nothing else.

The shadow never forgets: what the log has compacted stays in the shadow, and what a snapshot
brought without its entries is filled in from the committed log. So every index keeps its place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from zraft.core.model import (
    Configuration,
    Entries,
    EntryId,
    HardState,
    MemberId,
    Recovered,
    SnapshotMeta,
)
from zraft.storage.base import Identity, Report, StorageStats
from zraft.storage.wal import Wal
from zraft.testing.disk import SimulatedDisk
from zraft.testing.sim.trace import Violation

CLUSTER_ID = 0x5A52414654  # any number: all frames and files of one world carry it


Change: TypeAlias = tuple[HardState | None, Entries | None] | SnapshotMeta | EntryId
"""One part of a batch: a save, an installed snapshot, or where the log is cut."""


def _nothing_committed(index: int) -> list[int]:
    raise AssertionError(f"nobody knows what is committed up to {index}")


class Shadow:
    """What one member's disk holds for certain, and the batch that may or may not be there.

    `committed_terms(index)` returns the terms of the committed entries up to `index`.
    """

    __slots__ = ("committed_terms", "compacted", "hard_state", "payloads", "pending", "terms")

    def __init__(self, committed_terms: Callable[[int], list[int]] = _nothing_committed) -> None:
        self.committed_terms = committed_terms
        self.hard_state = HardState()
        self.compacted = EntryId(0, 0)
        self.terms: list[int] = []  # from index 1 on, whatever the log still holds
        self.payloads: list[bytes] = []
        self.pending: list[Change] = []

    def commit(self) -> int | None:
        """Take in the batch that was synced; return the first index it replaced, None for none."""
        replaced: list[int] = []
        for change in self.pending:
            if isinstance(change, SnapshotMeta):
                replaced += self._install(change)
            elif isinstance(change, EntryId):
                self.compacted = change
            else:
                replaced += self._save(*change)
        self.pending.clear()
        return min(replaced, default=None)

    def _save(self, hard_state: HardState | None, entries: Entries | None) -> list[int]:
        if hard_state is not None:
            self.hard_state = hard_state
        if entries is None:
            return []
        kept = entries.first_index - 1
        replaced = [kept + 1] if kept < len(self.terms) else []
        self.terms[kept:] = entries.terms
        self.payloads[kept:] = entries.payloads
        return replaced

    def _install(self, meta: SnapshotMeta) -> list[int]:
        if meta.index <= self.compacted.index:
            return []
        self.compacted = meta.last_id
        if meta.index <= len(self.terms) and self.terms[meta.index - 1] == meta.term:
            return []
        replaced = [meta.index + 1] if meta.index < len(self.terms) else []
        self.terms = self.committed_terms(meta.index)
        self.payloads = [b""] * meta.index  # in no log: never compared
        return replaced

    def settle(self, recovered: Recovered) -> bool:
        """Compare with what a crash left; return whether the batch under way survived.

        Raises:
            Violation: it is neither what was synced nor that and the whole batch.
        """
        had_pending = bool(self.pending)
        if self._equals(recovered):
            self.pending.clear()
            return False
        self.commit()
        if had_pending and self._equals(recovered):
            return True
        first, last = recovered.entries.first_index, recovered.entries.last_index
        raise Violation(
            f"recovery gave {recovered.hard_state} and entries {first} to {last}; synced were "
            f"{self.hard_state} and entries {self.compacted.index + 1} to {len(self.terms)}"
        )

    def _equals(self, recovered: Recovered) -> bool:
        return (
            recovered.hard_state == self.hard_state
            and recovered.compacted == self.compacted
            and recovered.entries.terms == self.terms[self.compacted.index :]
            and recovered.entries.payloads == self.payloads[self.compacted.index :]
        )


class SimStorage:
    """One life of a member's log; satisfies `Storage`."""

    def __init__(
        self,
        member_id: MemberId,
        disk: SimulatedDisk,
        shadow: Shadow,
        segment_bytes: int,
        report: Report,
    ) -> None:
        self.shadow = shadow
        self.replaced: int | None = None  # by the last sync: the first index that was overwritten
        self.survived: bool | None = None  # the batch under way at the last death, if there was one
        self._wal = Wal(
            log_directory(member_id),
            Identity(CLUSTER_ID, member_id),
            segment_bytes=segment_bytes,
            files=disk,
            report=report,
        )
        # Called for every turn of every node: no need for another frame on the stack.
        self.prepare = self._wal.prepare

    def load(self) -> Recovered:
        """Read the log, and compare it with the shadow; see `Storage.load`."""
        recovered = self._wal.load()
        had_pending = bool(self.shadow.pending)
        survived = self.shadow.settle(recovered)
        self.survived = survived if had_pending else None
        return recovered

    def save(self, hard_state: HardState | None, entries: Entries | None) -> None:
        """Add to the batch; see `Storage.save`."""
        self._wal.save(hard_state, entries)
        self.shadow.pending.append((hard_state, entries))

    def install(self, meta: SnapshotMeta) -> None:
        """Start after a snapshot; see `Storage.install`."""
        self._wal.install(meta)
        self.shadow.pending.append(meta)

    def compact(self, first_index_to_keep: int) -> None:
        """Forget entries; see `Storage.compact`."""
        index = first_index_to_keep - 1
        if index > self.shadow.compacted.index:
            self.shadow.pending.append(EntryId(index, self.shadow.terms[index - 1]))
        self._wal.compact(first_index_to_keep)
        self.shadow.commit()

    def sync(self) -> None:
        """Make the batch durable; see `Storage.sync`."""
        self._wal.sync()
        self.replaced = self.shadow.commit()

    def stats(self) -> StorageStats:
        """Return the log's counters."""
        return self._wal.stats()

    def close(self) -> None:
        """Close the log; what was not synced is dropped."""
        self._wal.close()


def snapshot_directory(member_id: MemberId) -> Path:
    """Return where a member's snapshots are on its own disk."""
    return Path(f"/n{member_id}/snap")


def log_directory(member_id: MemberId) -> Path:
    """Return where a member's log is on its own disk."""
    return Path(f"/n{member_id}/wal")


def make_empty_disk(member_id: MemberId) -> SimulatedDisk:
    """Return a disk with a member's directory, and nothing in it, everything durable."""
    disk = SimulatedDisk()
    disk.mkdir(log_directory(member_id).parent)
    disk.sync_everything()
    return disk


def make_disk(member_id: MemberId, configuration: Configuration) -> SimulatedDisk:
    """Return a disk with an empty log, everything durable."""
    disk = make_empty_disk(member_id)
    directory = log_directory(member_id)
    Wal.create(directory, Identity(CLUSTER_ID, member_id), configuration, files=disk)
    disk.sync_everything()
    return disk
