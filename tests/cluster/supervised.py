"""A home of its own for tests of the supervisor, and supervisors that are driven from outside."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.cluster.harness import (
    check_nothing_left,
    end_everything,
    print_last_events,
    read_events,
    wait_until,
)
from zraft import procfs
from zraft.client.control import Cluster, Settings, UpResult, UpSpec
from zraft.client.launch import greet
from zraft.client.link import ask_supervisor
from zraft.client.record import find_supervisor, supervisor_dir
from zraft.control_api import NodeRow, ProcessState, Up, UpReply

HERE = Path(__file__).parent
NAME = "t"
QUICK: Settings = {
    "supervisor": {
        "backoff_min_ms": 10,
        "backoff_max_ms": 50,
        "start_timeout_s": 2,
        "stop_timeout_s": 1,
    }
}


class Home:
    """A user's home: where clusters are, where sockets are, and the environment that says so."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.state = base / "h"
        self.run = base / "r"
        for path in (self.state, self.run):
            path.mkdir(mode=0o700)
        self.environ = {
            **os.environ,
            "ZRAFT_HOME": str(self.state),
            "XDG_RUNTIME_DIR": str(self.run),
        }

    @property
    def directory(self) -> Path:
        """The cluster's directory."""
        return Path(os.path.realpath(self.state / NAME))

    def up(self, nodes: int | None = None, **wishes: Any) -> UpResult:
        """Bring the cluster up."""
        return Cluster.up(UpSpec(name=NAME, nodes=nodes, **wishes), self.environ)

    def ask_up(self, nodes: int, settings: Settings | None = None) -> UpReply:
        """Have the running supervisor start nodes, and do not wait for a leader."""
        found = greet(self.directory)
        assert found is not None, "no supervisor answers"
        up = Up(name=NAME, nodes=nodes, settings=settings)
        reply = ask_supervisor(found.running, up, timeout_ms=30_000)
        assert isinstance(reply, UpReply)
        return reply

    def behave(self, name: str, behaviour: str) -> None:
        """Tell a fake node what to do from its next start on."""
        (self.directory / name / "behaviour").write_text(behaviour)

    def cluster(self) -> Cluster:
        """The cluster."""
        return Cluster.open(NAME, self.environ)

    def supervisor_pid(self) -> int:
        """The pid of the running supervisor."""
        holder = find_supervisor(self.directory)
        assert holder is not None, "no supervisor runs"
        return holder.pid

    def end_supervisor(self) -> None:
        """Kill -9 the supervisor and wait until its lock is free."""
        pid = self.supervisor_pid()
        os.kill(pid, 9)
        wait_until(
            "the lock is free",
            lambda: find_supervisor(self.directory) is None or None,
            timeout_ms=5_000,
        )

    def wait_for_state(self, name: str, *states: ProcessState, timeout_ms: int = 10_000) -> NodeRow:
        """Wait until the supervisor sees a node in one of these states."""

        def look() -> NodeRow | None:
            row = self.cluster().table()[name]
            return row if row.state in states else None

        return wait_until(f"{name} is {' or '.join(states)}", look, timeout_ms=timeout_ms)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What the supervisor logged under these names."""
        found = read_events(supervisor_dir(self.directory))
        return [event for event in found if event["event"] in names]

    @contextlib.contextmanager
    def drive(
        self, *, fake: bool = False, version: str | None = None, die_at: int = 0
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a supervisor of our own making, wait until it serves, and end it afterwards."""
        wanted: dict[str, Any] = {"die_at": die_at}
        if fake:
            wanted["node"] = str(HERE / "fake_node.py")
        if version is not None:
            wanted["version"] = version
        words = [sys.executable, str(HERE / "drive_supervisor.py"), json.dumps(wanted)]
        ready_read, ready_write = os.pipe()
        words += ["--dir", str(self.state / NAME), "--ready-fd", str(ready_write)]
        popen = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            pass_fds=(ready_write,),
            env=self.environ,
            start_new_session=True,
        )
        os.close(ready_write)
        try:
            poll = select.poll()
            poll.register(ready_read, select.POLLIN)
            assert poll.poll(10_000), "the supervisor said nothing"
            assert b"endpoint" in os.read(ready_read, 4096)
            yield popen
        finally:
            os.close(ready_read)
            popen.kill()
            popen.wait()


@contextlib.contextmanager
def home() -> Iterator[Home]:
    """A home of its own; afterwards the cluster in it is stopped and nothing of it is left."""
    base = Path(tempfile.mkdtemp(prefix="zr"))
    place = Home(base)
    try:
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(print_last_events, place.directory)
            yield place
            if (place.directory / "cluster.toml").exists():
                place.cluster().down()
            check_nothing_left(place.state, place.run)
            on_failure.pop_all()
    finally:
        end_everything(place.state)
        shutil.rmtree(base, ignore_errors=True)


def living(pid: int | None) -> bool:
    """Whether a process is there and has not ended."""
    stat = procfs.read_stat(pid) if pid else None
    return stat is not None and not stat.ended


@contextlib.contextmanager
def held(lock: Path) -> Iterator[int]:
    """Have a process that is no node hold a lock; yield its pid, end it afterwards."""
    program = (
        "import fcntl, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(fd, fcntl.LOCK_EX)\n"
        "os.write(1, b'.')\n"
        "os.read(0, 1)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as popen:
        assert popen.stdout is not None
        assert popen.stdout.read(1) == b"."
        try:
            yield popen.pid
        finally:
            popen.kill()
