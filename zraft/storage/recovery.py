"""What a member knows when it starts: the newest snapshot and the log, put together.

A snapshot covers a part of the log, and the two are written by different syncs; a crash may fall
between them. Which pairs can be met, and what they mean:

- the log holds the snapshot's last entry, or starts right after it: the usual case;
- the snapshot is ahead of the log, or the log has another term at its last index: a crash fell
  between the file of a snapshot that a peer sent and the log that was to start after it. The log is
  dropped and starts after the snapshot. That is safe: a snapshot holds nothing but committed
  entries, so whatever of this log is committed is in it (Raft §7);
- the newest snapshot is damaged: an older one will do, or none, if the log still reaches it;
- the log starts after the snapshot's end, or after index 1 without a snapshot: a hole. Entries that
  were acknowledged are gone, so the member must not take part any more.
"""

from __future__ import annotations

from zraft.core.model import Entries, Recovered, SnapshotMeta
from zraft.errors import CorruptLogError
from zraft.storage.base import Storage
from zraft.storage.snapshots import SnapshotStore

_REPLACE_IT = (
    "keep a copy of the directory for a diagnosis",
    "replace this member by a new, empty one: the other nodes hold its data",
)


def recover(storage: Storage, store: SnapshotStore) -> Recovered:
    """Read snapshots and log, once, and return what is durable and fits together.

    Raises:
        CorruptLogError: there is a hole, or something is not what was written (exit 65).
        ForeignDataError: the data belongs to another cluster or member (exit 65).
        StorageError: the disk refused (exit 74).
    """
    meta = store.load()
    log = storage.load()
    _check_reaches(log, meta, store)
    if meta is None:
        return log
    if meta.term > log.hard_state.term:
        why = f"the snapshot is of term {meta.term}, the log knows {log.hard_state.term}"
        raise _refuse("the log is older than the snapshot", store, why)
    if not _holds(log, meta):
        storage.install(meta)
        storage.sync()
        log = log._replace(entries=Entries(meta.index + 1, [], []), compacted=meta.last_id)
    return log._replace(configuration=meta.configuration, snapshot=meta)


def _check_reaches(log: Recovered, meta: SnapshotMeta | None, store: SnapshotStore) -> None:
    """Refuse a log that starts after the end of the snapshot."""
    start = log.compacted.index
    end = 0 if meta is None else meta.index
    if meta is not None and start == end and log.compacted != meta.last_id:
        why = f"the log starts after {log.compacted}, the snapshot ends at {meta.last_id}"
        raise _refuse("log and snapshot contradict each other", store, why)
    if start <= end:
        return
    if store.damaged:
        raise store.damaged[0]
    have = "there is no snapshot" if meta is None else f"the snapshot ends at {end}"
    raise _refuse("a hole between snapshot and log", store, f"the log starts after {start}; {have}")


def _holds(log: Recovered, meta: SnapshotMeta) -> bool:
    """Return whether the log holds the snapshot's last entry, or starts right after it."""
    if log.compacted == meta.last_id:
        return True
    position = meta.index - log.entries.first_index
    return 0 <= position < len(log.entries.terms) and log.entries.terms[position] == meta.term


def _refuse(what: str, store: SnapshotStore, why: str) -> CorruptLogError:
    return CorruptLogError(what, path=str(store.directory), offset=0, why=why, try_=_REPLACE_IT)
