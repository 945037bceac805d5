"""Storage without a disk: the same contract, for tests of the core and for the simulator.

It keeps two things apart, as a disk does: what was synced, and the batch that was not. `crash`
loses the second (or, if asked to, keeps it whole: a batch may have reached the disk although nobody
was told). A batch is never kept in part.
"""

from __future__ import annotations

from zraft.core.model import Configuration, Entries, HardState, Recovered
from zraft.storage.base import StorageStats
from zraft.storage.replay import may_follow


class MemoryStorage:
    """The durable state of one member, in memory."""

    def __init__(self, configuration: Configuration) -> None:
        self._synced = Recovered(HardState(), configuration, Entries(1, [], []))
        self._saved: list[tuple[HardState | None, Entries | None]] = []
        self._hard_state = HardState()  # with what is saved
        self._last_index = 0
        self._syncs = 0

    def load(self) -> Recovered:
        """Return what is durable; the caller may keep the lists."""
        entries = self._synced.entries
        copy = Entries(entries.first_index, list(entries.terms), list(entries.payloads))
        return self._synced._replace(entries=copy)

    def save(self, hard_state: HardState | None, entries: Entries | None) -> None:
        """Add to the current batch; see `Storage.save`."""
        if hard_state is not None:
            assert may_follow(self._hard_state, hard_state), (self._hard_state, hard_state)
            self._hard_state = hard_state
        if entries is not None:
            assert len(entries.terms) == len(entries.payloads)
            assert 1 <= entries.first_index <= self._last_index + 1, (entries, self._last_index)
            assert max(entries.terms, default=0) <= self._hard_state.term, (
                "an entry of a later term"
            )
            self._last_index = entries.last_index
            entries = Entries(entries.first_index, list(entries.terms), list(entries.payloads))
        self._saved.append((hard_state, entries))

    def sync(self) -> None:
        """Make the current batch durable."""
        if not self._saved:
            return
        hard_state, durable = self._synced.hard_state, self._synced.entries
        for new_hard_state, entries in self._saved:
            hard_state = new_hard_state or hard_state
            if entries is not None:
                keep = entries.first_index - durable.first_index
                del durable.terms[keep:], durable.payloads[keep:]
                durable.terms.extend(entries.terms)
                durable.payloads.extend(entries.payloads)
        self._synced = self._synced._replace(hard_state=hard_state, entries=durable)
        self._saved.clear()
        self._syncs += 1

    def crash(self, *, keep_unsynced: bool = False) -> None:
        """Lose what was not synced, or keep all of it. `load` tells what is left."""
        if keep_unsynced:
            self.sync()
        self._saved.clear()
        self._hard_state = self._synced.hard_state
        self._last_index = self._synced.entries.last_index

    def prepare(self, budget_bytes: int) -> bool:
        """Nothing has to be filled."""
        return False

    def stats(self) -> StorageStats:
        """Return the counters; times and sizes are 0."""
        return StorageStats(self._syncs, 0, 0, 0, 0, 0)

    def close(self) -> None:
        """Drop what was not synced."""
        self.crash()
