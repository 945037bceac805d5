"""The write-ahead log of one member: durable term, vote and entries (the contract: `storage.base`).

It owns the directory `wal/` of a member, one open segment and the one being zero-filled ahead. It
never retries, never rewrites a synced byte, never reuses a segment, and never decides what to
write.

One `sync` is one batch, one write, one fdatasync, into space that was filled with zeros before: the
file's size and its blocks do not change, so the disk has no metadata to write (two to four times
faster than appending). `prepare` fills that space in slices, each synced, so that no turn of the
loop waits for more than a slice. When writes outrun it, batches are appended to the file's end
instead: slower, and as safe.

Files are made under a temporary name, synced, renamed, and the directory is synced; so a segment
that has its name is complete up to its first batch. The order at a full segment: seal it, sync;
write the next one's header, sync; rename; sync the directory; only then the batch. The header
carries the hard state that was *synced*, not the one that waits in the current batch, so that a
batch stays all or nothing.

`load` syncs the last segment and the directory before it returns: after kill -9 it may have read
what only the page cache holds, and it reports that as durable.

Layout of a batch: `storage.batch`; of a segment: `storage.segment`; how they connect:
`storage.replay`. For people: docs/PROTOCOL.md, "Disk".
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from zraft.clock import monotonic_ns
from zraft.core.model import Configuration, Entries, EntryId, HardState, Recovered
from zraft.errors import ForeignDataError, StorageError
from zraft.storage.base import Identity, StorageStats
from zraft.storage.batch import BatchType, batch_bytes, encode_batch, make_seed
from zraft.storage.files import OS_FILES, PRIVATE_FILE, Files, sync_directory, write_all
from zraft.storage.replay import Replay, may_follow
from zraft.storage.segment import (
    SEAL_BODY,
    SEAL_BYTES,
    PackedRecord,
    Segment,
    SegmentHeader,
    encode_segment_header,
    pack_record,
    pack_records,
    parse_segment_name,
    read_segment,
    segment_name,
)

SEGMENT_BYTES = 16 << 20
AHEAD_BYTES = 4 << 20  # kept zero-filled ahead of writing, in the next segment if need be
SLICE_BYTES = 256 << 10
NEXT_NAME = "next.tmp"
_ZEROS = bytes(SLICE_BYTES)


class _State(NamedTuple):
    """What the log holds, up to the last `sync` or the last `save`."""

    hard_state: HardState
    last_index: int
    compacted: EntryId


class _Open(NamedTuple):
    """The segment that takes batches."""

    path: Path
    fd: int
    number: int
    seed: int
    start_offset: int  # after the segment's own header


class Wal:
    """The log in `directory`, which holds nothing else; one owner, who holds the member's lock."""

    def __init__(
        self,
        directory: Path,
        identity: Identity,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        files: Files = OS_FILES,
    ) -> None:
        assert segment_bytes >= 4096
        self._directory = directory
        self._identity = identity
        self._segment_bytes = segment_bytes
        self._files = files
        self._configuration = Configuration(())
        self._synced = _State(HardState(), 0, EntryId(0, 0))
        self._saved = self._synced
        self._pending: list[PackedRecord] = []
        self._term_starts = [EntryId(0, 0)]  # where each run of one term starts
        self._segments: list[tuple[int, int]] = []  # number, first index; the last one is open
        self._open: _Open | None = None
        self._tail_offset = 0
        self._filled_bytes = 0  # of the open segment; zero from the tail on
        self._number = 0  # of the next batch
        self._chain = 0
        self._next_fd: int | None = None
        self._next_filled_bytes = 0
        self._failure = ""
        self._syncs = self._last_sync_us = self._max_sync_us = 0
        self._bytes_written = self._repaired_bytes = 0

    @classmethod
    def create(
        cls,
        directory: Path,
        identity: Identity,
        configuration: Configuration,
        *,
        files: Files = OS_FILES,
    ) -> None:
        """Make `directory` with an empty first segment; durable when this returns, but for the
        directory's own name, which is the caller's.

        Raises:
            StorageError: the disk refused.
        """
        wal = cls(directory, identity, files=files)
        wal._configuration = configuration
        wal._number = 1
        try:
            files.mkdir(directory)
        except OSError as error:
            raise wal._fail("make", directory, error) from error
        wal._start_segment(1)
        wal.close()

    # ------------------------------------------------------------------------------------- reading

    def load(self) -> Recovered:
        """Read, check, repair a torn end and sync; see `Storage.load`."""
        assert self._open is None, "load once"
        log = Replay(self._identity)
        paths = self._segment_paths()
        for path in paths:
            segment = read_segment(path, self._read(path), is_last=path == paths[-1])
            log.on_segment(segment)
            self._segments.append((segment.header.number, segment.header.first_index))
        recovered = log.finish()
        self._adopt(log, recovered)
        self._reopen(segment)
        return recovered

    def _segment_paths(self) -> list[Path]:
        directory = self._directory
        try:
            names = self._files.listdir(directory)
            if NEXT_NAME in names:  # never trusted: it was not synced, or not renamed
                self._files.unlink(directory / NEXT_NAME)
        except FileNotFoundError as error:
            raise self._wiped("does not exist") from error
        except OSError as error:
            raise self._fail("list", directory, error) from error
        numbers = sorted(n for n in map(parse_segment_name, names) if n is not None)
        if not numbers:
            raise self._wiped("holds no segment")
        return [directory / segment_name(number) for number in numbers]

    def _wiped(self, what: str) -> ForeignDataError:
        return ForeignDataError(
            f"{self._directory} {what}",
            why="a member without its log has forgotten its votes, and must not vote again",
            try_="replace this member by a new one, or put its data directory back",
        )

    def _read(self, path: Path) -> bytes:
        try:
            return self._files.read(path)
        except OSError as error:
            raise self._fail("read", path, error) from error

    def _adopt(self, log: Replay, recovered: Recovered) -> None:
        entries = recovered.entries
        self._configuration = recovered.configuration
        self._synced = _State(recovered.hard_state, entries.last_index, log.compacted)
        self._saved = self._synced
        self._term_starts = [log.compacted]
        self._note_terms(entries)

    def _reopen(self, segment: Segment) -> None:
        """Open the last segment for writing: repaired, synced, and not sealed."""
        identity, number = self._identity, segment.header.number
        seed = make_seed(identity.cluster_id, identity.member_id, number)
        try:
            fd = self._files.open(segment.path, os.O_WRONLY)
        except OSError as error:
            raise self._fail("open", segment.path, error) from error
        self._open = _Open(segment.path, fd, number, seed, segment.first.end_offset)
        self._number, self._chain = segment.next_number, segment.chain
        self._tail_offset, self._filled_bytes = segment.end_offset, segment.size_bytes
        self._repaired_bytes = segment.torn_bytes
        if segment.torn_bytes:
            self._zero(segment.end_offset, segment.size_bytes)
        self._sync_file(fd, segment.path)
        self._sync_directory()
        if segment.sealed:
            self._close_segment()
            self._start_segment(number + 1)

    def _zero(self, start_offset: int, end_offset: int) -> None:
        """Overwrite with zeros, so that no byte of a dropped batch is ever seen again."""
        assert self._open is not None
        for offset in range(start_offset, end_offset, SLICE_BYTES):
            count = min(SLICE_BYTES, end_offset - offset)
            self._write(self._open.fd, self._open.path, _ZEROS[:count], offset)

    # ------------------------------------------------------------------------------------- writing

    def save(self, hard_state: HardState | None, entries: Entries | None) -> None:
        """Add to the current batch; see `Storage.save`."""
        self._check_alive()
        saved = self._saved
        if hard_state is not None:
            assert may_follow(saved.hard_state, hard_state), (saved.hard_state, hard_state)
            saved = saved._replace(hard_state=hard_state)
        if entries is not None:
            assert len(entries.terms) == len(entries.payloads)
            assert saved.compacted.index < entries.first_index <= saved.last_index + 1, (
                entries.first_index,
                saved,
            )
            self._note_terms(entries)
            assert self._term_starts[-1].term <= saved.hard_state.term, "an entry of a later term"
            saved = saved._replace(last_index=entries.last_index)
        self._pending.append(pack_record(hard_state, entries, None))
        self._saved = saved

    def sync(self) -> None:
        """Write the current batch and make it durable; see `Storage.sync`."""
        self._check_alive()
        if not self._pending:
            return
        start_ns = monotonic_ns()
        body = pack_records(self._pending)
        self._make_room(batch_bytes(len(body)))
        self._append(BatchType.RECORDS, body)
        self._pending.clear()
        self._synced = self._saved
        self._syncs += 1
        self._last_sync_us = (monotonic_ns() - start_ns) // 1000
        self._max_sync_us = max(self._max_sync_us, self._last_sync_us)

    def _append(self, batch_type: BatchType, body: bytes) -> None:
        """Write one batch at the tail and sync it."""
        segment = self._open
        assert segment is not None, "load first"
        data, crc = encode_batch(
            batch_type, self._number, body, chain=self._chain, seed=segment.seed
        )
        self._write(segment.fd, segment.path, data, self._tail_offset)
        self._sync_file(segment.fd, segment.path)
        self._chain = crc
        self._number += 1
        self._tail_offset += len(data)
        self._filled_bytes = max(self._filled_bytes, self._tail_offset)
        self._bytes_written += len(data)

    def _make_room(self, size_bytes: int) -> None:
        """Go to the next segment when a batch does not fit; a huge one gets one of its own size."""
        assert self._open is not None, "load first"
        if self._tail_offset + size_bytes + SEAL_BYTES <= self._segment_bytes:
            return
        if self._tail_offset == self._open.start_offset:
            return
        self._append(BatchType.SEAL, SEAL_BODY)
        number = self._open.number + 1
        self._close_segment()
        self._start_segment(number)

    def _start_segment(self, number: int) -> None:
        """Make the next segment out of the zeros prepared for it, and open it."""
        synced, identity = self._synced, self._identity
        header = SegmentHeader(
            identity,
            number,
            synced.last_index + 1,
            synced.hard_state,
            self._configuration,
            synced.compacted,
        )
        data, crc = encode_segment_header(header, number=self._number, chain=self._chain)
        path = self._directory / segment_name(number)
        fd = self._make_next() if self._next_fd is None else self._next_fd
        self._next_fd = None
        seed = make_seed(identity.cluster_id, identity.member_id, number)
        self._open = _Open(path, fd, number, seed, len(data))
        self._write(fd, self._directory / NEXT_NAME, data, 0)
        self._sync_file(fd, self._directory / NEXT_NAME)
        self._rename_next(path)
        self._sync_directory()
        self._segments.append((number, header.first_index))
        self._chain = crc
        self._number += 1
        self._tail_offset = len(data)
        self._filled_bytes = max(self._next_filled_bytes, len(data))
        self._next_filled_bytes = 0
        self._bytes_written += len(data)

    def prepare(self, budget_bytes: int) -> bool:
        """Zero-fill ahead of writing, one slice; see `Storage.prepare`."""
        self._check_alive()
        assert self._open is not None, "load first"
        assert budget_bytes > 0
        budget_bytes = min(budget_bytes, SLICE_BYTES)
        target = self._tail_offset + AHEAD_BYTES
        own_target = min(target, self._segment_bytes)
        next_target = min(target - self._segment_bytes, self._segment_bytes)
        if self._filled_bytes < own_target:
            count = min(budget_bytes, own_target - self._filled_bytes)
            self._fill(self._open.fd, self._open.path, self._filled_bytes, count)
            self._filled_bytes += count
        elif self._next_filled_bytes < next_target:
            count = min(budget_bytes, next_target - self._next_filled_bytes)
            if self._next_fd is None:
                self._next_fd = self._make_next()
            path = self._directory / NEXT_NAME
            self._fill(self._next_fd, path, self._next_filled_bytes, count)
            self._next_filled_bytes += count
        return self._filled_bytes < own_target or self._next_filled_bytes < next_target

    # ---------------------------------------------------------------------------------- compaction

    def compact(self, first_index_to_keep: int) -> None:
        """Forget entries before `first_index_to_keep`, which a synced snapshot must cover.

        Afterwards `load` starts there. Segments that hold nothing newer are deleted, oldest first;
        each is deleted only after a newer one's header, which holds the hard state, was synced.

        Raises:
            StorageError: the disk refused; the object is dead afterwards.
        """
        assert not self._pending, "sync first"
        synced = self._synced
        if first_index_to_keep <= synced.compacted.index + 1:
            return
        assert first_index_to_keep <= synced.last_index + 1, (first_index_to_keep, synced)
        compacted = EntryId(first_index_to_keep - 1, self._term_at(first_index_to_keep - 1))
        self._pending.append(pack_record(None, None, compacted))
        self._saved = synced._replace(compacted=compacted)
        self.sync()
        while len(self._segments) > 1:
            # Entries of a segment that still count were before the first index of every later one.
            if not any(first <= first_index_to_keep for _, first in self._segments[1:]):
                break
            number, _ = self._segments.pop(0)
            self._delete_segment(number)
            self._sync_directory()  # one at a time: no crash leaves a hole

    def _note_terms(self, entries: Entries) -> None:
        starts = self._term_starts
        while starts[-1].index >= entries.first_index:
            starts.pop()
        last = starts[-1].term
        if entries.terms and entries.terms[-1] == last == entries.terms[0]:
            return
        for i, term in enumerate(entries.terms):
            assert term >= last, "terms in a log never fall"
            if term > last:
                starts.append(EntryId(entries.first_index + i, term))
                last = term

    def _term_at(self, index: int) -> int:
        return max(start.term for start in self._term_starts if start.index <= index)

    # --------------------------------------------------------------------------------------- steps
    # One call of the operating system each, so that tests can stop the world between any two.

    def _write(self, fd: int, path: Path, data: bytes, offset: int) -> None:
        try:
            write_all(self._files, fd, data, offset)
        except OSError as error:
            raise self._fail("write", path, error) from error

    def _sync_file(self, fd: int, path: Path) -> None:
        try:
            self._files.fdatasync(fd)
        except OSError as error:
            raise self._fail("sync", path, error) from error

    def _make_next(self) -> int:
        path = self._directory / NEXT_NAME
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            return self._files.open(path, flags, PRIVATE_FILE)
        except OSError as error:
            raise self._fail("make", path, error) from error

    def _fill(self, fd: int, path: Path, offset: int, count: int) -> None:
        self._write(fd, path, _ZEROS[:count], offset)
        self._sync_file(fd, path)

    def _rename_next(self, path: Path) -> None:
        try:
            self._files.rename(self._directory / NEXT_NAME, path)
        except OSError as error:
            raise self._fail("rename", path, error) from error

    def _sync_directory(self) -> None:
        try:
            sync_directory(self._files, self._directory)
        except OSError as error:
            raise self._fail("sync", self._directory, error) from error

    def _delete_segment(self, number: int) -> None:
        path = self._directory / segment_name(number)
        try:
            self._files.unlink(path)
        except OSError as error:
            raise self._fail("delete", path, error) from error

    def _close_segment(self) -> None:
        if self._open is not None:
            self._files.close(self._open.fd)
            self._open = None

    # ----------------------------------------------------------------------------------------- end

    def _check_alive(self) -> None:
        if self._failure:
            raise StorageError(
                "the log takes no more writes",
                why=f"an earlier step failed ({self._failure}), and a second try could lie",
                try_="stop this node; start it again when the disk is well",
            )

    def _fail(self, action: str, path: Path, error: OSError) -> StorageError:
        """Return the error for a refused step, and be dead from now on."""
        reason = error.strerror or str(error)
        self._failure = f"{action} {path.name}: {reason}"
        try_ = {
            errno.ENOSPC: "free some space on this disk, then start the node again",
            errno.EDQUOT: "raise the quota, then start the node again",
            errno.EACCES: "check who owns the data directory, then start the node again",
            errno.EROFS: "mount the file system writable, then start the node again",
        }.get(error.errno or 0, "check the disk (dmesg), then start the node again")
        return StorageError(f"cannot {action} {path}", why=reason, try_=try_)

    def stats(self) -> StorageStats:
        """Return the counters."""
        return StorageStats(
            self._syncs,
            self._last_sync_us,
            self._max_sync_us,
            self._bytes_written,
            len(self._segments),
            self._repaired_bytes,
        )

    def close(self) -> None:
        """Close the files; what was saved and not synced is dropped."""
        self._close_segment()
        if self._next_fd is not None:
            self._files.close(self._next_fd)
            self._next_fd = None
        self._failure = self._failure or "closed"


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
