"""One batch of the log as bytes: how it is written, and what its remains mean after a crash.

A batch is what one `sync` makes durable. It owns whole 512-byte sectors:

    header   magic 4 · type 1 · number 8 · body length 4 · blank pieces 4 · body CRC 4
             · chain 4 · header CRC 4 · 0xA5                               34 bytes, little-endian
    body     `length` bytes, then zeros to fill the last sector but for one byte
    end      0xFF, the last byte of the last sector

The chain is the header CRC of the batch before; a header CRC covers the body CRC, so a batch
vouches for everything before it. The body CRC covers the zeros after the body. No byte of a written
batch is outside a checksum or a constant.

**Why batches start at a sector.** A disk writes a sector whole or not at all. If two batches shared
one, each write would put acknowledged bytes at risk again, and their safety would hang on that
promise of the disk; this way a sector has one owner, is written once, and only the batch that
nobody has been told about yet relies on the promise. It also keeps the header in one piece, and
leaves few places at which a later batch can start. The price is half a sector per sync on average.

**Torn or rotten.** Only the last batch can be unsynced, because a batch is synced before the next
is written. A bad batch with a valid header after it was therefore durable once: the disk has
changed it, and that is corruption. For the last batch, a crash leaves zeros (a sector that did not
arrive holds what was there before, and a segment is filled with zeros ahead of writing), while rot
leaves bytes. So it is *torn*, was never acknowledged and may be dropped, if and only if

- its magic is all zero, or its header ends in a zero byte and nothing but zeros follow: the header
  never arrived, or was cut. No single damaged byte makes a written header look like that; or
- its end byte is 0: the last sector never arrived; or
- more of its middle pieces are zero than its header says.

Otherwise it is *rot*. "A bad checksum at the end is torn" would be simpler, and would lose an
acknowledged batch in every case of rot.

A "blank" piece is one with at most one byte that is not zero. Counting only all-zero pieces would
let one flipped bit turn a piece with a single bit set into a lost sector, which no reader could
tell apart; this way the doubtful case is refused, never dropped.

**Not zero after the last batch** looks like a torn batch whose first sector is missing, and is
treated as one: nothing acknowledged can be there, for an acknowledged header does not lose its
magic to one flip. It is zeroed before anything is appended.

The header CRC of all but a segment's first batch starts from a seed made of cluster, member and
segment number. So a log that a user stored as a value inside the log is never taken for batches.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

SECTOR_BYTES = 512
MAGIC = b"zWAL"
MAX_BODY_BYTES = (1 << 32) - 1
_HEADER_END = 0xA5  # four bits set: no flip of one bit makes it 0
_BATCH_END = b"\xff"
_NO_MAGIC = bytes(len(MAGIC))
_ZERO_SECTOR = bytes(SECTOR_BYTES)
_ZERO_CHUNK = bytes(1 << 16)

_HEADER = struct.Struct("<4sBQIIIIIB")
_CHECKED = struct.Struct("<4sBQIIII")  # what the header CRC covers
_CHECK = struct.Struct("<IB")
_SEED = struct.Struct("<QQQ")
HEADER_BYTES = _HEADER.size
OVERHEAD_BYTES = HEADER_BYTES + len(_BATCH_END)


class BatchType(IntEnum):
    """What a batch is for. Type 0 is never valid: zeros are no batch."""

    SEGMENT = 1  # the first of a segment
    RECORDS = 2  # what one sync made durable
    SEAL = 3  # the last of a segment that has a successor


_TYPES = {int(type_): type_ for type_ in BatchType}
_new = tuple.__new__  # a log has many batches: no NamedTuple's Python-level constructor


class BatchHeader(NamedTuple):
    """A header whose CRC is right."""

    type: BatchType
    number: int
    length: int
    blank_pieces: int
    body_crc: int
    chain: int
    crc: int

    @property
    def size_bytes(self) -> int:
        """Whole sectors that the batch occupies."""
        return batch_bytes(self.length)


class Batch(NamedTuple):
    """A batch that is whole. `body` is a view into the segment's bytes."""

    header: BatchHeader
    offset: int
    body: memoryview
    end_offset: int  # where the next batch starts


class Damage(NamedTuple):
    """What is wrong with the bytes at an offset where a batch should be."""

    torn: bool  # never acknowledged; everything from here on may be zeroed
    why: str


def make_seed(cluster_id: int, member_id: int, segment_number: int) -> int:
    """Return what header CRCs of this segment start from; 0 is for the segment's first batch."""
    return zlib.crc32(_SEED.pack(cluster_id, member_id, segment_number))


def batch_bytes(length: int) -> int:
    """Return how many bytes a batch with a body of `length` occupies: whole sectors."""
    return -(-(length + OVERHEAD_BYTES) // SECTOR_BYTES) * SECTOR_BYTES


def encode_batch(
    batch_type: BatchType, number: int, body: bytes, *, chain: int, seed: int
) -> tuple[bytes, int]:
    """Return the bytes of a batch, and its header CRC, which is the next batch's chain."""
    length = len(body)
    assert 0 < length <= MAX_BODY_BYTES
    padding = bytes(batch_bytes(length) - length - OVERHEAD_BYTES)
    body_crc = zlib.crc32(padding, zlib.crc32(body))
    blank = _count_blank(body) if length > SECTOR_BYTES else 0
    checked = _CHECKED.pack(MAGIC, batch_type, number, length, blank, body_crc, chain)
    crc = zlib.crc32(checked, seed)
    return b"".join((checked, _CHECK.pack(crc, _HEADER_END), body, padding, _BATCH_END)), crc


def _count_blank(body: bytes) -> int:
    """Count the blank pieces between the first, which holds the header, and the last.

    A blank piece has a zero in at least one of any two places: only those with a zero in one of two
    sampled places are looked at, which costs next to nothing for ordinary bodies.
    """
    end = batch_bytes(len(body)) - SECTOR_BYTES - HEADER_BYTES  # where the last piece starts
    start = SECTOR_BYTES - HEADER_BYTES
    low = body[start:end:SECTOR_BYTES]
    high = body[start + SECTOR_BYTES // 2 : end : SECTOR_BYTES]
    if 0 not in low and 0 not in high:
        return 0
    count = 0
    for i, pair in enumerate(zip(low, high, strict=True)):
        if pair[0] and pair[1]:
            continue
        at = start + i * SECTOR_BYTES
        count += is_blank(body[at : at + SECTOR_BYTES])
    return count


def is_blank(piece: bytes) -> bool:
    """Whether at most one byte is not zero."""
    return piece == _ZERO_SECTOR[: len(piece)] or piece.count(0) >= len(piece) - 1


def read_header(data: bytes, offset: int, seed: int) -> BatchHeader | None:
    """Return the header at `offset`, None when there is no valid one."""
    if offset + HEADER_BYTES > len(data) or not data.startswith(MAGIC, offset):
        return None
    _, type_, number, length, blank, body_crc, chain, crc, end = _HEADER.unpack_from(data, offset)
    if crc != zlib.crc32(data[offset : offset + _CHECKED.size], seed) or end != _HEADER_END:
        return None
    batch_type = _TYPES.get(type_)
    if batch_type is None or length == 0:
        return None
    return _new(BatchHeader, (batch_type, number, length, blank, body_crc, chain, crc))


def read_batch(data: bytes, offset: int, seed: int) -> Batch | None:
    """Return the batch at `offset`, None when there is no whole one."""
    header = read_header(data, offset, seed)
    if header is None:
        return None
    start, end = offset + HEADER_BYTES, offset + batch_bytes(header.length)
    if end > len(data) or data[end - 1] != _BATCH_END[0]:
        return None
    view = memoryview(data)
    if zlib.crc32(view[start : end - 1]) != header.body_crc:
        return None
    return _new(Batch, (header, offset, view[start : start + header.length], end))


def read_batches(data: bytes, offset: int, seed: int) -> Iterator[Batch]:
    """Yield the whole batches from `offset` on, up to the first place where there is none."""
    while (batch := read_batch(data, offset, seed)) is not None:
        yield batch
        offset = batch.end_offset


def used_bytes(data: bytes) -> int:
    """Return the offset after the last byte that is not zero."""
    end = len(data)
    while end >= len(_ZERO_CHUNK) and data.endswith(_ZERO_CHUNK, 0, end):
        end -= len(_ZERO_CHUNK)
    start = max(0, end - len(_ZERO_CHUNK))
    return start + len(data[start:end].rstrip(b"\0"))


def judge(data: bytes, offset: int, seed: int, number: int) -> Damage | None:
    """Say what the bytes at `offset` are, where `read_batch` found no whole batch.

    `number` is that of the batch expected there. None: nothing but zeros, the clean end of the log.
    """
    used = used_bytes(data)
    if used <= offset:
        return None
    header = read_header(data, offset, seed)
    search = offset + (SECTOR_BYTES if header is None else header.size_bytes)
    later = _find_later(data, search, seed, number)
    if later is not None:
        return Damage(torn=False, why=f"the batch is damaged, and a later one stands at {later}")
    if header is None:
        return _judge_header(data, offset, used)
    end = offset + header.size_bytes
    if end > len(data) or data[end - 1] == 0:
        return Damage(torn=True, why="the last sector of the batch was not written")
    middle = range(offset + SECTOR_BYTES, end - SECTOR_BYTES, SECTOR_BYTES)
    zeros = sum(data.startswith(_ZERO_SECTOR, at) for at in middle)
    if zeros > header.blank_pieces:
        return Damage(torn=True, why=f"{zeros} sectors of the batch were not written")
    return Damage(torn=False, why="the batch was written whole, and its checksum is wrong")


def _judge_header(data: bytes, offset: int, used: int) -> Damage:
    if data.startswith(_NO_MAGIC[: len(data) - offset], offset):
        return Damage(torn=True, why="the first sector of the batch was not written")
    if used < offset + HEADER_BYTES:
        return Damage(torn=True, why="the header of the batch was cut")
    return Damage(torn=False, why="the header was written whole, and its checksum is wrong")


def _find_later(data: bytes, offset: int, seed: int, number: int) -> int | None:
    """Find a header of a batch after `number`: it proves that `number` was synced once."""
    for at in range(offset, len(data) - HEADER_BYTES + 1, SECTOR_BYTES):
        header = read_header(data, at, seed)
        if header is not None and header.number > number:
            return at
    return None
