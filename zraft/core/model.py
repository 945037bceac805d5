"""The values that Raft is made of: ids, entries, the hard state, the configuration.

Batches are columns, not rows. A run of log entries is one `Entries` value with two parallel lists,
terms and payloads, so that the hot path moves slices of lists and makes no object per entry. A
payload is the entry encoded once, by the leader that proposed it (`EntryCodec`); the same bytes go
into every AppendEntries and into every WAL. The core never looks into a payload.

An index counts from 1; index 0 with term 0 stands before the first entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, IntEnum
from typing import NamedTuple, Protocol

MemberId = int
"""A member: 64 random bits, made together with its data directory; 0 means nobody."""

NOBODY: MemberId = 0

MAX_MEMBERS = 64
"""Of all kinds, in one configuration; while it is joint, the leaving ones among them."""


class Role(Enum):
    """What a node is at the moment (Raft §5.1; pre-candidate: thesis §9.6)."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class EntryType(IntEnum):
    """What an entry of the log is for. The numbers are on disk and on the wire."""

    COMMAND = 1  # opaque bytes for the state machine
    NOOP = 2  # the first entry of each term (thesis §6.4)
    CONFIG = 3  # a configuration (Raft §6)
    SESSION = 4  # a client session is opened, kept or closed (thesis §6.3)
    BARRIER = 5  # goes through the log and changes nothing


class EntryId(NamedTuple):
    """Index and term of an entry travel together: they name it uniquely (Log Matching)."""

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    term: int


class Entries(NamedTuple):
    """A run of entries without gaps: `terms[i]` and `payloads[i]` belong to `first_index + i`.

    Never mutated once made. `len(e.terms) == len(e.payloads)`; both may be empty, and then
    `last_index == first_index - 1`.
    """

    first_index: int
    terms: list[int]
    payloads: list[bytes]

    @property
    def last_index(self) -> int:
        """Index of the last entry, `first_index - 1` when there is none."""
        return self.first_index + len(self.terms) - 1


class Command(NamedTuple):
    """What a client wants in the log; the entry's header fields (thesis §6.3) and its body.

    `session` 0 means no session; `ack_below` and `sequence` are then 0.
    """

    body: bytes
    type: EntryType = EntryType.COMMAND
    session: int = 0
    sequence: int = 0
    ack_below: int = 0


class EntryCodec(Protocol):
    """Makes payloads; injected, because the core imports no codec."""

    def encode(self, command: Command, *, term: int, log_time_ms: int) -> bytes:
        """Return the payload `[type, term, log_time_ms, session, sequence, ack_below, body]`."""
        ...

    def log_time_ms(self, payload: bytes) -> int:
        """Return the log time that a payload carries."""
        ...

    def configurations(self, payloads: Sequence[bytes]) -> list[tuple[int, Configuration]]:
        """Return position and configuration of each CONFIG entry, `index` left 0.

        On the path of every append: it costs one look at a byte of each payload that is none.
        """
        ...

    def encode_configuration(self, configuration: Configuration) -> bytes:
        """Return the body of a CONFIG entry; `index` is not part of it."""
        ...


class HardState(NamedTuple):
    """What must be durable before any answer leaves (Raft Fig. 2, "Persistent state")."""

    term: int = 0
    voted_for: MemberId = NOBODY


class MemberInfo(NamedTuple):
    """Who a member is for people and for the transport; the core carries it along.

    `address` is reserved for clusters of several hosts; empty: the node's name decides.
    """

    member_id: MemberId
    name: str
    address: str = ""


class Configuration(NamedTuple):
    """Who votes and who only listens (Raft §6, thesis ch. 4). All tuples are sorted.

    While a change of voters is under way the configuration is joint: `voters` are the new ones,
    `outgoing` the old ones, and every decision needs a majority of each. A member that is in
    `outgoing` and in `learners` votes as an old voter and will listen only. `voters` and `learners`
    have no member in common. `joining` are the learners that the leader promotes by itself once
    they have caught up. `members` says who all of them are; the core needs no entry of it.

    `index` is the entry that holds it; 0 = made by `up`.
    """

    voters: tuple[MemberId, ...]
    index: int = 0  # type: ignore[assignment]  # a field, not tuple.index
    outgoing: tuple[MemberId, ...] = ()
    learners: tuple[MemberId, ...] = ()
    joining: tuple[MemberId, ...] = ()
    members: tuple[MemberInfo, ...] = ()

    @property
    def is_joint(self) -> bool:
        """Whether two majorities decide."""
        return bool(self.outgoing)

    @property
    def electorate(self) -> tuple[MemberId, ...]:
        """Everybody whose vote counts in one of the majorities, sorted."""
        if not self.outgoing:
            return self.voters
        return tuple(sorted({*self.voters, *self.outgoing}))

    @property
    def everybody(self) -> tuple[MemberId, ...]:
        """Everybody who gets the log, sorted."""
        if not self.outgoing and not self.learners:
            return self.voters
        return tuple(sorted({*self.voters, *self.outgoing, *self.learners}))


class ChangeKind(IntEnum):
    """One step of a change of membership."""

    ADD = 1  # as a learner that is promoted by itself once it has caught up
    ADD_LEARNER = 2  # as a learner that stays one
    PROMOTE = 3
    DEMOTE = 4
    REMOVE = 5


class MemberChange(NamedTuple):
    """One step; several in one request are one change, as in the replacement of a member."""

    kind: ChangeKind
    member: MemberInfo


class SnapshotMeta(NamedTuple):
    """What a snapshot says of itself: the state after the entry (index, term).

    `size_bytes` and `crc` are those of the whole file: two snapshots with equal values are the same
    bytes, so that a transfer may go on with another sender's.
    """

    index: int  # type: ignore[assignment]  # a field, not tuple.index
    term: int
    configuration: Configuration
    log_time_ms: int = 0
    digest: int = 0
    size_bytes: int = 0
    crc: int = 0

    @property
    def last_id(self) -> EntryId:
        """The last entry that it covers."""
        return EntryId(self.index, self.term)


class Settings(NamedTuple):
    """Raft's knobs, all times in milliseconds, sizes in bytes.

    Rules, checked by `Raft`: `1 <= election_min_ms <= election_max_ms`,
    `heartbeat_ms <= election_min_ms / 2`, `lease` needs `check_quorum`, and
    `trailing_bytes <= held_bytes`.
    """

    election_min_ms: int = 150
    election_max_ms: int = 300
    heartbeat_ms: int = 50
    pre_vote: bool = True
    check_quorum: bool = True
    disconnect_hint: bool = True
    lease: bool = False
    lease_drift_percent: int = 10  # a lease is so much shorter than the promise that it rests on
    hint_ends_promise: bool = True  # off where a refused connection does not prove a death
    max_inflight_messages: int = 64
    max_inflight_bytes: int = 1 << 20
    max_batch_bytes: int = 256 << 10
    apply_batch_entries: int = 1000
    apply_batch_bytes: int = 1 << 20
    trailing_entries: int = 10_000  # kept below a snapshot, whoever needs them
    trailing_bytes: int = 16 << 20
    held_bytes: int = 64 << 20  # kept below it for followers that are catching up


class Recovered(NamedTuple):
    """What a node knows after it read its disk; the log starts at index 1 or after a snapshot.

    `configuration` is the one before the first entry: the snapshot's, or the base. With a
    `snapshot`, `entries` may start before its end (what laggards still need), never after it, and
    `compacted` names the entry before the first one.
    """

    hard_state: HardState
    configuration: Configuration
    entries: Entries
    compacted: EntryId = EntryId(0, 0)
    snapshot: SnapshotMeta | None = None


class Random(Protocol):
    """The injected generator: `random.Random` fits. Draws through `random()` only."""

    def random(self) -> float:
        """Return a float in [0, 1)."""
        ...


def quorum_size(voters: Sequence[MemberId]) -> int:
    """Return how many voters make a majority: n // 2 + 1."""
    return len(voters) // 2 + 1
