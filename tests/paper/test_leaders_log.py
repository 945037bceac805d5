"""How a leader replicates its log (Raft §5.3, Figure 2 "Leaders"; thesis §10.2.1)."""

from __future__ import annotations

import pytest

from zraft.core.messages import AppendEntries, AppendEntriesResponse
from zraft.core.model import Role, Settings
from zraft.core.progress import ProgressState
from zraft.testing.core_cluster import CoreCluster
from zraft.testing.solo import Solo
from zraft.wire_entry import decode_entry

LEADER_OF_FIGURE_7 = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]

FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


def bodies(message: AppendEntries) -> list[bytes]:
    """Return the commands in an append."""
    return [decode_entry(payload).body for payload in message.entries.payloads]


def leader_with_replicating_peers(members: int = 3, settings: Settings | None = None) -> Solo:
    """Return a leader of term 1 whose peers all acknowledged the no-op at index 1."""
    solo = Solo(members, settings=settings)
    solo.become_leader()
    for peer in solo.peers:
        solo.ack(peer, 1)
    return solo


def test_a_proposal_is_appended_and_sent_to_all_in_parallel() -> None:
    """§5.3: the leader appends the command and issues appends in parallel to all others."""
    solo = leader_with_replicating_peers(5)
    entry_id = solo.propose("x=1")
    assert entry_id == (2, 1)
    sent = solo.flush()
    assert [m.dst for m in sent] == [2, 3, 4, 5]
    for message in sent:
        assert isinstance(message, AppendEntries)
        assert (message.prev_log_index, message.prev_log_term, message.term) == (1, 1, 1)
        assert bodies(message) == [b"x=1"]


def test_only_a_leader_takes_proposals() -> None:
    """§5.1: clients' commands go through the leader; others say None and change nothing."""
    solo = Solo()
    assert solo.raft.propose([], now_ms=0) is None
    assert (solo.raft.step_down(now_ms=0), solo.raft.read(now_ms=0), solo.terms) == (
        False,
        None,
        [],
    )


def test_what_came_in_during_a_turn_leaves_in_one_message_without_gaps() -> None:
    """Batching: one append a peer and turn, its entries contiguous (pitfalls 31)."""
    solo = leader_with_replicating_peers()
    solo.propose("a")
    solo.propose("b", "c")
    sent = solo.appends(solo.flush(), 2)
    assert [bodies(m) for m in sent] == [[b"a", b"b", b"c"]]
    solo.propose("d")
    (message,) = solo.appends(solo.flush(), 2)
    assert (message.prev_log_index, bodies(message)) == (4, [b"d"])


@pytest.mark.parametrize(
    ("members", "holders", "committed"),
    [
        *((1, 0, True), (2, 0, False), (2, 1, True), (3, 0, False), (3, 1, True)),
        *((4, 1, False), (4, 2, True), (5, 1, False), (5, 2, True), (6, 2, False), (6, 3, True)),
        *((7, 2, False), (7, 3, True)),
    ],
)
def test_an_entry_is_committed_when_a_majority_holds_it(
    members: int, holders: int, committed: bool
) -> None:
    """§5.3, Fig. 2: a majority of the cluster, the leader's own disk among it (pitfalls 30)."""
    solo = leader_with_replicating_peers(members)
    solo.propose("x=1")
    solo.flush()
    for peer in solo.peers[:holders]:
        solo.ack(peer, 2)
    assert solo.raft.commit_index == (2 if committed else 1)


def test_acknowledgements_count_whatever_order_the_peers_have() -> None:
    """The majority is taken over sorted places, not over the peers as they come (pitfalls 30)."""
    solo = leader_with_replicating_peers(5)
    solo.propose(*"abcdef")
    solo.flush()
    solo.ack(2, 7)
    solo.ack(5, 3)
    assert solo.raft.commit_index == 3
    solo.ack(3, 5)
    assert solo.raft.commit_index == 5


def test_a_commit_travels_at_once() -> None:
    """Followers learn the commit index without waiting for a heartbeat."""
    cluster = CoreCluster(5)
    cluster.elect(1)
    cluster.propose(1, "x=1")
    cluster.stabilise()
    assert [len(m.applied) for m in cluster.members.values()] == [2, 2, 2, 2, 2]


def test_the_same_answer_twice_counts_once() -> None:
    """Fig. 2 matchIndex is per server: repetition is no majority (pitfalls 21, 22, 32)."""
    solo = leader_with_replicating_peers(5)
    solo.propose("x=1")
    solo.flush()
    for _ in range(4):
        solo.ack(2, 2)
    assert (solo.raft.commit_index, len(solo.terms)) == (1, 2)


def test_a_match_index_never_falls() -> None:
    """Fig. 2: it only rises; late and reordered answers change nothing (pitfalls 21)."""
    solo = leader_with_replicating_peers()
    solo.propose("a", "b")
    solo.flush()
    solo.ack(2, 3)
    solo.propose("c", "d")
    solo.flush()
    solo.ack(2, 2)
    solo.refuse(2, (2, 0))
    solo.refuse(2, (1, 9))
    assert solo.raft.state.leadership is not None
    progress = solo.raft.state.leadership.progress[2]
    assert (progress.match_index, solo.raft.commit_index) == (3, 3)
    assert (progress.next_index, len(progress.inflights)) == (6, 1)
    assert progress.state is ProgressState.REPLICATE


def test_a_refusal_that_tells_something_new_is_believed() -> None:
    """The peer lost what was in flight: it is probed, never below what it acknowledged."""
    solo = leader_with_replicating_peers()
    solo.propose("a", "b")
    solo.flush()
    solo.ack(2, 2)
    sent = solo.appends(solo.refuse(2, (3, 0)), 2)
    assert [(m.prev_log_index, bodies(m)) for m in sent] == [(2, [b"b"])]


@pytest.mark.parametrize("term", [0, 1])
def test_acknowledgements_of_an_older_leadership_count_for_nothing(term: int) -> None:
    """§5.1: answers carry the term they belong to (pitfalls 22)."""
    solo = Solo()
    solo.become_leader()
    solo.append(3, term=2)
    solo.become_leader()
    assert solo.raft.term == 3
    solo.step(AppendEntriesResponse(2, 1, term, True, 2, 0, 0, 0))
    assert solo.raft.commit_index == 0


def test_an_acknowledgement_past_the_end_of_the_log_is_ignored() -> None:
    """Nobody can hold what this leader does not have (pitfalls 22)."""
    solo = Solo()
    solo.become_leader()
    solo.ack(2, 99)
    assert solo.raft.commit_index == 0


def test_lost_appends_are_sent_again_for_ever() -> None:
    """§5.3: the leader retries indefinitely, also after it has answered the client."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    cluster.cut_one_way(1, 3)
    cluster.propose(1, "x=1")
    for _ in range(50):
        cluster.beat(1)
        cluster.stabilise([1, 2])
    assert cluster.raft(1).commit_index == 2
    assert cluster.terms(3) == [1]
    cluster.heal()
    cluster.beat(1)
    cluster.stabilise()
    assert cluster.terms(3) == [1, 1]


def test_an_idle_leader_finds_a_short_log_by_heartbeat_alone() -> None:
    """§5.3: a heartbeat checks where the logs meet, without new entries (pitfalls 29)."""
    solo = leader_with_replicating_peers()
    solo.propose("a")
    solo.flush()
    solo.ack(2, 2)
    beat = solo.appends(solo.wait(50), 3)
    assert [(m.prev_log_index, m.entries.terms) for m in beat] == [(2, [])]
    repaired = solo.appends(solo.refuse(3, (2, 0)), 3)
    assert [(m.prev_log_index, bodies(m)) for m in repaired] == [(1, [b"a"])]


@pytest.mark.parametrize("name", sorted(FIGURE_7))
def test_a_new_leader_brings_every_follower_of_figure_7_in_line(name: str) -> None:
    """§5.3, Figure 7 (a)–(f): missing, extra, or both: the follower's log becomes the leader's."""
    cluster = CoreCluster(3)
    cluster.write_disk(1, LEADER_OF_FIGURE_7, term=7)
    cluster.write_disk(2, FIGURE_7[name], term=7)
    cluster.write_disk(3, LEADER_OF_FIGURE_7, term=7)
    cluster.cut([2])
    cluster.elect(1)
    cluster.heal()
    cluster.beat(1)
    cluster.stabilise()
    assert cluster.terms(2) == [*LEADER_OF_FIGURE_7, 8]
    assert cluster.members[2].applied == cluster.members[1].applied


@pytest.mark.parametrize(
    ("leader", "follower", "refusals"),
    [
        ([1] * 5 + [5] * 200, [1] * 5, 1),  # too short: straight to its end
        ([1] * 5 + [5] * 200, [1] * 5 + [2] * 100, 2),  # one term too many: to its start
        ([1] * 5 + [5] * 200, [1] * 5 + [2] * 100 + [3] * 50, 3),  # one refusal a term
        ([1] * 5 + [3] * 200, [1] * 5 + [3] * 50, 1),  # the same term, shorter
    ],
)
def test_back_up_takes_one_refusal_a_term_not_one_an_entry(
    leader: list[int], follower: list[int], refusals: int
) -> None:
    """§5.3, the optimisation: the conflicting term is skipped as a whole."""
    cluster = CoreCluster(3)
    for member_id, terms in ((1, leader), (2, follower), (3, leader)):
        cluster.write_disk(member_id, terms, term=7)
    cluster.cut([2])
    cluster.elect(1)
    cluster.heal()
    cluster.beat(1)
    seen = 0
    while cluster.terms(2)[-1:] != [8]:
        cluster.flush(1)
        cluster.deliver()
        cluster.flush(2)
        answers = cluster.deliver()
        seen += sum(isinstance(m, AppendEntriesResponse) and not m.success for m in answers)
    assert seen == refusals


def test_the_window_is_bounded_in_messages_and_frees_as_answers_come() -> None:
    """Pipelining (thesis §10.2.1): many appends in flight, never more than the window."""
    settings = Settings(max_inflight_messages=4)
    solo = leader_with_replicating_peers(settings=settings)
    sent = []
    for n in range(10):
        solo.propose(f"k={n}")
        sent += solo.appends(solo.flush(), 2)
    assert len(sent) == 4
    freed = solo.appends(solo.ack(2, 3), 2)
    assert [len(m.entries.terms) for m in freed if m.entries.terms] == [6]


def test_the_window_is_bounded_in_bytes() -> None:
    """Big entries fill it before many messages do."""
    settings = Settings(max_inflight_bytes=1_000, max_batch_bytes=500)
    solo = leader_with_replicating_peers(settings=settings)
    solo.propose(*("v" * 200 for _ in range(40)))
    sent = solo.appends(solo.flush(), 2)
    sizes = [sum(map(len, m.entries.payloads)) for m in sent]
    assert max(sizes) <= 500
    assert 1_000 <= sum(sizes) < 1_500
    assert len(solo.appends(solo.ack(2, sent[0].last_new_index), 2)) >= 1


def test_an_entry_bigger_than_a_batch_goes_alone() -> None:
    """Bounds never stop replication."""
    settings = Settings(max_batch_bytes=100, max_inflight_bytes=100)
    solo = leader_with_replicating_peers(settings=settings)
    solo.propose("a" * 500, "b" * 500)
    (first,) = solo.appends(solo.flush(), 2)
    assert len(first.entries.terms) == 1
    (second,) = [m for m in solo.appends(solo.ack(2, 2), 2) if m.entries.terms]
    assert (second.prev_log_index, len(second.entries.terms)) == (2, 1)


@pytest.mark.parametrize("lost", ["appends", "answers"])
def test_a_full_window_that_was_lost_does_not_stop_replication(lost: str) -> None:
    """No counter leaks: a heartbeat finds out, and the window is empty again (pitfalls 28)."""
    cluster = CoreCluster(3, settings=Settings(max_inflight_messages=4))
    cluster.elect(1)
    for n in range(12):
        cluster.propose(1, f"k={n}")
        cluster.flush(1)
        if lost == "appends":
            cluster.take(lambda m: m.dst in (2, 3))
        else:
            cluster.deliver()
            cluster.flush(2)
            cluster.flush(3)
            cluster.take(lambda m: m.dst == 1)
    assert cluster.raft(1).commit_index == 1
    cluster.beat(1)
    cluster.stabilise()
    assert cluster.raft(1).commit_index == 13
    assert cluster.terms(2) == cluster.terms(3) == cluster.terms(1)


def test_reordered_and_repeated_appends_do_no_harm() -> None:
    """§5.3, AppendEntries is idempotent: any order, any number of copies ends in the same log."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    for n in range(6):
        cluster.propose(1, f"k={n}")
        cluster.flush(1)
    copies = [*reversed(cluster.in_flight), *cluster.in_flight, *reversed(cluster.in_flight)]
    cluster.in_flight = copies
    cluster.stabilise()
    cluster.beat(1)
    cluster.stabilise()
    assert cluster.terms(2) == cluster.terms(3) == [1] * 7
    assert len(cluster.members[2].applied) == 7


def test_log_time_never_falls_along_the_log() -> None:
    """Log time goes on from the last entry's, by the leader's own clock, across leaders."""
    cluster = CoreCluster(3)
    times: list[int] = []
    for member_id in (1, 2, 1):
        cluster.elect(member_id)
        cluster.now_ms += 40
        cluster.propose(member_id, "x")
        cluster.stabilise()
    times = [decode_entry(payload).log_time_ms for payload in cluster.members[1].applied]
    assert times == sorted(times)
    assert times[-1] >= 120


def test_a_leader_that_steps_down_gives_its_proposals_back_undecided() -> None:
    """§8: the client is told that the outcome is unknown, neither yes nor no."""
    cluster = CoreCluster(3)
    cluster.elect(1)
    cluster.cut([1])
    cluster.propose(1, "x=1")
    cluster.run(301)
    assert cluster.raft(1).role is not Role.LEADER
    assert cluster.members[1].aborted_terms == [1]


def test_a_peer_with_a_full_window_gets_no_message_for_each_commit() -> None:
    """A hung peer costs a heartbeat's worth of messages, not one for each commit of the others."""
    solo = leader_with_replicating_peers(settings=Settings(max_inflight_messages=2))
    to_hung = 0
    for n in range(50):
        solo.propose(f"k={n}")
        sent = solo.flush() + solo.ack(2, n + 2)
        to_hung += len(solo.appends(sent, 3))
    assert solo.raft.commit_index == 51
    assert to_hung == 3  # two appends, and the news of the first commit between them
    (beat,) = solo.appends(solo.wait(50), 3)
    assert beat.leader_commit == 51


def test_a_refusal_that_says_nothing_of_the_log_changes_nothing() -> None:
    """It answers a term; there is no place in it to go back to."""
    solo = Solo(3)
    solo.become_leader()
    solo.step(AppendEntriesResponse(2, 1, solo.raft.term, False, 0, 0, 0, 0))
    leadership = solo.raft.state.leadership
    assert leadership is not None
    assert leadership.progress[2].next_index == 1
