"""Who leads, and making somebody else lead: transfer, step down, campaign; each with its outcome.

A node answers such a request when it has begun. What became of it shows in the terms that follow,
so it is watched there: a leader of a higher term that a majority follows, or the old one that goes
on in its term.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import msgspec

from zraft import clock
from zraft.api import (
    Campaign,
    ControlFailure,
    NodeRequest,
    NodeStatus,
    StepDown,
    TransferLeadership,
)
from zraft.client.conditions import leadership
from zraft.client.link import error_of
from zraft.errors import Unavailable

if TYPE_CHECKING:
    from zraft.client.control import Cluster

LOOK_MS = 20
ASK_MS = 1_000
NOT_LEADER = "not_leader"


class LeadershipChange(msgspec.Struct, frozen=True, kw_only=True):
    """What became of leadership. Times in ms from the request to the new leader's first moment."""

    old_leader: str | None
    old_term: int
    leader: str | None
    term: int
    changed: bool  # another term than before
    handover_ms: int | None  # by the new leader's own clock; None when nothing changed
    started_mono_ns: int
    message: str = ""  # what the node that was asked said


class Pause:
    """Waits between two looks, and knows when the time is up."""

    def __init__(self, timeout_ms: int, *, look_ms: int = LOOK_MS) -> None:
        self.timeout_ms = timeout_ms
        self._look_ms = look_ms
        self._began_ms = clock.now_ms()
        self._poll = select.poll()

    @property
    def elapsed_ms(self) -> int:
        """Return how long this lasts."""
        return clock.now_ms() - self._began_ms

    @property
    def left_ms(self) -> int:
        """Return how much time is left, at least 1."""
        return max(1, self.timeout_ms - self.elapsed_ms)

    @property
    def over(self) -> bool:
        """Return whether the time is up."""
        return self.elapsed_ms >= self.timeout_ms

    def wait(self) -> None:
        """Let a moment pass."""
        self._poll.poll(min(self._look_ms, self.left_ms))


def leader_now(cluster: Cluster) -> NodeStatus | None:
    """Return what the leader says that a majority of its voters follows, None without one."""
    statuses = cluster.statuses(timeout_ms=ASK_MS)
    found = leadership(statuses)
    return statuses[found.leader] if found is not None else None


def wait_for_leader(cluster: Cluster, pause: Pause) -> NodeStatus:
    """Return what the leader says. Unavailable when none appears in time; nothing was done."""
    while (leader := leader_now(cluster)) is None:
        if pause.over:
            raise Unavailable(
                f"no leader within {pause.timeout_ms} ms; nothing was done",
                why="only a leader that a majority follows can do this",
                try_=f"zraft cluster status -C {cluster.name}",
            )
        pause.wait()
    return leader


def transfer(cluster: Cluster, to: str, timeout_ms: int, *, wait: bool) -> LeadershipChange:
    """Hand leadership over to `to`, or, when it is empty, to whoever holds most of the log.

    Raises:
        ControlError: no such node; the leader refuses it (exit 2 or its own).
        Unavailable: no leader, or it went on leading: the transfer was given up (exit 6).
    """
    if to:
        cluster.file.member_id(to)  # refuses a name that is none
    pause = Pause(timeout_ms)
    while True:
        leader = wait_for_leader(cluster, pause)
        started_ns = clock.monotonic_ns()
        if leader.name == to:
            return _outcome(leader, leader, started_ns, f"{to} leads already")
        request = TransferLeadership(to=to)
        reply = cluster.ask_all([leader.name], request, timeout_ms=ASK_MS)[leader.name]
        if isinstance(reply, ControlFailure):
            if reply.code == NOT_LEADER and not pause.over:
                continue
            raise error_of(reply)
        if not wait:
            message = getattr(reply, "message", "")
            return _outcome(leader, leader, started_ns, message or "begun")
        return _watch(cluster, leader, started_ns, pause, given_up=reply is not None)


def stir(
    cluster: Cluster, name: str, request: StepDown | Campaign, timeout_ms: int, *, wait: bool
) -> LeadershipChange:
    """Have a node step down or campaign; with `wait`, return who leads a later term.

    Raises:
        ControlError, NotRunning, Unavailable: as `Cluster.ask`; or nobody led in time.
    """
    pause = Pause(timeout_ms)
    before = leader_now(cluster)
    started_ns = clock.monotonic_ns()
    message = _ask(cluster, name, request)
    if not wait:
        return _outcome(before, before, started_ns, message)
    found = _watch(cluster, before, started_ns, pause, given_up=False)
    return msgspec.structs.replace(found, message=message)


def _ask(cluster: Cluster, name: str, request: NodeRequest) -> str:
    message = getattr(cluster.ask(name, request), "message", "")
    return message if isinstance(message, str) else ""


def _watch(
    cluster: Cluster, before: NodeStatus | None, started_ns: int, pause: Pause, *, given_up: bool
) -> LeadershipChange:
    """Return the leader of a later term; `given_up`: a transfer may also end without one."""
    term = before.term if before is not None else 0
    while True:
        leader = leader_now(cluster)
        if leader is not None and leader.term > term:
            return _outcome(before, leader, started_ns)
        still = leader is not None and leader.transfer_to is None
        if pause.over or (given_up and still):
            who = leader.name if leader is not None else "nobody"
            raise Unavailable(
                f"leadership was not handed over: {who} leads term {term}",
                why="the transfer was given up: its target was not up to date in time, or is down"
                if given_up and still
                else f"no leader of a later term within {pause.timeout_ms} ms",
                try_=("zraft cluster status", "the same command again"),
            )
        pause.wait()


def _outcome(
    before: NodeStatus | None, after: NodeStatus | None, started_ns: int, message: str = ""
) -> LeadershipChange:
    old_term = before.term if before is not None else 0
    term = after.term if after is not None else old_term
    since_ns = after.leader_since_mono_ns if after is not None and term > old_term else None
    return LeadershipChange(
        old_leader=before.name if before is not None else None,
        old_term=old_term,
        leader=after.name if after is not None else None,
        term=term,
        changed=term > old_term,
        handover_ms=None if since_ns is None else max(0, (since_ns - started_ns) // 1_000_000),
        started_mono_ns=started_ns,
        message=message,
    )
