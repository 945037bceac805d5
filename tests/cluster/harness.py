"""Clusters of real processes for tests: one call makes one, and nothing of it is left afterwards.

    with live_cluster(5) as live:
        live.cluster.act("kill", [live.leader()])
        live.cluster.wait_for(["leader"])

Each cluster has its own short home and run directories below the system's temporary directory, so
that tests never see the user's clusters and socket paths stay short. Leaving the block stops the
cluster and fails when a process, a socket or a lock of it is left. When the block itself failed,
what the nodes and the supervisor logged last is printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from zraft import clock, procfs
from zraft.api import NodeStatus
from zraft.client.control import Cluster, Settings, UpResult, UpSpec, leadership
from zraft.storage.directory import lock_holder

NAME = "t"
TAIL_LINES = 60
LOOK_EVERY_MS = 20
GONE_MS = 5_000

Event = dict[str, Any]
T = TypeVar("T")


@dataclass(slots=True)
class LiveCluster:
    """A running cluster of a test and where it lives."""

    home: Path
    run: Path
    environ: dict[str, str]
    cluster: Cluster
    up: UpResult
    directory: Path = field(init=False)

    def __post_init__(self) -> None:
        """Find the directory."""
        self.directory = Path(os.path.realpath(self.home / NAME))

    @property
    def names(self) -> list[str]:
        """The nodes' names."""
        return self.cluster.file.names

    def bring_up(self, *, timeout_ms: int = 30_000) -> UpResult:
        """Start what does not run; return when there is a leader."""
        self.up = Cluster.up(UpSpec(name=NAME, timeout_ms=timeout_ms), self.environ)
        return self.up

    def leader(self, *, timeout_ms: int = 10_000) -> str:
        """Wait for a leader that a majority follows and return its name."""
        found = self.cluster.wait_for(["leader"], timeout_ms=timeout_ms).leader
        assert found is not None
        return found

    def leader_now(self) -> str | None:
        """Return the leader that a majority follows at this moment, if there is one."""
        seen = leadership(self.cluster.statuses(timeout_ms=300))
        return None if seen is None else seen.leader

    def status(self, name: str, *, timeout_ms: int = 2_000) -> NodeStatus:
        """Return the status of one node, which must answer."""
        status = self.cluster.statuses(timeout_ms=timeout_ms)[name]
        assert status is not None, f"{name} does not answer"
        return status

    def converged(self, *, timeout_ms: int = 30_000) -> dict[str, NodeStatus]:
        """Wait until all nodes agree on everything, their states included; return what they say."""

        def agreed() -> dict[str, NodeStatus] | None:
            statuses = self.cluster.statuses()
            up = {name: status for name, status in statuses.items() if status is not None}
            views = {(s.leader, s.term, s.commit, s.applied, s.last_index) for s in up.values()}
            same = len(up) == len(statuses) and len(views) == 1
            first = next(iter(up.values()), None)
            if not same or first is None or first.leader is None:
                return None
            return up if first.applied == first.last_index else None

        return wait_until("all nodes agree", agreed, timeout_ms=timeout_ms)

    def events(self, name: str, *globs: str) -> list[Event]:
        """Return the decisions that a node logged, oldest first; `supervisor` is a name, too.

        Args:
            name: the node.
            globs: names of events; none means all of them.
        """
        return [
            event
            for event in read_events(self.directory / name)
            if not globs or event["event"] in globs
        ]

    def all_events(self, *globs: str) -> list[Event]:
        """Return the decisions of all nodes in the order of the host's clock."""
        found = [event for name in self.names for event in self.events(name, *globs)]
        return sorted(found, key=lambda event: (event["mono_ns"], event["seq"]))


def read_events(directory: Path) -> list[Event]:
    """Return what is in the `log.jsonl` of a process and in those it rotated away, in order."""
    paths = sorted(
        directory.glob("log.jsonl*"),
        key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdigit() else 1,
    )
    events: list[Event] = []
    for path in paths:
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # cut by kill -9
                events.append(json.loads(line))
    return events


def elections_won(events: list[Event]) -> list[tuple[int, str]]:
    """Return (term, node) of every leadership in `events`, by term."""
    won = {
        (event["term"], event["node"])
        for event in events
        if event["event"] == "election.won" and not event["pre_vote"]
    }
    return sorted(won)


def wait_until(what: str, look: Callable[[], T | None], *, timeout_ms: int) -> T:
    """Look again and again until `look` returns something else than None, and return that."""
    deadline_ms = clock.now_ms() + timeout_ms
    pause = select.poll()
    while (seen := look()) is None:
        assert clock.now_ms() < deadline_ms, f"not within {timeout_ms} ms: {what}"
        pause.poll(LOOK_EVERY_MS)
    return seen


@contextlib.contextmanager
def live_cluster(
    nodes: int = 5,
    *,
    settings: Settings | None = None,
    transport: Literal["ipc", "tcp"] = "ipc",
    environ: Mapping[str, str] | None = None,
    timeout_ms: int = 30_000,
) -> Iterator[LiveCluster]:
    """Bring a new cluster up, with a leader; afterwards nothing of it is left.

    Args:
        nodes: how many.
        settings: sections and keys that differ from the defaults.
        transport: between nodes and to clients.
        environ: variables on top of this process's own.
        timeout_ms: for `up`.
    """
    base = Path(tempfile.mkdtemp(prefix="zr"))
    home, run = base / "h", base / "r"
    for path in (home, run):
        path.mkdir(mode=0o700)
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith("ZRAFT_CLUSTER")
    }
    variables |= {"ZRAFT_HOME": str(home), "XDG_RUNTIME_DIR": str(run), **(environ or {})}
    spec = UpSpec(
        name=NAME, nodes=nodes, settings=settings, transport=transport, timeout_ms=timeout_ms
    )
    try:
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(print_last_events, home / NAME)
            up = Cluster.up(spec, variables)
            live = LiveCluster(home, run, variables, Cluster.open(NAME, variables), up)
            yield live
            live.cluster.down()
            check_nothing_left(home, run)
            on_failure.pop_all()
    finally:
        end_everything(home)
        shutil.rmtree(base, ignore_errors=True)


def check_nothing_left(home: Path, run: Path) -> None:
    """Fail when a process, a socket or a lock of a stopped cluster is left."""

    def gone() -> bool | None:
        return not processes_of(home) or None

    wait_until("every process of the cluster has ended", gone, timeout_ms=GONE_MS)
    sockets = [str(path) for path in run.rglob("*") if path.is_socket()]
    assert sockets == [], "down left sockets behind"
    locks = {str(path): lock_holder(path) for path in home.rglob("lock")}
    assert {path: pid for path, pid in locks.items() if pid is not None} == {}


def processes_of(home: Path) -> list[int]:
    """Return the pids of all living processes that were started for this home directory."""
    marker = f"ZRAFT_HOME={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile, or is not ours
                if marker in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def end_everything(home: Path) -> None:
    """Kill what a failed test left running: the supervisor first, or it starts nodes again."""
    left = processes_of(home)
    for pid in sorted(left, key=lambda pid: not _is_supervisor(pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_supervisor(pid: int) -> bool:
    return "zraft_supervisor" in procfs.read_command(pid)


def print_last_events(directory: Path) -> None:
    """Print what the processes of a cluster logged last, merged, and what they wrote to stderr."""
    events = []
    for path in sorted(directory.glob("*/")):
        events += [{"node": path.name, **event} for event in read_events(path)]
        err = path / "err"
        if err.exists() and (text := err.read_text(errors="replace").strip()):
            sys.stderr.write(f"--- {path.name}/err\n{text[-2000:]}\n")
    events.sort(key=lambda event: event["mono_ns"])
    for event in events[-TAIL_LINES:]:
        at_s = event["mono_ns"] / 1e9
        sys.stderr.write(f"{at_s:.3f} {event['node']:<11}{event['event']:<24}{event['msg']}\n")
