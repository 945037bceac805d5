"""Majorities, against counting by hand (pitfalls 30)."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from zraft.core.model import quorum_size
from zraft.core.quorum import VoteResult, reached_by_quorum, vote_result

values = st.lists(st.integers(0, 9), min_size=1, max_size=9)


@given(values)
def test_a_quorum_reached_the_largest_number_that_a_majority_reached(numbers: list[int]) -> None:
    """The largest number n so that more than half of all values are n or more."""
    reached = max(n for n in numbers if sum(v >= n for v in numbers) > len(numbers) / 2)
    assert reached_by_quorum(numbers, len(numbers)) == reached


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_the_values_does_not_matter(numbers: list[int], chance: object) -> None:
    """A scan over unsorted progress commits too much."""
    shuffled = sorted(numbers, reverse=True)
    assert reached_by_quorum(numbers, len(numbers)) == reached_by_quorum(shuffled, len(numbers))


@given(st.integers(1, 9))
def test_two_quorums_always_share_a_member(members: int) -> None:
    """What all of Raft rests on; and one member less would not do."""
    ids = range(members)
    size = quorum_size(ids)
    assert all(set(a) & set(b) for a in combinations(ids, size) for b in combinations(ids, size))
    smaller = size - 1
    assert smaller * 2 <= members


@given(
    st.integers(1, 7),
    st.dictionaries(st.integers(1, 9), st.booleans(), max_size=9),
)
def test_votes_decide_by_majorities_of_the_voters(members: int, votes: dict[int, bool]) -> None:
    """Won: a majority said yes. Lost: that cannot come any more. Strangers are ignored."""
    voters = range(1, members + 1)
    yes = sum(votes.get(voter) is True for voter in voters)
    no = sum(votes.get(voter) is False for voter in voters)
    open_ = members - yes - no
    result = vote_result(votes, voters)
    assert (result is VoteResult.WON) is (yes > members / 2)
    assert (result is VoteResult.LOST) is (yes + open_ <= members / 2)
