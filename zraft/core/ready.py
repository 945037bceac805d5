"""`Ready`: the whole contract between the core and the process that runs it.

The process asks `raft.ready()` until it returns None, and does for each Ready, in this order:

1. Send `messages`. They may leave before the disk write because they promise nothing that is not
   durable: the term they carry is. (Followers' disks start while ours works, thesis §10.2.1.)
2. If `must_persist`: write `hard_state`, `snapshot` and `entries`, then sync **once**. If that
   fails the process stops; it does not retry, and it says nothing. A `snapshot` is one whose file
   was received whole and is durable: from here on the log starts after it.
3. Send `messages_after_persist`: requests for votes and every reply. Durable, then spoken.
4. Load `restore` into the state machine, before anything else is applied: what was still to be
   applied of an earlier run is in it and is dropped. Apply `committed`, when it pleases, in order.
   Report both with `raft.on_applied(index)`. The next run of committed entries comes only after
   that, so that a node that has much to restore or to apply answers votes and heartbeats in
   between.
5. Answer `reads` once `applied_index` has reached their index; give `aborted_reads` another try, or
   up. Proposals of term `aborted_term` are undecided until an entry with their index is committed:
   the same term means yes, another term means no.
6. Store `chunks` of snapshots that peers send, and begin to send one to each of `send_snapshots`.
7. Report `notices`.
8. `raft.advance(ready)`. **Only now count the node's own vote and its own match**; a single voter
   would otherwise lead a term that it can forget.

Nothing else may happen to the core between `ready()` and `advance()`; the core asserts it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from zraft.core.messages import InstallSnapshot, Message
from zraft.core.model import Entries, HardState, MemberId, SnapshotMeta
from zraft.core.notices import Notice


class ReadState(NamedTuple):
    """A confirmed read: answer it once `applied_index >= index` (ReadIndex, thesis §6.4)."""

    read_id: int
    index: int  # type: ignore[assignment]  # a field, not tuple.index


@dataclass(slots=True)
class Ready:
    """What to do now. See the module for the order; empty fields mean nothing to do."""

    messages: list[Message] = field(default_factory=list)
    hard_state: HardState | None = None
    entries: Entries | None = None
    """To persist. Replaces everything at and after `entries.first_index`: that is truncation."""
    snapshot: SnapshotMeta | None = None
    """To persist: the log starts after it; entries that follow it in this log are kept."""
    messages_after_persist: list[Message] = field(default_factory=list)
    restore: SnapshotMeta | None = None
    """To load into the state machine before `committed`: the snapshot that was received."""
    committed: Entries | None = None
    """To apply: not empty, starts right after the last run, within the configured bounds."""
    aborted_term: int | None = None
    reads: list[ReadState] = field(default_factory=list)
    aborted_reads: list[int] = field(default_factory=list)
    chunks: list[InstallSnapshot] = field(default_factory=list)
    """Pieces of a snapshot that this node wants; see `Raft.on_snapshot_received`."""
    send_snapshots: list[MemberId] = field(default_factory=list)
    """Peers that need a snapshot: the entries they miss are compacted away."""
    notices: list[Notice] = field(default_factory=list)

    @property
    def must_persist(self) -> bool:
        """Whether something has to be on disk before `messages_after_persist` may leave."""
        return self.hard_state is not None or self.entries is not None or self.snapshot is not None
