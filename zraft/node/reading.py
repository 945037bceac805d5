"""Reads of one node: which it answers itself, when, and how old what they see may be.

    linearizable   any node that knows a leader: it asks for the index (ReadIndex, thesis §6.4), and
                   answers once it has applied that; one question serves all reads of a turn
    lease          a leader with a lease answers at once, by its clock alone (thesis §6.4.1); one
                   without asks as above; a follower passes the request on
    stale          any node, at once, from what it has applied

How old is "stale"? A node that is cut off can't know what the others have written since, and what a
leader told it may have been long on its way, or told by a leader that was replaced. So there are
two measures, and they must not be mixed up:

    proven      since this node *asked* for an index that was confirmed and that it has applied.
                Only this counts for a bound (`max_staleness_ms`): a younger proof answers at once,
                otherwise the node asks, and refuses when nobody confirms.
    estimated   also since it *heard* a leader, in a term whose entries that leader has committed,
                name a commit index that it has applied. For people and status; never for a bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from zraft.api import STALENESS_UNKNOWN_MS, Consistency, Request
from zraft.core.quorum import reached_by_quorum
from zraft.core.raft import Raft
from zraft.core.ready import Ready
from zraft.core.state import Leadership
from zraft.node.requests import Place, Ticket

_LINEARIZABLE = int(Consistency.LINEARIZABLE)  # plain numbers: an enum's member is slower
_WRITE, _LEASE, _STALE = int(Consistency.WRITE), int(Consistency.LEASE), int(Consistency.STALE)


@dataclass(slots=True)
class Asked:
    """Reads that share a question, and when the first of them was taken."""

    asked_ms: int
    tickets: list[Ticket]
    index: int = 0  # once confirmed


Told: TypeAlias = tuple[int, int, int]
"""A commit index, when a leader named it, and in which term."""


class Reading:
    """See the module. The server owns the tickets' places; this object owns what they wait for."""

    def __init__(self, raft: Raft) -> None:
        self._raft = raft
        self._asked: dict[int, Asked] = {}
        self._confirmed: list[Asked] = []
        self._proven_ms: int | None = None
        self._heard_ms: int | None = None
        self._told: Told | None = None  # waits to be applied

    def take(self, tickets: list[Ticket], now_ms: int) -> list[Ticket]:
        """Begin the reads that are answered here; return the other tickets. A leader is known.

        `now_ms` was read after the requests were taken: a lease is judged by it.
        """
        others: list[Ticket] = []
        asking: list[Ticket] = []
        leads = self._raft.leader_id == self._raft.state.me
        for ticket in tickets:
            consistency = ticket.request.consistency
            if consistency == _WRITE or (consistency == _LEASE and not leads):
                others.append(ticket)
            else:
                asking.append(ticket)
                ticket.place = Place.READING
        if asking:
            self._begin(asking, now_ms)
        return others

    def _begin(self, tickets: list[Ticket], now_ms: int) -> None:
        """Answer by the lease what may be; ask for the index once for all others."""
        trusting = [t for t in tickets if t.request.consistency != _LINEARIZABLE]
        lease_index = self._raft.lease_read(now_ms=now_ms) if trusting else None
        if lease_index is not None:
            self._confirmed.append(Asked(now_ms, trusting, lease_index))
            tickets = [t for t in tickets if t.request.consistency == _LINEARIZABLE]
        if tickets:
            read_id = self._raft.read(now_ms=now_ms)
            assert read_id is not None, "without a leader requests are parked"
            self._asked.setdefault(read_id, Asked(now_ms, [])).tickets.extend(tickets)

    def on_ready(self, ready: Ready) -> None:
        """Take the indexes that were confirmed."""
        for state in ready.reads:
            asked = self._asked.pop(state.read_id, None)
            if asked is not None:
                asked.index = state.index
                self._confirmed.append(asked)

    def aborted(self, ready: Ready) -> list[Ticket]:
        """Return the reads whose question came to nothing; they changed nothing."""
        again: list[Ticket] = []
        for read_id in ready.aborted_reads:
            asked = self._asked.pop(read_id, None)
            if asked is not None:
                again += [t for t in asked.tickets if t.place is Place.READING]
        return again

    def due(self, applied_index: int) -> list[Ticket]:
        """Return the confirmed reads whose index is applied, and take note of what that proves."""
        if not self._confirmed:
            return []
        due = [asked for asked in self._confirmed if asked.index <= applied_index]
        if not due:
            return []
        self._confirmed = [asked for asked in self._confirmed if asked.index > applied_index]
        newest_ms = max(asked.asked_ms for asked in due)
        self._proven_ms = max(newest_ms, self._proven_ms or 0)
        return [t for asked in due for t in asked.tickets if t.place is Place.READING]

    def waiting(self) -> Iterator[Ticket]:
        """Yield every read that waits here."""
        for asked in (*self._asked.values(), *self._confirmed):
            yield from asked.tickets

    # How old

    def is_recent(self, request: Request, now_ms: int) -> bool:
        """Return whether a stale read may be answered at once: no bound, or proven to be in it."""
        bound_ms = request.max_staleness_ms
        proven_ms = self._proven_ms
        return not bound_ms or (proven_ms is not None and now_ms - proven_ms <= bound_ms)

    def age_ms(self, ticket: Ticket, now_ms: int) -> int:
        """Return how old a stale read is said to be that is answered now, 0 for other reads.

        With a bound: how old it was when the request came in, so one that had to ask is 0 ms old.
        """
        request = ticket.request
        if request.consistency != _STALE:
            return 0
        if request.max_staleness_ms:
            return _since(self._proven_ms, ticket.taken_ms)
        return self.staleness_ms(now_ms)

    def staleness_ms(self, now_ms: int) -> int:
        """Return the estimate; STALENESS_UNKNOWN_MS if no leader was ever heard."""
        leadership = self._raft.state.leadership
        if leadership is not None and self._raft.can_serve_reads:
            self._heard_ms = max(self._quorum_heard_ms(leadership, now_ms), self._heard_ms or 0)
        return min(_since(self._proven_ms, now_ms), _since(self._heard_ms, now_ms))

    def _quorum_heard_ms(self, leadership: Leadership, now_ms: int) -> int:
        heard = {peer: progress.last_contact_ms for peer, progress in leadership.progress.items()}
        heard[self._raft.state.me] = now_ms
        return reached_by_quorum(heard, self._raft.state.configuration)

    def note_heard(self, applied_index: int) -> None:
        """Look whether what a leader said is committed is applied by now. Once a turn."""
        st, told = self._raft.state, self._told
        if told is None:
            if st.told_ms <= (self._heard_ms or 0):
                return
            told = self._told = (st.told_commit, st.told_ms, st.term)
        commit_index, heard_ms, term = told
        if applied_index < commit_index:
            return
        self._told = None
        if st.log.term(commit_index) == term:
            self._heard_ms = max(heard_ms, self._heard_ms or 0)


def _since(then_ms: int | None, now_ms: int) -> int:
    return STALENESS_UNKNOWN_MS if then_ms is None else max(0, now_ms - then_ms)
