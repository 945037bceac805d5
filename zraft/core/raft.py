"""`Raft`: one way in, one way out (Ongaro & Ousterhout, "In Search of an Understandable Consensus
Algorithm", extended version; Ongaro's thesis).

The core is a state machine without clock, socket, file, thread or global randomness. Time comes in
as `now_ms`, which never goes back; randomness is injected; everything it wants done comes out as a
`Ready`. The same object runs in a node's poll loop and in the simulator.

    step(message)    a peer's message          ready() -> Ready | None     what to do now
    propose(…)       a client's commands       advance(ready)              it was done
    read()           a linearizable read       on_applied(index)           applied so far
    on_timer()       a deadline passed         next_deadline_ms()          when to call on_timer
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from zraft.core import (
    changing,
    election,
    invariants,
    leases,
    membership,
    outbox,
    reads,
    replication,
    roles,
    snapshots,
    transfer,
)
from zraft.core.changes import ChangeRefused
from zraft.core.log import RaftLog
from zraft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    StateDigest,
    TimeoutNow,
)
from zraft.core.model import (
    NOBODY,
    Command,
    Configuration,
    EntryCodec,
    EntryId,
    MemberChange,
    MemberId,
    Random,
    Recovered,
    Role,
    Settings,
    SnapshotMeta,
)
from zraft.core.notices import GraceGranted, LeaseDropped
from zraft.core.progress import ProgressState
from zraft.core.ready import Ready
from zraft.core.state import RaftState
from zraft.core.transfer import TransferRefusal


class Raft:
    """One member's Raft. See the module; the contract of `Ready` is in `zraft.core.ready`."""

    __slots__ = ("_outstanding", "_seen", "_stirred", "_thorough", "state")

    def __init__(
        self,
        me: MemberId,
        recovered: Recovered,
        *,
        settings: Settings,
        codec: EntryCodec,
        random: Random,
        now_ms: int,
        thorough: bool = False,
    ) -> None:
        """Start as a follower with what the disk holds.

        What the snapshot covers is committed, and applied: the node restores it before it applies
        anything. Nothing else counts as committed.
        `thorough` checks every invariant after every step: for tests and the simulator.
        """
        invariants.check_settings(settings)
        hard_state = recovered.hard_state
        snapshot = recovered.snapshot
        covered = 0 if snapshot is None else snapshot.index
        log = RaftLog(recovered.entries, recovered.compacted)
        assert log.compacted.index <= covered <= log.last_index, "a hole before the log"
        assert hard_state.term >= log.last_term, "the log is newer than the hard state"
        self.state = RaftState(
            me=me,
            settings=settings,
            configurations=membership.recovered_configurations(recovered, codec),
            codec=codec,
            random=random,
            term=hard_state.term,
            voted_for=hard_state.voted_for,
            durable=hard_state,
            log=log,
            snapshot=snapshot,
            now_ms=now_ms,
            commit_index=covered,
            handed_index=covered,
            applied_index=covered,
        )
        self._outstanding: Ready | None = None
        self._stirred = True  # something came in since there was nothing to do
        self._thorough = thorough
        self._seen: invariants.Seen = (0, NOBODY, 0, 0)
        roles.reset_election_timer(self.state)
        leases.promise(self.state)  # it may have made one before it forgot
        self._check()

    # What is known

    @property
    def role(self) -> Role:
        """The role now."""
        return self.state.role

    @property
    def term(self) -> int:
        """The current term."""
        return self.state.term

    @property
    def leader_id(self) -> MemberId:
        """The leader of the current term as far as known, NOBODY otherwise."""
        return self.state.leader_id

    @property
    def commit_index(self) -> int:
        """The last index known to be committed."""
        return self.state.commit_index

    @property
    def last_id(self) -> EntryId:
        """Index and term of the last entry."""
        return self.state.log.last_id

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: the newest one in the log, committed or not (Raft §6)."""
        return self.state.configuration

    @property
    def is_removed(self) -> bool:
        """Whether this node was a member and is none any more, by a committed configuration."""
        return membership.is_removed(self.state)

    @property
    def can_serve_reads(self) -> bool:
        """Whether this node leads and has committed an entry of its term (thesis §6.4)."""
        leadership = self.state.leadership
        return leadership is not None and self.state.commit_index >= leadership.noop_index

    @property
    def takes_proposals(self) -> bool:
        """Whether this node leads and is not about to hand over."""
        leadership = self.state.leadership
        return leadership is not None and leadership.transfer is None

    @property
    def transfer_to(self) -> MemberId:
        """Whom this leader hands over to at the moment, NOBODY otherwise."""
        leadership = self.state.leadership
        if leadership is None or leadership.transfer is None:
            return NOBODY
        return leadership.transfer.target

    def lease_left_ms(self, now_ms: int) -> int:
        """Return how long this leader may still answer without asking, 0 without a lease."""
        return max(0, leases.lease_until_ms(self.state) - now_ms)

    def next_deadline_ms(self) -> int:
        """Return when `on_timer` has something to do, on the clock of `now_ms`."""
        st = self.state
        if st.leadership is not None:
            deadline_ms = st.leadership.heartbeat_ms
            if st.leadership.transfer is not None:
                deadline_ms = min(deadline_ms, transfer.deadline_ms(st.leadership))
            check_ms = st.leadership.check_quorum_ms
            if check_ms < deadline_ms and st.settings.check_quorum and not st.decides_alone:
                return check_ms
            return deadline_ms
        if not membership.may_stand(st):
            return reads.ask_deadline_ms(st)
        deadline_ms = st.election_deadline_ms
        if st.asked_reads:
            deadline_ms = min(deadline_ms, reads.ask_deadline_ms(st))
        if st.hint is not None:
            deadline_ms = min(deadline_ms, st.hint.deadline_ms)
        if st.attempt is not None:
            deadline_ms = min(deadline_ms, st.attempt.resend_ms)
        return deadline_ms

    # One way in

    def _enter(self, now_ms: int) -> RaftState:
        """Assert that nothing is outstanding, and take the time in; it never goes back."""
        assert self._outstanding is None, "the Ready handed out was not advanced"
        self._stirred = True
        st = self.state
        st.now_ms = now_ms if now_ms > st.now_ms else st.now_ms
        return st

    def _check(self) -> None:
        st = self.state
        if self._thorough:
            invariants.check_full(st)
        else:
            invariants.check_basic(st)
        after = (st.term, st.voted_for, st.commit_index, st.applied_index)
        if after != self._seen:
            invariants.check_delta(self._seen, after)
            self._seen = after

    def step(self, message: Message, *, now_ms: int) -> None:
        """Take one message of a peer. The transport has checked it: ours, of this cluster.

        Requests are taken from strangers as well: who is a member is decided by the log, and a
        candidate or a leader may know more of it than this node (thesis §4.1). Answers of those
        who are not members count for nothing.
        """
        st = self._enter(now_ms)
        assert message.dst == st.me, (message.dst, st.me)
        if message.src == st.me or not membership.is_heard(st, message):
            return
        if st.hint is not None and not election.is_granted_answer(message):
            election.cancel_hint(st, message.src, message.term)
        match message:
            case AppendEntries():
                replication.on_append_entries(st, message)
            case AppendEntriesResponse():
                replication.on_append_entries_response(st, message)
            case RequestVote():
                election.on_request_vote(st, message)
            case RequestVoteResponse():
                election.on_request_vote_response(st, message)
            case TimeoutNow():
                transfer.on_timeout_now(st, message)
            case ReadIndex():
                reads.on_read_index(st, message)
            case ReadIndexResponse():
                reads.on_read_index_response(st, message)
            case InstallSnapshot():
                snapshots.on_install_snapshot(st, message)
            case InstallSnapshotResponse():
                snapshots.on_install_snapshot_response(st, message)
            case StateDigest():
                pass  # servers compare states; Raft has no part in it
            case _:
                assert_never(message)
        self._check()

    def propose(self, commands: list[Command], *, now_ms: int) -> EntryId | None:
        """Append commands to the log; return index and term of the first one.

        None if this node does not lead, or hands over: see `takes_proposals`. They are committed
        when an entry with that index *and* that term is. A batch of commands costs one message a
        peer and one sync.
        """
        st = self._enter(now_ms)
        if not self.takes_proposals or not commands:
            return None
        first_index = roles.append_own(st, commands)
        self._check()
        return EntryId(first_index, st.term)

    def change_members(
        self, changes: Sequence[MemberChange], *, now_ms: int
    ) -> EntryId | ChangeRefused:
        """Begin a change of membership, all steps at once; see `zraft.core.changing`.

        It has begun when an EntryId comes back; it is done when a configuration that is not joint,
        at or after that index, is committed.
        """
        begun = changing.change_members(self._enter(now_ms), changes)
        self._check()
        return begun

    def on_told_removed(self, index: int, *, now_ms: int) -> None:
        """Learn from a member that the committed configuration at `index` is without this node."""
        membership.on_told_removed(self._enter(now_ms), index)
        self._check()

    def read(self, *, now_ms: int) -> int | None:
        """Ask for a linearizable read; return its id in `Ready.reads`, None without a leader.

        A leader confirms that it leads, a follower asks its leader for the index.
        """
        return reads.read(self._enter(now_ms))

    def lease_read(self, *, now_ms: int) -> int | None:
        """Return the index at which a read may be answered without asking, None without a lease.

        `now_ms` must have been read *after* the request was taken in: judged by an older time, a
        lease is valid that ended while the process stood still.
        """
        return leases.lease_index(self._enter(now_ms))

    def transfer(self, target: MemberId = NOBODY, *, now_ms: int) -> TransferRefusal | None:
        """Begin to hand leadership over; NOBODY: to the best voter. Return why not, None if begun.

        How it ends is a notice; see `zraft.core.transfer`.
        """
        st = self._enter(now_ms)
        refusal = transfer.begin(st, target)
        self._check()
        return refusal

    def campaign(self, *, now_ms: int) -> bool:
        """Stand for election now, without a pre-vote: it skips that, and not stickiness.

        False when this node leads, can't vote, or has promised a leader its lease.
        """
        st = self._enter(now_ms)
        if st.role is Role.LEADER or not membership.may_stand(st) or leases.is_promised(st):
            return False
        election.start_vote(st, "campaign")
        self._check()
        return True

    def step_down(self, *, now_ms: int, reason: str = "step_down") -> bool:
        """Give up leadership now; False when this node does not lead."""
        st = self._enter(now_ms)
        if st.role is not Role.LEADER:
            return False
        roles.become_follower(st, st.term, leader=NOBODY, reason=reason)
        self._check()
        return True

    def on_peer_down(self, peer: MemberId, incarnation: int, *, now_ms: int) -> None:
        """Learn that a peer's process is gone: its endpoint refused a connection."""
        st = self._enter(now_ms)
        if not st.settings.disconnect_hint:
            return
        replication.on_peer_down(st, peer)
        transfer.on_peer_down(st, peer)
        election.on_peer_down(st, peer, incarnation)
        self._check()

    def on_timer(self, *, now_ms: int, inbox_empty: bool) -> None:
        """Do what is due. Read the inbox first, and say whether it is empty.

        Heartbeats leave whenever they are due. An election or a lost quorum is concluded when
        nothing waits to be read, or when the deadline is more than a heartbeat past: a flood of
        messages must not stop elections.
        """
        stirred, st = self._stirred, self._enter(now_ms)
        if st.now_ms < self.next_deadline_ms():
            self._stirred = stirred
            return  # as in most turns: nothing changed since the last check
        leadership = st.leadership
        if leadership is not None:
            if st.now_ms >= leadership.heartbeat_ms:
                leadership.heartbeat_due = True
                leadership.heartbeat_ms = st.now_ms + st.settings.heartbeat_ms
            watched = st.settings.check_quorum and not st.decides_alone
            transfer.on_timer(st, leadership)
            if watched and self._is_due(leadership.check_quorum_ms, inbox_empty):
                replication.check_quorum(st)
        elif membership.may_stand(st):
            self._on_election_timer(inbox_empty)
        reads.on_timer(st)
        self._check()

    def _on_election_timer(self, inbox_empty: bool) -> None:
        st = self.state
        if self._is_due(st.election_deadline_ms, inbox_empty):
            election.start(st, "timeout")
        elif st.hint is not None and self._is_due(st.hint.deadline_ms, inbox_empty):
            election.on_hint_deadline(st)
        elif st.attempt is not None and st.now_ms >= st.attempt.resend_ms:
            election.ask_for_votes(st)

    def _is_due(self, deadline_ms: int, inbox_empty: bool) -> bool:
        late_ms = self.state.now_ms - deadline_ms
        return late_ms >= 0 and (inbox_empty or late_ms > self.state.settings.heartbeat_ms)

    def on_stall(self, late_ms: int, *, now_ms: int, grace: bool = True) -> None:
        """Drop the lease, and, with `grace`, put a deadline off that came due meanwhile, once.

        The process did not run for `late_ms`, and has served nothing since. It must read what came
        in meanwhile before it concludes that nobody spoke; messages may still be on their way
        through the I/O thread. Never two graces in a row.
        """
        st = self._enter(now_ms)
        if leases.drop(st):
            st.notices.append(LeaseDropped(st.term, late_ms))
        grace_ms = st.settings.heartbeat_ms
        until_ms = st.now_ms + grace_ms
        leadership = st.leadership
        deadline_ms = st.election_deadline_ms if leadership is None else leadership.check_quorum_ms
        if not grace or st.grace_used or deadline_ms >= until_ms:
            return
        if leadership is None:
            st.election_deadline_ms = until_ms
        else:
            leadership.check_quorum_ms = until_ms
        st.grace_used = True
        st.notices.append(GraceGranted(late_ms, grace_ms))

    # One way out

    def ready(self) -> Ready | None:
        """Return what to do now, None when there is nothing. See `zraft.core.ready`."""
        assert self._outstanding is None, "the Ready handed out was not advanced"
        if not self._stirred:
            assert not self._thorough or outbox.take(self.state) is None, "work out of nothing"
            return None
        self._stirred = False
        self._outstanding = outbox.take(self.state)
        return self._outstanding

    def advance(self, ready: Ready) -> None:
        """Learn that `ready` was done: persisted, sent, handed on. Only now the own vote counts."""
        assert ready is self._outstanding, "not the Ready that was handed out"
        self._outstanding = None
        # Else all was handed out: what makes work amid a Ready (a new probe) is reported in it.
        self._stirred = bool(ready.notices) or ready.must_persist
        st = self.state
        if ready.hard_state is not None:
            st.durable = ready.hard_state
        if ready.entries is not None:
            index, term = ready.entries.last_index, ready.entries.terms[-1]
            assert st.log.term(index) == term, "the log changed between ready and advance"
            st.log.persisted_index = index
            if st.leadership is not None:
                replication.maybe_commit(st)
        attempt = st.attempt
        if attempt is not None and st.role is Role.CANDIDATE and st.durable == (st.term, st.me):
            attempt.votes[st.me] = True
            election.maybe_finish(st)
        self._check()

    def on_applied(self, index: int) -> None:
        """Learn that the state machine has applied everything up to `index`."""
        st = self.state
        assert st.applied_index <= index <= st.handed_index, (index, st.handed_index)
        st.applied_index = index
        self._stirred = True
        self._check()

    # Snapshots

    def on_snapshot_saved(self, meta: SnapshotMeta, *, now_ms: int) -> int:
        """Learn that an own snapshot is durable; the log is cut behind it (see `trim_log`).

        Returns the first index that is still needed: the storage may forget what is before it.
        """
        first_index = snapshots.on_saved(self._enter(now_ms), meta)
        self._check()
        return first_index

    def trim_log(self) -> bool:
        """Free a slice of what was cut away; return True when more is to be freed."""
        self._stirred = True
        return snapshots.trim(self.state, snapshots.TRIM_ENTRIES)

    def on_snapshot_received(self, meta: SnapshotMeta, *, now_ms: int) -> None:
        """Learn that a peer's snapshot is durable in its file; all of the log is persisted.

        What follows is in the next Ready: `snapshot` and `restore`, or nothing but the answer when
        it is not needed any more.
        """
        snapshots.on_received(self._enter(now_ms), meta)
        self._check()

    def on_snapshot_sending(self, peer: MemberId, index: int, *, now_ms: int) -> None:
        """Learn which snapshot a peer of `Ready.send_snapshots` is sent."""
        snapshots.on_sending(self._enter(now_ms), peer, index)

    def on_snapshot_failed(self, peer: MemberId, *, now_ms: int) -> None:
        """Learn that the transfer to a peer ended without success, so that it is tried again."""
        snapshots.on_failed(self._enter(now_ms), peer)
        self._check()

    def wants_snapshot(self, peer: MemberId) -> bool:
        """Return whether a transfer to `peer` still has a purpose."""
        leadership = self.state.leadership
        progress = None if leadership is None else leadership.progress.get(peer)
        return progress is not None and progress.state is ProgressState.SNAPSHOT

    @property
    def snapshot(self) -> SnapshotMeta | None:
        """The newest snapshot that is durable here, taken or received."""
        return self.state.snapshot

    @property
    def first_index(self) -> int:
        """Index of the first entry that the log still has."""
        return self.state.log.first_index
