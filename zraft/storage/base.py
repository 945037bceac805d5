"""The contract of a node's durable storage, and why it is enough.

`save` only collects; `sync` makes everything collected since the last `sync` durable, with one
write and one fdatasync, or raises StorageError. After a failed `sync` the object is dead: a node
stops, it never retries, because a second fsync may report success for pages that the kernel
dropped.

All of one `sync` is one batch: after a crash either the whole batch is there or none of it. So the
term, the vote and the entries of one turn of the loop can't be torn apart.

`load` is called once, before the first `save`. What it returns is exactly what was synced, plus at
most one batch that was written but not known to be synced.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from zraft.core.model import (
    Configuration,
    Entries,
    HardState,
    MemberId,
    Recovered,
    SnapshotMeta,
)


class Identity(NamedTuple):
    """Whose data it is. Checked at every open; a mismatch is ForeignDataError (exit 65)."""

    cluster_id: int  # 64 random bits, made by `cluster up`
    member_id: MemberId


class StorageStats(NamedTuple):
    """Counters for `status` and the bench."""

    syncs: int
    last_sync_us: int
    max_sync_us: int
    bytes_written: int
    segments: int
    repaired_bytes: int  # dropped from a torn tail at the last `load`


class Report(Protocol):
    """Takes facts for the node's telemetry."""

    def __call__(self, event: str, /, **fields: object) -> None:
        """Report one event of the closed list."""
        ...


def no_report(event: str, /, **fields: object) -> None:
    """Nobody wants to know."""


class Storage(Protocol):
    """Durable term, vote and log of one member. One owner, one thread; see the module."""

    def load(self) -> Recovered:
        """Read everything, repair a torn tail, and return what is durable.

        Raises:
            CorruptLogError: bytes are not what was written; names file and offset (exit 65).
            ForeignDataError: the data belongs to another cluster or member (exit 65).
            StorageError: the disk refused (exit 74).
        """
        ...

    def save(self, hard_state: HardState | None, entries: Entries | None) -> None:
        """Add to the current batch. `entries` replaces all at and after its `first_index`."""
        ...

    def install(self, meta: SnapshotMeta) -> None:
        """Let the log start after a snapshot whose file is durable; joins the current batch.

        Entries after it are kept if the log holds the snapshot's last entry, index and term;
        otherwise all of the log is dropped: what is committed is in the snapshot (Raft §7, rules 6
        and 7 of InstallSnapshot). One that is not newer than where the log starts changes nothing.
        """
        ...

    def compact(self, first_index_to_keep: int) -> None:
        """Forget entries before `first_index_to_keep`, which a durable snapshot must cover.

        Durable when it returns; there must be nothing saved and not synced. The space is given
        back later, by `prepare`.

        Raises:
            StorageError: the disk refused (exit 74); the object is dead afterwards.
        """
        ...

    def sync(self) -> None:
        """Make the current batch durable. A no-op when nothing was saved.

        Raises:
            StorageError: the disk refused (exit 74); the object is dead afterwards.
        """
        ...

    def prepare(self, budget_bytes: int) -> bool:
        """Do one small piece of work ahead of time; True when more is to be done.

        That is: delete one segment that is not needed any more, zero-fill at most `budget_bytes` of
        the next one, or sync what was filled some calls ago. Called once a turn when the loop has
        nothing urgent: a segment zero-filled at once is an election (16 MiB take longer than a
        heartbeat).
        """
        ...

    def stats(self) -> StorageStats:
        """Return the counters."""
        ...

    def close(self) -> None:
        """Close the files. Unsynced batches are dropped, as a crash would."""
        ...


__all__ = [
    "Configuration",
    "Entries",
    "HardState",
    "Identity",
    "Recovered",
    "Report",
    "Storage",
    "StorageStats",
    "no_report",
]
