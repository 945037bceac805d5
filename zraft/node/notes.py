"""What a node leaves for whoever started it or finds it: small notes, in JSON.

    readiness pipe   lines of progress while it recovers, then one line when it serves; then closed
    node.json        who runs here: pid, start ticks, boot id, incarnation, endpoints
    exit.json        how it ended, if it ended on its own account; no file means a crash

Nothing here can stop a node: a parent that is gone, a full pipe or a full disk is ignored. Who owns
a directory is proven by its lock, not by these files.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from zraft import clock, procfs

NODE_FILE = "node.json"
EXIT_FILE = "exit.json"
PROGRESS_EVERY_MS = 1000


class ReadyPipe:
    """The write end of a pipe to the parent; None for a node that nobody waits for."""

    def __init__(self, fd: int | None) -> None:
        """Own the descriptor from now on."""
        self._fd = fd
        self._next_ms = clock.now_ms() + PROGRESS_EVERY_MS
        if fd is not None:
            try:
                os.set_blocking(fd, False)  # a parent that does not read must not stop us
                os.set_inheritable(fd, False)
            except OSError:
                self._fd = None

    def progress(self, text: str) -> None:
        """Say how far recovery is, at most once a second."""
        now_ms = clock.now_ms()
        if self._fd is not None and now_ms >= self._next_ms:
            self._next_ms = now_ms + PROGRESS_EVERY_MS
            self._write({"progress": text})

    def ready(self, note: dict[str, object]) -> None:
        """Say that the node serves, and close the pipe."""
        self._write(note)
        self.close()

    def close(self) -> None:
        """Close the pipe; without a line before, the parent knows that the start failed."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, note: dict[str, object]) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):  # EPIPE: nobody listens any more
                os.write(self._fd, msgspec.json.encode(note) + b"\n")


def process_note(incarnation: int) -> dict[str, object]:
    """Return who this process is: pid, start ticks, boot id, incarnation."""
    pid = os.getpid()
    stat = procfs.read_stat(pid)
    assert stat is not None, "a process can see itself"
    return {
        "pid": pid,
        "start_ticks": stat.start_ticks,
        "boot_id": procfs.boot_id(),
        "incarnation": incarnation,
    }


def process_age_ms() -> int:
    """Return how long this process has existed, the interpreter's start included; to 10 ms."""
    stat = procfs.read_stat(os.getpid())
    assert stat is not None, "a process can see itself"
    return clock.now_ms() - stat.start_ticks * 1000 // os.sysconf("SC_CLK_TCK")


def write_node_file(directory: Path, note: dict[str, object]) -> None:
    """Say in the directory who runs here, and forget how the last one ended."""
    with contextlib.suppress(OSError):
        (directory / EXIT_FILE).unlink(missing_ok=True)
    _replace(directory / NODE_FILE, note)


def write_exit_file(
    directory: Path, *, code: int, reason: str, error: str = "", why: str = ""
) -> None:
    """Say in the directory how this process ends, and that it runs no more.

    Args:
        reason: one word for programs ("SIGTERM", "control", an error's code).
        error, why: sentences for people, empty for an orderly stop.
    """
    note: dict[str, object] = {"pid": os.getpid(), "code": code, "reason": reason}
    if error:
        note |= {"error": error, "why": why}
    _replace(directory / EXIT_FILE, note)
    with contextlib.suppress(OSError):
        (directory / NODE_FILE).unlink(missing_ok=True)


def _replace(path: Path, note: dict[str, object]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with contextlib.suppress(OSError):
        temporary.write_bytes(msgspec.json.encode(note) + b"\n")
        temporary.chmod(0o600)
        temporary.replace(path)
