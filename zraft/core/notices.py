"""Typed facts that the core reports instead of logging.

Each class is one event of the closed list in `zraft.telemetry`; `event` is its name and the fields
are the event's fields, in order. The core decides what happened, the node decides what to write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zraft.core.model import MemberId


@dataclass(frozen=True, slots=True)
class Notice:
    """The base: a fact with the name of its event."""

    event: ClassVar[str]


@dataclass(frozen=True, slots=True)
class RoleChanged(Notice):
    """The role changed; `reason` is one of the words in docs/EVENTS.md."""

    event: ClassVar[str] = "role.changed"
    old: str
    new: str
    term: int
    reason: str


@dataclass(frozen=True, slots=True)
class TermAdvanced(Notice):
    """The current term rose; `peer` taught it, 0 when this node raised it itself."""

    event: ClassVar[str] = "term.advanced"
    old: int
    new: int
    peer: MemberId


@dataclass(frozen=True, slots=True)
class LeaderChanged(Notice):
    """This node follows another leader now; 0 when it knows none."""

    event: ClassVar[str] = "leader.changed"
    leader: MemberId
    term: int


@dataclass(frozen=True, slots=True)
class ElectionStarted(Notice):
    """A pre-vote or vote for `term`: timeout, hint, campaign, transfer or pre_vote_won."""

    event: ClassVar[str] = "election.started"
    term: int
    pre_vote: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ElectionWon(Notice):
    """A quorum said yes; `elapsed_ms` since the first pre-vote of this attempt."""

    event: ClassVar[str] = "election.won"
    term: int
    pre_vote: bool
    votes: tuple[MemberId, ...]
    quorum: int
    elapsed_ms: int


@dataclass(frozen=True, slots=True)
class ElectionLost(Notice):
    """The attempt ended without a quorum. `reason`: refused, timeout, leader_found, higher_term."""

    event: ClassVar[str] = "election.lost"
    term: int
    pre_vote: bool
    votes: tuple[MemberId, ...]
    quorum: int
    elapsed_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class VoteGranted(Notice):
    """This node said yes to `peer`."""

    event: ClassVar[str] = "vote.granted"
    peer: MemberId
    term: int
    pre_vote: bool


@dataclass(frozen=True, slots=True)
class VoteDenied(Notice):
    """This node said no. `reason`: stale_term, already_voted, log_behind …."""

    event: ClassVar[str] = "vote.denied"
    peer: MemberId
    term: int
    pre_vote: bool
    reason: str


@dataclass(frozen=True, slots=True)
class EntriesAppended(Notice):
    """Entries joined this node's log; `peer` is the leader that sent them, or this node."""

    event: ClassVar[str] = "entries.appended"
    first_index: int
    last_index: int
    peer: MemberId


@dataclass(frozen=True, slots=True)
class EntriesTruncated(Notice):
    """Uncommitted entries that conflict with the leader's were removed (Raft §5.3)."""

    event: ClassVar[str] = "entries.truncated"
    first_index: int
    last_index: int
    peer: MemberId


@dataclass(frozen=True, slots=True)
class CommitAdvanced(Notice):
    """The commit index rose."""

    event: ClassVar[str] = "commit.advanced"
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class ConfigAppended(Notice):
    """A configuration joined the log and counts from now on; joint if `outgoing` is not empty."""

    event: ClassVar[str] = "config.appended"
    index: int
    voters: tuple[MemberId, ...]
    outgoing: tuple[MemberId, ...]
    learners: tuple[MemberId, ...]
    joining: tuple[MemberId, ...]


@dataclass(frozen=True, slots=True)
class ConfigCommitted(Notice):
    """A configuration can't be taken back any more."""

    event: ClassVar[str] = "config.committed"
    index: int
    voters: tuple[MemberId, ...]
    outgoing: tuple[MemberId, ...]
    learners: tuple[MemberId, ...]


@dataclass(frozen=True, slots=True)
class ConfigRolledBack(Notice):
    """The entry of a configuration was truncated: the one at `now` counts again."""

    event: ClassVar[str] = "config.rolled_back"
    index: int
    now: int


@dataclass(frozen=True, slots=True)
class MemberAdded(Notice):
    """A learner joined, by the committed configuration at `index`."""

    event: ClassVar[str] = "member.added"
    peer: MemberId
    index: int


@dataclass(frozen=True, slots=True)
class MemberCaughtUp(Notice):
    """A joining learner keeps up with the leader, who promotes it now."""

    event: ClassVar[str] = "member.caught_up"
    peer: MemberId
    match_index: int
    rounds: int


@dataclass(frozen=True, slots=True)
class MemberPromoted(Notice):
    """A member votes from now on, by the committed configuration at `index`."""

    event: ClassVar[str] = "member.promoted"
    peer: MemberId
    index: int


@dataclass(frozen=True, slots=True)
class MemberDemoted(Notice):
    """A voter only listens from now on, by the committed configuration at `index`."""

    event: ClassVar[str] = "member.demoted"
    peer: MemberId
    index: int


@dataclass(frozen=True, slots=True)
class MemberRemoved(Notice):
    """A member is none any more, by the committed configuration at `index`."""

    event: ClassVar[str] = "member.removed"
    peer: MemberId
    index: int


@dataclass(frozen=True, slots=True)
class Removed(Notice):
    """This node is no member any more; a configuration that is committed is without it."""

    event: ClassVar[str] = "node.removed"
    index: int


@dataclass(frozen=True, slots=True)
class ProgressChanged(Notice):
    """A leader's view of a peer changed between probe, replicate and snapshot."""

    event: ClassVar[str] = "progress.changed"
    peer: MemberId
    old: str
    new: str
    match_index: int
    reason: str


@dataclass(frozen=True, slots=True)
class LogCompacted(Notice):
    """Entries before `first_index` are in the snapshot at `snapshot_index`, and were cut away."""

    event: ClassVar[str] = "log.compacted"
    first_index: int
    snapshot_index: int


@dataclass(frozen=True, slots=True)
class SnapshotInstalled(Notice):
    """A snapshot that was received takes the place of the log up to `index`.

    `dropped` entries of the log were removed: they were older, or conflicted with it.
    """

    event: ClassVar[str] = "snapshot.installed"
    index: int
    snapshot_term: int
    dropped: int


@dataclass(frozen=True, slots=True)
class SnapshotIgnored(Notice):
    """A snapshot that a peer sends is not needed: what it covers is here (`reason`: committed,
    in_log)."""

    event: ClassVar[str] = "snapshot.ignored"
    index: int
    peer: MemberId
    reason: str


@dataclass(frozen=True, slots=True)
class HintTaken(Notice):
    """The leader's process is gone; this node starts pre-votes in `delay_ms`."""

    event: ClassVar[str] = "peer.hint_taken"
    peer: MemberId
    term: int
    delay_ms: int


@dataclass(frozen=True, slots=True)
class HintCancelled(Notice):
    """The leader spoke after all; the hint is void."""

    event: ClassVar[str] = "peer.hint_cancelled"
    peer: MemberId
    term: int


@dataclass(frozen=True, slots=True)
class QuorumLost(Notice):
    """A leader heard no quorum for the longest election timeout (CheckQuorum, thesis §6.2)."""

    event: ClassVar[str] = "check_quorum.lost"
    term: int
    heard: tuple[MemberId, ...]


@dataclass(frozen=True, slots=True)
class TransferStarted(Notice):
    """This leader hands over to `target`, and takes no proposals meanwhile (thesis §3.10)."""

    event: ClassVar[str] = "transfer.started"
    target: MemberId
    term: int


@dataclass(frozen=True, slots=True)
class TransferSent(Notice):
    """The target holds the whole log and was told to stand for election now."""

    event: ClassVar[str] = "transfer.sent"
    target: MemberId
    elapsed_ms: int


@dataclass(frozen=True, slots=True)
class TransferEnded(Notice):
    """A hand-over ended: done, timeout, target_gone or leadership_lost."""

    event: ClassVar[str] = "transfer.ended"
    target: MemberId
    outcome: str
    elapsed_ms: int


@dataclass(frozen=True, slots=True)
class LeaseDropped(Notice):
    """A leader's process stood still; rounds that it sent before give no lease any more."""

    event: ClassVar[str] = "lease.dropped"
    term: int
    late_ms: int


@dataclass(frozen=True, slots=True)
class ReadRetried(Notice):
    """A question for a read index got no answer, or a refusal; the reads ask again."""

    event: ClassVar[str] = "read.retried"
    reason: str


@dataclass(frozen=True, slots=True)
class GraceGranted(Notice):
    """A deadline was due right after a stall and was put off once."""

    event: ClassVar[str] = "timer.grace_granted"
    late_ms: int
    grace_ms: int
