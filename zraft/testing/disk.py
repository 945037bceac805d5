"""A disk in memory that forgets what was not synced: the same calls as `zraft.storage.files`.

It keeps, for every file and every directory, what a process sees and what is durable. `kill` ends
the process and leaves the page cache; `cut_power` keeps, of what was not synced, what a draw
decides: of each file any subset of its sectors (512 bytes, each whole or not at all), and of each
directory its first few changes of names. Files and directories are independent of each other: a new
file that was synced while its directory was not may be gone, and so may be one whose name was
synced.

Every step that changes something asks `on_step` first; a test counts steps there, refuses one with
an OSError, or stops the world by raising `Stopped`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from zraft.core.model import Random

SECTOR_BYTES = 512
_FIRST_FD = 1 << 20  # far from real descriptors, so that a mix-up shows


class Stopped(BaseException):
    """The world stops here. Not an Exception: nobody should take it for an error to handle."""


@dataclass(slots=True, eq=False)
class _File:
    seen: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    changed: tuple[int, int] | None = None  # outside of it, what both have is equal

    def write(self, data: bytes | memoryview, offset: int) -> None:
        size_bytes, end = len(self.seen), offset + len(data)
        if offset > size_bytes:
            self.seen.extend(bytes(offset - size_bytes))
            offset = size_bytes
        self.seen[end - len(data) : end] = data
        first, last = self.changed or (offset, end)
        self.changed = (min(first, offset), max(last, end))

    def cut(self, size_bytes: int) -> None:
        del self.seen[size_bytes:]
        if self.changed is None:
            self.changed = (len(self.seen), len(self.seen))

    def sync(self) -> None:
        if self.changed is not None:  # to copy all of it would take longer than all else does
            first, last = self.changed
            del self.durable[len(self.seen) :]
            self.durable[first:last] = self.seen[first:last]
            self.changed = None

    def lose(self, random: Random) -> None:
        """Keep some of the unsynced sectors; what was never there reads as zeros."""
        share = random.random() * 1.2 - 0.1  # nothing, some of it, or all
        for at in range(0, max(len(self.seen), len(self.durable)), SECTOR_BYTES):
            piece = self.seen[at : at + SECTOR_BYTES]
            if piece != self.durable[at : at + SECTOR_BYTES] and random.random() < share:
                self.durable.extend(bytes(max(0, at - len(self.durable))))
                self.durable[at : at + len(piece)] = piece
        self.seen[:] = self.durable
        self.changed = None


@dataclass(slots=True, eq=False)
class _Directory:
    seen: dict[str, _Node] = field(default_factory=dict)
    durable: dict[str, _Node] = field(default_factory=dict)
    changes: list[dict[str, _Node | None]] = field(default_factory=list)

    def change(self, names: dict[str, _Node | None]) -> None:
        """Change names, all at once; None removes one."""
        _update(self.seen, names)
        self.changes.append(names)

    def sync(self) -> None:
        self.durable = dict(self.seen)
        self.changes.clear()

    def lose(self, random: Random) -> None:
        """Keep the first few changes, and go on in all that is still here."""
        for names in self.changes[: int(random.random() * (len(self.changes) + 1))]:
            _update(self.durable, names)
        self.seen = dict(self.durable)
        self.changes.clear()
        for node in self.seen.values():
            node.lose(random)


_Node: TypeAlias = "_File | _Directory"


def _update(old: dict[str, _Node], names: dict[str, _Node | None]) -> None:
    for name, node in names.items():
        if node is None:
            old.pop(name, None)
        else:
            old[name] = node


def _nothing(step: str, path: Path, /) -> None:
    """Let every step pass."""


class SimulatedDisk:
    """A file system; satisfies `zraft.storage.files.Files`."""

    def __init__(self) -> None:
        self.on_step: Callable[[str, Path], None] = _nothing
        self.short_write_bytes: int | None = None  # a write takes at most so much
        self.short_read_bytes: int | None = None  # a read gives at most so much
        self._root = _Directory()
        self._fds: dict[int, tuple[Path, _Node]] = {}
        self._next_fd = _FIRST_FD

    # --------------------------------------------------------------------------------------- calls

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        """Open or make a file, or open a directory."""
        node = self._find(path)
        if node is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT, path)
            node = _File()
            self._add("create", path, node)
        elif flags & os.O_EXCL:
            raise _error(errno.EEXIST, path)
        if isinstance(node, _File) and flags & os.O_TRUNC:
            node.cut(0)
        self._next_fd += 1
        self._fds[self._next_fd] = (path, node)
        return self._next_fd

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        del self._fds[fd]

    def read(self, path: Path) -> bytes:
        """Return the content of a file, as the process sees it."""
        return bytes(self._file(path).seen)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """Return bytes of an open file, as the process sees it, also after its name is gone."""
        _, file = self._fds[fd]
        assert isinstance(file, _File)
        return bytes(file.seen[offset : offset + min(count, self.short_read_bytes or count)])

    def size(self, fd: int) -> int:
        """Return the length of an open file, as the process sees it."""
        _, file = self._fds[fd]
        assert isinstance(file, _File)
        return len(file.seen)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write into what the process sees."""
        path, file = self._fds[fd]
        assert isinstance(file, _File)
        data = data[: self.short_write_bytes]
        self.on_step("write", path)
        file.write(data, offset)
        return len(data)

    def start_writing(self, fd: int, offset: int, count: int) -> None:
        """Nothing comes of it here: what is durable is what was synced, or survived by luck."""

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Cut what the process sees."""
        path, file = self._fds[fd]
        assert isinstance(file, _File)
        self.on_step("truncate", path)
        file.cut(size_bytes)

    def fdatasync(self, fd: int) -> None:
        """Make a file's bytes durable."""
        self.fsync(fd)

    def fsync(self, fd: int) -> None:
        """Make a file's bytes, or a directory's names, durable."""
        path, node = self._fds[fd]
        self.on_step("sync", path)
        node.sync()

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or a directory another name in the same directory."""
        assert source.parent == target.parent
        node, there = self._find(source), self._find(target)
        if node is None:
            raise _error(errno.ENOENT, source)
        if isinstance(there, _Directory) and there.seen:
            raise _error(errno.ENOTEMPTY, target)
        self.on_step("rename", target)
        self._directory(source.parent).change({source.name: None, target.name: node})
        for fd, (path, opened) in self._fds.items():
            if path == source:
                self._fds[fd] = (target, opened)

    def unlink(self, path: Path) -> None:
        """Remove a file's name."""
        self._file(path)
        self._remove("unlink", path)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        """Make a directory."""
        if self._find(path) is not None:
            raise _error(errno.EEXIST, path)
        self._add("mkdir", path, _Directory())

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        if self._directory(path).seen:
            raise _error(errno.ENOTEMPTY, path)
        self._remove("rmdir", path)

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a directory."""
        return list(self._directory(path).seen)

    # -------------------------------------------------------------------------------------- faults

    @property
    def open_count(self) -> int:
        """How many descriptors are open."""
        return len(self._fds)

    def put(self, path: Path, data: bytes) -> None:
        """Make a file hold `data`, durably, whatever it held: damage, or a restored copy."""
        file = self._find(path)
        if file is None:
            file = _File()
            directory = self._directory(path.parent)
            directory.seen[path.name] = directory.durable[path.name] = file
        assert isinstance(file, _File)
        file.cut(0)
        file.write(data, 0)
        file.sync()

    def sync_everything(self) -> None:
        """Make all that is seen durable, as an old machine in peace."""
        nodes: list[_Node] = [self._root]
        while nodes:
            node = nodes.pop()
            node.sync()
            if isinstance(node, _Directory):
                nodes.extend(node.seen.values())

    def kill(self) -> None:
        """End the process: its descriptors are closed, what it wrote stays in the page cache."""
        self._fds.clear()

    def cut_power(self, random: Random) -> None:
        """Lose what was not synced, but for what `random` keeps."""
        self.kill()
        self._root.lose(random)

    # -------------------------------------------------------------------------------------- inside

    def _find(self, path: Path) -> _Node | None:
        node: _Node | None = self._root
        for name in path.parts[1:]:
            if isinstance(node, _File):
                raise _error(errno.ENOTDIR, path)
            node = None if node is None else node.seen.get(name)
        return node

    def _file(self, path: Path) -> _File:
        node = self._find(path)
        if node is None:
            raise _error(errno.ENOENT, path)
        if isinstance(node, _Directory):
            raise _error(errno.EISDIR, path)
        return node

    def _directory(self, path: Path) -> _Directory:
        node = self._find(path)
        if node is None:
            raise _error(errno.ENOENT, path)
        if isinstance(node, _File):
            raise _error(errno.ENOTDIR, path)
        return node

    def _add(self, step: str, path: Path, node: _Node) -> None:
        directory = self._directory(path.parent)
        self.on_step(step, path)
        directory.change({path.name: node})

    def _remove(self, step: str, path: Path) -> None:
        self.on_step(step, path)
        self._directory(path.parent).change({path.name: None})


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
