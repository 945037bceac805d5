"""A newcomer's first five minutes, typed into the real command line, without a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zraft import procfs
from zraft.storage.directory import lock_holder

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NODES = [f"n{i}" for i in range(1, 6)]


@dataclass
class Shell:
    """Types commands. `json` adds `--json` to each, and then answers with what was printed."""

    environ: dict[str, str]
    json: bool

    def run(self, line: str, *, exits: tuple[int, ...] = (0,)) -> str:
        """Type one line; return its standard output, and fail on any other exit code."""
        words = line.split()[1:] + (["--json"] if self.json else [])
        done = subprocess.run(
            [str(Path(sys.executable).with_name("zraft")), *words],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        said = f"$ {line}\n{done.stdout}{done.stderr}"
        assert done.returncode in exits, f"exit {done.returncode}, wanted {exits}\n{said}"
        assert "\x1b[" not in done.stdout + done.stderr, f"colours without a terminal\n{said}"
        assert "Traceback" not in done.stderr, said
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def facts(self, line: str, *, exits: tuple[int, ...] = (0,)) -> dict[str, Any]:
        """Type one line with `--json`, whatever the mode, and return what it says."""
        mode, self.json = self.json, True
        try:
            facts = json.loads(self.run(line, exits=exits))
        finally:
            self.json = mode
        assert isinstance(facts, dict)
        return facts


@pytest.fixture(params=[False, True], ids=["text", "json"])
def shell(request: pytest.FixtureRequest) -> Iterator[Shell]:
    """A shell with a home of its own; what it started must be gone at the end."""
    root = Path(tempfile.mkdtemp(prefix="z5m"))
    (root / "run").mkdir(mode=0o700)
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ZRAFT_", "XDG_", "FORCE_COLOR"))
    }
    environ |= {
        "ZRAFT_HOME": str(root / "h"),
        "XDG_RUNTIME_DIR": str(root / "run"),
        "NO_COLOR": "1",
    }
    shell = Shell(environ, request.param)
    try:
        yield shell
    finally:
        shell.run("zraft cluster down --now", exits=(0, 3))
        shutil.rmtree(root)


def test_the_first_five_minutes(shell: Shell) -> None:
    """Every line of the script does what the newcomer is told, with and without `--json`."""
    home = Path(shell.environ["ZRAFT_HOME"])
    first_look(shell)
    shell.run("zraft cluster up -n 5")
    assert shell.facts("zraft cluster up -n 5")["already_running"] is True
    status = shell.facts("zraft cluster status")
    assert [node["name"] for node in status["nodes"]] == NODES
    pids = [node["pid"] for node in status["nodes"]]
    first_leader = status["leader"]

    shell.run("zraft kv put hello world")
    assert "world" in shell.run("zraft kv get hello")
    shell.run("zraft kv get nothing-there", exits=(4,))

    killed = shell.facts("zraft node kill leader --wait")
    assert killed["resolved"] == [first_leader]
    assert killed["new"]["leader"] != first_leader
    assert killed["unavailable_ms"] < 10_000
    assert "world" in shell.run("zraft kv get hello")
    story = shell.run("zraft logs tail -n 400")
    assert "election.won" in story
    started = shell.run(f"zraft node start {first_leader}")
    assert first_leader in started
    shell.run("zraft cluster wait --for converged --for up=5 --timeout 10s")

    cut_off_leader(shell)

    shell.run("zraft cluster down")
    assert [pid for pid in pids if procfs.read_stat(pid) is not None] == []
    assert [lock_holder(home / "default" / name / "lock") for name in NODES] == [None] * 5
    assert list(Path(shell.environ["XDG_RUNTIME_DIR"]).rglob("*.*")) == []
    shell.run("zraft cluster status", exits=(3,))
    shell.run("zraft kv get hello", exits=(3, 6))

    shell.run("zraft cluster up")
    assert "again" in shell.run("zraft kv get hello")
    shell.run("zraft cluster down --purge --yes")
    assert not (home / "default").exists()


def first_look(shell: Shell) -> None:
    """`zraft` alone says what it is and what to type; a mistyped command says what was meant."""
    mode, shell.json = shell.json, False
    text = shell.run("zraft")
    assert len(text.splitlines()) <= 16
    assert len(re.findall(r"zraft (cluster|kv|node|logs)", text)) >= 3
    assert "cluster" in shell.run("zraft clsuter up", exits=(2,))
    shell.run("zraft kv put a b", exits=(3,))
    shell.run("zraft cluster status", exits=(3,))
    shell.json = mode


def cut_off_leader(shell: Shell) -> None:
    """Isolate the leader: two leaders for a moment, one truth; healing settles it."""
    old = shell.facts("zraft cluster status")["leader"]
    shell.run("zraft fault isolate leader")
    shell.run(f"zraft kv put hello lost --at {old} --timeout 1s", exits=(6, 7))
    shell.run("zraft kv put hello again")
    status = shell.facts("zraft cluster status")
    assert status["agree"] is False
    assert status["leader"] != old
    shell.run("zraft fault heal --all")
    shell.run("zraft cluster wait --for converged --timeout 10s")
    status = shell.facts("zraft cluster status")
    assert status["agree"] is True
    assert len({node["state_hash"] for node in status["nodes"]}) == 1
    assert "again" in shell.run("zraft kv get hello")
