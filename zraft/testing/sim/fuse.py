"""What ends a simulated process amid a turn: so many steps of its disk, or of sending."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from zraft.testing.disk import Stopped


class Fuse:
    """Counts steps down; where it burns out the process stops, or its disk fails."""

    __slots__ = ("at_sync", "error", "power", "steps")

    def __init__(self) -> None:
        """Make one that does not burn."""
        self.steps = 0
        self.power = False
        """Whether the process ends by a power cut."""
        self.error = False
        """Whether the disk fails, and the process goes on until it notices."""
        self.at_sync = False

    def light(
        self, steps: int, *, power: bool = False, error: bool = False, at_sync: bool = False
    ) -> None:
        """Let the process end, or the disk fail, in so many steps.

        With `at_sync`, steps are only those in which a batch has been written and is to be synced:
        the moment at which a power cut can tear it.
        """
        self.steps, self.power, self.error = steps, power, error
        self.at_sync = at_sync

    def put_out(self) -> None:
        """Let nothing happen."""
        self.steps = 0
        self.error = False

    def burn(self, *, at_disk: Path | None = None) -> None:
        """Take a step, of the disk at a path or of sending.

        Raises:
            Stopped: the process ends here.
            OSError: the disk fails here.
        """
        self.steps -= 1
        if self.steps > 0:
            return
        if self.error:
            if at_disk is None:
                self.steps = 1  # the next step of the disk fails
                return
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(at_disk))
        raise Stopped
