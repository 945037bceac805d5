"""Snapshots on their way: to followers that miss what is compacted away, and from a leader.

    leader                                   follower
       │── InstallSnapshot, offset 0 ───────────▶│   the first chunk alone: it is a question
       │◀── InstallSnapshotResponse, next 2 MiB ─│   so much is here, of an earlier transfer
       │── chunks from 2 MiB on, a window ──────▶│   bulk lane; answers on the lane of the peers
       │◀── next_offset … ───────────────────────│
       │◀── installed ───────────────────────────│   the core's answer; from here on, entries

`Sending` has one transfer a follower, reads the file as it goes, and never has more under way than
a window. What is lost is sent again from where the follower is, as soon as its answers tell, or
after a while; a follower that says nothing gets a new connection, and is left alone after a while
(then the core probes it, and asks again if need be). `Receiving` writes what comes in order and
answers where it is. Neither decides anything: that a snapshot is wanted, or installed, says the
core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

from zraft import crashpoints
from zraft.core.messages import InstallSnapshot, InstallSnapshotResponse
from zraft.core.model import MemberId, SnapshotMeta
from zraft.core.raft import Raft
from zraft.core.state import FAR_MS
from zraft.errors import DecodeError, StorageError, VersionError
from zraft.node.ports import Report, SnapshotLimits
from zraft.storage.snapshot_reading import SnapshotReader
from zraft.storage.snapshots import SnapshotStore
from zraft.transport.base import Bulk

CHUNKS_A_TURN = 4
BLOCKED_MS = 10
"""A lane that takes nothing is tried again after this; it tells nobody when it is free."""
REPEATED = 2
"""So many answers that name the same place again tell that a chunk was lost or overtaken: one may
be that of a chunk that came twice. To wait for the time to send again would cost it each time."""
PATIENCE = 5
"""A transfer ends after so many times the wait for an answer without progress."""


@dataclass(slots=True)
class Transfer:
    """One snapshot on its way to one follower."""

    peer: MemberId
    meta: SnapshotMeta
    reader: SnapshotReader
    started_ms: int
    progress_ms: int  # when the follower's offset rose last
    retry_ms: int  # when to send again what has no answer
    acked: int = 0  # the follower holds everything before it
    sent: int = 0  # everything before it has left
    met: bool = False  # whether the follower has said where it is
    silent: int = 0  # retries in a row without an answer
    repeated: int = 0  # answers that named `acked` once more, and tell of a loss
    echoes: int = 0  # answers that may still come of chunks that are sent twice: they tell nothing
    recover: int = 0  # all that is sent twice is before this

    def go_back(self, offset: int, chunk_bytes: int) -> None:
        """Send again from `offset` on; what is under way may come as well, and be a second copy.

        The answers to the copies name one place again and again. Taken for losses, they would make
        more copies, and so on to the end (compare TCP's recovery point, RFC 6582).
        """
        self.echoes += -(-max(0, self.sent - self.acked) // chunk_bytes)
        self.recover = max(self.recover, self.sent)
        self.sent = offset


class Sending:
    """All transfers to followers. See the module."""

    def __init__(
        self, raft: Raft, store: SnapshotStore, bulk: Bulk, report: Report, limits: SnapshotLimits
    ) -> None:
        self._raft = raft
        self._store = store
        self._bulk = bulk
        self._report = report
        self._limits = limits
        self._answer_ms = raft.state.settings.election_max_ms
        self._transfers: dict[MemberId, Transfer] = {}
        self._blocked_ms = FAR_MS
        self._allowed_bytes = 0.0
        self._refilled_ms = 0
        self.sent_chunks = 0

    def find(self, peer: MemberId) -> Transfer | None:
        """Return the transfer to a peer, for `status`."""
        return self._transfers.get(peer)

    def next_deadline_ms(self) -> int:
        """Return when `work` has something to do again."""
        if not self._transfers:
            return FAR_MS
        return min(self._blocked_ms, *(t.retry_ms for t in self._transfers.values()), FAR_MS)

    @property
    def _patience_ms(self) -> int:
        """How long to wait for an answer: a round trip, and each transfer's turn at the rate.

        A large chunk at a small rate takes longer than any answer; without its time in here no
        transfer would ever come to its end (simulator, seed 134).
        """
        limits = self._limits
        turn_ms = 1 + limits.chunk_bytes * 1000 // limits.max_bytes_per_s
        return self._answer_ms + max(1, len(self._transfers)) * turn_ms

    def begin(self, peer: MemberId, now_ms: int) -> None:
        """Send the newest snapshot to a peer, from the start or from where the peer is.

        Raises:
            StorageError: the disk refused.
        """
        older = self._transfers.pop(peer, None)
        if older is not None:
            older.reader.close()
        meta = self._store.newest
        assert meta is not None, "nothing is compacted without a snapshot"
        reader = self._store.reader(meta)
        retry_ms = now_ms + self._patience_ms
        self._transfers[peer] = Transfer(peer, meta, reader, now_ms, now_ms, retry_ms)
        self._raft.on_snapshot_sending(peer, meta.index, now_ms=now_ms)
        self._bulk.open(peer)
        self._report("snapshot.send_begun", peer=peer, index=meta.index, bytes=meta.size_bytes)

    def on_answer(self, answer: InstallSnapshotResponse, now_ms: int) -> None:
        """Learn how far a follower is. Old answers are harmless: they cost a chunk sent twice."""
        transfer = self._transfers.get(answer.src)
        if transfer is None or answer.installed:
            return
        meta, offset = transfer.meta, answer.next_offset
        named = (answer.last_included_index, answer.last_included_term)
        if named != meta.last_id or answer.term != self._raft.term or offset > meta.size_bytes:
            return
        if not transfer.met:
            transfer.met, transfer.sent = True, offset
            if offset >= self._limits.chunk_bytes * 2:
                self._report("snapshot.send_resumed", peer=answer.src, index=meta.index, at=offset)
        if offset > transfer.acked:
            transfer.progress_ms = now_ms
            transfer.sent = max(transfer.sent, offset)
            transfer.repeated = 0
            if offset > transfer.recover:  # lanes keep the order: the copies came before, or never
                transfer.echoes = 0
        elif offset < transfer.acked:  # it has lost what it held
            transfer.go_back(offset, self._limits.chunk_bytes)
            transfer.repeated = 0
        elif transfer.echoes:
            transfer.echoes -= 1
        else:
            transfer.repeated += 1
            if transfer.repeated == REPEATED:  # once for each place
                transfer.go_back(offset, self._limits.chunk_bytes)
        transfer.acked = offset
        transfer.silent = 0
        transfer.retry_ms = now_ms + self._patience_ms

    def work(self, now_ms: int) -> None:
        """Send what may leave now; end transfers that have no purpose, or no hope.

        Raises:
            StorageError: the disk refused.
        """
        if not self._transfers:
            return
        self._blocked_ms = FAR_MS
        self._refill(now_ms)
        for transfer in [*self._transfers.values()]:
            peer, wanted = transfer.peer, self._raft.wants_snapshot(transfer.peer)
            if not wanted:
                self._end(transfer, now_ms)
            elif now_ms - transfer.progress_ms >= PATIENCE * self._patience_ms:
                self._end(transfer, now_ms)
                self._raft.on_snapshot_failed(peer, now_ms=now_ms)
            else:
                if now_ms >= transfer.retry_ms:
                    self._go_back(transfer, now_ms)
                self._send(transfer, now_ms)

    def _refill(self, now_ms: int) -> None:
        """Earn what the time since the last look is worth; save up two chunks or 50 ms' worth."""
        limits, elapsed_ms = self._limits, max(0, now_ms - self._refilled_ms)
        self._refilled_ms = now_ms
        earned = self._allowed_bytes + limits.max_bytes_per_s * elapsed_ms / 1000
        saved_up = max(2.0 * limits.chunk_bytes, limits.max_bytes_per_s / 20)
        self._allowed_bytes = min(earned, saved_up)

    def _go_back(self, transfer: Transfer, now_ms: int) -> None:
        """Nothing was heard for long: send again, and over a new connection the second time."""
        transfer.silent += 1
        transfer.retry_ms = now_ms + self._patience_ms
        whole = transfer.acked == transfer.meta.size_bytes  # all is there, and is not installed
        transfer.go_back(0 if whole else transfer.acked, self._limits.chunk_bytes)
        transfer.acked, transfer.met = transfer.sent, False
        if transfer.silent > 1:
            self._bulk.renew(transfer.peer)

    def _send(self, transfer: Transfer, now_ms: int) -> None:
        limits, meta = self._limits, transfer.meta
        for _ in range(CHUNKS_A_TURN):
            window = limits.window_chunks if transfer.met else 1
            under_way = transfer.sent - transfer.acked
            if transfer.sent >= meta.size_bytes or under_way >= window * limits.chunk_bytes:
                return
            if self._allowed_bytes < limits.chunk_bytes:
                missing = limits.chunk_bytes - self._allowed_bytes
                wait_ms = 1 + int(missing * 1000 / limits.max_bytes_per_s)
                self._blocked_ms = min(self._blocked_ms, now_ms + wait_ms)
                return
            if not self._send_chunk(transfer):
                self._blocked_ms = min(self._blocked_ms, now_ms + BLOCKED_MS)
                return

    def _send_chunk(self, transfer: Transfer) -> bool:
        meta, raft, offset = transfer.meta, self._raft, transfer.sent
        data = transfer.reader.read_at(offset, self._limits.chunk_bytes)
        where = raft.state.me, transfer.peer, raft.term, meta.index, meta.term
        whole = meta.size_bytes, meta.crc
        if not self._bulk.send(InstallSnapshot(*where, *whole, offset, crc32(data), data)):
            return False
        transfer.sent = offset + len(data)
        self._transfers[transfer.peer] = self._transfers.pop(transfer.peer)  # the next one's turn
        self._allowed_bytes -= len(data)
        self.sent_chunks += 1
        return True

    def _end(self, transfer: Transfer, now_ms: int) -> None:
        peer, index = transfer.peer, transfer.meta.index
        del self._transfers[peer]
        transfer.reader.close()
        self._bulk.shut(peer)
        elapsed_ms = now_ms - transfer.started_ms
        if self._has(peer, index):
            self._report("snapshot.sent", peer=peer, index=index, elapsed_ms=elapsed_ms)
        else:
            at = transfer.acked
            self._report("snapshot.send_ended", peer=peer, index=index, at=at)

    def _has(self, peer: MemberId, index: int) -> bool:
        leadership = self._raft.state.leadership
        progress = None if leadership is None else leadership.progress.get(peer)
        return progress is not None and progress.match_index >= index

    def close(self) -> None:
        """Close the files that are open."""
        for transfer in self._transfers.values():
            transfer.reader.close()
        self._transfers.clear()


class Receiving:
    """The snapshot that a leader sends to this node. See the module."""

    def __init__(
        self,
        me: MemberId,
        store: SnapshotStore,
        report: Report,
        answer: Callable[[InstallSnapshotResponse], None],
    ) -> None:
        self._me = me
        self._store = store
        self._report = report
        self._answer = answer
        self.received_chunks = 0

    def take(self, chunks: Sequence[InstallSnapshot], term: int) -> SnapshotMeta | None:
        """Store chunks and answer where this node is; return what is whole and durable now.

        What does not fit, is damaged, or finds no room on the disk is reported; it ends the
        transfer, and nothing else.
        """
        for chunk in chunks:
            if crc32(chunk.data) != chunk.chunk_crc:
                self._refuse(chunk, "a chunk's checksum is wrong")
                continue
            try:
                meta = self._store_chunk(chunk, term)
            except (DecodeError, VersionError, StorageError) as error:
                self._store.drop_incoming()
                self._refuse(chunk, error.why or str(error))
                continue
            if meta is not None:
                return meta
        return None

    def _store_chunk(self, chunk: InstallSnapshot, term: int) -> SnapshotMeta | None:
        index, last_term = chunk.last_included
        incoming = self._store.receive(index, last_term, chunk.size_bytes, chunk.crc)
        if incoming.write(chunk.offset, chunk.data):
            self.received_chunks += 1
            if crashpoints.armed:
                crashpoints.reach("install.chunk-stored")
        if incoming.next_offset == chunk.size_bytes:
            return incoming.finish()
        place = index, last_term, incoming.next_offset
        self._answer(InstallSnapshotResponse(self._me, chunk.src, term, *place, installed=False))
        return None

    def _refuse(self, chunk: InstallSnapshot, reason: str) -> None:
        index = chunk.last_included_index
        self._report("snapshot.refused", peer=chunk.src, index=index, reason=reason)
