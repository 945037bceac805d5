"""A snapshot's file as bytes: how it is written, and how it is checked while it is read.

    magic "zSNP" · header record · section record · chunk record … · section record … · end record

    record   type 1 · length 4 · CRC 4 · body          little-endian; the CRC covers the other three
    header   [format, cluster_id, index, term, log_time_ms, digest, configuration, its index]
    section  a name in UTF-8: what the chunks after it belong to
    chunk    opaque bytes of a state machine
    end      size of the file 8 · CRC-32 of everything before this record 4

Nothing in it tells when, where or by whom it was written, so equal states give equal bytes, and a
transfer of one node's file may go on with another's. Every byte is inside a checksum or a constant;
a CRC-32 finds every damage that is confined to 32 bits in a row. The CRC of the end record finds
what the records' own cannot: a record that is missing, doubled, or of another snapshot.

A snapshot has its name only after it was synced whole. So, other than at the end of a log, nothing
here can be torn: whatever is wrong is damage.
"""

from __future__ import annotations

import re
import struct
import zlib
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import msgpack

from zraft.core.model import SnapshotMeta
from zraft.errors import DecodeError
from zraft.wire_entry import decode_configuration, encode_configuration, naturals, unpack

FORMAT = 1
MAGIC = b"zSNP"
MAX_SECTION_BYTES = 64
MAX_START_BYTES = 64 << 10  # magic and header record: more than any configuration takes
MAX_RECORD_BYTES = (1 << 32) - 1
_NAME = re.compile(r"(\d{20})-(\d+)\.snap")

_RECORD = struct.Struct("<BII")
_CHECKED = struct.Struct("<BI")  # what the record's CRC covers besides the body
_END = struct.Struct("<QI")
RECORD_BYTES = _RECORD.size
END_BYTES = RECORD_BYTES + _END.size

Chunk: TypeAlias = tuple[str, bytes]
"""The name of a section, and one chunk of it."""


class RecordType(IntEnum):
    """What a record is. Type 0 is never valid: zeros are no record."""

    HEADER = 1
    SECTION = 2
    CHUNK = 3
    END = 4


class Header(NamedTuple):
    """What the first record says; size and CRC of `meta` are 0, they stand at the end."""

    format: int
    cluster_id: int
    meta: SnapshotMeta


class SnapshotDamage(Exception):
    """The bytes are no snapshot, from `offset` on. Whoever reads knows which error that is."""

    def __init__(self, what: str, offset: int, why: str) -> None:
        super().__init__(f"{what} at {offset}: {why}")
        self.what = what
        self.offset = offset
        self.why = why


class NewerFormat(Exception):
    """A header that is sound, and of a format that this version does not read."""

    def __init__(self, number: int) -> None:
        super().__init__(f"format {number}")
        self.number = number


def snapshot_name(index: int, term: int) -> str:
    """Return the file name of the snapshot after this entry."""
    return f"{index:020d}-{term}.snap"


def parse_snapshot_name(name: str) -> tuple[int, int] | None:
    """Return index and term in a file name, None when it is no snapshot's."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


# ------------------------------------------------------------------------------------------- write


def encode_record(record_type: RecordType, body: bytes) -> bytes:
    """Return one record."""
    length = len(body)
    assert length <= MAX_RECORD_BYTES
    crc = zlib.crc32(body, zlib.crc32(_CHECKED.pack(record_type, length)))
    return _RECORD.pack(record_type, length, crc) + body


def encode_start(cluster_id: int, meta: SnapshotMeta) -> bytes:
    """Return the magic and the header record."""
    body = msgpack.packb(
        [
            FORMAT,
            cluster_id,
            meta.index,
            meta.term,
            meta.log_time_ms,
            meta.digest,
            encode_configuration(meta.configuration),
            meta.configuration.index,
        ]
    )
    start = MAGIC + encode_record(RecordType.HEADER, body)
    assert len(start) <= MAX_START_BYTES
    return start


def encode_end(size_bytes: int, crc: int) -> bytes:
    """Return the end record; `size_bytes` counts it, `crc` is that of all before it."""
    return encode_record(RecordType.END, _END.pack(size_bytes, crc))


# -------------------------------------------------------------------------------------------- read


def decode_header(body: bytes) -> Header:
    """Return what a header record says.

    Raises:
        NewerFormat: it is of a later format.
        DecodeError: it is none.
    """
    fields = unpack(body)
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise DecodeError("a snapshot's header is not an array")
    if fields[0] > FORMAT:
        raise NewerFormat(fields[0])
    if len(fields) < 8 or type(fields[6]) is not bytes:
        raise DecodeError("a snapshot's header has too few parts")
    numbers = naturals([*fields[:6], fields[7]], "a snapshot's header")
    format_, cluster_id, index, term, log_time_ms, digest, configuration_index = numbers
    if format_ < 1 or index < 1 or term < 1 or configuration_index > index:
        raise DecodeError("a snapshot's header contradicts itself")
    configuration = decode_configuration(fields[6])._replace(index=configuration_index)
    return Header(
        format_, cluster_id, SnapshotMeta(index, term, configuration, log_time_ms, digest)
    )


def decode_start(data: bytes) -> Header:
    """Return what the first bytes of a file say.

    Raises:
        SnapshotDamage: they are not those of a snapshot.
        NewerFormat: a newer version of this program wrote them.
    """
    start = len(MAGIC)
    if not data.startswith(MAGIC) or len(data) < start + RECORD_BYTES:
        raise SnapshotDamage("not a snapshot", 0, "it does not start like one")
    _, length, _ = _RECORD.unpack_from(data, start)
    record_type, body = _split_record(data[start : start + RECORD_BYTES + length], start)
    try:
        if record_type is not RecordType.HEADER:
            raise DecodeError("the first record is no header")
        return decode_header(body)
    except DecodeError as error:
        raise SnapshotDamage("a record of the wrong shape", start, str(error)) from error


def decode_end(record: bytes, size_bytes: int) -> int:
    """Return the CRC in the last `END_BYTES` of a file of `size_bytes`.

    Raises:
        SnapshotDamage: they are no end record of such a file.
    """
    offset = size_bytes - END_BYTES
    if len(record) != END_BYTES:
        raise SnapshotDamage("no end record", offset, "the file was cut")
    record_type, body = _split_record(record, offset)
    if record_type is not RecordType.END:
        raise SnapshotDamage("no end record", offset, "the file was cut")
    return _check_end(body, offset, size_bytes)


def _split_record(record: bytes | bytearray, offset: int) -> tuple[RecordType, bytes]:
    """Return type and body of the whole record that stands at `offset` of the file."""
    record_type, length, crc = _RECORD.unpack_from(record, 0)
    body = bytes(record[RECORD_BYTES:])
    checked = _CHECKED.pack(record_type, length)
    if length != len(body) or crc != zlib.crc32(body, zlib.crc32(checked)):
        raise SnapshotDamage("a damaged record", offset, "its checksum is wrong")
    try:
        return RecordType(record_type), body
    except ValueError:
        why = f"type {record_type} is none of format {FORMAT}"
        raise SnapshotDamage("an unknown record", offset, why) from None


def _check_end(body: bytes, offset: int, file_bytes: int) -> int:
    """Return the CRC that an end record names; the record must be the end of such a file."""
    if len(body) != _END.size:
        raise SnapshotDamage("a record of the wrong shape", offset, "it is no end")
    size_bytes, crc = _END.unpack(body)
    if not size_bytes == file_bytes == offset + END_BYTES:
        why = f"it has {file_bytes} bytes, and was written with {size_bytes}"
        raise SnapshotDamage("another size", offset, why)
    return int(crc)


class SnapshotParser:
    """Takes a snapshot's bytes in pieces of any size, and gives its chunks; checks all of it.

    It holds one record at most. `size_bytes` is how long the whole is to be: no record is believed
    that would be longer than the rest.
    """

    def __init__(self, size_bytes: int) -> None:
        self.header: Header | None = None  # once it is in
        self.crc: int | None = None  # of everything before the end record, once that is in
        self.offset = 0  # of the first byte that is not in a whole record
        self._size_bytes = size_bytes
        self._buffer = bytearray()
        self._running_crc = 0
        self._section = ""

    @property
    def finished(self) -> bool:
        """Whether the whole snapshot was read and found sound."""
        return self.crc is not None

    def feed(self, data: bytes) -> list[Chunk]:
        """Take the next bytes; return the chunks that are whole now.

        Raises:
            SnapshotDamage: they are not what was written.
            NewerFormat: a newer version of this program wrote them.
        """
        buffer = self._buffer
        buffer += data
        chunks: list[Chunk] = []
        at = 0  # in the buffer
        if self.offset == 0:
            if len(buffer) < len(MAGIC):
                return chunks
            if not buffer.startswith(MAGIC):
                raise SnapshotDamage("not a snapshot", 0, "it does not start like one")
            self._pass(buffer, 0, len(MAGIC))
            at = len(MAGIC)
        while (end := self._record_end(buffer, at)) is not None:
            record_type, body = _split_record(buffer[at:end], self.offset)
            self._on_record(record_type, body, chunks)
            self._pass(buffer, at, end)
            at = end
        del buffer[:at]
        return chunks

    def _pass(self, buffer: bytearray, start: int, end: int) -> None:
        with memoryview(buffer) as view:
            self._running_crc = zlib.crc32(view[start:end], self._running_crc)
        self.offset += end - start

    def _record_end(self, buffer: bytearray, at: int) -> int | None:
        """Return where the record at `at` ends, None while it is not whole."""
        if self.finished:
            if len(buffer) > at:
                raise SnapshotDamage("bytes after the end", self.offset, "the end is the last")
            return None
        if len(buffer) - at < RECORD_BYTES:
            return None
        _, length, _ = _RECORD.unpack_from(buffer, at)
        if self.offset + RECORD_BYTES + length > self._size_bytes:
            raise SnapshotDamage("a damaged record", self.offset, "it is longer than the file")
        end = at + RECORD_BYTES + length
        return end if end <= len(buffer) else None

    def _on_record(self, record_type: RecordType, body: bytes, chunks: list[Chunk]) -> None:
        if (record_type is RecordType.HEADER) != (self.header is None):
            why = "the header is the first, and the only one"
            raise SnapshotDamage("a record out of place", self.offset, why)
        try:
            match record_type:
                case RecordType.HEADER:
                    self.header = decode_header(body)
                case RecordType.SECTION:
                    self._section = body.decode()
                case RecordType.CHUNK:
                    if not self._section:
                        raise DecodeError("a chunk of no section")
                    chunks.append((self._section, body))
                case RecordType.END:
                    self.crc = self._check_end(body)
        except (DecodeError, UnicodeDecodeError) as error:
            raise SnapshotDamage("a record of the wrong shape", self.offset, str(error)) from error

    def _check_end(self, body: bytes) -> int:
        crc = _check_end(body, self.offset, self._size_bytes)
        if crc != self._running_crc:
            raise SnapshotDamage("a wrong checksum", self.offset, "records are not those written")
        return crc
