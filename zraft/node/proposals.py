"""Writes that this node, as the leader, has put into the log and that nobody decided yet.

Tickets are found by the index of their entry. More than one may wait for the same entry: a write
that its client repeats, while the first copy is still under way, joins it instead of being put into
the log once more. Such names, and the bytes that are not applied yet, belong to one leadership and
are counted by proposal, not by entry: nothing of them can leak into the next term.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from zraft.api import Flag, Request
from zraft.core.model import Command, EntryType
from zraft.machine.session_ops import SessionOp, Terms, decode_op, encode_open
from zraft.node.requests import Place, Ticket

Name = tuple[int, int]
"""Session and sequence of a command."""

_BARRIER = int(Flag.BARRIER)  # plain numbers: each operation on a flag makes an object
_SESSION = int(Flag.SESSION)


class Run(NamedTuple):
    """One proposal: entries up to `last_index`, their bytes and their names, and how old it is."""

    last_index: int
    taken_ms: int
    size_bytes: int
    names: list[Name]


class Proposals:
    """See the module."""

    def __init__(self) -> None:
        self._tickets: dict[int, Ticket] = {}  # the first one that waits for each entry
        self._names: dict[Name, int] = {}
        self._runs: deque[Run] = deque()
        self._term = 0
        self.uncommitted_bytes = 0

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        """Yield all tickets."""
        for ticket in [*self._tickets.values()]:
            yield from chain_of(ticket)

    def waited_ms(self, now_ms: int) -> int:
        """Return for how long the oldest write of this leadership has been waiting."""
        return now_ms - self._runs[0].taken_ms if self._runs else 0

    def begin(self, term: int) -> None:
        """Take note of the term in which proposals are made now."""
        if term != self._term:
            self._term = term
            self._names.clear()
            self._runs.clear()
            self.uncommitted_bytes = 0

    def join(self, ticket: Ticket) -> bool:
        """Let a repeated write wait for its first copy, if that is in the log of this term."""
        request = ticket.request
        if not request.session or request.flags & _SESSION:
            return False
        index = self._names.get((request.session, request.sequence))
        first = None if index is None else self._tickets.get(index)
        if index is None or first is None:
            return False
        ticket.place, ticket.key, ticket.term = Place.PROPOSED, index, self._term
        ticket.following, first.following = first.following, ticket
        return True

    def add(self, first_index: int, tickets: list[Ticket]) -> list[Ticket]:
        """Keep the tickets of entries from `first_index` on; return who waited there before."""
        replaced: list[Ticket] = []
        names: list[Name] = []
        size_bytes = 0
        for index, ticket in enumerate(tickets, first_index):
            older = self._tickets.pop(index, None)
            if older is not None:
                replaced += chain_of(older)
            request = ticket.request
            ticket.place, ticket.key, ticket.term = Place.PROPOSED, index, self._term
            self._tickets[index] = ticket
            size_bytes += len(request.body)
            if request.session and not request.flags & _SESSION:
                name = request.session, request.sequence
                self._names[name] = index
                names.append(name)
        self.uncommitted_bytes += size_bytes
        self._runs.append(
            Run(first_index + len(tickets) - 1, tickets[0].taken_ms, size_bytes, names)
        )
        return replaced

    def take(self, index: int) -> Ticket | None:
        """Return the first of those that wait for an entry, now that something is applied there.

        The others follow it. They are not in the table any more.
        """
        return self._tickets.pop(index, None)

    def on_applied(self, applied_index: int) -> None:
        """Forget the names and the bytes of what is applied."""
        runs = self._runs
        while runs and runs[0].last_index <= applied_index:
            run = runs.popleft()
            self.uncommitted_bytes -= run.size_bytes
            for name in run.names:
                self._names.pop(name, None)

    def remove(self, ticket: Ticket) -> None:
        """Take out a ticket that waits no more."""
        first = self._tickets.get(ticket.key)
        if first is ticket:
            if ticket.following is None:
                del self._tickets[ticket.key]
            else:
                self._tickets[ticket.key] = ticket.following
            return
        while first is not None:
            if first.following is ticket:
                first.following = ticket.following
                return
            first = first.following


def command_of(request: Request, terms: Terms) -> Command:
    """Return a write as the log holds it; a session is opened under the leader's terms."""
    flags, body = request.flags, request.body
    if not flags & (_BARRIER | _SESSION):
        named = request.session, request.sequence, request.ack_below
        return Command(body, EntryType.COMMAND, *named)
    if flags & _BARRIER:
        return Command(body, EntryType.BARRIER)
    if decode_op(body)[0] is SessionOp.OPEN:
        return Command(encode_open(terms), EntryType.SESSION)
    return Command(body, EntryType.SESSION, request.session, request.sequence)


def chain_of(ticket: Ticket | None) -> Iterator[Ticket]:
    """Yield a ticket and those that follow it; each may be taken out meanwhile."""
    while ticket is not None:
        following = ticket.following
        yield ticket
        ticket = following
