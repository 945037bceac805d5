"""Log replication: what is sent, what is accepted, when an entry is committed (Raft §5.3).

Appends are made when a Ready is made, not when a command is proposed: whatever came in during a
turn of the loop leaves in one message a peer. A heartbeat is an append without entries that still
checks the place where the logs meet, so that a lost append is found without another retry layer.
"""

from __future__ import annotations

from zraft.core import changing, election, leases, membership, roles, rounds
from zraft.core.messages import AppendEntries, AppendEntriesResponse
from zraft.core.model import NOBODY, Entries, MemberId, Role
from zraft.core.notices import (
    CommitAdvanced,
    EntriesAppended,
    EntriesTruncated,
    ProgressChanged,
    QuorumLost,
)
from zraft.core.progress import Progress, ProgressState
from zraft.core.quorum import reached_by_quorum
from zraft.core.state import Leadership, RaftState

# Members of enumerations, by names of the module: through the class each look is a call.
_FOLLOWER = Role.FOLLOWER
_PROBE, _REPLICATE = ProgressState.PROBE, ProgressState.REPLICATE
_SNAPSHOT = ProgressState.SNAPSHOT

# The leader's side: sending


def replicate(st: RaftState) -> None:
    """Make the appends that are due: entries, heartbeats, news of the commit index, rounds."""
    leadership = st.leadership
    assert leadership is not None
    peers = list(leadership.progress.values())
    if leadership.leaving:
        changing.dismiss(st, leadership)
        peers += [one.progress for one in leadership.leaving.values()]
    beat = leadership.heartbeat_due
    leadership.heartbeat_due = False
    wants_round = bool(leadership.pending_reads)
    commit_index, last_index = st.commit_index, st.log.last_index
    for progress in peers:
        if progress.next_index <= last_index and _send_entries(st, leadership, progress):
            continue
        # A full window gets no news of its own: who answers gets it with the entries that wait, and
        # who is gone would get one message a commit.
        news = progress.sent_commit < commit_index and progress.state is _REPLICATE
        unheard_round = wants_round and progress.sent_round < leadership.round
        if beat or unheard_round or (news and not _is_window_full(st, progress)):
            waits = progress.state is _SNAPSHOT
            empty = Entries(1 if waits else progress.next_index, [], [])
            _send_append(st, leadership, progress, empty)


def _send_entries(st: RaftState, leadership: Leadership, progress: Progress) -> bool:
    """Send entries as far as state and window allow; return whether any append was sent.

    Where the log was cut away under a peer that is slow or gone, it is probed at the log's start:
    its answer tells whether it holds what is missing. Heartbeats come by here as well, so that an
    idle leader with an empty log finds that out, too (openraft#1828).
    """
    last_index = st.log.last_index
    if progress.state is _SNAPSHOT:
        return False
    if progress.next_index <= st.log.compacted.index:
        _probe(st, leadership, progress, "compacted")
    if progress.state is _PROBE:
        if progress.probe_sent or progress.next_index > last_index:
            return False
        batch = _next_batch(st, progress)
        _send_append(st, leadership, progress, batch)
        progress.probe_sent = True
        return True
    sent = False
    while progress.next_index <= last_index and not _is_window_full(st, progress):
        batch = _next_batch(st, progress)
        _send_append(st, leadership, progress, batch)
        progress.next_index = batch.last_index + 1
        progress.inflights.add(batch.last_index, sum(map(len, batch.payloads)))
        sent = True
    return sent


def _is_window_full(st: RaftState, progress: Progress) -> bool:
    inflights, settings = progress.inflights, st.settings
    return (
        len(inflights) >= settings.max_inflight_messages
        or inflights.bytes >= settings.max_inflight_bytes
    )


def _next_batch(st: RaftState, progress: Progress) -> Entries:
    return st.log.slice(
        progress.next_index, st.log.last_index, st.settings.max_batch_bytes, st.log.last_index
    )


def _send_append(
    st: RaftState, leadership: Leadership, progress: Progress, entries: Entries
) -> None:
    prev_index = entries.first_index - 1
    prev_term = st.log.term(prev_index) if prev_index else 0
    assert prev_term is not None, (prev_index, st.log.compacted, st.log.last_index)
    st.say(
        AppendEntries(
            st.me,
            progress.peer,
            st.term,
            prev_index,
            prev_term,
            st.commit_index,
            leadership.round,
            entries,
        )
    )
    progress.sent_commit = st.commit_index
    progress.sent_round = leadership.round


# The follower's side


def on_append_entries(st: RaftState, m: AppendEntries) -> None:
    """Append the leader's entries where the logs match, and acknowledge what matched.

    Below what is compacted here the logs match for certain: that is committed, in a snapshot.
    Invariant: never removes an entry at or below `commit_index`; removes only from the first entry
    that really conflicts, so that an old or overlapping append takes nothing away.
    Durability: the acknowledgement goes to `messages_after_persist`.
    Source: Raft §5.3, Fig. 2 "AppendEntries RPC", receiver rules 1–5.
    """
    if m.term < st.term:
        _answer(st, m, AppendEntriesResponse(st.me, m.src, st.term, False, 0, 0, 0, m.round))
        return
    hear_leader(st, m.src, m.term)
    st.told_commit, st.told_ms = m.leader_commit, st.now_ms
    compacted = st.log.compacted
    if m.prev_log_index == compacted.index:
        assert m.prev_log_term == compacted.term, "a leader contradicts a compacted entry"
    elif m.prev_log_index > compacted.index and st.log.term(m.prev_log_index) != m.prev_log_term:
        _refuse(st, m)
        return
    _append_new(st, m)
    last_new_index = m.last_new_index
    advance_commit(st, min(m.leader_commit, last_new_index))
    _answer(
        st, m, AppendEntriesResponse(st.me, m.src, st.term, True, last_new_index, 0, 0, m.round)
    )


def hear_leader(st: RaftState, leader: MemberId, term: int) -> None:
    """Take a message that only the leader of `term` sends, and follow it (Raft §5.2)."""
    if term > st.term or st.role is not _FOLLOWER or st.leader_id != leader:
        same_term = term == st.term
        assert not (same_term and st.role is Role.LEADER), f"two leaders in term {term}"
        assert not same_term or st.leader_id in (NOBODY, leader), f"two leaders in term {term}"
        reason = "leader_found" if same_term else "higher_term"
        election.give_up(st, term, leader=leader, reason=reason, peer=leader)
    st.leader_contact_ms = st.now_ms
    roles.reset_election_timer(st)
    leases.promise(st)
    election.cancel_hint(st, leader, term)


def _append_new(st: RaftState, m: AppendEntries) -> None:
    """Add what is missing; replace what conflicts (Fig. 2, rules 3 and 4)."""
    conflict = st.log.find_conflict(m.entries)
    if conflict is None:
        return
    last_index = st.log.last_index
    if conflict <= last_index:
        assert conflict > st.commit_index, "a leader contradicts a committed entry"
        st.log.truncate_from(conflict)
        membership.on_truncated(st, conflict)
        st.notices.append(EntriesTruncated(conflict, last_index, m.src))
    skip = conflict - m.entries.first_index
    st.log.append(m.entries.terms[skip:], m.entries.payloads[skip:])
    st.notices.append(EntriesAppended(conflict, st.log.last_index, m.src))
    membership.on_appended(st, conflict, m.entries.payloads[skip:])


def _refuse(st: RaftState, m: AppendEntries) -> None:
    """Refuse, with the place to look at next (Raft §5.3, fast back-up)."""
    mine = st.log.term(m.prev_log_index)
    if mine is None:
        conflict_index, conflict_term = st.log.last_index + 1, 0
    else:
        conflict_index = st.log.first_index_of_term(m.prev_log_index)
        conflict_term = mine
    _answer(
        st,
        m,
        AppendEntriesResponse(
            st.me, m.src, st.term, False, 0, conflict_index, conflict_term, m.round
        ),
    )


def _answer(st: RaftState, m: AppendEntries, response: AppendEntriesResponse) -> None:
    assert response.match_index <= st.log.last_index
    assert response.dst == m.src
    st.say(response)


def advance_commit(st: RaftState, index: int) -> None:
    """Raise the commit index; a lower or equal `index` changes nothing: it never falls."""
    if index > st.commit_index:
        assert index <= st.log.last_index, (index, st.log.last_index)
        old, st.commit_index = st.commit_index, index
        st.notices.append(CommitAdvanced(old, index))
        membership.on_committed(st, old, index)
        changing.on_committed(st)


# The leader's side: answers


def on_append_entries_response(st: RaftState, m: AppendEntriesResponse) -> None:
    """Move the peer's progress, and the commit index with it.

    Answers of other terms count for nothing: an acknowledgement of an older leadership says nothing
    about this log (openraft cecb5de8).
    """
    if m.term > st.term:
        election.give_up(st, m.term, leader=NOBODY, reason="higher_term", peer=m.src)
        return
    leadership = st.leadership
    if m.term < st.term or leadership is None:
        return
    progress = _progress_of(leadership, m.src)
    if progress is None or m.match_index > st.log.last_index:
        return
    progress.last_contact_ms = st.now_ms
    if m.round <= leadership.round:
        progress.acked_round = max(progress.acked_round, m.round)
    if m.success:
        rose = progress.on_accepted(m.match_index)
        if progress.state is _PROBE and m.round >= progress.probe_round:
            _change(st, progress, _REPLICATE, "accepted")
        elif progress.state is _SNAPSHOT:
            maybe_leave_snapshot(st, leadership, progress)
        if rose and m.match_index > st.commit_index:
            maybe_commit(st)
        changing.on_progress(st, progress)
    elif m.round >= progress.probe_round and progress.state is not _SNAPSHOT:
        _back_up(st, leadership, progress, m)


def maybe_leave_snapshot(st: RaftState, leadership: Leadership, progress: Progress) -> None:
    """Go on with entries if the log still knows the place up to which a peer holds everything."""
    if progress.match_index >= st.log.compacted.index:
        leave_snapshot(st, leadership, progress, "installed")


def leave_snapshot(st: RaftState, leadership: Leadership, progress: Progress, reason: str) -> None:
    """Probe a peer after a snapshot, from the first entry that it may miss."""
    if progress.state is _SNAPSHOT:
        _probe(st, leadership, progress, reason)


def _probe(st: RaftState, leadership: Leadership, progress: Progress, reason: str) -> None:
    """Look for where the logs meet, from the first entry that is here and not acknowledged.

    What was sent before, heartbeats that said index 0 among it, may still be answered: a round of
    its own tells them apart.
    """
    rounds.next_round(st, leadership)
    progress.probe_round = leadership.round
    next_index = max(progress.match_index, st.log.compacted.index) + 1
    _change(st, progress, _PROBE, reason, next_index)


def _progress_of(leadership: Leadership, peer: MemberId) -> Progress | None:
    """Return what is known of a peer, also of one that leaves."""
    progress = leadership.progress.get(peer)
    if progress is None and peer in leadership.leaving:
        return leadership.leaving[peer].progress
    return progress


def _back_up(
    st: RaftState, leadership: Leadership, progress: Progress, m: AppendEntriesResponse
) -> None:
    """Go back to where the logs may meet; ignore refusals that older sends explain.

    What is sent from here on has a round of its own, and answers of earlier rounds no longer decide
    how this peer is sent to. Otherwise, where messages overtake each other, each late acceptance
    would send the whole window again and each late refusal would take that back: one append became
    hundreds.

    If the leader has the conflicting term too, the logs may agree up to its last entry of it;
    otherwise not before the peer's first entry of it. If that lies in what is compacted away, no
    append can ever say where they meet: the peer needs a snapshot (Raft §7).

    A log that was too short, or had another term, at a place that was acknowledged since, and a
    target that would not lower `next_index`, belong to appends from before the last back-up. What
    was acknowledged is durable, so nothing goes back below it.
    """
    target, compacted_index = m.conflict_index, st.log.compacted.index
    if target == 0:
        return  # it refuses the term, and says nothing of the log
    # Where the target's own term is compacted away, the run that starts there has to reach the
    # compacted entry, which is acknowledged and known.
    acknowledged = compacted_index <= progress.match_index and target <= progress.match_index
    if acknowledged and st.log.term(max(target, compacted_index)) != m.conflict_term:
        return
    if m.conflict_term != 0:
        last_of_term = st.log.last_index_of_term(m.conflict_term)
        if last_of_term is not None and target <= last_of_term < progress.next_index - 1:
            target = last_of_term + 1
        target = max(target, progress.match_index + 1)
    if target >= progress.next_index:
        return
    rounds.next_round(st, leadership)
    progress.probe_round = leadership.round
    if target <= compacted_index:
        _change(st, progress, _SNAPSHOT, "compacted")
        st.send_snapshots.append(progress.peer)
    elif progress.state is _PROBE:
        progress.become_probe(target)
    else:
        _change(st, progress, _PROBE, "refused", target)


def _change(
    st: RaftState, progress: Progress, new: ProgressState, reason: str, next_index: int = 0
) -> None:
    old = progress.state
    match new:
        case ProgressState.REPLICATE:
            progress.become_replicate()
        case ProgressState.PROBE:
            progress.become_probe(next_index)
        case ProgressState.SNAPSHOT:
            progress.become_snapshot()
    st.notices.append(
        ProgressChanged(progress.peer, old.value, new.value, progress.match_index, reason)
    )


def on_peer_down(st: RaftState, peer: MemberId) -> None:
    """Probe a peer whose process is gone: what was in flight to it is lost."""
    leadership = st.leadership
    progress = None if leadership is None else leadership.progress.get(peer)
    if progress is not None and progress.state is _REPLICATE:
        # Not below what is compacted: the probe's answer tells whether a snapshot is needed.
        next_index = max(progress.match_index, st.log.compacted.index) + 1
        _change(st, progress, _PROBE, "peer_down", next_index)


def maybe_commit(st: RaftState) -> None:
    """Commit what a quorum holds durably, by counting, for entries of the current term only.

    Older entries are committed with them, never on their own: Figure 8 (Raft §5.4.2). A commit may
    end a joint configuration, and what the new one holds alone is committed then as well.
    """
    leadership = st.leadership
    assert leadership is not None
    matches = {peer: progress.match_index for peer, progress in leadership.progress.items()}
    matches[st.me] = st.log.persisted_index
    index = reached_by_quorum(matches, st.configuration)
    if index > st.commit_index and st.log.term(index) == st.term:
        configuration = st.configuration
        advance_commit(st, index)
        if st.configuration is not configuration:
            maybe_commit(st)


# The leader's side: CheckQuorum


def quorum_contact_ms(st: RaftState, leadership: Leadership) -> int:
    """Return the last moment at which a quorum had been heard; this node hears itself now."""
    contacts = {peer: progress.last_contact_ms for peer, progress in leadership.progress.items()}
    contacts[st.me] = st.now_ms
    return reached_by_quorum(contacts, st.configuration)


def check_quorum(st: RaftState) -> None:
    """Step down if no quorum was heard for the longest election timeout (thesis §6.2)."""
    leadership = st.leadership
    assert leadership is not None
    limit_ms = st.settings.election_max_ms
    deadline_ms = quorum_contact_ms(st, leadership) + limit_ms
    if st.now_ms < deadline_ms:
        leadership.check_quorum_ms = deadline_ms
        st.grace_used = False
        return
    heard = tuple(
        progress.peer
        for progress in leadership.progress.values()
        if st.now_ms - progress.last_contact_ms < limit_ms
    )
    st.notices.append(QuorumLost(st.term, heard))
    roles.become_follower(st, st.term, leader=NOBODY, reason="quorum_lost")
