"""Leadership is handed over: the leader picks its successor (thesis §3.10).

    begin ──▶ catching up ──target holds the whole log──▶ TimeoutNow ──▶ the target stands at once
                  │                                            │              and is elected
                  └──── election_max_ms, or the target is gone ┴──▶ aborted: this node leads on

While it runs the leader takes no proposals, or the target would never hold the whole log. The
target's requests for votes say that the leader asked for them, and so pass the stickiness of those
who still hear it. Once a TimeoutNow has left, an election may be under way that no promise of the
voters holds back: this term has no lease any more, even if the transfer is aborted.
"""

from __future__ import annotations

from enum import Enum

from zraft.core import election, membership
from zraft.core.messages import TimeoutNow
from zraft.core.model import NOBODY, MemberId, Role
from zraft.core.notices import TransferEnded, TransferSent, TransferStarted
from zraft.core.state import FAR_MS, Leadership, RaftState, Transfer


class TransferRefusal(Enum):
    """Why leadership is not handed over. Nothing was changed."""

    NOT_LEADER = "this node does not lead"
    MYSELF = "it leads already"
    UNKNOWN = "it is no member"
    LEARNER = "it is a learner: it does not vote and can't lead"
    UNDER_WAY = "another hand-over is under way"
    NOBODY_THERE = "no other voter was heard within the last election timeout"


def begin(st: RaftState, target: MemberId) -> TransferRefusal | None:
    """Begin to hand over to `target`, NOBODY: to the best one; return why not, None when begun.

    The one under way to the same target goes on, and is no reason to refuse.
    """
    leadership = st.leadership
    if leadership is None:
        return TransferRefusal.NOT_LEADER
    refusal = _refusal(st, target)
    if refusal is not None:
        return refusal
    under_way = leadership.transfer
    if under_way is not None:
        same = target in (NOBODY, under_way.target)
        return None if same else TransferRefusal.UNDER_WAY
    chosen = target if target != NOBODY else best_target(st, leadership)
    if chosen == NOBODY:
        return TransferRefusal.NOBODY_THERE
    deadline_ms = st.now_ms + st.settings.election_max_ms
    leadership.transfer = Transfer(chosen, st.now_ms, deadline_ms)
    leadership.heartbeat_due = True  # finds out at once what the target lacks
    st.notices.append(TransferStarted(chosen, st.term))
    return None


def _refusal(st: RaftState, target: MemberId) -> TransferRefusal | None:
    if target == st.me:
        return TransferRefusal.MYSELF
    if target == NOBODY or target in st.configuration.voters:
        return None
    known = target in st.configuration.everybody
    return TransferRefusal.LEARNER if known else TransferRefusal.UNKNOWN


def best_target(st: RaftState, leadership: Leadership) -> MemberId:
    """Return the voter that was heard lately and holds most of the log; NOBODY if there is none."""
    heard = [
        progress
        for peer, progress in leadership.progress.items()
        if peer in st.configuration.voters
        and st.now_ms - progress.last_contact_ms < st.settings.election_max_ms
    ]
    best = max(heard, key=lambda progress: progress.match_index, default=None)
    return NOBODY if best is None else best.peer


def maybe_hand_over(st: RaftState, leadership: Leadership) -> None:
    """Send TimeoutNow once the target holds the whole log, and again each heartbeat.

    The target ignores the second one: it is in a later term by then.
    """
    transfer = leadership.transfer
    if transfer is None:
        return
    progress = leadership.progress.get(transfer.target)
    if progress is None or transfer.target not in st.configuration.voters:
        end(st, leadership, "target_gone")
        return
    if transfer.resend_ms is None:
        if progress.match_index != st.log.last_index:
            return
        leadership.sent_timeout_now = True
        st.notices.append(TransferSent(transfer.target, st.now_ms - transfer.started_ms))
    elif st.now_ms < transfer.resend_ms:
        return
    transfer.resend_ms = st.now_ms + st.settings.heartbeat_ms
    st.say(TimeoutNow(st.me, transfer.target, st.term))


def deadline_ms(leadership: Leadership) -> int:
    """Return when `on_timer` has something to do."""
    transfer = leadership.transfer
    if transfer is None:
        return FAR_MS
    if transfer.resend_ms is None:
        return transfer.deadline_ms
    return min(transfer.deadline_ms, transfer.resend_ms)


def on_timer(st: RaftState, leadership: Leadership) -> None:
    """Abort a transfer that took an election timeout: this node leads on."""
    transfer = leadership.transfer
    if transfer is not None and st.now_ms >= transfer.deadline_ms:
        end(st, leadership, "timeout")


def end(st: RaftState, leadership: Leadership, outcome: str) -> None:
    """Report how the transfer under way, if any, ended, and forget it."""
    transfer = leadership.transfer
    if transfer is not None:
        elapsed_ms = st.now_ms - transfer.started_ms
        st.notices.append(TransferEnded(transfer.target, outcome, elapsed_ms))
        leadership.transfer = None


def on_peer_down(st: RaftState, peer: MemberId) -> None:
    """Abort a transfer to somebody whose process is gone."""
    leadership = st.leadership
    transfer = None if leadership is None else leadership.transfer
    if leadership is not None and transfer is not None and transfer.target == peer:
        end(st, leadership, "target_gone")


def on_timeout_now(st: RaftState, m: TimeoutNow) -> None:
    """Stand for election at once, without a pre-vote, if this node votes.

    One of an older term is void: its sender leads no more, and the election would depose a leader
    that nobody asked to go. A learner ignores all of them (etcd db54973).
    """
    if m.term < st.term or not membership.may_stand(st) or st.role is Role.LEADER:
        return
    if m.term > st.term:
        election.give_up(st, m.term, leader=NOBODY, reason="higher_term", peer=m.src)
    election.start_vote(st, "transfer")
