"""The Raft log in memory: terms and payloads in two columns, and how far they are durable.

    compacted | first_index      persisted_index         last_index
    ----------|-----------------------|---------------------|
     snapshot   durable                to be in the next Ready (`unsaved`)

Terms never fall along a log (Raft §5.3), so the first and the last entry of a term are found by
bisection: fast back-up costs the logarithm of the log's length.

What a snapshot covers may be cut away at the front (Raft §7). `compacted` names the entry before
the first one that is kept: of it the term is known and nothing else, and it starts as (0, 0). What
lies below it has *no* term here, not term 0: an index whose term is unknown matches nothing (etcd
76f1249 let it match, and committed what nobody had checked).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate

from zraft.core.model import Entries, EntryId

MAX_SLICE_ENTRIES = 4096
"""Upper bound of one slice, in entries, whatever its bytes."""
NOTHING = EntryId(0, 0)
"""What stands before the first entry that there ever was."""


class RaftLog:
    """The log of one node. Indices count from 1; `_terms[0]` belongs to `first_index`."""

    __slots__ = (
        "_payloads",
        "_terms",
        "compacted",
        "last_index",
        "last_term",
        "persisted_index",
        "saved_index",
    )

    def __init__(self, entries: Entries, compacted: EntryId = NOTHING) -> None:
        """Start with what is on disk; all of it counts as persisted."""
        assert entries.first_index == compacted.index + 1, (entries.first_index, compacted)
        assert len(entries.terms) == len(entries.payloads)
        self.compacted = compacted
        """The entry before the first one that is kept. Never moves back."""
        self._terms = list(entries.terms)  # its own: it grows, and Entries are never mutated
        self._payloads = list(entries.payloads)
        self.last_index = entries.last_index
        """Index of the last entry; of the compacted one when none is kept, 0 when none ever was."""
        self.last_term = entries.terms[-1] if entries.terms else compacted.term
        """Term of the entry at `last_index`, 0 when there never was one."""
        self.persisted_index = entries.last_index
        """Everything at and below is durable here."""
        self.saved_index = entries.last_index
        """Everything at and below was handed out in a Ready; ≥ persisted_index."""

    @property
    def first_index(self) -> int:
        """Index of the first entry that is kept, or that the first one would have."""
        return self.compacted.index + 1

    @property
    def last_id(self) -> EntryId:
        """Index and term of the last entry."""
        return EntryId(self.last_index, self.last_term)

    @property
    def last_payload(self) -> bytes | None:
        """The last entry's payload, None when no entry is kept."""
        return self._payloads[-1] if self._payloads else None

    def term(self, index: int) -> int | None:
        """Return the term of the entry at `index`; None past the end and below `compacted`.

        The compacted entry's own term is known; that of index 0 is 0 until something is compacted.
        """
        compacted_index, compacted_term = self.compacted
        if compacted_index < index <= self.last_index:
            return self._terms[index - compacted_index - 1]
        return compacted_term if index == compacted_index else None

    def payload(self, index: int) -> bytes:
        """Return the payload of an entry that is kept."""
        assert self.first_index <= index <= self.last_index, (index, self.compacted)
        return self._payloads[index - self.first_index]

    def is_up_to_date(self, last_log_index: int, last_log_term: int) -> bool:
        """Return whether a log that ends so is at least as up to date as this one (Raft §5.4.1).

        The later last term wins; with equal terms the longer log does.
        """
        return (last_log_term, last_log_index) >= (self.last_term, self.last_index)

    def first_index_of_term(self, index: int) -> int:
        """Return the first kept index that has the same term as the kept entry at `index`."""
        position = index - self.first_index
        assert position >= 0, (index, self.compacted)
        return bisect_left(self._terms, self._terms[position]) + self.first_index

    def last_index_of_term(self, term: int) -> int | None:
        """Return the last index known to have this term, None if there is no such entry."""
        position = bisect_right(self._terms, term)
        index = self.compacted.index + position
        return index if index and self.term(index) == term else None

    def find_conflict(self, entries: Entries) -> int | None:
        """Return the first index at which `entries` differ from this log or go beyond it.

        None when the log holds all of them already. Only the terms have to be compared: index and
        term name an entry (Log Matching). Those at and below `compacted` are in a snapshot, and
        what is committed agrees.
        """
        covered = max(0, self.first_index - entries.first_index)
        theirs = entries.terms[covered:] if covered else entries.terms
        first_index = entries.first_index + covered
        start = first_index - self.first_index
        mine = self._terms[start : start + len(theirs)]
        if mine == theirs:
            return None
        for position, term in enumerate(mine):
            if term != theirs[position]:
                return first_index + position
        return first_index + len(mine)

    def append(self, terms: list[int], payloads: list[bytes]) -> None:
        """Add entries at the end."""
        assert len(terms) == len(payloads)
        self._terms.extend(terms)
        self._payloads.extend(payloads)
        self._find_end()

    def truncate_from(self, index: int) -> None:
        """Remove the entry at `index` and all after it."""
        assert self.first_index <= index <= self.last_index, (index, self.compacted)
        position = index - self.first_index
        del self._terms[position:]
        del self._payloads[position:]
        self._find_end()
        self.persisted_index = min(self.persisted_index, index - 1)
        self.saved_index = min(self.saved_index, index - 1)

    def _find_end(self) -> None:
        """Note where the log ends now: that is asked far more often than it changes."""
        self.last_index = self.compacted.index + len(self._terms)
        self.last_term = self._terms[-1] if self._terms else self.compacted.term

    def slice(self, first_index: int, last_index: int, max_bytes: int, max_entries: int) -> Entries:
        """Return entries from `first_index` on, up to `last_index`, within the bounds.

        At least one entry is returned if there is one, however big it is; `max_entries` is capped
        by MAX_SLICE_ENTRIES.
        """
        count = min(last_index - first_index + 1, max_entries, MAX_SLICE_ENTRIES)
        if count <= 0:
            return Entries(first_index, [], [])
        start = first_index - self.first_index
        assert start >= 0, (first_index, self.compacted)
        payloads = self._payloads[start : start + count]
        if sum(map(len, payloads)) > max_bytes:
            fits = bisect_right(list(accumulate(map(len, payloads))), max_bytes)
            payloads = payloads[: max(1, fits)]
        return Entries(first_index, self._terms[start : start + len(payloads)], payloads)

    def take_unsaved(self) -> Entries | None:
        """Return what was not yet handed out to be persisted, and count it as handed out."""
        last_index = self.last_index
        if self.saved_index == last_index:
            return None
        start = self.saved_index - self.compacted.index
        entries = Entries(self.saved_index + 1, self._terms[start:], self._payloads[start:])
        self.saved_index = last_index
        return entries

    # A snapshot takes the place of the front

    def compact(self, index: int) -> None:
        """Cut everything up to and including `index` away; what follows is kept."""
        term = self.term(index)
        assert term is not None, (index, self.compacted, self.last_index)
        assert index <= self.persisted_index, "only what is durable is compacted"
        count = index - self.compacted.index
        del self._terms[:count]
        del self._payloads[:count]
        self.compacted = EntryId(index, term)

    def restart_after(self, last_included: EntryId) -> None:
        """Drop all entries: a snapshot that ends with `last_included` takes their place."""
        assert last_included.index > self.compacted.index, (last_included, self.compacted)
        self._terms, self._payloads = [], []
        self.compacted = last_included
        self.saved_index = self.persisted_index = last_included.index
        self._find_end()

    def size_bytes(self, first_index: int, last_index: int) -> int:
        """Return the bytes of all payloads from `first_index` to `last_index`, both kept."""
        start, stop = first_index - self.first_index, last_index - self.first_index + 1
        assert start >= 0, (first_index, self.compacted)
        return sum(map(len, self._payloads[start:stop]))

    def index_within(self, last_index: int, max_entries: int, max_bytes: int) -> int:
        """Return the first index of the longest run that ends at `last_index` within both bounds.

        `last_index + 1` when not even one entry fits.
        """
        first_index = max(self.first_index, last_index - max_entries + 1)
        start, stop = first_index - self.first_index, last_index - self.first_index + 1
        sizes = [len(payload) for payload in self._payloads[start:stop]]
        left_bytes = sum(sizes)
        for size_bytes in sizes:
            if left_bytes <= max_bytes:
                break
            left_bytes -= size_bytes
            first_index += 1
        return first_index

    def terms_never_fall(self) -> bool:
        """Return whether the terms are sorted: the invariant that bisection rests on."""
        terms = [self.compacted.term, *self._terms]
        return terms == sorted(terms)  # one look at each, where they are sorted
