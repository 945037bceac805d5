"""The steps of the log on disk: one call of the operating system each, under a name of its own.

Between any two of them the world may stop; tests stop it at each. The first step that the disk
refuses is the last one: it becomes a StorageError that says what to do, and every later one is
refused here, because a second try could report a success that is none.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from zraft.errors import ForeignDataError, StorageError
from zraft.storage.files import PRIVATE_FILE, Files, sync_directory, write_all
from zraft.storage.segment import parse_segment_name, segment_name

SLICE_BYTES = 256 << 10
NEXT_NAME = "next.tmp"
FREE_BYTES = 4 << 20  # of a deleted segment, freed at once
_ZEROS = bytes(SLICE_BYTES)

_WHAT_TO_TRY = {
    errno.ENOSPC: "free some space on this disk, then start the node again",
    errno.EDQUOT: "raise the quota, then start the node again",
    errno.EACCES: "check who owns the data directory, then start the node again",
    errno.EROFS: "mount the file system writable, then start the node again",
}


class LogSteps:
    """What can be done to the files in a log's directory. All raise StorageError."""

    def __init__(self, directory: Path, files: Files) -> None:
        self.directory = directory
        self.next_path = directory / NEXT_NAME
        self._files = files
        self._failure = ""

    def check_alive(self) -> None:
        """Refuse to go on after a failure, or after the end."""
        if self._failure:
            raise StorageError(
                "the log takes no more writes",
                why=f"an earlier step failed ({self._failure}), and a second try could lie",
                try_="stop this node; start it again when the disk is well",
            )

    def end(self) -> None:
        """Refuse everything from now on."""
        self._failure = self._failure or "it was closed"

    def _fail(self, action: str, path: Path, error: OSError) -> StorageError:
        reason = error.strerror or str(error)
        self._failure = f"cannot {action} {path.name}: {reason}"
        try_ = _WHAT_TO_TRY.get(error.errno or 0, "check the disk, then start the node again")
        return StorageError(f"cannot {action} {path}", why=reason, try_=try_)

    # ------------------------------------------------------------------------------------- reading

    def list_segments(self) -> list[Path]:
        """Return the segments in order; there is at least one.

        Raises:
            ForeignDataError: there is none.
        """
        try:
            names = self._files.listdir(self.directory)
        except FileNotFoundError as error:
            raise self._wiped("does not exist") from error
        except OSError as error:
            raise self._fail("list", self.directory, error) from error
        numbers = sorted(n for n in map(parse_segment_name, names) if n is not None)
        if not numbers:
            raise self._wiped("holds no segment")
        return [self.directory / segment_name(number) for number in numbers]

    def _wiped(self, what: str) -> ForeignDataError:
        return ForeignDataError(
            f"{self.directory} {what}",
            why="a member without its log has forgotten its votes, and must not vote again",
            try_="put its data directory back, or replace this member by a new one",
        )

    def read(self, path: Path) -> bytes:
        """Return a segment's bytes."""
        try:
            return self._files.read(path)
        except OSError as error:
            raise self._fail("read", path, error) from error

    # ------------------------------------------------------------------------------------- writing

    def make_directory(self) -> None:
        """Make the log's directory."""
        try:
            self._files.mkdir(self.directory)
        except OSError as error:
            raise self._fail("make", self.directory, error) from error

    def open_segment(self, path: Path) -> int:
        """Open a segment for writing."""
        try:
            return self._files.open(path, os.O_WRONLY)
        except OSError as error:
            raise self._fail("open", path, error) from error

    def make_next(self) -> int:
        """Make the file that will be the next segment."""
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            return self._files.open(self.next_path, flags, PRIVATE_FILE)
        except OSError as error:
            raise self._fail("make", self.next_path, error) from error

    def write(self, fd: int, path: Path, data: bytes, offset: int) -> None:
        """Write all of `data`; not synced."""
        try:
            write_all(self._files, fd, data, offset)
        except OSError as error:
            raise self._fail("write", path, error) from error

    def zero(self, fd: int, path: Path, start_offset: int, end_offset: int) -> None:
        """Write zeros; not synced, but the disk is told to begin with them."""
        for offset in range(start_offset, end_offset, SLICE_BYTES):
            count = min(SLICE_BYTES, end_offset - offset)
            self.write(fd, path, _ZEROS[:count], offset)
            self._files.start_writing(fd, offset, count)

    def sync_file(self, fd: int, path: Path) -> None:
        """Make what was written durable."""
        try:
            self._files.fdatasync(fd)
        except OSError as error:
            raise self._fail("sync", path, error) from error

    def rename_next(self, path: Path) -> None:
        """Give the next segment its name; it has its first batch, synced."""
        try:
            self._files.rename(self.next_path, path)
        except OSError as error:
            raise self._fail("rename", path, error) from error

    def sync_names(self) -> None:
        """Make the names in the directory durable."""
        try:
            sync_directory(self._files, self.directory)
        except OSError as error:
            raise self._fail("sync", self.directory, error) from error

    def delete(self, path: Path) -> None:
        """Delete a file; a missing one is fine."""
        try:
            self._files.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._fail("delete", path, error) from error

    def delete_name(self, path: Path) -> int | None:
        """Delete a file's name; return a descriptor that keeps its space, None without a file."""
        try:
            fd = self._files.open(path, os.O_WRONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._fail("open", path, error) from error
        try:
            self.delete(path)
        except StorageError:
            self._files.close(fd)
            raise
        return fd

    def free_piece(self, fd: int) -> bool:
        """Free the end of a file without a name; False: no more is left, it can be closed."""
        try:
            size_bytes = self._files.size(fd)
            if size_bytes > FREE_BYTES:
                self._files.truncate(fd, size_bytes - FREE_BYTES)
        except OSError as error:
            raise self._fail("free", self.directory, error) from error
        return size_bytes > FREE_BYTES

    def close_file(self, fd: int) -> None:
        """Close a descriptor."""
        self._files.close(fd)
