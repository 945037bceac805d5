"""The messages between peers, as the paper names them (Raft Fig. 2; pre-vote: thesis §9.6).

Every message starts with `src`, `dst` and `term`: who sent it, to whom, and the sender's current
term. "Current" matters: a pre-vote asks about a term that its sender has not entered, so the term
asked about is a field of its own, and the answer repeats it. Otherwise a node cut off behind a dead
leader can never count its answers (etcd-io/raft d4471b2).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from zraft.core.model import Entries, EntryId, MemberId


class RequestVote(NamedTuple):
    """Ask for a vote, or, with `pre_vote`, whether one would be given.

    `vote_term` is the term of the election: `term` for a real vote, `term + 1` for a pre-vote.
    """

    src: MemberId
    dst: MemberId
    term: int
    pre_vote: bool
    vote_term: int
    last_log_index: int
    last_log_term: int
    transfer: bool = False
    """The leader asked for this election (TimeoutNow): stickiness does not refuse it."""


class RequestVoteResponse(NamedTuple):
    """Answer a RequestVote. `vote_term` and `pre_vote` repeat the request's."""

    src: MemberId
    dst: MemberId
    term: int
    pre_vote: bool
    vote_term: int
    granted: bool


class AppendEntries(NamedTuple):
    """Replicate entries after `prev_log_index`; with no entries, a heartbeat.

    `round` grows with every new confirmation a leader wants; answers repeat it, so that any append
    sent after a read arrived can confirm the read (thesis §6.4).
    """

    src: MemberId
    dst: MemberId
    term: int
    prev_log_index: int
    prev_log_term: int
    leader_commit: int
    round: int
    entries: Entries

    @property
    def last_new_index(self) -> int:
        """Index of the last entry that a receiver who accepts this holds for certain."""
        return self.prev_log_index + len(self.entries.terms)


class AppendEntriesResponse(NamedTuple):
    """Answer an AppendEntries.

    On success `match_index` is the last index that *this message* matched, never the receiver's
    own last index. On refusal `match_index` is 0, `conflict_index` is the first index of the term
    `conflict_term` in the receiver's log, or, with `conflict_term` 0, the index after its last
    entry (Raft §5.3, fast back-up).
    """

    src: MemberId
    dst: MemberId
    term: int
    success: bool
    match_index: int
    conflict_index: int
    conflict_term: int
    round: int


class InstallSnapshot(NamedTuple):
    """One chunk of a snapshot's file, on the bulk lane (Raft §7, Fig. 13).

    `size_bytes` and `crc` are the whole file's and name it together with index and term;
    `chunk_crc` is that of `data`. The configuration is inside the file.
    """

    src: MemberId
    dst: MemberId
    term: int
    last_included_index: int
    last_included_term: int
    size_bytes: int
    crc: int
    offset: int
    chunk_crc: int
    data: bytes

    @property
    def last_included(self) -> EntryId:
        """The last entry that the snapshot covers."""
        return EntryId(self.last_included_index, self.last_included_term)


class InstallSnapshotResponse(NamedTuple):
    """Answer chunks: the receiver holds everything before `next_offset` and wants what follows.

    `installed`: everything up to `last_included_index` is durable here, by this snapshot or by
    what was here before; only then is it a promise, and waits for the sync.
    """

    src: MemberId
    dst: MemberId
    term: int
    last_included_index: int
    last_included_term: int
    next_offset: int
    installed: bool


class TimeoutNow(NamedTuple):
    """Stand for election at once: the leader hands over (thesis §3.10)."""

    src: MemberId
    dst: MemberId
    term: int


class ReadIndex(NamedTuple):
    """Ask the leader for an index at which a follower may answer a read (thesis §6.4)."""

    src: MemberId
    dst: MemberId
    term: int
    read_id: int


class ReadIndexResponse(NamedTuple):
    """Answer a ReadIndex; `index` 0: refused, ask again under another id."""

    src: MemberId
    dst: MemberId
    term: int
    read_id: int
    index: int  # type: ignore[assignment]  # a field, not tuple.index


class DigestPurpose(IntEnum):
    """What a `StateDigest` is for. The numbers are on the wire."""

    REPORT = 1  # a follower to its leader
    ASK = 2  # a leader that is wrong to those who are right
    PAGE = 3  # to somebody who is wrong


class StateDigest(NamedTuple):
    """The digest of a replica's state after the entry `index`.

    Raft has no part in it: servers compare the states of their machines, and the core ignores it.
    With PAGE, `digests` are those after `first_index` and every entry up to `index`.
    """

    src: MemberId
    dst: MemberId
    term: int
    purpose: DigestPurpose
    index: int  # type: ignore[assignment]  # a field, not tuple.index
    digest: int
    first_index: int = 0
    digests: Sequence[int] = ()


Message: TypeAlias = (
    RequestVote
    | RequestVoteResponse
    | AppendEntries
    | AppendEntriesResponse
    | InstallSnapshot
    | InstallSnapshotResponse
    | TimeoutNow
    | ReadIndex
    | ReadIndexResponse
    | StateDigest
)
"""Every message that the core takes or makes."""
