"""How long nodes that were started needed to have what the leader has, and how much that was.

A node says in its own log with which last index it came back; the leader says what there is to
have. This module only asks and reads.
"""

from __future__ import annotations

import select
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from zraft import clock
from zraft.api import NodeStatus
from zraft.cli.durations import format_ms
from zraft.cli.logfiles import LogFile, boot_time

if TYPE_CHECKING:
    from zraft.client.control import Cluster
    from zraft.control_api import ActionResult

POLL_S = 0.02
LOG_LINES_WAIT_MS = 200  # telemetry keeps lines for at most 100 ms
TAIL_BYTES = 64 << 10


class CaughtUp(NamedTuple):
    """What one node did after its start. `entries` and `elapsed_ms` are None when not known."""

    name: str
    role: str | None
    entries: int | None
    elapsed_ms: int | None
    done: bool


def wait_caught_up(
    cluster: Cluster, results: Sequence[ActionResult], timeout_ms: int
) -> list[CaughtUp]:
    """Wait until each started node follows the leader and applied what it had committed.

    Without a leader there is nothing to catch up with: it returns at once with what is known.
    """
    if not results:
        return []
    names = [result.name for result in results]
    start_ms = clock.monotonic_ms()
    goal: int | None = None
    reached_ns: dict[str, int] = {}
    statuses: Mapping[str, NodeStatus | None] = {}
    while clock.monotonic_ms() - start_ms < timeout_ms:
        statuses = cluster.statuses()
        now_ns = clock.monotonic_ns()
        leader = _leader(statuses)
        if leader is None and _majority_is_down(statuses):
            break
        if leader is not None:
            goal = leader.commit if goal is None else goal
            for name in names:
                status = statuses[name]
                if status is not None and status.leader == leader.name and status.applied >= goal:
                    reached_ns.setdefault(name, now_ns)
        if len(reached_ns) == len(names):
            break
        select.select([], [], [], POLL_S)
    return [
        _one(cluster, result, statuses.get(result.name), goal, reached_ns.get(result.name))
        for result in results
    ]


def _leader(statuses: Mapping[str, NodeStatus | None]) -> NodeStatus | None:
    from zraft.client.control import leadership

    found = leadership(statuses)
    return statuses[found.leader] if found else None


def _majority_is_down(statuses: Mapping[str, NodeStatus | None]) -> bool:
    return 2 * sum(status is not None for status in statuses.values()) <= len(statuses)


def _one(
    cluster: Cluster,
    result: ActionResult,
    status: NodeStatus | None,
    goal: int | None,
    reached_ns: int | None,
) -> CaughtUp:
    role = status.role if status else None
    if reached_ns is None or goal is None:
        return CaughtUp(result.name, role, None, None, done=False)
    restored, ready_ns = _restored(cluster, result)
    entries = None if restored is None else max(0, goal - restored)
    elapsed_ms = None if ready_ns is None else max(0, (reached_ns - ready_ns) // 1_000_000)
    return CaughtUp(result.name, role, entries, elapsed_ms, done=True)


def _restored(cluster: Cluster, result: ActionResult) -> tuple[int | None, int | None]:
    """Return the last index that the node came back with and when it was ready, from its log."""
    file = LogFile(cluster.directory / result.name / "log.jsonl", result.name, boot_time())
    last_index: int | None = None
    ready_ns: int | None = None
    try:
        lines, _ = file.read_tail(TAIL_BYTES)
        until_ms = clock.monotonic_ms() + LOG_LINES_WAIT_MS
        while True:
            for line in lines:
                if line.pid != result.pid:
                    continue
                if line.fields.get("event") == "node.started":
                    last_index = line.fields.get("last_index")
                elif line.fields.get("event") == "node.ready":
                    ready_ns = line.mono_ns
            if ready_ns is not None or clock.monotonic_ms() > until_ms:
                return last_index, ready_ns
            select.select([], [], [], POLL_S)
            lines = file.read_new()
    finally:
        file.close()


def caught_up_lines(caught: Sequence[CaughtUp]) -> list[str]:
    """Return one sentence per node."""
    lines = []
    for one in caught:
        if not one.done:
            lines.append(f"{one.name} is up ({one.role or 'no answer'}), not caught up yet")
        elif one.role == "leader":
            lines.append(f"{one.name} is leader")
        elif one.entries is None or one.elapsed_ms is None:
            lines.append(f"{one.name} is {one.role}, caught up")
        else:
            what = "entry" if one.entries == 1 else "entries"
            took = format_ms(one.elapsed_ms)
            lines.append(f"{one.name} is {one.role}, caught up {one.entries} {what} in {took}")
    return lines
