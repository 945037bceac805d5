"""Leader election: who stands, who votes, who is refused (Raft §5.2, §5.4.1; thesis §4.2.3, §9.6).

PreVote, CheckQuorum and leader stickiness belong together and are on together by default. PreVote
keeps a node that was cut off from raising the term; CheckQuorum makes a leader without a quorum
step down; stickiness makes those who hear a leader ignore others' elections. Each alone has a
cluster that it stops for good; together they do not (partial connectivity, Cloudflare 2020).

"Peer down": a killed process closes its connections at once, and the transport finds that its
endpoint refuses. That is a hint, and PreVote makes acting on it safe: a node that takes it drops
its own stickiness only, asks the others, and is refused by all who still hear the leader.
"""

from __future__ import annotations

from zraft.core import leases, roles
from zraft.core.messages import Message, RequestVote, RequestVoteResponse
from zraft.core.model import NOBODY, MemberId, Role
from zraft.core.notices import (
    ElectionLost,
    ElectionStarted,
    ElectionWon,
    HintCancelled,
    HintTaken,
    VoteDenied,
    VoteGranted,
)
from zraft.core.quorum import VoteResult, vote_result
from zraft.core.state import Hint, RaftState

HINT_RANK_MS = 5
HINT_REPEAT_MIN_MS = 15  # 20 ms ± 25 %
HINT_REPEAT_MAX_MS = 25


def start(st: RaftState, reason: str) -> None:
    """Begin an attempt: with a pre-vote, or with the vote itself when pre-votes are off."""
    if st.settings.pre_vote:
        start_pre_vote(st, reason)
    else:
        start_vote(st, reason)


def start_pre_vote(st: RaftState, reason: str) -> None:
    """Ask everyone whether they would vote for this node in the next term."""
    _report_lost(st, "timeout")
    roles.become_pre_candidate(st, reason)
    st.notices.append(ElectionStarted(st.term + 1, True, reason))
    ask_for_votes(st)
    maybe_finish(st)


def start_vote(st: RaftState, reason: str) -> None:
    """Stand for election in the next term. The own vote counts after the sync, in `advance`.

    `reason` "transfer": the leader asked for it, and the requests say so.
    """
    if reason != "pre_vote_won":
        _report_lost(st, "timeout")
    assert reason == "transfer" or not leases.is_promised(st), "votes in spite of its promise"
    roles.become_candidate(st, reason)
    st.notices.append(ElectionStarted(st.term, False, reason))
    ask_for_votes(st)


def ask_for_votes(st: RaftState) -> None:
    """Send the request to every voter that has not said yes, in parallel (Raft §5.1).

    One that said no is asked again: it may have heard the leader a moment before we missed it.
    """
    attempt = st.attempt
    assert attempt is not None
    pre_vote = st.role is Role.PRE_CANDIDATE
    last = st.log.last_id
    for peer in st.voting_peers:
        if not attempt.votes.get(peer, False):
            st.say(
                RequestVote(
                    st.me,
                    peer,
                    st.term,
                    pre_vote,
                    attempt.vote_term,
                    last.index,
                    last.term,
                    attempt.transfer,
                )
            )
    attempt.resend_ms = st.now_ms + st.settings.heartbeat_ms


def _report_lost(st: RaftState, reason: str) -> None:
    """Report that the attempt under way, if any, ended without a quorum."""
    attempt = st.attempt
    if attempt is None:
        return
    votes = tuple(sorted(peer for peer, granted in attempt.votes.items() if granted))
    elapsed_ms = st.now_ms - attempt.started_ms
    pre_vote = st.role is Role.PRE_CANDIDATE
    st.notices.append(
        ElectionLost(attempt.vote_term, pre_vote, votes, st.quorum, elapsed_ms, reason)
    )


def give_up(st: RaftState, term: int, *, leader: MemberId, reason: str, peer: MemberId) -> None:
    """Become a follower, and report an attempt that this ends."""
    _report_lost(st, "higher_term" if term > st.term else reason)
    roles.become_follower(st, term, leader=leader, reason=reason, peer=peer)


def maybe_finish(st: RaftState) -> None:
    """Go on to the next role once the votes decide the attempt."""
    attempt = st.attempt
    if attempt is None:
        return
    result = vote_result(attempt.votes, st.configuration)
    if result is VoteResult.LOST:
        give_up(st, st.term, leader=st.leader_id, reason="refused", peer=NOBODY)
    elif result is VoteResult.WON:
        pre_vote = st.role is Role.PRE_CANDIDATE
        votes = tuple(sorted(peer for peer, granted in attempt.votes.items() if granted))
        elapsed_ms = st.now_ms - attempt.started_ms
        st.notices.append(ElectionWon(attempt.vote_term, pre_vote, votes, st.quorum, elapsed_ms))
        if pre_vote:
            start_vote(st, "pre_vote_won")
        else:
            roles.become_leader(st)


def is_leader_alive(st: RaftState) -> bool:
    """Return whether this node has a reason to stick to its leader (thesis §4.2.3).

    It leads itself, or it heard the leader within the *minimal* election timeout and was not told
    that the leader's process is gone.
    """
    if st.role is Role.LEADER:
        return True
    if st.leader_id == NOBODY or st.leader_contact_ms is None:
        return False
    if st.hint is not None and st.hint.leader == st.leader_id:
        return False
    return st.now_ms - st.leader_contact_ms < st.settings.election_min_ms


def _refusal(st: RaftState, m: RequestVote) -> str | None:
    """Return why this vote or pre-vote is refused, None to grant it. Terms are adopted by then."""
    if m.vote_term < st.term or (m.pre_vote and m.vote_term == st.term):
        return "stale_term"
    if st.role is Role.LEADER:
        return "is_leader"
    if not m.pre_vote and st.voted_for not in (NOBODY, m.src):
        return "already_voted"
    if not st.log.is_up_to_date(m.last_log_index, m.last_log_term):
        return "log_behind"
    return None


def _is_repeated(st: RaftState, m: RequestVote) -> bool:
    """Return whether this asks for the vote that this node has given already."""
    return not m.pre_vote and m.vote_term == st.term and st.voted_for == m.src


def on_request_vote(st: RaftState, m: RequestVote) -> None:
    """Vote, at most once a term, for a log that is up to date; always answer.

    A node that hears a leader, or that promised one its lease, neither votes nor learns the higher
    term (thesis §4.2.3), unless the leader asked for the election itself. A pre-vote changes
    nothing here but may teach the term its sender is *in*. A request that is delivered twice is
    granted twice: it is the same vote.

    Durability: every answer goes to `messages_after_persist`.
    Source: Raft §5.2, §5.4.1, Fig. 2 "RequestVote RPC"; thesis §9.6.
    """
    sticky = (st.settings.check_quorum or m.pre_vote) and is_leader_alive(st) and not m.transfer
    refusal: str | None
    if sticky and m.vote_term > st.term:
        refusal = "is_leader" if st.role is Role.LEADER else "leader_alive"
    elif leases.is_promised(st) and not m.transfer and not _is_repeated(st, m):
        refusal = "lease_promised"
    else:
        if m.term > st.term:
            give_up(st, m.term, leader=NOBODY, reason="higher_term", peer=m.src)
        refusal = _refusal(st, m)
    granted = refusal is None
    if refusal is not None:
        st.notices.append(VoteDenied(m.src, m.vote_term, m.pre_vote, refusal))
    else:
        st.notices.append(VoteGranted(m.src, m.vote_term, m.pre_vote))
        if m.pre_vote:
            _yield_to_another(st, m.src)
        else:
            if st.role is not Role.FOLLOWER:
                give_up(st, st.term, leader=NOBODY, reason="voted", peer=m.src)
            st.voted_for = m.src
            roles.reset_election_timer(st)
    st.say(RequestVoteResponse(st.me, m.src, st.term, m.pre_vote, m.vote_term, granted))


def on_request_vote_response(st: RaftState, m: RequestVoteResponse) -> None:
    """Count an answer to the attempt under way, and to no other.

    An answer belongs to the attempt when role, kind and the term *asked about* agree: the answering
    node's own term may be lower (it pre-voted, or refused without learning). A yes wins over an
    older no of the same attempt: a pre-vote that is repeated may find the voter of another mind.
    """
    if m.term > st.term:
        give_up(st, m.term, leader=NOBODY, reason="higher_term", peer=m.src)
        return
    attempt = st.attempt
    expected = Role.PRE_CANDIDATE if m.pre_vote else Role.CANDIDATE
    if attempt is None or st.role is not expected or attempt.vote_term != m.vote_term:
        return
    if m.granted and not m.pre_vote and m.term != st.term:
        return  # nobody votes in a term without entering it
    attempt.votes[m.src] = m.granted or attempt.votes.get(m.src, False)
    maybe_finish(st)


def on_peer_down(st: RaftState, peer: MemberId, incarnation: int) -> None:
    """Take the hint that the leader's process is gone (docs/ARCHITECTURE.md, "Peer down").

    This node's stickiness for that (leader, term) ends; pre-votes start after rank × 5 ms + U(0,
    5) and are repeated while the hint stands. No two survivors ask in the same millisecond: they
    would grant each other the pre-vote and split the vote. Leader and term stay what they are.
    """
    if not st.settings.pre_vote or st.role is Role.LEADER:
        return
    if peer != st.leader_id or st.hint is not None:
        return
    others = [voter for voter in st.configuration.electorate if voter != peer]
    if st.me not in others:
        return
    rank = (others.index(st.me) + st.term) % len(others)
    delay_ms = rank * HINT_RANK_MS + st.draw_ms(0, HINT_RANK_MS - 1)
    st.hint = Hint(peer, st.term, incarnation, st.now_ms + delay_ms)
    leases.end_promise(st)
    st.notices.append(HintTaken(peer, st.term, delay_ms))


def _yield_to_another(st: RaftState, peer: MemberId) -> None:
    """Put the hint's next pre-vote off: somebody else was just told that they would win.

    The survivors' ranks are a few milliseconds apart, which is less than a busy machine takes to
    deliver a message. Without this, those who said yes ask a moment later themselves, all win the
    pre-vote, and the vote splits: 2 of 20 fail-overs took a whole election timeout. When two
    pre-votes cross, the member with the greater id gives its own up.
    """
    if st.hint is None:
        return
    wait_ms = st.draw_ms(HINT_REPEAT_MIN_MS, HINT_REPEAT_MAX_MS)
    st.hint.deadline_ms = max(st.hint.deadline_ms, st.now_ms + wait_ms)
    if st.role is Role.PRE_CANDIDATE and peer < st.me:
        give_up(st, st.term, leader=st.leader_id, reason="yielded", peer=peer)


def cancel_hint(st: RaftState, peer: MemberId, term: int) -> None:
    """A message of that leader's term came from it after all: the hint is void."""
    hint = st.hint
    if hint is not None and hint.leader == peer and hint.term == term:
        st.hint = None
        st.notices.append(HintCancelled(peer, term))


def is_granted_answer(message: Message) -> bool:
    """Return whether `message` says yes to an election: no process that leads says that.

    So it does not cancel the hint: it comes from the dead leader's next life.
    """
    return isinstance(message, RequestVoteResponse) and message.granted


def on_hint_deadline(st: RaftState) -> None:
    """Try a pre-vote because of the hint, and again in 20 ms ± 25 %.

    While it is undecided the question is repeated, to all who have not said yes; it is the same
    attempt, so a cluster without a majority does not report fifty elections a second.
    """
    hint = st.hint
    assert hint is not None
    hint.deadline_ms = st.now_ms + st.draw_ms(HINT_REPEAT_MIN_MS, HINT_REPEAT_MAX_MS)
    if leases.is_promised(st):
        return  # the hint is no certainty here
    if st.role is Role.FOLLOWER:
        start_pre_vote(st, "hint")
    elif st.role is Role.PRE_CANDIDATE:
        ask_for_votes(st)
