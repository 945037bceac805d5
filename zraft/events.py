"""The closed list of events: every name that may stand in a `log.jsonl` or a `trace.jsonl`.

An event is named `noun.verb_past`; facts are fields, never text. Decisions go to the stream `log`,
which is always written; single messages, entries and state steps go to the stream `trace`, which is
limited or off (see `zraft.telemetry`). Adding an event is adding one entry here and running
`python -m zraft.events > docs/EVENTS.md`; tests/unit/test_events.py compares this list with the
code that emits and with that page.

This module imports nothing heavy, so that the command line can explain events without delay.
"""

from __future__ import annotations

import sys

from zraft.event_spec import CONTEXT_FIELDS, EventSpec
from zraft.event_spec import log_event as _log
from zraft.event_spec import trace_event as _trace
from zraft.events_core import CORE_EVENTS

EVENTS: dict[str, EventSpec] = {
    # ------------------------------------------------------------------------ the life of a node
    "node.started": _log(
        "info",
        "version config_digest restored_term last_index snapshot_index",
        "node started with term {restored_term} and a log up to {last_index}",
        "The process holds its data directory and has read it back; it does not serve yet.",
    ),
    "node.ready": _log(
        "info",
        "elapsed_ms",
        "ready after {elapsed_ms} ms",
        "All sockets are bound and the loop runs; elapsed since the process began.",
    ),
    "node.stopping": _log(
        "info", "reason", "stopping: {reason}", "A stop was asked for and began (signal, control)."
    ),
    "node.stopped": _log(
        "info",
        "reason exit_code",
        "stopped with exit code {exit_code}: {reason}",
        "The last line of a process that ends in order.",
    ),
    "node.failed": _log(
        "error",
        "exit_code error why",
        "failed with exit code {exit_code}: {error}",
        "The last line of a process that ends because of a broken invariant or an outside failure.",
    ),
    **CORE_EVENTS,
    # ---------------------------------------------------------------------------------- peers
    "peer.connected": _log(
        "info",
        "peer endpoint",
        "connected to {peer}",
        "The ZeroMQ handshake with the peer's socket is done.",
    ),
    "peer.disconnected": _log(
        "info",
        "peer endpoint",
        "connection to {peer} lost",
        "The connection to the peer's socket ended; alone it says nothing about the peer.",
    ),
    "peer.reconnected": _log(
        "info",
        "peer reason backoff_ms",
        "socket to {peer} made anew: {reason}",
        "The socket was made anew, because nothing arrived at the peer or no handshake came.",
    ),
    "peer.down": _log(
        "warning",
        "peer incarnation",
        "the process of {peer} is gone",
        "The peer's endpoint refuses connections: its process does not exist any more.",
    ),
    "peer.probed": _log(
        "info",
        "peer outcome",
        "{peer} is not proven to be gone: {outcome}",
        "After a lost connection the peer's endpoint did not refuse a new one: greeted (it lives),"
        " silent, hung_up or an errno; nothing follows.",
    ),
    "peer.rolled_back": _log(
        "warning",
        "peer incarnation seen",
        "{peer} speaks as incarnation {incarnation}, but {seen} was heard before; it was told so",
        "Late frames from before a restart, or a data directory that was put back to an older"
        " state: in that case the peer exits with code 65 when it is told.",
    ),
    "peer.garbage": _log(
        "warning",
        "socket reason count",
        "{count} frames dropped on the {socket} socket: {reason}",
        "Frames that no member of this cluster sent; at most one line a second and reason.",
    ),
    "peer.hint_taken": _log(
        "info",
        "peer term delay_ms",
        "leader {peer} of term {term} is gone; pre-votes in {delay_ms} ms",
        "The leader's process is gone, and this node starts pre-votes without waiting.",
    ),
    "peer.hint_cancelled": _log(
        "info",
        "peer term",
        "leader {peer} of term {term} spoke after all",
        "A message of the leader's term came after the hint; the hint is void.",
    ),
    "fault.injected": _log(
        "warning",
        "fault rule",
        "fault {fault} on: {rule}",
        "A rule that drops or changes messages is in force.",
    ),
    "fault.cleared": _log(
        "warning", "fault rule", "fault {fault} off: {rule}", "The rule is no longer in force."
    ),
    # ------------------------------------------------------------------------------- requests
    "request.rejected": _trace(
        "code request",
        "request {request} refused: {code}",
        "A client got an error; the code is the one it saw.",
    ),
    "request.repeated": _trace(
        "index request",
        "request {request} was applied before, at {index}",
        "A write came again under the same session and sequence, and got its first result.",
    ),
    "request.parked": _trace(
        "requests", "{requests} requests wait for a leader", "No leader is known; they wait here."
    ),
    "request.forwarded": _trace(
        "requests peer", "{requests} requests forwarded to {peer}", "The leader answers them."
    ),
    # ------------------------------------------------------------------------------- storage
    "storage.recovered": _log(
        "info",
        "segments first_index last_index elapsed_ms",
        "{segments} segments read, entries {first_index}..{last_index}, in {elapsed_ms} ms",
        "The log was read back and every checksum was right.",
    ),
    "storage.tail_repaired": _log(
        "warning",
        "path offset bytes_dropped",
        "{path}: {bytes_dropped} bytes of a torn batch cut at offset {offset}",
        "The last batch was torn by a crash, so never acknowledged, and was cut off.",
    ),
    "storage.segment_rotated": _log(
        "debug",
        "segment first_index",
        "segment {segment} begins at index {first_index}",
        "A segment was sealed and the next one holds the hard state.",
    ),
    "storage.segment_deleted": _log(
        "debug",
        "segment last_index",
        "segment {segment} up to index {last_index} deleted",
        "A snapshot covers the segment and a newer, synced one holds the hard state.",
    ),
    "snapshot.damaged": _log(
        "error",
        "path offset reason",
        "{path} is damaged at byte offset {offset}: {reason}",
        "A snapshot is not what was written; an older one is taken if the log still reaches it.",
    ),
    "snapshot.begun": _log(
        "info",
        "index snapshot_term",
        "a snapshot at index {index} begins",
        "The state is frozen at this index and is written in slices; entries go on being applied.",
    ),
    "snapshot.taken": _log(
        "info",
        "index bytes elapsed_ms slices longest_us",
        "snapshot at index {index}: {bytes} bytes in {slices} slices, {elapsed_ms} ms",
        "A snapshot is durable; the log before it may be cut. The longest slice was so long.",
    ),
    "snapshot.failed": _log(
        "error",
        "index reason",
        "no snapshot at index {index}: {reason}",
        "The disk refused it, or the state machine raised. The log still holds everything, and "
        "grows until one succeeds.",
    ),
    "snapshot.not_freed": _log(
        "warning",
        "reason",
        "an old snapshot could not be deleted: {reason}",
        "The disk refused it. It takes up space until the next start, which deletes it.",
    ),
    "snapshot.restored": _log(
        "info",
        "index bytes elapsed_ms",
        "state of the snapshot at index {index} restored in {elapsed_ms} ms",
        "The state machine was replaced, at a start or after a leader's snapshot was received.",
    ),
    "snapshot.send_begun": _log(
        "info",
        "peer index bytes",
        "sends {peer} the snapshot at index {index}, {bytes} bytes",
        "The entries that the peer misses are compacted away.",
    ),
    "snapshot.send_resumed": _log(
        "info",
        "peer index at",
        "goes on sending {peer} the snapshot at index {index} from byte {at}",
        "The peer holds the part before it already, whoever sent that.",
    ),
    "snapshot.sent": _log(
        "info",
        "peer index elapsed_ms",
        "{peer} has the snapshot at index {index} after {elapsed_ms} ms",
        "The peer installed it, and gets entries again.",
    ),
    "snapshot.send_ended": _log(
        "warning",
        "peer index at",
        "stops sending {peer} the snapshot at index {index}, at byte {at}",
        "The peer was silent for too long, or this node leads no more; what it got is not lost.",
    ),
    "snapshot.refused": _log(
        "error",
        "peer index reason",
        "refuses {peer}'s snapshot at index {index}: {reason}",
        "What a peer sent is damaged or foreign, or there is no room for it.",
    ),
    "storage.sync_slow": _log(
        "warning",
        "elapsed_ms bytes",
        "one sync took {elapsed_ms} ms",
        "One fdatasync took longer than a heartbeat interval; the loop stood still.",
    ),
    # ------------------------------------------------------------------------------- the loop
    "loop.stalled": _log(
        "warning",
        "late_ms turn_ms",
        "the loop was {late_ms} ms late",
        "The process did not run when it should have: paused, starved, or busy.",
    ),
    "gc.collected": _log(
        "debug",
        "elapsed_ms objects",
        "garbage collected in {elapsed_ms} ms",
        "A full garbage collection ran in idle time.",
    ),
    # ------------------------------------------------------------------------- the supervisor
    "supervisor.started": _log(
        "info", "version", "supervisor started", "The supervisor holds its lock and serves."
    ),
    "supervisor.adopted": _log(
        "info",
        "names",
        "nodes found running: {names}",
        "A new supervisor found living nodes of an earlier one; they were not disturbed.",
    ),
    "supervisor.state_rebuilt": _log(
        "warning",
        "reason",
        "state.json was not readable and was rebuilt from the locks: {reason}",
        "What runs is wanted, what does not run is not; the old file is state.json.broken.",
    ),
    "supervisor.stuck": _log(
        "error",
        "reason elapsed_ms",
        "for {elapsed_ms} ms nothing could be recorded: {reason}",
        "Told when it is over. Nothing is started or signalled before its record is durable.",
    ),
    "supervisor.stopped": _log(
        "info", "reason", "supervisor stopped: {reason}", "The supervisor ended in order."
    ),
    "supervisor.member_added": _log(
        "info",
        "name member_id",
        "{name} was added as member {member_id}",
        "A node came after `up`: recorded, its directory made. The log decides whether it votes.",
    ),
    "supervisor.member_replaced": _log(
        "warning",
        "name member_id",
        "{name} got a new directory and is member {member_id} now",
        "The old directory was put aside: what it remembered is lost, so it is another member.",
    ),
    "supervisor.member_removed": _log(
        "info",
        "name member_id data",
        "{name} (member {member_id}) was taken out; its data: {data}",
        "A removed member was stopped and forgotten. `data`: its directory, empty when deleted.",
    ),
    "process.spawned": _log(
        "info", "name child_pid", "{name} started as pid {child_pid}", "A node process was started."
    ),
    "process.ready": _log(
        "info",
        "name child_pid elapsed_ms",
        "{name} ready after {elapsed_ms} ms",
        "The process wrote its readiness line.",
    ),
    "process.exited": _log(
        "info",
        "name child_pid exit_code signal expected",
        "{name} (pid {child_pid}) ended: exit code {exit_code}, signal {signal}",
        "A node process ended; expected says whether somebody had asked for it.",
    ),
    "process.backoff": _log(
        "warning",
        "name crashes delay_ms",
        "{name} crashed {crashes} times; next start in {delay_ms} ms",
        "A crashed node is started again, later each time.",
    ),
    "process.fatal": _log(
        "error",
        "name reason exit_code",
        "{name} is not started again: {reason}",
        "Restarting cannot heal this: the exit code says so, or it crashed too often.",
    ),
    "process.adopted": _log(
        "info",
        "name child_pid paused",
        "{name} found running as pid {child_pid}",
        "A living process that an earlier supervisor started is watched again.",
    ),
    "process.paused": _log(
        "warning",
        "name child_pid until_ms",
        "{name} paused (SIGSTOP)",
        "The process was stopped; until_ms is the wall time at which it goes on, or null.",
    ),
    "process.resumed": _log(
        "info", "name child_pid", "{name} resumed (SIGCONT)", "The process goes on."
    ),
    "process.foreign": _log(
        "error",
        "name holder_pid",
        "the directory of {name} is held by a foreign process, pid {holder_pid}",
        "The lock of the data directory is held by a process that is not this cluster's node.",
    ),
    "stderr": _log(
        "error",
        "text",
        "{text}",
        "Text that a process wrote to its standard error, such as a traceback, found by a reader.",
    ),
    # -------------------------------------------------------------------------------- traces
    "rpc.sent": _trace(
        "kind peer message_term epoch frame_seq bytes heartbeat",
        "{kind} to {peer}",
        "A message was handed to the socket of a peer.",
    ),
    "rpc.received": _trace(
        "kind peer message_term epoch frame_seq bytes heartbeat",
        "{kind} from {peer}",
        "A message passed every check and reached the core.",
    ),
    "rpc.dropped": _trace(
        "kind peer reason",
        "{kind} dropped, peer {peer}: {reason}",
        "A message was dropped: by a fault rule, a full window, or the staleness filter.",
    ),
    "trace.suppressed": _trace(
        "count kinds",
        "{count} trace events not written in the last second",
        "More trace events than the limit; counts by kind of what is missing.",
    ),
}


def render_events_markdown() -> str:
    """Return docs/EVENTS.md: one table per stream, in the order of the list above."""
    lines = [
        "# Events",
        "",
        "Every event that a node or a supervisor writes, generated from `zraft/events.py`",
        "(`python -m zraft.events > docs/EVENTS.md`; a test compares).",
        "",
        "Each line is one JSON object. All lines have `ts` (wall time, UTC, for people), `level`,",
        "`event`, `msg` (the sentence), `cluster`, `node`, `pid`, `inc` (how often this data",
        "directory was started), `seq` (counts the lines of this process over both files, from 1),",
        "`mono_ns` (CLOCK_MONOTONIC: what lines of different nodes are ordered by) and `v` (format",
        "version, 1). A node adds " + ", ".join(f"`{name}`" for name in CONTEXT_FIELDS) + ".",
        "The fields below come on top. Units are the last part of a name.",
    ]
    titles = {
        "log": "`log.jsonl`: decisions, always written",
        "trace": "`trace.jsonl`: messages, entries and state steps (`logging.trace`)",
    }
    for stream, title in titles.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| event | level | fields | meaning |",
            "|---|---|---|---|",
        ]
        for name, spec in EVENTS.items():
            if spec.stream == stream:
                fields = ", ".join(f"`{field}`" for field in spec.fields)
                lines.append(f"| `{name}` | {spec.level} | {fields} | {spec.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render_events_markdown())
