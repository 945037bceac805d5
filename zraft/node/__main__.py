"""`python -m zraft.node --dir STATE/<cluster>/n1`: one member of a cluster, as one process.

    --dir DIR       the member's directory; cluster.toml is beside it
    --ready-fd N    a pipe for lines of progress and the readiness line
    --parent PID    end with this process, which must be the parent

First acts, before anything heavy is imported: signals as they should be, asserts on, a system that
can run it, the parent still there. Exit codes: 0 stopped in order, 65 data, 70 a defect, 74 disk,
75 in use, 78 configuration. What, why and what to try go to stderr, which the parent keeps in a
file.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from zraft.errors import EXIT_CONFIG, EXIT_SOFTWARE, ConfigError, ZraftError, say_last_words
from zraft.node.signals import reset_inherited

OLDEST_KERNEL = (5, 4)
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run one node to its end; return the exit code."""
    reset_inherited()
    if not __debug__:
        say_last_words(
            "a node does not run under python -O\n"
            "why: its invariants are asserts, and going on past a broken one can lose data\n"
            "try: start it without -O, and without PYTHONOPTIMIZE\n"
        )
        return EXIT_CONFIG
    try:
        check_system(sys.platform, os.uname().release)
        arguments = _parse()
        if arguments.parent is not None and not end_with_parent(arguments.parent):
            return 0
        return _run(arguments.dir, arguments.ready_fd)
    except ZraftError as error:
        say_last_words(f"{error}\n")
        return error.exit_code
    except Exception:  # noqa: BLE001  # the top of the loop: a defect, with its traceback
        say_last_words(traceback.format_exc())
        return EXIT_SOFTWARE


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m zraft.node", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dir", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def check_system(platform: str, release: str) -> None:
    """Refuse what zraft was not made for: ConfigError."""
    numbers = release.partition("-")[0].split(".")
    version = tuple(int(number) for number in numbers[:2] if number.isdigit())
    if platform != "linux" or version < OLDEST_KERNEL:
        raise ConfigError(
            f"zraft does not run on {platform} {release}",
            why="it needs Linux 5.4 or newer (pidfd, CLOCK_BOOTTIME, /proc/locks)",
            try_="a newer Linux; on Windows, WSL2",
        )


def end_with_parent(parent: int) -> bool:
    """Ask for SIGTERM when the parent ends; False when it has ended already.

    The kernel forgets to tell about a parent that died before it was asked: so look afterwards.
    """
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    return os.getppid() == parent


def _run(directory: Path, ready_fd: int | None) -> int:
    from zraft.node.notes import ReadyPipe
    from zraft.node.plan import read_plan
    from zraft.node.process import NodeProcess

    ready_pipe = ReadyPipe(ready_fd)
    node = NodeProcess(read_plan(directory), directory, ready_pipe)
    try:
        node.run()
    except Exception as error:
        node.fail(error)
        raise
    return 0


if __name__ == "__main__":
    exit_code = main()
    if sys.stderr is not None:  # it is None where descriptor 2 was closed at the start
        with suppress(OSError):  # what cannot be told changes no exit code
            sys.stderr.flush()
    # Everything is closed. To free a large state object by object takes a second or two, during
    # which whoever waits for this process would wait for nothing.
    os._exit(exit_code)
