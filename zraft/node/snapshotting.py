"""Snapshots of one node: when they are taken, how they are written, how they come back.

    taking       the log since the last one outgrew it, or an operator asked: the replica is frozen
                 at an applied index, at once; then its chunks are written, a millisecond's worth
                 every few, between turns in which entries are applied as ever
    saved        the file is durable: the core says which entries stay, then the log in the memory
                 and the one on the disk are cut, each in a step of its own
    restoring    at a start, or when a leader's snapshot was received: the state is replaced
    transfers    `zraft.node.transfers`

The size of the log is judged after each applied entry, so that nodes with equal histories take
their snapshots at equal indices; if it is too big again when one is done, the next one begins at
once, not with the next write, which may never come. A disk that refuses a snapshot, and a machine
that raises while it is asked for one, end that snapshot only: nothing was promised, the log still
holds everything, and it is tried again when as much was applied again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from zraft import crashpoints
from zraft.core.model import SnapshotMeta
from zraft.core.raft import Raft
from zraft.core.ready import Ready
from zraft.core.state import FAR_MS
from zraft.errors import CorruptLogError, DecodeError, MachineError, StorageError
from zraft.machine.base import Ctx
from zraft.machine.replica import Replica, Section
from zraft.node.lengths import Lengths
from zraft.node.ports import Report, SnapshotLimits
from zraft.node.transfers import Receiving, Sending
from zraft.storage.base import Storage
from zraft.storage.snapshots import SnapshotStore, SnapshotWriter
from zraft.transport.base import Bulk, Peers

EVERY_MS = 5
"""From the start of one slice to that of the next: the rest belongs to everything else."""

REST = 4
"""And at least so many times as long as the slice took: one that waited for the processor or the
disk shows that others want them (1,000,000 keys on two cores: bar 11)."""


@dataclass(slots=True)
class Taking:
    """A snapshot that is being written."""

    meta: SnapshotMeta
    sections: Iterator[Section]
    writer: SnapshotWriter
    started_ns: int
    written: bool = False  # all chunks are in the file
    sealed: bool = False  # and its end, all of it durable
    published: SnapshotMeta | None = None  # under its own name; the core does not know yet
    slices: int = 0
    longest_ns: int = 0


class Snapshots:
    """See the module. One per `Server`, which tells it what happens and calls `work` each turn."""

    def __init__(
        self,
        raft: Raft,
        replica: Replica,
        storage: Storage,
        store: SnapshotStore,
        peers: Peers,
        bulk: Bulk,
        report: Report,
        clock_ns: Callable[[], int],
        limits: SnapshotLimits,
    ) -> None:
        """Restore the snapshot that the core starts with, if there is one.

        Raises:
            CorruptLogError: it is not what was written (exit 65).
            StorageError: the disk refused (exit 74).
            MachineError: the state machine does not take it (exit 70).
        """
        self._raft = raft
        self._replica = replica
        self._storage = storage
        self._store = store
        self._report = report
        self._clock_ns = clock_ns
        self._limits = limits
        self._taking: Taking | None = None
        self._due_ms = FAR_MS
        self._log_bytes = 0  # applied since the last snapshot was begun or restored
        self._to_compact = 0  # first index that the disk has to keep; 0: nothing is to be cut
        self._trims = False
        self.taken = 0
        self.longest_slice_us = 0
        self._slices = Lengths("snapshot.slices")
        self.failure = ""
        """Why there is no snapshot of the last index at which one was tried; empty: there is."""
        self.sending = Sending(raft, store, bulk, report, limits)
        self._receiving = Receiving(
            raft.state.me, store, report, lambda answer: peers.send([answer])
        )
        if raft.snapshot is not None:
            self._load(raft.snapshot)
        self._limit_bytes = self._next_limit()

    # What is known

    @property
    def is_taking(self) -> bool:
        """Whether a snapshot is being written."""
        return self._taking is not None

    def counters(self) -> dict[str, int]:
        """Return the counters for `status`."""
        return {
            "snapshot.taken": self.taken,
            "snapshot.longest_slice_us": self.longest_slice_us,
            "snapshot.slices": self._slices.count,
            **self._slices.counters(),
            "snapshot.chunks_sent": self.sending.sent_chunks,
            "snapshot.chunks_received": self._receiving.received_chunks,
        }

    def next_deadline_ms(self) -> int:
        """Return when `work` has something to do."""
        sending_ms = self.sending.next_deadline_ms()
        return self._due_ms if self._due_ms < sending_ms else sending_ms

    def _next_limit(self) -> int:
        newest = self._store.newest
        size_bytes = 0 if newest is None else newest.size_bytes
        limits = self._limits
        return max(limits.min_log_bytes, size_bytes * limits.size_percent // 100)

    # What happens

    def on_entry(self, size_bytes: int) -> None:
        """An entry was applied: begin a snapshot here if the log has grown enough."""
        self._log_bytes += size_bytes
        if self._taking is None and not self._to_compact and self._is_due():
            self.begin()

    def _is_due(self) -> bool:
        """Return whether so much was applied since the last snapshot that it needs a new one."""
        return self._log_bytes >= self._limit_bytes

    def on_ready(self, ready: Ready, now_ms: int) -> None:
        """Store what was received, begin to send what the core wants sent; it has advanced."""
        for peer in ready.send_snapshots:
            if self._raft.wants_snapshot(peer):
                self.sending.begin(peer, now_ms)
        if ready.chunks:
            meta = self._receiving.take(ready.chunks, self._raft.term)
            if meta is not None:
                if crashpoints.armed:
                    crashpoints.reach("install.file-durable")
                self._raft.on_snapshot_received(meta, now_ms=now_ms)

    # Taking

    def begin(self) -> int:
        """Freeze the state as it is now, to be written; return the index that it covers.

        One that is being written goes on, and one that covers all of it is not taken twice.
        """
        ctx, raft = self._replica.applied, self._raft
        if self._taking is not None:
            return self._taking.meta.index
        if raft.snapshot is not None and raft.snapshot.index >= ctx.index:
            return raft.snapshot.index
        configuration = raft.state.configurations.at(ctx.index)
        digest = self._replica.digest()
        meta = SnapshotMeta(ctx.index, ctx.term, configuration, ctx.log_time_ms, digest)
        started_ns = self._clock_ns()
        try:
            sections = self._replica.snapshot()
            writer = self._store.begin(meta)
        except (StorageError, MachineError) as error:
            self._fail(meta.index, error)
            return meta.index
        self._taking = Taking(meta, sections, writer, started_ns)
        self._log_bytes = 0
        self._due_ms = 0
        self._report("snapshot.begun", index=meta.index, snapshot_term=meta.term)
        if crashpoints.armed:
            crashpoints.reach("snapshot.begun")
        return meta.index

    def work(self, now_ms: int) -> None:
        """Do a slice of what is due: write, finish, cut the log, or free old files; send chunks.

        Raises:
            StorageError: the disk refused what the log needs (exit 74).
        """
        if now_ms >= self._due_ms:
            self._due_ms = now_ms + EVERY_MS
            if self._taking is not None:
                self._slice(self._taking, now_ms)
            elif self._to_compact:
                self._storage.compact(self._to_compact)
                self._to_compact = 0
                if crashpoints.armed:
                    crashpoints.reach("snapshot.log-cut")
            elif self._is_due():
                self.begin()  # the log outgrew the last one while that was written
            elif self._trims:
                self._trims = self._raft.trim_log()
            elif not self._clean_up():
                self._due_ms = FAR_MS
        self.sending.work(now_ms)

    def _slice(self, taking: Taking, now_ms: int) -> None:
        started_ns = self._clock_ns()
        try:
            if taking.published is not None:
                self._tell_core(taking.published, now_ms)
            elif taking.sealed:
                self._publish(taking)
            elif taking.written:
                taking.writer.seal()
                taking.sealed = True
            elif taking.writer.is_full:
                taking.writer.sync()
            else:
                self._write(taking, started_ns + self._limits.slice_ms * 1_000_000)
        except (StorageError, MachineError) as error:
            taking.writer.abort()
            self._taking = None
            self._fail(taking.meta.index, error)
            return
        elapsed_ns = self._clock_ns() - started_ns
        self._due_ms = max(self._due_ms, now_ms + REST * elapsed_ns // 1_000_000)
        taking.slices += 1
        taking.longest_ns = max(taking.longest_ns, elapsed_ns)
        self.longest_slice_us = max(self.longest_slice_us, elapsed_ns // 1000)
        self._slices.add(elapsed_ns / 1e6)

    def _write(self, taking: Taking, ends_ns: int) -> None:
        write = taking.writer.write
        for section, chunk in taking.sections:
            write(section, chunk)
            if crashpoints.armed:
                crashpoints.reach("snapshot.chunk-written")
            if taking.writer.is_full or self._clock_ns() >= ends_ns:
                return  # a sync is a slice of its own
        taking.written = True

    def _clean_up(self) -> bool:
        """Free a piece of older files; return whether there is more. It may fail: it can wait."""
        try:
            return self._store.clean_up()
        except StorageError as error:
            self._report("snapshot.not_freed", reason=error.why or error.what)
            return True

    def _publish(self, taking: Taking) -> None:
        if crashpoints.armed:
            crashpoints.reach("snapshot.before-finish")
        meta = taking.published = taking.writer.finish()
        if crashpoints.armed:
            crashpoints.reach("snapshot.file-durable")
        self._limit_bytes = self._next_limit()
        self._report(
            "snapshot.taken",
            index=meta.index,
            bytes=meta.size_bytes,
            elapsed_ms=(self._clock_ns() - taking.started_ns) // 1_000_000,
            slices=taking.slices + 1,
            longest_us=taking.longest_ns // 1000,
        )

    def _tell_core(self, meta: SnapshotMeta, now_ms: int) -> None:
        """Let the core say what of the log is needed still, and begin to cut it in the memory."""
        self._taking = None
        self._to_compact = self._raft.on_snapshot_saved(meta, now_ms=now_ms)
        self._trims = True
        self.taken += 1
        self.failure = ""

    def _fail(self, index: int, error: StorageError | MachineError) -> None:
        self._log_bytes = 0
        self.failure = f"{error.what}: {error.why}" if error.why else error.what
        self._report("snapshot.failed", index=index, reason=self.failure)

    # Restoring

    def restore(self, meta: SnapshotMeta) -> None:
        """Replace the state by a snapshot that was received; what was being written is dropped.

        Raises:
            CorruptLogError: it is not what was written (exit 65).
            StorageError: the disk refused (exit 74).
            MachineError: the state machine does not take it (exit 70).
        """
        if crashpoints.armed:
            crashpoints.reach("install.persisted")
        if self._taking is not None:
            self._taking.writer.abort()
            self._taking = None
        self._log_bytes = self._to_compact = self._due_ms = 0
        self._load(meta)
        self._limit_bytes = self._next_limit()
        self._raft.on_applied(meta.index)
        if crashpoints.armed:
            crashpoints.reach("install.restored")

    def _load(self, meta: SnapshotMeta) -> None:
        started_ns = self._clock_ns()
        ctx = Ctx(meta.index, meta.term, meta.log_time_ms)
        try:
            self._replica.restore(ctx, self._store.read(meta))
        except DecodeError as error:
            raise self._refuse(str(error.why or error)) from error
        if self._replica.digest() != meta.digest:
            raise self._refuse(f"the state restored at {meta.index} is not the one that was saved")
        elapsed_ms = (self._clock_ns() - started_ns) // 1_000_000
        self._report(
            "snapshot.restored", index=meta.index, bytes=meta.size_bytes, elapsed_ms=elapsed_ms
        )

    def _refuse(self, why: str) -> CorruptLogError:
        what, path = "a snapshot can not be restored", str(self._store.directory)
        return CorruptLogError(what, path=path, offset=0, why=why)
