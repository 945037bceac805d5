"""Segments: rotation, zero-filling ahead, compaction, identity, refusals of the disk."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from tests.wal_logs import (
    CONFIGURATION,
    DIRECTORY,
    IDENTITY,
    PAYLOAD,
    SEGMENT_BYTES,
    batch_offsets,
    fill,
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
from zraft.storage import steps as storage_steps
from zraft.storage.segment import (
    read_segments,
)
from zraft.storage.wal import AHEAD_BYTES, CALLS_TO_SYNC, Wal
from zraft.testing.disk import Stopped

# ---------------------------------------------------------------------------------------- rotation


@pytest.mark.parametrize("prepare", [True, False], ids=["filled ahead", "not filled"])
def test_a_log_goes_on_over_segments(prepare: bool) -> None:
    """Entries of many segments come back in order, zero-filled ahead or not."""
    disk = new_disk()
    payloads = grow(disk, 20, prepare=prepare)
    assert len([name for name in segment_names(disk) if name.endswith(".wal")]) > 4
    recovered = recover(disk)
    assert recovered.entries == Entries(1, [4] * 20, payloads)
    assert recovered.hard_state == HardState(4, 7)
    assert recovered.configuration == CONFIGURATION
    sizes = [len(disk.read(DIRECTORY / name)) for name in segment_names(disk)]
    assert max(sizes) <= SEGMENT_BYTES, "there is room for the seal"


def test_every_header_carries_the_hard_state_of_that_moment() -> None:
    """Term and vote stand in each segment's first batch, with identity and configuration."""
    disk = new_disk()
    grow(disk, 20)
    headers = [segment.header for segment in read_segments(DIRECTORY, files=disk)]
    assert [header.hard_state for header in headers[1:]] == [HardState(4, 7)] * (len(headers) - 1)
    assert {header.identity for header in headers} == {IDENTITY}
    assert {header.configuration for header in headers} == {CONFIGURATION}
    assert headers[0].hard_state == HardState(0, 0)


def test_header_carries_what_was_synced_not_what_waits() -> None:
    """A batch is all or nothing: its vote must not slip into the next segment's header."""
    disk = new_disk()
    wal, _ = open_log(disk)
    start_term(wal, 1)
    put(wal, 1, PAYLOAD, PAYLOAD, PAYLOAD, PAYLOAD)
    wal.save(HardState(2, 8), Entries(5, [2], [PAYLOAD]))

    def stop(step: str, path: Path) -> None:
        if (step, path) == ("write", segment_path(2)):
            raise Stopped

    disk.on_step = stop
    with pytest.raises(Stopped):
        wal.sync()
    disk.on_step = lambda step, path: None
    disk.cut_power(random.Random(1))
    assert segment_path(2).name in disk.listdir(DIRECTORY), "the header was synced"
    assert recover(disk).hard_state == HardState(1, 7)


@pytest.mark.parametrize("first", [True, False], ids=["first entry", "later entry"])
def test_a_batch_larger_than_a_segment_has_one_of_its_own_size(first: bool) -> None:
    """Size is no reason to refuse a batch."""
    disk = new_disk()
    wal, _ = open_log(disk)
    start_term(wal, 1)
    before = [] if first else [b"a", PAYLOAD, PAYLOAD]
    payloads = [*before, bytes(5 * SEGMENT_BYTES), b"b"]
    for index, payload in enumerate(payloads, 1):
        put(wal, index, payload)
    wal.close()
    assert recover(disk).entries.payloads == payloads
    sizes = [len(disk.read(DIRECTORY / name)) for name in segment_names(disk)]
    assert sorted(sizes)[-2] <= SEGMENT_BYTES < sorted(sizes)[-1]


def test_truncation_reaches_back_over_segments() -> None:
    """Entries of an older segment are replaced by a batch in a newer one."""
    disk = new_disk()
    payloads = grow(disk, 12)
    wal, _ = open_log(disk)
    start_term(wal, 6, 8)
    put(wal, 3, b"new", term=6)
    for index in range(4, 12):
        put(wal, index, PAYLOAD, term=6)
    wal.close()
    entries = recover(disk).entries
    assert entries == Entries(1, [4, 4] + [6] * 9, [*payloads[:2], b"new", *[PAYLOAD] * 8])


def test_seal_without_a_successor_starts_one() -> None:
    """A crash between the seal and the next segment leaves a sealed last segment: it goes on."""
    disk = new_disk()
    grow(disk, 3)
    wal, recovered = open_log(disk)

    def stop(step: str, path: Path) -> None:
        if step == "rename":
            raise Stopped

    disk.on_step = stop
    payloads = recovered.entries.payloads
    with pytest.raises(Stopped):
        put_many(wal, 4, 9, payloads)
    disk.on_step = lambda step, path: None
    disk.cut_power(random.Random(3))
    segments = list(read_segments(DIRECTORY, files=disk))
    assert segments[-1].sealed
    wal, recovered = open_log(disk)
    assert recovered.entries.payloads == payloads
    put(wal, len(payloads) + 1, b"on", term=4)
    wal.close()
    assert recover(disk).entries.payloads == [*payloads, b"on"]


# --------------------------------------------------------------------------------------- zero-fill


def test_prepare_fills_at_most_one_slice_a_call() -> None:
    """However large the budget, a call writes 256 KiB at most: all at once is an election."""
    disk = new_disk()
    wal, _ = open_log(disk, segment_bytes=16 << 20)
    written: list[int] = []
    steps: list[str] = []

    def watch(step: str, path: Path) -> None:
        steps.append(step)
        written.append(len(disk.read(path)))

    disk.on_step = watch
    calls = 0
    while wal.prepare(1 << 30):
        calls += 1
    sizes = [0, *written]
    assert max(b - a for a, b in itertools.pairwise(sizes)) <= 256 << 10
    slices = AHEAD_BYTES // (256 << 10)
    assert steps == ["write", "sync"] * slices
    at_once = slices // 2 - 1  # while more than half is missing
    assert calls == 2 * at_once + (1 + CALLS_TO_SYNC) * (slices - at_once)
    assert len(disk.read(segment_path(1))) >= AHEAD_BYTES
    assert not wal.prepare(1 << 18), "nothing more to do"
    wal.close()


def test_zeros_are_synced_some_calls_after_they_were_written() -> None:
    """The disk is told to begin with them; each slice is synced before the next one is written."""
    disk = new_disk()
    wal, _ = open_log(disk, segment_bytes=16 << 20)
    fill(wal)
    start_term(wal, 1)
    put(wal, 1, b"x" * (300 << 10))
    steps: list[str] = []
    disk.on_step = lambda step, path: steps.append(step)
    calls: list[list[str]] = []
    while wal.prepare(1 << 30):
        calls.append(steps.copy())
        steps.clear()
    one = [["write"], *[[]] * (CALLS_TO_SYNC - 1), ["sync"]]
    assert calls == one
    wal.close()


def test_a_few_bytes_are_not_worth_a_slice() -> None:
    """After a small write there is nothing to fill yet: it would cost each write a second sync."""
    disk = new_disk()
    wal, _ = open_log(disk, segment_bytes=16 << 20)
    fill(wal)
    start_term(wal, 1)
    syncs: list[int] = []
    disk.on_step = lambda step, path: syncs.append(1) if step == "sync" else None
    for index in range(1, 513):  # a slice of 256 KiB
        put(wal, index, b"small")
        fill(wal)
    assert len(syncs) <= 512 + 2
    wal.close()


def test_writes_into_filled_space_do_not_change_the_file() -> None:
    """The size stays, so a sync has no metadata to write."""
    disk = new_disk()
    wal, _ = open_log(disk)
    fill(wal)
    start_term(wal, 1)
    size = len(disk.read(segment_path(1)))
    put(wal, 1, PAYLOAD)
    assert len(disk.read(segment_path(1))) == size == SEGMENT_BYTES
    wal.close()


def test_next_segment_is_filled_before_it_is_needed() -> None:
    """When the rest of a segment is short, zeros wait in a file that is no segment yet."""
    disk = new_disk()
    wal, _ = open_log(disk)
    fill(wal)
    assert disk.read(DIRECTORY / "next.tmp") == bytes(SEGMENT_BYTES)
    start_term(wal, 1)
    put(wal, 1, PAYLOAD * 3)
    put(wal, 2, PAYLOAD)
    assert segment_names(disk) == ["00000001.wal", "00000002.wal"]
    assert len(disk.read(segment_path(2))) == SEGMENT_BYTES
    wal.close()


def test_half_made_next_segment_is_thrown_away() -> None:
    """What has no segment's name was never part of the log, whatever it holds."""
    disk = new_disk()
    grow(disk, 2)
    disk.put(DIRECTORY / "next.tmp", disk.read(segment_path(1)))
    before = recover(disk)
    assert "next.tmp" not in segment_names(disk)
    assert before.entries.last_index == 2


# ------------------------------------------------------------------------------------- compaction


def test_compaction_deletes_segments_and_keeps_the_hard_state() -> None:
    """Segments that hold nothing newer go; term, vote and configuration stay known."""
    disk = new_disk()
    payloads = grow(disk, 20)
    wal, _ = open_log(disk)
    steps: list[str] = []
    disk.on_step = lambda step, path: steps.append(step)
    wal.compact(18)
    before = segment_names(disk)
    assert "unlink" not in steps, "deleting is work for a quiet moment"
    assert wal.prepare(1)
    assert len(segment_names(disk)) == len(before) - 1, "one at a time"
    fill(wal)
    deleted = [i for i, step in enumerate(steps) if step == "unlink"]
    assert all(steps[i + 1] == "sync" for i in deleted), "one at a time: no crash leaves a hole"
    assert segment_path(1).name not in segment_names(disk)
    assert wal.stats().segments == len([n for n in segment_names(disk) if n.endswith(".wal")])
    wal.close()
    recovered = recover(disk)
    assert recovered.entries == Entries(18, [4] * 3, payloads[17:])
    assert (recovered.hard_state, recovered.configuration) == (HardState(4, 7), CONFIGURATION)


def test_compaction_of_everything_leaves_an_empty_log_at_its_place() -> None:
    """The next entry follows the compacted ones, also after more rotations."""
    disk = new_disk()
    grow(disk, 9)
    wal, _ = open_log(disk)
    wal.compact(10)
    fill(wal)
    syncs = wal.stats().syncs
    wal.compact(5)
    assert wal.stats().syncs == syncs, "older than what is done: nothing happens"
    wal.close()
    assert recover(disk).entries == Entries(10, [], [])
    wal, _ = open_log(disk)
    for index in range(10, 20):
        put(wal, index, PAYLOAD, term=4)
    wal.compact(19)
    fill(wal)
    wal.close()
    assert recover(disk).entries == Entries(19, [4], [PAYLOAD])


def test_compaction_counts_only_entries_that_still_stand() -> None:
    """A segment whose entries were replaced by a newer one goes with the rest."""
    disk = new_disk()
    grow(disk, 12)
    wal, _ = open_log(disk)
    start_term(wal, 5)
    for index in range(2, 14):
        put(wal, index, PAYLOAD, term=5)
    wal.compact(8)
    fill(wal)
    wal.close()
    assert recover(disk).entries == Entries(8, [5] * 6, [PAYLOAD] * 6)


@pytest.mark.parametrize("seed", range(8))
def test_crash_at_every_step_of_compaction_keeps_the_log(seed: int) -> None:
    """Wherever it stops: what is to be kept is there, and no hole is left in the segments."""
    draws = random.Random(seed)
    for stop_at in range(100):
        disk = new_disk()
        payloads = grow(disk, 12)
        wal, _ = open_log(disk)
        left = [stop_at]

        def stop(step: str, path: Path, left: list[int] = left) -> None:
            if left[0] == 0:
                raise Stopped
            left[0] -= 1

        disk.on_step = stop
        try:
            wal.compact(10)
            fill(wal)
        except Stopped:
            finished = False
        else:
            finished = True
        disk.on_step = lambda step, path: None
        disk.cut_power(draws)
        recovered = recover(disk)
        assert recovered.hard_state == HardState(4, 7)
        assert recovered.entries.payloads[-3:] == payloads[9:]
        assert recovered.entries.first_index == 10 or not finished
        if finished:
            return
    raise AssertionError("it never ended")


# -------------------------------------------------------------------------------------- load


def test_load_makes_durable_what_it_reports() -> None:
    """After kill -9 a batch may be in the page cache only; it must not be lost once reported."""
    disk = new_disk()
    wal, _ = open_log(disk)
    start_term(wal, 1)

    def stop(step: str, path: Path) -> None:
        if step == "sync":
            raise Stopped

    wal.save(None, Entries(1, [1], [PAYLOAD]))
    disk.on_step = stop
    with pytest.raises(Stopped):
        wal.sync()
    disk.on_step = lambda step, path: None
    disk.kill()
    wal, recovered = open_log(disk)
    assert recovered.entries.payloads == [PAYLOAD]
    for seed in range(20):
        disk.cut_power(random.Random(seed))
        assert recover(disk) == recovered


def test_load_makes_names_durable_too() -> None:
    """After kill -9 between rename and sync of the directory, a later power cut loses nothing."""
    disk = new_disk()
    payloads = grow(disk, 2)
    wal, _ = open_log(disk)

    def stop(step: str, path: Path) -> None:
        if (step, path) == ("sync", DIRECTORY):
            raise Stopped

    disk.on_step = stop
    with pytest.raises(Stopped):
        put_many(wal, 3, 6, payloads)
    disk.on_step = lambda step, path: None
    disk.kill()
    wal, recovered = open_log(disk)
    put(wal, recovered.entries.last_index + 1, b"acknowledged", term=4)
    wal.close()
    for seed in range(20):
        disk.cut_power(random.Random(seed))
        assert recover(disk).entries.payloads == [*payloads, b"acknowledged"]


def test_a_segment_is_freed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """First its name goes, durably; what it took up is freed by later calls, and closed."""
    monkeypatch.setattr(storage_steps, "FREE_BYTES", 1000)
    disk = new_disk()
    grow(disk, 18)
    wal, _ = open_log(disk)
    fill(wal)
    size_bytes, open_files = len(disk.read(segment_path(1))), disk.open_count
    wal.compact(8)
    steps: list[str] = []
    disk.on_step = lambda step, path: steps.append(step)
    calls: list[list[str]] = []
    while wal.prepare(1 << 20):
        calls.append(steps.copy())
        steps.clear()
    pieces = -(-size_bytes // 1000)
    assert pieces > 3
    assert calls[: pieces + 1] == [["unlink", "sync"], *[["truncate"]] * (pieces - 1), []]
    assert disk.open_count == open_files
    wal.close()
    assert disk.open_count == 0


def test_what_it_did_is_reported() -> None:
    """Recovery, repair, rotation and deletion are facts for the node's log."""
    disk = new_disk()
    grow(disk, 2)
    data, end = disk.read(segment_path(1)), batch_offsets(disk)[segment_path(1)][-1]
    disk.put(segment_path(1), data[: end - 1] + bytes(len(data) - end + 1))
    events: dict[str, dict[str, object]] = {}

    def report(event: str, /, **fields: object) -> None:
        events[event] = fields

    wal = Wal(DIRECTORY, IDENTITY, segment_bytes=SEGMENT_BYTES, files=disk, report=report)
    wal.load()
    assert wal.stats().repaired_bytes == events["storage.tail_repaired"]["bytes_dropped"]
    assert events["storage.tail_repaired"]["path"] == str(segment_path(1))
    assert events["storage.recovered"]["last_index"] == 1
    for index in range(2, 9):
        put(wal, index, PAYLOAD, term=4)
    wal.compact(9)
    fill(wal)
    wal.close()
    assert {"storage.segment_rotated", "storage.segment_deleted"} <= set(events)
