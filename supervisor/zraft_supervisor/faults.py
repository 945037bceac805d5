"""The network faults of a cluster: held here, renewed to the nodes, and never longer than wanted.

    fault verbs ──▶ FaultBook ──▶ faults.json ──▶ every node: the whole list, again every 500 ms

A fault is a lease. It ends when it is healed, when its time is up, and when its owner ends: a fault
of a script names the script's process, which is watched through a pidfd, and carries a lease of two
seconds in the nodes, so that it also ends when this supervisor does. A fault of the command line
belongs to nobody who could end; it stays in the nodes, is recorded before it is told to anybody,
and the next supervisor holds it again.

Every node gets all faults at once, whenever something changed and every 500 ms while there are any;
at most one list is under way to a node, so a paused node finds the one that was sent before it
stood, and then the newest. Times in it are those of the host's clock, not durations: what waited in
a socket is not in force any longer for it.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq

from zraft import clock, procfs
from zraft.api import ControlFailure, FaultRule, FaultsSet, NodeReply, SetFaults
from zraft.client.record import supervisor_dir
from zraft.control_api import FaultsReply, HealFaults, HeldFault, PutFault
from zraft.errors import ControlError, NotFound, StorageError
from zraft.storage.files import OS_FILES, replace_file
from zraft.transport.fault_kinds import MESSAGE_KINDS
from zraft_supervisor.fleet import Node

RENEW_MS = 500
LEASE_MS = 2_000
SILENT_MS = 10_000  # a running node that has not answered for so long gets another connection
ANSWER_MS = 2_000  # a verb waits so long for nodes that do not answer
MAX_FAULTS = 100
MAX_FOR_MS = 24 * 3600 * 1000
FORMAT = 1


class FaultFile(msgspec.Struct, frozen=True):
    """`supervisor/faults.json`: what the next supervisor holds again, and the last id given."""

    format: int
    boot_id: str
    last_id: int
    faults: list[FaultRule]


def rule_text(rule: FaultRule) -> str:
    """Return a fault for the log: `partition n1,n2 | n3 by cli`."""
    if rule.groups:
        where = " | ".join(",".join(group) for group in rule.groups)
    else:
        where = " ".join(f"{one}:{other}" for one, other in rule.links[:20])
    return f"{rule.kind} {where} by {rule.by}"


@dataclass(slots=True)
class _Held:
    """A fault and what is counted of it: per node, and what earlier processes of nodes counted."""

    rule: FaultRule
    owner_pid: int = 0
    hits: dict[str, int] = field(default_factory=dict)
    past_hits: int = 0

    def value(self) -> HeldFault:
        """Return it for an answer."""
        return HeldFault(self.rule, self.past_hits + sum(self.hits.values()), self.owner_pid)

    def count(self, node: str, hits: int) -> None:
        """Take in what a node counted; a smaller number is that of a new process or rule."""
        before = self.hits.get(node, 0)
        if hits < before:
            self.past_hits += before
        self.hits[node] = hits


@dataclass(slots=True)
class _Line:
    """The way to one process of a node."""

    pid: int
    socket: zmq.Socket[bytes]
    sent_version: int = -1
    sent_ms: int = 0
    known_version: int = -1
    waiting: bool = False
    failure: ControlFailure | None = None


class FaultBook:
    """See the module. One per supervisor; `run` every turn."""

    def __init__(
        self,
        directory: Path,
        context: zmq.Context[zmq.Socket[bytes]],
        poller: zmq.Poller,
        emit: Callable[..., None],
    ) -> None:
        """Hold again what the last supervisor recorded. A record that is unreadable is no fault."""
        self._path = supervisor_dir(directory) / "faults.json"
        self._context = context
        self._poller = poller
        self._emit = emit
        self._held: dict[str, _Held] = {}
        self._lines: dict[str, _Line] = {}
        self._owners: dict[int, int] = {}  # pid → pidfd
        self._last_id = 0
        self.version = 0
        self._decoder: msgspec.json.Decoder[NodeReply] = msgspec.json.Decoder(NodeReply)
        self._load()

    def _load(self) -> None:
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=FaultFile)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return
        self._last_id = found.last_id
        if found.boot_id == procfs.boot_id():
            self._held = {rule.id: _Held(rule) for rule in found.faults}

    # ------------------------------------------------------------------------------------ verbs

    def put(self, request: PutFault) -> FaultsReply:
        """Hold a fault; the reply lacks only who missed it.

        Raises:
            ControlError: it makes no sense, or there are too many.
            StorageError: the record cannot be written; nothing has changed.
        """
        if request.for_ms is not None and not 1 <= request.for_ms <= MAX_FOR_MS:
            raise ControlError(
                f"{request.for_ms} ms is impossible", why="the rule is: 1 ms to 1 day"
            )
        if len(self._held) >= MAX_FAULTS:
            raise ControlError(f"{MAX_FAULTS} faults are enough", try_="zraft fault heal --all")
        unknown = [name for name in request.messages if name not in MESSAGE_KINDS]
        if unknown or not 0 < request.rate <= 1:
            raise ControlError(
                f"a rate of {request.rate} of {' '.join(request.messages) or 'all'} is impossible",
                why=f"a rate is above 0, up to 1; messages are {', '.join(MESSAGE_KINDS)}",
            )
        if request.owner_pid:
            self._watch(request.owner_pid)
        now_ms = clock.now_ms()
        rule = FaultRule(
            id=f"f{self._last_id + 1}",
            kind=request.kind,
            links=request.links,
            groups=request.groups,
            rate=request.rate,
            delay_ms=request.delay_ms,
            jitter_ms=request.jitter_ms,
            normal=request.normal,
            messages=request.messages,
            seed=request.seed or random.randrange(1, 1 << 31),
            by=request.by,
            since_ms=now_ms,
            until_ms=None if request.for_ms is None else now_ms + request.for_ms,
        )
        replaced = [
            held
            for held in self._held.values()
            if request.kind == held.rule.kind == "partition" and not request.add
        ]
        kept = {fid: held for fid, held in self._held.items() if held not in replaced}
        kept[rule.id] = _Held(rule, request.owner_pid)
        self._change(kept, last_id=self._last_id + 1)
        for held in replaced:
            self._emit("fault.cleared", fault=held.rule.id, rule=rule_text(held.rule))
        self._emit("fault.injected", fault=rule.id, rule=rule_text(rule))
        return FaultsReply(
            faults=[self._held[rule.id].value()], replaced=[held.value() for held in replaced]
        )

    def heal(self, request: HealFaults) -> FaultsReply:
        """End faults by id, by kind, or all of them.

        Raises:
            NotFound: there is no fault with such an id (exit 4).
            StorageError: the record cannot be written; nothing has changed.
        """
        for fault_id in request.ids:
            if fault_id not in self._held:
                raise NotFound(
                    f'there is no fault "{fault_id}"',
                    why=f"there are {', '.join(self._held)}" if self._held else "there is none",
                    try_="zraft fault list",
                )
        everything = not request.ids and request.kind is None
        ended = [
            held
            for held in self._held.values()
            if everything or held.rule.id in request.ids or held.rule.kind == request.kind
        ]
        self._end(ended)
        return FaultsReply(faults=[held.value() for held in ended])

    def all_faults(self) -> FaultsReply:
        """Return what is held."""
        return FaultsReply(faults=[held.value() for held in self._held.values()])

    def forget(self, *, recorded: bool) -> None:
        """Hold nothing any more: the cluster is being stopped.

        Args:
            recorded: False: whatever the disk says; the record is about to be deleted.

        Raises:
            StorageError: the record cannot be written; nothing has changed.
        """
        try:
            self._end([*self._held.values()])
        except StorageError:
            if recorded:
                raise

    def missed(self, nodes: Iterable[Node], version: int) -> list[str]:
        """Return the living nodes that have not taken in the list of that version yet."""
        return [
            node.name
            for node in nodes
            if node.child is not None
            and node.process.state in {"running", "starting"}
            and ((line := self._lines.get(node.name)) is None or line.known_version < version)
        ]

    def failure(self) -> ControlFailure | None:
        """Return why a node refused the last list, None when none did."""
        return next((line.failure for line in self._lines.values() if line.failure), None)

    # --------------------------------------------------------------------------- the loop's part

    def next_deadline_ms(self) -> int | None:
        """Return when `run` must be called next, None when only a socket can need it."""
        times = [held.rule.until_ms for held in self._held.values()]
        if self._held:
            times += [line.sent_ms + RENEW_MS for line in self._lines.values() if not line.waiting]
        return min((time for time in times if time is not None), default=None)

    def run(self, ready: set[int], nodes: Iterable[Node]) -> None:
        """End what is over, take in answers, tell the nodes what is in force."""
        now_ms = clock.now_ms()
        gone = {pid for pid, pidfd in self._owners.items() if pidfd in ready}
        over = [
            held
            for held in self._held.values()
            if held.owner_pid in gone
            or (held.rule.until_ms is not None and held.rule.until_ms <= now_ms)
        ]
        self._end(over)
        for pid in gone | {pid for pid in self._owners if not self._owns(pid)}:
            self._unwatch(pid)
        nodes = [*nodes]
        for name in self._lines.keys() - {node.name for node in nodes}:
            self._close_line(name)  # it was removed
        for node in nodes:
            self._keep_line(node, now_ms)
            line = self._lines.get(node.name)
            if line is not None:
                self._take_answer(node.name, line)
                self._renew(line, now_ms)

    def _keep_line(self, node: Node, now_ms: int) -> None:
        line = self._lines.get(node.name)
        pid = node.child.pid if node.child is not None else None
        silent = line is not None and line.waiting and now_ms - line.sent_ms > SILENT_MS
        if line is not None and (line.pid != pid or (silent and node.process.state == "running")):
            self._close_line(node.name)
            line = None
        if line is not None or pid is None:
            return
        if not self._held and node.process.state == "starting":
            return  # a new process has no faults
        socket = self._context.socket(zmq.DEALER)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.HANDSHAKE_IVL, 2000)
        socket.set(zmq.RECONNECT_IVL, 25)
        socket.connect(node.control)  # IMMEDIATE stays 0: the list waits for the connection
        self._poller.register(socket, zmq.POLLIN)
        self._lines[node.name] = _Line(pid, socket)

    def _take_answer(self, name: str, line: _Line) -> None:
        while True:
            try:
                data = line.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            line.waiting = False
            line.known_version = line.sent_version
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                reply = self._decoder.decode(data)
                line.failure = reply if isinstance(reply, ControlFailure) else None
                if isinstance(reply, FaultsSet):
                    self._count(name, reply.hits)

    def _count(self, name: str, hits: Mapping[str, int]) -> None:
        for fault_id, count in hits.items():
            if (held := self._held.get(fault_id)) is not None:
                held.count(name, count)

    def _renew(self, line: _Line, now_ms: int) -> None:
        due = self._held and now_ms >= line.sent_ms + RENEW_MS
        if line.waiting or (line.sent_version == self.version and not due):
            return
        rules = [
            msgspec.structs.replace(held.rule, lease_until_ms=now_ms + LEASE_MS)
            if held.owner_pid
            else held.rule
            for held in self._held.values()
        ]
        line.socket.send(msgspec.json.encode(SetFaults(rules)), zmq.NOBLOCK)
        line.waiting, line.sent_version, line.sent_ms = True, self.version, now_ms

    # ----------------------------------------------------------------------------------- inside

    def _end(self, ended: list[_Held]) -> None:
        if not ended:
            return
        self._change({fid: held for fid, held in self._held.items() if held not in ended})
        for held in ended:
            self._emit("fault.cleared", fault=held.rule.id, rule=rule_text(held.rule))

    def _change(self, held: dict[str, _Held], *, last_id: int | None = None) -> None:
        """Record what the next supervisor shall hold, then hold it."""
        last_id = self._last_id if last_id is None else last_id
        lasting = [one.rule for one in held.values() if not one.owner_pid]
        content = FaultFile(FORMAT, procfs.boot_id(), last_id, lasting)
        try:
            replace_file(OS_FILES, self._path, msgspec.json.encode(content) + b"\n")
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be written", why=error.strerror or str(error)
            ) from error
        self._held, self._last_id = held, last_id
        self.version += 1

    def _watch(self, pid: int) -> None:
        if pid in self._owners:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise ControlError(
                f"there is no process {pid}", why="a fault ends with its owner"
            ) from error
        self._owners[pid] = pidfd
        self._poller.register(pidfd, zmq.POLLIN)

    def _owns(self, pid: int) -> bool:
        return any(held.owner_pid == pid for held in self._held.values())

    def _unwatch(self, pid: int) -> None:
        pidfd = self._owners.pop(pid)
        self._poller.unregister(pidfd)
        os.close(pidfd)

    def _close_line(self, name: str) -> None:
        line = self._lines.pop(name)
        self._poller.unregister(line.socket)
        line.socket.close(0)

    def close(self) -> None:
        """Close every socket and descriptor; what the nodes know stays."""
        for name in [*self._lines]:
            self._close_line(name)
        for pid in [*self._owners]:
            self._unwatch(pid)


class PendingFault:
    """A fault verb: answered when every living node has taken in the list, or when it is late."""

    def __init__(
        self, book: FaultBook, nodes: Callable[[], list[Node]], reply: FaultsReply
    ) -> None:
        """`reply` is the answer but for who missed it."""
        self.deadline_ms = clock.now_ms() + ANSWER_MS
        self._book = book
        self._nodes = nodes
        self._reply = reply
        self._version = book.version

    def poll(self) -> FaultsReply | ControlFailure | None:
        """See `requests.Pending`."""
        missed = self._book.missed(self._nodes(), self._version)
        if missed and clock.now_ms() < self.deadline_ms:
            return None
        return self._book.failure() or msgspec.structs.replace(self._reply, missed=missed)
