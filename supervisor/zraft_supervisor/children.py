"""Processes of the operating system: starting a node, watching it, signalling it.

A process is watched through a pidfd, which works for our own children and for those that an earlier
supervisor started, and signalled through it, so that a pid that was used again is never hit. Nodes
write their output to files, not to pipes: a supervisor that stands still stops nobody. The one pipe
is for readiness, and a node that finds it closed goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

from zraft import clock, procfs
from zraft.client.launch import child_environment
from zraft.client.ownership import NODE_PROGRAM, Owner, last_exit_of
from zraft.client.record import supervisor_dir
from zraft.control_api import LastExit
from zraft.storage.files import PRIVATE_FILE

STDERR_TAIL_BYTES = 2048
ERR_ROTATE_BYTES = 1 << 20
_READ_BYTES = 4096
_MAX_LINE_BYTES = 16 << 10


class NodeProgram(NamedTuple):
    """How a node is started: the words before `--dir`, one of which names the program."""

    words: tuple[str, ...]
    name: str  # the word that a living node is recognised by


# -P: the directory that a node works in is no place to import from
DEFAULT_PROGRAM = NodeProgram((sys.executable, "-P", "-m", NODE_PROGRAM), NODE_PROGRAM)


class Ready(NamedTuple):
    """The node serves."""

    incarnation: int | None


class StillRecovering(NamedTuple):
    """The node reads its log; `text` says how far it is."""

    text: str


class Closed(NamedTuple):
    """The pipe was closed without a readiness line."""


ReadyEvent = Ready | StillRecovering | Closed


class _ReadyLine(msgspec.Struct, frozen=True):
    pid: int = 0
    incarnation: int | None = None
    progress: str | None = None


class Child:
    """A living process of one node, started here or adopted; close it when it has ended."""

    def __init__(
        self,
        directory: Path,
        pid: int,
        pidfd: int,
        *,
        popen: subprocess.Popen[bytes] | None = None,
        ready_fd: int | None = None,
        err_path: Path | None = None,
        err_offset: int = 0,
    ) -> None:
        """Take over the descriptors."""
        self.pid = pid
        self.pidfd = pidfd
        self.ready_fd = ready_fd
        self.spawned_ms = clock.now_ms()
        self.ended_mono_ns: int | None = None
        self.signal_number: int | None = None  # the last one that was sent
        self.signalled_mono_ns: int | None = None  # just before it was sent
        self.killed = False
        self._directory = directory
        self._popen = popen
        self._err_path = err_path or directory / "err"
        self._err_offset = err_offset
        self._buffer = b""

    def send(self, number: int) -> None:
        """Send a signal; nothing happens when the process has ended."""
        self.signal_number = number
        self.killed |= number == signal.SIGKILL
        self.signalled_mono_ns = clock.monotonic_ns()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def stands(self) -> bool:
        """Return whether SIGSTOP has taken effect."""
        stat = procfs.read_stat(self.pid)
        return stat is not None and stat.stopped

    def read_ready(self) -> list[ReadyEvent]:
        """Return what the readiness pipe says. After `Ready` or `Closed` it is closed."""
        if self.ready_fd is None:
            return []
        events: list[ReadyEvent] = []
        try:
            data = os.read(self.ready_fd, _READ_BYTES)
        except BlockingIOError:
            return []
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            event = _decode_ready(line)
            if event is not None:
                events.append(event)
            if isinstance(event, Ready):
                break
        else:
            if not data or len(self._buffer) > _MAX_LINE_BYTES:
                events.append(Closed())
        if events and isinstance(events[-1], Ready | Closed):
            self.close_ready()
        return events

    def reap(self) -> LastExit | None:
        """Return how the process ended, None when it has not (then the pidfd is not readable)."""
        if self._popen is not None:
            status = self._popen.poll()
            if status is None:
                return None
            last = _from_status(self.pid, status)
            written = last_exit_of(self._directory, self.pid)
            if status > 0 and written.reason:
                last = msgspec.structs.replace(last, reason=written.reason)
        else:
            stat = procfs.read_stat(self.pid)
            if stat is not None and not stat.ended:
                return None
            last = last_exit_of(self._directory, self.pid)
        self.ended_mono_ns = clock.monotonic_ns()
        return msgspec.structs.replace(
            last, wall_ms=clock.wall_time_ns() // 1_000_000, stderr_tail=self.stderr_tail()
        )

    def stderr_tail(self) -> str:
        """Return the end of what this process wrote to its err file."""
        try:
            with open(self._err_path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._err_offset, size - STDERR_TAIL_BYTES))
                return file.read(STDERR_TAIL_BYTES).decode(errors="replace").strip()
        except OSError:
            return ""

    def close_ready(self) -> None:
        """Close the readiness pipe; a node that still writes to it ignores that."""
        if self.ready_fd is not None:
            os.close(self.ready_fd)
            self.ready_fd = None

    def close(self) -> None:
        """Close the descriptors. The process is left alone."""
        self.close_ready()
        os.close(self.pidfd)


def spawn(directory: Path, program: NodeProgram, *, parent: int | None) -> Child:
    """Start a node on its directory.

    Args:
        parent: the pid with whose end the node shall end too (`--foreground`), None for never.

    Raises:
        OSError: the operating system refused.
    """
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(ready_read, False)
        words = [*program.words, "--dir", str(directory), "--ready-fd", str(ready_write)]
        if parent is not None:
            words += ["--parent", str(parent)]
        err, err_path = _open_err(directory)
        err_offset = os.fstat(err).st_size
        try:
            popen = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=err,
                stderr=err,
                pass_fds=(ready_write,),
                close_fds=True,
                cwd="/",
                env=child_environment(os.environ),
                start_new_session=True,
            )
        finally:
            os.close(err)
        pidfd = os.pidfd_open(popen.pid)
    except OSError:
        os.close(ready_read)
        raise
    finally:
        os.close(ready_write)
    return Child(
        directory,
        popen.pid,
        pidfd,
        popen=popen,
        ready_fd=ready_read,
        err_path=err_path,
        err_offset=err_offset,
    )


def adopt(directory: Path, owner: Owner) -> Child | None:
    """Return a living process of an earlier supervisor, None when it ended just now."""
    try:
        pidfd = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        return None
    stat = procfs.read_stat(owner.pid)
    if stat is None or stat.start_ticks != owner.start_ticks:  # the pid was used again
        os.close(pidfd)
        return None
    with contextlib.suppress(OSError):
        return Child(directory, owner.pid, pidfd, err_offset=(directory / "err").stat().st_size)
    return Child(directory, owner.pid, pidfd)


def _open_err(directory: Path) -> tuple[int, Path]:
    """Open the node's err file, or, when its directory is missing or refuses, one beside ours."""
    path = directory / "err"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > ERR_ROTATE_BYTES:
                path.replace(path.with_name("err.1"))
        return os.open(path, flags, PRIVATE_FILE), path
    except OSError:
        path = supervisor_dir(directory.parent) / f"{directory.name}.err"
        return os.open(path, flags, PRIVATE_FILE), path


def _decode_ready(line: bytes) -> ReadyEvent | None:
    try:
        said = msgspec.json.decode(line, type=_ReadyLine)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if said.progress is not None:
        return StillRecovering(said.progress)
    return Ready(said.incarnation)


def _from_status(pid: int, status: int) -> LastExit:
    if status >= 0:
        return LastExit(pid=pid, code=status)
    return LastExit(pid=pid, signal=signal_name(-status))


def signal_name(number: int) -> str:
    """Return "SIGKILL" for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
