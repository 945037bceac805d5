"""Completion: what may come next, and the bash script as bash runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zraft.cli.completion import suggest
from zraft.cli.main import NOUNS, main, make_program
from zraft.cli.output import MODES
from zraft.crashpoints import POINTS


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A home with two clusters, of three nodes and of one; nothing runs."""
    for name, count in (("default", 3), ("exp1", 1)):
        directory = tmp_path / name
        directory.mkdir()
        members = "".join(
            f'[[members]]\nname = "n{i}"\nmember_id = "{i:016x}"\nnew = false\n'
            for i in range(1, count + 1)
        )
        (directory / "cluster.toml").write_text(
            f'format = 1\nname = "{name}"\ncluster_id = "00000000000000ff"\ntransport = "ipc"\n'
            f'socket_dir = "/run/x"\nbase_port = 0\nephemeral = false\n{members}[settings]\n'
        )
    return {"ZRAFT_HOME": str(tmp_path)}


def texts(environ: dict[str, str], *typed: str) -> list[str]:
    return [word.text for word in suggest(make_program(), typed, environ)]


def test_nouns_verbs_and_flags_come_from_the_command_tree(environ: dict[str, str]) -> None:
    """All of them, by their beginnings."""
    assert texts(environ, "") == [*NOUNS, "doctor", "version"]
    assert texts(environ, "clus") == ["cluster"]
    assert {"up", "down", "status"} <= set(texts(environ, "cluster", ""))
    assert texts(environ, "cluster", "up", "--state") == ["--state-machine"]
    assert "--timeout" in texts(environ, "kv", "get", "x", "--")
    assert texts(environ, "--no-c") == ["--no-color"]
    assert texts(environ, "clsuter", "") == []


def test_targets_are_nodes_and_roles_of_the_cluster_that_is_meant(environ: dict[str, str]) -> None:
    """Wherever -C stands; also after a comma and on both ends of a link."""
    assert texts(environ, "node", "kill", "n") == ["n1", "n2", "n3"]
    assert texts(environ, "node", "kill", "n1", "n") == ["n1", "n2", "n3"]
    assert texts(environ, "-C", "exp1", "node", "kill", "n") == ["n1"]
    assert texts(environ, "node", "kill", "--cluster=exp1", "--for", "3s", "n") == [
        "n1",
        "n2",
        "n3",
    ]
    assert "leader" in texts(environ, "node", "pause", "")
    assert texts(environ, "node", "kill", "n1,n") == ["n1,n1", "n1,n2", "n1,n3"]
    assert texts(environ, "fault", "drop", "--link", "n1:n3") == ["n1:n3"]
    assert texts({**environ, "ZRAFT_CLUSTER": "exp1"}, "logs", "tail", "n") == ["n1"]
    assert "n1" not in texts(environ, "-C", "nothing", "node", "kill", "")


def test_values_of_flags(environ: dict[str, str]) -> None:
    """Clusters, forms, levels, events, crash points: after a blank or an equals sign."""
    assert texts(environ, "cluster", "status", "-C", "") == ["default", "exp1"]
    assert texts(environ, "cluster", "status", "--output", "") == list(MODES)
    assert texts(environ, "cluster", "status", "--output=j") == ["--output=json"]
    assert texts(environ, "kv", "get", "x", "--consistency", "s") == ["stale"]
    assert texts(environ, "logs", "wait", "election.w") == ["election.won"]
    assert texts(environ, "logs", "tail", "-e", "election.w") == ["election.won"]
    assert texts(environ, "fault", "crash-at", "n1", "") == list(POINTS)
    assert texts(environ, "node", "inspect", "n1", "w") == ["wal"]
    assert texts(environ, "fault", "heal", "f") == []  # nothing runs: no ids, and no message
    assert texts(environ, "logs", "tail", "--", "n") == ["n1", "n2", "n3"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain on stdout, for eval; a document with --json."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "zraft completion words --" in script
    assert main(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["script"].strip() == script.strip()


def test_bash_completes_with_its_script(environ: dict[str, str]) -> None:
    """As readline calls it: words, the place among them, and the function's answer."""
    program = str(Path(sys.executable).parent)
    asked = """
        eval "$(zraft completion bash)"
        COMP_WORDS=(zraft node kill n); COMP_CWORD=3; _zraft 2>/dev/null; echo "${COMPREPLY[*]}"
        COMP_WORDS=(zraft config ''); COMP_CWORD=2; _zraft 2>/dev/null; echo "${COMPREPLY[*]}"
        complete -p zraft
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", asked],
        env={**environ, "PATH": f"{program}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    nodes, verbs, registered = done.stdout.splitlines()
    assert nodes == "n1 n2 n3"
    assert set(verbs.split()) == {"init", "validate", "show"}
    assert "-F _zraft zraft" in registered
