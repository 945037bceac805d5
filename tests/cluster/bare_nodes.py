"""Nodes as processes without a supervisor: the test makes the directories and starts each one.

    with bare_nodes(3) as nodes:
        nodes.start_all()
        reply = nodes.put("n1", b"key", b"value")

Everything lives in one short directory below the system's temporary one and is gone afterwards;
what the test leaves running is killed through its Popen object.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import zmq

from tests.cluster.harness import print_last_events, wait_until
from zraft import clock, wire
from zraft.api import Code, Consistency, Flag, GetStatus, NodeReply, NodeRequest, NodeStatus
from zraft.api import Reply as ClientReply
from zraft.api import Request as ClientRequest
from zraft.machine.kv_codec import encode_get, encode_put
from zraft.machine.kv_results import decode_get_result
from zraft.storage.directory import NamedMember, create_member, new_id

READY_MS = 20_000
END_S = 20
ROOT = Path(__file__).parents[2]

Settings = Mapping[str, Mapping[str, int | bool | str]]


@dataclass(slots=True)
class Run:
    """One process of a node. `ready`: its readiness line; empty when it closed the pipe without."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def send(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end; return the exit code, negative for a signal."""
        return self.process.wait(END_S)

    def kill(self) -> None:
        """Kill it, kindly to processes that have ended already."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


class BareNodes:
    """The nodes of one test. See the module."""

    def __init__(self, base: Path, size: int, settings: Settings) -> None:
        """Make every directory and the cluster file; start nothing."""
        self.base = base
        self.directory = base / "c"
        self.sockets = base / "s"
        self.directory.mkdir(mode=0o700)
        self.sockets.mkdir(mode=0o700)
        self.cluster_id = new_id()
        self.members = [NamedMember(f"n{i}", new_id()) for i in range(1, size + 1)]
        self.names = [member.name for member in self.members]
        self.runs: dict[str, Run] = {}
        self._base = [*self.members]
        self._settings = settings
        self._others: list[Run] = []
        self._request_ids = count(1)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        (self.directory / "cluster.toml").write_text(self._cluster_file(settings))
        for member in self.members:
            create_member(
                self.directory,
                member.name,
                member_id=member.member_id,
                cluster="c",
                cluster_id=self.cluster_id,
                members=self.members,
            )

    def _cluster_file(self, settings: Settings) -> str:
        lines = [
            "format = 1",
            'name = "c"',
            f'cluster_id = "{self.cluster_id:016x}"',
            'transport = "ipc"',
            f'socket_dir = "{self.sockets}"',
            "base_port = 0",
            "ephemeral = false",
        ]
        for name, member_id in self.members:
            lines += ["[[members]]", f'name = "{name}"', f'member_id = "{member_id:016x}"']
            lines.append("new = false")
        lines.append("[settings]")
        for section, keys in settings.items():
            lines.append(f"[settings.{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        return "\n".join(lines) + "\n"

    def join(self, name: str) -> str:
        """Make the directory of a node that is no member yet; return its member id, 16 hex digits.

        An older one of that name goes out of the cluster file, and its directory aside.
        """
        member = NamedMember(name, new_id())
        old = [one for one in self.members if one.name == name]
        for one in old:
            self.members.remove(one)
            (self.directory / name).rename(self.directory / f"{name}.old")
        self.members.append(member)
        self.names = [one.name for one in self.members]
        temporary = self.directory / "cluster.toml.tmp"
        temporary.write_text(self._cluster_file(self._settings))
        temporary.rename(self.directory / "cluster.toml")
        create_member(
            self.directory,
            name,
            member_id=member.member_id,
            cluster="c",
            cluster_id=self.cluster_id,
            members=self._base,
        )
        return f"{member.member_id:016x}"

    # Processes

    def start(
        self,
        name: str,
        *,
        command: Sequence[str] = (sys.executable, "-m", "zraft.node"),
        arguments: Sequence[str] = (),
    ) -> Run:
        """Start a node; return when it is ready or has closed the pipe."""
        run = self.spawn(name, command=command, arguments=arguments)
        self.runs[name] = run
        return run

    def spawn(
        self,
        name: str,
        *,
        command: Sequence[str] = (sys.executable, "-m", "zraft.node"),
        arguments: Sequence[str] = (),
    ) -> Run:
        """Start one more process for a node's directory, as `start` does, and only remember it."""
        read_fd, write_fd = os.pipe()
        node_dir = self.directory / name
        try:
            with (self.base / f"{name}.err").open("ab") as err:
                process = subprocess.Popen(
                    [*command, "--dir", str(node_dir), "--ready-fd", str(write_fd), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=err,
                    stderr=err,
                    pass_fds=[write_fd],
                    cwd=ROOT,
                )
        finally:
            os.close(write_fd)
        run = Run(process)
        self._others.append(run)
        try:
            run.ready = read_ready_line(read_fd)
        finally:
            os.close(read_fd)
        return run

    def start_all(self) -> None:
        """Start every node that does not run, and wait for all to be ready."""
        for name in self.names:
            if name not in self.runs or self.runs[name].process.poll() is not None:
                assert self.start(name).ready, f"{name} did not start: {self.err(name)}"

    def err(self, name: str) -> str:
        """Return what the processes of a node wrote to stderr."""
        return (self.base / f"{name}.err").read_text()

    def exit_note(self, name: str) -> dict[str, Any] | None:
        """Return exit.json, None when there is none."""
        path = self.directory / name / "exit.json"
        if not path.exists():
            return None
        note: dict[str, Any] = json.loads(path.read_bytes())
        return note

    # Control

    def ask(self, name: str, request: NodeRequest, *, timeout_ms: int = 10_000) -> Any:
        """Ask the control socket of a node; the answer, decoded."""
        return decode_reply(self.ask_bytes(name, msgspec.json.encode(request), timeout_ms))

    def ask_bytes(self, name: str, body: bytes, timeout_ms: int = 10_000) -> bytes:
        """Send any bytes to the control socket of a node; the answer, raw."""
        with self.dealer(f"{name}.ctl") as dealer:
            dealer.send(body)
            assert dealer.poll(timeout_ms), f"{name} does not answer: {self.err(name)}"
            return dealer.recv()

    def status(self, name: str) -> NodeStatus:
        """Return the status of a node that answers."""
        status = self.ask(name, GetStatus())
        assert isinstance(status, NodeStatus)
        return status

    def leader(self, names: Sequence[str] | None = None, *, timeout_ms: int = 20_000) -> str:
        """Wait until all the nodes (default: all) follow one leader; return its name."""

        def agreed() -> str | None:
            views = [self.status(name) for name in names or self.names]
            leaders = {(view.leader, view.term) for view in views}
            leading = [view.name for view in views if view.role == "leader"]
            return leading[0] if len(leaders) == 1 and len(leading) == 1 else None

        return wait_until("one leader", agreed, timeout_ms=timeout_ms)

    def follower(self) -> str:
        """Return a node that follows the leader."""
        leader = self.leader()
        return next(name for name in self.names if name != leader)

    # Clients

    @contextlib.contextmanager
    def dealer(self, socket: str) -> Iterator[zmq.Socket[bytes]]:
        """A DEALER that is connected to `n1.client` or the like."""
        dealer = self.context.socket(zmq.DEALER)
        dealer.set(zmq.LINGER, 0)
        dealer.connect(f"ipc://{self.sockets}/{socket}")
        try:
            yield dealer
        finally:
            dealer.close(0)

    def request(
        self,
        name: str,
        body: bytes,
        consistency: Consistency,
        *,
        deadline_ms: int = 10_000,
        cluster: bytes | None = None,
        flags: Flag = Flag.NONE,
    ) -> ClientReply:
        """Send one request to a node's client socket and return its reply."""
        own = self.cluster_id.to_bytes(8, "big")
        request_id = next(self._request_ids)
        request = ClientRequest(request_id, 0, 0, 0, deadline_ms, consistency, flags, body)
        with self.dealer(f"{name}.client") as dealer:
            dealer.send(wire.encode_requests(own if cluster is None else cluster, [request]))
            assert dealer.poll(deadline_ms + 5_000), f"no reply from {name}"
            answered, replies = wire.decode_replies(dealer.recv())
        assert answered == own
        assert [reply.request_id for reply in replies] == [request_id]
        return replies[0]

    def put(self, name: str, key: bytes, value: bytes) -> ClientReply:
        """Write a key through a node."""
        return self.request(name, encode_put(key, value), Consistency.WRITE)

    def get(
        self, name: str, key: bytes, consistency: Consistency = Consistency.LINEARIZABLE
    ) -> bytes | None:
        """Read a key through a node; None when it does not exist."""
        reply = self.request(name, encode_get(key), consistency)
        assert reply.code == Code.OK, reply
        item = decode_get_result(reply.body).item
        return None if item is None else item.value

    def close(self) -> None:
        """End what still runs."""
        for run in self._others:
            run.kill()
        self.context.destroy(linger=0)


def read_ready_line(fd: int) -> dict[str, Any]:
    """Return the readiness line of a node, after its lines of progress; empty at the end."""
    buffer = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    deadline_ms = clock.now_ms() + READY_MS
    while poll.poll(max(0, deadline_ms - clock.now_ms())):
        data = os.read(fd, 4096)
        buffer += data
        for line in buffer.splitlines():
            note: dict[str, Any] = json.loads(line) if buffer.endswith(b"\n") else {}
            if "pid" in note:
                return note
        if not data:
            return {}
    raise AssertionError(f"neither ready nor closed within {READY_MS} ms: {buffer!r}")


def decode_reply(body: bytes) -> Any:
    """Return a node's answer."""
    return msgspec.json.decode(body, type=NodeReply)


@contextlib.contextmanager
def bare_nodes(size: int, settings: Settings | None = None) -> Iterator[BareNodes]:
    """The directories of `size` nodes; nothing runs yet, and nothing does afterwards."""
    base = Path(tempfile.mkdtemp(prefix="zn"))
    nodes = BareNodes(base, size, settings or {})
    passed = False
    try:
        yield nodes
        passed = True
    finally:
        if not passed:
            print_last_events(nodes.directory)
        nodes.close()
        shutil.rmtree(base)
