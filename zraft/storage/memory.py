"""Storage without a disk: the same contract, for tests of the core and for the simulator.

It keeps two things apart, as a disk does: what was synced, and the batch that was not. `crash`
loses the second (or, if asked to, keeps it whole: a batch may have reached the disk although nobody
was told). A batch is never kept in part.
"""

from __future__ import annotations

from zraft.core.model import Configuration, Entries, EntryId, HardState, Recovered, SnapshotMeta
from zraft.storage.base import StorageStats
from zraft.storage.replay import may_follow


class MemoryStorage:
    """The durable state of one member, in memory."""

    def __init__(self, configuration: Configuration) -> None:
        self._synced = Recovered(HardState(), configuration, Entries(1, [], []))
        self._saved = self._synced  # with what waits for the sync
        self._pending = False
        self._syncs = 0

    def load(self) -> Recovered:
        """Return what is durable; the caller may keep the lists."""
        entries = self._synced.entries
        copy = Entries(entries.first_index, list(entries.terms), list(entries.payloads))
        return self._synced._replace(entries=copy)

    def save(self, hard_state: HardState | None, entries: Entries | None) -> None:
        """Add to the current batch; see `Storage.save`."""
        saved = self._saved
        if hard_state is not None:
            assert may_follow(saved.hard_state, hard_state), (saved.hard_state, hard_state)
            saved = saved._replace(hard_state=hard_state)
        if entries is not None:
            assert len(entries.terms) == len(entries.payloads)
            old = saved.entries
            assert old.first_index <= entries.first_index <= old.last_index + 1, (entries, old)
            assert max(entries.terms, default=0) <= saved.hard_state.term, (
                "an entry of a later term"
            )
            keep = entries.first_index - old.first_index
            terms = old.terms[:keep] + entries.terms
            payloads = old.payloads[:keep] + entries.payloads
            saved = saved._replace(entries=Entries(old.first_index, terms, payloads))
        self._saved = saved
        self._pending = True

    def install(self, meta: SnapshotMeta) -> None:
        """Start after a snapshot, as a part of the current batch; see `Storage.install`."""
        saved = self._saved
        if meta.index <= saved.compacted.index:
            return
        assert meta.term <= saved.hard_state.term, "a snapshot of a later term"
        entries = saved.entries
        position = meta.index - entries.first_index
        if position < len(entries.terms) and entries.terms[position] == meta.term:
            self._saved = _cut(saved, meta.index + 1)
        else:
            rest = Entries(meta.index + 1, [], [])
            self._saved = saved._replace(entries=rest, compacted=meta.last_id)
        self._pending = True

    def compact(self, first_index_to_keep: int) -> None:
        """Forget entries that a durable snapshot covers; see `Storage.compact`."""
        assert not self._pending, "sync first"
        if first_index_to_keep <= self._saved.compacted.index + 1:
            return
        assert first_index_to_keep <= self._saved.entries.last_index + 1, first_index_to_keep
        self._saved = _cut(self._saved, first_index_to_keep)
        self._pending = True
        self.sync()

    def sync(self) -> None:
        """Make the current batch durable."""
        if not self._pending:
            return
        self._synced = self._saved
        self._pending = False
        self._syncs += 1

    def crash(self, *, keep_unsynced: bool = False) -> None:
        """Lose what was not synced, or keep all of it. `load` tells what is left."""
        if keep_unsynced:
            self.sync()
        self._saved = self._synced
        self._pending = False

    def prepare(self, budget_bytes: int) -> bool:
        """Nothing has to be filled."""
        return False

    def stats(self) -> StorageStats:
        """Return the counters; times and sizes are 0."""
        return StorageStats(self._syncs, 0, 0, 0, 0, 0)

    def close(self) -> None:
        """Drop what was not synced."""
        self.crash()


def _cut(state: Recovered, first_index: int) -> Recovered:
    """Return `state` without the entries before `first_index`, of which it holds the last."""
    entries = state.entries
    drop = first_index - entries.first_index
    compacted = EntryId(first_index - 1, entries.terms[drop - 1])
    rest = Entries(first_index, entries.terms[drop:], entries.payloads[drop:])
    return state._replace(entries=rest, compacted=compacted)
