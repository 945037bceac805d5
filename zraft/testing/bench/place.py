"""Where a measurement keeps its files, and that nothing of it is left afterwards.

Durable writes are measured on a disk: a directory in memory makes every number a lie. Sockets live
elsewhere, because their paths must be short. Both directories are removed at the end, however the
end came: SIGTERM and SIGHUP are turned into an exception, as Ctrl-C is. A kill -9 leaves files, but
no process of a cluster that `open_cluster` started and nobody started again (bar 1 does).
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import msgspec
import psutil

import zraft
from zraft import __version__
from zraft.client.control import Cluster, Foreground, Settings, UpSpec
from zraft.errors import ConfigError, NotRunning

MEMORY = frozenset({"tmpfs", "ramfs"})
NAME = "bench"
ENDING = (signal.SIGTERM, signal.SIGHUP)


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What numbers depend on and no clock shows."""

    zraft: str
    python: str
    kernel: str
    cpus: int
    directory: str
    file_system: str


class Place(NamedTuple):
    """The directories of one measurement."""

    sockets: Path
    data: Path
    file_system: str

    def environ(self) -> dict[str, str]:
        """Return the environment of clusters that live here."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ZRAFT_")}
        return {**kept, "ZRAFT_HOME": str(self.data / "h"), "XDG_RUNTIME_DIR": str(self.sockets)}

    def make(self, name: str) -> Path:
        """Return a new, empty directory for data."""
        return Path(tempfile.mkdtemp(prefix=name, dir=self.data))


def describe_host(place: Place) -> Host:
    """Return what is to be printed with every number."""
    return Host(
        zraft=__version__,
        python=platform.python_version(),
        kernel=platform.release(),
        cpus=len(os.sched_getaffinity(0)),
        directory=str(place.data.parent),
        file_system=place.file_system,
    )


def file_system(path: Path) -> str:
    """Return the type of the file system that `path` is on."""
    where = os.path.realpath(path)
    found = [
        part
        for part in psutil.disk_partitions(all=True)
        if where == part.mountpoint or where.startswith(part.mountpoint.rstrip("/") + "/")
    ]
    return max(found, key=lambda part: len(part.mountpoint)).fstype if found else "unknown"


def find_disk(wanted: str | None, environ: Mapping[str, str]) -> Path:
    """Return a directory on a disk: the wanted one, else $TMPDIR, else `build/` of the checkout.

    Raises:
        ConfigError: the wanted one, or all of them, are in memory; nothing was made there.
    """
    if wanted is not None:
        candidates = [Path(wanted)]
    else:
        candidates = [Path(environ["TMPDIR"])] if environ.get("TMPDIR") else []
        candidates.append(_build_directory())
    for path in candidates:
        if file_system(path) not in MEMORY:
            path.mkdir(parents=True, exist_ok=True)
            return path.resolve()
    raise ConfigError(
        f"{candidates[-1]} is not on a disk",
        why=f"it is on {file_system(candidates[-1])}, where nothing is durable",
        try_="--dir DIR, on a disk",
    )


def _build_directory() -> Path:
    """Return `build/` of the checkout that this runs from; installed, the working directory's."""
    root = Path(zraft.__file__).parents[1]
    return (root if (root / "pyproject.toml").is_file() else Path()) / "build"


@contextlib.contextmanager
def open_place(wanted: str | None) -> Iterator[Place]:
    """Make the directories, and remove them afterwards."""
    disk = find_disk(wanted, os.environ)
    with _signals_raise():
        sockets = Path(tempfile.mkdtemp(prefix="zb", dir="/tmp"))
        try:
            data = Path(tempfile.mkdtemp(prefix="zraft-bench-", dir=disk))
            try:
                (data / "h").mkdir(mode=0o700)
                yield Place(sockets, data, file_system(data))
            finally:
                shutil.rmtree(data, ignore_errors=True)
        finally:
            shutil.rmtree(sockets, ignore_errors=True)


@contextlib.contextmanager
def open_cluster(
    place: Place, nodes: int, *, settings: Settings | None = None
) -> Iterator[Cluster]:
    """Bring a new cluster up, with a leader; afterwards it is stopped and its data deleted.

    Its processes end with this one, even if that is killed.
    """
    environ = place.environ()
    supervisor: Foreground | None = None
    try:
        supervisor = _bring_up(nodes, settings, environ)
        yield Cluster.open(NAME, environ)
    finally:
        with contextlib.suppress(NotRunning):
            Cluster.open(NAME, environ).down(purge=True)
        if supervisor is not None:
            supervisor.wait()


def _bring_up(
    nodes: int, settings: Settings | None, environ: Mapping[str, str]
) -> Foreground | None:
    """Start a cluster that ends with this process; signals stay with who had them before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    try:
        spec = UpSpec(name=NAME, nodes=nodes, settings=settings, foreground=True)
        return Cluster.up(spec, environ).foreground
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def cpu_seconds(pids: list[int]) -> float:
    """Return the processor time that processes have used so far; those that ended count as 0."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        sys.exit(128 + number)

    before = {number: signal.signal(number, stop) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
