"""Events of Raft itself: roles and elections, the log, membership, snapshots (`zraft.events`)."""

from __future__ import annotations

from zraft.event_spec import EventSpec
from zraft.event_spec import log_event as _log
from zraft.event_spec import trace_event as _trace

CORE_EVENTS: dict[str, EventSpec] = {
    # ---------------------------------------------------------------------- roles and elections
    "role.changed": _log(
        "info",
        "old new term reason",
        "{old} → {new} in term {term} ({reason})",
        "The role changed; the reason says which rule did it.",
    ),
    "term.advanced": _log(
        "info",
        "old new peer",
        "term {old} → {new}",
        "The current term rose; peer taught it, or is empty when this node raised it itself.",
    ),
    "leader.changed": _log(
        "info",
        "leader term",
        "the leader of term {term} is {leader}",
        "This node follows another leader now, or none (empty).",
    ),
    "election.started": _log(
        "info",
        "term pre_vote reason",
        "asks for votes for term {term} ({reason}, pre-vote: {pre_vote})",
        "A pre-vote or a vote began: timeout, hint, campaign, transfer (the leader asked for it) or"
        " a pre-vote that was won.",
    ),
    "election.won": _log(
        "info",
        "term pre_vote votes quorum elapsed_ms",
        "won term {term} with the votes of {votes} in {elapsed_ms} ms (pre-vote: {pre_vote})",
        "A quorum said yes; elapsed since the first pre-vote of this attempt.",
    ),
    "election.lost": _log(
        "info",
        "term pre_vote votes quorum elapsed_ms reason",
        "did not win term {term}: {reason} (votes: {votes}, pre-vote: {pre_vote})",
        "The attempt ended: refused, timeout, leader_found, higher_term, voted or yielded.",
    ),
    "vote.granted": _log(
        "info",
        "peer term pre_vote",
        "yes to {peer} for term {term} (pre-vote: {pre_vote})",
        "This node said yes; a real vote is on disk before the answer leaves.",
    ),
    "vote.denied": _log(
        "debug",
        "peer term pre_vote reason",
        "no to {peer} for term {term}: {reason} (pre-vote: {pre_vote})",
        "This node said no: stale_term, already_voted, log_behind, leader_alive, is_leader or"
        " lease_promised.",
    ),
    "check_quorum.lost": _log(
        "warning",
        "term heard",
        "heard only {heard} for an election timeout",
        "A leader heard no quorum for the longest election timeout and steps down (thesis §6.2).",
    ),
    "transfer.started": _log(
        "info",
        "target term",
        "hands leadership over to {target}",
        "A leader began to hand over; it takes no proposals until that has ended (thesis §3.10).",
    ),
    "transfer.sent": _log(
        "info",
        "target elapsed_ms",
        "{target} holds the whole log after {elapsed_ms} ms and was told to stand for election",
        "TimeoutNow was sent; this term has no lease any more.",
    ),
    "transfer.ended": _log(
        "info",
        "target outcome elapsed_ms",
        "the hand-over to {target} ended after {elapsed_ms} ms: {outcome}",
        "done (the target was told, and a later term began: `leader.changed` names who leads it), "
        "timeout (this node leads on), target_gone or leadership_lost.",
    ),
    "lease.dropped": _log(
        "info",
        "term late_ms",
        "stood still for {late_ms} ms and gave up its lease",
        "A leader's process did not run for a while; the next round gives it a lease again.",
    ),
    "read.retried": _log(
        "debug",
        "reason",
        "asks again for a read index: {reason}",
        "A follower's question to its leader was refused, or got no answer in time.",
    ),
    "timer.grace_granted": _log(
        "info",
        "late_ms grace_ms",
        "woke {late_ms} ms late; the deadline moved by {grace_ms} ms",
        "A deadline was due right after a stall and was put off once.",
    ),
    # -------------------------------------------------------------------------------- the log
    "entries.appended": _trace(
        "first_index last_index peer",
        "entries {first_index}..{last_index} appended, from {peer}",
        "Entries joined this node's log, from the leader's message or from its own clients.",
    ),
    "entries.truncated": _log(
        "warning",
        "first_index last_index peer",
        "entries {first_index}..{last_index} removed: they conflict with the log of {peer}",
        "Uncommitted entries that conflict with the leader's were removed (Raft §5.3).",
    ),
    "commit.advanced": _trace(
        "old new", "commit index {old} → {new}", "The commit index rose: these entries are safe."
    ),
    "config.appended": _log(
        "info",
        "index voters outgoing learners joining",
        "configuration {index}: voters {voters}, outgoing {outgoing}, learners {learners}",
        "The newest configuration in the log; it counts at once, joint while someone is outgoing.",
    ),
    "config.committed": _log(
        "info",
        "index voters outgoing learners",
        "configuration {index} is committed: voters {voters}, outgoing {outgoing}",
        "A configuration that can't be taken back any more; after a start, as the log is read.",
    ),
    "config.rolled_back": _log(
        "warning",
        "index now",
        "configuration {index} is rolled back to {now}",
        "The entry of an uncommitted configuration was truncated: the one before counts again.",
    ),
    "member.added": _log(
        "info",
        "peer index",
        "{peer} is a learner since index {index}",
        "A member joined, by a committed configuration: it gets the log and does not vote.",
    ),
    "member.caught_up": _log(
        "info",
        "peer match_index rounds",
        "{peer} has caught up, up to {match_index} in {rounds} rounds",
        "A learner that waits to be promoted keeps up with the leader, which promotes it now.",
    ),
    "member.promoted": _log(
        "info",
        "peer index",
        "{peer} votes since index {index}",
        "A learner became a voter, by a committed configuration.",
    ),
    "member.demoted": _log(
        "info",
        "peer index",
        "{peer} does not vote since index {index}",
        "A voter became a learner, by a committed configuration.",
    ),
    "member.removed": _log(
        "info",
        "peer index",
        "{peer} is no member since index {index}",
        "A member was removed, by a committed configuration.",
    ),
    "node.removed": _log(
        "warning",
        "index",
        "this node is no member since index {index}",
        "A committed configuration is without this node; it stands for no election any more.",
    ),
    "progress.changed": _log(
        "debug",
        "peer old new match_index reason",
        "{peer}: {old} → {new} at index {match_index} ({reason})",
        "A leader's view of a peer changed between probe, replicate and snapshot.",
    ),
    "log.compacted": _log(
        "info",
        "first_index snapshot_index",
        "the log starts at {first_index} now: a snapshot covers it up to {snapshot_index}",
        "Entries that a durable snapshot covers were cut away, but for a window for laggards.",
    ),
    # ------------------------------------------------------------------------------- snapshots
    "snapshot.installed": _log(
        "info",
        "index snapshot_term dropped",
        "a snapshot up to {index} takes the place of {dropped} entries",
        "A leader's snapshot was received, and the log starts after it; the machine follows.",
    ),
    "snapshot.ignored": _log(
        "debug",
        "index peer reason",
        "no need of {peer}'s snapshot up to {index}: {reason}",
        "What a peer's snapshot covers is here already (committed, in_log): nothing is replaced.",
    ),
    "digest.differed": _log(
        "error",
        "peer index agree",
        "at index {index} the state of {peer} is not that of {agree} others",
        "A leader compared the digests of all replicas, and this one (or it itself) is wrong.",
    ),
    "digest.diverged": _log(
        "error",
        "peer index exact compared",
        "the state of this node is not that of {peer} from index {index} on (exact: {exact})",
        "This replica found the first entry after which its digest differs; it stops (exit 70).",
    ),
    "apply.failed": _log(
        "warning",
        "index error",
        "the command at index {index} raised {error}; its result is that error, everywhere",
        "The state machine raised: a replicated error result, and applied_index moves on.",
    ),
}
