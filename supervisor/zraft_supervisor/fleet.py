"""All nodes of a cluster: their state machines, their processes, and the one order of doing things.

    facts and wishes ──▶ Process ──▶ effects ──▶ state.json written ──▶ effects carried out

`commit` is the only place that acts. Nothing is signalled or started before the record that wants
it is on disk, so a supervisor that is killed anywhere in between is continued by the next one: what
holds a lock lives and is watched again, what is wanted and does not live is started.
"""

from __future__ import annotations

import random
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq

from zraft import clock
from zraft.api import Stop
from zraft.client.ownership import Owner, find_owner, find_starting
from zraft.config import Config
from zraft.config import Supervisor as SupervisorConfig
from zraft.control_api import NodeRecord, NodeRow, Progress
from zraft.errors import EXIT_LOCKED, StorageError
from zraft.paths import ClusterFile
from zraft.telemetry import Telemetry
from zraft_supervisor import children
from zraft_supervisor.children import Child, Closed, NodeProgram, Ready, StillRecovering
from zraft_supervisor.process import (
    ALIVE,
    AskToStop,
    BackedOff,
    Effect,
    GivenUp,
    LookAgain,
    Policy,
    Process,
    Send,
    Spawn,
)
from zraft_supervisor.state import StateStore

HOLD_MS = 1_000  # after a start without a request, what is wanted and missing is started anyway
PAUSE_LOOK_MS = 1  # how often a process that was sent SIGSTOP is looked at


@dataclass(slots=True)
class Node:
    """One node: the machine that decides and the process that there is."""

    process: Process
    directory: Path
    control: str  # the endpoint of its control socket
    child: Child | None = None
    asker: zmq.Socket[bytes] | None = None  # carries `stop`; closed when the process has ended

    @property
    def name(self) -> str:
        """Return the node's name."""
        return self.process.name


class Fleet:
    """The nodes by name, in the order of the cluster file."""

    def __init__(
        self,
        *,
        directory: Path,
        store: StateStore,
        context: zmq.Context[zmq.Socket[bytes]],
        poller: zmq.Poller,
        telemetry: Telemetry,
        program: NodeProgram,
        parent: int | None,
        tell: Callable[[Progress], None],
        on_step: Callable[[str], None],
    ) -> None:
        """Start empty; `load` brings the nodes.

        Args:
            parent: the pid with whose end the nodes shall end (`--foreground`), None for never.
            tell: gets every step of a node, for whoever waits for it.
            on_step: is called between the steps that are durable one by one.
        """
        self.nodes: dict[str, Node] = {}
        self.rebuilt = ""  # why the record was made anew
        self.restarts = True  # what the configuration says about crashed nodes
        self._directory = directory
        self._store = store
        self._context = context
        self._poller = poller
        self._telemetry = telemetry
        self._program = program
        self._parent = parent
        self._tell = tell
        self._on_step = on_step
        self._random = random.Random()  # for the jitter of back-off
        self._queue: deque[tuple[Node, Effect]] = deque()
        self._absent: set[str] = set()
        self._hold_until_ms: int | None = None

    # --------------------------------------------------------------------------- coming to be

    def load(self, cluster: ClusterFile) -> list[str]:
        """Take over the cluster's nodes as the record and the locks say; return who lives.

        Raises:
            StorageError: the record cannot be read or set aside.
        """
        records, self.rebuilt = self._store.load()
        self.restarts = msgspec.convert(cluster.settings, Config).supervisor.restart
        owners = self._find_owners([self._directory / name for name in cluster.names])
        for name in cluster.names:
            owner = owners[self._directory / name]
            record = records.get(name) or _record_of(owner, restart=self.restarts)
            self._settle(self._make(cluster, name, record), owner, hold=True)
        if self._absent:
            self._hold_until_ms = clock.now_ms() + HOLD_MS
        return [node.name for node in self.nodes.values() if node.child is not None]

    def add(self, cluster: ClusterFile, name: str) -> Node:
        """Take in a node that came later; nothing is started. One that is known stays as it is."""
        if name in self.nodes:
            return self.nodes[name]
        return self._make(cluster, name, NodeRecord(desired="down", restart=self.restarts))

    def remove(self, name: str) -> None:
        """Forget a node that has no process."""
        node = self.nodes.pop(name)
        assert node.child is None, f"{name} is removed while it runs"
        self._absent.discard(name)

    def _make(self, cluster: ClusterFile, name: str, record: NodeRecord) -> Node:
        policy = _policy(msgspec.convert(cluster.settings, Config).supervisor)
        process = Process.from_record(name, policy, self._random, record)
        node = Node(process, self._directory / name, cluster.endpoint(name, "ctl"))
        self.nodes[name] = node
        return node

    def _find_owners(self, directories: list[Path]) -> dict[Path, Owner]:
        program = self._program.name
        owners = {directory: find_owner(directory, program=program) for directory in directories}
        free = [directory for directory, owner in owners.items() if owner.kind == "nobody"]
        return {**owners, **find_starting(free, program=program)}

    def end_hold(self) -> None:
        """Start what is wanted and was missing when this supervisor began.

        The first verb calls it when it has been understood: `down` then starts nothing.
        """
        self._hold_until_ms = None
        absent, self._absent = self._absent, set()
        for name in absent:
            process = self.nodes[name].process
            if process.state == "down":
                self.do(self.nodes[name], process.on_absent())

    def _settle(self, node: Node, owner: Owner, *, hold: bool = False) -> bool:
        """Tell the machine who holds the directory; return whether anybody does."""
        now_ms = clock.now_ms()
        match owner.kind:
            case "ours":
                child = children.adopt(node.directory, owner)
                if child is not None:
                    self._watch(node, child)
                    effects = node.process.on_adopted(
                        owner.pid, owner.incarnation, now_ms, stopped=owner.stopped
                    )
                    self.do(node, effects)
                    self._telemetry.emit(
                        "process.adopted",
                        name=node.name,
                        child_pid=owner.pid,
                        paused=owner.stopped,
                    )
                    return True
            case "foreign":
                if node.process.pid != owner.pid:
                    self._telemetry.emit("process.foreign", name=node.name, holder_pid=owner.pid)
                self.do(node, node.process.on_foreign(owner.pid, now_ms))
                return True
            case "nobody":
                pass
        if hold:
            self._absent.add(node.name)
        return False

    # ------------------------------------------------------------------------ the loop's part

    def next_deadline_ms(self) -> int | None:
        """Return when `run` must be called next, None when only a descriptor can need it."""
        times = [node.process.next_deadline_ms() for node in self.nodes.values()]
        times.append(self._hold_until_ms)
        if any(node.process.pausing for node in self.nodes.values()):
            times.append(clock.now_ms() + PAUSE_LOOK_MS)
        return min((time for time in times if time is not None), default=None)

    def observe(self, ready: set[int]) -> None:
        """Take in what happened to the processes.

        Args:
            ready: descriptors that the poll found readable.
        """
        for node in self.nodes.values():
            self._observe(node, ready)

    def on_timers(self) -> None:
        """Do what is due."""
        for node in self.nodes.values():
            now_ms = clock.now_ms()
            deadline_ms = node.process.next_deadline_ms()
            if deadline_ms is not None and deadline_ms <= now_ms:
                self.do(node, node.process.on_timer(now_ms))
        if self._hold_until_ms is not None and self._hold_until_ms <= clock.now_ms():
            self.end_hold()

    def do(self, node: Node, effects: Iterable[Effect]) -> None:
        """Note effects for the next `commit`."""
        self._queue.extend((node, effect) for effect in effects)

    def commit(self, *, recorded: bool = True) -> None:
        """Write the record, then carry out what was decided, until nothing is left.

        Args:
            recorded: False: act though the record is refused; it is about to be deleted.

        Raises:
            StorageError: the record cannot be written; nothing was carried out.
        """
        self._save(recorded)
        while self._queue:
            self._on_step("record written")
            queue, self._queue = self._queue, deque()
            for node, effect in queue:
                self._carry_out(node, effect)
            self._save(recorded)

    def _save(self, recorded: bool) -> None:
        if not self.nodes:
            return
        try:
            self._store.save({name: node.process.record() for name, node in self.nodes.items()})
        except StorageError:
            if recorded:
                raise

    def _observe(self, node: Node, ready: set[int]) -> None:
        child = node.child
        if child is None:
            return
        if child.ready_fd in ready:
            self._take_ready(node, child)
        if node.process.pausing and child.stands():
            self.do(node, node.process.on_stopped())
            until_ms = node.process.until_ms
            wall_ms = clock.wall_time_ns() // 1_000_000
            self._telemetry.emit(
                "process.paused",
                name=node.name,
                child_pid=child.pid,
                until_ms=None if until_ms is None else wall_ms + until_ms - clock.now_ms(),
            )
        if child.pidfd in ready:
            self._take_end(node, child)

    def _take_ready(self, node: Node, child: Child) -> None:
        fd = child.ready_fd
        for event in child.read_ready():
            now_ms = clock.now_ms()
            elapsed_ms = now_ms - child.spawned_ms
            match event:
                case Ready(incarnation):
                    self.do(node, node.process.on_ready(incarnation, now_ms))
                    self._telemetry.emit(
                        "process.ready",
                        name=node.name,
                        child_pid=child.pid,
                        elapsed_ms=elapsed_ms,
                    )
                    self._report(node, "ready", elapsed_ms)
                case StillRecovering(text):
                    self.do(node, node.process.on_progress(now_ms))
                    self._report(node, "recovering", elapsed_ms, text)
                case Closed():
                    self.do(node, node.process.on_closed_early(now_ms))
        if fd is not None and child.ready_fd is None:
            self._poller.unregister(fd)

    def _take_end(self, node: Node, child: Child) -> None:
        if child.ready_fd is not None:
            self._take_ready(node, child)  # a line may stand in front of the end
        last = child.reap()
        if last is None:
            return
        self._forget(node, child)
        if last.code == EXIT_LOCKED:
            owner = find_owner(node.directory, program=self._program.name)
            if owner.kind != "nobody" and self._settle(node, owner):
                return  # somebody was faster: that one counts, ours or not
        self.do(node, node.process.on_exit(last, clock.now_ms()))
        last = node.process.last_exit or last
        self._telemetry.emit(
            "process.exited",
            name=node.name,
            child_pid=child.pid,
            exit_code=last.code,
            signal=last.signal,
            expected=last.expected,
        )

    # ---------------------------------------------------------------------------- carrying out

    def _carry_out(self, node: Node, effect: Effect) -> None:
        match effect:
            case Spawn():
                self._spawn(node)
            case AskToStop():
                self._ask_to_stop(node)
            case Send(number):
                self._send(node, number)
            case LookAgain():
                owner = find_owner(node.directory, program=self._program.name)
                if not self._settle(node, owner):
                    self.do(node, node.process.on_absent())
            case BackedOff(crashes, delay_ms):
                self._telemetry.emit(
                    "process.backoff", name=node.name, crashes=crashes, delay_ms=delay_ms
                )
            case GivenUp(reason, exit_code):
                self._telemetry.emit(
                    "process.fatal", name=node.name, reason=reason, exit_code=exit_code
                )
                self._report(node, "failed", 0, self.why_failed(node))

    def _spawn(self, node: Node) -> None:
        if self._settle(node, find_owner(node.directory, program=self._program.name)):
            if node.process.state == "foreign":
                self._report(node, "failed", 0, self.why_failed(node))
            return
        try:
            child = children.spawn(node.directory, self._program, parent=self._parent)
        except OSError as error:
            reason = f"cannot start a process: {error.strerror or error}"
            self.do(node, node.process.on_spawn_failed(reason, clock.now_ms()))
            return
        self._watch(node, child)
        self.do(node, node.process.on_spawned(child.pid, clock.now_ms()))
        self._telemetry.emit("process.spawned", name=node.name, child_pid=child.pid)
        self._report(node, "spawned", 0)
        self._on_step("process spawned")

    def _ask_to_stop(self, node: Node) -> None:
        asker = self._context.socket(zmq.DEALER)
        asker.set(zmq.LINGER, 0)
        asker.set(zmq.HANDSHAKE_IVL, 2000)
        # IMMEDIATE stays 0: the one message waits for the connection. When nobody takes it, the
        # next step of the ladder comes.
        asker.connect(node.control)
        asker.send(msgspec.json.encode(Stop()), zmq.NOBLOCK)
        self._close_asker(node)
        node.asker = asker
        if node.child is not None:
            node.child.signalled_mono_ns = clock.monotonic_ns()

    def _send(self, node: Node, number: int) -> None:
        if node.child is None:
            return
        node.child.send(number)
        if number == signal.SIGCONT and node.process.state == "running":
            self._telemetry.emit("process.resumed", name=node.name, child_pid=node.child.pid)

    def _watch(self, node: Node, child: Child) -> None:
        node.child = child
        self._poller.register(child.pidfd, zmq.POLLIN)
        if child.ready_fd is not None:
            self._poller.register(child.ready_fd, zmq.POLLIN)

    def _forget(self, node: Node, child: Child) -> None:
        self._poller.unregister(child.pidfd)
        if child.ready_fd is not None:
            self._poller.unregister(child.ready_fd)
        child.close()
        node.child = None
        self._close_asker(node)

    def _close_asker(self, node: Node) -> None:
        if node.asker is not None:
            node.asker.close(0)
            node.asker = None

    def _report(self, node: Node, step: str, elapsed_ms: int, message: str = "") -> None:
        progress = {
            "step": step,
            "name": node.name,
            "pid": node.process.pid,
            "elapsed_ms": elapsed_ms,
            "message": message,
        }
        self._tell(msgspec.convert(progress, Progress))

    # ------------------------------------------------------------------------------ questions

    def alive(self) -> list[Node]:
        """Return the nodes that have a process of ours."""
        return [node for node in self.nodes.values() if node.process.state in ALIVE]

    def idle(self) -> bool:
        """Return whether there is nothing to watch and nothing to wait for."""
        return not self._absent and all(
            node.child is None and node.process.next_deadline_ms() is None for node in self
        )

    def __iter__(self) -> Iterator[Node]:
        """Iterate over the nodes in order."""
        return iter(self.nodes.values())

    def rows(self) -> list[NodeRow]:
        """Return how each node is."""
        return [self._row(node) for node in self]

    def _row(self, node: Node) -> NodeRow:
        process = node.process
        if process.incarnation is None and node.child is not None and process.state != "starting":
            process.incarnation = find_owner(node.directory).incarnation
        now_ms = clock.now_ms()
        deadline_ms = process.next_deadline_ms() if process.state == "backoff" else None
        return NodeRow(
            name=node.name,
            desired=process.desired,
            state=process.state,
            pid=process.pid,
            incarnation=process.incarnation,
            restarts=process.restarts,
            restart=process.restart,
            until_ms=None if process.until_ms is None else max(0, process.until_ms - now_ms),
            retry_ms=None if deadline_ms is None else max(0, deadline_ms - now_ms),
            message=self.why_failed(node) if process.state in {"fatal", "foreign"} else "",
            last_exit=process.last_exit,
        )

    def why_failed(self, node: Node) -> str:
        """Return one sentence about a node that does not run although it should."""
        process = node.process
        if process.state == "foreign":
            return f"process {process.pid}, which is not ours, holds the lock of {node.directory}"
        last = process.last_exit
        if process.fatal:
            return process.fatal
        if last is None:
            return f"{node.name} is {process.state}"
        ended = f"exit code {last.code}" if last.signal is None else f"signal {last.signal}"
        return f"{last.reason} ({ended})"

    def close(self) -> None:
        """Close all descriptors and sockets. The processes are left alone."""
        for node in self:
            if node.child is not None:
                self._forget(node, node.child)


def _policy(config: SupervisorConfig) -> Policy:
    """Return how patient the configuration wants the supervisor to be."""
    return Policy(
        backoff_min_ms=config.backoff_min_ms,
        backoff_max_ms=config.backoff_max_ms,
        crash_limit=config.crash_limit,
        crash_window_ms=config.crash_window_s * 1000,
        healthy_after_ms=config.healthy_after_s * 1000,
        start_timeout_ms=config.start_timeout_s * 1000,
        stop_timeout_ms=config.stop_timeout_s * 1000,
    )


def _record_of(owner: Owner, *, restart: bool) -> NodeRecord:
    """Return the record of a node that none was written for: what runs is wanted."""
    if owner.kind != "ours":
        return NodeRecord(desired="down", restart=restart)
    return NodeRecord(desired="paused" if owner.stopped else "up", restart=restart)
