"""The directory of one member: who it is, that one process uses it, and how often it was started.

    member.json   identity and base configuration; written once, with the directory
    wal/          the log
    snap/         snapshots
    lock          flock of the process that uses the directory, held for its life
    boot.json     the boot counter, `incarnation`

A member and its directory are made together, and only together: a member whose directory is gone or
empty has forgotten its votes, so it must not simply start with a new one (exit 65). `create_member`
builds the directory under another name and renames it, so it is there whole or not at all, and
may be repeated after a crash.

The lock is a flock and no file content: it ends with its process, however that ended, and
/proc/locks names the holder also when it is stopped and can't answer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from zraft.core.model import NOBODY, Configuration, MemberId
from zraft.errors import CorruptLogError, ForeignDataError, LockedError, StorageError
from zraft.storage.base import Identity
from zraft.storage.files import (
    OS_FILES,
    PRIVATE_FILE,
    Files,
    remove_tree,
    replace_file,
    sync_directory,
    write_new_file,
)
from zraft.storage.wal import Wal

FORMAT = 1
MEMBER_FILE = "member.json"
BOOT_FILE = "boot.json"
LOCK_FILE = "lock"
WAL_DIRECTORY = "wal"
SNAPSHOT_DIRECTORY = "snap"
_HOW_TO_GO_ON = (
    "put this member's own data directory back",
    "or replace the member by a new one: the other nodes hold its data",
)


class NamedMember(NamedTuple):
    """A member of the base configuration: its label and its id."""

    name: str
    member_id: MemberId


class Member(NamedTuple):
    """A member as its directory describes it."""

    directory: Path
    name: str
    member_id: MemberId
    cluster: str
    cluster_id: int
    members: tuple[NamedMember, ...]

    @property
    def identity(self) -> Identity:
        """What every segment of the log must agree with."""
        return Identity(self.cluster_id, self.member_id)

    @property
    def configuration(self) -> Configuration:
        """The base configuration, index 0: the same in every member's directory."""
        return Configuration(tuple(sorted(member.member_id for member in self.members)))

    @property
    def wal_directory(self) -> Path:
        """Where the log is."""
        return self.directory / WAL_DIRECTORY

    @property
    def snapshot_directory(self) -> Path:
        """Where the snapshots are; made when it is needed."""
        return self.directory / SNAPSHOT_DIRECTORY


class _MemberRecord(msgspec.Struct, frozen=True):
    name: str
    member_id: str


class _Format(msgspec.Struct, frozen=True):
    format: int


class _MemberFile(msgspec.Struct, frozen=True):
    format: int
    cluster: str
    cluster_id: str
    name: str
    member_id: str
    configuration: list[_MemberRecord]


class _BootFormat(msgspec.Struct, frozen=True):
    format: int = FORMAT  # files of the first versions have none


class _BootFile(msgspec.Struct, frozen=True):
    incarnation: int
    format: int = FORMAT


def new_id() -> int:
    """Return 64 random bits, never 0: a new cluster id or member id."""
    return secrets.randbits(64) or 1


# ------------------------------------------------------------------------------------------ create


def create_member(
    parent: Path,
    name: str,
    *,
    member_id: MemberId,
    cluster: str,
    cluster_id: int,
    members: Sequence[NamedMember],
    seed: Callable[[Member, Path], None] | None = None,
    files: Files = OS_FILES,
) -> Member:
    """Make the directory `parent/name` with an empty log; durable when this returns.

    `seed(member, path)` puts a state into it, at `path`, before it has its name.

    Repeatable: what an interrupted call left is removed, and a directory that is already this
    member's is left as it is. Only for a member that was never started.

    Raises:
        ForeignDataError: the directory exists and holds something else.
        StorageError: the disk refused.
    """
    assert member_id != NOBODY
    assert _is_consistent(name, member_id, members)
    member = Member(parent / name, name, member_id, cluster, cluster_id, tuple(members))
    temporary = parent / f".{name}.new"
    try:
        names = _names(files, member.directory)
        if names:
            return _same_member(member, files=files)
        if _names(files, temporary) is not None:
            remove_tree(files, temporary)
        files.mkdir(temporary)
        write_new_file(files, temporary / MEMBER_FILE, _encode(member))
        Wal.create(temporary / WAL_DIRECTORY, member.identity, member.configuration, files=files)
        if seed is not None:
            seed(member, temporary)
        sync_directory(files, temporary)
        files.rename(temporary, member.directory)  # also over an empty directory
        sync_directory(files, parent)
    except OSError as error:
        raise _refused("make", member.directory, error) from error
    return member


def _same_member(member: Member, *, files: Files) -> Member:
    found = open_member(member.directory, files=files)
    if found != member:
        raise ForeignDataError(
            f"{member.directory} is the directory of another member",
            why=f"it belongs to {_describe(found)}, and {_describe(member)} was to be made",
            try_="move it away, or bring the cluster up under another name",
        )
    sync_directory(files, member.directory.parent)  # the call that made it may have died before
    return found


def _encode(member: Member) -> bytes:
    record = _MemberFile(
        FORMAT,
        member.cluster,
        f"{member.cluster_id:016x}",
        member.name,
        f"{member.member_id:016x}",
        [_MemberRecord(name, f"{member_id:016x}") for name, member_id in member.members],
    )
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def _describe(member: Member) -> str:
    return f"{member.name} ({member.member_id:016x}) of cluster {member.cluster_id:016x}"


# -------------------------------------------------------------------------------------------- open


def open_member(
    directory: Path, *, expect: Identity | None = None, files: Files = OS_FILES
) -> Member:
    """Return the member that lives in `directory`; `expect`: who it has to be. Changes nothing.

    Raises:
        ForeignDataError: missing, empty, incomplete, unreadable or another member's directory.
        StorageError: the disk refused to be read.
    """
    try:
        names = _names(files, directory)
        if names is None:
            raise _foreign(f"{directory} does not exist", "the data of this member is gone")
        if not names:
            raise _foreign(f"{directory} is empty", "the data of this member was wiped")
        if MEMBER_FILE not in names:
            why = f"it has no {MEMBER_FILE}"
            raise _foreign(f"{directory} is not the directory of a member", why)
        if WAL_DIRECTORY not in names:
            why = "a member without its log has forgotten its votes, and must not vote again"
            raise _foreign(f"{directory} has no {WAL_DIRECTORY}/", why)
        data = files.read(directory / MEMBER_FILE)
    except OSError as error:
        raise _refused("read", directory, error) from error
    member = _decode(directory, data)
    if expect is not None and member.identity != expect:
        raise _foreign(
            f"{directory} belongs to {_describe(member)}",
            f"member {expect.member_id:016x} of cluster {expect.cluster_id:016x} was to start",
        )
    return member


def _decode(directory: Path, data: bytes) -> Member:
    path = directory / MEMBER_FILE
    try:
        found = msgspec.json.decode(data, type=_Format).format  # first: the rest may look otherwise
        if found > FORMAT:
            raise _newer(path, found)
        record = msgspec.json.decode(data, type=_MemberFile)
        members = tuple(NamedMember(m.name, _parse_id(m.member_id)) for m in record.configuration)
        member = Member(
            directory,
            record.name,
            _parse_id(record.member_id),
            record.cluster,
            _parse_id(record.cluster_id),
            members,
        )
    except (msgspec.DecodeError, ValueError) as error:
        raise _foreign(f"{path} is not readable", str(error)) from error
    if not _is_consistent(member.name, member.member_id, members):
        raise _foreign(f"{path} contradicts itself", "its configuration names the member otherwise")
    return member


def _is_consistent(name: str, member_id: MemberId, base: Sequence[NamedMember]) -> bool:
    """Return whether a base configuration, if it has this member at all, has it by this name.

    The name may be another one's: of a member that this one replaces.
    """
    return all(one.name == name for one in base if one.member_id == member_id)


def _newer(path: Path, found: int) -> ForeignDataError:
    return ForeignDataError(
        f"{path} has format {found}",
        why=f"this version of zraft reads formats up to {FORMAT}",
        try_="start it with the version of zraft that wrote it",
    )


def _parse_id(text: str) -> int:
    if len(text) != 16:
        raise ValueError(f'"{text}" is not an id of 16 hex digits')
    return int(text, 16)


def _names(files: Files, directory: Path) -> list[str] | None:
    """Return the names in a directory, None when there is no such directory."""
    try:
        return files.listdir(directory)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise _foreign(f"{directory} is not a directory", "a file has its name") from error


def _foreign(what: str, why: str) -> ForeignDataError:
    return ForeignDataError(what, why=why, try_=_HOW_TO_GO_ON)


def _refused(action: str, path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot {action} {path}",
        why=error.strerror or str(error),
        try_="check that the directory is yours, writable, and on a disk with free space",
    )


# -------------------------------------------------------------------------------------------- lock


def lock(directory: Path) -> int:
    """Take the lock of `directory` for the life of this process; return the descriptor to keep.

    The descriptor is not inherited by programs that are executed. Closing it ends the lock.

    Raises:
        LockedError: another process holds it; names its pid.
        StorageError: the disk refused.
    """
    path = directory / LOCK_FILE
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    except OSError as error:
        raise _refused("lock", directory, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno != errno.EWOULDBLOCK:
            raise _refused("lock", directory, error) from error
        raise _locked(path) from error
    return fd


def _locked(path: Path) -> LockedError:
    holder = lock_holder(path)
    who = "another process" if holder is None else f"process {holder}"
    return LockedError(
        f"{path.parent} is in use by {who}",
        why=f"{who} holds the lock on {path}",
        try_="stop it first; two processes on one log would destroy it",
    )


def lock_holder(path: Path) -> int | None:
    """Return the pid of the process that holds a flock on `path`, None when there is none.

    It also finds one that is stopped. The kernel's own table is asked, so nothing is locked or
    waited for. Where a file system (overlayfs, btrfs) shows another device number to `stat` than
    the kernel's table has, the holder is known by having the file open.
    """
    try:
        file = path.stat()
    except OSError:
        return None
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    others: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if len(fields) < 6 or fields[1] != "FLOCK" or int(fields[4]) <= 0:
            continue  # "->" in the second place: one that waits
        if fields[5] == f"{device}:{file.st_ino}":
            return int(fields[4])
        if not fields[5].startswith(f"{device}:"):
            others.add(int(fields[4]))
    return next((pid for pid in sorted(others) if _has_open(pid, file)), None)


def _has_open(pid: int, file: os.stat_result) -> bool:
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.path.samestat(link.stat(), file):
                    return True
    except OSError:  # gone, or not ours to look at
        return False
    return False


# -------------------------------------------------------------------------------------------- boot


def next_incarnation(directory: Path, *, files: Files = OS_FILES) -> int:
    """Count one more start of this directory, durably, and return the count: 1, 2, 3, …

    Raises:
        CorruptLogError: boot.json is not what was written.
        ForeignDataError: a newer version wrote it.
        StorageError: the disk refused.
    """
    path = directory / BOOT_FILE
    incarnation = read_incarnation(directory, files=files) + 1
    try:
        replace_file(files, path, msgspec.json.encode(_BootFile(incarnation)) + b"\n")
    except OSError as error:
        raise _refused("write", path, error) from error
    return incarnation


def read_incarnation(directory: Path, *, files: Files = OS_FILES) -> int:
    """Return how often the directory was started, 0 for never. Changes nothing.

    Raises:
        CorruptLogError: boot.json is not what was written.
        ForeignDataError: a newer version wrote it.
        StorageError: the disk refused.
    """
    path = directory / BOOT_FILE
    try:
        data = files.read(path)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise _refused("read", path, error) from error
    return _decode_boot(path, data)


def _decode_boot(path: Path, data: bytes) -> int:
    try:
        found = msgspec.json.decode(data, type=_BootFormat).format  # first: see `_decode`
        if found > FORMAT:
            raise _newer(path, found)
        boot = msgspec.json.decode(data, type=_BootFile)
        if boot.incarnation < 1:
            raise ValueError(f"{boot.incarnation} is no count")
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptLogError(
            "no boot counter", path=str(path), offset=0, why=str(error), try_=_HOW_TO_GO_ON
        ) from error
    return boot.incarnation
