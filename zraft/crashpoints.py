"""Crash points: places where a node that was told to kills itself, to see what a restart makes of
what was done by then and what was not.

    if crashpoints.armed:
        crashpoints.reach("wal.batch.written")

A point is before or after a persist, a send or an apply. Unused, it costs the test of one plain
module attribute (about 5 ns; bounded by tests/unit/test_crashpoints.py); nothing here runs. An
armed point kills the process with SIGKILL, so that nothing is flushed, closed or said any more,
except one line in the process's err file, for whoever wonders.

One point is armed at a time; it is part of the process, not of its directory: a restarted node has
none.
"""

from __future__ import annotations

import os
import signal
from typing import Final

POINTS: Final[dict[str, str]] = {
    "wal.batch.before-write": "A batch of the log is about to be written: nothing of it is there.",
    "wal.batch.written": "A batch is written and not synced: it may be there, or a part of it.",
    "wal.batch.synced": "A batch is durable, and nobody was told.",
    "wal.seal.before": "A segment is full and not sealed yet.",
    "wal.seal.synced": "A segment is sealed, and the next one does not exist.",
    "wal.segment.before-header": "The next segment has a temporary name and no header.",
    "wal.segment.header-written": "The next segment's header is written and not synced.",
    "wal.segment.header-synced": "The next segment is complete under its temporary name.",
    "wal.segment.renamed": "The next segment has its name, and the directory is not synced.",
    "wal.segment.ready": "The next segment is durable with its name; its first batch is not.",
    "wal.fill.file-made": "A file for the next segment was made: empty, under a temporary name.",
    "wal.fill.zeroed": "Zeros were written ahead of the log and not synced.",
    "wal.fill.synced": "Zeros ahead of the log are durable.",
    "persist.vote.before": "A term or vote is about to be persisted.",
    "persist.vote.done": "A term or vote is durable, and its answer or request has not left.",
    "persist.entries.before": "Entries are about to be persisted.",
    "persist.entries.done": "Entries are durable, and no answer has left.",
    "flush.before-send": "There is something to do, and nothing of it was done.",
    "flush.sent": "What may leave before the disk has left; nothing is persisted.",
    "send.one": "One message has left; others of the same turn may not have.",
    "flush.before-answers": "What had to wait for the disk is about to leave.",
    "flush.answers-sent": "Votes and acknowledgements have left; the core does not know yet.",
    "flush.advanced": "The core counts what is durable; nothing of it is applied.",
    "apply.before-entry": "A committed entry is about to be applied.",
    "apply.entry-applied": "An entry is applied, and its client was not told.",
    "apply.slice-done": "A run of entries is applied, and no reply has left.",
    "snapshot.begun": "A snapshot was frozen, and its file is empty.",
    "snapshot.chunk-written": "A part of a snapshot is written under a temporary name.",
    "snapshot.before-finish": "All of a snapshot is written, and it is not durable.",
    "snapshot.file-durable": "A snapshot is durable with its name, and the log is as it was.",
    "snapshot.log-cut": "The log on disk is cut behind a snapshot.",
    "install.chunk-stored": "A chunk of a leader's snapshot is stored, and not acknowledged.",
    "install.file-durable": "A leader's snapshot is durable, and the log is the old one.",
    "install.persisted": "The log starts after a leader's snapshot; the state is the old one.",
    "install.restored": "The state is that of a leader's snapshot.",
    "reply.before-send": "Replies to clients are collected, and none has left.",
    "reply.sent": "Replies to clients have left.",
    "forward.before-send": "A client's request is about to be passed on to the leader.",
    "forward.sent": "A client's request was passed on, and the leader's answer is not here.",
}
"""Every point with the sentence for people."""

armed = ""
"""The point at which this process kills itself; empty: none. Read by every point, set by `arm`."""


def arm(point: str) -> None:
    """Kill this process at the next passage of `point`; an empty name disarms.

    Raises:
        KeyError: there is no such point.
    """
    global armed  # noqa: PLW0603  # a plain attribute is what makes unused points free
    if point:
        POINTS[point]
    armed = point


def reach(point: str) -> None:
    """Die here if this is the point. Called only when some point is armed."""
    assert point in POINTS, f"{point} is no crash point"
    if point != armed:
        return
    os.write(2, f"crash point {point}: {POINTS[point]}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)
