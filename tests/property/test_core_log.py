"""RaftLog does what a plain list of (term, payload) does, whatever is done to it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zraft.core.log import MAX_SLICE_ENTRIES, RaftLog
from zraft.core.model import Entries, EntryId

small = st.integers(min_value=0, max_value=12)
sorted_terms = st.lists(st.integers(min_value=1, max_value=5), max_size=12).map(sorted)


def payload(index: int, term: int) -> bytes:
    """Return bytes of a length that depends on the entry."""
    return b"x" * (index * 7 % 23) + f"{index}/{term}".encode()


def entries(first_index: int, terms: list[int]) -> Entries:
    """Return a run of entries."""
    return Entries(first_index, terms, [payload(i, t) for i, t in enumerate(terms, first_index)])


class LogMachine(RuleBasedStateMachine):
    """The log beside a list of rows; `saved` and `persisted` count rows."""

    def __init__(self) -> None:
        super().__init__()
        self.log = RaftLog(Entries(1, [], []))
        self.rows: list[tuple[int, bytes]] = []
        self.cut = 0  # rows that are compacted away: only the last one's term is known
        self.saved = 0
        self.persisted = 0

    @rule(steps=st.lists(st.integers(min_value=0, max_value=2), min_size=1, max_size=5))
    def append(self, steps: list[int]) -> None:
        """Append entries whose terms rise by the steps."""
        terms = []
        term = max(1, self.rows[-1][0] if self.rows else 1)
        for step in steps:
            term += step
            terms.append(term)
        run = entries(len(self.rows) + 1, terms)
        self.log.append(run.terms, run.payloads)
        self.rows += zip(run.terms, run.payloads, strict=True)

    @precondition(lambda self: self.persisted > self.cut)
    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        """A snapshot covers everything up to an index, which is cut away."""
        self.cut = data.draw(st.integers(self.cut, self.persisted))
        self.log.compact(self.cut)

    @rule(steps=st.integers(1, 4), rise=st.integers(0, 2))
    def restart(self, steps: int, rise: int) -> None:
        """A snapshot that ends beyond the log takes its place."""
        index = len(self.rows) + steps
        term = max(1, self.rows[-1][0] if self.rows else 1) + rise
        self.rows += [(term, b"")] * steps
        self.log.restart_after(EntryId(index, term))
        self.cut = self.saved = self.persisted = index

    @precondition(lambda self: len(self.rows) > self.cut)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        """Remove the entry at an index and all after it."""
        index = data.draw(st.integers(self.cut + 1, len(self.rows)))
        self.log.truncate_from(index)
        del self.rows[index - 1 :]
        self.saved = min(self.saved, index - 1)
        self.persisted = min(self.persisted, index - 1)

    @rule()
    def hand_out(self) -> None:
        """What was not handed out yet is handed out, once."""
        unsaved = self.log.take_unsaved()
        rows = self.rows[self.saved :]
        if not rows:
            assert unsaved is None
        else:
            assert unsaved is not None
            assert unsaved.first_index == self.saved + 1
            assert list(zip(unsaved.terms, unsaved.payloads, strict=True)) == rows
        self.saved = len(self.rows)

    @rule()
    def persist(self) -> None:
        """What was handed out becomes durable."""
        self.log.persisted_index = self.saved
        self.persisted = self.saved

    @invariant()
    def is_the_list(self) -> None:
        """Every entry, and what stands before the first and after the last."""
        last, first = len(self.rows), self.cut + 1
        assert (self.log.first_index, self.log.last_index) == (first, last)
        assert self.log.last_id == (last, self.rows[-1][0] if self.rows else 0)
        kept = self.rows[self.cut :]
        assert [self.log.term(i) for i in range(first, last + 1)] == [t for t, _ in kept]
        assert [self.log.payload(i) for i in range(first, last + 1)] == [p for _, p in kept]
        assert self.log.term(self.cut) == (self.rows[self.cut - 1][0] if self.cut else 0)
        assert [self.log.term(i) for i in range(-1, self.cut)] == [None] * (self.cut + 1)
        assert self.log.term(last + 1) is None
        assert self.log.last_payload == (kept[-1][1] if kept else None)
        assert (self.log.saved_index, self.log.persisted_index) == (self.saved, self.persisted)
        assert self.log.terms_never_fall()

    @invariant()
    def finds_the_ends_of_terms(self) -> None:
        """First and last index of a term, by bisection as by looking."""
        terms = [term for term, _ in self.rows[self.cut :]]
        for index, term in enumerate(terms, self.cut + 1):
            assert self.log.first_index_of_term(index) == terms.index(term) + self.cut + 1
        if self.cut:
            terms.insert(0, self.rows[self.cut - 1][0])  # its place and term are known
        before = len(self.rows) - len(terms)
        for term in range(1, 20):
            last = before + len(terms) - terms[::-1].index(term) if term in terms else None
            assert self.log.last_index_of_term(term) == last

    @invariant()
    def finds_how_much_fits(self) -> None:
        """The longest run at the end within both bounds."""
        sizes = [len(payload) for _, payload in self.rows]
        last = len(self.rows)
        for max_entries, max_bytes in ((0, 99), (2, 99), (99, 0), (99, 40), (3, 25)):
            first = self.log.index_within(last, max_entries, max_bytes)
            assert self.cut + 1 <= first <= last + 1
            assert last - first + 1 <= max_entries
            assert sum(sizes[first - 1 :]) <= max_bytes or first == last + 1
            more = first - 2
            if more >= self.cut:
                assert last - more > max_entries or sum(sizes[more:]) > max_bytes
        if last > self.cut:
            assert self.log.size_bytes(self.cut + 1, last) == sum(sizes[self.cut :])

    @invariant()
    def finds_the_first_difference(self) -> None:
        """What lies below the cut is taken for equal; above, the first other term is found."""
        terms = [term for term, _ in self.rows]
        last = len(terms)
        assert self.log.find_conflict(entries(1, terms)) is None
        assert self.log.find_conflict(entries(1, [*terms, 99])) == last + 1
        if last > self.cut:
            other = [*terms[: self.cut], terms[self.cut] + 9]
            assert self.log.find_conflict(entries(1, other)) == self.cut + 1
        if self.cut > 1:
            assert self.log.find_conflict(entries(1, [99])) is None


TestLogMachine = LogMachine.TestCase


@given(sorted_terms, sorted_terms, small)
def test_a_conflict_is_the_first_index_that_differs_or_is_new(
    mine: list[int], other: list[int], skipped: int
) -> None:
    """§5.3, rule 3, by comparing entry after entry."""
    log = RaftLog(entries(1, list(mine)))
    first_index = min(skipped, len(mine)) + 1
    expected = None
    for index, term in enumerate(other, first_index):
        if index > len(mine) or mine[index - 1] != term:
            expected = index
            break
    assert log.find_conflict(entries(first_index, other)) == expected


@given(
    sorted_terms,
    st.integers(1, 14),
    st.integers(0, 12),
    st.integers(0, 120),
    st.integers(0, 14),
)
def test_a_slice_is_a_prefix_of_what_was_asked_for_within_the_bounds(
    terms: list[int], first_index: int, last_index: int, max_bytes: int, max_entries: int
) -> None:
    """As many entries as the bounds allow; one at least, if there is one."""
    whole = entries(1, list(terms))
    log = RaftLog(entries(1, list(terms)))
    last_index = min(last_index, len(terms))
    part = log.slice(first_index, last_index, max_bytes, max_entries)
    assert part.first_index == first_index
    count = len(part.terms)
    asked = max(0, last_index - first_index + 1)
    assert part.terms == whole.terms[first_index - 1 : first_index - 1 + count]
    assert part.payloads == whole.payloads[first_index - 1 : first_index - 1 + count]
    assert count <= min(asked, max_entries)
    sizes = [len(p) for p in whole.payloads[first_index - 1 : last_index]][:max_entries]
    if sizes:
        assert count >= 1
        assert count == 1 or sum(sizes[:count]) <= max_bytes
        assert count == len(sizes) or sum(sizes[: count + 1]) > max_bytes


def test_a_slice_never_has_more_than_its_upper_bound_of_entries() -> None:
    """Small entries by the million do not leave in one message."""
    log = RaftLog(Entries(1, [1] * 10_000, [b"x"] * 10_000))
    part = log.slice(1, 10_000, 1 << 30, 10_000)
    assert (part.first_index, part.last_index) == (1, MAX_SLICE_ENTRIES)


@given(sorted_terms, small, small)
def test_a_log_is_up_to_date_by_last_term_then_by_length(
    terms: list[int], last_index: int, last_term: int
) -> None:
    """§5.4.1, word by word (pitfalls 12)."""
    log = RaftLog(entries(1, list(terms)))
    mine = terms[-1] if terms else 0
    longer = last_term == mine and last_index >= len(terms)
    assert log.is_up_to_date(last_index, last_term) is (last_term > mine or longer)


def test_a_log_owns_its_columns() -> None:
    """What the disk handed over is not changed behind its back: Entries are never mutated."""
    recovered = entries(1, [1, 1])
    log = RaftLog(recovered)
    log.append([2], [b"x"])
    log.truncate_from(1)
    assert (recovered.terms, len(recovered.payloads)) == ([1, 1], 2)
