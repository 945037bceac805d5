"""The directories of a cluster: made here and nowhere else, private, and removed here.

    STATE/<name>              the cluster's directory, or a link to where `--dir` or `--ephemeral`
    STATE/<name>/supervisor   put it
    RUN/zraft/<8 hex>         its sockets

Every directory is ours, closed to others (0700) and no link; anything else is refused (78), because
who can write there can pretend to be a node. What a disk refuses is a StorageError (74). Removing
takes away what we made and nothing else: in a directory given with `--dir` other files stay.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from zraft.client.record import LockFile, supervisor_dir
from zraft.errors import ConfigError, ControlError, NotRunning, StorageError
from zraft.paths import (
    ENDPOINT_KINDS,
    ClusterFile,
    check_cluster_name,
    read_cluster_file,
    runtime_root,
)
from zraft.procfs import VOLATILE, file_system
from zraft.storage.directory import LOCK_FILE
from zraft.storage.files import OS_FILES, PRIVATE_DIRECTORY, write_new_file

EPHEMERAL_PREFIX = "zraft-ephemeral-"


class Place(NamedTuple):
    """Where a cluster is: its entry in STATE and the real directory behind it."""

    link: Path
    directory: Path

    @property
    def name(self) -> str:
        """Return the cluster's name."""
        return self.link.name


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a StorageError that names the path."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise StorageError(
            f"{where} cannot be used",
            why=error.strerror or str(error),
            try_="check disk, owner and permissions, or choose another place: --dir DIR",
        ) from error


def make_private(path: Path) -> None:
    """Make a directory that is ours alone, or check that it is.

    Raises:
        ConfigError: it is a link, no directory, somebody else's, or open to others (exit 78).
        StorageError: the disk refused (exit 74).
    """
    with disk_errors(path):
        path.parent.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=PRIVATE_DIRECTORY)
        seen = path.lstat()
    if stat.S_ISLNK(seen.st_mode) or not stat.S_ISDIR(seen.st_mode):
        raise _not_private(path, "it is not a directory", f"move {path} away")
    if seen.st_uid != os.getuid():
        raise _not_private(path, f"it belongs to user {seen.st_uid}", "choose another place")
    if seen.st_mode & 0o077:
        mode = stat.S_IMODE(seen.st_mode)
        raise _not_private(path, f"its mode {mode:04o} lets others in", f"chmod 700 {path}")


def _not_private(path: Path, why: str, try_: str) -> ConfigError:
    return ConfigError(f"{path} cannot hold a cluster's files", why=why, try_=try_)


def _make_root(path: Path) -> None:
    """Make STATE, which may be a directory of the user's own making: nobody else may write it."""
    with disk_errors(path):
        path.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        seen = path.stat()
    if seen.st_uid != os.getuid() or seen.st_mode & 0o022:
        raise _not_private(path, "others can write there", "set ZRAFT_HOME to a directory of yours")


def make_place(link: Path, *, data: Path | None, ephemeral: bool) -> Place:
    """Return where the cluster is, making what is missing. Repeatable, also after a crash.

    Args:
        link: STATE/<name>.
        data: where the user wants the data (`--dir`), None for right here.
        ephemeral: a new cluster gets a temporary directory.

    Raises:
        ControlError: the cluster is somewhere else already, or `data` holds other things.
        ConfigError, StorageError: see `make_private`.
    """
    check_cluster_name(link.name)
    _make_root(link.parent)
    if link.is_symlink() and _is_lost_ephemeral(link):
        with disk_errors(link):
            link.unlink()
    if not os.path.lexists(link):
        _make_new(link, data=data, ephemeral=ephemeral)
    place = Place(link, _target(link))
    if data is not None and Path(os.path.realpath(data)) != place.directory:
        raise ControlError(
            f'cluster "{place.name}" is in {place.directory}',
            why=f"it cannot be in {data} as well",
            try_=(f"zraft cluster up -C {place.name}", "or another name: zraft cluster up -C NAME"),
        )
    make_private(place.directory)
    make_private(supervisor_dir(place.directory))
    return place


def _make_new(link: Path, *, data: Path | None, ephemeral: bool) -> None:
    if ephemeral:
        with disk_errors(Path(tempfile.gettempdir())):
            target = Path(tempfile.mkdtemp(prefix=EPHEMERAL_PREFIX))
    elif data is not None:
        target = Path(os.path.realpath(data))
        make_private(target)
        _check_unused(target, link.name)
    else:
        make_private(link)
        return
    try:
        with disk_errors(link):
            link.symlink_to(target)
    except StorageError as error:
        if ephemeral:
            target.rmdir()
        if not isinstance(error.__cause__, FileExistsError):
            raise  # somebody else made it in the same moment: theirs counts


def _check_unused(target: Path, name: str) -> None:
    found = sorted(entry for entry in os.listdir(target) if entry != "supervisor")
    if found and "cluster.toml" not in found:
        raise ControlError(
            f"{target} is in use",
            why=f"it holds {', '.join(found[:3])}, which is not a cluster's",
            try_=f"an empty or new directory: zraft cluster up -C {name} --dir NEW",
        )


def _is_lost_ephemeral(link: Path) -> bool:
    target = Path(os.readlink(link))
    return target.name.startswith(EPHEMERAL_PREFIX) and not target.exists()


def _target(link: Path) -> Path:
    target = Path(os.path.realpath(link))
    if not target.exists():
        raise StorageError(
            f"{link} leads to {target}, which is not there",
            why="the directory was moved or deleted, or its disk is not mounted",
            try_=("mount it again", f"or forget the cluster: rm {link}"),
        )
    return target


def find_cluster(directory: Path) -> ClusterFile | None:
    """Return the cluster file in a directory, None when there is none."""
    try:
        return read_cluster_file(directory)
    except NotRunning:
        return None


def write_lock_file(place: Place, content: LockFile) -> None:
    """Say in the lock file how to reach us. Rewritten in place: its inode carries the lock."""
    path = supervisor_dir(place.directory) / LOCK_FILE
    write_new_file(OS_FILES, path, msgspec.json.encode(content) + b"\n")


def make_socket_dir(path: Path, environ: Mapping[str, str]) -> None:
    """Make the directory of the sockets, private, below the user's run directory."""
    make_private(runtime_root(environ))
    make_private(path)


def remove_sockets(cluster: ClusterFile) -> None:
    """Remove every socket of a cluster that has no process any more, and their directory."""
    directory = Path(cluster.socket_dir)
    for name in cluster.names:
        remove_sockets_of(cluster, name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(directory / "s.ctl")
    with contextlib.suppress(OSError):  # there are files that we did not make: they stay
        directory.rmdir()


def remove_sockets_of(cluster: ClusterFile, name: str) -> None:
    """Remove the sockets of a node that has no process any more."""
    for kind in ENDPOINT_KINDS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(Path(cluster.socket_dir) / f"{name}.{kind}")


def remove_data(place: Place, cluster: ClusterFile | None) -> None:
    """Delete everything that was made for a cluster, and its entry in STATE.

    Nothing of it may run. The cluster file goes first: what is left by a crash half-way is no
    cluster any more. With `cluster` None there was none yet, and only what a supervisor needs goes.
    """
    if cluster is None and (place.directory / "cluster.toml").exists():
        return
    with disk_errors(place.directory):
        for name in ("cluster.toml", "cluster.toml.tmp"):
            (place.directory / name).unlink(missing_ok=True)
        names = cluster.names if cluster is not None else []
        names += [member.data for member in cluster.former if member.data] if cluster else []
        for name in [*names, *(f".{name}.new" for name in names)]:
            if (place.directory / name).is_dir():
                shutil.rmtree(place.directory / name)
        shutil.rmtree(supervisor_dir(place.directory), ignore_errors=True)
        if place.link.is_symlink():
            place.link.unlink()
        with contextlib.suppress(OSError):  # other files of the user's are in there: they stay
            place.directory.rmdir()


def durability_warning(place: Place, *, ephemeral: bool) -> str | None:
    """Return why "durable" does not hold there, None when it does or nobody expects it to."""
    kind = file_system(place.directory, Path("/proc/self/mountinfo").read_text())
    if ephemeral or kind not in VOLATILE:
        return None
    return (
        f"{place.directory} is on {kind}: writes survive a crash of processes, "
        "not of the machine or its container; --dir DIR puts the data elsewhere"
    )
