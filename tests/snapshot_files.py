"""Small snapshots on a simulated disk: shared by the tests of snapshots and of recovery."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.wal_logs import CONFIGURATION, IDENTITY
from zraft.core.model import Configuration, MemberInfo, SnapshotMeta
from zraft.storage.base import Identity
from zraft.storage.snapshots import Incoming, SnapshotStore, SnapshotWriter
from zraft.testing.disk import SimulatedDisk, Stopped

SNAPSHOTS = Path("/n1/snap")
SECTIONS: tuple[tuple[str, bytes], ...] = (
    ("sessions", b"s" * 100),
    ("machine", bytes(range(256)) * 6),
    ("machine", b"\0"),
    ("machine", bytes(3000)),
)
MEMBERS = tuple(MemberInfo(member_id, f"n{member_id % 97}") for member_id in (7, 8, 9))
JOINT = Configuration((7, 8), 40, outgoing=(7, 9), learners=(9,), joining=(), members=MEMBERS)


def meta_at(
    index: int, term: int = 4, configuration: Configuration = CONFIGURATION
) -> SnapshotMeta:
    """Return what a snapshot is begun with."""
    return SnapshotMeta(index, term, configuration, log_time_ms=index * 10, digest=index << 40)


def open_store(disk: SimulatedDisk, identity: Identity = IDENTITY) -> SnapshotStore:
    """Return a store on the simulated disk, not loaded."""
    return SnapshotStore(SNAPSHOTS, identity, files=disk)


def new_snapshot_disk() -> SimulatedDisk:
    """Return a disk with a directory for snapshots, and none in it."""
    disk = SimulatedDisk()
    disk.mkdir(SNAPSHOTS.parent)
    disk.mkdir(SNAPSHOTS)
    disk.sync_everything()
    return disk


def write_all(writer: SnapshotWriter, sections: Iterable[tuple[str, bytes]] = SECTIONS) -> None:
    """Write all chunks."""
    for section, chunk in sections:
        writer.write(section, chunk)


def take(
    store: SnapshotStore,
    meta: SnapshotMeta,
    sections: Iterable[tuple[str, bytes]] = SECTIONS,
) -> SnapshotMeta:
    """Take a whole snapshot, and free what it replaces; the directory is made if need be."""
    store.list()
    writer = store.begin(meta)
    write_all(writer, sections)
    taken = writer.finish()
    clean_up(store)
    return taken


def clean_up(store: SnapshotStore) -> int:
    """Free all that was replaced; return in how many steps."""
    steps = 1
    while store.clean_up():
        steps += 1
    return steps


def transfer(incoming: Incoming, data: bytes, piece_bytes: int = 700) -> None:
    """Hand in all that is missing, in pieces."""
    for offset in range(incoming.next_offset, len(data), piece_bytes):
        assert incoming.write(offset, data[offset : offset + piece_bytes])


def stops(disk: SimulatedDisk, step_number: int) -> None:
    """Let the world stop before the step with this number, counted from 0."""
    left = [step_number]

    def stop(step: str, path: Path) -> None:
        if left[0] == 0:
            raise Stopped
        left[0] -= 1

    disk.on_step = stop


def goes_on(disk: SimulatedDisk) -> None:
    """Let every step pass again."""
    disk.on_step = lambda step, path: None
