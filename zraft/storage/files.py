"""The few calls of the operating system that durable code makes, behind one small protocol.

`OsFiles` is the real thing: on the way of a sync, its methods *are* the functions of `os`. A
simulated disk (`zraft.testing.disk`) has the same methods, loses what was not synced, and stops at
any step.

Nothing here retries. A sync that failed once may report success the second time for pages that the
kernel has dropped, so every OSError goes up to the caller, who stops.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700
SUFFIX_TEMPORARY = ".tmp"


class Files(Protocol):
    """What log, snapshots and member directory need of a file system. All raise OSError."""

    def open(self, path: Path, flags: int, mode: int = PRIVATE_FILE) -> int:
        """Open as `os.open` does; the descriptor is not inherited."""
        ...

    def close(self, fd: int) -> None:
        """Close a descriptor; says nothing about durability."""
        ...

    def read(self, path: Path) -> bytes:
        """Return the whole content of a file."""
        ...

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """Return at most `count` bytes from `offset`; fewer are no error, none is the end."""
        ...

    def size(self, fd: int) -> int:
        """Return how many bytes a file has."""
        ...

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write at `offset`; return how many bytes were taken, which may be fewer than given."""
        ...

    def start_writing(self, fd: int, offset: int, count: int) -> None:
        """Let the disk begin with bytes that were written, so that a later sync finds them there.

        Waits for little and promises nothing; may do nothing at all. Raises nothing.
        """
        ...

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Cut a file to its first bytes."""
        ...

    def fdatasync(self, fd: int) -> None:
        """Make the bytes of a file durable, and its size if that is needed to read them."""
        ...

    def fsync(self, fd: int) -> None:
        """Make a file, or the names in a directory, durable."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Give `source` the name `target`, atomically, replacing what had it."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove the name of a file."""
        ...

    def mkdir(self, path: Path, mode: int = PRIVATE_DIRECTORY) -> None:
        """Make a directory."""
        ...

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        ...

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a directory, in no order."""
        ...


def _open(path: Path, flags: int, mode: int = PRIVATE_FILE) -> int:
    return os.open(path, flags | os.O_CLOEXEC, mode)


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _size(fd: int) -> int:
    return os.fstat(fd).st_size


def _start_writing(fd: int, offset: int, count: int) -> None:
    # Linux begins to write dirty pages that it is told are not needed; it drops clean ones only. A
    # file system that takes no advice is no broken disk: the sync says whether the bytes are there.
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, offset, count, os.POSIX_FADV_DONTNEED)


def _start_nothing(fd: int, offset: int, count: int) -> None:
    pass


def _mkdir(path: Path, mode: int = PRIVATE_DIRECTORY) -> None:
    path.mkdir(mode)


class OsFiles:
    """The real file system."""

    open = staticmethod(_open)
    close = staticmethod(os.close)
    read = staticmethod(_read)
    pread = staticmethod(os.pread)
    size = staticmethod(_size)
    pwrite = staticmethod(os.pwrite)
    start_writing = staticmethod(_start_writing if hasattr(os, "posix_fadvise") else _start_nothing)
    truncate = staticmethod(os.ftruncate)
    fdatasync = staticmethod(os.fdatasync)
    fsync = staticmethod(os.fsync)
    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)
    mkdir = staticmethod(_mkdir)
    rmdir = staticmethod(os.rmdir)
    listdir = staticmethod(os.listdir)


OS_FILES: Files = OsFiles()


def read_exactly(files: Files, fd: int, count: int, offset: int) -> bytes:
    """Return `count` bytes from `offset`, however many short reads it takes; fewer at the end.

    Raises:
        OSError: the disk refused.
    """
    data = files.pread(fd, count, offset)
    while 0 < len(data) < count:
        more = files.pread(fd, count - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def write_all(files: Files, fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`, however many short writes it takes. Not synced.

    Raises:
        OSError: the disk refused; a part of `data` may be in the file.
    """
    written = files.pwrite(fd, data, offset)
    if written == len(data):
        return
    rest = memoryview(data)
    while written < len(data):
        count = files.pwrite(fd, rest[written:], offset + written)
        if count <= 0:
            raise OSError(f"a write of {len(data) - written} bytes took none")
        written += count


def sync_directory(files: Files, directory: Path) -> None:
    """Make the names in `directory` durable: after this a new or renamed file stays there."""
    fd = files.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.fsync(fd)
    finally:
        files.close(fd)


def write_new_file(files: Files, path: Path, data: bytes) -> None:
    """Make a file that holds `data`, synced. Its name is durable after `sync_directory`."""
    fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE)
    try:
        write_all(files, fd, data, 0)
        files.fsync(fd)
    finally:
        files.close(fd)


def replace_file(files: Files, path: Path, data: bytes) -> None:
    """Make `path` hold `data`, durably; at every moment of a crash it holds the old or the new.

    Write, sync, rename, sync the directory (never in place: a cut half-way loses both).
    """
    temporary = path.with_name(path.name + SUFFIX_TEMPORARY)
    write_new_file(files, temporary, data)
    files.rename(temporary, path)
    sync_directory(files, path.parent)


def remove_tree(files: Files, directory: Path) -> None:
    """Remove a directory with all that is in it. Not synced, and repeatable."""
    for name in files.listdir(directory):
        child = directory / name
        try:
            files.listdir(child)
        except NotADirectoryError:
            files.unlink(child)
        else:
            remove_tree(files, child)
    files.rmdir(directory)
