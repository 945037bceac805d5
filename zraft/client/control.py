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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from zraft.api import NodeReply, NodeRequest, NodeStatus, WhoamiReply
from zraft.control_api import Action, ActionResult, HelloReply, NodeRow
from zraft.errors import SupervisorError
from zraft.paths import ClusterFile

DEFAULT_NODES = 5
DEFAULT_TIMEOUT_MS = 30_000

Settings = dict[str, dict[str, int | bool | str]]
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


class UpSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What `up` is asked for. None means: as it is recorded, or the default for a new cluster.

    `settings` is `config.to_jsonable(config)`. Give None when the user named no file, flag or
    variable: then the recorded settings stay. Other settings than the recorded ones are taken
    when nothing runs and refused when something does.
    """

    name: str
    nodes: int | None = None  # default 5
    directory: str | None = None  # --dir: the data lives there, STATE/<name> is a link to it
    transport: Literal["ipc", "tcp"] | None = None  # default ipc
    settings: Settings | None = None
    ephemeral: bool = False  # a temporary directory, removed at `down`
    foreground: bool = False  # the nodes end with this process
    restart: bool | None = None  # False: --no-restart; None: the key supervisor.restart
    timeout_ms: int = DEFAULT_TIMEOUT_MS


class UpEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One step of `up`, as it happens. `elapsed_ms` counts from the call."""

    kind: Literal[
        "supervisor",  # started (pid)
        "created",  # a new cluster
        "spawned",  # node `name` as `pid`
        "recovering",  # node `name` reads a long log; `message` says how far
        "ready",  # node `name` serves
        "failed",  # node `name` was given up; `message` says why
        "leader",  # `name` leads `term`
        "warning",  # `message`
    ]
    elapsed_ms: int
    name: str = ""
    pid: int | None = None
    term: int | None = None
    elected_ms: int | None = None
    message: str = ""


@dataclass(slots=True, kw_only=True)
class UpResult:
    """What `up` did, and what there is now."""

    name: str
    directory: str
    transport: str
    created: bool  # the cluster was new
    started: list[str]  # nodes that this call started
    already_running: bool  # every node ran before, nothing was done
    left_paused: list[str]  # still paused: `node resume`
    pids: dict[str, int | None]
    leader: str | None
    term: int | None
    elected_ms: int | None  # from its first pre-vote to its leadership, by its own clock
    elapsed_ms: int
    warnings: list[str] = field(default_factory=list)
    foreground: Foreground | None = None


class UpFailed(SupervisorError):
    """`up` started what could be started, but not everything; `result` has the rest.

    `exit_code` is that of the first node that failed (65, 70, 74, 75, 78), 1 when the reason is
    another, 6 when all nodes run and no leader appeared in time.
    """

    def __init__(
        self,
        what: str,
        *,
        result: UpResult,
        why: str = "",
        try_: tuple[str, ...] | str = (),
        exit_code: int = 1,
    ) -> None:
        super().__init__(what, why=why, try_=try_, exit_code=exit_code)
        self.result = result


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


class Leadership(msgspec.Struct, frozen=True):
    """A leader that a majority of all members follows, itself included."""

    leader: str
    term: int
    followers: list[str]


class Foreground:
    """A supervisor that this process started with `foreground=True`, and must wait for."""

    pid: int

    def wait(self) -> int:
        """Wait until the cluster has stopped and return the supervisor's exit code.

        SIGINT, SIGTERM and SIGHUP that arrive meanwhile are passed on: the first one stops the
        nodes in order, the second one kills them.
        """
        raise AssertionError


def list_clusters(environ: Mapping[str, str]) -> list[ClusterSummary]:
    """Return every cluster of this user, by name. Starts nothing, asks nobody, reads only."""
    raise AssertionError


def leadership(statuses: Mapping[str, NodeStatus | None]) -> Leadership | None:
    """Return the leader that a majority of all names in `statuses` agrees on, if there is one.

    `statuses` has a key for every member; None counts as a member that does not answer.
    """
    raise AssertionError


def check_conditions(conditions: Sequence[str], nodes: int) -> None:
    """Refuse what `wait_for` does not know: ControlError (exit 2)."""
    raise AssertionError


class Cluster:
    """One cluster of this host, found by name. See the module."""

    name: str
    directory: Path  # real path
    file: ClusterFile  # as it was when this object was made; `reload` reads it again

    @classmethod
    def open(cls, name: str, environ: Mapping[str, str]) -> Cluster:
        """Return the cluster `name`; whether anything of it runs is another question.

        Raises:
            NotRunning: there is no such cluster (exit 3).
            ControlError: that is no name (exit 2).
            ForeignDataError, StorageError: its file is not readable (exit 65, 74).
        """
        raise AssertionError

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
        raise AssertionError

    def reload(self) -> ClusterFile:
        """Read the cluster file again, keep it as `file` and return it."""
        raise AssertionError

    # ---------------------------------------------------------------- questions, no side effect

    def statuses(self, *, timeout_ms: int = 1_000) -> dict[str, NodeStatus | None]:
        """Ask every node at once, directly; None for one that does not answer in time.

        Returns as soon as all have answered. A node whose socket refuses connections (no process)
        does not use up the time. Every member has a key, in the order of the cluster file.
        """
        raise AssertionError

    def whoami(self, name: str, *, timeout_ms: int = 1_000) -> WhoamiReply:
        """Return a node's identity. Raises as `ask` does."""
        raise AssertionError

    def ask(self, name: str, request: NodeRequest, *, timeout_ms: int = 5_000) -> NodeReply:
        """Send one control request to one node and return its answer, never a failure.

        Raises:
            ControlError: no such node; or the node refused, with its own code and exit code.
            NotRunning: no process holds the node's directory (exit 3).
            Unavailable: the process is there and does not answer in time (exit 6).
        """
        raise AssertionError

    def ask_all(
        self, names: Sequence[str], request: NodeRequest, *, timeout_ms: int = 1_000
    ) -> dict[str, NodeReply | None]:
        """Send one control request to several nodes at once; a refusal is a `ControlFailure`."""
        raise AssertionError

    def table(self) -> dict[str, NodeRow]:
        """Return the processes' rows, from the supervisor or, without one, from its record."""
        raise AssertionError

    def supervisor(self) -> HelloReply | None:
        """Return who supervises this cluster, None when nobody answers. Starts nothing."""
        raise AssertionError

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
        raise AssertionError

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
        raise AssertionError

    def restart(
        self, *, rolling: bool = True, timeout_ms: int = DEFAULT_TIMEOUT_MS
    ) -> list[ActionResult]:
        """Restart all nodes: one after another, the leader last, or all at once.

        Between two nodes it waits until the cluster has converged, so that a rolling restart
        never costs the quorum.
        """
        raise AssertionError

    def down(
        self, *, now: bool = False, purge: bool = False, timeout_ms: int = DEFAULT_TIMEOUT_MS
    ) -> DownResult:
        """Stop every node and the supervisor. `now` kills; `purge` deletes the data as well.

        The data of an ephemeral cluster is deleted always. Nothing to stop is not an error.
        """
        raise AssertionError
