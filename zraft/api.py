"""What clients and operators say to a node, and what it answers: values, no bytes.

Client requests and replies are positional tuples, encoded by `zraft.wire` (MessagePack). Control
requests and replies are tagged msgspec structs, encoded as JSON on a local socket: there, being
readable matters more than being fast.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Literal, NamedTuple

import msgspec

PROTOCOL_VERSION = 1
CONTROL_VERSION = 1

STALENESS_UNKNOWN_MS = 1 << 40
"""The staleness that a node tells that never heard a leader: it may be anything."""


class Consistency(IntEnum):
    """What a request may see. `WRITE` is a command and goes through the log."""

    WRITE = 0
    LINEARIZABLE = 1  # ReadIndex (thesis §6.4)
    LEASE = 2  # answered by the leader alone, if that is allowed; trusts clocks (thesis §6.4.1)
    STALE = 3  # any node, as of its applied index


class Flag(IntFlag):
    """Bits of a request's `flags`."""

    NONE = 0
    FORWARDED = 1  # a node passed it on; it is never passed on twice
    BARRIER = 2  # a write that changes nothing: it is answered once it is applied
    SESSION = 4  # about a session: the body says what (zraft.machine.session_ops)


class Code(IntEnum):
    """How a request ended. Only `UNKNOWN` may have been applied without anyone knowing."""

    OK = 0
    UNAVAILABLE = 1  # not applied: no leader in time, or the entry was replaced by another
    NOT_LEADER = 2  # not applied: ask the leader that is hinted at
    BUSY = 3  # not applied: too many requests wait
    UNKNOWN = 4  # may be applied
    INVALID = 5  # the state machine refused it; that refusal is replicated
    TOO_LARGE = 6  # not applied
    UNSUPPORTED = 7  # not applied: this node does not know how
    SESSION_EXPIRED = 8  # not applied now: whether it was before, nobody knows any more
    WITHDRAWN = 9  # not applied, and never will be: somebody asked, and closed that sequence


class Request(NamedTuple):
    """One client request. `deadline_ms` is how long the answer is still wanted, from now.

    With a `session`, a write is applied once however often it arrives (thesis §6.3): it is named by
    (session, sequence), and results of sequences below `ack_below` are no longer wanted.
    `max_staleness_ms` bounds a stale read; 0: no bound.
    """

    request_id: int
    session: int
    sequence: int
    ack_below: int
    deadline_ms: int
    consistency: int
    flags: int
    body: bytes
    max_staleness_ms: int = 0


class Reply(NamedTuple):
    """The answer to one request.

    `index` is that of the entry that was applied (writes) or of the state that was read (reads), 0
    when there is none; `leader` is a member id to ask instead, 0 when none is known. `body` is the
    state machine's result, or UTF-8 text that says why not. `delay_ms`: with BUSY, when to try
    again. `staleness_ms`, of a stale read: how long ago what was read was the newest. With a bound
    that is proven, as of the moment the request came in; without one it is an estimate: since this
    node last heard a leader.
    """

    request_id: int
    code: int
    member_id: int
    term: int
    index: int  # type: ignore[assignment]  # a field, not tuple.index
    leader: int
    body: bytes
    delay_ms: int = 0
    staleness_ms: int = 0


class Whoami(msgspec.Struct, tag="whoami", frozen=True):
    """Who is it that holds this socket?"""


class GetStatus(msgspec.Struct, tag="status", frozen=True):
    """Everything `cluster status` shows of one node."""


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """Stop in order: give up leadership, answer what can be answered, sync, close, exit 0."""


class Campaign(msgspec.Struct, tag="campaign", frozen=True):
    """Stand for election now, without a pre-vote.

    It ends the current term and need not win: who hears a leader refuses (thesis §4.2.3).
    """


class StepDown(msgspec.Struct, tag="step-down", frozen=True):
    """Give up leadership now; a follower answers with an error."""


class Block(msgspec.Struct, tag="block", frozen=True):
    """Block the loop for `ms` milliseconds (at most 10,000): a stall on purpose."""

    ms: int


class Isolate(msgspec.Struct, tag="isolate", frozen=True):
    """Drop everything to and from `peers` (names); an empty list means all peers."""

    peers: list[str] = []
    for_ms: int | None = None


class Heal(msgspec.Struct, tag="heal", frozen=True):
    """Remove every network fault of this node. Those the supervisor holds come back with it."""


FaultKind = Literal[
    "partition", "isolate", "one-way", "drop", "delay", "duplicate", "reorder", "corrupt"
]


class FaultRule(msgspec.Struct, frozen=True, kw_only=True):
    """A network fault of the cluster: which links, and what happens on them.

    `links` are directed pairs (from, to) of names. Times are CLOCK_BOOTTIME of the host in ms, so
    that a message that waited somewhere can not make a fault live longer.
    """

    id: str
    kind: FaultKind
    links: list[tuple[str, str]]
    groups: list[list[str]] = []  # partition: who can talk to whom; isolate: who is cut off
    rate: float = 1.0  # of the frames
    delay_ms: int = 0
    jitter_ms: int = 0
    normal: bool = False  # the jitter is a standard deviation, not a bound
    messages: list[str] = []  # append, append-reply, vote, vote-reply; none: all of them
    seed: int = 0
    by: str = "cli"
    since_ms: int = 0
    until_ms: int | None = None  # None: until healed
    lease_until_ms: int | None = None  # unless renewed; None: no lease


class SetFaults(msgspec.Struct, tag="set-faults", frozen=True):
    """All faults that the supervisor holds and that concern this node, in place of the last list.

    A fault that is known already stays as it is, with its hits and its draws; its times are moved.
    """

    faults: list[FaultRule]


class CrashAt(msgspec.Struct, tag="crash-at", frozen=True):
    """Kill yourself (SIGKILL) the next time you come to this point; an empty one disarms."""

    point: str


class ChangeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a change of membership. `member_id`: 16 hex digits; needed for `add` only."""

    kind: Literal["add", "add-learner", "promote", "demote", "remove"]
    name: str
    member_id: str = ""


class ChangeMembers(msgspec.Struct, tag="change-members", frozen=True, kw_only=True):
    """Change who votes and who listens; all steps are one change (Raft §6). The leader only.

    Answered with `Accepted` as soon as the entry is in the leader's log; whether it was committed
    shows in `NodeStatus.config_index` and `config_committed`. Otherwise a failure with the code
    `membership_refused` or `not_leader`.
    """

    changes: list[ChangeSpec]


class TransferLeadership(msgspec.Struct, tag="transfer-leadership", frozen=True, kw_only=True):
    """Hand leadership to `to`, or, when it is empty, to the voter that holds most of the log.

    Answered with `Accepted` when it has begun; the outcome shows in the terms that follow.
    """

    to: str = ""


class TakeSnapshot(msgspec.Struct, tag="take-snapshot", frozen=True):
    """Begin a snapshot now. Answered with `Accepted`, its index the one that it will cover."""


NodeRequest = (
    Whoami
    | GetStatus
    | Stop
    | Campaign
    | StepDown
    | Block
    | Isolate
    | Heal
    | SetFaults
    | CrashAt
    | ChangeMembers
    | TransferLeadership
    | TakeSnapshot
)


class ControlDone(msgspec.Struct, tag="done", frozen=True):
    """It was done; `message` says what, for people."""

    message: str = ""


class Accepted(msgspec.Struct, tag="accepted", frozen=True, kw_only=True):
    """It has begun; `index` and `term` name the entry or the state that it concerns."""

    index: int
    term: int
    message: str = ""


class ControlFailure(msgspec.Struct, tag="error", frozen=True):
    """It was not done. The parts of a `ZraftError`."""

    code: str
    message: str
    why: str = ""
    try_: list[str] = msgspec.field(default_factory=list, name="try")
    exit_code: int = 2


class WhoamiReply(msgspec.Struct, tag="whoami-reply", frozen=True):
    """Identity of a running node."""

    version: str
    control_version: int
    cluster: str
    cluster_id: str
    name: str
    member_id: str
    incarnation: int
    pid: int


class PeerStatus(msgspec.Struct, frozen=True):
    """What a node knows of a peer; match, next and state only on a leader."""

    name: str
    connected: bool
    contact_ms: int | None = None
    state: str | None = None
    match_index: int | None = None
    next_index: int | None = None
    inflight: int | None = None
    member_id: str = ""
    voter: bool = True
    joining: bool = False  # a learner that is promoted by itself
    snapshot_offset: int | None = None  # bytes of a snapshot that it holds, while one is sent to it
    snapshot_bytes: int | None = None


class FaultStatus(msgspec.Struct, frozen=True):
    """A network fault in force in a node. `rule` is None for one that only this node was told."""

    kind: str
    peers: list[str]
    hits: int
    left_ms: int | None
    id: str = ""
    rule: FaultRule | None = None


class FaultsSet(msgspec.Struct, tag="faults-set", frozen=True):
    """The answer to `SetFaults`: the hits of each fault, by its id."""

    hits: dict[str, int]


class NodeStatus(msgspec.Struct, tag="status-reply", frozen=True):
    """One node's own view. Times in ms; `*_mono_ns` are CLOCK_MONOTONIC of the host."""

    name: str
    member_id: str
    cluster_id: str
    pid: int
    incarnation: int
    version: str
    role: str
    term: int
    voted_for: str | None
    leader: str | None
    commit: int
    applied: int
    last_index: int
    last_term: int
    persisted_index: int
    timer_ms: int | None  # until the election timeout; None on a leader
    last_contact_ms: int | None  # since the leader was heard; None when never or on a leader
    uptime_ms: int
    state_hash: str | None
    revision: int | None
    leader_since_mono_ns: int | None
    election_started_mono_ns: int | None  # first pre-vote of the last attempt that it won
    waiting: int
    parked: int
    peers: list[PeerStatus]
    faults: list[FaultStatus]
    counters: dict[str, int]
    # The configuration in force: the newest one in this node's log, committed or not.
    config_index: int = 0
    config_committed: bool = True
    voters: list[str] = []
    outgoing: list[str] = []  # the old voters, while a change is under way
    learners: list[str] = []
    joining: list[str] = []
    removed: bool = False  # a committed configuration is without this node
    transfer_to: str | None = None
    lease_ms: int | None = None  # left of a leader's lease; None: it has none
    staleness_ms: int | None = None  # of a stale read here and now
    first_index: int = 1  # of the log that is kept
    snapshot_index: int = 0
    snapshot_term: int = 0
    snapshot_bytes: int = 0
    snapshot_taking: bool = False
    snapshot_failure: str = ""  # why the last one that was tried is not there
    sessions: int = 0


NodeReply = ControlDone | Accepted | ControlFailure | WhoamiReply | NodeStatus | FaultsSet
