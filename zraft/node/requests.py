"""The requests that wait in a node: who asked, until when, and for what they wait.

A ticket is in exactly one place at a time: parked (no leader to give it to), forwarded (the leader
answers), proposed (in the log, undecided), or reading (waits for a read index). The table counts
them and finds those whose deadline has passed; the server decides what each is told, because only
the place says whether the request may have been applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from zraft.api import Flag, Request
from zraft.core.model import NOBODY, MemberId
from zraft.core.state import FAR_MS

BUCKET_MS = 16
"""Deadlines are looked at in buckets of this width: an answer to nobody may be that late."""

_FORWARDED = int(Flag.FORWARDED)  # plain numbers: each operation on a flag makes an object


class Place(Enum):
    """Where a ticket waits."""

    PARKED = "parked"
    FORWARDED = "forwarded"
    PROPOSED = "proposed"
    READING = "reading"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Ticket:
    """One waiting request. `key` finds it in its place; `term` and `leader` belong to the place."""

    client: bytes
    request: Request
    deadline_ms: int
    place: Place = Place.PARKED
    key: int = 0  # in the table of its place: the index of its entry, or a number of its own
    term: int = 0  # of its entry, when proposed
    leader: MemberId = NOBODY  # who has it, when forwarded
    parked_ms: int = 0  # when it was parked first
    taken_ms: int = 0
    following: Ticket | None = None  # waits for the same entry

    @property
    def was_forwarded(self) -> bool:
        """Whether another node passed it on to this one: once only."""
        return bool(self.request.flags & _FORWARDED)

    def passed_on(self, request_id: int, now_ms: int) -> Request:
        """Return the request as it goes to the leader, whose answer names `request_id`."""
        return self.request._replace(
            request_id=request_id,
            flags=self.request.flags | _FORWARDED,
            deadline_ms=max(0, self.deadline_ms - now_ms),
        )


class Deadlines:
    """Tickets by deadline, in buckets: expiry is found without a search.

    A ticket that was answered is dropped at once. Kept until its deadline, which may be minutes,
    it would hold its request's bytes: memory would grow with the rate of requests.
    """

    __slots__ = ("_buckets", "next_ms")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[Ticket, None]] = {}
        self.next_ms = FAR_MS
        """When `expired` should be called next."""

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def add(self, ticket: Ticket) -> None:
        """Watch a ticket."""
        bucket = ticket.deadline_ms // BUCKET_MS + 1
        self._buckets.setdefault(bucket, {})[ticket] = None
        self.next_ms = min(self.next_ms, bucket * BUCKET_MS)

    def remove(self, ticket: Ticket) -> None:
        """Watch it no more, if it was watched."""
        bucket = ticket.deadline_ms // BUCKET_MS + 1
        tickets = self._buckets.get(bucket)
        if tickets is not None:
            tickets.pop(ticket, None)
            if not tickets:
                del self._buckets[bucket]

    def expired(self, now_ms: int) -> Iterable[Ticket]:
        """Return the tickets whose deadline passed and that still wait."""
        return self._take_expired(now_ms) if self.next_ms <= now_ms else ()  # as in most turns

    def _take_expired(self, now_ms: int) -> Iterator[Ticket]:
        while self.next_ms <= now_ms:
            due = self._buckets.pop(self.next_ms // BUCKET_MS, {})
            self.next_ms = min(self._buckets) * BUCKET_MS if self._buckets else FAR_MS
            for ticket in due:
                if ticket.place is not Place.DONE:
                    yield ticket
