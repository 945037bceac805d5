"""What a leader knows of one peer, as a small state machine (thesis §10.2.1, etcd's idea).

    PROBE      where the logs meet is unknown: one append at a time, then wait for its answer
       │  an append is accepted            ▲  an append is refused, or the peer is down
       ▼                                   │
    REPLICATE  optimistic: `next_index` moves with every send, many appends in flight

    SNAPSHOT   a peer refused an append at a place before which all is compacted away: a snapshot
               is under way. Left for PROBE once an index that the log still knows is acknowledged,
               or the transfer failed. Meanwhile heartbeats name index 0, where all logs meet.

The window is bounded in messages *and* in bytes. `match_index` never falls: a late or reordered
answer can't take back what is durable (raftos#25).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from zraft.core.model import MemberId


class ProgressState(Enum):
    """How entries travel to a peer."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Inflights:
    """Appends on their way: last index and bytes of each, oldest first."""

    __slots__ = ("_appends", "bytes")

    def __init__(self) -> None:
        self._appends: deque[tuple[int, int]] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._appends)

    def add(self, last_index: int, size_bytes: int) -> None:
        """Count an append that was sent."""
        self._appends.append((last_index, size_bytes))
        self.bytes += size_bytes

    def free_to(self, index: int) -> None:
        """Forget every append whose last entry is acknowledged by `index`."""
        while self._appends and self._appends[0][0] <= index:
            self.bytes -= self._appends.popleft()[1]
        assert self.bytes >= 0

    def clear(self) -> None:
        """Forget all: what was in flight counts as lost."""
        self._appends.clear()
        self.bytes = 0


@dataclass(slots=True)
class CatchUp:
    """How far a learner is behind, in rounds of replication (thesis §4.2.1).

    A round ends when the learner holds what was the log's end when the round began.
    """

    round_end: int
    started_ms: int
    rounds: int = 0  # that ended
    is_caught_up: bool = False  # the last one took less than an election timeout


@dataclass(slots=True)
class Progress:
    """A leader's view of one peer. Invariant: `match_index < next_index`."""

    peer: MemberId
    next_index: int
    last_contact_ms: int
    match_index: int = 0
    state: ProgressState = ProgressState.PROBE
    probe_sent: bool = False
    sent_commit: int = 0
    sent_round: int = 0
    acked_round: int = 0
    snapshot_index: int = 0  # of the snapshot that it is sent, 0 in the other states
    probe_round: int = 0  # answers of earlier rounds say nothing of where the logs meet
    inflights: Inflights = field(default_factory=Inflights)
    catch_up: CatchUp | None = None  # of a learner

    def become_probe(self, next_index: int) -> None:
        """Look for the place where the logs meet, from `next_index` down."""
        assert next_index > self.match_index, (next_index, self.match_index)
        self.state = ProgressState.PROBE
        self.snapshot_index = 0
        self.next_index = next_index
        self.probe_sent = False
        self.inflights.clear()

    def become_replicate(self) -> None:
        """Send optimistically from the first entry that is not acknowledged."""
        self.state = ProgressState.REPLICATE
        self.next_index = self.match_index + 1
        self.probe_sent = False
        self.inflights.clear()

    def become_snapshot(self) -> None:
        """Wait for a snapshot: no entries are sent, and what was in flight counts as lost."""
        self.state = ProgressState.SNAPSHOT
        self.next_index = self.match_index + 1
        self.probe_sent = False
        self.inflights.clear()

    def on_accepted(self, match_index: int) -> bool:
        """Take an acknowledgement; return whether `match_index` rose."""
        self.inflights.free_to(match_index)
        rose = match_index > self.match_index
        if rose:
            self.match_index = match_index
        self.next_index = max(self.next_index, self.match_index + 1)
        return rose
