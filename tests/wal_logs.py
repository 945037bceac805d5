"""Small logs on a simulated disk, and what can be read of them: shared by the tests of the WAL."""

from __future__ import annotations

import contextlib
from pathlib import Path

from zraft.core.model import Configuration, Entries, HardState, Recovered
from zraft.storage.base import Identity
from zraft.storage.segment import read_segments, segment_name
from zraft.storage.wal import Wal
from zraft.testing.disk import SimulatedDisk

IDENTITY = Identity(0x1111_2222_3333_4444, 0xAAAA_BBBB_CCCC_DDDD)
CONFIGURATION = Configuration((7, 8, IDENTITY.member_id))
DIRECTORY = Path("/n1/wal")
SEGMENT_BYTES = 4096
PAYLOAD = bytes(range(256)) * 3


class _Lowest:
    """Draws 0 for ever."""

    def random(self) -> float:
        """Return the lowest number."""
        return 0.0


LOSE_ALL = _Lowest()
"""A power cut with these draws keeps nothing that was not synced."""


def new_disk() -> SimulatedDisk:
    """Return a disk with a new, empty log."""
    disk = SimulatedDisk()
    disk.mkdir(DIRECTORY.parent)
    Wal.create(DIRECTORY, IDENTITY, CONFIGURATION, files=disk)
    disk.sync_everything()
    return disk


def open_log(
    disk: SimulatedDisk, *, segment_bytes: int = SEGMENT_BYTES, identity: Identity = IDENTITY
) -> tuple[Wal, Recovered]:
    """Return a loaded log and what it recovered; no descriptor stays open when that fails."""
    wal = Wal(DIRECTORY, identity, segment_bytes=segment_bytes, files=disk)
    with contextlib.ExitStack() as stack:
        stack.callback(wal.close)
        recovered = wal.load()
        stack.pop_all()
    return wal, recovered


def recover(disk: SimulatedDisk) -> Recovered:
    """Load, close, and return what is durable."""
    wal, recovered = open_log(disk)
    wal.close()
    return recovered


def fill(wal: Wal) -> None:
    """Zero-fill ahead as far as it goes, as an idle node does."""
    while wal.prepare(1 << 20):
        pass


def put(wal: Wal, first_index: int, *payloads: bytes, term: int = 1) -> None:
    """Save and sync entries of one term."""
    wal.save(None, Entries(first_index, [term] * len(payloads), list(payloads)))
    wal.sync()


def start_term(wal: Wal, term: int, voted_for: int = 7) -> None:
    """Save and sync a hard state."""
    wal.save(HardState(term, voted_for), None)
    wal.sync()


def segment_path(number: int) -> Path:
    """Return where a segment is."""
    return DIRECTORY / segment_name(number)


def segment_names(disk: SimulatedDisk) -> list[str]:
    """Return the files of the log, sorted."""
    return sorted(disk.listdir(DIRECTORY))


def batch_offsets(disk: SimulatedDisk) -> dict[Path, list[int]]:
    """Return where the batches of each segment start, and, last, where the next one goes."""
    found = {}
    for segment in read_segments(DIRECTORY, files=disk):
        seal = [segment.end_offset - 512] if segment.sealed else []
        starts = [0, *(batch.offset for batch in segment.batches), *seal]
        found[segment.path] = [*starts, segment.end_offset]
    return found


def grow(disk: SimulatedDisk, count: int, *, prepare: bool = True) -> list[bytes]:
    """Append `count` entries to an empty log, one sync each; return their payloads."""
    wal, _ = open_log(disk)
    start_term(wal, 4)
    payloads = [b"%d " % index + PAYLOAD for index in range(1, count + 1)]
    for index, payload in enumerate(payloads, 1):
        put(wal, index, payload, term=4)
        if prepare:
            fill(wal)
    wal.close()
    return payloads


def put_many(wal: Wal, first_index: int, count: int, payloads: list[bytes]) -> None:
    """Append entries of term 4, one sync each; count in `payloads` what was acknowledged."""
    for index in range(first_index, first_index + count):
        put(wal, index, PAYLOAD, term=4)
        payloads.append(PAYLOAD)
