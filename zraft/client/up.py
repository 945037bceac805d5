"""`up`: from a wish to a leader, as one conversation.

The supervisor makes what is missing and starts the nodes; then every node is asked directly until a
majority follows a leader. What could not be started does not stop the rest from being started: the
failure comes at the end and carries what there is.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

import msgspec

from zraft import clock
from zraft.api import GetStatus, NodeStatus
from zraft.client.conditions import Leadership, leadership
from zraft.client.launch import Found, Wish, ensure_supervisor, greet, reap, wait_for_end
from zraft.client.link import SupervisorGone, ask_nodes, ask_supervisor
from zraft.client.refusals import check_nodes, check_place, check_platform, check_same
from zraft.control_api import STOPPING, NodeRow, Progress, Up, UpReply
from zraft.core.model import quorum_size
from zraft.errors import EXIT_LOCKED, NotRunning, SupervisorError, ZraftError
from zraft.paths import ClusterFile, cluster_dir, read_cluster_file

DEFAULT_TIMEOUT_MS = 30_000
LOOK_MS = 20

Settings = dict[str, dict[str, int | bool | str]]


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
    restore: str | None = None  # the path of a backup: a new cluster begins with its state
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

    code = "up_failed"

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


class Foreground:
    """A supervisor that this process started with `foreground=True`, and must wait for.

    As long as it is there, SIGINT, SIGTERM and SIGHUP are passed on to it: the first one stops the
    nodes in order, the second one kills them. Main thread only.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        """Take over the child and the signals."""
        self.pid = popen.pid
        self._popen = popen
        self._before = {
            number: signal.signal(number, self._pass_on)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }

    def wait(self) -> int:
        """Wait until the cluster has stopped and return the supervisor's exit code."""
        status = self._popen.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        reap()
        return status

    def stop(self) -> None:
        """Stop the nodes in order and wait for the end: what `up` does when it fails."""
        self._popen.terminate()
        self.wait()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)  # our child, not reaped yet: the pid is its own


class ComingUp:
    """One call of `up`. `run` does it."""

    def __init__(
        self,
        spec: UpSpec,
        environ: Mapping[str, str],
        progress: Callable[[UpEvent], None] | None,
    ) -> None:
        """Refuse what can be refused without starting anything.

        Raises:
            ControlError, ConfigError: see `Cluster.up`.
        """
        check_platform()
        self._spec = spec
        self._environ = environ
        self._progress = progress
        self._began_ms = clock.now_ms()
        self._link = cluster_dir(spec.name, environ)
        self._data = Path(spec.directory) if spec.directory is not None else None
        self._up = Up(
            name=spec.name,
            nodes=spec.nodes,
            transport=spec.transport,
            settings=spec.settings,
            ephemeral=spec.ephemeral,
            restart=spec.restart,
            restore=spec.restore,
            timeout_ms=spec.timeout_ms,
        )
        if spec.nodes is not None:
            check_nodes(spec.nodes)
        check_place(self._link, self._data, ephemeral=spec.ephemeral)
        with contextlib.suppress(NotRunning):
            check_same(self._up, read_cluster_file(self._link))

    def run(self) -> UpResult:
        """Bring it up; see `Cluster.up`."""
        if self._spec.foreground and greet(Path(os.path.realpath(self._link))) is not None:
            raise self._in_background()
        reply, foreground = self._ask()
        with _stopped_if_it_fails(foreground):
            return self._finish(reply, foreground)

    def _ask(self) -> tuple[UpReply, Foreground | None]:
        """Let a supervisor start the nodes; once more with another one if it ended meanwhile."""
        wish = Wish(self._link, self._data, self._spec.ephemeral, self._spec.foreground)
        while True:
            found = ensure_supervisor(wish, self._environ)
            if found.popen is not None:
                self._tell("supervisor", pid=found.running.pid)
            foreground = None
            if self._spec.foreground:
                if found.popen is None:
                    raise self._in_background()
                foreground = Foreground(found.popen)
            try:
                with _stopped_if_it_fails(foreground):
                    return self._ask_once(found), foreground
            except ZraftError as error:
                retry = isinstance(error, SupervisorGone) or error.code == STOPPING
                if not retry or self._left_ms() <= 0 or self._spec.foreground:
                    self._wait_if_nothing_is_left(found)
                    raise
                wait_for_end(found.running.pid, self._left_ms())

    def _in_background(self) -> SupervisorError:
        return SupervisorError(
            f'cluster "{self._spec.name}" runs in the background already',
            try_=f"zraft cluster down -C {self._spec.name}, then --foreground",
            exit_code=EXIT_LOCKED,
        )

    def _ask_once(self, found: Found) -> UpReply:
        reply = ask_supervisor(
            found.running,
            self._up,
            timeout_ms=self._left_ms() + 5_000,
            on_progress=self._on_progress,
        )
        if isinstance(reply, UpReply):
            return reply
        raise SupervisorError(
            f"the supervisor (pid {found.running.pid}) did not answer in time",
            try_=("zraft cluster status", "zraft cluster up"),
            exit_code=EXIT_LOCKED,
        )

    def _wait_if_nothing_is_left(self, found: Found) -> None:
        """A supervisor that refused to make a cluster ends at once: leave nothing behind."""
        if not (self._link / "cluster.toml").exists():
            wait_for_end(found.running.pid, 2_000)

    def _finish(self, reply: UpReply, foreground: Foreground | None) -> UpResult:
        cluster = read_cluster_file(self._link)
        failed = [row for row in reply.rows if row.state not in {"running", "paused"}]
        running = len([row for row in reply.rows if row.state == "running"])
        statuses: dict[str, NodeStatus | None] = {}
        seen = None
        if running >= quorum_size([*range(len(reply.rows))]):
            statuses, seen = self._wait_for_leader(cluster)
        result = self._result(cluster, reply, statuses, seen)
        result.foreground = foreground
        if failed:
            raise self._some_failed(result, failed)
        if seen is None:
            raise self._no_leader(result, running, len(reply.rows))
        if not result.already_running:
            self._tell("leader", name=seen.leader, term=seen.term, elected_ms=result.elected_ms)
        return result

    def _wait_for_leader(
        self, cluster: ClusterFile
    ) -> tuple[dict[str, NodeStatus | None], Leadership | None]:
        endpoints = {name: cluster.endpoint(name, "ctl") for name in cluster.names}
        pause = select.poll()
        while True:
            answers = ask_nodes(endpoints, GetStatus(), 500)
            statuses = {
                name: answer if isinstance(answer, NodeStatus) else None
                for name, answer in answers.items()
            }
            seen = leadership(statuses)
            if seen is not None or self._left_ms() <= 0:
                return statuses, seen
            pause.poll(LOOK_MS)

    def _result(
        self,
        cluster: ClusterFile,
        reply: UpReply,
        statuses: Mapping[str, NodeStatus | None],
        seen: Leadership | None,
    ) -> UpResult:
        leader = statuses[seen.leader] if seen is not None else None
        for warning in reply.warnings:
            self._tell("warning", message=warning)
        return UpResult(
            name=cluster.name,
            directory=os.path.realpath(self._link),
            transport=cluster.transport,
            created=reply.created,
            started=reply.started,
            already_running=not reply.started and not reply.created,
            left_paused=reply.left_paused,
            pids={row.name: row.pid for row in reply.rows},
            leader=seen.leader if seen is not None else None,
            term=seen.term if seen is not None else None,
            elected_ms=_elected_ms(leader),
            elapsed_ms=self._elapsed_ms(),
            warnings=list(reply.warnings),
        )

    def _some_failed(self, result: UpResult, failed: list[NodeRow]) -> UpFailed:
        first = failed[0]
        last = first.last_exit
        codes = [row.last_exit.code for row in failed if row.last_exit and row.last_exit.code]
        code = EXIT_LOCKED if first.state == "foreign" else (codes[0] if codes else 1)
        tail = last.stderr_tail if last is not None and first.state != "foreign" else ""
        names = ", ".join(row.name for row in failed)
        rest = f"leader {result.leader}" if result.leader else "no leader without them"
        return UpFailed(
            f"{names} did not start; {len(result.pids) - len(failed)} nodes run, {rest}",
            result=result,
            why=f"{first.name}: {first.message or first.state}" + (f"\n{tail}" if tail else ""),
            try_=(f"zraft logs tail {first.name}", f"zraft node start {first.name}"),
            exit_code=code,
        )

    def _no_leader(self, result: UpResult, running: int, size: int) -> UpFailed:
        why = f"{running} of {size} nodes run"
        if result.left_paused:
            why += f"; paused: {', '.join(result.left_paused)}"
        return UpFailed(
            f"no leader within {self._spec.timeout_ms} ms",
            result=result,
            why=why,
            try_=("zraft cluster status", "zraft logs tail"),
            exit_code=6,
        )

    def _on_progress(self, progress: Progress) -> None:
        if progress.step != "adopted":
            self._tell(
                progress.step, name=progress.name, pid=progress.pid, message=progress.message
            )

    def _tell(
        self,
        kind: Literal[
            "supervisor", "created", "spawned", "recovering", "ready", "failed", "leader", "warning"
        ],
        *,
        name: str = "",
        pid: int | None = None,
        term: int | None = None,
        elected_ms: int | None = None,
        message: str = "",
    ) -> None:
        if self._progress is not None:
            self._progress(
                UpEvent(
                    kind=kind,
                    elapsed_ms=self._elapsed_ms(),
                    name=name,
                    pid=pid,
                    term=term,
                    elected_ms=elected_ms,
                    message=message,
                )
            )

    def _elapsed_ms(self) -> int:
        return clock.now_ms() - self._began_ms

    def _left_ms(self) -> int:
        return max(0, self._spec.timeout_ms - self._elapsed_ms())


@contextlib.contextmanager
def _stopped_if_it_fails(foreground: Foreground | None) -> Iterator[None]:
    """Leave nothing in the background of a terminal whose `up --foreground` failed."""
    done = False
    try:
        yield
        done = True
    finally:
        if foreground is not None and not done:
            foreground.stop()


def _elected_ms(leader: NodeStatus | None) -> int | None:
    if leader is None or leader.leader_since_mono_ns is None:
        return None
    if leader.election_started_mono_ns is None:
        return None
    return (leader.leader_since_mono_ns - leader.election_started_mono_ns) // 1_000_000
