"""How a leader changes the membership, by joint consensus (Raft §6; thesis §4.2, §4.3).

    old ──change_members──▶ joint, both majorities decide ──committed──▶ new ──committed──▶ done

The leader appends the joint entry, and once that is committed the final one, exactly once; a leader
that finds a joint entry in its log goes on with it as soon as an entry of its own term is
committed. Learners come and go in one step. There is one change at a time, and none before an entry
of the leader's own term is committed: two leaders' changes from one base could otherwise have
majorities that do not meet (Ongaro 2015, raft-dev).

Learners in `joining` are promoted by the leader. A learner has caught up when a round of
replication, up to what was the log's end when the round began, took less than an election timeout
(thesis §4.2.1); and it must hold an entry of the leader's own term, so that a member that replaces
a wiped one holds all that its predecessor may have acknowledged.
"""

from __future__ import annotations

from collections.abc import Sequence

from zraft.core import roles, transfer
from zraft.core.changes import ChangeRefused, Refusal, changed, final
from zraft.core.messages import TimeoutNow
from zraft.core.model import (
    NOBODY,
    ChangeKind,
    Command,
    Configuration,
    EntryId,
    EntryType,
    MemberChange,
    MemberId,
    MemberInfo,
)
from zraft.core.notices import MemberCaughtUp
from zraft.core.progress import Progress, ProgressState
from zraft.core.rounds import next_round
from zraft.core.state import Leadership, RaftState


def change_members(st: RaftState, changes: Sequence[MemberChange]) -> EntryId | ChangeRefused:
    """Begin a change; return the entry that holds it, or why there is none.

    The change counts at once and is done when the entry, and after a joint one the final one too,
    is committed.
    """
    leadership = st.leadership
    if leadership is None:
        return ChangeRefused(Refusal.NOT_LEADER)
    refusal = _not_now(st, leadership)
    if refusal is not None:
        return ChangeRefused(refusal)
    new = changed(st.configuration, changes)
    if isinstance(new, ChangeRefused):
        return new
    for kind, member in changes:
        if kind is ChangeKind.PROMOTE and not _has_caught_up(st, leadership, member.member_id):
            return ChangeRefused(Refusal.NOT_CAUGHT_UP, member.member_id)
    return EntryId(_append(st, new), st.term)


def _not_now(st: RaftState, leadership: Leadership) -> Refusal | None:
    """Return why no change may begin now, whatever it is."""
    if st.commit_index < leadership.noop_index:
        return Refusal.NO_OWN_COMMIT
    if leadership.transfer is not None:
        return Refusal.TRANSFER
    if st.configuration.is_joint or st.configuration.index > st.commit_index:
        return Refusal.IN_FLIGHT
    return None


def _append(st: RaftState, configuration: Configuration) -> int:
    body = st.codec.encode_configuration(configuration)
    return roles.append_own(st, [Command(body, EntryType.CONFIG)])


def on_committed(st: RaftState) -> None:
    """Leave a joint configuration that is committed now, or promote who waits.

    The final entry is appended once: from then on the newest configuration is not joint.
    """
    leadership = st.leadership
    if leadership is None or st.commit_index < leadership.noop_index:
        return
    configuration = st.configuration
    if configuration.index > st.commit_index:
        return
    if configuration.is_joint:
        _append(st, final(configuration))
    elif configuration.joining:
        maybe_promote(st)


# Learners


def on_progress(st: RaftState, progress: Progress) -> None:
    """Count the rounds of a learner that answered, and promote it when it has caught up."""
    catch_up = progress.catch_up
    if catch_up is None:
        return
    if progress.match_index >= catch_up.round_end:
        elapsed_ms = st.now_ms - catch_up.started_ms
        catch_up.is_caught_up = elapsed_ms <= st.settings.election_min_ms
        catch_up.rounds += 1
        catch_up.round_end, catch_up.started_ms = st.log.last_index, st.now_ms
    if progress.peer in st.configuration.joining:
        maybe_promote(st)


def _has_caught_up(st: RaftState, leadership: Leadership, member: MemberId) -> bool:
    progress = leadership.progress.get(member)
    if progress is None or progress.catch_up is None:
        return False
    return (
        progress.catch_up.is_caught_up
        and progress.state is ProgressState.REPLICATE
        and progress.match_index >= leadership.noop_index
        and st.now_ms - progress.last_contact_ms <= st.settings.election_max_ms
    )


def maybe_promote(st: RaftState) -> None:
    """Promote all who wait for it and have caught up, in one change."""
    leadership = st.leadership
    if leadership is None or _not_now(st, leadership) is not None:
        return
    joining = st.configuration.joining
    ready = [member for member in joining if _has_caught_up(st, leadership, member)]
    if not ready:
        return
    steps = [MemberChange(ChangeKind.PROMOTE, MemberInfo(member, "")) for member in ready]
    new = changed(st.configuration, steps)
    assert isinstance(new, Configuration), new
    for member in ready:
        progress = leadership.progress[member]
        assert progress.catch_up is not None
        rounds = progress.catch_up.rounds
        st.notices.append(MemberCaughtUp(member, progress.match_index, rounds))
    _append(st, new)


# Those who leave


def dismiss(st: RaftState, leadership: Leadership) -> None:
    """Stop telling those who left once they know it, or have had two election timeouts for it.

    They know it when they answered a round that began after they held the final entry and the
    leader knew it committed.
    """
    for peer, leaving in list(leadership.leaving.items()):
        if st.commit_index < leaving.index:
            continue
        if leaving.until_ms is None:
            leaving.until_ms = st.now_ms + 2 * st.settings.election_max_ms
        progress = leaving.progress
        if leaving.round is None and progress.match_index >= leaving.index:
            next_round(st, leadership)
            leaving.round = leadership.round
            leadership.heartbeat_due = True
        told = leaving.round is not None and progress.acked_round >= leaving.round
        if told or st.now_ms >= leaving.until_ms:
            del leadership.leaving[peer]


def maybe_leave(st: RaftState) -> None:
    """Step down if a committed configuration leaves this leader without a vote (Raft §6).

    Called after the appends were made that tell the others of the commit. The voter that holds most
    of the log is asked to stand at once, so that nobody waits for a timeout (thesis §4.2.2).
    """
    configuration, leadership = st.configurations.newest, st.leadership
    if (
        leadership is None
        or st.me in configuration.voters
        or configuration.is_joint
        or configuration.index > st.commit_index
    ):
        return
    heir = transfer.best_target(st, leadership)
    if heir != NOBODY:
        st.say(TimeoutNow(st.me, heir, st.term))
    reason = "demoted" if st.me in configuration.learners else "removed"
    roles.become_follower(st, st.term, leader=NOBODY, reason=reason)
