"""Snapshots and compaction (Raft §7, Figure 13; thesis ch. 5)."""

from __future__ import annotations

import pytest

from zraft.core.messages import AppendEntries, InstallSnapshotResponse, Message
from zraft.core.model import EntryId, Settings
from zraft.core.notices import LogCompacted, SnapshotIgnored, SnapshotInstalled
from zraft.core.progress import ProgressState
from zraft.testing.core_cluster import CoreCluster, CrashPoint
from zraft.testing.solo import Solo, snapshot_payloads

NO_WINDOW = Settings(trailing_entries=0)
NO_MERCY = Settings(trailing_entries=0, trailing_bytes=0, held_bytes=0)


def follower(settings: Settings = NO_WINDOW) -> Solo:
    """Return a follower of 2 in term 2 that has applied five entries and holds a sixth."""
    solo = Solo(terms=[1, 1, 2, 2, 2, 2], settings=settings)
    assert solo.append(2, term=2, prev=(5, 2), commit=5).success
    return solo


def compacted_follower() -> Solo:
    """Return the same with a snapshot of the five, and the sixth in its log."""
    solo = follower()
    solo.take_snapshot()
    assert (solo.raft.first_index, solo.terms) == (6, [2])
    return solo


def leader(terms: list[int], applied: int, settings: Settings = NO_MERCY) -> Solo:
    """Return a leader of three whose log is cut behind `applied`; nobody is known to hold more."""
    solo = Solo(terms=terms, term=terms[-1], settings=settings)
    solo.become_leader()
    noop = len(terms) + 1
    solo.ack(2, noop)
    assert solo.raft.state.applied_index == noop
    solo.propose(*(f"{i}" for i in range(applied - noop)))
    solo.flush()
    solo.ack(2, applied)
    solo.take_snapshot()
    return solo


def state_of(solo: Solo, peer: int) -> ProgressState:
    """Return how a leader sends to a peer."""
    leadership = solo.raft.state.leadership
    assert leadership is not None
    return leadership.progress[peer].state


def answers(messages: list[Message]) -> list[tuple[int, bool]]:
    """Return (index, installed) of the answers to chunks."""
    return [
        (m.last_included_index, m.installed)
        for m in messages
        if isinstance(m, InstallSnapshotResponse)
    ]


# The log behind a snapshot


def test_a_snapshot_cuts_the_log_and_a_restart_begins_behind_it() -> None:
    """§7: the last included index and term stay known; what it covers is applied at once."""
    solo = compacted_follower()
    assert solo.notices[-1] != LogCompacted(6, 5)  # not handed out yet
    solo.flush()
    assert solo.notices[-1] == LogCompacted(6, 5)
    solo.restart()
    st = solo.raft.state
    assert (st.commit_index, st.applied_index, st.log.compacted) == (5, 5, (5, 2))
    assert (solo.raft.last_id, solo.terms) == ((6, 2), [2])
    assert solo.append(2, term=2, prev=(6, 2), terms=[2], commit=7).success
    assert len(solo.applied) == 7


def test_a_window_is_kept_for_who_is_a_little_behind() -> None:
    """Entries and bytes bound it; the smaller of the two counts."""
    solo = follower(Settings(trailing_entries=2))
    solo.take_snapshot()
    assert solo.raft.first_index == 4
    solo = follower(Settings(trailing_entries=10, trailing_bytes=0))
    solo.take_snapshot()
    assert solo.raft.first_index == 6


def test_an_older_snapshot_than_the_newest_changes_nothing() -> None:
    """Pitfall 48: what is known of the log never goes back."""
    solo = compacted_follower()
    meta = solo.raft.snapshot
    assert solo.raft.on_snapshot_saved(solo.snapshot_meta(3, 2), now_ms=solo.now_ms) == 6
    assert solo.raft.snapshot == meta


@pytest.mark.parametrize("prev", [(0, 0), (2, 1), (4, 2), (4, 0), (5, 2)])
def test_an_append_that_starts_in_the_snapshot_matches_there(prev: tuple[int, int]) -> None:
    """Pitfall 27: a compacted index has no term here, not term 0; what is committed agrees."""
    solo = compacted_follower()
    sent = [2] * (7 - prev[0])
    answer = solo.append(2, term=2, prev=prev, terms=sent)
    assert (answer.success, answer.match_index) == (True, 7)
    assert solo.terms == [2, 2]


def test_an_append_that_ends_in_the_snapshot_removes_nothing() -> None:
    """Pitfalls 18, 27: an old append, also an empty one, takes nothing of the suffix away."""
    solo = compacted_follower()
    answer = solo.append(2, term=2, prev=(1, 1), terms=[2, 2])
    assert (answer.success, answer.match_index) == (True, 3)
    assert solo.append(2, term=2, prev=(0, 0)).match_index == 0
    assert solo.terms == [2]
    assert solo.raft.commit_index == 5


def test_a_refusal_never_names_an_index_inside_the_snapshot() -> None:
    """§5.3, fast back-up: the run of a term may start in what is cut away."""
    solo = compacted_follower()
    answer = solo.append(2, term=3, prev=(6, 3))
    assert (answer.success, answer.conflict_index, answer.conflict_term) == (False, 6, 2)


def test_a_log_that_is_all_in_a_snapshot_still_votes_by_its_last_entry() -> None:
    """§5.4.1 with an empty log: the snapshot's index and term count (WRaft#118.4)."""
    solo = Solo(terms=[1, 2], settings=NO_WINDOW)
    solo.append(2, term=2, prev=(2, 2), commit=2)
    solo.take_snapshot()
    solo.restart()
    assert (solo.terms, solo.raft.last_id) == ([], (2, 2))
    assert not solo.ask_vote(3, vote_term=4, last=(9, 1)).granted
    assert not solo.ask_vote(3, vote_term=5, last=(1, 2)).granted
    assert solo.ask_vote(3, vote_term=6, last=(2, 2)).granted


def test_a_leader_with_an_empty_log_goes_on_behind_its_snapshot() -> None:
    """The log time goes on from the snapshot's, and the first entry follows its last."""
    solo = Solo(terms=[1, 1], settings=NO_WINDOW)
    solo.append(2, term=1, prev=(2, 1), commit=2)
    solo.take_snapshot()
    solo.restart()
    sent = solo.become_leader()
    appends = [m for m in sent if isinstance(m, AppendEntries) and m.dst == 2]
    assert [(m.prev_log_index, m.prev_log_term) for m in appends] == [(2, 1)]


# Receiving


def test_a_snapshot_takes_the_place_of_a_log_that_is_too_short() -> None:
    """Figure 13: persisted first, then restored, then the answer counts."""
    solo = Solo(terms=[1, 1], term=2, settings=NO_WINDOW)
    assert answers(solo.chunk(2, (5, 2), term=2)) == []
    assert [len(ready.chunks) for ready in solo.readys if ready.chunks] == [1]
    assert answers(solo.receive_snapshot((5, 2))) == [(5, True)]
    ready = solo.readys[-1]
    assert (ready.snapshot, ready.restore) == (solo.raft.snapshot, solo.raft.snapshot)
    assert SnapshotInstalled(5, 2, 2) in solo.notices
    assert (solo.terms, solo.raft.last_id) == ([], (5, 2))
    assert solo.raft.state.applied_index == 5
    assert solo.append(2, term=2, prev=(5, 2), terms=[2], commit=6).success
    assert len(solo.applied) == 6


def test_a_snapshot_takes_the_place_of_a_log_that_differs() -> None:
    """Figure 13, rule 7: the whole log goes, also what follows the place."""
    solo = Solo(terms=[1, 1, 1, 1, 1, 1, 1], term=2, settings=NO_WINDOW)
    solo.chunk(2, (5, 2), term=2)
    solo.receive_snapshot((5, 2))
    assert (solo.terms, solo.raft.last_id) == ([], (5, 2))
    assert solo.disk.terms == []


def test_a_snapshot_of_a_prefix_keeps_what_follows() -> None:
    """Figure 13, rule 6, pitfall 48: the suffix may be acknowledged; nothing is removed."""
    solo = Solo(terms=[1, 1, 2, 2, 2], term=2, settings=NO_WINDOW)
    assert answers(solo.chunk(2, (3, 2), term=2)) == [(3, True)]
    assert SnapshotIgnored(3, 2, "in_log") in solo.notices
    assert (solo.terms, solo.raft.commit_index) == ([1, 1, 2, 2, 2], 3)
    assert len(solo.applied) == 3


def test_what_came_as_entries_meanwhile_is_not_replaced_either() -> None:
    """The same when the file was whole only after the entries had come."""
    solo = Solo(terms=[1, 1], term=2, settings=NO_WINDOW)
    solo.chunk(2, (3, 2), term=2)
    solo.append(2, term=2, prev=(2, 1), terms=[2, 2])
    assert answers(solo.receive_snapshot((3, 2))) == [(3, True)]
    assert solo.terms == [1, 1, 2, 2]
    assert all(ready.restore is None for ready in solo.readys)


@pytest.mark.parametrize("last", [(2, 1), (3, 2), (5, 2)])
def test_an_older_snapshot_never_rolls_back(last: tuple[int, int]) -> None:
    """Pitfall 48: it is answered as installed, for all it covers is here."""
    solo = compacted_follower()
    assert answers(solo.chunk(2, last, term=2)) == [(last[0], True)]
    assert all(not ready.chunks for ready in solo.readys)
    assert answers(solo.receive_snapshot(last)) == [(last[0], True)]
    assert (solo.raft.commit_index, solo.terms, len(solo.applied)) == (5, [2], 5)


def test_a_snapshot_that_contradicts_what_is_committed_stops_the_node() -> None:
    """Pitfalls 48, 60: another term at a committed index is a broken promise, not news."""
    solo = follower()
    with pytest.raises(AssertionError, match="contradicts"):
        solo.chunk(2, (4, 3), term=3)


def test_a_chunk_of_an_older_term_is_answered_with_the_term() -> None:
    """Figure 13, rule 1; and nothing is stored."""
    solo = Solo(terms=[1], term=4)
    (answer,) = solo.chunk(2, (9, 3), term=3)
    assert isinstance(answer, InstallSnapshotResponse)
    assert (answer.term, answer.installed) == (4, False)
    assert all(not ready.chunks for ready in solo.readys)


def test_a_chunk_is_contact_with_the_leader() -> None:
    """A follower that gets a snapshot does not stand for election meanwhile."""
    solo = Solo(terms=[1], term=2)
    for _ in range(10):
        solo.wait(140)
        solo.chunk(2, (9, 2), term=2)
    assert solo.raft.leader_id == 2
    assert not any("election" in notice.event for notice in solo.notices)


def test_applying_ends_where_a_snapshot_takes_over() -> None:
    """Pitfall 50: entries that were handed out before and not applied yet are in the snapshot."""
    cluster = CoreCluster(3, settings=NO_MERCY._replace(apply_batch_entries=2))
    cluster.elect(1)
    cluster.propose(1, "a", "b", "c", "d")
    cluster.members[3].applies = False
    cluster.stabilise()
    behind = cluster.raft(3).state
    assert (behind.applied_index, behind.handed_index) == (1, 3)
    cluster.cut([3])
    cluster.propose(1, "e", "f")
    cluster.stabilise()
    cluster.take_snapshot(1)
    cluster.heal()
    cluster.beat(1)
    cluster.stabilise()
    assert (behind.applied_index, behind.handed_index, behind.commit_index) == (1, 7, 7)
    cluster.members[3].applies = True
    cluster.raft(3).on_applied(7)
    cluster.stabilise()
    assert cluster.members[3].applied == cluster.members[1].applied


@pytest.mark.parametrize("point", list(CrashPoint))
def test_a_crash_around_the_installation_leaves_no_hole(point: CrashPoint) -> None:
    """Pitfall 49: the file is durable before the log is cut; either way the node goes on."""
    cluster = CoreCluster(3, settings=NO_MERCY)
    cluster.elect(1)
    cluster.cut([3])
    cluster.propose(1, "a", "b", "c")
    cluster.stabilise()
    cluster.take_snapshot(1)
    cluster.heal()
    for _ in range(3):
        cluster.beat(1)
        cluster.flush(1)
        cluster.deliver(lambda m: m.dst == 3)
        if cluster.raft(3).state.chunks:
            break
        cluster.flush(3)
        cluster.deliver(lambda m: m.dst == 1)
    cluster.handle_ready(3)
    assert cluster.raft(3).state.installing is not None
    cluster.handle_ready(3, crash=point)
    cluster.restart(3)
    assert cluster.raft(3).last_id == cluster.raft(1).last_id
    cluster.beat(1)
    cluster.stabilise()
    assert cluster.members[3].applied == cluster.members[1].applied


# Sending


def test_a_peer_whose_next_entry_is_cut_away_gets_a_snapshot() -> None:
    """Pitfall 29: the leader knows nothing of it and its log is empty; a heartbeat is enough."""
    solo = leader([1], applied=4)
    assert solo.terms == []
    solo.refuse(3, (1, 0))
    assert solo.readys[-1].send_snapshots == [3]
    assert state_of(solo, 3) is ProgressState.SNAPSHOT
    assert solo.raft.wants_snapshot(3)


def test_heartbeats_to_a_peer_in_snapshot_name_the_place_where_all_logs_meet() -> None:
    """They keep it from standing for election, ask nothing of its log, and confirm reads."""
    solo = leader([1], applied=4)
    solo.refuse(3, (1, 0))
    (beat,) = solo.appends(solo.wait(50), 3)
    assert (beat.prev_log_index, beat.prev_log_term, beat.entries.terms) == (0, 0, [])
    read_id = solo.raft.read(now_ms=solo.now_ms)
    solo.flush()
    solo.ack(3, 0)
    assert [read.read_id for read in solo.reads] == [read_id]
    assert state_of(solo, 3) is ProgressState.SNAPSHOT


def test_no_entries_are_sent_until_the_snapshot_is_installed() -> None:
    """Then it goes on right behind, by a probe."""
    solo = leader([1], applied=4)
    solo.refuse(3, (1, 0))
    solo.propose("more")
    assert all(not m.entries.terms for m in solo.appends(solo.flush(), 3))
    sent = solo.appends(solo.installed(3, (4, 1)), 3)
    assert [(m.prev_log_index, m.entries.last_index) for m in sent] == [(4, 5)]
    assert state_of(solo, 3) is ProgressState.PROBE
    solo.ack(3, 5)
    assert state_of(solo, 3) is ProgressState.REPLICATE


def test_an_installed_snapshot_counts_for_the_commit_index() -> None:
    """It is a promise like an acknowledgement: durable up to its last index."""
    solo = leader([1], applied=4)
    solo.propose("a", "b")
    solo.flush()
    solo.refuse(3, (1, 0))
    assert solo.raft.commit_index == 4
    solo.installed(3, (6, 1))
    assert solo.raft.commit_index == 6


def test_a_log_that_was_cut_further_meanwhile_means_another_snapshot() -> None:
    """Beyond the bound nothing is held for a slow peer: a newer one follows at once."""
    solo = leader([1], applied=4)
    solo.refuse(3, (1, 0))
    solo.propose("a")
    solo.flush()
    solo.ack(2, 5)
    solo.take_snapshot()
    assert solo.raft.first_index == 6
    solo.installed(3, (4, 1))
    assert solo.readys[-1].send_snapshots == [3]
    assert state_of(solo, 3) is ProgressState.SNAPSHOT


@pytest.mark.parametrize(("held_bytes", "first_index"), [(64 << 20, 5), (20, 6)])
def test_the_log_is_held_back_for_a_peer_that_is_sent_a_snapshot(
    held_bytes: int, first_index: int
) -> None:
    """What follows that snapshot is kept while it fits the bound."""
    settings = Settings(trailing_entries=0, trailing_bytes=0, held_bytes=held_bytes)
    solo = leader([1], applied=4)
    solo.raft.state.settings = settings
    solo.refuse(3, (1, 0))
    solo.raft.on_snapshot_sending(3, 4, now_ms=solo.now_ms)
    solo.propose("x" * 30)
    solo.flush()
    solo.ack(2, 5)
    solo.take_snapshot()
    assert solo.raft.first_index == first_index


def test_the_log_is_held_back_for_a_peer_that_catches_up() -> None:
    """Pitfall 27: compaction never takes away what is in flight to a follower, within the bound."""
    solo = Solo(settings=NO_WINDOW)
    solo.become_leader()
    solo.ack(2, 1)
    solo.ack(3, 1)
    solo.propose("a", "b", "c")
    solo.flush()
    solo.ack(2, 4)
    solo.take_snapshot()
    assert (solo.raft.snapshot is not None, solo.raft.first_index) == (True, 2)
    assert state_of(solo, 3) is ProgressState.REPLICATE


def test_a_failed_transfer_is_tried_again() -> None:
    """The peer is probed, which tells what it needs by now: still a snapshot."""
    solo = leader([1], applied=4)
    solo.refuse(3, (1, 0))
    solo.raft.on_snapshot_failed(3, now_ms=solo.now_ms)
    solo.wait(50)
    assert state_of(solo, 3) is ProgressState.PROBE
    solo.refuse(3, (1, 0))
    assert solo.readys[-1].send_snapshots == [3]


def test_a_peer_that_turns_out_to_hold_enough_needs_no_snapshot() -> None:
    """An append that was in flight arrives after all: entries go on, the transfer is void."""
    solo = leader([1], applied=4)
    solo.refuse(3, (1, 0))
    solo.ack(3, 4, round_=0)
    assert state_of(solo, 3) is ProgressState.PROBE
    assert not solo.raft.wants_snapshot(3)


def test_a_peer_that_is_gone_is_probed_where_the_log_starts() -> None:
    """Not below what is cut away, or every restart of a peer would cost a snapshot."""
    solo = leader([1], applied=4)
    solo.ack(3, 4)
    solo.propose("a")
    solo.flush()
    solo.ack(2, 5)
    solo.raft.on_peer_down(3, 1, now_ms=solo.now_ms)
    solo.take_snapshot()
    solo.raft.on_peer_down(3, 1, now_ms=solo.now_ms)
    (beat,) = solo.appends(solo.wait(50), 3)[-1:]
    assert beat.prev_log_index >= 4
    assert not solo.raft.wants_snapshot(3)


def test_a_refusal_whose_term_starts_in_the_snapshot_still_backs_up() -> None:
    """The compacted entry's own term decides; otherwise the leader would ignore it for ever."""
    solo = Solo(terms=[1, 1, 1, 1], settings=NO_WINDOW, term=2)
    solo.become_leader()
    solo.ack(2, 5)
    solo.ack(3, 4)  # its log goes on with term 1, this one's with term 3
    solo.take_snapshot()
    assert solo.raft.state.log.compacted == EntryId(4, 1)
    leadership = solo.raft.state.leadership
    assert leadership is not None
    leadership.progress[3].next_index = 6
    solo.refuse(3, (1, 1))
    (probe,) = solo.appends(solo.wait(50), 3)[-1:]
    assert (probe.prev_log_index, probe.prev_log_term) == (4, 1)


def test_nothing_of_a_million_entries_is_freed_in_one_go() -> None:
    """A turn of the loop frees a slice; the log in memory follows."""
    count = 40_000
    solo = Solo(terms=[1] * count, settings=NO_WINDOW)
    solo.append(2, term=1, prev=(count, 1), commit=count)
    while solo.raft.state.applied_index < count:
        solo.flush()
    solo.take_snapshot()
    assert 1 < solo.raft.first_index < count
    while solo.raft.trim_log():
        assert solo.raft.first_index < count
    assert solo.raft.first_index == count + 1
    assert solo.disk.terms == []


def test_made_up_snapshots_have_as_many_entries_as_they_say() -> None:
    """The tests above rest on it."""
    assert len(snapshot_payloads(Solo().snapshot_meta(5, 2))) == 5
