"""Whose process holds a node's directory: proven by the lock, named by /proc, never guessed.

A node holds an flock on `lock` for life, also while it is stopped; the kernel frees it the moment
the process ends. So the lock's holder *is* the node, whatever pid files say. It is ours when
`node.json` names the same pid, start and boot, or, before that file is written, when its command
line runs our node program on this very directory. Everything else is foreign and left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec

from zraft import procfs
from zraft.control_api import LastExit
from zraft.storage.directory import LOCK_FILE, lock_holder

T = TypeVar("T")

NODE_PROGRAM = "zraft.node"


class Owner(NamedTuple):
    """Who holds a directory. `nobody`: it is free; `foreign`: not a node of ours."""

    kind: Literal["nobody", "ours", "foreign"]
    pid: int = 0
    start_ticks: int = 0
    incarnation: int | None = None
    stopped: bool = False


NOBODY = Owner("nobody")


class NodeFile(msgspec.Struct, frozen=True):
    """The part of `node.json` that says which process wrote it."""

    pid: int
    start_ticks: int
    boot_id: str
    incarnation: int | None = None


class ExitFile(msgspec.Struct, frozen=True):
    """The part of `exit.json`, which a node writes when it ends in order, that we use."""

    pid: int = 0
    code: int | None = None
    reason: str = ""


def find_owner(directory: Path, *, program: str = NODE_PROGRAM) -> Owner:
    """Return who holds the lock of a member's directory. Disturbs nobody."""
    pid = lock_holder(directory / LOCK_FILE)
    if pid is None:
        return NOBODY
    stat = procfs.read_stat(pid)
    if stat is None or stat.ended:  # it ended between two looks, and its locks with it
        return NOBODY
    node = _read_json(directory / "node.json", NodeFile)
    if (
        node is not None
        and (node.pid, node.start_ticks) == (pid, stat.start_ticks)
        and node.boot_id == procfs.boot_id()
    ):
        return Owner("ours", pid, stat.start_ticks, node.incarnation, stat.stopped)
    if runs_node(procfs.read_command(pid), directory, program):
        return Owner("ours", pid, stat.start_ticks, None, stat.stopped)
    return Owner("foreign", pid, stat.start_ticks, None, stat.stopped)


def find_starting(directories: Iterable[Path], *, program: str = NODE_PROGRAM) -> dict[Path, Owner]:
    """Return processes of ours that were started for a directory and do not hold its lock yet.

    A supervisor that is killed right after it started a node leaves such a process: for a few
    hundred milliseconds only the command line says whose it is.
    """
    wanted = {str(directory): directory for directory in directories}
    found: dict[Path, Owner] = {}
    for entry in os.listdir("/proc") if wanted else ():
        if not entry.isdigit():
            continue
        command = procfs.read_command(int(entry))
        directory = wanted.get(_node_directory(command, program))
        stat = procfs.read_stat(int(entry)) if directory is not None else None
        if directory is not None and stat is not None and not stat.ended:
            found[directory] = Owner("ours", int(entry), stat.start_ticks, None, stat.stopped)
    return found


def runs_node(command: list[str], directory: Path, program: str) -> bool:
    """Return whether a command line is our node program on this directory."""
    return _node_directory(command, program) == str(directory)


def _node_directory(command: list[str], program: str) -> str:
    if program not in command or "--dir" not in command[:-1]:
        return ""
    return command[command.index("--dir") + 1]


def read_exit(directory: Path, pid: int) -> ExitFile | None:
    """Return what a node wrote when it ended, None when it did not (a crash) or it was another."""
    exit_file = _read_json(directory / "exit.json", ExitFile)
    return exit_file if exit_file is not None and exit_file.pid == pid else None


def last_exit_noted(directory: Path) -> LastExit | None:
    """Return how the last process ended by its own note, which the next one takes away."""
    found = _read_json(directory / "exit.json", ExitFile)
    return None if found is None else LastExit(pid=found.pid, code=found.code, reason=found.reason)


def last_exit_of(directory: Path, pid: int) -> LastExit:
    """Return how a process ended that nobody could wait for (not a child of ours)."""
    written = read_exit(directory, pid)
    if written is None:
        return LastExit(pid=pid)
    return LastExit(pid=pid, code=written.code, reason=written.reason)


def _read_json(path: Path, shape: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=shape)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None  # says nothing, then: the lock and the command line decide
