"""The bugs of the zoo beside the core: what a node does with its disk, sessions and states.

See `zraft.testing.zoo`, which names them and says who had them.
"""

from __future__ import annotations

from itertools import count

from zraft.core.messages import DigestPurpose, StateDigest
from zraft.machine.replica import Outcome, Replica
from zraft.machine.sessions import EXPIRED, RESULT_OVERHEAD_BYTES, Kept, Session, Sessions
from zraft.node.digests import DigestWatch, View
from zraft.node.server import Server
from zraft.storage.base import Report
from zraft.storage.snapshots import SnapshotStore
from zraft.testing.core_disk import Disk
from zraft.testing.sim.making import open_disk
from zraft.testing.sim.node import SimNode
from zraft.testing.sim.storage import SimStorage, log_directory, make_disk

# Lost disks

_lose = Disk.lose


def lose_and_forget(self: Disk) -> None:
    """Leave an empty disk that a member starts from."""
    _lose(self)
    self.lost = False


def open_or_make(node: SimNode, report: Report) -> tuple[SimStorage, SnapshotStore]:
    """Make a new log where there is none, as a start with "create it if it is missing" does."""
    directory = log_directory(node.member_id)
    if directory.name not in node.disk.listdir(directory.parent):
        node.mount(make_disk(node.member_id, node.world.base))
    return open_disk(node, report)


# Sessions

_begin = Sessions.begin
_keep = Sessions.keep


def begin_anew(
    self: Sessions, session_id: int, sequence: int, ack_below: int, log_time_ms: int
) -> Session | Kept:
    """Look at the session, and not at whether the command was run before."""
    found = _begin(self, session_id, sequence, ack_below, log_time_ms)
    session = self._table.get(session_id)
    return session if session is not None and sequence in session.results else found


def keep_the_last(self: Sessions, session: Session, sequence: int, kept: Kept) -> None:
    """Keep one result, as if a client had one write under way at a time."""
    for older, result in session.results.items():
        self.kept_bytes -= len(result.result) + RESULT_OVERHEAD_BYTES
        self._mix(session, -older)
    session.results.clear()
    _keep(self, session, sequence, kept)


_flush = Server.flush
_used_here_ms: dict[Session, int] = {}  # when each was used last, by the clock of its node
_here = {"now_ms": 0}  # the clock of the node that applies


def flush_by_the_clock(self: Server, *, now_ms: int) -> bool:
    """Apply with the node's own clock at hand."""
    _here["now_ms"] = now_ms
    return _flush(self, now_ms=now_ms)


def begin_by_the_clock(
    self: Sessions, session_id: int, sequence: int, ack_below: int, log_time_ms: int
) -> Session | Kept:
    """End a session that was not used for too long by this node's clock, and by no other."""
    session, now_ms = self._table.get(session_id), _here["now_ms"]
    if session is not None:
        used_ms = _used_here_ms.get(session, now_ms)
        _used_here_ms[session] = now_ms
        if now_ms - used_ms >= session.ttl_ms:
            self._drop(session)
            return EXPIRED
    return _begin(self, session_id, sequence, ack_below, log_time_ms)


# States

_apply = Replica.apply
_ticks = count(1)


def apply_by_the_clock(self: Replica, index: int, payload: bytes) -> Outcome:
    """Let the state depend on when it is computed, as by `time.time()` in a machine."""
    self._running ^= next(_ticks)
    return _apply(self, index, payload)


def tell_newest(self: DigestWatch, view: View) -> None:
    """The production function, but with the digest of now under the index of the last multiple."""
    digest = self._history.at(self._history.last_index)
    if digest is not None:
        report = DigestPurpose.REPORT
        self._outgoing.append(
            StateDigest(self._me, view.leader, view.term, report, self._latest, digest)
        )
