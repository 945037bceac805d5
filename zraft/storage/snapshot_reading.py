"""Snapshots that are on disk: read piece by piece, checked while they are read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from zraft.core.model import SnapshotMeta
from zraft.errors import ForeignDataError
from zraft.storage.base import Identity
from zraft.storage.files import OS_FILES, Files, read_exactly
from zraft.storage.segment import corrupt
from zraft.storage.snapshot_file import (
    END_BYTES,
    FORMAT,
    MAX_START_BYTES,
    Chunk,
    Header,
    NewerFormat,
    SnapshotDamage,
    SnapshotParser,
    decode_end,
    decode_start,
    snapshot_name,
)
from zraft.storage.snapshot_steps import refused

READ_BYTES = 256 << 10


def verify_snapshot(
    path: Path, identity: Identity | None = None, *, files: Files = OS_FILES
) -> SnapshotMeta:
    """Read all of a snapshot, check every byte, and return what it says of itself.

    `identity`: whose it has to be.

    Raises:
        CorruptLogError: it is not what was written; names file and offset.
        ForeignDataError: another cluster's, or of a newer format.
        StorageError: the disk refused.
    """
    meta = read_snapshot_meta(path, identity, files=files)
    for _ in read_chunks(path, meta, files=files):
        pass
    return meta


def read_snapshot_meta(
    path: Path, identity: Identity | None = None, *, files: Files = OS_FILES
) -> SnapshotMeta:
    """Return what a snapshot says of itself, by its first and last record; raises likewise."""
    header = read_header(path, files=files)
    _check_header(path, header, identity)
    return header.meta


def read_header(path: Path, *, files: Files = OS_FILES) -> Header:
    """Return the first record, size and CRC included, whatever the file's name and cluster."""
    with _opened(path, files) as fd, _blaming(path):
        size_bytes = files.size(fd)
        header = decode_start(read_exactly(files, fd, MAX_START_BYTES, 0))
        offset = max(0, size_bytes - END_BYTES)
        crc = decode_end(read_exactly(files, fd, END_BYTES, offset), size_bytes)
    return header._replace(meta=header.meta._replace(size_bytes=size_bytes, crc=crc))


def read_chunks(path: Path, meta: SnapshotMeta, *, files: Files = OS_FILES) -> Iterator[Chunk]:
    """Yield section and bytes of each chunk of the snapshot that `meta` describes.

    Raises:
        CorruptLogError: the file is not what was written; maybe only after some chunks.
        StorageError: the disk refused.
    """
    with _opened(path, files) as fd, _blaming(path):
        parser = SnapshotParser(meta.size_bytes)
        offset = 0
        while data := read_exactly(files, fd, READ_BYTES, offset):
            yield from parser.feed(data)
            offset += len(data)
        if not parser.finished:
            raise SnapshotDamage("no end record", parser.offset, "the file was cut")
        if parser.crc != meta.crc:
            raise SnapshotDamage("another snapshot", 0, "its checksum is not the one known")


class SnapshotReader:
    """An open snapshot, to be sent in pieces; it stays readable when a newer one replaces it.

    Raises:
        StorageError: the disk refused, or the file is gone.
    """

    def __init__(self, path: Path, meta: SnapshotMeta, files: Files) -> None:
        self.meta = meta
        self.path = path
        self._files = files
        try:
            self._fd: int | None = files.open(path, os.O_RDONLY)
        except OSError as error:
            raise refused("open", path, error) from error

    @property
    def is_open(self) -> bool:
        """Whether it can still be read."""
        return self._fd is not None

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer only at the end of the file.

        Raises:
            StorageError: the disk refused.
        """
        assert self._fd is not None, "it was closed"
        try:
            return read_exactly(self._files, self._fd, length, offset)
        except OSError as error:
            raise refused("read", self.path, error) from error

    def close(self) -> None:
        """Close it; may be called again."""
        if self._fd is not None:
            self._files.close(self._fd)
            self._fd = None


def _check_header(path: Path, header: Header, identity: Identity | None) -> None:
    if identity is not None and header.cluster_id != identity.cluster_id:
        raise ForeignDataError(
            f"{path} belongs to cluster {header.cluster_id:016x}",
            why=f"this is a member of cluster {identity.cluster_id:016x}",
            try_="put the right data directory back, or replace this member by a new one",
        )
    name = snapshot_name(header.meta.index, header.meta.term)
    if path.name != name:
        raise corrupt("a snapshot under a wrong name", path, 0, f"it is {name}")


@contextlib.contextmanager
def _opened(path: Path, files: Files) -> Iterator[int]:
    try:
        fd = files.open(path, os.O_RDONLY)
    except OSError as error:
        raise refused("open", path, error) from error
    try:
        yield fd
    except OSError as error:
        raise refused("read", path, error) from error
    finally:
        files.close(fd)


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Bytes on our own disk: damage is corruption, and names the file."""
    try:
        yield
    except SnapshotDamage as damage:
        raise corrupt(damage.what, path, damage.offset, damage.why) from None
    except NewerFormat as newer:
        raise ForeignDataError(
            f"{path}: the snapshot has {newer}",
            why=f"this version of zraft reads format {FORMAT}",
            try_="start it with the version of zraft that wrote it",
        ) from None
