"""What every storage promises, on the WAL over real files and on the one in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.wal_logs import CONFIGURATION, IDENTITY
from zraft.core.model import Entries, EntryId, HardState, Recovered, SnapshotMeta
from zraft.storage.base import Storage
from zraft.storage.memory import MemoryStorage
from zraft.storage.wal import Wal


class Machine(Protocol):
    """A computer with one storage, which can crash."""

    storage: Storage

    def crash(self) -> Recovered:
        """Lose what was not synced, start again, and return what is durable."""
        ...

    def stop(self) -> None:
        """Give everything back."""
        ...


class WalMachine:
    """The WAL in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        Wal.create(directory, IDENTITY, CONFIGURATION)
        self.storage: Storage = Wal(directory, IDENTITY, segment_bytes=4096)
        self.storage.load()

    def crash(self) -> Recovered:
        """Close without syncing and open again."""
        self.storage.close()
        self.storage = Wal(self._directory, IDENTITY, segment_bytes=4096)
        return self.storage.load()

    def stop(self) -> None:
        """Close the files."""
        self.storage.close()


class MemoryMachine:
    """The storage in memory."""

    def __init__(self) -> None:
        self._memory = MemoryStorage(CONFIGURATION)
        self.storage: Storage = self._memory

    def crash(self) -> Recovered:
        """Lose what was not synced."""
        self._memory.crash()
        return self._memory.load()

    def stop(self) -> None:
        """Nothing to give back."""
        self._memory.close()


@pytest.fixture(params=["wal", "memory"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """A new machine of each kind."""
    made: Machine = WalMachine(tmp_path / "wal") if request.param == "wal" else MemoryMachine()
    yield made
    made.stop()


def test_new_storage_is_empty_and_knows_its_configuration(machine: Machine) -> None:
    """A member that was just made has term 0, no vote, no entries and the base configuration."""
    assert machine.crash() == Recovered(HardState(0, 0), CONFIGURATION, Entries(1, [], []))


def test_what_was_synced_survives_a_crash(machine: Machine) -> None:
    """Term, vote and entries of a sync are there afterwards, payloads byte for byte."""
    payloads = [b"", b"\x00" * 2000, bytes(range(256)), b"\xff" * 700]
    machine.storage.save(HardState(3, 7), Entries(1, [1, 1, 2, 3], payloads))
    machine.storage.sync()
    expected = Recovered(HardState(3, 7), CONFIGURATION, Entries(1, [1, 1, 2, 3], payloads))
    assert machine.crash() == expected
    assert machine.crash() == expected, "loading changes nothing"


def test_what_was_not_synced_is_lost_as_a_whole(machine: Machine) -> None:
    """Saves without a sync leave nothing: neither the vote nor the entry."""
    machine.storage.save(HardState(1, 7), Entries(1, [1], [b"a"]))
    machine.storage.sync()
    machine.storage.save(HardState(2, 8), None)
    machine.storage.save(None, Entries(2, [2], [b"b"]))
    assert machine.crash() == Recovered(HardState(1, 7), CONFIGURATION, Entries(1, [1], [b"a"]))
    with pytest.raises(AssertionError):
        machine.storage.save(None, Entries(3, [1], [b"after what is lost"]))


def test_several_saves_are_one_sync(machine: Machine) -> None:
    """All saves since the last sync become durable together, in their order."""
    machine.storage.save(HardState(1, 7), None)
    machine.storage.save(None, Entries(1, [1, 1], [b"a", b"b"]))
    machine.storage.save(HardState(2, 0), Entries(2, [2], [b"c"]))
    machine.storage.sync()
    assert machine.storage.stats().syncs == 1
    expected = Recovered(HardState(2, 0), CONFIGURATION, Entries(1, [1, 2], [b"a", b"c"]))
    assert machine.crash() == expected


def test_sync_of_nothing_is_free(machine: Machine) -> None:
    """Without a save there is nothing to write, and no sync is counted."""
    machine.storage.sync()
    assert machine.storage.stats().syncs == 0


def test_entries_replace_everything_at_and_after_their_first_index(machine: Machine) -> None:
    """A new leader's entries take the place of a conflicting suffix (Raft §5.3)."""
    machine.storage.save(HardState(1, 7), Entries(1, [1] * 5, [b"a", b"b", b"c", b"d", b"e"]))
    machine.storage.sync()
    machine.storage.save(HardState(2, 8), Entries(3, [2], [b"x"]))
    machine.storage.sync()
    entries = Entries(1, [1, 1, 2], [b"a", b"b", b"x"])
    assert machine.crash() == Recovered(HardState(2, 8), CONFIGURATION, entries)
    machine.storage.save(None, Entries(1, [], []))
    machine.storage.sync()
    assert machine.crash().entries == Entries(1, [], []), "no entries: only truncation"


def test_an_entry_may_be_replaced_by_one_of_an_older_term(machine: Machine) -> None:
    """The leader of a later term brings its predecessors' entries (Raft Fig. 7)."""
    machine.storage.save(HardState(6, 7), Entries(1, [4, 4, 5], [b"a", b"b", b"c"]))
    machine.storage.save(None, Entries(3, [4, 6], [b"x", b"y"]))
    machine.storage.sync()
    assert machine.crash().entries == Entries(1, [4, 4, 4, 6], [b"a", b"b", b"x", b"y"])


def test_a_gap_is_refused(machine: Machine) -> None:
    """An entry that does not follow the last one is a broken invariant."""
    machine.storage.save(HardState(1, 7), Entries(1, [1], [b"a"]))
    with pytest.raises(AssertionError):
        machine.storage.save(None, Entries(3, [1], [b"c"]))


@pytest.mark.parametrize("hard_state", [HardState(1, 7), HardState(2, 9), HardState(2, 0)])
def test_a_term_never_falls_and_a_vote_is_never_changed(
    machine: Machine, hard_state: HardState
) -> None:
    """One vote per term; terms only grow (Raft §5.2)."""
    machine.storage.save(HardState(2, 7), None)
    with pytest.raises(AssertionError):
        machine.storage.save(hard_state, None)


def test_an_entry_of_a_term_not_yet_durable_is_refused(machine: Machine) -> None:
    """The hard state's term is at least that of every entry; otherwise a restart lowers it."""
    machine.storage.save(HardState(1, 7), None)
    with pytest.raises(AssertionError):
        machine.storage.save(None, Entries(1, [2], [b"a"]))


def test_saving_goes_on_after_a_crash(machine: Machine) -> None:
    """A log is extended over many restarts, each with a batch that was lost."""
    machine.storage.save(HardState(1, 7), None)
    machine.storage.sync()
    for index in range(1, 30):
        machine.storage.save(None, Entries(index, [1], [b"%d" % index * 50]))
        machine.storage.sync()
        machine.storage.save(None, Entries(index, [1], [b"lost"]))
        recovered = machine.crash()
        assert recovered.entries.last_index == index
        assert recovered.entries.payloads[-1] == b"%d" % index * 50
        while machine.storage.prepare(1 << 18):
            pass


def snapshot(index: int, term: int) -> SnapshotMeta:
    """Return what describes a snapshot."""
    return SnapshotMeta(index, term, CONFIGURATION)


def five_entries(machine: Machine) -> None:
    """Make five entries durable: terms 1, 1, 2, 2, 3."""
    entries = Entries(1, [1, 1, 2, 2, 3], [b"a", b"b", b"c", b"d", b"e"])
    machine.storage.save(HardState(3, 7), entries)
    machine.storage.sync()


def test_compaction_forgets_a_prefix(machine: Machine) -> None:
    """The log starts after it, and its last entry's term is still known (pitfall 27)."""
    five_entries(machine)
    machine.storage.compact(3)
    machine.storage.compact(2)
    entries = Entries(3, [2, 2, 3], [b"c", b"d", b"e"])
    assert machine.crash() == Recovered(HardState(3, 7), CONFIGURATION, entries, EntryId(2, 1))
    machine.storage.compact(6)
    rest = Recovered(HardState(3, 7), CONFIGURATION, Entries(6, [], []), EntryId(5, 3))
    assert machine.crash() == rest
    machine.storage.save(None, Entries(6, [3], [b"f"]))
    machine.storage.sync()
    assert machine.crash() == rest._replace(entries=Entries(6, [3], [b"f"]))


def test_what_is_compacted_is_not_written_again(machine: Machine) -> None:
    """Entries at or before the cut are committed: to replace one is a broken invariant."""
    five_entries(machine)
    machine.storage.compact(3)
    with pytest.raises(AssertionError):
        machine.storage.save(None, Entries(2, [3], [b"x"]))
    with pytest.raises(AssertionError):
        machine.storage.compact(7)


def test_an_installed_snapshot_of_a_prefix_keeps_the_suffix(machine: Machine) -> None:
    """The log holds its last entry, index and term: what follows it stays (pitfall 48)."""
    five_entries(machine)
    machine.storage.install(snapshot(3, 2))
    machine.storage.sync()
    expected = Recovered(
        HardState(3, 7), CONFIGURATION, Entries(4, [2, 3], [b"d", b"e"]), EntryId(3, 2)
    )
    assert machine.crash() == expected
    machine.storage.install(snapshot(5, 3))
    machine.storage.sync()
    assert machine.crash().entries == Entries(6, [], [])


@pytest.mark.parametrize(("index", "term"), [(3, 3), (3, 1), (5, 2), (6, 3), (900, 3)])
def test_an_installed_snapshot_that_the_log_does_not_hold_empties_it(
    machine: Machine, index: int, term: int
) -> None:
    """Other entries than the leader's were never committed (Raft §7)."""
    five_entries(machine)
    machine.storage.install(snapshot(index, term))
    machine.storage.sync()
    entries = Entries(index + 1, [], [])
    expected = Recovered(HardState(3, 7), CONFIGURATION, entries, EntryId(index, term))
    assert machine.crash() == expected
    machine.storage.save(None, Entries(index + 1, [3, 3], [b"x", b"y"]))
    machine.storage.sync()
    machine.storage.compact(index + 2)
    assert machine.crash().entries == Entries(index + 2, [3], [b"y"])


@pytest.mark.parametrize("index", [1, 2])
def test_an_older_snapshot_rolls_nothing_back(machine: Machine, index: int) -> None:
    """One that ends before the log starts changes nothing (pitfall 48)."""
    five_entries(machine)
    machine.storage.compact(3)
    before = machine.crash()
    machine.storage.install(snapshot(index, 1))
    machine.storage.sync()
    assert machine.crash() == before


def test_an_installed_snapshot_is_one_batch_with_what_is_saved_around_it(machine: Machine) -> None:
    """A crash before the sync leaves all of the old, after it all of the new."""
    five_entries(machine)
    before = machine.crash()

    def save_all() -> None:
        machine.storage.save(HardState(4, 8), None)
        machine.storage.install(snapshot(20, 4))
        machine.storage.save(None, Entries(21, [4], [b"z"]))

    save_all()
    assert machine.crash() == before
    save_all()
    machine.storage.sync()
    expected = Recovered(HardState(4, 8), CONFIGURATION, Entries(21, [4], [b"z"]), EntryId(20, 4))
    assert machine.crash() == expected


def test_a_snapshot_of_a_term_not_yet_durable_is_refused(machine: Machine) -> None:
    """As with entries: a restart would lower the term."""
    five_entries(machine)
    with pytest.raises(AssertionError):
        machine.storage.install(snapshot(20, 4))


def test_memory_may_keep_the_unsynced_batch_whole() -> None:
    """A batch that was written and never acknowledged is there whole or not at all."""
    memory = MemoryStorage(CONFIGURATION)
    memory.save(HardState(1, 7), Entries(1, [1], [b"a"]))
    memory.crash(keep_unsynced=True)
    assert memory.load().entries.payloads == [b"a"]
    assert memory.load().hard_state == HardState(1, 7)
