"""Starting, driving and watching clusters: what the command line and the tests use.

A `Cluster` is a name and a directory; it holds no connection and no process. Verbs that change
something (`up`, `down`, `act`, `restart`) go to the cluster's supervisor and start one if none
runs. Questions have no side effect: `statuses` and `ask` go to each node's own control socket,
never through the supervisor, and `table` reads the supervisor's record and the locks when no
supervisor answers.

Nothing here makes a directory of a cluster, signals a node or touches its files: only the
supervisor does. Nobody imports the supervisor; it is started as `python -m zraft_supervisor`.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from zraft import clock
from zraft.api import (
    ControlFailure,
    GetStatus,
    NodeReply,
    NodeRequest,
    NodeStatus,
    Whoami,
    WhoamiReply,
)
from zraft.client.conditions import Leadership, check_conditions, leadership, unmet
from zraft.client.faults import Faults
from zraft.client.launch import Wish, ensure_supervisor, greet, wait_for_end
from zraft.client.link import (
    SupervisorGone,
    ask_nodes,
    ask_supervisor,
    error_of,
)
from zraft.client.ownership import find_owner
from zraft.client.record import find_supervisor, rows_without_supervisor
from zraft.client.refusals import DEFAULT_NODES, check_platform
from zraft.client.up import (
    DEFAULT_TIMEOUT_MS,
    LOOK_MS,
    ComingUp,
    Foreground,
    Settings,
    UpEvent,
    UpFailed,
    UpResult,
    UpSpec,
)
from zraft.control_api import (
    STOPPING,
    Act,
    Action,
    ActionResult,
    ActReply,
    Down,
    DownReply,
    GetFaults,
    GetTable,
    HelloReply,
    NodeRow,
    SupervisorReply,
    SupervisorRequest,
    TableReply,
)
from zraft.errors import (
    EXIT_LOCKED,
    ControlError,
    NotRunning,
    SupervisorError,
    Unavailable,
    ZraftError,
)
from zraft.paths import ClusterFile, cluster_dir, read_cluster_file, state_root

__all__ = [
    "DEFAULT_NODES",
    "DEFAULT_TIMEOUT_MS",
    "Cluster",
    "ClusterSummary",
    "DownResult",
    "Foreground",
    "Leadership",
    "Settings",
    "UpEvent",
    "UpFailed",
    "UpResult",
    "UpSpec",
    "WaitResult",
    "check_conditions",
    "leadership",
    "list_clusters",
]

TABLE_TIMEOUT_MS = 2_000
ENDING_MS = 5_000  # how long the supervisor may take to end after its last answer

ClusterState = Literal["running", "degraded", "stopped", "broken"]


class ClusterSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `cluster list`. `up` counts living processes, by their locks."""

    name: str
    directory: str
    nodes: int
    up: int
    state: ClusterState  # running: all · degraded: some · stopped: none · broken: see `error`
    supervisor_pid: int | None = None
    error: str = ""


class DownResult(msgspec.Struct, frozen=True, kw_only=True):
    """What `down` found and did. Afterwards there is no process and no socket."""

    name: str
    directory: str
    was_running: bool
    stopped: list[str]
    killed: list[str]  # did not end in order
    foreign: list[str]  # directories in use by processes that are not ours: left alone
    purged: bool
    elapsed_ms: int


class WaitResult(msgspec.Struct, frozen=True, kw_only=True):
    """The moment in which all conditions held."""

    elapsed_ms: int
    leader: str | None
    term: int | None
    statuses: dict[str, NodeStatus | None]


def list_clusters(environ: Mapping[str, str]) -> list[ClusterSummary]:
    """Return every cluster of this user, by name. Starts nothing, asks nobody, reads only."""
    root = state_root(environ)
    names = sorted(os.listdir(root)) if root.is_dir() else []
    found = []
    for name in names:
        with contextlib.suppress(NotRunning, ControlError):  # not a cluster, or being made
            found.append(_summary(name, environ))
    return found


def _summary(name: str, environ: Mapping[str, str]) -> ClusterSummary:
    link = cluster_dir(name, environ)
    directory = Path(os.path.realpath(link))
    try:
        cluster = read_cluster_file(link)
    except NotRunning:
        raise
    except ZraftError as error:
        return ClusterSummary(
            name=name, directory=str(directory), nodes=0, up=0, state="broken", error=error.what
        )
    up = sum(find_owner(directory / node).kind == "ours" for node in cluster.names)
    holder = find_supervisor(directory)
    state: ClusterState = "stopped" if not up else "degraded"
    return ClusterSummary(
        name=name,
        directory=str(directory),
        nodes=len(cluster.members),
        up=up,
        state="running" if up == len(cluster.members) else state,
        supervisor_pid=holder.pid if holder is not None else None,
    )


class Cluster:
    """One cluster of this host, found by name. See the module."""

    def __init__(self, link: Path, file: ClusterFile, environ: Mapping[str, str]) -> None:
        """Use `open`."""
        self.name = link.name
        self.link = link
        self.directory = Path(os.path.realpath(link))
        self.file = file  # as it was when this object was made; `reload` reads it again
        self._environ = environ

    @classmethod
    def open(cls, name: str, environ: Mapping[str, str]) -> Cluster:
        """Return the cluster `name`; whether anything of it runs is another question.

        Raises:
            NotRunning: there is no such cluster (exit 3).
            ControlError: that is no name (exit 2).
            ForeignDataError, StorageError: its file is not readable (exit 65, 74).
        """
        link = cluster_dir(name, environ)
        return cls(link, read_cluster_file(link), environ)

    @classmethod
    def up(
        cls,
        spec: UpSpec,
        environ: Mapping[str, str],
        progress: Callable[[UpEvent], None] | None = None,
    ) -> UpResult:
        """Create the cluster or start it again; return when a leader exists.

        Idempotent, and repeatable after it was interrupted at any point. Nodes that were killed
        or stopped on purpose are started, crashed and given-up ones get a new chance, paused
        ones stay paused.

        Raises:
            ControlError: the request contradicts the cluster that is there (exit 2).
            ConfigError: directories or settings that cannot be used (exit 78).
            StorageError: the disk refused (exit 74).
            SupervisorError: no supervisor in time, its lock is held (exit 75).
            UpFailed: some node did not start, or no leader appeared in `timeout_ms`.
        """
        return ComingUp(spec, environ, progress).run()

    def reload(self) -> ClusterFile:
        """Read the cluster file again, keep it as `file` and return it."""
        self.file = read_cluster_file(self.link)
        return self.file

    # ---------------------------------------------------------------- questions, no side effect

    def statuses(self, *, timeout_ms: int = 1_000) -> dict[str, NodeStatus | None]:
        """Ask every node at once, directly; None for one that does not answer in time.

        Returns as soon as all have answered. A node whose socket refuses connections (no process)
        does not use up the time. Every member has a key, in the order of the cluster file.
        """
        answers = self.ask_all(self.file.names, GetStatus(), timeout_ms=timeout_ms)
        return {
            name: answer if isinstance(answer, NodeStatus) else None
            for name, answer in answers.items()
        }

    def whoami(self, name: str, *, timeout_ms: int = 1_000) -> WhoamiReply:
        """Return a node's identity. Raises as `ask` does."""
        reply = self.ask(name, Whoami(), timeout_ms=timeout_ms)
        if not isinstance(reply, WhoamiReply):
            raise ControlError(f"{name} gave another answer than was asked for: {reply}")
        return reply

    def ask(self, name: str, request: NodeRequest, *, timeout_ms: int = 5_000) -> NodeReply:
        """Send one control request to one node and return its answer, never a failure.

        Raises:
            ControlError: no such node; or the node refused, with its own code and exit code.
            NotRunning: no process holds the node's directory (exit 3).
            Unavailable: the process is there and does not answer in time (exit 6).
        """
        self.file.member_id(name)  # refuses a name that is none
        reply = self.ask_all([name], request, timeout_ms=timeout_ms)[name]
        if isinstance(reply, ControlFailure):
            raise error_of(reply)
        if reply is not None:
            return reply
        owner = find_owner(self.directory / name)
        if owner.kind == "ours":
            raise Unavailable(
                f"{name} (pid {owner.pid}) did not answer within {timeout_ms} ms",
                why="it is paused" if owner.stopped else "it is busy, starting or stopping",
                try_=f"zraft node resume {name}" if owner.stopped else "again in a moment",
            )
        raise NotRunning(
            f"{name} is not running",
            why=rows_without_supervisor(self.directory, self.file)[name].message,
            try_=f"zraft node start {name}",
        )

    def ask_all(
        self, names: Sequence[str], request: NodeRequest, *, timeout_ms: int = 1_000
    ) -> dict[str, NodeReply | None]:
        """Send one control request to several nodes at once; a refusal is a `ControlFailure`."""
        endpoints = {name: self.file.endpoint(name, "ctl") for name in names}
        return ask_nodes(endpoints, request, timeout_ms)

    def table(self) -> dict[str, NodeRow]:
        """Return the processes' rows, from the supervisor or, without one, from its record."""
        found = greet(self.directory)
        if found is not None:
            with contextlib.suppress(SupervisorGone):
                reply = ask_supervisor(found.running, GetTable(), timeout_ms=TABLE_TIMEOUT_MS)
                if isinstance(reply, TableReply) and reply.rows:
                    return {row.name: row for row in reply.rows}
        return rows_without_supervisor(self.directory, self.file)

    def supervisor(self) -> HelloReply | None:
        """Return who supervises this cluster, None when nobody answers. Starts nothing."""
        found = greet(self.directory)
        return found.hello if found is not None else None

    def wait_for(
        self, conditions: Sequence[str], *, timeout_ms: int = DEFAULT_TIMEOUT_MS
    ) -> WaitResult:
        """Return when all conditions hold at the same time.

        `leader`: a majority follows one leader. `converged`: there is a leader, and every node
        that answers has its term, follows it, and has the same commit, applied and last index.
        `up=N`: at least N nodes answer.

        Raises:
            ControlError: an unknown condition (exit 2).
            Unavailable: the time is up; `why` says which condition fails and what is seen (exit 6).
        """
        check_conditions(conditions, len(self.file.members))
        began_ms = clock.now_ms()
        pause = select.poll()
        while True:
            left_ms = timeout_ms - (clock.now_ms() - began_ms)
            statuses = self.statuses(timeout_ms=min(500, max(left_ms, 50)))
            reasons = {condition: unmet(condition, statuses) for condition in conditions}
            open_ = {condition: why for condition, why in reasons.items() if why}
            elapsed_ms = clock.now_ms() - began_ms
            if not open_:
                seen = leadership(statuses)
                return WaitResult(
                    elapsed_ms=elapsed_ms,
                    leader=seen.leader if seen is not None else None,
                    term=seen.term if seen is not None else None,
                    statuses=statuses,
                )
            if elapsed_ms >= timeout_ms:
                raise Unavailable(
                    f"not within {timeout_ms} ms: {', '.join(open_)}",
                    why="; ".join(f"{condition}: {why}" for condition, why in open_.items()),
                    try_=f"zraft cluster status -C {self.name}",
                )
            pause.poll(LOOK_MS)

    @property
    def faults(self) -> Faults:
        """The faults of the network between the nodes; see `zraft.client.faults`."""
        return Faults(self.file.names, self._verb, self._ask_quietly, self.statuses)

    def _ask_quietly(self, request: GetFaults) -> SupervisorReply | None:
        """Ask the supervisor if there is one; None when nobody answers."""
        found = greet(self.directory)
        if found is not None:
            with contextlib.suppress(SupervisorGone):
                return ask_supervisor(found.running, request, timeout_ms=TABLE_TIMEOUT_MS)
        return None

    # ------------------------------------------------------------------------- verbs: they act

    def act(
        self,
        action: Action,
        names: Sequence[str],
        *,
        for_ms: int | None = None,
        signal: str | None = None,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
    ) -> list[ActionResult]:
        """Do something to processes, all names at once; return one result per name, in order.

        `kill` is SIGKILL (or `signal`), answered when the process is gone; `stop` is in order;
        both leave the node down until it is started. `start` and `restart` are answered when the
        node is ready. `pause` is SIGSTOP, answered when the process stands; `resume` SIGCONT.
        With `for_ms`, kill, stop and pause are undone after that time. A node to which it could
        not be done has a `failure`; the others are done all the same.

        Raises:
            ControlError: unknown node or signal, an action that takes no such option (exit 2).
            SupervisorError: no supervisor in time (exit 75).
        """
        for name in names:
            self.file.member_id(name)  # refuses a name that is none, before anything is started
        request = Act(
            action=action, names=[*names], for_ms=for_ms, signal=signal, timeout_ms=timeout_ms
        )
        reply = self._verb(request, timeout_ms + 5_000)
        assert isinstance(reply, ActReply), f"not an answer to an action: {reply}"
        return reply.results

    def restart(
        self, *, rolling: bool = True, timeout_ms: int = DEFAULT_TIMEOUT_MS
    ) -> list[ActionResult]:
        """Restart all nodes: one after another, the leader last, or all at once.

        Between two nodes it waits until the cluster has converged, so that a rolling restart
        never costs the quorum.
        """
        names = [name for name, row in self.table().items() if row.desired != "down"]
        if not rolling:
            return self.act("restart", names, timeout_ms=timeout_ms)
        deadline_ms = clock.now_ms() + timeout_ms
        seen = leadership(self.statuses())
        if seen is not None and seen.leader in names:
            names.remove(seen.leader)
            names.append(seen.leader)
        results = []
        for name in names:
            left_ms = max(1, deadline_ms - clock.now_ms())
            results += self.act("restart", [name], timeout_ms=left_ms)
            if results[-1].failure is not None:
                return results  # one that does not come back must not be followed by another
            self.wait_for(["converged"], timeout_ms=max(1, deadline_ms - clock.now_ms()))
        return results

    def down(
        self, *, now: bool = False, purge: bool = False, timeout_ms: int = DEFAULT_TIMEOUT_MS
    ) -> DownResult:
        """Stop every node and the supervisor. `now` kills; `purge` deletes the data as well.

        The data of an ephemeral cluster is deleted always. Nothing to stop is not an error.
        """
        began_ms = clock.now_ms()
        was_running = self._anything_runs()
        reply = DownReply(stopped=[], killed=[])
        if was_running or purge or self.file.ephemeral or self._sockets_left():
            answer = self._verb(Down(now=now, purge=purge), timeout_ms)
            assert isinstance(answer, DownReply), f"not an answer to down: {answer}"
            reply = answer
        return DownResult(
            name=self.name,
            directory=str(self.directory),
            was_running=was_running,
            stopped=reply.stopped,
            killed=reply.killed,
            foreign=reply.foreign,
            purged=reply.purged,
            elapsed_ms=clock.now_ms() - began_ms,
        )

    # ------------------------------------------------------------------------------- inside

    def _verb(self, request: SupervisorRequest, timeout_ms: int) -> SupervisorReply:
        """Have the supervisor do something, starting one if none runs."""
        check_platform()
        deadline_ms = clock.now_ms() + timeout_ms
        while True:
            found = ensure_supervisor(Wish(self.link), self._environ)
            left_ms = max(1, deadline_ms - clock.now_ms())
            try:
                reply = ask_supervisor(found.running, request, timeout_ms=left_ms)
            except ZraftError as error:
                late = clock.now_ms() >= deadline_ms
                if not late and (error.code == STOPPING or self._may_repeat(request, error)):
                    wait_for_end(found.running.pid, left_ms)
                    if isinstance(request, Act):
                        self.reload()  # NotRunning when it was deleted
                    continue
                raise
            if reply is None:
                raise SupervisorError(
                    f"the supervisor (pid {found.running.pid}) was not done in {timeout_ms} ms",
                    why="what was asked for goes on",
                    try_="zraft node list",
                    exit_code=EXIT_LOCKED,
                )
            if isinstance(request, Down):
                wait_for_end(found.running.pid, ENDING_MS)
            return reply

    @staticmethod
    def _may_repeat(request: SupervisorRequest, error: ZraftError) -> bool:
        """Whether a wish may be stated again to the next supervisor: doing it twice is once."""
        if not isinstance(error, SupervisorGone):
            return False
        return not isinstance(request, Act) or request.action not in {"kill", "restart"}

    def _anything_runs(self) -> bool:
        if find_supervisor(self.directory) is not None:
            return True
        return any(find_owner(self.directory / name).kind == "ours" for name in self.file.names)

    def _sockets_left(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(os.listdir(self.file.socket_dir))
        return False
