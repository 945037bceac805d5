"""Fake nodes as processes, and a cluster file that names them.

See `client_fake_node.py` for their plans.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from tests.client_fake_node import CLUSTER

SCRIPT = Path(__file__).with_name("client_fake_node.py")
ROOT = Path(__file__).parents[1]


class FakeNodes:
    """Up to three nodes n1 to n3 with member ids 1 to 3 in a directory with a short path."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self.environ = {"ZRAFT_HOME": str(directory)}
        self.write_cluster_file("default")

    def endpoint(self, number: int) -> str:
        return f"ipc://{self.directory}/n{number}.client"

    def write_cluster_file(self, name: str) -> Path:
        """Write the file of a cluster of n1 to n3, as the supervisor does."""
        home = self.directory / name
        home.mkdir()
        members = "".join(
            f'[[members]]\nname = "n{number}"\nmember_id = "{number:016x}"\nnew = false\n'
            for number in (1, 2, 3)
        )
        (home / "cluster.toml").write_text(
            f'format = 1\nname = "{name}"\ncluster_id = "{CLUSTER.hex()}"\ntransport = "ipc"\n'
            f'socket_dir = "{self.directory}"\nbase_port = 0\nephemeral = false\n'
            f"{members}[settings]\n"
        )
        return home

    def start(self, number: int, plan: str = "ok", *, leader: int = 0) -> None:
        """Start a node, and return when its socket is bound."""
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), self.endpoint(number), str(number), str(leader), plan],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)} | _marker(),
        )
        self.processes[number] = process
        assert self.output(number).readline() == "up\n"

    def output(self, number: int) -> IO[str]:
        stdout = self.processes[number].stdout
        assert stdout is not None
        return stdout

    def frames(self, number: int) -> list[tuple[int, int]]:
        """End a node, and return (requests, writes) of each frame that it got."""
        self.kill(number)
        rest = self.output(number).read().split("\n")
        return [(int(line.split()[0]), int(line.split()[1])) for line in rest if line]

    def send_signal(self, number: int, which: signal.Signals) -> None:
        self.processes[number].send_signal(which)

    def kill(self, number: int) -> None:
        """End a node as by kill -9, and wait for it."""
        self.processes[number].kill()
        self.processes[number].wait(10)

    def close(self) -> None:
        """End all nodes."""
        for number in self.processes:
            self.kill(number)
            self.output(number).close()


def _marker() -> dict[str, str]:
    """Return the variable by which left processes are found."""
    return {key: value for key, value in os.environ.items() if key.startswith("ZRAFT_TEST")}
