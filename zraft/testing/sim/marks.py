"""Which rare situations a run has reached: a run that reached none of them has tested little.

Each mark is a situation that some rule of Raft or of this implementation exists for. A campaign
adds up the marks of its seeds and fails if one of `REQUIRED` was never reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

REQUIRED = {
    "split_vote": "an election ended by its timeout, without a winner",
    "election_lost_log_behind": "a vote was refused because the candidate's log was behind",
    "revoted_same": "a vote was granted twice to the same candidate in one term",
    "pre_vote_refused": "a pre-vote was refused by a node that hears its leader",
    "conflict_truncation": "a follower removed entries that conflicted with the leader's",
    "old_term_commit": "entries of an older term were committed through one of the new term",
    "paused_leader_deposed": "a leader was paused and found itself replaced",
    "stalled_leader_deposed": "a leader's disk stalled and it found itself replaced",
    "quorum_lost": "a leader heard no quorum and stepped down",
    "two_leaders": "two nodes believed to lead at one moment, in different terms",
    "hint_election": "an election was won because a peer's process was known to be gone",
    "hint_wrong": "a node was told that its living leader is gone",
    "grace_granted": "a deadline was put off after a stall",
    "wal_torn": "a torn batch was found and repaired",
    "batch_survived": "a batch under way at a crash was there as a whole",
    "batch_lost": "a batch under way at a crash was gone as a whole",
    "segment_rotated": "the log went on in a new segment",
    "crash_in_flush": "a node died between two steps of one flush",
    "crash_in_start": "a node died while it read and repaired its log",
    "all_down": "no node was running",
    "full_window": "a leader's window to a peer was full",
    "back_up": "a follower refused an append, and the leader went back",
    "stale_frame": "a frame of an older life was dropped",
    "parked_request": "a request waited for a leader",
    "forwarded_request": "a follower passed a request on",
    "busy_refusal": "a node refused a request because too many wait",
    "replaced_proposal": "a proposal was answered with: another entry took its place",
    "unknown_applied": "a write with an unknown outcome turned out to be applied",
    "unknown_not_applied": "a write with an unknown outcome turned out not to be applied",
    "read_retried": "reads of a lost leadership went on to the next one",
    "apply_slice": "a turn ended before all that was committed was applied",
    "busy_inbox": "a turn ended with messages still to be read",
    "joint_committed": "a joint configuration was committed",
    "learner_promoted": "a learner got a vote",
    "voter_demoted": "a voter lost its vote and stayed",
    "member_removed": "a member left",
    "leader_removed": "a leader left, or lost its vote, and stepped down",
    "config_rolled_back": "a configuration was truncated, and the one before it counted again",
    "config_inherited": "a leader found a configuration in its log that was not committed",
    "change_refused": "a change of membership was refused",
    "node_wiped": "a voter lost its disk for good",
    "wiped_replaced": "a member that took the place of a lost one got its vote",
    "told_removed": "a node that did not know that it left was told",
    "stopped_in_order": "a leader that could hand over to nobody gave up and stopped",
    "transfer_done": "leadership was handed over",
    "transfer_given_up": "a hand-over was given up, or the leadership was lost meanwhile",
    "write_waited_for_transfer": "a write came in during a hand-over, and waited",
    "lease_read": "a leader answered a read under its lease",
    "lease_dropped": "a leader stood still and gave up its lease",
    "follower_read": "a node that did not lead answered a linearizable read",
    "stale_read_by_proof": "a bounded stale read was answered by an earlier proof",
    "repeated_in_log": "a write of a session stands in the log more than once",
    "expired_in_log": "a write of a session that was over came into the log",
    "session_expired": "a client was told that its session is over",
    "session_closed": "a client closed its session, and went on in another one",
    "write_resolved_applied": "a client asked about an unknown outcome: it was applied",
    "write_resolved_not_applied": "a client asked about an unknown outcome: it never will be",
    "withdrawn_in_log": "a write came into the log after somebody was told that it never would be",
    "digests_compared": "a leader compared the states of all members at an index",
    "stale_read_refused": "a bounded stale read was refused: nothing could be proven",
    "snapshot_taken": "a snapshot became durable",
    "log_compacted": "a log was cut behind a snapshot",
    "snapshot_installed": "a leader's snapshot took the place of a log",
    "snapshot_resumed": "a transfer went on where an earlier one had ended",
    "snapshot_given_up": "a transfer ended without success",
    "snapshot_not_needed": "a snapshot arrived whose entries were here already",
    "snapshot_refused": "the disk refused a snapshot, and the node went on",
}


class Marks:
    """How often each situation was reached in one run."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        """Nothing was reached yet."""
        self.counts: Counter[str] = Counter()

    def reach(self, mark: str) -> None:
        """Count a situation; its name is in `REQUIRED`."""
        assert mark in REQUIRED, mark
        self.counts[mark] += 1


def missing(counts: Mapping[str, int]) -> list[str]:
    """Return the situations that were never reached."""
    return [mark for mark in REQUIRED if not counts.get(mark)]
