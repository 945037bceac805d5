"""One session as its client sees it: names for writes, and which results are still wanted.

The session itself is in the cluster (`zraft.machine.sessions`). It is opened when the first write
needs it; until then writes wait. A write keeps its name through all attempts, so it may be sent
again whatever became of the last one: it is applied once.

`ack_below` tells the cluster which results it may drop: everything below the first sequence that
has not ended, or ended without anyone knowing how. Such a write can be repeated or asked about by
its request id for as long as the session lives, or until this client has learned so what became of
it: then the result is wanted no more.

A session that was not used for half its time to live is not used again: the next write opens a new
one. Whether a session is over is for the log to say, not for this clock; it only keeps away from
the edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zraft.client.pending import Name

if TYPE_CHECKING:
    from zraft.client.pending import Pending

MAX_UNKNOWN = 1000
"""Unknown outcomes of which the results are kept; older ones are given up."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class ClientSession:
    """See the module. `session_id` is 0 until it is open."""

    session_id: int = 0
    ttl_ms: int = 0
    used_ms: int = 0  # when the last answer came
    next_sequence: int = 1
    wanted: dict[int, None] = field(default_factory=dict)  # sequences whose results are, in order
    unknown: dict[int, None] = field(default_factory=dict)  # of the wanted: how they ended
    waiting: list[Pending] = field(default_factory=list)  # until it is open
    opening: Pending | None = None

    def is_open(self, now_ms: int) -> bool:
        """Return whether a new write may be named in this session."""
        if not self.session_id:
            return False
        idle_ms = now_ms - self.used_ms
        if not self.wanted and idle_ms > self.ttl_ms // 2:
            self.close()
        return self.session_id != 0

    def open(self, session_id: int, ttl_ms: int, now_ms: int) -> Iterator[Pending]:
        """The cluster opened it; yield the writes that waited, named in order."""
        self.session_id, self.ttl_ms, self.used_ms = session_id, ttl_ms, now_ms
        waiting, self.waiting, self.opening = self.waiting, [], None
        for pending in waiting:
            if not pending.done:
                pending.name = self.next_name()
                yield pending

    def close(self) -> None:
        """Forget it: the next write opens a new one."""
        self.session_id, self.next_sequence = 0, 1
        self.wanted.clear()
        self.unknown.clear()

    def end(self) -> Name | None:
        """Forget it, to have it closed; return the name for that, None not to close it.

        One that is not open needs no closing. One with writes under way, or with outcomes that are
        not known, stays as it is: it can be asked about them until it expires.
        """
        if not self.session_id or self.wanted:
            return None
        name = self.session_id, 0
        self.close()
        return name

    def expire(self, session_id: int) -> None:
        """The cluster says that a session is over."""
        if session_id == self.session_id:
            self.close()

    def next_name(self) -> Name:
        """Return the name of a new write."""
        sequence = self.next_sequence
        self.next_sequence += 1
        self.wanted[sequence] = None
        return self.session_id, sequence

    def ack_below(self) -> int:
        """Return the first sequence whose result is still wanted."""
        return next(iter(self.wanted), self.next_sequence)

    def settle(self, name: Name, now_ms: int, *, known: bool) -> None:
        """A write ended; one whose outcome is not known may still be asked about."""
        session_id, sequence = name
        if session_id != self.session_id or sequence not in self.wanted:
            return
        if known:
            self.used_ms = now_ms
            del self.wanted[sequence]
            return
        self.unknown[sequence] = None
        if len(self.unknown) > MAX_UNKNOWN:
            oldest = next(iter(self.unknown))
            del self.unknown[oldest], self.wanted[oldest]

    def learn(self, name: Name, now_ms: int) -> None:
        """What became of a write is known now: by asking, or because it was repeated."""
        session_id, sequence = name
        if session_id == self.session_id and sequence in self.unknown:
            self.used_ms = now_ms
            del self.unknown[sequence], self.wanted[sequence]
