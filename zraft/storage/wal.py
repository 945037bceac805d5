"""The write-ahead log of one member: durable term, vote and entries (the contract: `storage.base`).

It owns the directory `wal/` of a member, one open segment and the one being zero-filled ahead. It
never retries, never rewrites a synced byte, never reuses a segment, and never decides what to
write.

One `sync` is one batch, one write, one fdatasync, into space that was filled with zeros before: the
file's size and its blocks do not change, so the disk has no metadata to write (two to four times
faster than appending). `prepare` fills that space in slices, and syncs each some turns later, when
the disk has begun with it, so that no turn of the loop waits for long. When writes outrun it,
batches are appended to the file's end instead: slower, and as safe.

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

from pathlib import Path
from typing import NamedTuple

from zraft import crashpoints
from zraft.clock import monotonic_ns
from zraft.core.model import (
    Configuration,
    Entries,
    EntryId,
    HardState,
    Recovered,
    SnapshotMeta,
)
from zraft.storage.base import Identity, Report, StorageStats, no_report
from zraft.storage.batch import BatchType, batch_bytes, encode_batch, make_seed
from zraft.storage.files import OS_FILES, Files
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
    read_segment,
    segment_name,
)
from zraft.storage.steps import SLICE_BYTES, LogSteps

SEGMENT_BYTES = 16 << 20
CALLS_TO_SYNC = 6  # of `prepare`, until zeros are synced: a few milliseconds under load
AHEAD_BYTES = 4 << 20  # kept zero-filled ahead of writing, in the next segment if need be


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
        report: Report = no_report,
    ) -> None:
        assert segment_bytes >= 4096
        self._steps = LogSteps(directory, files)
        self._report = report
        self._identity = identity
        self._segment_bytes = segment_bytes
        self._configuration = Configuration(())
        self._synced = _State(HardState(), 0, EntryId(0, 0))
        self._saved = self._synced
        self._pending: list[PackedRecord] = []
        self._restarts = False  # the current batch empties the log
        self._term_starts = [EntryId(0, 0)]  # where each run of one term starts
        self._segments: list[tuple[int, int]] = []  # number, first index; the last one is open
        self._open: _Open | None = None
        self._tail_offset = 0
        self._filled_bytes = 0  # of the open segment; zero from the tail on
        self._number = 0  # of the next batch
        self._chain = 0
        self._next_fd: int | None = None
        self._next_filled_bytes = 0
        self._unsynced: tuple[int, Path] | None = None  # zeros that the disk was told to begin with
        self._waited = 0  # calls of `prepare` since
        self._deleted_fd: int | None = None  # of a segment without a name, to be freed in pieces
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
        wal._steps.make_directory()
        wal._start_segment(1)
        wal.close()

    # ------------------------------------------------------------------------------------- reading

    def load(self) -> Recovered:
        """Read, check, repair a torn end and sync; see `Storage.load`."""
        assert self._open is None, "load once"
        start_ns = monotonic_ns()
        log = Replay(self._identity)
        paths = self._steps.list_segments()
        for path in paths:
            segment = read_segment(path, self._steps.read(path), is_last=path == paths[-1])
            log.on_segment(segment)
        self._segments = log.starts
        recovered = log.finish()
        self._adopt(log, recovered)
        self._steps.delete(self._steps.next_path)  # never trusted: it did not get its name
        self._reopen(segment)
        self._report(
            "storage.recovered",
            segments=len(paths),
            first_index=recovered.entries.first_index,
            last_index=recovered.entries.last_index,
            elapsed_ms=(monotonic_ns() - start_ns) // 1_000_000,
        )
        return recovered

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
        fd = self._steps.open_segment(segment.path)
        self._open = _Open(segment.path, fd, number, seed, segment.first.end_offset)
        self._number, self._chain = segment.next_number, segment.chain
        self._tail_offset, self._filled_bytes = segment.end_offset, segment.size_bytes
        self._repaired_bytes = segment.torn_bytes
        if segment.torn_bytes:
            self._steps.zero(fd, segment.path, segment.end_offset, segment.size_bytes)
        self._steps.sync_file(fd, segment.path)
        self._steps.sync_names()
        if segment.torn_bytes:
            self._report(
                "storage.tail_repaired",
                path=str(segment.path),
                offset=segment.end_offset,
                bytes_dropped=segment.torn_bytes,
            )
        if segment.sealed:
            self._close_segment()
            self._start_segment(number + 1)

    # ------------------------------------------------------------------------------------- writing

    def save(self, hard_state: HardState | None, entries: Entries | None) -> None:
        """Add to the current batch; see `Storage.save`."""
        self._steps.check_alive()
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
            saved = _State(saved.hard_state, entries.last_index, saved.compacted)
        self._pending.append(pack_record(hard_state, entries))
        self._saved = saved

    def install(self, meta: SnapshotMeta) -> None:
        """Start after a snapshot, as a part of the current batch; see `Storage.install`."""
        self._steps.check_alive()
        saved, last_included = self._saved, meta.last_id
        if meta.index <= saved.compacted.index:
            return
        assert meta.term <= saved.hard_state.term, "a snapshot of a later term"
        if meta.index <= saved.last_index and self._term_at(meta.index) == meta.term:
            self._pending.append(pack_record(None, None, compacted=last_included))
            self._saved = saved._replace(compacted=last_included)
        else:
            self._pending.append(pack_record(None, None, restart=last_included))
            self._saved = saved._replace(compacted=last_included, last_index=meta.index)
            self._restarts = True
        self._forget_terms(last_included)

    def sync(self) -> None:
        """Write the current batch and make it durable; see `Storage.sync`."""
        self._steps.check_alive()
        if not self._pending:
            return
        start_ns = monotonic_ns()
        kind = "entries" if any(record[1] for record in self._pending) else "vote"
        if crashpoints.armed:
            crashpoints.reach(f"persist.{kind}.before")
        body = pack_records(self._pending)
        self._make_room(batch_bytes(len(body)))
        self._append(BatchType.RECORDS, body)
        self._pending.clear()
        self._synced = self._saved
        if self._restarts:  # this batch, and so this segment, makes all older ones superfluous
            number, first_index = self._segments[-1]
            self._segments[-1] = (number, min(first_index, self._synced.compacted.index + 1))
            self._restarts = False
        if crashpoints.armed:
            crashpoints.reach(f"persist.{kind}.done")
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
        if crashpoints.armed:
            crashpoints.reach("wal.batch.before-write")
        self._steps.write(segment.fd, segment.path, data, self._tail_offset)
        if crashpoints.armed:
            crashpoints.reach("wal.batch.written")
        self._steps.sync_file(segment.fd, segment.path)
        if crashpoints.armed:
            crashpoints.reach("wal.batch.synced")
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
        if crashpoints.armed:
            crashpoints.reach("wal.seal.before")
        self._append(BatchType.SEAL, SEAL_BODY)
        if crashpoints.armed:
            crashpoints.reach("wal.seal.synced")
        number = self._open.number + 1
        self._close_segment()
        self._start_segment(number)
        first_index = self._synced.last_index + 1
        self._report("storage.segment_rotated", segment=number, first_index=first_index)

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
        path = self._steps.directory / segment_name(number)
        fd = self._steps.make_next() if self._next_fd is None else self._next_fd
        self._next_fd = self._unsynced = None  # the header's sync is that of the zeros, too
        seed = make_seed(identity.cluster_id, identity.member_id, number)
        self._open = _Open(path, fd, number, seed, len(data))
        if crashpoints.armed:
            crashpoints.reach("wal.segment.before-header")
        self._steps.write(fd, self._steps.next_path, data, 0)
        if crashpoints.armed:
            crashpoints.reach("wal.segment.header-written")
        self._steps.sync_file(fd, self._steps.next_path)
        if crashpoints.armed:
            crashpoints.reach("wal.segment.header-synced")
        self._steps.rename_next(path)
        if crashpoints.armed:
            crashpoints.reach("wal.segment.renamed")
        self._steps.sync_names()
        if crashpoints.armed:
            crashpoints.reach("wal.segment.ready")
        self._segments.append((number, header.first_index))
        self._chain = crc
        self._number += 1
        self._tail_offset = len(data)
        self._filled_bytes = max(self._next_filled_bytes, len(data))
        self._next_filled_bytes = 0
        self._bytes_written += len(data)

    def prepare(self, budget_bytes: int) -> bool:
        """Delete one segment, zero-fill one slice, or sync it; see `Storage.prepare`.

        The sync comes some calls after the zeros, when the disk has begun with them, so that it has
        little left to wait for; at once where the log catches up with what is filled.
        """
        self._steps.check_alive()
        assert self._open is not None, "load first"
        assert budget_bytes > 0
        if self._delete_one():
            return True
        # In whole slices: a sync for the few bytes of each turn would double the cost of a write.
        target = (self._tail_offset + AHEAD_BYTES) // SLICE_BYTES * SLICE_BYTES
        own_missing = max(0, min(target, self._segment_bytes) - self._filled_bytes)
        next_target = min(target - self._segment_bytes, self._segment_bytes)
        next_missing = max(0, next_target - self._next_filled_bytes)
        if self._unsynced is not None:
            self._waited += 1
            if self._waited >= CALLS_TO_SYNC or own_missing + next_missing > AHEAD_BYTES // 2:
                self._sync_zeros(*self._unsynced)
            return True
        if own_missing > 0:
            count = min(budget_bytes, SLICE_BYTES, own_missing)
            self._fill(self._open.fd, self._open.path, self._filled_bytes, count)
            self._filled_bytes += count
            return True
        if next_missing > 0:
            count = min(budget_bytes, SLICE_BYTES, next_missing)
            if self._next_fd is None:
                self._next_fd = self._steps.make_next()
                if crashpoints.armed:
                    crashpoints.reach("wal.fill.file-made")
            self._fill(self._next_fd, self._steps.next_path, self._next_filled_bytes, count)
            self._next_filled_bytes += count
            return True
        return False

    def _fill(self, fd: int, path: Path, offset: int, count: int) -> None:
        """Write zeros, and let the disk begin with them: the sync comes when it has."""
        self._steps.zero(fd, path, offset, offset + count)
        if crashpoints.armed:
            crashpoints.reach("wal.fill.zeroed")
        self._unsynced, self._waited = (fd, path), 0

    def _sync_zeros(self, fd: int, path: Path) -> None:
        self._unsynced = None
        self._steps.sync_file(fd, path)
        if crashpoints.armed:
            crashpoints.reach("wal.fill.synced")

    # ---------------------------------------------------------------------------------- compaction

    def compact(self, first_index_to_keep: int) -> None:
        """Forget entries that a durable snapshot covers; see `Storage.compact`."""
        assert not self._pending, "sync first"
        synced = self._synced
        if first_index_to_keep <= synced.compacted.index + 1:
            return
        assert first_index_to_keep <= synced.last_index + 1, (first_index_to_keep, synced)
        compacted = EntryId(first_index_to_keep - 1, self._term_at(first_index_to_keep - 1))
        self._pending.append(pack_record(None, None, compacted=compacted))
        self._saved = synced._replace(compacted=compacted)
        self.sync()
        self._forget_terms(compacted)

    def _delete_one(self) -> bool:
        """Delete the oldest segment if a later one has all that counts; free its space in pieces.

        Entries of a segment that still count stand before the first index of every later one. The
        later one's header, which holds the hard state, was synced before it got its name. Oldest
        first, each synced: no crash leaves a hole. One at a time, and first its name alone: to free
        16 MiB at once takes 20 ms and more where the disk is busy.

        Returns:
            Whether there was something to do.
        """
        if self._deleted_fd is not None:
            if not self._steps.free_piece(self._deleted_fd):
                fd, self._deleted_fd = self._deleted_fd, None
                self._steps.close_file(fd)
            return True
        needed = self._synced.compacted.index + 1
        if not any(first <= needed for _, first in self._segments[1:]):
            return False
        number, _ = self._segments.pop(0)
        self._deleted_fd = self._steps.delete_name(self._steps.directory / segment_name(number))
        self._steps.sync_names()
        last_index = self._segments[0][1] - 1
        self._report("storage.segment_deleted", segment=number, last_index=last_index)
        return True

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

    def _forget_terms(self, compacted: EntryId) -> None:
        """Keep only runs that are in the log, or there would be one for every term ever led."""
        log = range(compacted.index + 1, self._saved.last_index + 1)
        starts = [start for start in self._term_starts if start.index in log]
        self._term_starts = [compacted, *starts]

    def _term_at(self, index: int) -> int:
        return max(start.term for start in self._term_starts if start.index <= index)

    # ----------------------------------------------------------------------------------------- end

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
            self._steps.close_file(self._next_fd)
            self._next_fd = None
        if self._deleted_fd is not None:
            self._steps.close_file(self._deleted_fd)
            self._deleted_fd = None
        self._steps.end()

    def _close_segment(self) -> None:
        if self._open is not None:
            self._steps.close_file(self._open.fd)
            self._open = None
