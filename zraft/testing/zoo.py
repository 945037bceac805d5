"""The bug zoo: bugs that real systems had, planted into our own code, to test the tests.

A simulator that finds nothing proves nothing until it has found these. Each bug replaces one or two
functions of the production code while `planted` is active; production code itself knows nothing of
it. Plant a bug in a process of its own, or leave `planted` before anything else runs: what is
replaced is put back. Every experiment needs a control without a bug on the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

from zraft.core import (
    election,
    leases,
    membership,
    quorum,
    reads,
    replication,
    snapshots,
    state,
    transfer,
)
from zraft.core.log import RaftLog
from zraft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Message,
    ReadIndexResponse,
    RequestVoteResponse,
    TimeoutNow,
)
from zraft.core.model import NOBODY, Configuration, HardState, MemberId, Recovered, Role
from zraft.core.notices import EntriesAppended, EntriesTruncated, TransferSent
from zraft.core.raft import Raft
from zraft.core.ready import ReadState
from zraft.core.state import Leadership, RaftState
from zraft.machine.replica import Replica
from zraft.machine.sessions import Sessions
from zraft.node.digests import DigestWatch
from zraft.node.server import Server
from zraft.testing.core_disk import Disk
from zraft.testing.sim import node as sim_node
from zraft.testing.zoo_nodes import (
    apply_by_the_clock,
    begin_anew,
    begin_by_the_clock,
    flush_by_the_clock,
    keep_the_last,
    lose_and_forget,
    open_or_make,
    tell_newest,
)


class Patch(NamedTuple):
    """One function that is replaced while a bug is planted."""

    owner: Any
    name: str
    function: Callable[..., Any]


class Bug(NamedTuple):
    """A planted bug: what it does wrong, and who had it."""

    what: str
    known_from: str
    patches: tuple[Patch, ...]


# Votes

_init = Raft.__init__
_say = RaftState.say
_on_request_vote_response = election.on_request_vote_response
_next_read_id = reads._next_id
_lease_until_ms = leases.lease_until_ms
_maybe_hand_over = transfer.maybe_hand_over


def _forget_vote(self: Raft, me: MemberId, recovered: Recovered, **rest: Any) -> None:
    hard_state = HardState(recovered.hard_state.term, NOBODY)
    _init(self, me, recovered._replace(hard_state=hard_state), **rest)


def _say_votes_early(self: RaftState, message: Message) -> None:
    if isinstance(message, RequestVoteResponse):
        self.messages.append(message)
    else:
        _say(self, message)


def _always_up_to_date(self: RaftLog, last_log_index: int, last_log_term: int) -> bool:
    return True


def _count_votes_twice(st: RaftState, m: RequestVoteResponse) -> None:
    """Count a doubled yes as one of somebody who has not answered."""
    attempt = st.attempt
    if attempt is not None and m.granted and attempt.vote_term == m.vote_term:
        doubled = m.pre_vote == (st.role is Role.PRE_CANDIDATE) and attempt.votes.get(m.src)
        silent = [voter for voter in st.configuration.voters if voter not in attempt.votes]
        if doubled and silent:
            attempt.votes[silent[0]] = True
    _on_request_vote_response(st, m)


# Quorums


def _half(voters: Sequence[MemberId]) -> int:
    return max(1, len(voters) // 2)


def _reached_by_half(values: Iterable[int]) -> int:
    ranked = sorted(values, reverse=True)
    return ranked[max(0, len(ranked) // 2 - 1)]


# The log


def _commit_by_counting(st: RaftState) -> None:
    leadership = st.leadership
    assert leadership is not None
    matches = {peer: progress.match_index for peer, progress in leadership.progress.items()}
    matches[st.me] = st.log.persisted_index
    index = quorum.reached_by_quorum(matches, st.configuration)
    if index > st.commit_index:
        replication.advance_commit(st, index)


def _truncate_always(st: RaftState, m: AppendEntries) -> None:
    last_index = st.log.last_index
    if m.prev_log_index < last_index:
        st.log.truncate_from(m.prev_log_index + 1)
        st.notices.append(EntriesTruncated(m.prev_log_index + 1, last_index, m.src))
    if m.entries.terms:
        st.log.append(list(m.entries.terms), list(m.entries.payloads))
        st.notices.append(EntriesAppended(m.prev_log_index + 1, st.log.last_index, m.src))


def _on_append_entries(
    st: RaftState, m: AppendEntries, *, commits_all: bool, acknowledges_all: bool
) -> None:
    """The production function, with one of two lines changed."""
    if m.term < st.term:
        refusal = AppendEntriesResponse(st.me, m.src, st.term, False, 0, 0, 0, m.round)
        replication._answer(st, m, refusal)  # a copy of its neighbour
        return
    replication.hear_leader(st, m.src, m.term)
    below = m.prev_log_index < st.log.compacted.index
    if not below and st.log.term(m.prev_log_index) != m.prev_log_term:
        replication._refuse(st, m)  # a copy of its neighbour
        return
    replication._append_new(st, m)  # a copy of its neighbour
    last = st.log.last_index
    replication.advance_commit(st, min(m.leader_commit, last if commits_all else m.last_new_index))
    match = last if acknowledges_all else m.last_new_index
    accepted = AppendEntriesResponse(st.me, m.src, st.term, True, match, 0, 0, m.round)
    replication._answer(st, m, accepted)  # a copy of its neighbour


def _commit_past_match(st: RaftState, m: AppendEntries) -> None:
    _on_append_entries(st, m, commits_all=True, acknowledges_all=False)


def _acknowledge_all(st: RaftState, m: AppendEntries) -> None:
    _on_append_entries(st, m, commits_all=False, acknowledges_all=True)


# Reads


def _confirm_alone(st: RaftState, leadership: Leadership) -> None:
    waiting = []
    for pending in leadership.pending_reads:
        if pending.index > st.commit_index:
            waiting.append(pending)
        elif pending.asker == NOBODY:
            st.reads.append(ReadState(pending.read_id, pending.index))
        else:
            st.say(ReadIndexResponse(st.me, pending.asker, st.term, pending.read_id, pending.index))
    leadership.pending_reads = waiting


def _reuse_read_ids(st: RaftState) -> int:
    if st.leadership is not None:
        return _next_read_id(st)
    used = {asked.read_id for asked in st.asked_reads}
    return next(number for number in count(1) if number not in used)


# Leases and transfers


def _lease_from_answers(st: RaftState) -> int:
    """Count from when the answers came, not from when the round that they answer left."""
    leadership = st.leadership
    if leadership is None or not st.settings.lease or leadership.sent_timeout_now:
        return 0
    heard = {peer: progress.last_contact_ms for peer, progress in leadership.progress.items()}
    heard[st.me] = st.now_ms
    length_ms = st.settings.election_min_ms * (100 - st.settings.lease_drift_percent) // 100
    return quorum.reached_by_quorum(heard, st.configuration) + length_ms


def _lease_after_timeout_now(st: RaftState) -> int:
    leadership = st.leadership
    if leadership is None:
        return 0
    sent, leadership.sent_timeout_now = leadership.sent_timeout_now, False
    until_ms = _lease_until_ms(st)
    leadership.sent_timeout_now = sent
    return until_ms


def _hand_over_early(st: RaftState, leadership: Leadership) -> None:
    under_way = leadership.transfer
    if under_way is not None and under_way.resend_ms is None:
        leadership.sent_timeout_now = True
        under_way.resend_ms = st.now_ms + st.settings.heartbeat_ms
        st.notices.append(TransferSent(under_way.target, st.now_ms - under_way.started_ms))
        st.say(TimeoutNow(st.me, under_way.target, st.term))
    _maybe_hand_over(st, leadership)


# Membership


def _reached_by_new_voters(values: Mapping[MemberId, int], configuration: Configuration) -> int:
    return quorum.reached_by_majority([values[voter] for voter in configuration.voters])


def _won_by_new_voters(
    votes: Mapping[MemberId, bool], configuration: Configuration
) -> quorum.VoteResult:
    return quorum.majority_result(votes, configuration.voters)


def _commit_by_committed(st: RaftState) -> None:
    """Count by the newest configuration that is committed, as if only that were in force."""
    leadership = st.leadership
    assert leadership is not None
    known = {peer: left.progress for peer, left in leadership.leaving.items()}
    known |= leadership.progress
    matches = {peer: progress.match_index for peer, progress in known.items()}
    matches[st.me] = st.log.persisted_index
    configuration = membership.committed_configuration(st)
    if not matches.keys() >= {*configuration.electorate}:
        return
    index = quorum.reached_by_quorum(matches, configuration)
    if index > st.commit_index and st.log.term(index) == st.term:
        replication.advance_commit(st, index)


# Snapshots

_covered = snapshots._covered


def _needed_unless_in_log(st: RaftState, index: int, term: int) -> str | None:
    return None if index <= st.commit_index else _covered(st, index, term)


def _needed_unless_committed(st: RaftState, index: int, term: int) -> str | None:
    return _covered(st, index, term) if index <= st.commit_index else None


ZOO = {
    "state-from-the-clock": Bug(
        "replicas compute something of their own into their states",
        "etcd #13766: members of one cluster with different data",
        (Patch(Replica, "apply", apply_by_the_clock),),
    ),
    "digests-of-different-indices": Bug(
        "digests are compared that were taken after different entries",
        "hash checks of live systems, which alarm about replicas that are merely behind",
        (Patch(DigestWatch, "_tell", tell_newest),),
    ),
    "double-vote-after-restart": Bug(
        "a node forgets after a restart for whom it voted in the term",
        "PySyncObj #84, seaweedfs/raft #9",
        (Patch(Raft, "__init__", _forget_vote),),
    ),
    "vote-before-sync": Bug(
        "a vote leaves before it is on disk",
        "etcd #14370 for acknowledgements, sofa-jraft #1245",
        (Patch(RaftState, "say", _say_votes_early),),
    ),
    "commit-old-term-by-counting": Bug(
        "a leader commits entries of older terms because a majority holds them (Figure 8)",
        "PySyncObj #169",
        (Patch(replication, "maybe_commit", _commit_by_counting),),
    ),
    "truncate-on-every-append": Bug(
        "an append removes all that stands after it, conflict or not",
        "openraft 9540c904, raftos #26, CCF #5991",
        (Patch(replication, "_append_new", _truncate_always),),
    ),
    "commit-past-match": Bug(
        "a follower commits up to its own last entry, which no append has verified",
        "WRaft #118",
        (Patch(replication, "on_append_entries", _commit_past_match),),
    ),
    "no-up-to-date-check": Bug(
        "a vote goes to any candidate, however short its log",
        "openraft a48a3282",
        (Patch(RaftLog, "is_up_to_date", _always_up_to_date),),
    ),
    "acknowledge-own-last-index": Bug(
        "a follower acknowledges its own last entry instead of the last one that matched",
        "CCF #6001",
        (Patch(replication, "on_append_entries", _acknowledge_all),),
    ),
    "quorum-off-by-one": Bug(
        "half of the voters count as a majority",
        "openraft #1802, hashicorp 163a55f",
        (
            Patch(quorum, "quorum_size", _half),
            Patch(state, "quorum_size", _half),
            Patch(quorum, "reached_by_majority", _reached_by_half),
        ),
    ),
    "stale-read-without-quorum": Bug(
        "a leader answers reads without asking whether it still leads",
        "etcd #20418, Xraft",
        (Patch(reads, "maybe_confirm", _confirm_alone),),
    ),
    "read-ids-reused": Bug(
        "a follower asks for an index under the number of an earlier question",
        "etcd #20418, #21399",
        (Patch(reads, "_next_id", _reuse_read_ids),),
    ),
    "lease-from-answers": Bug(
        "a lease counts from when the answers arrived",
        "etcd-io/raft #166, sofa-jraft #25",
        (Patch(leases, "lease_until_ms", _lease_from_answers),),
    ),
    "lease-survives-transfer": Bug(
        "a leader keeps its lease after it told another node to stand",
        "openraft #1747, etcd-io/raft #99",
        (Patch(leases, "lease_until_ms", _lease_after_timeout_now),),
    ),
    "transfer-before-caught-up": Bug(
        "TimeoutNow leaves before the target holds the whole log",
        "thesis §3.10 read without its second step",
        (Patch(transfer, "maybe_hand_over", _hand_over_early),),
    ),
    "joint-by-one-majority": Bug(
        "in a joint configuration the majority of the new voters is enough",
        "etcd e515a67, openraft 447dc11c (the joint part is dropped)",
        (
            Patch(replication, "reached_by_quorum", _reached_by_new_voters),
            Patch(election, "vote_result", _won_by_new_voters),
        ),
    ),
    "configuration-counts-when-committed": Bug(
        "a leader counts by its newest committed configuration, not by the newest in its log",
        "NuRaft #67, andy-yx-chen/jraft #1",
        (Patch(replication, "maybe_commit", _commit_by_committed),),
    ),
    "wiped-node-keeps-its-id": Bug(
        "a node whose disk is gone makes a new log and goes on under its old id",
        "braft #292, openraft #898: followers that start again with an empty directory",
        (
            Patch(sim_node, "open_disk", open_or_make),
            Patch(Disk, "lose", lose_and_forget),
        ),
    ),
    "old-snapshot-rolls-back": Bug(
        "a snapshot is installed although all that it covers is committed here",
        "openraft ac3e5a89",
        (Patch(snapshots, "_covered", _needed_unless_in_log),),
    ),
    "snapshot-drops-suffix": Bug(
        "a snapshot of a prefix takes the place of the whole log",
        "camunda #6092; Raft Fig. 13 read without its sixth rule",
        (Patch(snapshots, "_covered", _needed_unless_committed),),
    ),
    "repeats-known-at-the-door-only": Bug(
        "repetitions are found when a request arrives, and not when its entry is applied",
        "thesis §6.3 read without its last step",
        (Patch(Sessions, "begin", begin_anew),),
    ),
    "only-the-last-result-kept": Bug(
        "of each session the newest result is kept, though many writes are under way",
        "thesis §6.3 for clients with one request at a time, used for others",
        (Patch(Sessions, "keep", keep_the_last),),
    ),
    "session-expires-by-local-clock": Bug(
        "each node decides by its own clock whether a session is over",
        "databend #7325, copycat #40: expiry by the time of the replica, not of the entry",
        (
            Patch(Server, "flush", flush_by_the_clock),
            Patch(Sessions, "begin", begin_by_the_clock),
        ),
    ),
    "duplicate-reply-counted-twice": Bug(
        "a vote that arrives twice counts twice",
        "PySyncObj",
        (Patch(election, "on_request_vote_response", _count_votes_twice),),
    ),
}


@contextmanager
def planted(name: str) -> Iterator[Bug]:
    """Let a bug live in this process until the context ends."""
    bug = ZOO[name]
    before = [(patch, getattr(patch.owner, patch.name)) for patch in bug.patches]
    try:
        for patch in bug.patches:
            setattr(patch.owner, patch.name, patch.function)
        yield bug
    finally:
        for patch, function in before:
            setattr(patch.owner, patch.name, function)
