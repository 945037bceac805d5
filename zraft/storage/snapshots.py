"""The snapshots of one member: files that are there whole or not at all.

    snap/<index, 20 digits>-<term>.snap    the newest, and the one before it until that is whole
    snap/writing.tmp                       one that this node takes
    snap/incoming.tmp                      one that a peer sends

Written in small pieces, each synced; then: sync, rename, sync the directory; only then older ones
are removed. So at every moment of a crash the directory holds a whole snapshot, if it ever held
one. Never changed in place: a crash between clearing and rewriting would lose both.

Layout of the file: `storage.snapshot_file`. How snapshot and log come together at a start:
`storage.recovery`. For people: docs/PROTOCOL.md, "Snapshots".
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from zraft.core.model import EntryId, SnapshotMeta
from zraft.errors import CorruptLogError, DecodeError, VersionError
from zraft.storage.base import Identity, Report, no_report
from zraft.storage.files import OS_FILES, SUFFIX_TEMPORARY, Files
from zraft.storage.snapshot_file import (
    END_BYTES,
    FORMAT,
    MAX_SECTION_BYTES,
    Chunk,
    NewerFormat,
    RecordType,
    SnapshotDamage,
    SnapshotParser,
    encode_end,
    encode_record,
    encode_start,
    snapshot_name,
)
from zraft.storage.snapshot_reading import (
    SnapshotReader,
    read_chunks,
    read_snapshot_meta,
    verify_snapshot,
)
from zraft.storage.snapshot_steps import GrowingFile, SnapshotDirectory

WRITING_NAME = f"writing{SUFFIX_TEMPORARY}"
INCOMING_NAME = f"incoming{SUFFIX_TEMPORARY}"

Publish: TypeAlias = Callable[[GrowingFile, SnapshotMeta], None]
"""Gives a file that is complete its name, and makes it the newest."""


class IncomingKey(NamedTuple):
    """What names a snapshot that is sent: if all four are equal, so are the bytes."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    term: int
    size_bytes: int
    crc: int


class SnapshotStore:
    """The directory `snap/` of a member; one owner, who holds the member's lock."""

    def __init__(
        self,
        directory: Path,
        identity: Identity,
        *,
        files: Files = OS_FILES,
        report: Report = no_report,
    ) -> None:
        self.directory = directory
        self.identity = identity
        self.newest: SnapshotMeta | None = None
        """The newest whole one, as far as `load` and what was finished since tell."""
        self.damaged: list[CorruptLogError] = []
        """Newer ones than that, and what is wrong with them."""
        self._directory = SnapshotDirectory(directory, files)
        self._files = files
        self._report = report
        self._writer: SnapshotWriter | None = None
        self._replaced: list[Path] = []  # set aside, to be freed
        self._readers: list[SnapshotReader] = []  # open ones, as of the last look
        self._incoming: Incoming | None = None

    # ------------------------------------------------------------------------------------- reading

    def load(self) -> SnapshotMeta | None:
        """Return the newest snapshot that is whole; remove older ones, and what was half-made.

        Newer ones that are damaged are listed in `damaged`, and then everything stays where it is.
        Whether an older one will do is for `recover` to say, which knows the log. What is returned
        is durable.

        Raises:
            ForeignDataError: a snapshot of another cluster, or of a newer format.
            StorageError: the disk refused.
        """
        self._directory.delete_temporary()
        self._directory.sync()  # after kill -9 a name may be in the page cache only
        for path in reversed(self._directory.snapshots()):
            try:
                self.newest = verify_snapshot(path, self.identity, files=self._files)
            except CorruptLogError as error:
                self.damaged.append(error)
                self._report(
                    "snapshot.damaged", path=str(path), offset=error.offset, reason=error.why
                )
            else:
                break
        if self.newest is not None and not self.damaged:
            self._directory.delete_all_but(self._path(self.newest))
        return self.newest

    def list(self) -> list[SnapshotMeta]:
        """Return what is there, oldest first, by first and last records; damaged ones are left out.

        Raises:
            ForeignDataError: one of another cluster, or of a newer format.
            StorageError: the disk refused.
        """
        found: list[SnapshotMeta] = []
        for path in self._directory.snapshots():
            with contextlib.suppress(CorruptLogError):
                found.append(read_snapshot_meta(path, self.identity, files=self._files))
        return found

    def read(self, meta: SnapshotMeta) -> Iterator[Chunk]:
        """Yield section and bytes of each chunk, as written; reads piece by piece.

        Raises:
            CorruptLogError: the file is not what was written; maybe only after some chunks.
            StorageError: the disk refused.
        """
        return read_chunks(self._path(meta), meta, files=self._files)

    def reader(self, meta: SnapshotMeta) -> SnapshotReader:
        """Open a snapshot for sending; it stays readable when a newer one replaces it.

        Raises:
            StorageError: the disk refused, or the file is gone.
        """
        reader = SnapshotReader(self._path(meta), meta, self._files)
        self._readers = [*filter(lambda reader: reader.is_open, self._readers), reader]
        return reader

    # ------------------------------------------------------------------------------------- writing

    def begin(self, meta: SnapshotMeta) -> SnapshotWriter:
        """Start a file for the state after (index, term); size and CRC of `meta` do not count.

        One that was under way is dropped.

        Raises:
            StorageError: the disk refused.
        """
        if self._writer is not None:
            self._writer.abort()
        file = GrowingFile(self._directory, WRITING_NAME)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(file.drop)
            self._writer = SnapshotWriter(file, self.identity, meta, self._publish)
            on_failure.pop_all()
        return self._writer

    def receive(self, index: int, term: int, size_bytes: int, crc: int) -> Incoming:
        """Start a file that a peer sends, or go on with the one that is under way.

        It goes on where it was if all four are the same, whoever sends it now. Otherwise what was
        received so far is dropped.

        Raises:
            StorageError: the disk refused.
        """
        key = IncomingKey(index, term, size_bytes, crc)
        incoming = self._incoming
        if incoming is not None:
            if incoming.key == key and incoming.is_open:
                return incoming
            incoming.abort()
        file = GrowingFile(self._directory, INCOMING_NAME)
        self._incoming = Incoming(file, self.identity, key, self._publish)
        return self._incoming

    def drop_incoming(self) -> None:
        """Drop what a peer has sent so far, if it is not whole."""
        if self._incoming is not None:
            self._incoming.abort()
            self._incoming = None

    def close(self) -> None:
        """Drop what is half-made."""
        if self._writer is not None:
            self._writer.abort()
        self.drop_incoming()

    def _publish(self, file: GrowingFile, meta: SnapshotMeta) -> None:
        file.publish(self._path(meta))
        if self.newest is None or self.newest.index <= meta.index:
            self.newest = meta
        being_read = {reader.path for reader in self._readers if reader.is_open}
        for path in self._directory.snapshots():
            if path == self._path(self.newest):
                continue
            if path in being_read:
                self._directory.delete(path)  # its space is free when the reader is closed
            else:
                self._replaced.append(self._directory.set_aside(path))

    def clean_up(self) -> bool:
        """Free a piece of what newer snapshots replaced; return whether there is more to free.

        Raises:
            StorageError: the disk refused.
        """
        if not self._replaced:
            return False
        path = self._replaced.pop()  # for good, if the disk refuses: the next start deletes it
        if self._directory.free_piece(path):
            self._replaced.append(path)
        return bool(self._replaced)

    def _path(self, meta: SnapshotMeta) -> Path:
        return self._directory.directory / snapshot_name(meta.index, meta.term)


class SnapshotWriter:
    """A snapshot that is being taken; made by `SnapshotStore.begin`."""

    def __init__(
        self, file: GrowingFile, identity: Identity, meta: SnapshotMeta, publish: Publish
    ) -> None:
        self._file = file
        self._meta = meta
        self._publish = publish
        self._crc = 0
        self._section = ""
        self._sealed = False
        self._append(encode_start(identity.cluster_id, meta))

    @property
    def size_bytes(self) -> int:
        """How much was written so far."""
        return self._file.size_bytes

    def write(self, section: str, chunk: bytes) -> None:
        """Add a chunk to a section; the chunks of a section come in a row. Empty ones are dropped.

        Takes as long as writing `chunk` does, and when it `is_full`, as syncing the last mebibyte:
        `sync` does that at a time of one's own.

        Raises:
            StorageError: the disk refused; abort it.
        """
        assert not self._sealed, "its end is written"
        if not chunk:
            return
        data = encode_record(RecordType.CHUNK, chunk)
        if section != self._section:
            assert 0 < len(section.encode()) <= MAX_SECTION_BYTES
            self._section = section
            data = encode_record(RecordType.SECTION, section.encode()) + data
        self._append(data)

    @property
    def is_full(self) -> bool:
        """Whether the next chunk has to wait for a sync."""
        return self._file.is_full

    def sync(self) -> None:
        """Make what was written so far durable.

        Raises:
            StorageError: the disk refused; abort it.
        """
        self._file.sync()

    def seal(self) -> None:
        """Write the end, and make all of it durable, under its temporary name still.

        Raises:
            StorageError: the disk refused; abort it.
        """
        if not self._sealed:
            crc, size_bytes = self._crc, self._file.size_bytes + END_BYTES
            self._append(encode_end(size_bytes, crc))
            self._meta = self._meta._replace(size_bytes=size_bytes, crc=crc)
            self._sealed = True
        self._file.sync()

    def finish(self) -> SnapshotMeta:
        """Make it durable under its name, set older ones aside, and return what describes it.

        Short after `seal`. The older ones take up space until `SnapshotStore.clean_up` was called
        as often as it says.

        Raises:
            StorageError: the disk refused; abort it.
        """
        self.seal()
        self._publish(self._file, self._meta)
        return self._meta

    def abort(self) -> None:
        """Drop it; may be called again, and after `finish`, when it does nothing."""
        self._file.drop()

    def _append(self, data: bytes) -> None:
        self._file.append(data)
        self._crc = zlib.crc32(data, self._crc)


class Incoming:
    """A snapshot that a peer sends; made by `SnapshotStore.receive`.

    All of it is checked as it comes in, so that `finish` has nothing left to read.
    """

    def __init__(
        self, file: GrowingFile, identity: Identity, key: IncomingKey, publish: Publish
    ) -> None:
        self.key = key
        self._file = file
        self._identity = identity
        self._publish = publish
        self._parser = SnapshotParser(key.size_bytes)

    @property
    def is_open(self) -> bool:
        """Whether it is neither finished nor dropped."""
        return self._file.is_open

    @property
    def next_offset(self) -> int:
        """Everything before it is here."""
        return self._file.size_bytes

    def write(self, offset: int, data: bytes) -> bool:
        """Take a piece if it is the next one; return whether it was.

        Raises:
            DecodeError: it can't be a part of that snapshot; all of it was dropped.
            VersionError: a newer version of this program wrote it; likewise.
            StorageError: the disk refused; abort it.
        """
        if offset != self.next_offset:
            return False
        with self._distrusting():
            if offset + len(data) > self.key.size_bytes:
                why = f"{self.key.size_bytes} were announced"
                raise SnapshotDamage("too many bytes", offset, why)
            self._parser.feed(data)
            self._check_header()
        self._file.append(data)
        return True

    def finish(self) -> SnapshotMeta:
        """Make it durable under its name, set older ones aside, and return what describes it.

        Raises:
            DecodeError: it is not whole, or not the one announced; it was dropped.
            StorageError: the disk refused; abort it.
        """
        header, crc = self._parser.header, self._parser.crc
        with self._distrusting():
            if header is None or crc is None:
                why = f"it was announced with {self.key.size_bytes} bytes"
                raise SnapshotDamage("not whole", self.next_offset, why)
            if crc != self.key.crc:
                raise SnapshotDamage("another snapshot", 0, "its checksum was announced otherwise")
            meta = header.meta._replace(size_bytes=self.key.size_bytes, crc=crc)
        self._publish(self._file, meta)
        return meta

    def abort(self) -> None:
        """Drop it; may be called again, and after `finish`, when it does nothing."""
        self._file.drop()

    def _check_header(self) -> None:
        header = self._parser.header
        if header is None:
            return
        if header.cluster_id != self._identity.cluster_id:
            why = f"it belongs to cluster {header.cluster_id:016x}"
            raise SnapshotDamage("another cluster's snapshot", 0, why)
        if header.meta.last_id != EntryId(self.key.index, self.key.term):
            raise SnapshotDamage("another snapshot", 0, f"it covers {header.meta.last_id}")

    @contextlib.contextmanager
    def _distrusting(self) -> Iterator[None]:
        """What is wrong here is the sender's, not our disk's: it ends the transfer only."""
        what = f"the snapshot {self.key.index}/{self.key.term} of a peer is refused"
        try:
            yield
        except SnapshotDamage as damage:
            self.abort()
            raise DecodeError(what, why=str(damage)) from None
        except NewerFormat as newer:
            self.abort()
            why = f"it has {newer}, and this version of zraft reads format {FORMAT}"
            raise VersionError(what, why=why) from None
