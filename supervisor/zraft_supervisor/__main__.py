"""`python -m zraft_supervisor --dir STATE/<cluster>`: start the supervisor of one cluster.

Started by `zraft.client.control`, which waits for one JSON line on `--ready-fd`: {pid, endpoint}
when it serves, {busy: pid} when another one holds the lock, {error} when it cannot start. From the
moment the lock is held, stdout and stderr are `supervisor/err`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from zraft._version import __version__
from zraft.client.record import supervisor_dir
from zraft.client.refusals import check_platform
from zraft.errors import (
    EXIT_LOCKED,
    EXIT_SOFTWARE,
    StorageError,
    ZraftError,
    say_last_words,
)
from zraft.node.signals import reset_inherited
from zraft.storage.directory import LOCK_FILE, lock_holder
from zraft.storage.files import PRIVATE_FILE
from zraft_supervisor.children import DEFAULT_PROGRAM, ERR_ROTATE_BYTES, NodeProgram
from zraft_supervisor.control import failure_of
from zraft_supervisor.layout import Place, disk_errors, make_place
from zraft_supervisor.supervisor import Supervisor, no_step

PR_SET_PDEATHSIG = 1


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; exits with 2 for wrong ones."""
    parser = argparse.ArgumentParser(prog="zraft_supervisor", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="STATE/<cluster>")
    parser.add_argument("--data", type=Path, help="where a new cluster's data shall live")
    parser.add_argument("--ephemeral", action="store_true", help="... or in a temporary directory")
    parser.add_argument("--foreground", action="store_true", help="the nodes end with this process")
    parser.add_argument("--parent", type=int, help="end when this process, our parent, ends")
    parser.add_argument("--ready-fd", type=int, help="where to say that it serves")
    return parser.parse_args(words)


def main(
    words: Sequence[str] | None = None,
    *,
    program: NodeProgram = DEFAULT_PROGRAM,
    version: str = __version__,
    on_step: Callable[[str], None] = no_step,
) -> int:
    """Run a supervisor to its end and return the exit code; the arguments are `Supervisor`'s."""
    arguments = parse_arguments(words)
    reset_inherited()
    ready_fd: int | None = arguments.ready_fd
    try:
        check_platform()
        _follow_parent(arguments.parent)
        place, lock_fd = take_place(arguments)
        if lock_fd is None:
            holder = lock_holder(supervisor_dir(place.directory) / LOCK_FILE)
            _say(ready_fd, {"busy": holder or 0})
            return EXIT_LOCKED
        _redirect_output(place)
        supervisor = Supervisor(
            place,
            lock_fd,
            os.environ,
            foreground=arguments.foreground,
            program=program,
            version=version,
            on_step=on_step,
        )
        _say(ready_fd, {"pid": os.getpid(), "endpoint": supervisor.endpoint})
        ready_fd = None
        return supervisor.run()
    except ZraftError as error:
        say_last_words(f"{error}\n")
        _say(ready_fd, {"error": msgspec.to_builtins(failure_of(error))})
        return error.exit_code
    except Exception as error:  # noqa: BLE001  # the top of the loop: a bug ends the process
        say_last_words(traceback.format_exc())
        _say(ready_fd, {"error": {"code": "error", "message": f"bug: {error!r}", "exit_code": 70}})
        return EXIT_SOFTWARE


def take_place(arguments: argparse.Namespace) -> tuple[Place, int | None]:
    """Return the cluster's place, made if need be, and the lock's descriptor.

    The descriptor is None when another supervisor holds the lock. When one deletes the cluster in
    this very moment (`down --purge`), the place is made anew.
    """
    while True:
        place = make_place(arguments.dir, data=arguments.data, ephemeral=arguments.ephemeral)
        try:
            return place, take_lock(supervisor_dir(place.directory) / LOCK_FILE)
        except FileNotFoundError:
            continue


def take_lock(path: Path) -> int | None:
    """Take the supervisor's lock; return its descriptor, None when another process holds it.

    Raises:
        FileNotFoundError: the file was deleted meanwhile: its lock means nothing.
        StorageError: the disk refused.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be opened", why=error.strerror or "") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), path.stat()):
            raise FileNotFoundError(path)
    except BlockingIOError:
        os.close(fd)
        return None
    except FileNotFoundError:
        os.close(fd)
        raise
    except OSError as error:
        os.close(fd)
        raise StorageError(f"{path} cannot be locked", why=error.strerror or "") from error
    return fd


def _redirect_output(place: Place) -> None:
    """Send what is printed from here on to `supervisor/err`, whoever started us."""
    path = supervisor_dir(place.directory) / "err"
    with disk_errors(path):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > ERR_ROTATE_BYTES:
                path.replace(path.with_name("err.1"))
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(path, flags, PRIVATE_FILE)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _follow_parent(parent: int | None) -> None:
    """Get SIGTERM when the parent ends; SystemExit when it ended before that could be arranged."""
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(EXIT_LOCKED)


def _say(ready_fd: int | None, line: dict[str, object]) -> None:
    if ready_fd is None:
        return
    with contextlib.suppress(BrokenPipeError):  # whoever waited is gone
        os.write(ready_fd, msgspec.json.encode(line) + b"\n")
    os.close(ready_fd)


if __name__ == "__main__":
    sys.exit(main())
