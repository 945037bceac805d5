"""A supervisor as tests need it: with other nodes, of another version, or with a sudden end.

python drive_supervisor.py '{"node": SCRIPT, "version": "0.0.1", "die_at": 3}' --dir … --ready-fd N
"""

from __future__ import annotations

import json
import os
import signal
import sys

from zraft._version import __version__
from zraft_supervisor.__main__ import main
from zraft_supervisor.children import DEFAULT_PROGRAM, NodeProgram


class Steps:
    """Counts the steps that are durable one by one, and ends the process at the wanted one."""

    def __init__(self, die_at: int) -> None:
        self.left = die_at

    def __call__(self, step: str) -> None:
        """Take one step."""
        self.left -= 1
        if self.left == 0:
            sys.stderr.write(f"dies at: {step}\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    script = wanted.get("node")
    sys.exit(
        main(
            sys.argv[2:],
            program=NodeProgram((sys.executable, script), script) if script else DEFAULT_PROGRAM,
            version=wanted.get("version", __version__),
            on_step=Steps(wanted.get("die_at", 0)),
        )
    )
