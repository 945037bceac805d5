"""The Raft log in memory: terms and payloads in two columns, and how far they are durable.

       1        persisted_index         last_index
       |---------------|---------------------|
        durable         to be in the next Ready (`unsaved`)

Terms never fall along a log (Raft §5.3), so the first and the last entry of a term are found by
bisection: fast back-up costs the logarithm of the log's length. Index 0 has term 0.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate

from zraft.core.model import Entries, EntryId

MAX_SLICE_ENTRIES = 4096
"""Upper bound of one slice, in entries, whatever its bytes."""


class RaftLog:
    """The log of one node. Indices count from 1; `terms[i - 1]` belongs to index i."""

    __slots__ = ("_payloads", "_terms", "persisted_index", "saved_index")

    def __init__(self, entries: Entries) -> None:
        """Start with what is on disk; all of it counts as persisted."""
        assert entries.first_index == 1, entries.first_index
        assert len(entries.terms) == len(entries.payloads)
        self._terms = list(entries.terms)  # its own: it grows, and Entries are never mutated
        self._payloads = list(entries.payloads)
        self.persisted_index = entries.last_index
        """Everything at and below is durable here."""
        self.saved_index = entries.last_index
        """Everything at and below was handed out in a Ready; ≥ persisted_index."""

    @property
    def last_index(self) -> int:
        """Index of the last entry, 0 when the log is empty."""
        return len(self._terms)

    @property
    def last_term(self) -> int:
        """Term of the last entry, 0 when the log is empty."""
        return self._terms[-1] if self._terms else 0

    @property
    def last_id(self) -> EntryId:
        """Index and term of the last entry."""
        return EntryId(self.last_index, self.last_term)

    @property
    def last_payload(self) -> bytes | None:
        """The last entry's payload, None when the log is empty."""
        return self._payloads[-1] if self._payloads else None

    def term(self, index: int) -> int | None:
        """Return the term of the entry at `index`; 0 for index 0, None past the end."""
        if index == 0:
            return 0
        if 1 <= index <= len(self._terms):
            return self._terms[index - 1]
        return None

    def payload(self, index: int) -> bytes:
        """Return the payload of an entry that exists."""
        assert 1 <= index <= len(self._payloads), index
        return self._payloads[index - 1]

    def is_up_to_date(self, last_log_index: int, last_log_term: int) -> bool:
        """Return whether a log that ends so is at least as up to date as this one (Raft §5.4.1).

        The later last term wins; with equal terms the longer log does.
        """
        return (last_log_term, last_log_index) >= (self.last_term, self.last_index)

    def first_index_of_term(self, index: int) -> int:
        """Return the first index that has the same term as the entry at `index`."""
        return bisect_left(self._terms, self._terms[index - 1]) + 1

    def last_index_of_term(self, term: int) -> int | None:
        """Return the last index with this term, None if there is no such entry."""
        index = bisect_right(self._terms, term)
        return index if index and self._terms[index - 1] == term else None

    def find_conflict(self, entries: Entries) -> int | None:
        """Return the first index at which `entries` differ from this log or go beyond it.

        None when the log holds all of them already. Only the terms have to be compared: index and
        term name an entry (Log Matching).
        """
        start = entries.first_index - 1
        mine = self._terms[start : start + len(entries.terms)]
        if mine == entries.terms:
            return None
        for position, term in enumerate(mine):
            if term != entries.terms[position]:
                return entries.first_index + position
        return entries.first_index + len(mine)

    def append(self, terms: list[int], payloads: list[bytes]) -> None:
        """Add entries at the end."""
        assert len(terms) == len(payloads)
        self._terms.extend(terms)
        self._payloads.extend(payloads)

    def truncate_from(self, index: int) -> None:
        """Remove the entry at `index` and all after it."""
        assert 1 <= index <= self.last_index, (index, self.last_index)
        del self._terms[index - 1 :]
        del self._payloads[index - 1 :]
        self.persisted_index = min(self.persisted_index, index - 1)
        self.saved_index = min(self.saved_index, index - 1)

    def slice(self, first_index: int, last_index: int, max_bytes: int, max_entries: int) -> Entries:
        """Return entries from `first_index` on, up to `last_index`, within the bounds.

        At least one entry is returned if there is one, however big it is; `max_entries` is capped
        by MAX_SLICE_ENTRIES.
        """
        count = min(last_index - first_index + 1, max_entries, MAX_SLICE_ENTRIES)
        if count <= 0:
            return Entries(first_index, [], [])
        start = first_index - 1
        payloads = self._payloads[start : start + count]
        if sum(map(len, payloads)) > max_bytes:
            fits = bisect_right(list(accumulate(map(len, payloads))), max_bytes)
            payloads = payloads[: max(1, fits)]
        return Entries(first_index, self._terms[start : start + len(payloads)], payloads)

    def take_unsaved(self) -> Entries | None:
        """Return what was not yet handed out to be persisted, and count it as handed out."""
        if self.saved_index == self.last_index:
            return None
        start = self.saved_index
        entries = Entries(start + 1, self._terms[start:], self._payloads[start:])
        self.saved_index = self.last_index
        return entries

    def terms_never_fall(self) -> bool:
        """Return whether the terms are sorted: the invariant that bisection rests on."""
        return all(a <= b for a, b in zip(self._terms, self._terms[1:], strict=False))
