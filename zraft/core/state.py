"""The state of one Raft node: one plain value, over which the topic modules are functions.

Fields are grouped as in the paper's Figure 2: persistent, volatile on all, volatile on candidates,
volatile on leaders. Who may write what: `role`, `leader_id` and what hangs on them only `roles`;
`commit_index` only `replication`; the outbox only `say`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from zraft.core.configurations import Configurations
from zraft.core.log import RaftLog
from zraft.core.messages import (
    AppendEntries,
    InstallSnapshot,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    TimeoutNow,
)
from zraft.core.model import (
    NOBODY,
    Configuration,
    EntryCodec,
    HardState,
    MemberId,
    Random,
    Role,
    Settings,
    SnapshotMeta,
    quorum_size,
)
from zraft.core.notices import Notice
from zraft.core.progress import Progress
from zraft.core.ready import ReadState

FAR_MS = 1 << 62
"""A deadline that never comes."""

PROMISES_NOTHING = frozenset((AppendEntries, TimeoutNow, ReadIndex, ReadIndexResponse))
"""Messages that may leave before the disk write."""


@dataclass(slots=True)
class Attempt:
    """A pre-vote or an election under way (pre-candidates and candidates)."""

    vote_term: int
    started_ms: int
    resend_ms: int  # when unanswered requests are sent again
    votes: dict[MemberId, bool] = field(default_factory=dict)
    transfer: bool = False  # the leader asked for it (TimeoutNow)


class PendingRead(NamedTuple):
    """A read that waits for its round to be confirmed and for `index` to be committed.

    `asker`: the follower that asked, and `read_id` is its number; NOBODY: this node itself.
    """

    read_id: int
    index: int  # type: ignore[assignment]  # a field, not tuple.index
    round: int
    asker: MemberId = NOBODY


class AskedRead(NamedTuple):
    """A read whose index this node, not leading, asked the leader for. One id per attempt."""

    read_id: int
    sent_ms: int


@dataclass(slots=True)
class Transfer:
    """A hand-over of leadership under way (thesis §3.10): no proposals meanwhile."""

    target: MemberId
    started_ms: int
    deadline_ms: int
    resend_ms: int | None = None  # when TimeoutNow leaves again; None: it has not left


@dataclass(slots=True)
class Leaving:
    """A peer that the newest configuration is without: it is still told so, and does not count."""

    progress: Progress
    index: int  # of the configuration
    until_ms: int | None = None  # once that is committed
    round: int | None = None  # one that tells it so, once it holds the entry


@dataclass(slots=True)
class Leadership:
    """What only a leader has; made anew for each term it leads."""

    progress: dict[MemberId, Progress]  # peers only, in the order of their ids
    noop_index: int  # the entry that opens the term
    started_ms: int
    log_time_base_ms: int
    heartbeat_ms: int  # next heartbeat
    check_quorum_ms: int  # next time to ask whether a quorum is still there
    round: int = 0
    heartbeat_due: bool = True
    open_read_id: int | None = None  # a read whose round has not been sent yet
    asked_reads: list[tuple[MemberId, int]] = field(default_factory=list)  # likewise, of followers
    pending_reads: list[PendingRead] = field(default_factory=list)
    transfer: Transfer | None = None
    sent_timeout_now: bool = False  # this term has no lease any more
    lease_rounds: list[tuple[int, int]] = field(default_factory=list)  # round, when it began
    lease_floor_round: int = 1  # earlier ones were sent before this process stood still
    leaving: dict[MemberId, Leaving] = field(default_factory=dict)


@dataclass(slots=True)
class Hint:
    """The leader's process is known to be gone, although its timeout has not run out."""

    leader: MemberId
    term: int
    incarnation: int
    deadline_ms: int


@dataclass(slots=True)
class RaftState:
    """Everything one node knows. See the module for who writes what."""

    me: MemberId
    settings: Settings
    configurations: Configurations
    codec: EntryCodec
    random: Random

    # Persistent on all servers: what it is, and what of it is durable already.
    term: int
    voted_for: MemberId
    durable: HardState
    log: RaftLog
    snapshot: SnapshotMeta | None  # the newest that is durable here

    # Volatile on all servers.
    now_ms: int
    role: Role = Role.FOLLOWER
    leader_id: MemberId = NOBODY
    leader_contact_ms: int | None = None
    election_deadline_ms: int = FAR_MS
    told_commit: int = 0  # the leader's commit index, as it said last
    told_ms: int = 0  # and when; 0: never
    grace_used: bool = False
    hint: Hint | None = None
    promise_until_ms: int = 0  # with leases: no vote to anybody until then
    commit_index: int = 0
    handed_index: int = 0  # given out to be applied
    applied_index: int = 0
    keep_from: int = 1  # the log is to be cut up to here; done in slices
    next_read_id: int = 1
    open_ask_id: int | None = None  # a read that the leader was not asked for yet
    asked_reads: list[AskedRead] = field(default_factory=list)  # oldest first
    removed_index: int = -1  # of a committed configuration without this node; a member told it

    # Volatile on candidates and on leaders.
    attempt: Attempt | None = None
    campaign_started_ms: int = 0  # of the attempt that led to this leadership, pre-vote included
    leadership: Leadership | None = None

    # The outbox: what the next Ready hands out.
    messages: list[Message] = field(default_factory=list)
    messages_after_persist: list[Message] = field(default_factory=list)
    reads: list[ReadState] = field(default_factory=list)
    aborted_reads: list[int] = field(default_factory=list)
    aborted_term: int | None = None
    installing: SnapshotMeta | None = None  # received, and not handed out to be restored
    chunks: list[InstallSnapshot] = field(default_factory=list)
    send_snapshots: list[MemberId] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)

    @property
    def configuration(self) -> Configuration:
        """The configuration in force: the newest one in the log, committed or not (Raft §6)."""
        return self.configurations.newest

    @property
    def decides_alone(self) -> bool:
        """Whether this node is a quorum by itself."""
        return self.configurations.newest.electorate == (self.me,)

    @property
    def peers(self) -> tuple[MemberId, ...]:
        """Everybody who gets the log but this node, sorted."""
        return tuple(member for member in self.configuration.everybody if member != self.me)

    @property
    def voting_peers(self) -> tuple[MemberId, ...]:
        """Everybody but this node whose vote counts, sorted."""
        return tuple(member for member in self.configuration.electorate if member != self.me)

    @property
    def quorum(self) -> int:
        """How many voters make a majority; while the configuration is joint, of the new ones."""
        return quorum_size(self.configuration.voters)

    def say(self, message: Message) -> None:
        """Put a message where it may leave: "durable, then spoken" decides, not the caller.

        Appends, heartbeats, pre-vote requests, TimeoutNow, and questions and answers about a read
        index promise nothing; all other replies and real requests for votes do, and wait for the
        sync (thesis §3.8).
        """
        promises_nothing = type(message) in PROMISES_NOTHING or (
            isinstance(message, RequestVote) and message.pre_vote
        )
        if promises_nothing:
            self.messages.append(message)
        else:
            self.messages_after_persist.append(message)

    def draw_ms(self, low_ms: int, high_ms: int) -> int:
        """Return a random whole number in [low_ms, high_ms]."""
        return low_ms + int(self.random.random() * (high_ms - low_ms + 1))
