"""Backups: one file that holds a cluster's state as of one index, and from which a new one is made.

It is a snapshot's file (`storage.snapshot_file`) with one section in front of the others:

    section "backup"   [format, cluster name, state machine's class, directory of its package]

So a node never takes a backup for a snapshot of its own: it has another name, and it is turned into
one, with the new cluster's identity and membership, when a directory is made from it
(`seed_member`). What the sections hold is copied unchanged: the client sessions with what they
remember, and the state machine. Index, term and log time go on where they were, so that what is
ordered by them (sessions are named by an index) is never given out twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from zraft.core.model import Configuration, HardState, SnapshotMeta
from zraft.errors import CorruptLogError, DecodeError, ForeignDataError, StorageError
from zraft.storage.base import Identity
from zraft.storage.files import OS_FILES, Files
from zraft.storage.snapshot_file import Chunk
from zraft.storage.snapshot_reading import read_chunks, read_header
from zraft.storage.snapshot_steps import GrowingFile, SnapshotDirectory
from zraft.storage.snapshots import SnapshotStore, SnapshotWriter
from zraft.storage.wal import Wal
from zraft.wire_entry import pack, unpack

FORMAT = 1
SECTION = "backup"
SNAPSHOTS = "snap"
WAL = "wal"


class Note(NamedTuple):
    """What a backup says of the cluster it was taken from."""

    cluster: str
    machine: str  # package.module:Class
    directory: str  # where its package was found; "": it was installed


class Backup(NamedTuple):
    """A backup that was opened: what its first and last records say."""

    path: Path
    cluster_id: int
    meta: SnapshotMeta
    note: Note


def write_backup(
    path: Path,
    cluster_id: int,
    meta: SnapshotMeta,
    note: Note,
    sections: Iterable[Chunk],
    *,
    files: Files = OS_FILES,
) -> Backup:
    """Write a backup; it is there whole, durable and under its name when this returns, or not.

    Raises:
        StorageError: the disk refused, or there is something under that name.
    """
    if path.exists():
        raise StorageError(
            f"{path} exists", why="a backup never replaces a file", try_="another name"
        )
    directory = SnapshotDirectory(path.parent, files)
    file = GrowingFile(directory, f".{path.name}.tmp")
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(file.drop)
        identity = Identity(cluster_id, 0)
        writer = SnapshotWriter(file, identity, meta, lambda whole, _: whole.publish(path))
        writer.write(SECTION, _encode_note(note))
        for section, chunk in sections:
            writer.write(section, chunk)
        meta = writer.finish()
        on_failure.pop_all()
    return Backup(path, cluster_id, meta, note)


def open_backup(path: Path, *, files: Files = OS_FILES) -> Backup:
    """Return what a backup says of itself.

    Raises:
        CorruptLogError: it is not what was written, or no backup (exit 65).
        ForeignDataError: a newer format (exit 65).
        StorageError: it can not be read.
    """
    with blaming(path):
        header = read_header(path, files=files)
        section, chunk = next(read_chunks(path, header.meta, files=files), ("", b""))
    if section != SECTION:
        raise damaged("no backup", path, "it is a snapshot of one node, or something else")
    try:
        note = _decode_note(chunk)
    except DecodeError as error:
        raise damaged("no backup", path, str(error)) from error
    if note is None:
        raise ForeignDataError(
            f"{path} is a backup of a newer format",
            why=f"this version of zraft reads formats up to {FORMAT}",
            try_="restore it with the version of zraft that wrote it",
        )
    return Backup(path, header.cluster_id, header.meta, note)


def read_sections(backup: Backup, *, files: Files = OS_FILES) -> Iterator[Chunk]:
    """Yield the chunks of sessions and machine; every byte is checked on the way.

    Raises:
        CorruptLogError: it is not what was written; maybe only after some chunks.
        StorageError: it can not be read.
    """
    with blaming(backup.path):
        for section, chunk in read_chunks(backup.path, backup.meta, files=files):
            if section != SECTION:
                yield section, chunk


def seed_member(
    directory: Path,
    identity: Identity,
    configuration: Configuration,
    backup: Backup,
    *,
    files: Files = OS_FILES,
) -> None:
    """Put a backup's state into a member's directory that was just made, its log still empty.

    Repeatable only with the whole directory: call it before that has its name.

    Raises:
        CorruptLogError: the backup is not what was written.
        StorageError: the disk refused.
    """
    store = SnapshotStore(directory / SNAPSHOTS, identity, files=files)
    store.load()
    writer = store.begin(backup.meta._replace(configuration=configuration))
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(writer.abort)
        for section, chunk in read_sections(backup, files=files):
            writer.write(section, chunk)
        meta = writer.finish()
        on_failure.pop_all()
    wal = Wal(directory / WAL, identity, files=files)
    try:
        wal.load()
        wal.save(HardState(meta.term), None)
        wal.sync()
        wal.install(meta)
        wal.sync()
    finally:
        wal.close()


def damaged(what: str, path: Path, why: str, offset: int = 0) -> CorruptLogError:
    """Return the error for a backup that is not what was written."""
    try_ = "use another copy of it, or another backup"
    return CorruptLogError(what, path=str(path), offset=offset, why=why, try_=try_)


@contextlib.contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Damage here is the backup's, not a member's: other words of what to do."""
    try:
        yield
    except CorruptLogError as error:
        if error.path != str(path):
            raise
        what = error.what.removeprefix(f"{path}: ").removesuffix(f" at byte offset {error.offset}")
        raise damaged(what, path, error.why, error.offset) from error


def _encode_note(note: Note) -> bytes:
    return pack([FORMAT, note.cluster.encode(), note.machine.encode(), note.directory.encode()])


def _decode_note(chunk: bytes) -> Note | None:
    """Return the note, None when it is of a newer format."""
    fields = unpack(chunk)
    if type(fields) is not list or len(fields) < 4 or type(fields[0]) is not int:
        raise DecodeError("its first section is not an array of four or more")
    if fields[0] > FORMAT:
        return None
    if not all(type(field) is bytes for field in fields[1:4]):
        raise DecodeError("its first section has other types")
    try:
        cluster, machine, directory = (field.decode() for field in fields[1:4])
    except UnicodeDecodeError:
        raise DecodeError("its first section is not UTF-8") from None
    return Note(cluster, machine, directory)
