"""A node process without Raft: it does what the file `behaviour` in its directory says.

    serve        lock, node.json, readiness line, then wait for SIGTERM (the default)
    crash        the same, then end by SIGKILL
    exit=N       write a line to stderr and end with code N before it is ready
    silent       hold the lock, never say that it is ready
    close        close the readiness pipe without a line and stay
    progress=MS  say every 50 ms for MS milliseconds that it recovers, then serve
    stubborn     serve, and ignore SIGTERM

Standard library only: it starts in a few milliseconds.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
from pathlib import Path


def main() -> None:
    """Behave."""
    words = sys.argv
    directory = Path(words[words.index("--dir") + 1])
    ready_fd = int(words[words.index("--ready-fd") + 1])
    path = directory / "behaviour"
    behaviour, _, number = (path.read_text() if path.exists() else "serve").partition("=")
    if behaviour == "exit":
        sys.stderr.write(f"cannot serve because of {number}\n")
        sys.exit(int(number))
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else end)
    if behaviour == "close":
        os.close(ready_fd)
    if behaviour in {"close", "silent"}:
        wait(None)
    if behaviour == "progress":
        for _ in range(int(number) // 50):
            os.write(ready_fd, b'{"progress": "reading"}\n')
            wait(50)
    note = {
        "pid": os.getpid(),
        "start_ticks": int(Path("/proc/self/stat").read_text().split(") ")[1].split()[19]),
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "incarnation": 1,
    }
    (directory / "node.json").write_text(json.dumps(note))
    os.write(ready_fd, json.dumps(note).encode() + b"\n")
    os.close(ready_fd)
    if behaviour == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    wait(None)


def wait(timeout_ms: int | None) -> None:
    """Do nothing for a while, or until the end."""
    select.poll().poll(timeout_ms)
    while timeout_ms is None:
        select.poll().poll()


def end(_number: int, _frame: object) -> None:
    """End in order."""
    directory = Path(sys.argv[sys.argv.index("--dir") + 1])
    note = {"pid": os.getpid(), "code": 0, "reason": "SIGTERM"}
    (directory / "exit.json").write_text(json.dumps(note))
    os._exit(0)


if __name__ == "__main__":
    main()
