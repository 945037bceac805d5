"""Snapshot and log at a start: which pairs are gone on with, and which are refused (pitfall 49)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.snapshot_files import JOINT, SNAPSHOTS, meta_at, open_store, take
from tests.wal_logs import (
    CONFIGURATION,
    IDENTITY,
    fill,
    grow,
    new_disk,
    open_log,
    put,
    start_term,
)
from zraft.core.model import Entries, EntryId, HardState, Recovered
from zraft.errors import CorruptLogError
from zraft.storage.recovery import recover
from zraft.storage.snapshot_file import snapshot_name
from zraft.storage.snapshots import SnapshotStore
from zraft.storage.wal import Wal
from zraft.testing.disk import SimulatedDisk


def start(disk: SimulatedDisk) -> tuple[Recovered, Wal, SnapshotStore]:
    """Recover as a node does; the log stays open."""
    wal = Wal(Path("/n1/wal"), IDENTITY, segment_bytes=4096, files=disk)
    store = open_store(disk)
    try:
        return recover(wal, store), wal, store
    except CorruptLogError:
        wal.close()
        raise


def recovered(disk: SimulatedDisk) -> Recovered:
    """Recover, and close again."""
    result, wal, _ = start(disk)
    wal.close()
    return result


def compact(disk: SimulatedDisk, first_index: int) -> None:
    """Cut the log."""
    wal, _ = open_log(disk)
    wal.compact(first_index)
    fill(wal)
    wal.close()


def test_without_a_snapshot_the_log_is_all_there_is() -> None:
    """The base configuration, and entries from index 1 on."""
    disk = new_disk()
    payloads = grow(disk, 5)
    assert recovered(disk) == Recovered(
        HardState(4, 7), CONFIGURATION, Entries(1, [4] * 5, payloads)
    )


@pytest.mark.parametrize("first_index", [1, 5, 9])
def test_a_log_that_holds_the_snapshots_end_stays(first_index: int) -> None:
    """With its entries before the end, too: laggards still need them."""
    disk = new_disk()
    payloads = grow(disk, 12)
    meta = take(open_store(disk), meta_at(8, configuration=JOINT._replace(index=3)))
    compact(disk, first_index)
    found = recovered(disk)
    assert found.snapshot == meta
    assert found.configuration == JOINT._replace(index=3)
    assert found.entries == Entries(
        first_index, [4] * (13 - first_index), payloads[first_index - 1 :]
    )
    assert found.compacted == EntryId(first_index - 1, 4 if first_index > 1 else 0)
    assert recovered(disk) == found


@pytest.mark.parametrize("index", [13, 100])
def test_a_snapshot_ahead_of_the_log_replaces_it(index: int) -> None:
    """A crash between the file that a peer sent and the log: what is committed is in the file."""
    disk = new_disk()
    grow(disk, 12)
    meta = take(open_store(disk), meta_at(index))
    result, wal, _ = start(disk)
    expected = Recovered(
        HardState(4, 7), CONFIGURATION, Entries(index + 1, [], []), EntryId(index, 4), meta
    )
    assert result == expected
    put(wal, index + 1, b"after", term=4)
    wal.close()
    assert recovered(disk).entries == Entries(index + 1, [4], [b"after"])


def test_a_log_with_another_term_at_the_snapshots_end_is_replaced() -> None:
    """Its entries were never committed: the snapshot's leader had others (Raft §7)."""
    disk = new_disk()
    grow(disk, 12)
    wal, _ = open_log(disk)
    start_term(wal, 6)
    wal.close()
    meta = take(open_store(disk), meta_at(8, term=5))
    found = recovered(disk)
    assert (found.entries, found.compacted, found.snapshot) == (Entries(9, [], []), (8, 5), meta)
    assert recovered(disk) == found


def test_what_recovery_decided_is_durable() -> None:
    """Entries that were dropped do not come back after the next power cut."""
    disk = new_disk()
    grow(disk, 12)
    take(open_store(disk), meta_at(100))
    found = recovered(disk)
    for seed in range(20):
        disk.cut_power(random.Random(seed))
        assert recovered(disk) == found


def test_a_log_that_starts_after_the_snapshot_is_a_hole() -> None:
    """Never start with a hole: entries that were acknowledged are gone (exit 65)."""
    disk = new_disk()
    grow(disk, 12)
    take(open_store(disk), meta_at(8))
    compact(disk, 10)
    with pytest.raises(CorruptLogError, match="a hole") as caught:
        recovered(disk)
    assert caught.value.exit_code == 65
    assert "after 9" in caught.value.why


def test_a_compacted_log_without_a_snapshot_is_a_hole() -> None:
    """The snapshot that its beginning is in was lost or deleted."""
    disk = new_disk()
    grow(disk, 12)
    compact(disk, 3)
    with pytest.raises(CorruptLogError, match="a hole"):
        recovered(disk)


def test_a_snapshot_of_a_term_that_the_log_never_saw_is_refused() -> None:
    """The log is an old copy: this member has forgotten votes."""
    disk = new_disk()
    grow(disk, 12)
    take(open_store(disk), meta_at(20, term=5))
    with pytest.raises(CorruptLogError, match="older than the snapshot"):
        recovered(disk)


def test_log_and_snapshot_that_name_different_terms_are_refused() -> None:
    """Both were committed at that index, so one of them is not this member's."""
    disk = new_disk()
    grow(disk, 12)
    take(open_store(disk), meta_at(8, term=3))
    compact(disk, 9)
    with pytest.raises(CorruptLogError, match="contradict"):
        recovered(disk)


def test_a_damaged_snapshot_falls_back_while_the_log_reaches() -> None:
    """To the one before it, or to none; once the log was cut at it, there is no way back."""
    disk = new_disk()
    payloads = grow(disk, 12)
    older = take(open_store(disk), meta_at(4))
    kept = disk.read(SNAPSHOTS / snapshot_name(4, 4))
    newest = take(open_store(disk), meta_at(8))
    path = SNAPSHOTS / snapshot_name(8, 4)
    disk.put(path, disk.read(path)[:-1])
    assert recovered(disk).snapshot is None
    disk.put(SNAPSHOTS / snapshot_name(4, 4), kept)
    found, wal, store = start(disk)
    assert found.snapshot == older
    assert found.entries == Entries(1, [4] * 12, payloads)
    assert store.damaged[0].path == str(path)
    assert take(store, meta_at(10)).index == 10
    assert disk.listdir(SNAPSHOTS) == [snapshot_name(10, 4)], "the damaged one went with the others"
    wal.close()
    disk.put(path, b"damaged")
    disk.unlink(SNAPSHOTS / snapshot_name(10, 4))
    compact(disk, newest.index + 1)
    with pytest.raises(CorruptLogError, match=path.name):
        recovered(disk)
