"""The configurations along the log: the newest one counts at once, committed or not (Raft §6).

It owns the list, oldest first. The first stands at or before the first entry that is kept, each
later one is an entry of the log. Whoever changes the log tells it here: an append adds, a
truncation rolls back, a compaction forgets what no longer decides anything.
"""

from __future__ import annotations

from zraft.core.model import Configuration


class Configurations:
    """See the module. Never empty; indices rise."""

    __slots__ = ("_along", "newest")

    def __init__(self, base: Configuration) -> None:
        """Start with the one before the first entry."""
        self._along = [base]
        self.newest = base
        """The one in force."""

    @property
    def along(self) -> tuple[Configuration, ...]:
        """All that are known, oldest first."""
        return tuple(self._along)

    def at(self, index: int) -> Configuration:
        """Return the one in force for a log that ends at `index`, which is not compacted away."""
        return self.since(index)[0]

    def since(self, index: int) -> list[Configuration]:
        """Return the one in force at `index` and all after it, oldest first."""
        start = max(i for i, c in enumerate(self._along) if i == 0 or c.index <= index)
        return self._along[start:]

    def append(self, configuration: Configuration) -> None:
        """Add that of an entry which was appended: from here on it counts."""
        assert configuration.index > self.newest.index, (configuration, self.newest)
        self._along.append(configuration)
        self.newest = configuration

    def truncate_from(self, index: int) -> list[Configuration]:
        """Forget those at `index` and after it; return them, newest first."""
        removed: list[Configuration] = []
        while len(self._along) > 1 and self._along[-1].index >= index:
            removed.append(self._along.pop())
        self.newest = self._along[-1]
        assert not removed or self.newest.index < index, "the base can't be rolled back"
        return removed

    def compact(self, index: int) -> None:
        """Forget those that a later one at or before `index` has replaced."""
        while len(self._along) > 1 and self._along[1].index <= index:
            del self._along[0]

    def restore(self, configuration: Configuration) -> None:
        """Replace all by that of a snapshot, after which the log starts anew."""
        self._along = [configuration]
        self.newest = configuration
