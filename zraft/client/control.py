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
from collections.abc import Callable, Mapping, Sequence

import msgspec

from zraft import clock
from zraft.api import (
    Campaign,
    StepDown,
)
from zraft.client.conditions import Leadership, check_conditions, leadership
from zraft.client.faults import Faults
from zraft.client.launch import Wish, ensure_supervisor, greet, wait_for_end
from zraft.client.leading import LeadershipChange, stir, transfer
from zraft.client.link import (
    SupervisorGone,
    ask_supervisor,
)
from zraft.client.listing import ClusterSummary, list_clusters
from zraft.client.members import MemberEvent, MemberResult, Members
from zraft.client.ownership import find_owner
from zraft.client.record import find_supervisor
from zraft.client.refusals import DEFAULT_NODES, check_platform
from zraft.client.restarts import RestartEvent, RestartResult, Rolling, all_at_once
from zraft.client.up import (
    DEFAULT_TIMEOUT_MS,
    ComingUp,
    Foreground,
    Settings,
    UpEvent,
    UpFailed,
    UpResult,
    UpSpec,
)
from zraft.client.view import TABLE_TIMEOUT_MS, ClusterView, WaitResult
from zraft.control_api import (
    STOPPING,
    Act,
    Action,
    ActionResult,
    ActReply,
    Down,
    DownReply,
    GetFaults,
    MemberReply,
    MemberRequest,
    SupervisorReply,
    SupervisorRequest,
)
from zraft.errors import (
    EXIT_LOCKED,
    SupervisorError,
    ZraftError,
)

__all__ = [
    "DEFAULT_NODES",
    "DEFAULT_TIMEOUT_MS",
    "Cluster",
    "ClusterSummary",
    "DownResult",
    "Foreground",
    "Leadership",
    "LeadershipChange",
    "MemberEvent",
    "MemberResult",
    "RestartEvent",
    "RestartResult",
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

MEMBERS_TIMEOUT_MS = 120_000
ENDING_MS = 5_000  # how long the supervisor may take to end after its last answer


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


class Cluster(ClusterView):
    """One cluster of this host, found by name. See the module; questions: `ClusterView`."""

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
    ) -> RestartResult:
        """Restart all nodes: one after another, the leader last, or all at once by SIGKILL."""
        if rolling:
            return self.rolling_restart(timeout_ms=timeout_ms)
        return all_at_once(self, timeout_ms)

    def rolling_restart(
        self,
        *,
        timeout_ms: int = 120_000,
        progress: Callable[[RestartEvent], None] | None = None,
    ) -> RestartResult:
        """Restart one node after the other, the leader last, after it handed leadership over.

        A node is stopped only while the others are a majority, and the next one comes when the
        last one has caught up. A result with a `failure` ends it; `left` has the rest.

        Raises:
            Unavailable: no leader, no quorum without the next node, or not in time (exit 6).
            SupervisorError: no supervisor in time (exit 75).
        """
        return Rolling(self, timeout_ms, progress).run()

    # ---------------------------------------------------------------------------- who is a member

    def add_node(
        self,
        name: str = "",
        *,
        learner: bool = False,
        wait: bool = True,
        timeout_ms: int = MEMBERS_TIMEOUT_MS,
        progress: Callable[[MemberEvent], None] | None = None,
    ) -> MemberResult:
        """Add a node: made, started, joined as a learner, promoted once it has caught up.

        Without a name it gets the first free one of n1, n2, … With the name of an addition that
        was interrupted it goes on with that. A `learner` stays one. Without `wait` it returns
        when the log has taken it in; it is promoted by itself all the same.

        Raises:
            ControlError: the name is taken or impossible, or there are too many nodes (exit 2).
            MembershipRefused: the leader refuses it (exit 5).
            Unavailable: no leader, or not in time; the same call goes on from there (exit 6).
        """
        return self._members(timeout_ms, progress).add(name, learner=learner, wait=wait)

    def remove_node(
        self,
        name: str,
        *,
        purge: bool = False,
        force: bool = False,
        timeout_ms: int = MEMBERS_TIMEOUT_MS,
        progress: Callable[[MemberEvent], None] | None = None,
    ) -> MemberResult:
        """Take a node out of the log's configuration, then stop it; also the leader.

        Its directory is put aside, or deleted with `purge`. `force`: also when the voters that
        are left could decide nothing. Raises as `add_node`.
        """
        return self._members(timeout_ms, progress).remove(name, purge=purge, force=force)

    def replace_node(
        self,
        name: str,
        *,
        force: bool = False,
        wait: bool = True,
        timeout_ms: int = MEMBERS_TIMEOUT_MS,
        progress: Callable[[MemberEvent], None] | None = None,
    ) -> MemberResult:
        """Give a node whose data is lost a new directory and a new member id, under its name.

        The old directory is put aside, never deleted. In one change the old member goes and the
        new one joins as a learner, which is filled and promoted: nobody votes through a lost
        memory. Only for a node that is down. Raises as `add_node`.
        """
        return self._members(timeout_ms, progress).replace(name, force=force, wait=wait)

    def promote(
        self, name: str, *, wait: bool = True, timeout_ms: int = MEMBERS_TIMEOUT_MS
    ) -> MemberResult:
        """Make a learner a voter, once it has caught up. Raises as `add_node`."""
        return self._members(timeout_ms).promote(name, wait=wait)

    def demote(
        self, name: str, *, force: bool = False, timeout_ms: int = MEMBERS_TIMEOUT_MS
    ) -> MemberResult:
        """Make a voter a learner; `force` as in `remove_node`. Raises as `add_node`."""
        return self._members(timeout_ms).demote(name, force=force)

    def transfer_leadership(
        self, to: str = "", *, wait: bool = True, timeout_ms: int = 10_000
    ) -> LeadershipChange:
        """Hand leadership to a voter, or to the one that holds most of the log.

        Raises:
            ControlError: no such node, or the leader refuses it (exit 2).
            Unavailable: no leader, or it was given up and the old one goes on (exit 6).
        """
        return transfer(self, to, timeout_ms, wait=wait)

    def step_down(
        self, name: str, *, wait: bool = True, timeout_ms: int = 10_000
    ) -> LeadershipChange:
        """Have a leader give up its leadership; with `wait`, return who leads next."""
        return stir(self, name, StepDown(), timeout_ms, wait=wait)

    def campaign(
        self, name: str, *, wait: bool = True, timeout_ms: int = 10_000
    ) -> LeadershipChange:
        """Have a node stand for election now; with `wait`, return who leads the later term."""
        return stir(self, name, Campaign(), timeout_ms, wait=wait)

    def _members(
        self, timeout_ms: int, progress: Callable[[MemberEvent], None] | None = None
    ) -> Members:
        return Members(self, self._member_verb, timeout_ms, progress)

    def _member_verb(self, request: MemberRequest, timeout_ms: int) -> MemberReply:
        reply = self._verb(request, timeout_ms)
        assert isinstance(reply, MemberReply), f"not an answer about a member: {reply}"
        return reply

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
