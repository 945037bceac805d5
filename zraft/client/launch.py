"""Finding the supervisor of a cluster, and starting one when a verb needs it.

The lock decides: whoever holds `supervisor/lock` is the supervisor. The loser of a start race ends
at once and its starter talks to the winner. A supervisor that holds the lock and does not answer is
never pushed aside; it is named, and the verb ends with 75. An older one is asked to retire: it ends
without touching its nodes, and the new one takes them over.
"""

from __future__ import annotations

import contextlib
import os
import select
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import msgspec

from zraft import clock
from zraft._version import __version__
from zraft.api import ControlFailure
from zraft.client.link import Running, SupervisorGone, ask_supervisor, error_of
from zraft.client.record import find_supervisor
from zraft.control_api import SUPERVISOR_CONTROL_VERSION, Hello, HelloReply, Retire
from zraft.errors import EXIT_LOCKED, SupervisorError

START_TIMEOUT_MS = 10_000
HELLO_TIMEOUT_MS = 1_000
_LOOK_MS = 20
_started: list[subprocess.Popen[bytes]] = []  # supervisors to reap when they have ended


class Wish(NamedTuple):
    """How to start a supervisor if none runs."""

    link: Path  # STATE/<name>
    data: Path | None = None
    ephemeral: bool = False
    foreground: bool = False


class Found(NamedTuple):
    """A supervisor that answers; `popen` when this call started it."""

    running: Running
    hello: HelloReply | None
    popen: subprocess.Popen[bytes] | None = None


class _ReadyLine(msgspec.Struct, frozen=True):
    pid: int = 0
    endpoint: str = ""
    busy: int | None = None
    error: ControlFailure | None = None


def greet(directory: Path, *, timeout_ms: int = HELLO_TIMEOUT_MS) -> Found | None:
    """Return the supervisor of a cluster's directory if it answers. Starts nothing."""
    holder = find_supervisor(directory)
    if holder is None or not holder.endpoint:
        return None
    running = Running(holder.pid, holder.endpoint)
    with contextlib.suppress(SupervisorGone):
        reply = ask_supervisor(running, Hello(__version__), timeout_ms=timeout_ms)
        if isinstance(reply, HelloReply) and reply.pid == holder.pid:
            return Found(running, reply)
    return None


def ensure_supervisor(wish: Wish, environ: Mapping[str, str]) -> Found:
    """Return a supervisor that serves, starting or replacing one if need be.

    Raises:
        SupervisorError: its lock is held and nobody answers, or it does not start (exit 75).
        ZraftError: it cannot start; the error is its own.
    """
    deadline_ms = clock.now_ms() + START_TIMEOUT_MS
    while True:
        reap()
        directory = Path(os.path.realpath(wish.link))
        holder = find_supervisor(directory)
        if holder is None:
            found = _start(wish, environ, deadline_ms)
        else:
            found = greet(directory)
            if found is not None and _is_older(found):
                _retire(found, deadline_ms)
                continue
        if found is not None:
            _check_version(found)
            return found
        if clock.now_ms() >= deadline_ms:
            raise _does_not_answer(wish, holder.pid if holder is not None else 0)
        select.poll().poll(_LOOK_MS)


def wait_for_end(pid: int, timeout_ms: int) -> bool:
    """Wait until a process has ended; return whether it has."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout_ms))
    finally:
        os.close(pidfd)
        reap()


def reap() -> None:
    """Take the exit status of supervisors that this process started and that have ended."""
    _started[:] = [popen for popen in _started if popen.poll() is None]


def _start(wish: Wish, environ: Mapping[str, str], deadline_ms: int) -> Found | None:
    """Start a supervisor; None when another one was faster."""
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    with tempfile.TemporaryFile() as err, open(ready_read, "rb", buffering=0) as ready:
        try:
            popen = _spawn(wish, environ, ready_write, err.fileno())
        finally:
            os.close(ready_write)
        _started.append(popen)
        line = _read_line(ready, deadline_ms)
        if line is None:
            popen.kill()
            popen.wait()
            raise SupervisorError(
                "the supervisor did not start in time",
                why=f"it said nothing within {START_TIMEOUT_MS} ms",
                try_="the same command again",
                exit_code=EXIT_LOCKED,
            )
        said = _decode(line)
        if said is not None and said.endpoint:
            return Found(Running(said.pid, said.endpoint), None, popen)
        status = popen.wait()
        if said is not None and said.busy is not None:
            return None
        if said is not None and said.error is not None:
            raise error_of(said.error)
        err.seek(0)
        raise SupervisorError(
            f"the supervisor ended at its start (exit code {status})",
            why=err.read()[-2000:].decode(errors="replace").strip(),
            try_="zraft version",
        )


def _spawn(
    wish: Wish, environ: Mapping[str, str], ready_write: int, err: int
) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-P", "-m", "zraft_supervisor", "--dir", str(wish.link.absolute())]
    if wish.data is not None:
        words += ["--data", str(wish.data.absolute())]
    if wish.ephemeral:
        words.append("--ephemeral")
    if wish.foreground:
        words += ["--foreground", "--parent", str(os.getpid())]
    words += ["--ready-fd", str(ready_write)]
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=err,
        stderr=err,
        pass_fds=(ready_write,),
        close_fds=True,
        cwd="/",
        env=child_environment(environ),
        start_new_session=True,
    )


def _read_line(ready: object, deadline_ms: int) -> bytes | None:
    """Return what the pipe says until its end or a whole line; None when the time is up."""
    assert hasattr(ready, "fileno")
    fd: int = ready.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = b""
    while b"\n" not in data:
        left_ms = deadline_ms - clock.now_ms()
        if left_ms <= 0 or not poll.poll(left_ms):
            return None
        more = os.read(fd, 65536)
        if not more:
            break
        data += more
    return data


def _decode(line: bytes) -> _ReadyLine | None:
    try:
        return msgspec.json.decode(line, type=_ReadyLine)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _is_older(found: Found) -> bool:
    hello = found.hello
    return hello is not None and not hello.foreground and _numbers(hello.version) < _numbers()


def _numbers(version: str = __version__) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _retire(found: Found, deadline_ms: int) -> None:
    with contextlib.suppress(SupervisorGone):
        ask_supervisor(found.running, Retire(), timeout_ms=HELLO_TIMEOUT_MS)
    wait_for_end(found.running.pid, max(1, deadline_ms - clock.now_ms()))
    if clock.now_ms() >= deadline_ms:
        raise SupervisorError(
            f"the older supervisor (pid {found.running.pid}) does not retire",
            try_="the same command again",
            exit_code=EXIT_LOCKED,
        )


def _check_version(found: Found) -> None:
    hello = found.hello
    if hello is not None and hello.control_version != SUPERVISOR_CONTROL_VERSION:
        raise SupervisorError(
            f"the supervisor (pid {hello.pid}) is zraft {hello.version}",
            why=f"this is zraft {__version__}, and the two do not understand each other",
            try_="use the zraft that started the cluster",
            exit_code=EXIT_LOCKED,
        )


def _does_not_answer(wish: Wish, pid: int) -> SupervisorError:
    return SupervisorError(
        f'the supervisor of cluster "{wish.link.name}" (pid {pid}) does not answer',
        why=f"it holds its lock and said nothing for {START_TIMEOUT_MS // 1000} s",
        try_=(f"look at process {pid}; ending it does not stop the nodes: kill -9 {pid}",),
        exit_code=EXIT_LOCKED,
    )


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which a child finds the same zraft, whatever it works in.

    Relative entries of PYTHONPATH are made absolute. A checkout that is not installed is added;
    the directories of installed packages are not, they are found anyway.
    """
    given = environ.get("PYTHONPATH", "")
    entries = [str(Path(entry).absolute()) for entry in given.split(os.pathsep) if entry]
    known = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")}
    known.update(site.getsitepackages())
    for package in ("zraft", "zraft_supervisor"):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            root = str(Path(spec.origin).parent.parent)
            if root not in known and root not in entries:
                entries.append(root)
    return {**environ, "PYTHONPATH": os.pathsep.join(entries)} if entries else dict(environ)
