"""The supervisor of one cluster: one loop, one lock, one control socket, no threads.

It starts nodes, watches them through pidfds, starts crashed ones again, and does to them what it is
told. It is not needed for the cluster to serve: killed at any moment it stops nothing, and the next
one goes on from `state.json` and the locks. It holds `supervisor/lock` for life; it never touches a
process whose ownership the lock does not prove.

It ends by itself when there is nothing to watch, so that no process is left of a stopped cluster.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq

from zraft import clock
from zraft._version import __version__
from zraft.client.record import LockFile, supervisor_dir
from zraft.client.refusals import check_same
from zraft.config import Config, Logging
from zraft.control_api import (
    SUPERVISOR_CONTROL_VERSION,
    Act,
    AddMember,
    Down,
    DownReply,
    DropMember,
    FaultsReply,
    GetFaults,
    GetTable,
    HealFaults,
    Hello,
    HelloReply,
    MemberReply,
    Progress,
    PutFault,
    ReplaceMember,
    Retire,
    RetireReply,
    SupervisorReply,
    SupervisorRequest,
    TableReply,
    Up,
)
from zraft.errors import (
    EXIT_LOCKED,
    ControlError,
    NotRunning,
    SupervisorError,
    ZraftError,
)
from zraft.node.signals import Signals
from zraft.paths import ClusterFile, socket_dir
from zraft.telemetry import Telemetry
from zraft_supervisor import creation
from zraft_supervisor.children import DEFAULT_PROGRAM, NodeProgram
from zraft_supervisor.control import ControlSocket, failure_of, stopping
from zraft_supervisor.faults import FaultBook, PendingFault
from zraft_supervisor.fleet import Fleet
from zraft_supervisor.layout import (
    Place,
    durability_warning,
    find_cluster,
    make_socket_dir,
    remove_data,
    remove_sockets,
    write_lock_file,
)
from zraft_supervisor.member_requests import MemberBook
from zraft_supervisor.members import settle
from zraft_supervisor.patience import Patience
from zraft_supervisor.requests import Pending, PendingAct, PendingDown, PendingUp
from zraft_supervisor.state import StateStore

IDLE_EXIT_MS = 10_000
MAX_POLL_MS = 60_000


def no_step(_step: str) -> None:
    """Ignore the steps: what a supervisor outside tests does between them."""


@dataclass(slots=True)
class Waiting:
    """A request that is not answered yet, and who asked."""

    identity: bytes
    pending: Pending


class Supervisor:
    """See the module. Made while the lock is held; `run` returns the exit code."""

    def __init__(
        self,
        place: Place,
        lock_fd: int,
        environ: Mapping[str, str],
        *,
        foreground: bool = False,
        program: NodeProgram = DEFAULT_PROGRAM,
        version: str = __version__,
        on_step: Callable[[str], None] = no_step,
    ) -> None:
        """Take over what an earlier supervisor left, and listen.

        Args:
            lock_fd: descriptor that holds the lock; it stays open until the end.
            program: how nodes are started.
            on_step: is called between the steps that are durable one by one.

        Raises:
            ZraftError: the cluster's files cannot be used, or the socket cannot be bound.
        """
        self.place = place
        self._lock_fd = lock_fd
        self._environ = environ
        self._foreground = foreground
        self._version = version
        self._on_step = on_step
        self._cluster = find_cluster(place.directory)
        self._ended: int | None = None
        self._leave = ""
        self._waiting: list[Waiting] = []
        self._downs: list[bytes] = []
        self._down: PendingDown | None = None
        self._purge = False
        self._last_request_ms = clock.now_ms()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        logging = _logging(self._cluster)
        self._telemetry = Telemetry(
            supervisor_dir(place.directory),
            node="supervisor",
            cluster=place.name,
            trace="off",
            rotate_bytes=logging.rotate_bytes,
            rotate_files=logging.rotate_files,
        )
        self._fleet = Fleet(
            directory=place.directory,
            store=StateStore(place.directory),
            context=self._context,
            poller=self._poller,
            telemetry=self._telemetry,
            program=program,
            parent=os.getpid() if foreground else None,
            tell=self._tell,
            on_step=on_step,
        )
        self._faults = FaultBook(place.directory, self._context, self._poller, self._telemetry.emit)
        self._members = MemberBook(
            place, self._fleet, self._telemetry.emit, keep=self._keep_cluster, on_step=on_step
        )
        names = self._take_over()
        self._control = ControlSocket(self._context, self._prepare_sockets())
        self._poller.register(self._control.router, zmq.POLLIN)
        self._signals = Signals()
        self._poller.register(self._signals.fd, zmq.POLLIN)
        self._patience = Patience(self._telemetry, (self._control.router, self._signals.fd))
        write_lock_file(place, LockFile(os.getpid(), self.endpoint, version))
        self._announce(names)

    def _take_over(self) -> list[str]:
        """Finish what an earlier supervisor began, watch what it started; return who lives."""
        if self._cluster is None:
            return []
        self._cluster = settle(self.place, self._cluster, self._on_step)
        return self._fleet.load(self._cluster)

    @property
    def endpoint(self) -> str:
        """Return the endpoint of the control socket."""
        return self._control.endpoint

    def _prepare_sockets(self) -> str:
        if self._cluster is not None:
            alive = bool(self._fleet.alive())
            self._cluster = creation.refresh_sockets(
                self.place, self._cluster, self._environ, alive=alive
            )
            for node in self._fleet:
                node.control = self._cluster.endpoint(node.name, "ctl")
            return self._cluster.supervisor_endpoint()
        directory = socket_dir(self.place.directory, self._environ)
        make_socket_dir(directory, self._environ)
        return f"ipc://{directory}/s.ctl"

    def _announce(self, names: list[str]) -> None:
        self._telemetry.emit("supervisor.started", version=self._version)
        if self._fleet.rebuilt:
            self._telemetry.emit("supervisor.state_rebuilt", reason=self._fleet.rebuilt)
        if names:
            self._telemetry.emit("supervisor.adopted", names=names)
        self._telemetry.write_out()

    # ---------------------------------------------------------------------------------- the loop

    def run(self) -> int:
        """Serve until the end and return the exit code.

        Raises:
            StorageError: somebody waits for a record that cannot be written; the nodes go on
                without a supervisor.
        """
        try:
            while self._ended is None:
                ready = self._poll()
                self._take_signals()
                self._take_requests()
                if self._work(ready):
                    self._answer()
                    self._maybe_end()
                self._telemetry.flush(clock.now_ms())
        except ZraftError as error:
            for identity in [*(waiting.identity for waiting in self._waiting), *self._downs]:
                self._control.send(identity, failure_of(error))
            raise
        finally:
            self._close()
        return self._ended

    def _work(self, ready: set[int]) -> bool:
        """Take in what happened and do what follows from it; False: the disk is waited for."""
        self._fleet.observe(ready)
        if not self._patience.waits:  # nothing that is due can be done before what was decided
            self._fleet.on_timers()

        def act() -> None:
            self._fleet.commit(recorded=self._down is None or not self._purges)
            self._faults.run(ready, self._fleet)

        urgent = bool(self._waiting or self._leave) or self._down is not None
        return self._patience.attempt(act, urgent=urgent)

    def _poll(self) -> set[int]:
        times = [self._fleet.next_deadline_ms(), self._telemetry.next_deadline_ms()]
        times.append(self._faults.next_deadline_ms())
        times += [waiting.pending.deadline_ms for waiting in self._waiting]
        if self._is_idle():
            times.append(self._last_request_ms + IDLE_EXIT_MS)
        wanted = [time for time in times if time is not None]
        timeout_ms = min(wanted) - clock.now_ms() if wanted else MAX_POLL_MS
        if self._patience.waits:
            self._patience.poll()
            timeout_ms = 0
        found = self._poller.poll(min(max(timeout_ms, 0), MAX_POLL_MS))
        return {item for item, _ in found if isinstance(item, int)}

    def _take_signals(self) -> None:
        for number in self._signals.take():
            match number:
                case signal.SIGHUP if not self._foreground:
                    self._telemetry.reopen()
                case signal.SIGTERM | signal.SIGINT | signal.SIGHUP:
                    if self._foreground:
                        self._begin_down(now=self._down is not None, purge=False)
                    else:
                        self._end_timed_pauses()
                        self._leave = signal.Signals(number).name
                case _:
                    pass

    def _end_timed_pauses(self) -> None:
        """Nobody will be there to end them in time."""
        for node in self._fleet:
            if node.process.until_ms is not None and node.process.desired == "paused":
                self._fleet.do(node, node.process.resume(clock.now_ms()))

    def _take_requests(self) -> None:
        for identity, request in self._control.receive():
            self._last_request_ms = clock.now_ms()
            try:
                reply = self._take(identity, request)
            except ZraftError as error:
                reply = failure_of(error)
            if reply is not None:
                self._control.send(identity, reply)

    def _take(self, identity: bytes, request: SupervisorRequest) -> SupervisorReply | None:
        match request:
            case Hello():
                return HelloReply(
                    self._version,
                    SUPERVISOR_CONTROL_VERSION,
                    os.getpid(),
                    str(self.place.directory),
                    self._foreground,
                )
            case GetTable():
                return TableReply(self._fleet.rows())
            case Down(now=now, purge=purge):
                self._downs.append(identity)
                self._begin_down(now=now, purge=purge)
                return None
            case _ if self._down is not None or self._leave:
                raise stopping(self.place.name)
            case Up():
                self._waiting.append(Waiting(identity, self._up(identity, request)))
            case AddMember() | ReplaceMember() | DropMember():
                outcome = self._members.begin(self._known_cluster, request)
                self._fleet.end_hold()
                if isinstance(outcome, MemberReply):
                    return outcome
                self._waiting.append(Waiting(identity, outcome))
            case Act():
                # an addition that a crash cut short may lack its directory
                self._cluster = creation.make_members(
                    self.place, self._known_cluster(), self._on_step
                )
                self._waiting.append(Waiting(identity, PendingAct(self._fleet, request)))
                self._fleet.end_hold()
            case PutFault() | HealFaults():
                self._begin_fault(identity, request)
            case GetFaults():
                return self._faults.all_faults()
            case Retire():
                return self._retire()
        return None

    # ---------------------------------------------------------------------------------- requests

    def _up(self, identity: bytes, up: Up) -> PendingUp:
        created = changed = False
        try:
            if self._cluster is None:
                self._cluster = self._create(up)
                created = True
            else:
                check_same(up, self._cluster)
                alive = bool(self._fleet.alive())
                wanted = creation.with_settings(up, self._cluster, alive=alive)
                changed = wanted is not self._cluster
                if changed:
                    creation.write_cluster_file(self.place.directory, wanted)
                    self._cluster = wanted
            fresh = any(member.new for member in self._cluster.members)
            self._cluster = creation.make_members(self.place, self._cluster, self._on_step)
        except ZraftError:
            if self._cluster is None:
                self._leave = "nothing was created"
            raise
        if created or changed:
            self._fleet.load(self._cluster)
        if created or fresh:
            self._control.send(identity, Progress(step="created", name=self._cluster.name))
        warning = durability_warning(self.place, ephemeral=self._cluster.ephemeral)
        pending = PendingUp(self._fleet, up, created=created, warnings=[warning] if warning else [])
        self._fleet.end_hold()
        return pending

    def _create(self, up: Up) -> ClusterFile:
        cluster = creation.new_cluster(self.place, up, self._environ)
        self._on_step("before the cluster file")
        creation.write_cluster_file(self.place.directory, cluster)
        self._on_step("cluster file written")
        return cluster

    def _begin_fault(self, identity: bytes, request: PutFault | HealFaults) -> None:
        reply: FaultsReply
        if isinstance(request, HealFaults):
            reply = self._faults.heal(request)
        else:
            if msgspec.convert(self._known_cluster().settings, Config).testing.faults == "refused":
                raise ControlError(
                    f'the nodes of "{self.place.name}" refuse faults',
                    why='they were started with testing.faults = "refused" (--no-faults)',
                    try_="zraft cluster down, then zraft cluster up --faults",
                )
            reply = self._faults.put(request)
        self._waiting.append(
            Waiting(identity, PendingFault(self._faults, lambda: [*self._fleet], reply))
        )
        self._fleet.end_hold()

    def _keep_cluster(self, cluster: ClusterFile) -> None:
        self._cluster = cluster

    def _known_cluster(self) -> ClusterFile:
        if self._cluster is None:
            self._leave = "no such cluster"
            raise NotRunning(f'no cluster "{self.place.name}"', try_="zraft cluster up -n 5")
        return self._cluster

    def _retire(self) -> SupervisorReply:
        if self._foreground:
            raise SupervisorError(
                f'cluster "{self.place.name}" is tied to the terminal of process {os.getpid()}',
                why="its nodes end with that supervisor",
                try_="stop it there with Ctrl-C",
                exit_code=EXIT_LOCKED,
            )
        if self._waiting:
            raise SupervisorError("the supervisor is busy", try_="again", exit_code=EXIT_LOCKED)
        self._leave = "a newer supervisor takes over"
        return RetireReply()

    def _begin_down(self, *, now: bool, purge: bool) -> None:
        self._purge |= purge
        for waiting in self._waiting:
            self._control.send(waiting.identity, failure_of(stopping(self.place.name)))
        self._waiting.clear()
        if self._down is None:
            self._down = PendingDown(self._fleet, now=now)
        else:
            self._down.hurry(now=now)
        self._fleet.end_hold()

    def _answer(self) -> None:
        for waiting in list(self._waiting):
            try:
                reply = waiting.pending.poll()
            except ZraftError as error:
                reply = failure_of(error)
            if reply is not None:
                self._waiting.remove(waiting)
                self._control.send(waiting.identity, reply)

    def _tell(self, progress: Progress) -> None:
        for waiting in self._waiting:
            if isinstance(waiting.pending, PendingUp):
                self._control.send(waiting.identity, progress)

    # ------------------------------------------------------------------------------- the end

    def _is_idle(self) -> bool:
        return not self._waiting and self._down is None and self._fleet.idle()

    def _maybe_end(self) -> None:
        if self._down is not None:
            reply = self._down.poll()
            if reply is not None:
                self._end_cluster(reply)
        elif self._leave:
            self._end(self._leave)
        elif self._is_idle() and clock.now_ms() - self._last_request_ms >= IDLE_EXIT_MS:
            self._end("nothing to supervise")

    @property
    def _purges(self) -> bool:
        return self._purge or (self._cluster is not None and self._cluster.ephemeral)

    def _end_cluster(self, reply: DownReply) -> None:
        purge = self._purges and not reply.foreign
        self._faults.forget(recorded=not purge)
        self._telemetry.emit("supervisor.stopped", reason="cluster down")
        self._telemetry.close()
        if self._cluster is not None:
            remove_sockets(self._cluster)
        else:
            self._remove_own_socket()
        if purge or self._cluster is None:
            remove_data(self.place, self._cluster)
        reply = msgspec.structs.replace(reply, purged=purge)
        for identity in self._downs:
            self._control.send(identity, reply)
        self._ended = 0

    def _end(self, reason: str) -> None:
        self._telemetry.emit("supervisor.stopped", reason=reason)
        self._telemetry.close()
        if self._cluster is None:
            self._remove_own_socket()
            remove_data(self.place, None)
        elif not self._fleet.alive() and not any(n.process.pid for n in self._fleet):
            remove_sockets(self._cluster)
        self._ended = 0

    def _remove_own_socket(self) -> None:
        path = Path(self.endpoint.removeprefix("ipc://"))
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()

    def _close(self) -> None:
        """Close everything; the nodes are left alone, the lock goes last."""
        for identity, request in self._control.receive():  # it came too late to be taken up
            if not isinstance(request, Hello):
                self._control.send(identity, failure_of(stopping(self.place.name)))
        self._telemetry.close()
        self._faults.close()
        self._fleet.close()
        self._signals.close()
        self._control.close()
        self._context.term()
        os.close(self._lock_fd)


def _logging(cluster: ClusterFile | None) -> Logging:
    return msgspec.convert(cluster.settings, Config).logging if cluster is not None else Logging()
