"""How failures look: what, why, try; JSON on stderr; exit codes; nothing unbuilt is ignored."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zraft.cli.errors import refuse_not_built, render_bug, render_error
from zraft.cli.main import LATER_NOUNS, NOUNS, main
from zraft.cli.output import Mode, Output, wants_color
from zraft.errors import OutcomeUnknown, Unavailable, ZraftError


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def rendered(error: ZraftError, mode: Mode = "table", **options: Any) -> tuple[str, int]:
    """Return what stderr gets, and the exit code."""
    stderr = io.StringIO()
    out = Output(stdout=io.StringIO(), stderr=stderr, environ={}, mode=mode, **options)
    code = render_error(error, out)
    return stderr.getvalue(), code


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a home without clusters, and a directory without zraft.toml."""
    monkeypatch.setenv("ZRAFT_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("ZRAFT_CLUSTER", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_error_has_three_parts() -> None:
    """What happened, why, and one line per thing to try."""
    error = Unavailable("nothing changed.", why="no quorum", try_=("zraft a", "zraft b"))
    text, code = rendered(error)
    assert text == (
        "error[unavailable]: nothing changed.\n  why: no quorum\n  try: zraft a\n       zraft b\n"
    )
    assert code == 6


def test_error_as_json_is_the_contract() -> None:
    """Programs learn the code, whether to retry, and whether it may have happened."""
    error = OutcomeUnknown("sent", why="w", try_="t", request_id="8f3c-19")
    text, code = rendered(error, "json")
    assert code == 7
    assert json.loads(text) == {
        "ok": False,
        "error": {
            "code": "unknown_outcome",
            "exit": 7,
            "message": "sent",
            "why": "w",
            "try": ["t"],
            "retryable": False,
            "maybe_applied": True,
            "request_id": "8f3c-19",
            "leader_hint": None,
        },
    }


def test_error_text_cannot_steer_the_terminal() -> None:
    """Control characters in a name or a node's message are spelled out."""
    text, _ = rendered(ZraftError("bad \x1b[2J name"))
    assert "\x1b" not in text


def test_bug_leaves_a_report_and_no_traceback(tmp_path: Path) -> None:
    """A bug is exit 1 with the path of a report; the report holds the traceback."""
    stderr = io.StringIO()
    out = Output(stdout=io.StringIO(), stderr=stderr, environ={})
    with pytest.raises(KeyError) as caught:
        raise KeyError("surprise")
    assert render_bug(caught.value, ["kv", "get"], out, tmp_path) == 1
    (report,) = tmp_path.glob("zraft-crash-*.txt")
    assert str(report) in stderr.getvalue()
    assert "Traceback" not in stderr.getvalue()
    assert "KeyError: 'surprise'" in report.read_text()


@pytest.mark.parametrize(
    ("environ", "no_color", "expected"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, False, True),
        ({"TERM": "dumb"}, False, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        ({"FORCE_COLOR": "0"}, False, False),
    ],
)
def test_colour_is_decided_by_flag_environment_and_terminal(
    environ: dict[str, str], no_color: bool, expected: bool
) -> None:
    """--no-color, NO_COLOR, FORCE_COLOR, TERM=dumb, the terminal: in this order."""
    assert wants_color(Terminal(), environ, no_color=no_color) is expected


def test_a_pipe_has_no_colour_unless_forced() -> None:
    """Escape codes in a file help nobody."""
    assert not wants_color(io.StringIO(), {}, no_color=False)
    assert wants_color(io.StringIO(), {"FORCE_COLOR": "1"}, no_color=False)


# ---------------------------------------------------------------------------- the whole program


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code, stdout and stderr."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_zraft_alone_is_twelve_lines_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The first thing a newcomer types answers what this is and what to type next."""
    code, out, _ = run(capsys)
    assert code == 0
    assert len(out.splitlines()) <= 12
    assert "zraft cluster up -n 5" in out


@pytest.mark.parametrize("noun", NOUNS)
def test_every_noun_has_help_with_examples_first(
    noun: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A noun alone, -h and --help print the same, and exit 0."""
    texts = {run(capsys, noun, *flags) for flags in ([], ["-h"], ["--help"])}
    assert len(texts) == 1
    code, out, _ = texts.pop()
    assert code == 0
    assert out.index("Examples:") < out.index("Usage:") < out.index("Commands:")


@pytest.mark.parametrize("noun", LATER_NOUNS)
def test_nouns_of_the_future_are_refused(noun: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is published but not built is refused as such: exit 2, never ignored."""
    code, _, err = run(capsys, noun, "list")
    assert code == 2
    assert f'error[not_built]: "zraft {noun}" is not built yet' in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("cluster", "up", "--tempo", "demo"),
        ("cluster", "up", "--dashboard=80"),
        ("logs", "tail", "--columns"),
        ("kv", "put", "a", "b", "--ttl", "3s"),
        ("kv", "watch", "a"),
        ("node", "watch"),
        ("fault", "hold", "--link", "n1:n2"),
        ("fault", "partition", "--shape", "ring"),
        ("cluster", "status", "--dry-run"),
    ],
)
def test_flags_and_verbs_of_the_future_are_refused(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag that would be ignored is a trap."""
    code, _, err = run(capsys, *arguments)
    assert (code, "error[not_built]" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("clsuter", "up"), "did you mean cluster?"),
        (("cluster", "stauts"), "did you mean status?"),
        (("cluster", "status", "--jsn"), "did you mean --json?"),
        (("logs", "tail", "-e", "election.wno"), "did you mean election.won?"),
    ],
)
def test_typos_get_a_guess(
    arguments: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong word is exit 2 with the word that was probably meant."""
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert hint in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("cluster", "status"),
        ("cluster", "down"),
        ("node", "list"),
        ("node", "kill", "leader"),
        ("kv", "get", "x"),
        ("logs", "tail"),
        ("fault", "heal", "--all"),
    ],
)
def test_missing_cluster_is_exit_3(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    """No such cluster: nothing is started, nothing is made, and the message says how to."""
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, out) == (3, "")
    assert json.loads(err)["error"]["code"] == "not_running"
    assert not (home / "state").exists()


def test_global_flags_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """Before the noun, between noun and verb, and after the verb."""
    results = {
        run(capsys, *arguments)[2]
        for arguments in (
            ["-C", "exp1", "--json", "node", "list"],
            ["node", "-C", "exp1", "--json", "list"],
            ["node", "list", "--json", "--cluster", "exp1"],
            ["-C", "other", "node", "list", "-C", "exp1", "-o", "json"],
        )
    }
    assert len(results) == 1
    assert "exp1" in results.pop()


def test_environment_names_the_cluster(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZRAFT_CLUSTER is the default; the flag wins."""
    monkeypatch.setenv("ZRAFT_CLUSTER", "mine")
    assert '"mine"' in run(capsys, "node", "list")[2]
    assert '"yours"' in run(capsys, "node", "list", "-C", "yours")[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ("node", "kill"),
        ("kv", "put", "a"),
        ("cluster", "up", "-n", "three"),
        ("cluster", "up", "--transport", "carrier-pigeon"),
        ("cluster", "status", "-o", "xml"),
        ("cluster", "status", "--timeout", "10"),
        ("cluster", "status", "-C", "No Such Name!"),
        ("logs", "tail", "-l", "loud"),
        ("config", "show", "extra"),
    ],
)
def test_wrong_usage_is_exit_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, malformed and superfluous arguments say what is wrong."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error[usage]: ")


def test_version_has_the_published_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """Bug reports start with these."""
    _, out, _ = run(capsys, "version", "--json")
    document = json.loads(out)
    assert document["schema"] == "zraft.version/1"
    assert {"zraft", "python", "pyzmq", "libzmq", "msgpack", "protocol"} <= document.keys()


def test_config_says_where_values_come_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`config show --origin` names the variable that set a key."""
    monkeypatch.setenv("ZRAFT_TIMING_HEARTBEAT_MS", "40")
    _, out, _ = run(capsys, "config", "show", "--json")
    document = json.loads(out)
    assert document["settings"]["timing"]["heartbeat_ms"] == 40
    assert document["origins"]["timing.heartbeat_ms"] == "ZRAFT_TIMING_HEARTBEAT_MS"
    _, out, _ = run(capsys, "config", "show", "--field", "settings.timing.heartbeat_ms")
    assert out == "40\n"


def test_config_shown_is_read_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What `config show` prints is a configuration file."""
    _, out, _ = run(capsys, "config", "show")
    file = tmp_path / "copy.toml"
    file.write_text(out)
    assert run(capsys, "config", "show", "--config", str(file))[1] == out


def test_impossible_configuration_is_exit_78(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A file with an unknown key is refused with file and key."""
    file = tmp_path / "bad.toml"
    file.write_text("[timing]\nelection_mn_ms = 3\n")
    code, _, err = run(capsys, "config", "show", "--config", str(file))
    assert code == 78
    assert "election_mn_ms" in err


def test_field_that_is_not_there_says_what_is(capsys: pytest.CaptureFixture[str]) -> None:
    """`--field` with a typo lists the names at that place."""
    code, out, err = run(capsys, "version", "--field", "pyton")
    assert (code, out) == (2, "")
    assert "python" in err


def test_argument_that_is_no_text_is_still_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments may hold any byte; the error is valid JSON all the same."""
    code, _, err = run(capsys, "kv", "get", "x", "-C", "\udcff\x1b[2J", "--json")
    assert code == 2
    assert "\x1b" not in err
    assert json.loads(err)["error"]["code"] == "usage"


def test_full_disk_behind_stdout_is_no_bug() -> None:
    """Exit 74 and one sentence, not a crash report."""
    program = [sys.executable, "-c", "from zraft.cli.main import main; raise SystemExit(main())"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*program, "version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 74
    assert done.stderr.startswith("error[os]: No space left on device")


def test_bug_in_the_program_ends_with_1_and_a_report(tmp_path: Path) -> None:
    """No traceback reaches the user, unless --debug asks for it."""
    program = (
        "import sys, zraft.cli.version as v\n"
        "v.version_document = lambda: 1 // 0\n"
        "from zraft.cli.main import main\n"
        "sys.exit(main())\n"
    )
    (tmp_path / "state").mkdir()
    command = [sys.executable, "-c", program, "version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error[internal]: this is a bug in zraft" in done.stderr
    assert "Traceback" not in done.stderr
    (report,) = (tmp_path / "state").glob("zraft-crash-*")
    assert "ZeroDivisionError" in report.read_text()
    done = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert "Traceback" in done.stderr


def test_refusal_says_that_nothing_was_done() -> None:
    """The user must not wonder what happened."""
    assert "nothing was done" in refuse_not_built("x").why
