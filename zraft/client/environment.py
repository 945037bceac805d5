"""What zraft stands on, looked at: Python, kernel, sockets, disk, limits, and what was left behind.

Each check is one line with a verdict: `ok`, `warn` (it works, and something will be worse for it)
or `error` (it will not work). Nothing is changed but for one file in STATE that measures the disk
and is removed again.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from zraft import clock
from zraft.client.ownership import find_owner
from zraft.client.record import find_supervisor, read_state
from zraft.client.refusals import check_platform
from zraft.config import Config
from zraft.errors import NotRunning, ZraftError
from zraft.paths import (
    MAX_SOCKET_PATH_BYTES,
    ClusterFile,
    cluster_dir,
    read_cluster_file,
    runtime_root,
    socket_dir,
    state_root,
)
from zraft.procfs import VOLATILE, file_system

OLDEST_PYTHON = (3, 11)
SYNCS = 64
SYNC_BYTES = 4096
SPACE_WARN_BYTES = 1 << 30
SPACE_ERROR_BYTES = 64 << 20
FILES_WARN = 1024
FILES_ERROR = 256

Verdict = Literal["ok", "warn", "error"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line: what was looked at, the verdict, what was seen, and what to do about it."""

    name: str
    verdict: Verdict
    says: str
    try_: str = msgspec.field(default="", name="try")


def check_environment(environ: Mapping[str, str]) -> list[Check]:
    """Look at everything that has nothing to do with one cluster."""
    return [
        _python(),
        _libraries(),
        _kernel(),
        _open_files(),
        *_state(environ),
        *_run_directory(environ),
    ]


def _python() -> Check:
    says = f"python {platform.python_version()} · {os.cpu_count()} cores"
    if sys.version_info < OLDEST_PYTHON:
        return Check(name="python", verdict="error", says=says, try_="use Python 3.11 or newer")
    if sys.flags.optimize:
        says += " with -O: nodes refuse to start without their assertions"
        return Check(name="python", verdict="error", says=says, try_="unset PYTHONOPTIMIZE")
    return Check(name="python", verdict="ok", says=says)


def _libraries() -> Check:
    import zmq

    says = f"pyzmq {zmq.__version__} (libzmq {zmq.zmq_version()})"
    if not zmq.has("ipc"):
        says += " without ipc sockets"
        return Check(name="pyzmq", verdict="error", says=says, try_="pip install -U pyzmq")
    return Check(name="pyzmq", verdict="ok", says=says)


def _kernel() -> Check:
    try:
        check_platform()
    except ZraftError as error:
        return Check(name="kernel", verdict="error", says=error.what)
    return Check(name="kernel", verdict="ok", says=f"linux {platform.release()}")


def _open_files() -> Check:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    says = f"open files: at most {limit} a process"
    if limit < FILES_ERROR:
        return Check(name="open_files", verdict="error", says=says, try_="ulimit -n 4096")
    if limit < FILES_WARN:
        says += "; many clients need more"
        return Check(name="open_files", verdict="warn", says=says, try_="ulimit -n 4096")
    return Check(name="open_files", verdict="ok", says=says)


# -------------------------------------------------------------------------------------------- disk


def _state(environ: Mapping[str, str]) -> Iterator[Check]:
    """Look at the directory of all clusters, or at the one in which it will be made."""
    root = state_root(environ)
    there = root
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        says = f"{there} is not writable, and clusters live in {root}"
        yield Check(name="state", verdict="error", says=says, try_="set ZRAFT_HOME")
        return
    free_bytes = _free_bytes(there)
    says = f"{root}: {free_bytes >> 20} MiB free"
    verdict: Verdict = "ok"
    if free_bytes < SPACE_WARN_BYTES:
        verdict = "error" if free_bytes < SPACE_ERROR_BYTES else "warn"
    elif (kind := file_system(there, Path("/proc/self/mountinfo").read_text())) in VOLATILE:
        verdict = "warn"
        says += f", on {kind}: writes survive a crash of processes, not of the machine"
    yield Check(name="state", verdict=verdict, says=says, try_="" if verdict == "ok" else "--dir")
    yield _sync_latency(there)


def _free_bytes(path: Path) -> int:
    seen = os.statvfs(path)
    return seen.f_bavail * seen.f_frsize


def _sync_latency(directory: Path) -> Check:
    """Measure what a write of the log costs: 4 KiB into a filled file, and fdatasync."""
    try:
        times_us = measure_syncs(directory, SYNCS)
    except OSError as error:
        says = f"{directory}: {error.strerror}"
        return Check(name="fsync", verdict="error", says=says, try_="another disk: --dir DIR")
    p50_ms = times_us[len(times_us) // 2] / 1000
    p99_ms = times_us[(len(times_us) - 1) * 99 // 100] / 1000
    timing = Config().timing
    says = f"fsync p50 {p50_ms:.1f}ms p99 {p99_ms:.1f}ms ({SYNCS} × 4 KiB)"
    if p99_ms > timing.election_min_ms:
        says += f", above the election timeout of {timing.election_min_ms}ms: leaders will change"
        return Check(name="fsync", verdict="error", says=says, try_="a faster disk: --dir DIR")
    if p99_ms > timing.heartbeat_ms / 2:
        says += f", above half a heartbeat ({timing.heartbeat_ms / 2:.0f}ms)"
        return Check(name="fsync", verdict="warn", says=says, try_="longer timeouts: [timing]")
    return Check(name="fsync", verdict="ok", says=says)


def measure_syncs(directory: Path, count: int) -> list[int]:
    """Return how long `count` synced writes took, in µs, sorted. OSError as the disk says."""
    block = b"\xa5" * SYNC_BYTES
    times_us = []
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".zraft-doctor-") as file:
        fd = file.fileno()
        os.pwrite(fd, bytes(SYNC_BYTES * count), 0)
        os.fsync(fd)
        for number in range(count):
            started_ns = clock.monotonic_ns()
            os.pwrite(fd, block, number * SYNC_BYTES)
            os.fdatasync(fd)
            times_us.append((clock.monotonic_ns() - started_ns) // 1000)
    return sorted(times_us)


# ----------------------------------------------------------------------------------------- sockets


def _run_directory(environ: Mapping[str, str]) -> Iterator[Check]:
    root = runtime_root(environ)
    try:
        longest = socket_dir(state_root(environ) / "default", environ) / "n99.client"
    except ZraftError as error:
        yield Check(name="sockets", verdict="error", says=error.why, try_=", ".join(error.try_))
        return
    length = len(os.fsencode(longest))
    says = f"socket path {length}/{MAX_SOCKET_PATH_BYTES} bytes"
    try:
        seen = root.lstat()
    except FileNotFoundError:
        yield Check(name="sockets", verdict="ok", says=says)
        return
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or seen.st_mode & 0o077:
        says = f"{root} is not a directory of yours alone"
        yield Check(name="sockets", verdict="error", says=says, try_=f"chmod 700 {root}")
        return
    yield Check(name="sockets", verdict="ok", says=says)


# --------------------------------------------------------------------------------------- leftovers


def check_clusters(environ: Mapping[str, str]) -> list[Check]:
    """Look at what each cluster of this user has left behind: processes, sockets, files."""
    root = state_root(environ)
    names = sorted(os.listdir(root)) if root.is_dir() else []
    checks: list[Check] = []
    for name in names:
        try:
            link = cluster_dir(name, environ)
            cluster = read_cluster_file(link)
        except NotRunning:
            continue
        except ZraftError as error:
            if not name.startswith("."):
                checks.append(Check(name=f"cluster {name}", verdict="error", says=error.what))
            continue
        checks += _leftovers(Path(os.path.realpath(link)), cluster, name)
    return checks


def _leftovers(directory: Path, cluster: ClusterFile, name: str) -> Iterator[Check]:
    title = f"cluster {name}"
    owners = {node: find_owner(directory / node) for node in cluster.names}
    running = {node: owner for node, owner in owners.items() if owner.kind == "ours"}
    alive = bool(running) or find_supervisor(directory) is not None
    told = False
    for node, owner in owners.items():
        if owner.kind == "foreign":
            told = True
            says = f"process {owner.pid}, which is no node, holds the lock of {node}"
            yield Check(name=title, verdict="error", says=says, try_=f"look at {owner.pid}")
        if not (directory / node).is_dir():
            told = True
            says = f"the data of {node} is gone"
            yield Check(name=title, verdict="error", says=says, try_="replace that member")
    if running and find_supervisor(directory) is None:
        told = True
        pids = ", ".join(f"{node} (pid {owner.pid})" for node, owner in running.items())
        says = f"nodes without a supervisor: {pids}"
        try_ = f"zraft cluster up -C {name}, which takes them over, or cluster down"
        yield Check(name=title, verdict="warn", says=says, try_=try_)
    with contextlib.suppress(ZraftError):
        state = read_state(directory)
        for node, record in (state.nodes if state is not None else {}).items():
            if record.fatal and owners.get(node) is not None:
                told = True
                says = f"{node} was given up: {record.fatal}"
                yield Check(name=title, verdict="error", says=says, try_=f"node inspect {node}")
    files = [] if alive else [*_sockets(cluster), *_interrupted(directory, cluster)]
    if files:
        told = True
        says = f"left behind: {', '.join(map(str, files[:4]))}{' …' if len(files) > 4 else ''}"
        try_ = f"zraft cluster up -C {name} clears them away"
        yield Check(name=title, verdict="warn", says=says, try_=try_)
    if not told:
        state_text = f"{len(running)} of {len(owners)} nodes run" if alive else "stopped"
        yield Check(name=title, verdict="ok", says=f"{state_text}, nothing left behind")


def _sockets(cluster: ClusterFile) -> list[Path]:
    directory = Path(cluster.socket_dir)
    with contextlib.suppress(OSError):
        return sorted(path for path in directory.iterdir() if path.is_socket())
    return []


def _interrupted(directory: Path, cluster: ClusterFile) -> list[Path]:
    """Return what a crash half-way leaves: temporary names of our own making."""
    found = [path for path in directory.glob("*.tmp") if path.is_file()]
    found += [directory / f".{name}.new" for name in cluster.names]
    for name in cluster.names:
        found += (directory / name).glob("*.tmp")
        found += (directory / name / "snap").glob("*.tmp")
    return sorted(path for path in found if path.exists())
