"""What a follower does with AppendEntries (Raft §5.3, Figure 2 "Receiver implementation")."""

from __future__ import annotations

import pytest

from zraft.core.messages import AppendEntries
from zraft.core.model import Entries
from zraft.testing.core_cluster import CoreCluster
from zraft.testing.solo import Solo


@pytest.mark.parametrize(
    ("prev", "conflict"),
    [
        ((5, 3), (4, 0)),  # past the end: look right after my last entry
        ((9, 3), (4, 0)),
        ((3, 3), (2, 2)),  # there, but of term 2, which starts at 2
        ((3, 1), (2, 2)),
        ((2, 1), (2, 2)),
        ((1, 2), (1, 1)),
    ],
)
def test_a_follower_refuses_an_append_that_does_not_fit(
    prev: tuple[int, int], conflict: tuple[int, int]
) -> None:
    """§5.3, rule 2: no entry at prevLogIndex with prevLogTerm: refuse, and say where to look."""
    solo = Solo(terms=[1, 2, 2], term=3)
    answer = solo.append(2, term=3, prev=prev, terms=[3], commit=3)
    assert (answer.success, answer.match_index) == (False, 0)
    assert (answer.conflict_index, answer.conflict_term) == conflict
    assert (solo.terms, solo.raft.commit_index) == ([1, 2, 2], 0)


@pytest.mark.parametrize("prev", [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_a_follower_accepts_an_append_that_fits(prev: tuple[int, int]) -> None:
    """§5.3: where index and term of the previous entry agree, also before the first entry."""
    answer = Solo(terms=[1, 2, 2], term=3).append(2, term=3, prev=prev)
    assert (answer.success, answer.match_index) == (True, prev[0])


@pytest.mark.parametrize(
    ("prev", "sent", "expected"),
    [
        ((2, 2), [3], [1, 2, 3]),
        ((1, 1), [3, 4], [1, 3, 4]),
        ((0, 0), [1], [1, 2]),
        ((0, 0), [3], [3]),
        ((2, 2), [], [1, 2]),
        ((1, 1), [2, 3, 3], [1, 2, 3, 3]),
    ],
)
def test_entries_are_removed_only_from_the_first_that_conflicts(
    prev: tuple[int, int], sent: list[int], expected: list[int]
) -> None:
    """§5.3, rules 3 and 4: delete from the first conflict on, add what is new (pitfalls 18)."""
    solo = Solo(terms=[1, 2], term=4)
    assert solo.append(2, term=4, prev=prev, terms=sent).success
    assert solo.terms == expected
    assert solo.disk.terms == expected


@pytest.mark.parametrize(
    ("prev", "sent"), [((1, 1), []), ((0, 0), [1, 1]), ((2, 1), [1, 1]), ((0, 0), [])]
)
def test_an_old_append_takes_nothing_away(prev: tuple[int, int], sent: list[int]) -> None:
    """§5.3: a heartbeat or an overlapping, reordered append never shortens a log (pitfalls 18)."""
    solo = Solo(terms=[1, 1, 1, 1, 1, 1])
    written = len(solo.readys)
    assert solo.append(2, term=1, prev=prev, terms=sent).success
    assert solo.terms == [1] * 6
    assert all(ready.entries is None for ready in solo.readys[written:])


def test_a_committed_entry_is_never_removed() -> None:
    """§5.4, Leader Completeness: who contradicts a commit stops the node (pitfalls 60)."""
    solo = Solo(terms=[1, 1])
    solo.append(2, term=1, prev=(2, 1), commit=2)
    assert solo.raft.commit_index == 2
    with pytest.raises(AssertionError, match="committed entry"):
        solo.append(3, term=2, prev=(1, 1), terms=[2])


@pytest.mark.parametrize(
    ("prev", "sent", "acknowledged"),
    [((1, 1), [], 1), ((1, 1), [1], 2), ((0, 0), [1, 1], 2), ((3, 1), [1], 4)],
)
def test_a_follower_acknowledges_what_this_message_matched(
    prev: tuple[int, int], sent: list[int], acknowledged: int
) -> None:
    """§5.3: never its own last index: what lies beyond was not compared (pitfalls 23)."""
    solo = Solo(terms=[1, 1, 1, 1, 1, 1], term=3)
    assert solo.append(2, term=3, prev=prev, terms=sent).match_index == acknowledged


@pytest.mark.parametrize(
    ("prev", "sent", "leader_commit", "committed"),
    [
        ((3, 1), [], 2, 2),
        ((3, 1), [], 6, 3),
        ((1, 1), [], 6, 1),
        ((1, 1), [1], 6, 2),
        ((6, 1), [3, 3], 7, 7),
        ((6, 1), [3, 3], 99, 8),
    ],
)
def test_a_follower_commits_up_to_the_last_new_entry(
    prev: tuple[int, int], sent: list[int], leader_commit: int, committed: int
) -> None:
    """Fig. 2, rule 5: min(leaderCommit, last *new* entry), not the log's last (pitfalls 24)."""
    solo = Solo(terms=[1, 1, 1, 1, 1, 1], term=3)
    solo.append(2, term=3, prev=prev, terms=sent, commit=leader_commit)
    assert solo.raft.commit_index == committed
    assert len(solo.applied) == committed


def test_the_commit_index_never_falls() -> None:
    """Fig. 2: commitIndex increases monotonically, whatever order messages have (pitfalls 20)."""
    solo = Solo(terms=[1, 1, 1])
    solo.append(2, term=1, prev=(3, 1), commit=3)
    solo.append(2, term=1, prev=(3, 1), commit=1)
    solo.append(2, term=1, prev=(1, 1), commit=3)
    assert solo.raft.commit_index == 3
    assert len(solo.applied) == 3


def test_nothing_counts_as_committed_after_a_restart() -> None:
    """Fig. 2: commitIndex is volatile; a node that reads its log back serves nothing from it yet.

    Reads wait for a leader's round and apply index (pitfalls 36).
    """
    solo = Solo(terms=[1, 1, 1])
    solo.append(2, term=1, prev=(3, 1), commit=3)
    solo.restart()
    assert (solo.raft.commit_index, solo.applied, solo.raft.can_serve_reads) == (0, [], False)


def test_entries_are_applied_once_and_in_order() -> None:
    """§5.3: in log order, when they are committed (State Machine Safety)."""
    solo = Solo(terms=[1, 1, 1, 1])
    for commit in (1, 1, 3, 2, 4):
        solo.append(2, term=1, prev=(4, 1), commit=commit)
    assert solo.applied == solo.disk.payloads


def test_a_long_run_is_applied_in_bounded_pieces_without_a_gap() -> None:
    """The next piece comes after the last was applied, and starts right after it (pitfalls 57)."""
    cluster = CoreCluster(1, settings=CoreCluster(1).settings._replace(apply_batch_entries=10))
    cluster.elect(1)
    cluster.propose(1, *(f"k={n}" for n in range(34)))
    pieces = [r.committed for r in cluster.flush(1) if r.committed is not None]
    assert [(p.first_index, p.last_index) for p in pieces] == [
        (2, 11),
        (12, 21),
        (22, 31),
        (32, 35),
    ]


def test_a_node_that_has_much_to_apply_still_answers() -> None:
    """applied_index may trail commit_index: appends and votes are answered meanwhile."""
    cluster = CoreCluster(3)
    cluster.members[3].applies = False
    cluster.elect(1)
    for n in range(20):
        cluster.propose(1, f"k={n}")
        cluster.stabilise()
    assert cluster.raft(3).commit_index == 21
    assert len(cluster.members[3].applied) < 21
    cluster.crash(1)
    cluster.run(600)
    assert len(cluster.leaders()) == 1


def test_a_batch_with_bytes_beyond_the_bound_is_applied_one_by_one() -> None:
    """An entry bigger than the bound still goes, alone."""
    cluster = CoreCluster(1, settings=CoreCluster(1).settings._replace(apply_batch_bytes=100))
    cluster.elect(1)
    cluster.propose(1, "a" * 150, "b" * 150, "c", "d")
    pieces = [r.committed for r in cluster.flush(1) if r.committed is not None]
    assert [len(p.terms) for p in pieces] == [1, 1, 2]


def test_an_append_of_an_older_term_changes_nothing() -> None:
    """§5.1 before §5.3: the term is looked at first."""
    solo = Solo(terms=[1, 2], term=2)
    old = AppendEntries(2, 1, 1, 0, 0, 2, 7, Entries(1, [1, 1], [b"a", b"b"]))
    sent = solo.step(old)
    assert (solo.terms, solo.raft.commit_index, solo.raft.leader_id) == ([1, 2], 0, 0)
    assert [(m.dst, m.term) for m in sent] == [(2, 2)]
