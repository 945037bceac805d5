"""Clusters that exist on disk only, no process ever ran: for tests of inspect and doctor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from zraft.control_api import Up
from zraft.core.model import Command, Entries, EntryType, HardState
from zraft.machine.kv_codec import encode_put
from zraft.paths import ClusterFile
from zraft.storage.directory import Member, next_incarnation, open_member
from zraft.storage.wal import Wal
from zraft.wire_entry import EntryCodec
from zraft_supervisor.creation import make_members, new_cluster, write_cluster_file
from zraft_supervisor.layout import Place, make_place

CODEC = EntryCodec()


class DiskCluster(NamedTuple):
    """A cluster's directory with the data of its members."""

    place: Place
    file: ClusterFile

    def member(self, name: str) -> Member:
        """Return a member as its directory describes it."""
        return open_member(self.place.directory / name)

    def wal_path(self, name: str, number: int = 1) -> Path:
        """Return the file of a segment."""
        return self.place.directory / name / "wal" / f"{number:08d}.wal"

    @contextlib.contextmanager
    def log(self, name: str, *, segment_bytes: int = 1 << 20) -> Iterator[Wal]:
        """Open a member's log for writing, as a start does, and count the start."""
        member = self.member(name)
        next_incarnation(member.directory)
        wal = Wal(member.wal_directory, member.identity, segment_bytes=segment_bytes)
        try:
            wal.load()
            yield wal
        finally:
            wal.close()


def make_cluster(
    home: Path, name: str = "t", nodes: int = 3, run: Path | None = None
) -> DiskCluster:
    """Make a cluster with directories and empty logs below `home`, which is STATE."""
    home.mkdir(mode=0o700, exist_ok=True)
    place = make_place(home / name, data=None, ephemeral=False)
    environ = {"ZRAFT_HOME": str(home), "XDG_RUNTIME_DIR": str(run or home)}
    file = new_cluster(place, Up(name=name, nodes=nodes), environ)
    write_cluster_file(place.directory, file)
    file = make_members(place, file, lambda _: None)
    return DiskCluster(place, file)


def payload(term: int, body: bytes = b"", kind: EntryType = EntryType.COMMAND) -> bytes:
    """Return an entry's bytes."""
    return CODEC.encode(Command(body, kind), term=term, log_time_ms=10 * term)


def put(term: int, key: str, value: str) -> bytes:
    """Return the entry of a put."""
    return payload(term, encode_put(key.encode(), value.encode()))


def noop(term: int) -> bytes:
    """Return the first entry of a term."""
    return payload(term, kind=EntryType.NOOP)


def append(wal: Wal, first_index: int, term: int, payloads: Sequence[bytes]) -> None:
    """Save entries of one term, with that term in the hard state, and sync."""
    wal.save(HardState(term), Entries(first_index, [term] * len(payloads), list(payloads)))
    wal.sync()
