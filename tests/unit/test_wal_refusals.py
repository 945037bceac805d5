"""What a log refuses: another's data, whole files that are wrong, and a disk that says no."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import msgpack
import pytest

from tests.wal_logs import (
    CONFIGURATION,
    DIRECTORY,
    IDENTITY,
    batch_offsets,
    grow,
    new_disk,
    open_log,
    put,
    put_many,
    recover,
    segment_names,
    segment_path,
    start_term,
)
from zraft.core.model import Entries, HardState
from zraft.errors import CorruptLogError, ForeignDataError, StorageError
from zraft.storage.base import Identity
from zraft.storage.batch import BatchType, encode_batch, make_seed
from zraft.storage.segment import (
    SEAL_BODY,
    encode_segment_header,
    pack_records,
    read_segment,
    read_segment_header,
    read_segments,
)
from zraft.storage.wal import Wal
from zraft.testing.disk import SimulatedDisk

# ---------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize(
    "identity", [Identity(1, IDENTITY.member_id), IDENTITY._replace(member_id=1)]
)
def test_log_of_another_member_or_cluster_is_refused(identity: Identity) -> None:
    """A copied directory must not vote in another's name."""
    disk = new_disk()
    with pytest.raises(ForeignDataError, match=f"{IDENTITY.member_id:016x}"):
        open_log(disk, identity=identity)


def test_segment_of_another_member_among_ours_is_refused() -> None:
    """Every segment is checked, not only the first."""
    disk = new_disk()
    grow(disk, 9)
    _, header = read_segment_header(segment_path(2), disk.read(segment_path(2)))
    foreign, _ = encode_segment_header(header._replace(identity=Identity(1, 2)), number=1, chain=0)
    last = max(n for n in segment_names(disk) if n.endswith(".wal"))
    disk.put(DIRECTORY / last, foreign)
    with pytest.raises(ForeignDataError, match=last):
        recover(disk)


@pytest.mark.parametrize("left", ["nothing", "next.tmp", "notes.txt"])
def test_a_wiped_log_is_refused(left: str) -> None:
    """No segment means forgotten votes: exit 65, not a new start."""
    disk = new_disk()
    disk.unlink(segment_path(1))
    if left != "nothing":
        disk.put(DIRECTORY / left, b"x")
    with pytest.raises(ForeignDataError) as caught:
        recover(disk)
    assert caught.value.exit_code == 65


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    """So is a log whose directory is gone."""
    wal = Wal(tmp_path / "wal", IDENTITY)
    with pytest.raises(ForeignDataError, match="does not exist"):
        wal.load()
    wal.close()


def test_a_newer_format_is_refused_by_name() -> None:
    """It is not corrupt, only newer: the message says so."""
    disk = new_disk()
    data, _ = encode_batch(BatchType.SEGMENT, 1, msgpack.packb([2, 7]), chain=0, seed=0)
    disk.put(segment_path(1), data)
    with pytest.raises(ForeignDataError, match="format 2"):
        recover(disk)


# ------------------------------------------------------------------------------------- whole files


def damage(disk: SimulatedDisk, kind: str) -> None:
    """Do something to the files of a log of several segments."""
    second = disk.read(segment_path(2))
    seal_offset = batch_offsets(disk)[segment_path(2)][-2]
    if kind == "missing in the middle":
        disk.unlink(segment_path(2))
    elif kind == "missing at the start":
        disk.unlink(segment_path(1))
    elif kind == "without a seal":
        disk.put(segment_path(2), second[:seal_offset] + bytes(len(second) - seal_offset))
    elif kind == "cut":
        disk.put(segment_path(2), second[: seal_offset - 1])
    elif kind == "empty":
        disk.put(segment_path(2), b"")
    elif kind == "zeros":
        disk.put(segment_path(2), bytes(len(second)))
    elif kind == "renamed":
        disk.rename(segment_path(3), segment_path(33))
        for number in range(4, 9):
            if segment_path(number).name in disk.listdir(DIRECTORY):
                disk.unlink(segment_path(number))
    elif kind == "of another history":
        other = new_disk()
        wal, _ = open_log(other)
        start_term(wal, 3)
        wal.close()
        grow(other, 16)
        disk.put(segment_path(2), other.read(segment_path(2)))
    elif kind == "swapped":
        disk.put(segment_path(2), disk.read(segment_path(3)))
        disk.put(segment_path(3), second)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("missing in the middle", 2),
        ("without a seal", 2),
        ("cut", 2),
        ("empty", 2),
        ("zeros", 2),
        ("swapped", 2),
        ("renamed", 33),
        ("of another history", 2),
    ],
)
def test_damage_to_a_whole_segment_names_it(kind: str, number: int) -> None:
    """A segment before the last is whole, sealed, and there."""
    disk = new_disk()
    grow(disk, 16)
    damage(disk, kind)
    with pytest.raises(CorruptLogError) as caught:
        recover(disk)
    assert caught.value.path == str(segment_path(number))


def test_header_that_leaves_a_gap_is_corrupt() -> None:
    """A segment starts at the index after the last one before it."""
    disk = new_disk()
    grow(disk, 3)
    segment = list(read_segments(DIRECTORY, files=disk))[-1]
    header = segment.header._replace(number=segment.header.number + 1, first_index=9)
    seal, chain = encode_batch(
        BatchType.SEAL,
        segment.next_number,
        SEAL_BODY,
        chain=segment.chain,
        seed=make_seed(IDENTITY.cluster_id, IDENTITY.member_id, segment.header.number),
    )
    disk.put(segment.path, disk.read(segment.path)[: segment.end_offset] + seal)
    data, _ = encode_segment_header(header, number=segment.next_number + 1, chain=chain)
    disk.put(segment_path(header.number), data)
    with pytest.raises(CorruptLogError, match="gap") as caught:
        recover(disk)
    assert caught.value.path == str(segment_path(header.number))


def test_missing_first_segment_is_corrupt() -> None:
    """Only a compaction, which the log knows about, takes away the start."""
    disk = new_disk()
    grow(disk, 16)
    damage(disk, "missing at the start")
    with pytest.raises(CorruptLogError, match="missing at the start"):
        recover(disk)


def test_empty_last_segment_is_corrupt() -> None:
    """A segment has its name only after its header was synced: it is never torn."""
    disk = new_disk()
    grow(disk, 2)
    for data in (b"", bytes(4096), disk.read(segment_path(1))[:40]):
        disk.put(segment_path(1), data)
        with pytest.raises(CorruptLogError) as caught:
            recover(disk)
        assert (caught.value.path, caught.value.offset) == (str(segment_path(1)), 0)


@pytest.mark.parametrize(
    "records",
    [
        [[[0, 7], None, None]],  # the term falls
        [[[1, 8], None, None]],  # a second vote
        [[None, [3, [1, 1], [b"x"]], None]],  # a gap
        [[None, [2, [9, 1], [b"x"]], None]],  # a term that nobody synced
        [[None, [2, [1, 2], [b"x"]], None]],  # terms without payloads
        [[None, [2, [1, 1], ["x"]], None]],
        [[None, [0, [1, 1], [b"x"]], None]],
        [[None, None]],
        [7],
        7,
    ],
)
def test_records_that_contradict_each_other_are_corrupt(records: list[object]) -> None:
    """Right checksums are not enough: what they protect must be one log."""
    disk = new_disk()
    wal, _ = open_log(disk)
    start_term(wal, 1)
    put(wal, 1, b"a")
    wal.close()
    data = disk.read(segment_path(1))
    segment = read_segment(segment_path(1), data, is_last=True)
    seed = make_seed(IDENTITY.cluster_id, IDENTITY.member_id, 1)
    body = pack_records(records)  # type: ignore[arg-type]  # what save would never pack
    batch, _ = encode_batch(
        BatchType.RECORDS, segment.next_number, body, chain=segment.chain, seed=seed
    )
    disk.put(segment_path(1), data[: segment.end_offset] + batch)
    with pytest.raises(CorruptLogError):
        recover(disk)


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", ["write", "sync"])
def test_refused_sync_kills_the_log(number: int, step: str) -> None:
    """ENOSPC and EIO are StorageError, exit 74; nothing is tried again; the old log is whole."""
    disk = new_disk()
    wal, _ = open_log(disk)
    start_term(wal, 1)
    put(wal, 1, b"a")
    wal.save(None, Entries(2, [1], [b"b"]))
    calls: list[str] = []

    def refuse(name: str, path: Path) -> None:
        calls.append(name)
        if name == step:
            raise OSError(number, os.strerror(number))

    disk.on_step = refuse
    with pytest.raises(StorageError, match="cannot") as caught:
        wal.sync()
    assert caught.value.exit_code == 74
    assert os.strerror(number) in str(caught.value)
    tried = list(calls)
    for again in (wal.sync, lambda: wal.save(HardState(2, 7), None), lambda: wal.prepare(512)):
        with pytest.raises(StorageError, match="no more writes"):
            again()
    assert calls == tried, "a dead log touches nothing"
    disk.on_step = lambda name, path: None
    wal.close()
    disk.cut_power(random.Random(2))
    assert recover(disk).entries.payloads[:1] == [b"a"]


@pytest.mark.parametrize("short", [1, 7, 511, 513])
def test_short_writes_are_completed(short: int) -> None:
    """A write may take fewer bytes than given; the rest follows."""
    disk = new_disk()
    disk.short_write_bytes = short
    payloads = grow(disk, 6, prepare=short > 500)
    assert recover(disk).entries.payloads == payloads


def test_write_that_takes_nothing_is_a_failure() -> None:
    """It must not be tried for ever."""
    disk = new_disk()
    wal, _ = open_log(disk)
    wal.save(HardState(1, 7), None)
    disk.short_write_bytes = 0
    with pytest.raises(StorageError):
        wal.sync()
    wal.close()


@pytest.mark.parametrize("step", ["write", "sync", "create", "rename"])
def test_refusals_at_rotation_kill_the_log(step: str) -> None:
    """A full disk shows when a segment ends: the log stops there, and is whole afterwards."""
    disk = new_disk()
    payloads = grow(disk, 3, prepare=False)
    wal, _ = open_log(disk)

    def refuse(name: str, path: Path) -> None:
        if name == step and path.name != "00000001.wal":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.on_step = refuse
    with pytest.raises(StorageError) as caught:
        put_many(wal, 4, 5, payloads)
    assert caught.value.exit_code == 74
    disk.on_step = lambda name, path: None
    wal.close()
    assert disk.open_count == 0
    assert recover(disk).entries.payloads[: len(payloads)] == payloads


def test_unreadable_segment_is_a_storage_error(tmp_path: Path) -> None:
    """Bytes that can't be read are not bytes that are wrong: exit 74, not 65."""
    Wal.create(tmp_path / "wal", IDENTITY, CONFIGURATION)
    (tmp_path / "wal" / "00000001.wal").rename(tmp_path / "away")
    (tmp_path / "wal" / "00000001.wal").mkdir()
    wal = Wal(tmp_path / "wal", IDENTITY)
    with pytest.raises(StorageError) as caught:
        wal.load()
    assert caught.value.exit_code == 74
    wal.close()
