"""Snapshot files: what is written comes back, equal states are equal bytes, transfers go on."""

from __future__ import annotations

import itertools
import random
import zlib
from pathlib import Path

import msgpack
import pytest

from tests.snapshot_files import (
    JOINT,
    SECTIONS,
    SNAPSHOTS,
    clean_up,
    goes_on,
    meta_at,
    new_snapshot_disk,
    open_store,
    take,
    transfer,
    write_all,
)
from tests.wal_logs import IDENTITY
from zraft.errors import CorruptLogError, DecodeError, ForeignDataError, StorageError, VersionError
from zraft.storage import snapshot_steps
from zraft.storage.base import Identity
from zraft.storage.files import OS_FILES
from zraft.storage.snapshot_file import (
    MAGIC,
    RecordType,
    encode_end,
    encode_record,
    encode_start,
    snapshot_name,
)
from zraft.storage.snapshot_reading import READ_BYTES, verify_snapshot
from zraft.storage.snapshot_steps import SYNC_BYTES
from zraft.storage.snapshots import Incoming, SnapshotStore
from zraft.testing.disk import Stopped

# ------------------------------------------------------------------------------------ write, read


def test_what_is_written_comes_back() -> None:
    """Sections, chunks with their borders, configuration, log time and digest."""
    disk = new_snapshot_disk()
    store = open_store(disk)
    assert store.load() is None
    meta = take(store, meta_at(50, configuration=JOINT))
    assert list(store.read(meta)) == list(SECTIONS)
    assert meta == meta_at(50, configuration=JOINT)._replace(
        size_bytes=len(disk.read(SNAPSHOTS / snapshot_name(50, 4))), crc=meta.crc
    )
    assert open_store(disk).load() == meta == store.newest
    assert open_store(disk).list() == [meta]


def test_a_machine_without_state_has_a_snapshot() -> None:
    """No chunk at all is a state, too."""
    store = open_store(new_snapshot_disk())
    meta = take(store, meta_at(1, 1), ())
    assert list(store.read(meta)) == []


def test_equal_states_are_equal_bytes() -> None:
    """Two members that took it of the same state can go on with each other's transfer."""
    disk, other_disk = new_snapshot_disk(), new_snapshot_disk()
    mine = take(open_store(disk), meta_at(50))
    other = take(open_store(other_disk, Identity(IDENTITY.cluster_id, 99)), meta_at(50))
    path = SNAPSHOTS / snapshot_name(50, 4)
    assert mine == other
    assert disk.read(path) == other_disk.read(path)
    assert take(open_store(disk), meta_at(51)).crc != mine.crc


def test_empty_chunks_leave_no_trace() -> None:
    """A machine gives them when the next chunk is not ready yet: that depends on its load."""
    disk, other_disk = new_snapshot_disk(), new_snapshot_disk()
    sections = [("sessions", b"table"), ("machine", b"state")]
    late = [("machine", b""), sections[0], ("machine", b""), sections[1], ("machine", b"")]
    meta = take(open_store(disk), meta_at(50), sections)
    assert take(open_store(other_disk), meta_at(50), late) == meta


def test_the_newer_one_replaces_the_older() -> None:
    """The previous one is there until the new one is whole, and then it is not."""
    disk = new_snapshot_disk()
    store = open_store(disk)
    first = take(store, meta_at(50))
    writer = store.begin(meta_at(60))
    write_all(writer)
    assert open_store(disk).list() == [first]
    second = writer.finish()
    clean_up(store)
    assert disk.listdir(SNAPSHOTS) == [snapshot_name(60, 4)]
    assert open_store(disk).load() == second


def test_what_was_replaced_is_freed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file that is deleted at once stands the loop still; a start deletes what is left."""
    monkeypatch.setattr(snapshot_steps, "FREE_BYTES", 1000)
    disk = new_snapshot_disk()
    store = open_store(disk)
    old = take(store, meta_at(50))
    writer = store.begin(meta_at(60))
    write_all(writer)
    new = writer.finish()
    assert [meta.index for meta in store.list()] == [60]
    sizes = []
    while store.clean_up():
        (aside,) = [name for name in disk.listdir(SNAPSHOTS) if name.endswith(".tmp")]
        sizes.append(len(disk.read(SNAPSHOTS / aside)))
    assert sizes == [*range(old.size_bytes - 1000, 0, -1000)]
    assert disk.listdir(SNAPSHOTS) == [snapshot_name(60, 4)]
    store.begin(meta_at(70)).finish()
    assert store.clean_up()
    again = open_store(disk)
    assert again.load() == again.newest
    assert disk.listdir(SNAPSHOTS) == [snapshot_name(70, 4)]
    assert new.index == 60
    assert disk.open_count == 0


def test_a_writer_is_synced_when_its_owner_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync and a chunk need not fall into one slice of work; the end is short after a sync."""
    monkeypatch.setattr(snapshot_steps, "SYNC_BYTES", 1000)
    disk = new_snapshot_disk()
    writer = open_store(disk).begin(meta_at(50))
    syncs: list[str] = []
    disk.on_step = lambda step, path: syncs.append(step) if step == "sync" else None
    full: list[tuple[int, bool]] = []
    for _ in range(3):
        writer.write("machine", bytes(1200))
        full.append((len(syncs), writer.is_full))
        writer.sync()
        full.append((len(syncs), writer.is_full))
    assert full == [(0, True), (1, False), (1, True), (2, False), (2, True), (3, False)]
    writer.abort()


def test_an_older_one_never_replaces_a_newer() -> None:
    """A snapshot that this node was taking when a peer's newer one came in rolls nothing back."""
    disk = new_snapshot_disk()
    store = open_store(disk)
    writer = store.begin(meta_at(50))
    newer = take(open_store(new_snapshot_disk()), meta_at(60))
    other = new_snapshot_disk()
    take(open_store(other), meta_at(60))
    incoming = store.receive(60, 4, newer.size_bytes, newer.crc)
    transfer(incoming, other.read(SNAPSHOTS / snapshot_name(60, 4)))
    assert incoming.finish() == newer
    writer.finish()
    assert store.newest == newer
    assert open_store(disk).load() == newer


def test_an_aborted_one_leaves_nothing() -> None:
    """Neither a file nor a descriptor; to abort again, or after the end, does nothing."""
    disk = new_snapshot_disk()
    store = open_store(disk)
    writer = store.begin(meta_at(50))
    write_all(writer)
    writer.abort()
    writer.abort()
    assert disk.listdir(SNAPSHOTS) == []
    done = store.begin(meta_at(51))
    meta = done.finish()
    done.abort()
    store.begin(meta_at(52))
    store.receive(53, 4, 1000, 1)
    store.close()
    assert store.list() == [meta]
    assert disk.listdir(SNAPSHOTS) == [snapshot_name(51, 4)]
    assert disk.open_count == 0


def test_half_made_files_are_removed_at_the_start() -> None:
    """A crash leaves them; they never had a snapshot's name."""
    disk = new_snapshot_disk()
    store = open_store(disk)
    write_all(store.begin(meta_at(50)))
    store.receive(60, 4, 1000, 1)
    disk.kill()
    assert len(disk.listdir(SNAPSHOTS)) == 2
    assert open_store(disk).load() is None
    assert disk.listdir(SNAPSHOTS) == []


def test_load_makes_durable_what_it_reports() -> None:
    """After kill -9 a name may be in the page cache only; it must not be lost once reported."""
    disk = new_snapshot_disk()
    writer = open_store(disk).begin(meta_at(60))
    write_all(writer)

    def stop(step: str, path: Path) -> None:
        if (step, path) == ("sync", SNAPSHOTS):
            raise Stopped

    disk.on_step = stop
    with pytest.raises(Stopped):
        writer.finish()
    goes_on(disk)
    disk.kill()
    found = open_store(disk).load()
    assert found is not None
    assert found.index == 60
    for seed in range(10):
        disk.cut_power(random.Random(seed))
        assert open_store(disk).load() == found


def test_it_is_synced_in_small_pieces() -> None:
    """No call has more than a piece and a chunk to sync; the last sync is short."""
    disk = new_snapshot_disk()
    store = open_store(disk)
    store.load()
    sizes: list[int] = []

    def watch(step: str, path: Path) -> None:
        if step == "sync" and path.name == "writing.tmp":
            sizes.append(len(disk.read(path)))

    disk.on_step = watch
    writer = store.begin(meta_at(50))
    for _ in range(70):
        writer.write("machine", bytes(64 << 10))
    writer.finish()
    assert len(sizes) == 5
    assert max(b - a for a, b in itertools.pairwise([0, *sizes])) <= SYNC_BYTES + (65 << 10)


def test_short_writes_and_reads_are_gone_on_with() -> None:
    """A write may take fewer bytes than it was given, a read may give fewer than asked for."""
    disk = new_snapshot_disk()
    store = open_store(disk)
    disk.short_write_bytes, disk.short_read_bytes = 100, 33
    meta = take(store, meta_at(50))
    assert list(store.read(meta)) == list(SECTIONS)
    assert open_store(disk).load() == meta


def test_a_refusing_disk_ends_the_file_only() -> None:
    """ENOSPC is a StorageError that says what to do; what was there stays, and another try may
    follow."""
    disk = new_snapshot_disk()
    store = open_store(disk)
    first = take(store, meta_at(50))

    def refuse(step: str, path: Path) -> None:
        if step == "write":
            raise OSError(28, "No space left on device")

    writer = store.begin(meta_at(60))
    disk.on_step = refuse
    with pytest.raises(StorageError, match="No space left") as caught:
        write_all(writer)
    assert caught.value.try_ == ("free some space on this disk",)
    assert caught.value.exit_code == 74
    disk.on_step = lambda step, path: None
    writer.abort()
    assert store.list() == [first]
    assert take(store, meta_at(61)).index == 61


def test_it_works_on_real_files(tmp_path: Path) -> None:
    """The same on the file system of this machine."""
    store = SnapshotStore(tmp_path / "snap", IDENTITY)
    assert store.load() is None
    meta = take(store, meta_at(50))
    reader = store.reader(meta)
    later = take(store, meta_at(60))
    data = reader.read_at(0, 1 << 20)
    reader.close()
    assert len(data) == meta.size_bytes
    assert not (tmp_path / "snap" / snapshot_name(50, 4)).exists(), "it stayed readable"
    assert verify_snapshot(tmp_path / "snap" / snapshot_name(60, 4)) == later


def test_the_disk_is_told_to_begin_with_each_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a sync has little left to wait for; on a real disk it changes no byte."""
    begun: list[tuple[int, int]] = []
    start_writing = OS_FILES.start_writing

    def watch(fd: int, offset: int, count: int) -> None:
        begun.append((offset, offset + count))
        start_writing(fd, offset, count)

    monkeypatch.setattr(OS_FILES, "start_writing", watch)
    store = SnapshotStore(tmp_path / "snap", IDENTITY)
    assert store.load() is None
    meta = take(store, meta_at(50))
    assert [0, *(end for _, end in begun)] == [*(start for start, _ in begun), meta.size_bytes]
    assert len(begun) > len(SECTIONS)
    assert verify_snapshot(tmp_path / "snap" / snapshot_name(50, 4)) == meta


# ---------------------------------------------------------------------------------------- transfer


def sent() -> tuple[bytes, tuple[int, int, int, int]]:
    """Return a snapshot's bytes as a peer has them, and what names it."""
    disk = new_snapshot_disk()
    meta = take(open_store(disk), meta_at(50, configuration=JOINT))
    data = disk.read(SNAPSHOTS / snapshot_name(50, 4))
    return data, (meta.index, meta.term, meta.size_bytes, meta.crc)


def receive_all(incoming: Incoming, data: bytes) -> None:
    """Take in all pieces and finish."""
    transfer(incoming, data)
    incoming.finish()


def test_a_transfer_goes_on_where_it_was() -> None:
    """With another sender, too; pieces that are not the next one are told so, and do nothing."""
    data, key = sent()
    disk = new_snapshot_disk()
    store = open_store(disk)
    incoming = store.receive(*key)
    assert incoming.write(0, data[:1000])
    assert not incoming.write(0, data[:1000]), "a doubled one"
    assert not incoming.write(1500, data[1500:2000]), "one too early"
    again = store.receive(*key)
    assert again.next_offset == 1000
    transfer(again, data)
    meta = again.finish()
    assert (meta.index, meta.term, meta.size_bytes, meta.crc) == key
    assert meta.configuration == JOINT
    assert disk.read(SNAPSHOTS / snapshot_name(50, 4)) == data
    assert open_store(disk).load() == meta == store.newest


@pytest.mark.parametrize("position", range(4))
def test_another_snapshot_starts_over(position: int) -> None:
    """Index, term, size and CRC name it; one that differs is another."""
    data, key = sent()
    store = open_store(new_snapshot_disk())
    store.receive(*key).write(0, data[:1000])
    other = [*key]
    other[position] += 1
    assert store.receive(*other).next_offset == 0


def test_every_flipped_byte_of_a_transfer_is_refused() -> None:
    """What comes from a peer is checked as our own; the node lives on, the transfer ends."""
    data, key = sent()
    for at in range(len(data)):
        disk = new_snapshot_disk()
        incoming = open_store(disk).receive(*key)
        changed = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        with pytest.raises(DecodeError):
            receive_all(incoming, changed)
        assert not incoming.is_open
        assert disk.listdir(SNAPSHOTS) == [], at


def test_an_unfinished_transfer_is_no_snapshot() -> None:
    """However it was cut, and a byte more than announced, too."""
    data, key = sent()
    for length in (0, 3, 40, len(data) - 1):
        incoming = open_store(new_snapshot_disk()).receive(*key)
        incoming.write(0, data[:length])
        with pytest.raises(DecodeError, match="refused"):
            incoming.finish()
    incoming = open_store(new_snapshot_disk()).receive(*key)
    with pytest.raises(DecodeError):
        incoming.write(0, data + b"x")


def test_a_transfer_of_another_snapshot_is_refused() -> None:
    """Sound bytes, but not those announced, or not of this cluster, or of a newer format."""
    data, (index, term, size, crc) = sent()
    for key in ((index + 1, term, size, crc), (index, term + 1, size, crc), (index, term, size, 1)):
        incoming = open_store(new_snapshot_disk()).receive(*key)
        with pytest.raises(DecodeError):
            receive_all(incoming, data)
    stranger = open_store(new_snapshot_disk(), Identity(1, 2)).receive(index, term, size, crc)
    with pytest.raises(DecodeError, match="refused"):
        stranger.write(0, data)
    newer = MAGIC + encode_record(RecordType.HEADER, msgpack.packb([2]))
    incoming = open_store(new_snapshot_disk()).receive(1, 1, 1000, 1)
    with pytest.raises(VersionError):
        incoming.write(0, newer)


# ---------------------------------------------------------------------------------------- refusals


def test_another_clusters_snapshot_is_refused() -> None:
    """It is not corrupt, but it must not be read into this cluster's machine (exit 65)."""
    disk = new_snapshot_disk()
    take(open_store(disk), meta_at(50))
    with pytest.raises(ForeignDataError) as caught:
        open_store(disk, Identity(1, IDENTITY.member_id)).load()
    assert caught.value.exit_code == 65


def test_a_newer_format_is_refused_by_name() -> None:
    """It is not corrupt, only newer: the message says so."""
    disk = new_snapshot_disk()
    open_store(disk).load()
    start = MAGIC + encode_record(RecordType.HEADER, msgpack.packb([2, "all", "different"]))
    disk.put(SNAPSHOTS / snapshot_name(50, 4), start + b"whatever" * 20)
    with pytest.raises(ForeignDataError, match="format 2") as caught:
        open_store(disk).load()
    assert caught.value.exit_code == 65


def test_a_renamed_snapshot_is_refused() -> None:
    """Its name is what orders it: an old one must not pass for a new one."""
    disk = new_snapshot_disk()
    take(open_store(disk), meta_at(50))
    disk.rename(SNAPSHOTS / snapshot_name(50, 4), SNAPSHOTS / snapshot_name(90, 4))
    store = open_store(disk)
    assert store.load() is None
    assert "wrong name" in str(store.damaged[0])


def records(*bodies: tuple[RecordType, bytes]) -> bytes:
    """Return a file of these records, with a right end."""
    data = encode_start(IDENTITY.cluster_id, meta_at(50))
    data += b"".join(encode_record(*body) for body in bodies)
    return data + encode_end(len(data) + 21, zlib.crc32(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC,
        records((RecordType.CHUNK, b"of no section")),
        records((RecordType.SECTION, b"\xff")),
        records((RecordType.HEADER, b"\x90")),
        records((RecordType.END, bytes(12))),
        records() + b"\0",
        records()[:-1],
        encode_start(IDENTITY.cluster_id, meta_at(50)),
        MAGIC + encode_record(RecordType.HEADER, msgpack.packb([1, 2, 3])) + encode_end(40, 1),
        MAGIC + encode_record(RecordType.HEADER, b"\xc1") + encode_end(35, 1),
        MAGIC + encode_record(RecordType.SECTION, b"machine") + encode_end(41, 1),
    ],
)
def test_what_is_no_snapshot_is_damage(data: bytes) -> None:
    """Sound records in a wrong order, or cut files, never crash the reader."""
    disk = new_snapshot_disk()
    open_store(disk).load()
    path = SNAPSHOTS / snapshot_name(50, 4)
    disk.put(path, data)
    with pytest.raises(CorruptLogError) as caught:
        verify_snapshot(path, files=disk)
    assert caught.value.path == str(path)
    store = open_store(disk)
    assert store.load() is None
    assert len(store.damaged) == 1


def test_every_flipped_byte_is_found() -> None:
    """Any damage to one byte is refused, with the file and an offset in it (pitfall 54)."""
    disk = new_snapshot_disk()
    take(open_store(disk), meta_at(50, configuration=JOINT))
    path = SNAPSHOTS / snapshot_name(50, 4)
    data = disk.read(path)
    masks = (0x01, 0x80, 0xFF, 0x10)
    for at, mask in zip(range(len(data)), itertools.cycle(masks), strict=False):
        disk.put(path, data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
        with pytest.raises(CorruptLogError) as caught:
            verify_snapshot(path, files=disk)
        assert 0 <= caught.value.offset <= at, "where the damaged record starts, or before"
    for length in range(len(data)):
        disk.put(path, data[:length])
        with pytest.raises(CorruptLogError):
            verify_snapshot(path, files=disk)


def test_reading_stops_at_the_damage() -> None:
    """Chunks before it are given, the damaged one is not."""
    disk = new_snapshot_disk()
    store = open_store(disk)
    meta = take(store, meta_at(50), [("machine", bytes(READ_BYTES // 2))] * 4)
    path = SNAPSHOTS / snapshot_name(50, 4)
    data = disk.read(path)
    disk.put(path, data[:-1000] + b"\x01" + data[-999:])
    chunks = store.read(meta)
    assert next(chunks) == ("machine", bytes(READ_BYTES // 2))
    with pytest.raises(CorruptLogError):
        list(chunks)
