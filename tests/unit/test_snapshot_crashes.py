"""A crash at every step of taking, receiving, installing, cutting and recovering: old or new.

The world stops before each step of the disk in turn; then the process is gone, or the machine, with
any of the unsynced sectors and names. What recovery finds must be the old snapshot or the new one,
with a log that reaches from it to the last acknowledged entry (pitfalls 6, 49, 51, 53, 56).
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.snapshot_files import (
    SECTIONS,
    SNAPSHOTS,
    clean_up,
    goes_on,
    meta_at,
    new_snapshot_disk,
    open_store,
    stops,
    take,
    transfer,
    write_all,
)
from tests.wal_logs import DIRECTORY, IDENTITY, fill, grow, new_disk
from zraft.core.model import Entries, HardState, Recovered, SnapshotMeta
from zraft.errors import StorageError
from zraft.storage import snapshot_steps
from zraft.storage.recovery import recover
from zraft.storage.snapshot_file import snapshot_name
from zraft.storage.snapshots import SnapshotStore, SnapshotWriter
from zraft.storage.wal import Wal
from zraft.testing.disk import SimulatedDisk, Stopped

LAST_INDEX = 12
SEEDS = range(4)  # 0: the process dies; others: the machine


class Member:
    """A member's log and snapshots on one disk, while its process lives."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self.disk = disk
        self.wal = Wal(DIRECTORY, IDENTITY, segment_bytes=4096, files=disk)
        self.store = open_store(disk)
        self.promised = False  # whatever a peer was told must hold from now on

    def start(self) -> Recovered:
        """Recover."""
        return recover(self.wal, self.store)


Act = Callable[[Member], None]


def take_and_cut(member: Member) -> None:
    """Take a snapshot at 8, then forget what it covers but for a window, and give back space."""
    writer = member.store.begin(meta_at(8))
    write_all(writer)
    writer.finish()
    member.promised = True
    clean_up(member.store)
    member.wal.compact(7)
    fill(member.wal)


def receive_ahead(member: Member) -> None:
    """Receive one that is far ahead, and start after it, with entries in the same batch."""
    receive(member, 100)
    member.wal.install(meta_at(100))
    member.wal.sync()
    member.promised = True
    fill(member.wal)


def receive_prefix(member: Member) -> None:
    """Receive one of a prefix of the log: the rest of the log stays."""
    receive(member, 8)
    member.wal.install(meta_at(8))
    member.wal.sync()
    member.promised = True
    fill(member.wal)


def receive(member: Member, index: int) -> None:
    """Take in a snapshot of another member."""
    other = new_snapshot_disk()
    meta = take(open_store(other), meta_at(index))
    incoming = member.store.receive(index, 4, meta.size_bytes, meta.crc)
    transfer(incoming, other.read(SNAPSHOTS / snapshot_name(index, 4)))
    incoming.finish()
    clean_up(member.store)


class Case:
    """What is on the disk before, and what is done."""

    def __init__(self, act: Act, new_index: int) -> None:
        self.act = act
        self.new_index = new_index
        self.name = act.__name__


CASES = [Case(take_and_cut, 8), Case(receive_ahead, 100), Case(receive_prefix, 8)]


def old_disk() -> tuple[SimulatedDisk, list[bytes]]:
    """Return a disk with twelve entries, a snapshot at 4, and a log cut after 2."""
    disk = new_disk()
    payloads = grow(disk, LAST_INDEX)
    take(open_store(disk), meta_at(4))
    wal = Wal(DIRECTORY, IDENTITY, segment_bytes=4096, files=disk)
    wal.load()
    wal.compact(3)
    fill(wal)
    wal.close()
    disk.sync_everything()
    return disk, payloads


def crashes(disk: SimulatedDisk, seed: int) -> None:
    """End the process, or the machine."""
    goes_on(disk)
    if seed:
        disk.cut_power(random.Random(seed))
    else:
        disk.kill()


def check(found: Recovered, store: SnapshotStore, payloads: list[bytes], new_index: int) -> None:
    """Old or new, whole, and no hole up to the last acknowledged entry."""
    meta = found.snapshot
    assert meta is not None
    assert meta.index in (4, new_index)
    assert list(store.read(meta)) == list(SECTIONS)
    assert found.hard_state == HardState(4, 7)
    first = found.compacted.index + 1
    assert first <= meta.index + 1, "no hole"
    assert found.entries.first_index == first
    if new_index > LAST_INDEX and meta.index == new_index:
        assert found.entries == Entries(new_index + 1, [], [])
    else:
        assert found.entries.payloads == payloads[first - 1 :]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_steps, "SYNC_BYTES", 1000)
    monkeypatch.setattr(snapshot_steps, "FREE_BYTES", 2000)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_crash_at_any_step_leaves_the_old_or_the_new(case: Case, seed: int) -> None:
    """And the next process can go on: with another snapshot, and another entry."""
    steps = 0
    while True:
        disk, payloads = old_disk()
        member = Member(disk)
        member.start()
        stops(disk, steps)
        try:
            case.act(member)
        except Stopped:
            finished = False
        else:
            finished = True
        crashes(disk, seed * 1000 + steps if seed else 0)
        again = Member(disk)
        found = again.start()
        check(found, again.store, payloads, case.new_index)
        if member.promised:
            assert found.snapshot is not None
            assert found.snapshot.index == case.new_index, f"step {steps}: it was promised"
        assert [name for name in disk.listdir(SNAPSHOTS) if name.endswith(".tmp")] == []
        index = found.entries.last_index
        again.wal.save(None, Entries(index + 1, [4], [b"more"]))
        again.wal.sync()
        assert take(again.store, meta_at(index + 1)) == again.store.newest
        assert len(disk.listdir(SNAPSHOTS)) == 1
        again.wal.close()
        if finished:
            break
        steps += 1
    assert steps > 12, "each write, sync, rename and delete is a step"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("index", [8, 100])
def test_a_crash_inside_recovery_is_recovered(index: int, seed: int) -> None:
    """A received file whose log was not started after it, and a second crash while that is done."""
    for step in range(100):
        disk, payloads = old_disk()
        member = Member(disk)
        member.start()
        receive(member, index)
        crashes(disk, 0)
        second = Member(disk)
        stops(disk, step)
        finished = False
        with contextlib.suppress(Stopped):
            second.start()
            finished = True
        crashes(disk, seed * 1000 + step if seed else 0)
        third = Member(disk)
        found = third.start()
        check(found, third.store, payloads, index)
        assert found.snapshot is not None
        assert found.snapshot.index == index
        third.wal.close()
        if finished:
            return
    raise AssertionError("it never ended")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_crash_while_the_directory_is_made(seed: int) -> None:
    """The first snapshot of a member whose directory has no place for it yet."""
    for step in range(100):
        disk = new_disk()
        payloads = grow(disk, LAST_INDEX)
        member = Member(disk)
        stops(disk, step)
        meta: SnapshotMeta | None = None
        with contextlib.suppress(Stopped):
            member.start()
            meta = take(member.store, meta_at(4))
        crashes(disk, seed * 1000 + step if seed else 0)
        again = Member(disk)
        found = again.start()
        assert found.entries.payloads == payloads
        if meta is not None:
            assert found.snapshot == meta
            again.wal.close()
            return
        assert found.snapshot is None or list(again.store.read(found.snapshot)) == list(SECTIONS)
        again.wal.close()
    raise AssertionError("it never ended")


def test_a_disk_that_refuses_any_step_leaves_the_old_or_the_new() -> None:
    """EIO at each step of taking one: a StorageError that names the step; the node may go on."""
    whys: list[str] = []
    for step in range(100):
        disk, payloads = old_disk()
        member = Member(disk)
        member.start()
        left = [step]

        def refuse(what: str, path: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.EIO, "Input/output error", str(path))

        disk.on_step = refuse
        writer: SnapshotWriter | None = None
        try:
            writer = member.store.begin(meta_at(8))
            write_all(writer)
            writer.finish()
            clean_up(member.store)
        except StorageError as error:
            whys.append(error.why)
            if writer is not None:
                writer.abort()
            failed = True
        else:
            failed = False
        goes_on(disk)
        assert take(member.store, meta_at(9)).index == 9, "the next try is another file"
        member.wal.close()
        assert disk.open_count == 0
        again = Member(disk)
        check(again.start(), again.store, payloads, 9)
        again.wal.close()
        if not failed:
            assert {*whys} == {"Input/output error"}
            assert len(whys) == step > 8
            return
    raise AssertionError("it never ended")
