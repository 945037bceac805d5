"""What the transport refuses and says so: an older life of a member, and one who left.

It owns the pace, at most one answer a second to each peer, and the list of what was found. Sending
is its owner's; so is the meaning of a rejection that this process gets, but for one: proof that the
own data directory was put back to an older state, which ends the process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from zraft.core.model import MemberId
from zraft.errors import ForeignDataError
from zraft.transport.reports import REPORT_MS, Report, RolledBack
from zraft.wire import REJECTED_REMOVED, REJECTED_ROLLED_BACK, Rejected

MAX_KEPT = 16


class Rejections:
    """See the module. `send` returns whether the frame left."""

    def __init__(
        self,
        *,
        me: MemberId,
        incarnation: int,
        send: Callable[[Rejected, int], bool],
        report: Report,
        label: Callable[[MemberId], str],
    ) -> None:
        """Nobody was refused yet."""
        self._me = me
        self._incarnation = incarnation
        self._send = send
        self._emit = report
        self._label = label
        self._told_ms: dict[MemberId, int] = {}
        self._rolled_back: deque[RolledBack] = deque(maxlen=MAX_KEPT)

    def rolled_back(self) -> list[RolledBack]:
        """Return the peers that spoke as an older life than one heard before, each pair once."""
        return list(self._rolled_back)

    def tell_removed(self, peer: MemberId, index: int, now_ms: int) -> None:
        """Tell a process that it is no member since the committed configuration at `index`."""
        self._tell(peer, REJECTED_REMOVED, index, now_ms)

    def tell_rolled_back(self, peer: MemberId, incarnation: int, seen: int, now_ms: int) -> None:
        """Tell a peer the highest incarnation that was heard of it; it knows what that means."""
        if not self._tell(peer, REJECTED_ROLLED_BACK, seen, now_ms):
            return
        rolled_back = RolledBack(peer, incarnation, seen)
        if rolled_back not in self._rolled_back:
            self._rolled_back.append(rolled_back)
            self._emit(
                "peer.rolled_back", peer=self._label(peer), incarnation=incarnation, seen=seen
            )

    def _tell(self, peer: MemberId, reason: int, number: int, now_ms: int) -> bool:
        last_ms = self._told_ms.get(peer)
        if last_ms is not None and now_ms - last_ms < REPORT_MS:
            return False
        if not self._send(Rejected(self._me, peer, reason, number), now_ms):
            return False
        self._told_ms[peer] = now_ms
        return True

    def on_rejected(self, rejected: Rejected) -> int | None:
        """Take in what a peer says; return the index since which this process is no member.

        Raises:
            ForeignDataError: it has heard a later life of this member (exit code 65).
        """
        if rejected.reason == REJECTED_REMOVED:
            return rejected.number
        if rejected.reason == REJECTED_ROLLED_BACK and rejected.number > self._incarnation:
            # not so of late frames of our own past, which were refused, rightly
            raise ForeignDataError(
                "this data directory was put back to an older state",
                why=f"peer {self._label(rejected.src)} has heard incarnation {rejected.number} "
                f"of this member, and this is incarnation {self._incarnation}: votes and entries "
                "that it acknowledged since are not in this directory",
                try_="replace the node: an empty directory joins as a new member",
            )
        return None
