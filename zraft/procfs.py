"""What /proc says of processes and mounts: nothing here signals, waits or changes anything.

A pid alone says nothing, since pids are used again. A process is (pid, start ticks, boot id): field
22 of /proc/<pid>/stat counts from the boot and does not move with the wall clock. Everything
returns None for a process that does not exist (any more): between two looks it may have ended.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

VOLATILE = frozenset({"tmpfs", "ramfs", "overlay"})
"""File systems whose files do not survive a power cut, whatever fsync says."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ProcessStat(NamedTuple):
    """What one look at /proc/<pid>/stat says."""

    state: str  # R S D T t Z X I
    start_ticks: int

    @property
    def stopped(self) -> bool:
        """Whether SIGSTOP has taken effect."""
        return self.state == "T"

    @property
    def ended(self) -> bool:
        """Whether only its exit status is left."""
        return self.state in "ZX"


def boot_id() -> str:
    """Return the id of this boot of the machine."""
    return _BOOT_ID.read_text().strip()


def read_stat(pid: int) -> ProcessStat | None:
    """Return state and start of a process, None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name may hold anything, also ")"
    return ProcessStat(state=fields[0], start_ticks=int(fields[19]))


def read_command(pid: int) -> list[str]:
    """Return the command line of a process, empty when there is none (or it is a kernel thread)."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    return [os.fsdecode(part) for part in data.split(b"\0")[:-1]]


def file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system that a path is on, empty when nobody says.

    Args:
        path: any path; links are followed.
        mounts: the content of /proc/self/mountinfo.
    """
    wanted = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        # 36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/vda rw
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        inside = wanted == point or wanted.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind
