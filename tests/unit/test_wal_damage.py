"""Torn or rotten: what every kind of damage to the bytes of a log leads to.

A crash leaves a part of the last batch; that is repaired. A disk that changes bytes is refused with
file and offset. The two are never mixed up: an acknowledged batch is never dropped.
"""

from __future__ import annotations

import random
import zlib
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.wal_logs import (
    DIRECTORY,
    IDENTITY,
    batch_offsets,
    fill,
    new_disk,
    open_log,
    put,
    recover,
    segment_path,
    start_term,
)
from zraft.core.model import Entries, HardState, Recovered
from zraft.errors import CorruptLogError
from zraft.storage.batch import (
    HEADER_BYTES,
    SECTOR_BYTES,
    BatchType,
    encode_batch,
    is_blank,
    make_seed,
)
from zraft.storage.replay import replay
from zraft.storage.segment import Segment, read_segment
from zraft.testing.disk import SimulatedDisk

RANDOM = random.Random(20)
NOISE = RANDOM.randbytes(1 << 16)
SPARSE = bytes(700) + b"\x01" + bytes(700)
PATH = segment_path(1)


class LastBatch(NamedTuple):
    """A log on disk before and after its last batch, and what each recovers to."""

    disk: SimulatedDisk
    before: bytes
    after: bytes
    offset: int
    end_offset: int
    old: Recovered
    new: Recovered

    def recover(self, data: bytes) -> Recovered:
        """Return what these bytes recover to."""
        self.disk.put(PATH, data)
        return recover(self.disk)

    def changed(self, at: int, value: int) -> bytes:
        """Return the log with one byte changed."""
        return self.after[:at] + bytes([value]) + self.after[at + 1 :]


def last_batch(*payloads: bytes) -> LastBatch:
    """Return a log of a few batches whose last one holds `payloads`."""
    disk = new_disk()
    wal, _ = open_log(disk, segment_bytes=1 << 14)
    fill(wal)
    start_term(wal, 5)
    put(wal, 1, b"first", NOISE[:600], term=4)
    wal.close()
    before, old = disk.read(PATH), recover(disk)
    offset = batch_offsets(disk)[PATH][-1]
    wal, _ = open_log(disk, segment_bytes=1 << 14)
    wal.save(HardState(6, 8), Entries(3, [6] * len(payloads), list(payloads)))
    wal.sync()
    wal.close()
    after, new = disk.read(PATH), recover(disk)
    assert len(before) == len(after)
    assert old != new
    end_offset = batch_offsets(disk)[PATH][-1]
    return LastBatch(disk, before, after, offset, end_offset, old, new)


# -------------------------------------------------------------------------------------------- torn


@pytest.mark.parametrize("zeros_follow", [True, False], ids=["zeros", "end of file"])
def test_cut_at_every_byte_of_the_last_batch_is_repaired(zeros_follow: bool) -> None:
    """Wherever the last batch is cut, the log before it is whole and the batch is gone."""
    log = last_batch(NOISE[:300], bytes(900), b"x")
    for cut in range(log.offset, log.end_offset):
        data = log.after[:cut]
        if zeros_follow:
            data = data.ljust(len(log.after), b"\0")
        assert log.recover(data) == log.old, f"cut at {cut}"
        assert not any(log.disk.read(PATH)[log.offset :]), f"cut at {cut}: not zeroed"
    assert log.recover(log.after) == log.new


def subsets(sectors: list[int]) -> list[tuple[int, ...]]:
    """Return all subsets of up to ten sectors, a seeded sample of more."""
    if len(sectors) <= 10:
        return [c for n in range(len(sectors) + 1) for c in combinations(sectors, n)]
    some = [tuple(s for s in sectors if RANDOM.random() < share) for share in (0.1, 0.5, 0.9)]
    for _ in range(500):
        share = RANDOM.random()
        some.append(tuple(s for s in sectors if RANDOM.random() < share))
    ones = [(sector,) for sector in sectors]
    return [*some, *ones, *(tuple(set(sectors) - set(one)) for one in ones)]


@pytest.mark.parametrize(
    "payloads",
    [
        pytest.param([b"x"], id="one sector"),
        pytest.param([NOISE[:460]], id="end byte alone in its sector"),
        pytest.param([NOISE[:1200]], id="noise"),
        pytest.param([bytes(2500)], id="nothing but zeros"),
        pytest.param([NOISE[:1000], bytes(1800), NOISE[:1500]], id="zeros inside"),
        pytest.param([bytes(450), NOISE[:3900]], id="ten sectors"),
        pytest.param([NOISE[:9000]], id="many sectors"),
    ],
)
def test_every_subset_of_lost_sectors_is_repaired(payloads: list[bytes]) -> None:
    """Any sectors of the last batch may be missing, the first and the last too."""
    log = last_batch(*payloads)
    sectors = list(range(log.offset, log.end_offset, SECTOR_BYTES))
    for lost in subsets(sectors):
        data = bytearray(log.after)
        for at in lost:
            data[at : at + SECTOR_BYTES] = log.before[at : at + SECTOR_BYTES]
        expected = log.new if data == log.after else log.old
        assert log.recover(bytes(data)) == expected, f"lost {lost}"


def test_a_lost_sector_with_one_set_byte_is_refused_not_dropped() -> None:
    """Such a sector may also be acknowledged and have lost its only bit: nobody can tell."""
    log = last_batch(SPARSE)
    lonely = next(
        at
        for at in range(log.offset + SECTOR_BYTES, log.end_offset - SECTOR_BYTES, SECTOR_BYTES)
        if is_blank(log.after[at : at + SECTOR_BYTES]) and any(log.after[at : at + SECTOR_BYTES])
    )
    data = bytearray(log.after)
    data[lonely : lonely + SECTOR_BYTES] = bytes(SECTOR_BYTES)
    with pytest.raises(CorruptLogError):
        log.recover(bytes(data))
    data[log.offset : log.offset + SECTOR_BYTES] = bytes(SECTOR_BYTES)
    assert log.recover(bytes(data)) == log.old, "another lost sector decides it"


def test_repair_that_was_cut_short_is_finished_by_the_next() -> None:
    """Zeroing any part of a torn batch leaves a torn batch, never a rotten one."""
    log = last_batch(NOISE[:1900], bytes(600))
    sectors = range(log.offset, log.end_offset, SECTOR_BYTES)
    for lost in sectors:
        for zeroed in subsets([at for at in sectors if at != lost]):
            data = bytearray(log.after)
            for at in (lost, *zeroed):
                data[at : at + SECTOR_BYTES] = bytes(SECTOR_BYTES)
            assert log.recover(bytes(data)) == log.old, f"lost {lost}, zeroed {zeroed}"


def test_repaired_file_never_shows_old_bytes_again() -> None:
    """What was torn is zero on disk before anything is appended, so no later crash revives it."""
    log = last_batch(NOISE[:3000])
    log.disk.put(PATH, log.after[: log.end_offset - 1].ljust(len(log.after), b"\0"))
    steps: list[str] = []
    log.disk.on_step = lambda step, path: steps.append(f"{step} {path.name}")
    wal, recovered = open_log(log.disk, segment_bytes=1 << 14)
    assert recovered == log.old
    assert steps[:2] == ["write 00000001.wal", "sync 00000001.wal"]
    log.disk.on_step = lambda step, path: None
    put(wal, 3, b"short", term=5)
    end_offset = batch_offsets(log.disk)[PATH][-1]
    assert not any(log.disk.read(PATH)[end_offset:])
    log.disk.cut_power(random.Random(1))
    assert recover(log.disk).entries.payloads[2:] == [b"short"]


# --------------------------------------------------------------------------------------------- rot


def several_segments() -> SimulatedDisk:
    """Return a log of three segments, the first two sealed, with zeros ahead in all of them."""
    disk = new_disk()
    wal, _ = open_log(disk)
    fill(wal)
    start_term(wal, 1)
    index = 1
    while segment_path(3).name not in disk.listdir(DIRECTORY):
        put(wal, index, NOISE[index : index + 400], bytes(500))
        index += 2
        wal.prepare(512)
    put(wal, index, b"the last one")
    fill(wal)
    wal.close()
    return disk


def look(path: Path, data: bytes, *, is_last: bool) -> Segment | tuple[str, int]:
    """Return a segment, or where it is refused."""
    try:
        return read_segment(path, data, is_last=is_last)
    except CorruptLogError as error:
        return error.path, error.offset


@pytest.mark.slow
def test_every_flipped_bit_is_refused_where_it_is() -> None:
    """One flipped bit in any batch of any segment: CorruptLogError with its file and offset.

    Behind the last batch there is nothing to lose: a flip there looks like the remains of a torn
    batch and is zeroed. Behind a seal nothing is ever written: a flip there is refused.
    """
    disk = several_segments()
    paths = [segment_path(n) for n in (1, 2, 3)]
    data = {path: disk.read(path) for path in paths}
    offsets = batch_offsets(disk)
    whole = [read_segment(p, data[p], is_last=p == paths[-1]) for p in paths]
    expected = replay(IDENTITY, whole)
    for path in paths:
        is_last = path == paths[-1]
        flipped = bytearray(data[path])
        for at in range(len(flipped)):
            batch = max(offset for offset in offsets[path] if offset <= at)
            for bit in range(8):
                flipped[at] ^= 1 << bit
                where = f"{path.name}, byte {at}, bit {bit}"
                found = look(path, bytes(flipped), is_last=is_last)
                if is_last and at >= offsets[path][-1]:
                    assert isinstance(found, Segment), where
                    assert found.torn_bytes > 0, where
                    if bit == 0 and at % 64 == 0:
                        assert replay(IDENTITY, [*whole[:-1], found]) == expected, where
                else:
                    assert found == (str(path), batch), where
                flipped[at] ^= 1 << bit


def test_one_changed_byte_of_the_last_batch_is_rot() -> None:
    """Whatever one byte of an acknowledged batch becomes, zero too, the batch is not dropped.

    The exception is by design: an end byte of zero says that the last sector never arrived.
    """
    log = last_batch(NOISE[:700], SPARSE)
    for at in range(log.offset, log.end_offset):
        for value in {0, 0xFF, log.after[at] ^ 0xFF, log.after[at] ^ 0x10} - {log.after[at]}:
            if at == log.end_offset - 1 and value == 0:
                continue
            with pytest.raises(CorruptLogError) as caught:
                log.recover(log.changed(at, value))
            assert (caught.value.path, caught.value.offset) == (str(PATH), log.offset)


def test_rotten_log_is_left_as_it_is() -> None:
    """A refused log is not touched: it can still be looked at, or repaired by hand."""
    log = last_batch(b"x")
    damaged = log.changed(log.offset + HEADER_BYTES, 0)
    steps: list[str] = []
    log.disk.on_step = lambda step, path: steps.append(step)
    with pytest.raises(CorruptLogError):
        log.recover(damaged)
    assert steps == []
    assert log.disk.read(PATH) == damaged


def test_damaged_batch_before_a_valid_one_is_corrupt_even_if_it_looks_torn() -> None:
    """A batch was synced before the next was written: lost sectors in it are damage."""
    log = last_batch(NOISE[:600])
    start, end = batch_offsets(log.disk)[PATH][-3:-1]
    for at in range(start, end, SECTOR_BYTES):
        data = log.after[:at] + bytes(SECTOR_BYTES) + log.after[at + SECTOR_BYTES :]
        with pytest.raises(CorruptLogError, match=str(log.offset)) as caught:
            log.recover(data)
        assert caught.value.offset == start


def test_batch_inside_a_value_is_not_taken_for_a_batch() -> None:
    """A user may store a log in the log; a torn batch around it is still torn."""
    seed = make_seed(IDENTITY.cluster_id, IDENTITY.member_id, 99)
    inner, _ = encode_batch(BatchType.RECORDS, 1000, b"body", chain=0, seed=seed)
    own = last_batch(b"x")
    older = own.after[own.offset : own.end_offset]  # of this very segment: its number is lower
    for copies in (inner * 4, own.after[:SECTOR_BYTES] * 4, older * 4):
        log = last_batch(NOISE[:300], copies)
        shift = -log.after.find(copies, log.offset) % SECTOR_BYTES
        log = last_batch(NOISE[: 300 + shift], copies)
        assert log.after.find(copies, log.offset) % SECTOR_BYTES == 0, "at the start of a sector"
        data = bytearray(log.after)
        data[log.offset : log.offset + SECTOR_BYTES] = bytes(SECTOR_BYTES)
        assert log.recover(bytes(data)) == log.old


def test_a_repeated_batch_is_corrupt() -> None:
    """A copy of a valid batch after the last one breaks number and chain."""
    log = last_batch(b"x")
    size = log.end_offset - log.offset
    batch = log.after[log.offset : log.end_offset]
    data = log.after[: log.end_offset] + batch + log.after[log.end_offset + size :]
    with pytest.raises(CorruptLogError, match="out of order"):
        log.recover(data)


def test_a_batch_of_another_history_breaks_the_chain() -> None:
    """Right number, right checksum, other predecessor: swapped disks or a mixed-up restore."""
    one, other = last_batch(b"x"), last_batch(b"y")
    following = []
    for log in (one, other):
        log.disk.put(PATH, log.after)
        wal, _ = open_log(log.disk, segment_bytes=1 << 14)
        put(wal, 4, b"next", term=6)
        wal.close()
        following.append(log.disk.read(PATH))
    mixed = following[0][: one.end_offset] + following[1][one.end_offset :]
    with pytest.raises(CorruptLogError, match="broken chain"):
        one.recover(mixed)


def test_type_zero_and_length_zero_never_validate() -> None:
    """A header with right checksums but no type is no batch; an empty body cannot be written."""
    log = last_batch(b"x")
    header = bytearray(log.after[log.offset : log.offset + HEADER_BYTES])
    header[4] = 0
    seed = make_seed(IDENTITY.cluster_id, IDENTITY.member_id, 1)
    crc = zlib.crc32(header[: HEADER_BYTES - 5], seed)
    header[HEADER_BYTES - 5 : HEADER_BYTES - 1] = crc.to_bytes(4, "little")
    data = log.after[: log.offset] + header + log.after[log.offset + HEADER_BYTES :]
    with pytest.raises(CorruptLogError):
        log.recover(data)
    with pytest.raises(AssertionError):
        encode_batch(BatchType.RECORDS, 1, b"", chain=0, seed=0)


def test_path_of_a_damaged_file_is_named(tmp_path: Path) -> None:
    """The error of a real file names the file, the offset, why, and what to try."""
    log = last_batch(b"x")
    path = tmp_path / PATH.name
    with pytest.raises(CorruptLogError) as caught:
        read_segment(path, log.changed(log.offset + 40, 1), is_last=True)
    assert str(path) in str(caught.value)
    assert f"offset {log.offset}" in str(caught.value)
    assert "why:" in str(caught.value)
    assert "try:" in str(caught.value)
    assert caught.value.exit_code == 65
