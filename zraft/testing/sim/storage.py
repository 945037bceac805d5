"""The production log over a simulated disk, and beside it a shadow: what is durable, known exactly.

The shadow is what the invariants ask. It is not the log's own opinion: it takes a batch in only
when `sync` has returned, and after a crash the recovered log is compared with it. Recovery must
give either all that was synced, or that and the whole batch that was under way; nothing else.
"""

from __future__ import annotations

from pathlib import Path

from zraft.core.model import Configuration, Entries, HardState, MemberId, Recovered
from zraft.storage.base import Identity, StorageStats
from zraft.storage.wal import Report, Wal
from zraft.testing.disk import SimulatedDisk
from zraft.testing.sim.trace import Violation

CLUSTER_ID = 0x5A52414654  # any number: all frames and files of one world carry it


class Shadow:
    """What one member's disk holds for certain, and the batch that may or may not be there."""

    __slots__ = ("hard_state", "payloads", "pending", "terms")

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.terms: list[int] = []
        self.payloads: list[bytes] = []
        self.pending: list[tuple[HardState | None, Entries | None]] = []

    def commit(self) -> int | None:
        """Take in the batch that was synced; return the first index it replaced, None for none."""
        replaced: int | None = None
        for hard_state, entries in self.pending:
            if hard_state is not None:
                self.hard_state = hard_state
            if entries is not None:
                kept = entries.first_index - 1
                if kept < len(self.terms):
                    replaced = kept + 1 if replaced is None else min(replaced, kept + 1)
                self.terms[kept:] = entries.terms
                self.payloads[kept:] = entries.payloads
        self.pending.clear()
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
        last = recovered.entries.last_index
        raise Violation(
            f"recovery gave {recovered.hard_state} and entries up to {last}; synced were "
            f"{self.hard_state} and entries up to {len(self.terms)}"
        )

    def _equals(self, recovered: Recovered) -> bool:
        return (
            recovered.hard_state == self.hard_state
            and recovered.entries.terms == self.terms
            and recovered.entries.payloads == self.payloads
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
        """Read the log; see `Storage.load`."""
        return self._wal.load()

    def save(self, hard_state: HardState | None, entries: Entries | None) -> None:
        """Add to the batch; see `Storage.save`."""
        self._wal.save(hard_state, entries)
        self.shadow.pending.append((hard_state, entries))

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


def log_directory(member_id: MemberId) -> Path:
    """Return where a member's log is on its own disk."""
    return Path(f"/n{member_id}/wal")


def make_disk(member_id: MemberId, configuration: Configuration) -> SimulatedDisk:
    """Return a disk with an empty log, everything durable."""
    disk = SimulatedDisk()
    directory = log_directory(member_id)
    disk.mkdir(directory.parent)
    Wal.create(directory, Identity(CLUSTER_ID, member_id), configuration, files=disk)
    disk.sync_everything()
    return disk
