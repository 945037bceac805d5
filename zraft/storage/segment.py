"""A segment: one file of the log, and the records inside its batches, as values.

    00000001.wal = segment batch, records batch …, seal batch, zeros

The first batch says whose segment it is and carries all that older segments are still needed for
besides entries: the hard state, the configuration and the last snapshot's place. So an older
segment may go as soon as its entries are not needed. The seal says that the next segment has taken
over; a segment that is not the last must end in one. Batch numbers and the chain run on over all
segments.

A records batch is an array of records `[hard_state, entries, compacted, restart]`, each element nil
or

    hard_state  [term, voted_for]
    entries     [first_index, [term, count, term, count, …], [payload, …]]
    compacted   [index, term]    the entry before the first one that is still needed
    restart     [index, term]    an installed snapshot's last entry: the log is empty and goes on
                                 after it (what stood in it is in the snapshot, or never counted)

Payloads are opaque and go in and out unchanged. Terms are run-length encoded beside them: recovery
must know them, and must not decode a million payloads. Arrays grow at the end only; a reader
ignores what it doesn't know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgpack

from zraft.core.model import Configuration, Entries, EntryId, HardState
from zraft.errors import CorruptLogError, ForeignDataError
from zraft.storage.base import Identity
from zraft.storage.batch import (
    Batch,
    BatchType,
    batch_bytes,
    encode_batch,
    judge,
    make_seed,
    read_batch,
    read_batches,
    used_bytes,
)
from zraft.storage.files import OS_FILES, Files

FORMAT = 1
SEAL_BODY = msgpack.packb([])
SEAL_BYTES = batch_bytes(len(SEAL_BODY))
_NAME = re.compile(r"(\d{8,})\.wal")
_REPLACE_IT = (
    "keep a copy of the directory for a diagnosis",
    "replace this member by a new, empty one: the other nodes hold its data",
)

PackedRecord: TypeAlias = list[Any]
"""A record as MessagePack takes it; made by `pack_record`, read by `unpack_records`."""

_packer = msgpack.Packer(autoreset=True)
_new = tuple.__new__  # a log has many records: no NamedTuple's Python-level constructor
_BYTES = {bytes}


class Record(NamedTuple):
    """One `save`: what is None did not change."""

    hard_state: HardState | None
    entries: Entries | None
    compacted: EntryId | None
    restart: EntryId | None = None


class SegmentHeader(NamedTuple):
    """What the first batch of a segment says; true at the moment the segment was made."""

    identity: Identity
    number: int
    first_index: int  # of the next entry
    hard_state: HardState
    configuration: Configuration
    compacted: EntryId  # (0, 0): the log starts at index 1


class Segment(NamedTuple):
    """A segment that was read and found sound, up to a torn batch at its end."""

    path: Path
    header: SegmentHeader
    first: Batch  # that the header stands in
    batches: list[Batch]  # of records
    sealed: bool
    end_offset: int  # where the next batch goes
    next_number: int  # of the next batch
    chain: int
    size_bytes: int
    torn_bytes: int  # after end_offset, to be zeroed before anything is appended
    torn_why: str


def segment_name(number: int) -> str:
    """Return the file name of a segment."""
    return f"{number:08d}.wal"


def parse_segment_name(name: str) -> int | None:
    """Return the number in a segment's file name, None when it is not one."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def encode_segment_header(header: SegmentHeader, *, number: int, chain: int) -> tuple[bytes, int]:
    """Return the first batch of a segment and its CRC; `number` is the batch's."""
    body = _packer.pack(
        [
            FORMAT,
            header.identity.cluster_id,
            header.identity.member_id,
            header.number,
            header.first_index,
            list(header.hard_state),
            [list(header.configuration.voters), header.configuration.index],
            list(header.compacted),
        ]
    )
    return encode_batch(BatchType.SEGMENT, number, body, chain=chain, seed=0)


def pack_record(
    hard_state: HardState | None,
    entries: Entries | None,
    compacted: EntryId | None = None,
    restart: EntryId | None = None,
) -> PackedRecord:
    """Return a record for `pack_records`."""
    packed: PackedRecord = [
        None if hard_state is None else [hard_state.term, hard_state.voted_for],
        None if entries is None else [entries.first_index, _runs(entries.terms), entries.payloads],
        compacted,
    ]
    if restart is not None:
        packed.append(restart)
    return packed


def _runs(terms: list[int]) -> list[int]:
    """Run-length encode: [term, count, term, count, …]."""
    if not terms:
        return []
    if terms.count(terms[0]) == len(terms):  # nearly always, and quick
        return [terms[0], len(terms)]
    runs: list[int] = []
    start = 0
    for i in range(1, len(terms) + 1):
        if i == len(terms) or terms[i] != terms[start]:
            runs += (terms[start], i - start)
            start = i
    return runs


def pack_records(records: Sequence[PackedRecord]) -> bytes:
    """Return the body of a records batch."""
    body: bytes = _packer.pack(records)
    return body


def unpack_records(body: memoryview) -> Iterator[Record]:
    """Yield the records of a batch.

    Raises:
        ValueError, TypeError: the checksums are right, but it is nothing this version has written.
    """
    for hard_state, entries, compacted, *newer in msgpack.unpackb(body):
        restart = newer[0] if newer else None
        yield _new(
            Record,
            (
                None if hard_state is None else _hard_state(hard_state),
                None if entries is None else _entries(entries),
                None if compacted is None else _entry_id(compacted),
                None if restart is None else _entry_id(restart),
            ),
        )


def _ints(values: Any) -> list[int]:
    if type(values) is not list:
        raise ValueError("not a list of whole numbers")
    for value in values:
        if type(value) is not int or value < 0:
            raise ValueError("not a list of whole numbers")
    return values


def _hard_state(value: Any) -> HardState:
    term, voted_for, *_ = _ints(value)
    return HardState(term, voted_for)


def _entry_id(value: Any) -> EntryId:
    index, term, *_ = _ints(value)
    return EntryId(index, term)


def _entries(value: Any) -> Entries:
    first_index, runs, payloads, *_ = value
    if type(first_index) is not int or first_index < 1 or type(payloads) is not list:
        raise ValueError("not a run of entries")
    numbers = _ints(runs)
    terms: list[int] = []
    for term, count in zip(numbers[::2], numbers[1::2], strict=True):
        terms += [term] * count
    if len(terms) != len(payloads) or not set(map(type, payloads)) <= _BYTES:
        raise ValueError("terms and payloads do not match")
    return _new(Entries, (first_index, terms, payloads))


def _unpack_segment_header(body: memoryview) -> SegmentHeader:
    _, cluster_id, member_id, number, first_index, hard_state, configuration, compacted, *_ = (
        msgpack.unpackb(body)
    )
    voters, index, *_ = configuration
    _ints([cluster_id, member_id, number, first_index, index])
    return SegmentHeader(
        Identity(cluster_id, member_id),
        number,
        first_index,
        _hard_state(hard_state),
        Configuration(tuple(_ints(voters)), index),
        _entry_id(compacted),
    )


def read_segment_header(path: Path, data: bytes) -> tuple[Batch, SegmentHeader]:
    """Return the first batch and what it says. It is never torn: it was synced before its name.

    Raises:
        CorruptLogError: it is damaged.
        ForeignDataError: it was written in a format of a newer version.
    """
    batch = read_batch(data, 0, 0)
    if batch is None or batch.header.type is not BatchType.SEGMENT:
        raise corrupt("no valid segment header", path, 0, "the first batch is damaged or missing")
    try:
        body = msgpack.unpackb(batch.body)
        if isinstance(body, list) and body and body[0] != FORMAT:
            raise ForeignDataError(
                f"{path}: the log has format {body[0]}",
                why=f"this version of zraft reads format {FORMAT}",
                try_="start it with the version of zraft that wrote it",
            )
        return batch, _unpack_segment_header(batch.body)
    except (ValueError, TypeError) as error:
        raise corrupt("a segment header of the wrong shape", path, 0, str(error)) from error


def read_segment(path: Path, data: bytes, *, is_last: bool) -> Segment:
    """Check all of a segment's bytes and return its batches.

    Raises:
        CorruptLogError: bytes are not what was written; a torn batch at the end of the last
            segment is not an error, but `torn_bytes`.
    """
    first, header = read_segment_header(path, data)
    identity = header.identity
    seed = make_seed(identity.cluster_id, identity.member_id, header.number)
    last = first
    batches: list[Batch] = []
    for batch in read_batches(data, first.end_offset, seed):
        if last.header.type is BatchType.SEAL:
            raise corrupt("a batch after the seal", path, batch.offset, "a seal is the last batch")
        check_follows(path, last, batch)
        if batch.header.type is BatchType.RECORDS:
            batches.append(batch)
        last = batch
    sealed = last.header.type is BatchType.SEAL
    damage = judge(data, last.end_offset, seed, last.header.number + 1)
    if damage is not None and (sealed or not damage.torn):
        why = "bytes after the seal" if sealed else damage.why
        raise corrupt("a damaged batch", path, last.end_offset, why)
    if not is_last and not sealed:
        why = "a later segment exists, so this one must end in a seal"
        raise corrupt("no seal", path, last.end_offset, why)
    return Segment(
        path=path,
        header=header,
        first=first,
        batches=batches,
        sealed=sealed,
        end_offset=last.end_offset,
        next_number=last.header.number + 1,
        chain=last.header.crc,
        size_bytes=len(data),
        torn_bytes=0 if damage is None else used_bytes(data) - last.end_offset,
        torn_why="" if damage is None else damage.why,
    )


def check_follows(path: Path, last: Batch, batch: Batch) -> None:
    """Refuse a batch that does not continue the one before it: CorruptLogError."""
    if batch.header.type is BatchType.SEGMENT:
        why = "a segment header stands only at the start"
        raise corrupt("a batch out of place", path, batch.offset, why)
    if batch.header.number != last.header.number + 1:
        why = f"batch {batch.header.number} stands after batch {last.header.number}"
        raise corrupt("a batch out of order", path, batch.offset, why)
    if batch.header.chain != last.header.crc:
        why = "its chain does not name the batch before it"
        raise corrupt("a broken chain", path, batch.offset, why)


def read_segments(directory: Path, *, files: Files = OS_FILES) -> Iterator[Segment]:
    """Yield the checked segments of a log, read-only, whoever it belongs to; for `node inspect`.

    Nothing is repaired: a torn end is in `torn_bytes` of the last segment.

    Raises:
        CorruptLogError: bytes are not what was written.
        OSError: they cannot be read.
    """
    names = files.listdir(directory)
    numbers = sorted(n for n in map(parse_segment_name, names) if n is not None)
    for number in numbers:
        path = directory / segment_name(number)
        yield read_segment(path, files.read(path), is_last=number == numbers[-1])


def corrupt(what: str, path: Path, offset: int, why: str) -> CorruptLogError:
    """Return the error for bytes that are not what was written."""
    return CorruptLogError(what, path=str(path), offset=offset, why=why, try_=_REPLACE_IT)
