"""Backups: what is saved from a disk is what a node has there, and a new member begins with it."""

from __future__ import annotations

import zlib
from pathlib import Path

import msgpack
import pytest

from tests.data_directories import DiskCluster, append, make_cluster, noop, put
from zraft.client.backups import save_backup, verify_backup
from zraft.client.refusals import check_same
from zraft.control_api import Up
from zraft.core.model import EntryId, SnapshotMeta
from zraft.errors import ControlError, CorruptLogError, ForeignDataError, StorageError
from zraft.machine.base import Ctx
from zraft.machine.kv import KV
from zraft.machine.kv_codec import Range, Txn, encode_txn
from zraft.machine.replica import Replica
from zraft.storage.backups import Backup, Note, open_backup, read_sections
from zraft.storage.directory import open_member
from zraft.storage.recovery import recover
from zraft.storage.snapshot_file import MAGIC, RecordType, encode_end, encode_record
from zraft.storage.snapshots import SnapshotStore
from zraft.storage.wal import Wal
from zraft.wire_entry import pack
from zraft_supervisor.creation import make_members, new_cluster, write_cluster_file
from zraft_supervisor.layout import make_place

NOTE = Note("t", "zraft.machine.kv:KV", "")
PAYLOADS = [noop(1), put(1, "a", "1"), put(1, "b", "2"), put(1, "a", "3")]


@pytest.fixture
def cluster(tmp_path: Path) -> DiskCluster:
    """A cluster that never ran; n1 holds four entries."""
    made = make_cluster(tmp_path / "state")
    with made.log("n1") as wal:
        append(wal, 1, 1, PAYLOADS)
    return made


def state_after(count: int) -> Replica:
    """Return a replica to which the first entries were applied."""
    replica = Replica(KV())
    for index, payload in enumerate(PAYLOADS[:count], 1):
        replica.apply(index, payload)
    return replica


def save(cluster: DiskCluster, index: int, name: str = "b.zbak") -> Backup:
    """Save n1's state after an entry."""
    path = cluster.place.directory.parent / name
    return save_backup(cluster.place.directory / "n1", path, NOTE, index=index, writing=False)


def take(cluster: DiskCluster, count: int) -> None:
    """Give n1 a snapshot after so many entries."""
    member = cluster.member("n1")
    replica = state_after(count)
    store = SnapshotStore(member.snapshot_directory, member.identity)
    store.load()
    applied = replica.applied
    meta = SnapshotMeta(
        count, applied.term, member.configuration, applied.log_time_ms, replica.digest()
    )
    writer = store.begin(meta)
    for section, chunk in replica.snapshot():
        writer.write(section, chunk)
    writer.finish()


@pytest.mark.parametrize("snapshot_at", [0, 2, 4])
@pytest.mark.parametrize("index", [3, 4])
def test_a_backup_is_the_state_at_its_index(
    cluster: DiskCluster, snapshot_at: int, index: int
) -> None:
    """From the log alone, or from a snapshot and what follows; one past the index is not used."""
    if snapshot_at:
        take(cluster, snapshot_at)
    backup = save(cluster, index)
    assert verify_backup(backup.path) == backup
    assert backup.meta.last_id == EntryId(index, 1)
    assert backup.meta.digest == state_after(index).digest()
    assert backup.note == NOTE
    assert backup.meta.configuration == cluster.member("n1").configuration


def test_equal_states_are_equal_backups(cluster: DiskCluster) -> None:
    """Nothing in the file tells when or from what it was made; none replaces another file."""
    first = save(cluster, 4, "first.zbak").path.read_bytes()
    take(cluster, 2)
    assert save(cluster, 4, "second.zbak").path.read_bytes() == first
    with pytest.raises(StorageError, match="exists"):
        save(cluster, 4, "second.zbak")


def test_what_the_disk_does_not_hold_is_not_saved(cluster: DiskCluster) -> None:
    """A log that ends earlier, or is damaged, is told; no file is left, not even a half one."""
    with pytest.raises(StorageError, match="does not hold entry 5"):
        save(cluster, 5)
    path = cluster.wal_path("n1")
    data = bytearray(path.read_bytes())
    data[data.index(PAYLOADS[2])] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptLogError):
        save(cluster, 4)
    assert [one.name for one in cluster.place.directory.parent.glob("*zbak*")] == []


def test_every_flipped_byte_is_found(cluster: DiskCluster) -> None:
    """Each byte of the file is inside a checksum; the error says what to do about a backup."""
    path = save(cluster, 4).path
    data = path.read_bytes()
    for offset in range(len(data)):
        broken = bytearray(data)
        broken[offset] ^= 1 << offset % 8
        path.write_bytes(broken)
        with pytest.raises(CorruptLogError) as found:
            verify_backup(path)
        assert "another copy" in str(found.value.try_)
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptLogError):
        verify_backup(path)


def test_a_newer_format_and_a_nodes_snapshot_are_refused_by_name(cluster: DiskCluster) -> None:
    """Neither is damage that could be mended; a snapshot lacks what a backup begins with."""
    backup = save(cluster, 4)
    data = backup.path.read_bytes()
    note = encode_record(RecordType.CHUNK, pack([1, b"t", NOTE.machine.encode(), b""]))
    newer = encode_record(RecordType.CHUNK, pack([2, b"t", NOTE.machine.encode(), b""]))
    assert note in data
    body = data[: -len(encode_end(0, 0))].replace(note, newer)
    backup.path.write_bytes(body + encode_end(len(data), zlib.crc32(body)))
    with pytest.raises(ForeignDataError, match="newer format"):
        open_backup(backup.path)
    header = encode_record(RecordType.HEADER, msgpack.packb([2, "other"]))
    backup.path.write_bytes(MAGIC + header + encode_end(0, 0))
    with pytest.raises(ForeignDataError, match="format 2"):
        open_backup(backup.path)
    take(cluster, 4)
    snapshot = next(cluster.member("n1").snapshot_directory.glob("*.snap"))
    with pytest.raises(CorruptLogError, match="no backup"):
        open_backup(snapshot)


@pytest.mark.parametrize("nodes", [1, 5])
def test_new_members_begin_with_a_backup(cluster: DiskCluster, nodes: int) -> None:
    """New ids, the new membership, index and term and digest of the old one; repeatable."""
    backup = save(cluster, 4)
    home = cluster.place.directory.parent
    place = make_place(home / "again", data=None, ephemeral=False)
    up = Up(name="again", nodes=nodes, restore=str(backup.path))
    file = new_cluster(place, up, {"ZRAFT_HOME": str(home), "XDG_RUNTIME_DIR": str(home)})
    write_cluster_file(place.directory, file)
    steps: list[str] = []

    def die_once(step: str) -> None:
        steps.append(step)
        if len(steps) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_members(place, file, die_once)
    check_same(up, file)  # the same wish goes on with what is half-made
    made = make_members(place, file, die_once)
    for name in made.names:
        member = open_member(place.directory / name)
        assert member.cluster_id != backup.cluster_id
        wal = Wal(member.wal_directory, member.identity)
        store = SnapshotStore(member.snapshot_directory, member.identity)
        found = recover(wal, store)
        wal.close()
        assert found.snapshot is not None
        assert found.snapshot.last_id == found.compacted == EntryId(4, 1)
        assert found.configuration == member.configuration
        assert len(found.configuration.voters) == nodes
        assert (found.hard_state.term, found.hard_state.voted_for) == (1, 0)
        assert list(store.read(found.snapshot)) == list(read_sections(backup))
    with pytest.raises(ControlError, match="exists"):
        check_same(up, made)


def test_a_restored_state_answers_as_the_saved_one(cluster: DiskCluster) -> None:
    """Values, and the digest of the next entry: histories that go on alike stay alike."""
    backup = save(cluster, 3)
    replica = Replica(KV())
    meta = backup.meta
    replica.restore(Ctx(meta.index, meta.term, meta.log_time_ms), read_sections(backup))
    replica.apply(4, PAYLOADS[3])
    assert replica.digest() == state_after(4).digest()
    read = encode_txn(Txn((), (Range(b"a", None),), ()))
    assert replica.query(read) == state_after(4).query(read)
