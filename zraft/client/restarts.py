"""Restarting all nodes of a cluster: one after the other without anybody noticing, or all at once.

Rolling: whoever does not lead is restarted first; the leader comes last and hands leadership over
before it stops. A node is stopped only while the others are a majority of the voters, and the next
one comes only when the last one follows the leader and has applied what was committed when it came
back. Ctrl-C between two steps leaves every node running or being started.

All at once: SIGKILL to every node, then they are started: whatever was acknowledged has to be there
afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import msgspec

from zraft.api import NodeStatus
from zraft.client.conditions import leadership, majority
from zraft.client.leading import Pause, leader_now, transfer, wait_for_leader
from zraft.control_api import ActionResult
from zraft.errors import Unavailable, ZraftError

if TYPE_CHECKING:
    from zraft.client.control import Cluster

TRANSFER_MS = 5_000
KILLED_FOR_MS = 1  # the supervisor undoes a timed kill: also when nobody is left to ask for it


class RestartEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a restart, as it happens. `handover_ms`: from the request to the new leader."""

    kind: Literal["waiting", "transferred", "not-transferred", "stopping", "caught-up"]
    name: str
    leader: str | None = None
    term: int | None = None
    handover_ms: int | None = None
    entries: int | None = None
    elapsed_ms: int | None = None
    message: str = ""


class RestartResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a restart did. `left`: nodes that it did not come to."""

    results: list[ActionResult]
    handovers_ms: list[int]
    left: list[str]
    leader: str | None
    term: int | None
    elapsed_ms: int


Progress = Callable[[RestartEvent], None]


def ignore(_event: RestartEvent) -> None:
    """Take no notice of a step."""


class Rolling:
    """One rolling restart. `results` has what was done, also when `run` raises."""

    def __init__(self, cluster: Cluster, timeout_ms: int, progress: Progress | None = None) -> None:
        """Restart what is wanted to run; what was stopped on purpose stays down."""
        self._cluster = cluster
        self._pause = Pause(timeout_ms)
        self._tell = progress or ignore
        self.left = [name for name, row in cluster.table().items() if row.desired != "down"]
        self.results: list[ActionResult] = []
        self.handovers_ms: list[int] = []

    def run(self) -> RestartResult:
        """Restart all; return when the last one has caught up. Stops at a node that fails.

        Raises:
            Unavailable: no leader, no quorum without the next node, or not in time (exit 6).
            SupervisorError: no supervisor in time (exit 75).
        """
        while self.left:
            name = self._next()
            self._wait_until_dispensable(name)
            self._tell(RestartEvent(kind="stopping", name=name))
            (result,) = self._cluster.act("restart", [name], timeout_ms=self._pause.left_ms)
            self.results.append(result)
            self.left.remove(name)
            if result.failure is not None:
                break  # one that does not come back must not be followed by another
            self._wait_until_caught_up(name)
        leader = leader_now(self._cluster)
        return RestartResult(
            results=self.results,
            handovers_ms=self.handovers_ms,
            left=self.left,
            leader=leader.name if leader is not None else None,
            term=leader.term if leader is not None else None,
            elapsed_ms=self._pause.elapsed_ms,
        )

    def _next(self) -> str:
        """Return the next node: the leader only when it is the last one, and no longer leads."""
        leader = wait_for_leader(self._cluster, self._pause)
        others = [name for name in self.left if name != leader.name]
        if others:
            return others[0]
        if len(leader.voters or self._cluster.file.names) > 1:
            self._hand_over(leader)
        return leader.name

    def _hand_over(self, leader: NodeStatus) -> None:
        """Have somebody else lead. A leader that cannot tries again when it stops."""
        timeout_ms = min(TRANSFER_MS, self._pause.left_ms)
        try:
            done = transfer(self._cluster, "", timeout_ms, wait=True)
        except ZraftError as error:
            self._tell(RestartEvent(kind="not-transferred", name=leader.name, message=error.what))
            return
        if done.handover_ms is not None:
            self.handovers_ms.append(done.handover_ms)
        self._tell(
            RestartEvent(
                kind="transferred",
                name=leader.name,
                leader=done.leader,
                term=done.term,
                handover_ms=done.handover_ms,
            )
        )

    def _wait_until_dispensable(self, name: str) -> None:
        """Wait until the voters without this node are a majority that follows the leader."""
        while True:
            statuses = self._cluster.statuses()
            found = leadership(statuses)
            leader = statuses[found.leader] if found is not None else None
            if found is not None and leader is not None:
                voters = leader.voters or self._cluster.file.names
                here = {found.leader, *found.followers} & {*voters} - {name}
                if name not in voters or len(voters) == 1 or len(here) >= majority(voters):
                    return
                why = f"without {name} only {', '.join(sorted(here)) or 'nobody'} of {len(voters)}"
            else:
                why = "there is no leader"
            if self._pause.over:
                raise self._late(name, why)
            self._tell(RestartEvent(kind="waiting", name=name, message=why))
            self._pause.wait()

    def _wait_until_caught_up(self, name: str) -> None:
        began_ms = self._pause.elapsed_ms
        goal: int | None = None
        while True:
            statuses = self._cluster.statuses()
            found = leadership(statuses)
            leader = statuses[found.leader] if found is not None else None
            status = statuses.get(name)
            if leader is not None and status is not None:
                goal = leader.commit if goal is None else goal
                if status.leader == leader.name and status.applied >= goal:
                    elapsed_ms = self._pause.elapsed_ms - began_ms
                    self._tell(RestartEvent(kind="caught-up", name=name, elapsed_ms=elapsed_ms))
                    return
            if self._pause.over:
                has = "does not answer" if status is None else f"has applied {status.applied}"
                raise self._late(name, f"{name} {has}; it has to have {goal}")
            self._pause.wait()

    def _late(self, name: str, why: str) -> Unavailable:
        done = [result.name for result in self.results]
        return Unavailable(
            f"not all nodes were restarted within {self._pause.timeout_ms} ms",
            why=f"{why}; restarted: {', '.join(done) or 'none'}",
            try_=(
                "zraft cluster status",
                f"zraft node restart {','.join([name, *self.left][:1])}    one at a time",
            ),
        )


def all_at_once(cluster: Cluster, timeout_ms: int) -> RestartResult:
    """Kill -9 every node that shall run, start them all, and wait for a leader.

    Raises:
        Unavailable: no leader in time.
    """
    pause = Pause(timeout_ms)
    names = [name for name, row in cluster.table().items() if row.desired == "up"]
    killed = cluster.act("kill", names, for_ms=KILLED_FOR_MS, timeout_ms=timeout_ms)
    names = [result.name for result in killed if result.failure is None]
    results = cluster.act("start", names, timeout_ms=pause.left_ms) if names else []
    failed = [result for result in [*killed, *results] if result.failure is not None]
    leader = None if failed else wait_for_leader(cluster, pause)
    return RestartResult(
        results=[*[one for one in killed if one.failure is not None], *results],
        handovers_ms=[],
        left=[],
        leader=leader.name if leader is not None else None,
        term=leader.term if leader is not None else None,
        elapsed_ms=pause.elapsed_ms,
    )
