"""Which requests a node takes. All that wait in it is bounded; beyond a bound the answer is "busy".

    requests of the node, of one session       counted while they wait
    bytes that a leader has proposed           until they are applied

A refusal costs a reply and leaves nothing behind, so that overload can not grow memory. "Busy" says
when to come again: after as long as the oldest write has been waiting, for what is full now has
been drained by then.
"""

from __future__ import annotations

from typing import NamedTuple

from zraft.api import Code, Consistency, Flag, Request
from zraft.errors import DecodeError
from zraft.machine.session_ops import decode_op
from zraft.node.ports import Limits

LEASES_OFF = "lease reads are off in this cluster (reads.lease): they trust the nodes' clocks"
MIN_DELAY_MS = 10
MAX_DELAY_MS = 1000

_SESSION = int(Flag.SESSION)
_WRITE = int(Consistency.WRITE)


class Refusal(NamedTuple):
    """Why a request is not taken; nothing of it was done."""

    code: Code
    why: str
    delay_ms: int = 0


class Admission:
    """Counts what waits, and refuses what is too much."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of_session: dict[int, int] = {}
        self.stopping = False
        self.waiting = 0
        """Requests that were taken and not answered."""

    def enter(self, request: Request) -> None:
        """A request waits from now on."""
        self.waiting += 1
        if request.session:
            self._of_session[request.session] = self._of_session.get(request.session, 0) + 1

    def leave(self, request: Request) -> None:
        """A request waits no more."""
        self.waiting -= 1
        if request.session:
            left = self._of_session[request.session] - 1
            if left:
                self._of_session[request.session] = left
            else:
                del self._of_session[request.session]

    def refusal(
        self, request: Request, *, uncommitted_bytes: int, waited_ms: int
    ) -> Refusal | None:
        """Return why a request can't be taken, None to take it.

        Args:
            uncommitted_bytes: what this node has proposed as the leader and not applied.
            waited_ms: for how long the oldest write has been waiting.
        """
        limits = self._limits
        if len(request.body) > limits.max_request_bytes:
            why = f"a request has at most {limits.max_request_bytes} bytes"
            return Refusal(Code.TOO_LARGE, why)
        if request.session or request.flags & _SESSION:
            why = _not_of_a_session(request)
            if why:
                return Refusal(Code.INVALID, why)
        if request.consistency == Consistency.STALE and not request.max_staleness_ms:
            return None
        if request.consistency > Consistency.STALE:
            why = f"this node knows no consistency {request.consistency}"
            return Refusal(Code.UNSUPPORTED, why)
        if request.consistency == Consistency.LEASE and not limits.lease_reads:
            return Refusal(Code.UNSUPPORTED, LEASES_OFF)
        if self.stopping:
            return Refusal(Code.NOT_LEADER, "the node is stopping")
        full = ""
        if self.waiting >= limits.max_waiting_requests:
            full = f"{self.waiting} requests wait"
        elif uncommitted_bytes >= limits.max_uncommitted_bytes and request.consistency == _WRITE:
            full = f"{uncommitted_bytes} bytes are proposed and not applied"
        elif request.session:
            of_session = self._of_session.get(request.session, 0)
            if of_session >= limits.max_session_requests:
                full = f"{of_session} requests of this session wait"
        if full:
            return Refusal(Code.BUSY, full, min(MAX_DELAY_MS, max(MIN_DELAY_MS, waited_ms)))
        return None


def _not_of_a_session(request: Request) -> str:
    """Return what is wrong with how a request uses sessions, empty when nothing is."""
    if request.consistency != _WRITE:
        return "a session is for writes"
    if not request.flags & _SESSION:
        return "" if request.sequence else "sequences count from 1"
    try:
        decode_op(request.body)
    except DecodeError as error:
        return error.what
    return ""
