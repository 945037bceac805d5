"""The messages between peers, as the paper names them (Raft Fig. 2; pre-vote: thesis §9.6).

Every message starts with `src`, `dst` and `term`: who sent it, to whom, and the sender's current
term. "Current" matters: a pre-vote asks about a term that its sender has not entered, so the term
asked about is a field of its own, and the answer repeats it. Otherwise a node cut off behind a dead
leader can never count its answers (etcd-io/raft d4471b2).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from zraft.core.model import Entries, MemberId


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


Message: TypeAlias = RequestVote | RequestVoteResponse | AppendEntries | AppendEntriesResponse
"""Every message that the core takes or makes. InstallSnapshot and TimeoutNow join it later."""
