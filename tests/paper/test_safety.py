"""The two restrictions that make Raft safe (Raft §5.4.1, §5.4.2)."""

from __future__ import annotations

import pytest

from zraft.core.messages import AppendEntries
from zraft.core.model import Role, Settings
from zraft.testing.core_cluster import CoreCluster
from zraft.testing.solo import Solo


@pytest.mark.parametrize("pre_vote", [False, True])
@pytest.mark.parametrize(
    ("mine", "last", "granted"),
    [
        ([], (0, 0), True),
        ([1], (0, 0), False),
        ([1], (1, 1), True),
        ([1], (2, 1), True),
        ([1, 1], (1, 1), False),
        ([1], (1, 2), True),
        ([1, 1, 1], (1, 2), True),  # a later term wins, however short the log is
        ([2], (5, 1), False),  # an earlier term loses, however long the log is
        ([1, 2], (2, 2), True),
        ([1, 2], (3, 1), False),
    ],
)
def test_a_vote_goes_to_a_log_that_is_at_least_as_up_to_date(
    mine: list[int], last: tuple[int, int], granted: bool, pre_vote: bool
) -> None:
    """§5.4.1: last terms are compared first, then the lengths (pitfalls 12); so for pre-votes."""
    solo = Solo(terms=mine, term=3)
    assert solo.ask_vote(2, vote_term=4, last=last, pre_vote=pre_vote).granted is granted


def test_only_entries_of_the_current_term_are_committed_by_counting() -> None:
    """§5.4.2: old entries on a majority are not committed; the first own one takes them along."""
    solo = Solo(5, terms=[1, 2], term=3)
    solo.become_leader()
    solo.ack(2, 2)
    solo.ack(3, 2)
    solo.ack(4, 2)
    assert solo.raft.commit_index == 0
    solo.ack(2, 3)
    assert solo.raft.commit_index == 0
    solo.ack(3, 3)
    assert (solo.raft.commit_index, len(solo.applied)) == (3, 3)


def test_a_leader_opens_its_term_with_an_entry_of_its_own() -> None:
    """§8, thesis §6.4: a no-op, or older entries might never be committed (pitfalls 19)."""
    cluster = CoreCluster(3)
    cluster.write_disk(1, [1, 1], term=1)
    cluster.write_disk(2, [1, 1], term=1)
    cluster.elect(1)
    assert cluster.terms(1) == [1, 1, 2]
    assert [cluster.raft(m).commit_index for m in (1, 2, 3)] == [3, 3, 3]


def test_figure_8_an_old_entry_on_a_majority_can_still_be_overwritten() -> None:
    """§5.4.2, Figure 8 (a)–(d): S1's entry of term 2 is on three servers, and S5 replaces it.

    A leader that counted it as committed in (c) would have lost a committed entry in (d).
    """
    cluster = figure_8_at_c()
    assert [cluster.terms(m) for m in (1, 2, 3, 4)] == [[1, 2, 4], [1, 2], [1, 2], [1]]
    assert cluster.raft(1).commit_index == 0
    cluster.crash(1)
    s5_stands_in_term_5(cluster)
    assert cluster.raft(5).role is Role.LEADER
    assert [cluster.terms(m) for m in (2, 3, 4, 5)] == [[1, 3, 5]] * 4


def test_figure_8_an_entry_of_the_current_term_protects_the_older_one() -> None:
    """§5.4.2, Figure 8 (e): once S1's entry of term 4 is on a majority, S5 cannot win."""
    cluster = figure_8_at_c()
    cluster.beat(1)
    cluster.stabilise([1, 2, 3])
    assert cluster.raft(1).commit_index == 3
    cluster.crash(1)
    s5_stands_in_term_5(cluster)
    assert cluster.raft(5).role is not Role.LEADER
    cluster.run(1_500)
    assert cluster.leader() in (2, 3)
    assert cluster.terms(5)[:3] == [1, 2, 4]


def figure_8_at_c() -> CoreCluster:
    """Return the five servers at (c): S1 leads term 4, S3 has its entry of term 2, S5 is down.

    One entry a message, so that the entry of term 2 can travel without that of term 4.
    """
    cluster = CoreCluster(5, settings=Settings(max_batch_bytes=1))
    cluster.write_disk(1, [1, 2], term=3)
    cluster.write_disk(2, [1, 2], term=2, voted_for=1)
    cluster.write_disk(3, [1], term=3, voted_for=5)
    cluster.write_disk(4, [1], term=3, voted_for=5)
    cluster.write_disk(5, [1, 3], term=3, voted_for=5)
    cluster.crash(5)
    cluster.campaign(1)
    while cluster.terms(3) != [1, 2]:
        for member_id in (1, 2, 3, 4):
            cluster.flush(member_id)
        cluster.take(lambda m: isinstance(m, AppendEntries) and m.dst != 3)
        cluster.deliver()
    cluster.flush(3)
    cluster.deliver()
    assert (cluster.leader(), cluster.raft(1).term) == (1, 4)
    return cluster


def s5_stands_in_term_5(cluster: CoreCluster) -> None:
    """Let S5 come back and ask for votes: in term 4, which is taken, and then in term 5."""
    cluster.in_flight.clear()
    cluster.restart(5)
    cluster.now_ms += 300
    for _ in range(2):
        cluster.campaign(5)
        cluster.stabilise()
    assert cluster.raft(5).term == 5
