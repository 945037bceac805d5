"""The steps of snapshots on disk: names in their directory, and a file that grows.

A step that the disk refuses becomes a StorageError. It ends the file that was being written, and
nothing else: unlike the log, such a file holds nothing that was promised.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from zraft.errors import StorageError
from zraft.storage.files import (
    PRIVATE_FILE,
    SUFFIX_TEMPORARY,
    Files,
    sync_directory,
    write_all,
)
from zraft.storage.snapshot_file import parse_snapshot_name

SYNC_BYTES = 1 << 20  # written between two syncs
FREE_BYTES = 4 << 20  # freed at once: 2 ms. A file of 125 MB that was deleted at once took 40 to 65

_WHAT_TO_TRY = {
    errno.ENOSPC: "free some space on this disk",
    errno.EDQUOT: "raise the quota",
    errno.EACCES: "check who owns the data directory",
    errno.EROFS: "mount the file system writable",
}


def refused(action: str, path: Path, error: OSError) -> StorageError:
    """Return the error for a step that the disk refused."""
    try_ = _WHAT_TO_TRY.get(error.errno or 0, "check the disk")
    return StorageError(f"cannot {action} {path}", why=error.strerror or str(error), try_=try_)


class SnapshotDirectory:
    """The names in `snap/`. All methods raise StorageError."""

    def __init__(self, directory: Path, files: Files) -> None:
        self.directory = directory
        self.files = files

    def names(self) -> list[str]:
        """Return the names in the directory, which is made, durably, when it is not there."""
        try:
            try:
                return self.files.listdir(self.directory)
            except FileNotFoundError:
                self.files.mkdir(self.directory)
                sync_directory(self.files, self.directory.parent)
                return []
        except OSError as error:
            raise refused("list", self.directory, error) from error

    def snapshots(self) -> list[Path]:
        """Return the files that have a snapshot's name, oldest first."""
        names = self.names()
        found = sorted((key, name) for name in names if (key := parse_snapshot_name(name)))
        return [self.directory / name for _, name in found]

    def delete_temporary(self) -> None:
        """Delete what a crash left half-made."""
        for name in self.names():
            if name.endswith(SUFFIX_TEMPORARY):
                self.delete(self.directory / name)

    def delete_all_but(self, kept: Path) -> None:
        """Delete every other snapshot."""
        others = [path for path in self.snapshots() if path != kept]
        for path in others:
            self.delete(path)
        if others:
            self.sync()

    def set_aside(self, path: Path) -> Path:
        """Give a file a temporary name, to be freed in pieces; a start deletes it. Not synced."""
        aside = path.with_name(path.name + SUFFIX_TEMPORARY)
        try:
            self.files.rename(path, aside)
        except OSError as error:
            raise refused("rename", path, error) from error
        return aside

    def free_piece(self, path: Path) -> bool:
        """Free the end of a file that is set aside; return whether there is more of it."""
        try:
            fd = self.files.open(path, os.O_WRONLY)
            try:
                size_bytes = self.files.size(fd)
                if size_bytes > FREE_BYTES:
                    self.files.truncate(fd, size_bytes - FREE_BYTES)
                    return True
            finally:
                self.files.close(fd)
        except OSError as error:
            raise refused("free", path, error) from error
        self.delete(path)
        return False

    def delete(self, path: Path) -> None:
        """Delete a file; a missing one is fine. Not synced."""
        try:
            self.files.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise refused("delete", path, error) from error

    def rename(self, source: Path, target: Path) -> None:
        """Give a file its name, durably."""
        try:
            self.files.rename(source, target)
        except OSError as error:
            raise refused("rename", source, error) from error
        self.sync()

    def sync(self) -> None:
        """Make the names durable."""
        try:
            sync_directory(self.files, self.directory)
        except OSError as error:
            raise refused("sync", self.directory, error) from error


class GrowingFile:
    """A file under a temporary name that grows at its end, and is synced in small pieces.

    It syncs itself before it takes more than a piece; who wants to choose the time asks `is_full`.
    So no call waits for more than a piece, and the last sync is short.
    """

    def __init__(self, directory: SnapshotDirectory, name: str) -> None:
        self.path = directory.directory / name
        self.size_bytes = 0
        self._directory = directory
        self._files = directory.files
        self._synced_bytes = 0
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            self._fd: int | None = self._files.open(self.path, flags, PRIVATE_FILE)
        except OSError as error:
            raise refused("make", self.path, error) from error

    @property
    def is_open(self) -> bool:
        """Whether it takes bytes: it was neither published nor dropped."""
        return self._fd is not None

    @property
    def is_full(self) -> bool:
        """Whether a piece is full, and should be synced before the next byte."""
        return self.size_bytes - self._synced_bytes >= SYNC_BYTES

    def append(self, data: bytes) -> None:
        """Write at the end."""
        assert self._fd is not None, "it was published or dropped"
        if self.is_full:
            self._sync(self._fd)
        try:
            write_all(self._files, self._fd, data, self.size_bytes)
        except OSError as error:
            raise refused("write", self.path, error) from error
        self._files.start_writing(self._fd, self.size_bytes, len(data))
        self.size_bytes += len(data)

    def sync(self) -> None:
        """Make what was written so far durable."""
        assert self._fd is not None, "it was published or dropped"
        if self._synced_bytes < self.size_bytes:
            self._sync(self._fd)

    def publish(self, path: Path) -> None:
        """Make it durable, under its own name; it takes no more bytes."""
        self.sync()
        self._directory.rename(self.path, path)
        self._close()

    def drop(self) -> None:
        """Close and delete it, unless it was published; may be called again."""
        if self._fd is not None:
            self._close()
            self._directory.delete(self.path)

    def _sync(self, fd: int) -> None:
        try:
            self._files.fdatasync(fd)
        except OSError as error:
            raise refused("sync", self.path, error) from error
        self._synced_bytes = self.size_bytes

    def _close(self) -> None:
        if self._fd is not None:
            self._files.close(self._fd)
            self._fd = None
