"""`zraft`: the program. Finds the noun, imports only that, and turns failures into exit codes.

`zraft` alone must answer at once, so this module and what it imports stay light; the module of a
noun is imported when it is asked for. Nothing here knows a verb.
"""

from __future__ import annotations

import io
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from zraft._version import __version__

HELP = f"""\
zraft {__version__}: Raft as real processes. Start a cluster, write to it, kill its leader, watch.

  zraft cluster up -n 5            five processes, and a leader in under a second
  zraft kv put hello world         a durable, replicated write
  zraft node kill leader --wait    kill -9, and what it cost in milliseconds

  cluster  up down status list wait restart        kv       put get delete cas scan
  node     list start stop kill restart pause      logs     tail wait
           resume campaign step-down inspect       config   init validate show
  fault    partition isolate drop delay list heal  check    run file      sim    run replay
  snapshot take list show  backup  save verify restore  doctor  version  completion
Help for each: zraft cluster up --help. Global flags: -C NAME, --json, -q, --no-color, --timeout 10s
"""

NOUNS = (
    "cluster",
    "node",
    "kv",
    "logs",
    "fault",
    "check",
    "sim",
    "snapshot",
    "backup",
    "config",
    "completion",
)
MORE_VERBS = {"node": ("membership", "leadership"), "cluster": ("restart",)}
"""Modules that hold further verbs of a noun."""
VERSION = "version"
DOCTOR = "doctor"
EXIT_INTERRUPTED = 130
LATER_NOUNS = (
    "lock",
    "elect",
    "bench",
    "lab",
    "top",
    "dashboard",
    "trace",
    "explain",
    "metrics",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Called as the program, without `arguments`, the traceback of a bug goes into a file.
    """
    if arguments is None:
        sys.excepthook = _report_bug
    given = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    try:
        if not given:
            return _welcome()
        if given[0] in {"-h", "--help", "help"}:
            sys.stdout.write(HELP)
            return 0
        if given == ["--version"]:
            sys.stdout.write(f"zraft {__version__}\n")
            return 0
        return _run(given)
    except BrokenPipeError:  # whoever read our output has had enough, as in `| head`
        return 0
    except KeyboardInterrupt:
        return _interrupted()
    except OSError as error:
        return _refused(error, given)
    finally:
        _flush()


def _prepare_streams() -> None:
    """Make both streams usable: closed ones go nowhere, odd characters are spelled out."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for the process's life
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refused(error: OSError, arguments: Sequence[str]) -> int:
    """Report what the operating system refused; that is no bug."""
    from zraft.cli.errors import SystemFailure, render_error

    what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    failure = SystemFailure(what, why="the operating system refused it")
    return render_error(failure, _error_output(arguments))


def _run(arguments: list[str]) -> int:
    import typer

    from zraft.cli.errors import render_error
    from zraft.cli.options import UsageError
    from zraft.errors import ControlError, ZraftError

    try:
        code = make_program().main(arguments, prog_name="zraft", standalone_mode=False)
    except ZraftError as error:
        return render_error(error, _error_output(arguments))
    except UsageError as error:
        what = str(error).replace("Missing command.", "no command is given")
        return render_error(ControlError(what, try_="zraft --help"), _error_output(arguments))
    except typer.Abort:
        return _interrupted()
    if code == EXIT_INTERRUPTED:
        return _interrupted()
    return code if isinstance(code, int) else 0


def make_program() -> Any:
    """Return the whole command tree; the module of a noun is imported when it is looked into."""
    import typer
    from typer.main import get_command

    from zraft.cli.options import HELP_FLAGS, ZraftGroup, remember_globals

    program = typer.Typer(
        cls=_program_class(ZraftGroup),
        add_completion=False,
        rich_markup_mode=None,
        context_settings=HELP_FLAGS,
    )
    program.callback()(remember_globals)
    return get_command(program)


def _interrupted() -> int:
    """Say at once that Ctrl-C was seen."""
    sys.stderr.write("\ninterrupted\n")
    return EXIT_INTERRUPTED


def _program_class(group: type[Any]) -> type[Any]:
    """Return the group of all nouns; a noun is imported when it is asked for."""
    from zraft.cli.options import set_later_verbs

    set_later_verbs("zraft", LATER_NOUNS)

    class Program(group):  # type: ignore[misc]  # the class is chosen at run time, to import late
        """All nouns."""

        def list_commands(self, ctx: Any) -> list[str]:
            """Return the nouns, `doctor` and `version`."""
            return [*NOUNS, DOCTOR, VERSION]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            """Import the noun's module and return its command."""
            return load_command(cmd_name)

    return Program


def load_command(name: str) -> Any:
    """Return the command of a noun, None when there is no such noun."""
    import importlib

    import typer
    from typer.main import get_command

    from zraft.cli.options import command

    if name == VERSION:
        from zraft.cli.version import version

        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        command(app, VERSION, examples=["zraft version --json"])(version)
        return get_command(app)
    if name == DOCTOR:
        from zraft.cli.doctor import doctor

        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        examples = ["zraft doctor", "zraft doctor --json", "zraft doctor /old/n1 /old/n2"]
        examples += ["zraft doctor /old/n1 --new-cluster rescued -n 3 --accept-loss"]
        command(app, DOCTOR, examples=examples, later=("--fix", "--bundle"))(doctor)
        return get_command(app)
    if name not in NOUNS:
        return None
    app = importlib.import_module(f"zraft.cli.{name}").app
    for module in MORE_VERBS.get(name, ()):
        importlib.import_module(f"zraft.cli.{module}")
    return get_command(app)


def _error_output(arguments: Sequence[str]) -> Any:
    """Return where an error goes when the flags themselves may be wrong."""
    from zraft.cli.output import Output

    form = "json" if "--json" in arguments or _has_json_form(arguments) else "table"
    return Output(
        stdout=sys.stdout,
        stderr=sys.stderr,
        environ=os.environ,
        mode="json" if form == "json" else "table",
        no_color="--no-color" in arguments,
    )


def _has_json_form(arguments: Sequence[str]) -> bool:
    pairs = itertools.pairwise(arguments)
    spelled = {"-ojson", "-o=json", "--output=json"}
    return any(pair in {("-o", "json"), ("--output", "json")} for pair in pairs) or bool(
        spelled.intersection(arguments)
    )


def _welcome() -> int:
    """Print the help, and what the cluster of this shell is doing, if it runs."""
    environ = os.environ
    name = environ.get("ZRAFT_CLUSTER") or "default"
    if (_state_root() / name / "cluster.toml").exists():
        from zraft.cli.cluster import short_status

        sys.stdout.write(short_status(name, environ))
    sys.stdout.write(HELP)
    return 0


def _state_root() -> Path:
    """Return the directory of all clusters, as `zraft.paths` does, without its imports."""
    if home := os.environ.get("ZRAFT_HOME"):
        return Path(home)
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "zraft"
    return Path(os.environ.get("HOME") or "~").expanduser() / ".local" / "state" / "zraft"


def _report_bug(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Say that this is a bug and where its report is; the interpreter exits with 1 after this."""
    if issubclass(kind, KeyboardInterrupt):
        return
    from zraft.cli.errors import render_bug

    arguments = sys.argv[1:]
    if {"-d", "--debug"}.intersection(arguments):
        sys.__excepthook__(kind, error, trace)
    render_bug(error, arguments, _error_output(arguments), _state_root())


def _flush() -> None:
    """Write out what is buffered; nothing may fail any more when the interpreter ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
