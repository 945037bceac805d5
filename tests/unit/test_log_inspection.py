"""Reading a log without touching it: what is sound, what is torn, what is damaged, and when."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.wal_logs import (
    DIRECTORY,
    IDENTITY,
    PAYLOAD,
    batch_offsets,
    grow,
    new_disk,
    open_log,
    put,
    recover,
    segment_names,
    segment_path,
    start_term,
)
from zraft.core.model import Entries, HardState
from zraft.errors import CorruptLogError, ForeignDataError, StorageError
from zraft.storage.batch import BatchType, encode_batch
from zraft.storage.inspection import LogFacts, inspect_log
from zraft.storage.segment import segment_name
from zraft.testing.disk import SimulatedDisk


def look(disk: SimulatedDisk, *, writing: bool = False) -> LogFacts:
    """Inspect the log on a simulated disk, and check that nothing was changed."""
    before = {name: disk.read(DIRECTORY / name) for name in segment_names(disk)}
    facts = inspect_log(DIRECTORY, writing=writing, files=disk)
    assert {name: disk.read(DIRECTORY / name) for name in segment_names(disk)} == before
    return facts


def overwrite(disk: SimulatedDisk, path: Path, offset: int, data: bytes) -> None:
    """Change bytes behind the log's back."""
    fd = disk.open(path, os.O_WRONLY)
    disk.pwrite(fd, data, offset)
    disk.close(fd)


def test_what_is_inspected_is_what_recovery_finds() -> None:
    """Same entries, same hard state, over several segments."""
    disk = new_disk()
    grow(disk, 12)
    facts = look(disk)
    recovered = recover(disk)
    assert (facts.entries, facts.hard_state) == (recovered.entries, recovered.hard_state)
    assert facts.identity == IDENTITY
    assert len(facts.segments) > 2
    assert [segment.sealed for segment in facts.segments] == [True] * (len(facts.segments) - 1) + [
        False
    ]
    assert len(facts.places) == 12
    assert facts.places == sorted(facts.places)
    assert (facts.torn, facts.damage, facts.replaced) == (None, None, 0)


def test_entries_that_were_replaced_are_counted_and_not_shown() -> None:
    """A follower's uncommitted entries that a new leader replaced."""
    disk = new_disk()
    wal, _ = open_log(disk)
    start_term(wal, 1)
    put(wal, 1, b"a", b"b", b"c")
    wal.save(HardState(2, 8), Entries(2, [2], [b"B"]))
    wal.sync()
    wal.close()
    facts = look(disk)
    assert facts.entries == Entries(1, [1, 2], [b"a", b"B"])
    assert facts.replaced == 2
    assert facts.places[1].offset > facts.places[0].offset


def test_a_torn_end_is_reported_with_its_place_and_left_as_it_is() -> None:
    """Half of a batch: the next start drops it; a look does not."""
    disk = new_disk()
    grow(disk, 2)
    path = segment_path(1)
    offsets = batch_offsets(disk)[path]
    end = offsets[-2] + 512
    overwrite(disk, path, end, bytes(len(disk.read(path)) - end))
    facts = look(disk)
    assert facts.entries.last_index == 1
    assert facts.torn is not None
    assert (facts.torn.path, facts.torn.offset) == (str(path), offsets[-2])
    assert facts.torn.bytes_dropped > 0
    assert recover(disk).entries == facts.entries


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_damage_is_named_and_what_stands_before_it_is_shown(batch: int) -> None:
    """A flipped bit in a batch: the same place that recovery names, everything before it sound."""
    disk = new_disk()
    payloads = grow(disk, 2)
    path = segment_path(1)
    offset = batch_offsets(disk)[path][batch]
    data = disk.read(path)
    overwrite(disk, path, offset + 40, bytes([data[offset + 40] ^ 4]))
    with pytest.raises(CorruptLogError) as refused:
        recover(disk)
    facts = look(disk)
    assert facts.damage is not None
    assert (facts.damage.path, facts.damage.offset) == (refused.value.path, refused.value.offset)
    assert facts.damage.offset == offset
    assert facts.entries.payloads == payloads[: max(0, batch - 2)]  # the first is the hard state


def test_a_missing_segment_is_damage() -> None:
    """The later segments do not continue the earlier ones, so they are not believed."""
    disk = new_disk()
    grow(disk, 12)
    disk.unlink(segment_path(2))
    facts = look(disk)
    assert facts.damage is not None
    assert "missing segment" in facts.damage.what
    assert [segment.number for segment in facts.segments] == [1]


def test_a_log_without_segments_is_damage() -> None:
    """An emptied wal/ is a lost memory."""
    disk = new_disk()
    disk.unlink(segment_path(1))
    facts = look(disk)
    assert facts.damage is not None
    assert facts.damage.what == "the log has no segment"


def test_a_log_of_a_newer_format_is_refused() -> None:
    """Whoever can't read it must not guess."""
    import msgpack

    disk = new_disk()
    body = msgpack.packb([2, "whatever comes then"])
    data, _ = encode_batch(BatchType.SEGMENT, 1, body, chain=0, seed=0)
    overwrite(disk, segment_path(1), 0, data)
    with pytest.raises(ForeignDataError, match="format 2"):
        look(disk)


class Moving:
    """A disk on which something happens between two reads."""

    def __init__(self, disk: SimulatedDisk, events: list[Callable[[], None]]) -> None:
        self._disk = disk
        self._events = events

    def __getattr__(self, name: str) -> object:
        return getattr(self._disk, name)

    def read(self, path: Path) -> bytes:
        """Let something happen, then read."""
        if self._events:
            self._events.pop(0)()
        return self._disk.read(path)


def test_a_batch_under_way_in_a_running_log_is_no_damage() -> None:
    """The reader sees a half-written batch, then the whole one: one moment, no alarm."""
    disk = new_disk()
    grow(disk, 2)
    path = segment_path(1)
    whole = disk.read(path)
    offset = batch_offsets(disk)[path][-2]
    half = whole[: offset + 512] + bytes(len(whole) - offset - 512)

    def write(data: bytes) -> Callable[[], None]:
        return lambda: overwrite(disk, path, 0, data)

    moving = Moving(disk, [write(half), write(whole)])
    facts = inspect_log(DIRECTORY, writing=True, files=moving)  # type: ignore[arg-type]  # enough
    assert (facts.torn, facts.damage) == (None, None)
    assert facts.entries.last_index == 2


def test_damage_that_stays_in_a_running_log_is_reported() -> None:
    """Two looks that find the same bytes: nobody is writing there."""
    disk = new_disk()
    grow(disk, 2)
    path = segment_path(1)
    offset = batch_offsets(disk)[path][2]
    overwrite(disk, path, offset + 40, b"?!")
    facts = look(disk, writing=True)
    assert facts.damage is not None
    assert facts.damage.offset == offset


def test_segments_that_are_compacted_meanwhile_start_the_look_again() -> None:
    """A segment was deleted between the list and the read: the next look is whole."""
    disk = new_disk()
    grow(disk, 12)
    wal, _ = open_log(disk)
    moving = Moving(disk, [lambda: wal.compact(9)])
    facts = inspect_log(DIRECTORY, writing=True, files=moving)  # type: ignore[arg-type]  # enough
    wal.close()
    assert facts.damage is None
    assert facts.entries.first_index == 9
    assert facts.compacted == (8, 4)


def test_a_log_that_never_stands_still_is_given_up() -> None:
    """Bounded: an error, not an endless look."""
    disk = new_disk()

    def come_or_go() -> None:
        if segment_name(7) in segment_names(disk):
            disk.unlink(segment_path(7))
        else:
            disk.close(disk.open(segment_path(7), os.O_RDWR | os.O_CREAT))

    moving = Moving(disk, [come_or_go, come_or_go, lambda: None] * 100)
    with pytest.raises(StorageError, match="one moment"):
        inspect_log(DIRECTORY, writing=True, files=moving)  # type: ignore[arg-type]  # enough


def test_payloads_stay_opaque() -> None:
    """Entries that no version knows are bytes with a place, not a reason to fail."""
    disk = new_disk()
    wal, _ = open_log(disk)
    start_term(wal, 1)
    put(wal, 1, b"\xff\xff", PAYLOAD)
    wal.close()
    assert look(disk).entries.payloads == [b"\xff\xff", PAYLOAD]
