"""Every change of role. `RaftState.role` is assigned in this file and nowhere else.

   ┌──────────────── a leader of this term, or a higher term ───────────────┐
   ▼                                                                        │
FOLLOWER ──deadline or hint──▶ PRE_CANDIDATE ──quorum──▶ CANDIDATE ──quorum──▶ LEADER
   ▲                             │                          │  (Raft §5.2, thesis §9.6)
   └──────── refused ────────────┴──────────────────────────┘
"""

from __future__ import annotations

from zraft.core import membership
from zraft.core.messages import ReadIndexResponse
from zraft.core.model import NOBODY, Command, EntryType, HardState, MemberId, Role
from zraft.core.notices import (
    EntriesAppended,
    LeaderChanged,
    RoleChanged,
    TermAdvanced,
    TransferEnded,
)
from zraft.core.state import Attempt, Leadership, RaftState


def reset_election_timer(st: RaftState) -> None:
    """Draw a new election deadline (Raft §5.2: randomised anew each time)."""
    settings = st.settings
    wait_ms = st.draw_ms(settings.election_min_ms, settings.election_max_ms)
    st.election_deadline_ms = st.now_ms + wait_ms
    st.grace_used = False


def _advance_term(st: RaftState, term: int, voted_for: MemberId, peer: MemberId) -> None:
    """Enter a higher term; the vote starts empty or is this node's own, in one step."""
    assert term > st.term, (term, st.term)
    st.notices.append(TermAdvanced(st.term, term, peer))
    _stop_asking(st)
    st.term = term
    st.voted_for = voted_for
    st.leader_contact_ms = None
    st.hint = None


def _set_role(st: RaftState, role: Role, reason: str) -> None:
    if st.role is not role:
        st.notices.append(RoleChanged(st.role.value, role.value, st.term, reason))
        st.role = role


def _set_leader(st: RaftState, leader: MemberId) -> None:
    if st.leader_id != leader:
        _stop_asking(st)
        st.leader_id = leader
        st.notices.append(LeaderChanged(leader, st.term))


def _stop_asking(st: RaftState) -> None:
    """Leader or term changes: what this node asked the leader is void, an answer to it too."""
    if st.open_ask_id is not None:
        st.aborted_reads.append(st.open_ask_id)
        st.open_ask_id = None
    st.aborted_reads.extend(asked.read_id for asked in st.asked_reads)
    st.asked_reads.clear()


def _end_leadership(st: RaftState, new_term: int) -> None:
    """Give back what a leader holds: its proposals are undecided now, its reads unanswered.

    Followers that wait for a read index are told, so that they need not wait for their time-out.
    """
    leadership = st.leadership
    if leadership is None:
        return
    st.aborted_term = st.term
    asked = list(leadership.asked_reads)
    for pending in leadership.pending_reads:
        if pending.asker == NOBODY:
            st.aborted_reads.append(pending.read_id)
        else:
            asked.append((pending.asker, pending.read_id))
    if leadership.open_read_id is not None:
        st.aborted_reads.append(leadership.open_read_id)
    for asker, read_id in asked:
        st.say(ReadIndexResponse(st.me, asker, st.term, read_id, 0))
    if leadership.transfer is not None:
        handed_over = leadership.transfer.resend_ms is not None and new_term > st.term
        elapsed_ms = st.now_ms - leadership.transfer.started_ms
        outcome = "done" if handed_over else "leadership_lost"
        st.notices.append(TransferEnded(leadership.transfer.target, outcome, elapsed_ms))
    st.leadership = None


def become_follower(
    st: RaftState, term: int, *, leader: MemberId, reason: str, peer: MemberId = NOBODY
) -> None:
    """Follow `leader` (NOBODY: none known yet) in `term`, which is not below the current one.

    The election timer runs on, unless this node led: it is restarted by hearing a leader and by
    granting a vote only, or a node with a stale log could keep all others from standing.
    """
    assert term >= st.term, (term, st.term)
    was_leader = st.role is Role.LEADER
    _end_leadership(st, term)
    if term > st.term:
        _advance_term(st, term, NOBODY, peer)
    st.attempt = None
    _set_role(st, Role.FOLLOWER, reason)
    _set_leader(st, leader)
    if was_leader:
        st.leader_contact_ms = None
        reset_election_timer(st)


def become_pre_candidate(st: RaftState, reason: str) -> None:
    """Ask whether an election could be won; term and vote stay (thesis §9.6).

    After a timeout this node knows no leader any more: requests are kept and not sent to one that
    hangs. A hint leaves the leader's name, as the pre-vote may be refused by all who hear it.
    """
    assert st.role is not Role.LEADER
    started_ms = st.now_ms
    if st.role is not Role.FOLLOWER and st.attempt is not None:
        started_ms = st.attempt.started_ms
    st.attempt = Attempt(
        vote_term=st.term + 1,
        started_ms=started_ms,
        resend_ms=st.now_ms + st.settings.heartbeat_ms,
        votes={st.me: True},
    )
    _set_role(st, Role.PRE_CANDIDATE, reason)
    if reason == "timeout":
        _set_leader(st, NOBODY)
    reset_election_timer(st)


def become_candidate(st: RaftState, reason: str) -> None:
    """Enter the next term and vote for oneself; the vote counts once it is durable (Raft §5.2)."""
    assert st.role is not Role.LEADER
    started_ms = st.now_ms if st.attempt is None else st.attempt.started_ms
    _advance_term(st, st.term + 1, st.me, NOBODY)
    st.attempt = Attempt(
        vote_term=st.term,
        started_ms=started_ms,
        resend_ms=st.now_ms + st.settings.heartbeat_ms,
        transfer=reason == "transfer",
    )
    _set_role(st, Role.CANDIDATE, reason)
    _set_leader(st, NOBODY)
    reset_election_timer(st)


def become_leader(st: RaftState) -> None:
    """Lead the current term: probe every peer, and open the term with a no-op (thesis §6.4)."""
    assert st.role is Role.CANDIDATE, st.role
    assert st.durable == HardState(st.term, st.me), "leads a term that is not durable"
    attempt = st.attempt
    assert attempt is not None
    next_index = st.log.last_index + 1
    st.leadership = Leadership(
        progress={},
        noop_index=next_index,
        started_ms=st.now_ms,
        log_time_base_ms=_last_log_time_ms(st),
        heartbeat_ms=st.now_ms + st.settings.heartbeat_ms,
        check_quorum_ms=st.now_ms + st.settings.election_max_ms,
    )
    membership.follow(st, next_index)
    st.campaign_started_ms = attempt.started_ms
    st.attempt = None
    _set_role(st, Role.LEADER, "election_won")
    _set_leader(st, st.me)
    append_own(st, [Command(b"", EntryType.NOOP)])


def _last_log_time_ms(st: RaftState) -> int:
    """Return the log time of the last entry, which a snapshot remembers when the log is empty."""
    payload = st.log.last_payload
    if payload is not None:
        return st.codec.log_time_ms(payload)
    return 0 if st.snapshot is None else st.snapshot.log_time_ms


def append_own(st: RaftState, commands: list[Command]) -> int:
    """Append commands to the leader's own log (Leader Append-Only); return the first one's index.

    Each is encoded here, once, with the term and the log time: the log time at the start of the
    term plus the leader's own time since, so that it never decreases along the log.
    """
    leadership = st.leadership
    assert leadership is not None
    first_index = st.log.last_index + 1
    log_time_ms = leadership.log_time_base_ms + max(0, st.now_ms - leadership.started_ms)
    encode, term = st.codec.encode, st.term
    payloads = [encode(command, term=term, log_time_ms=log_time_ms) for command in commands]
    st.log.append([term] * len(payloads), payloads)
    st.notices.append(EntriesAppended(first_index, st.log.last_index, st.me))
    membership.on_appended(st, first_index, payloads)
    return first_index
