"""What all commands share: the global flags, the shape of help, the refusal of what is not built.

`command` registers a function as a verb. The function gets a `Run` (who is meant, where to print)
and its own options; the global flags are added to every verb, every noun and the program itself, so
`zraft -C exp1 cluster status` and `zraft cluster status -C exp1` mean the same; the last one given
wins. Help shows the examples first.
"""

from __future__ import annotations

import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer
import typer.core

from zraft.cli.durations import parse_duration_ms
from zraft.cli.errors import did_you_mean, refuse_not_built, usage_error
from zraft.cli.output import MODES, Output
from zraft.errors import ControlError
from zraft.paths import DEFAULT_CLUSTER, ClusterFile, check_cluster_name, cluster_dir

P = ParamSpec("P")

UsageError = typing.cast("type[Exception]", typer.BadParameter.__mro__[1])
"""What the option parser raises; typer does not export it."""

HELP_FLAGS = {"help_option_names": ["-h", "--help"]}

_EXAMPLES: dict[str, Sequence[str]] = {}
_LATER: dict[str, Sequence[str]] = {}
_LATER_VERBS: dict[str, Sequence[str]] = {}
_GLOBAL_LATER = ("--dry-run",)


class Run:
    """One call of the program: which cluster, where to print, how long to wait."""

    def __init__(self, given: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.cluster = check_cluster_name(
            given.get("cluster") or environ.get("ZRAFT_CLUSTER") or DEFAULT_CLUSTER
        )
        self.out = make_output(given, environ)
        self.no_input = bool(given.get("no_input")) or sys.stdin is None or not sys.stdin.isatty()
        self.debug = bool(given.get("debug"))
        timeout = given.get("timeout")
        self._timeout_ms = None if timeout is None else parse_duration_ms(timeout, "--timeout")

    @property
    def directory(self) -> Path:
        """Return the cluster's directory; it may not exist."""
        return cluster_dir(self.cluster, self.environ)

    @property
    def suffix(self) -> str:
        """Return what a suggested command needs so that it means this cluster."""
        usual = self.environ.get("ZRAFT_CLUSTER") or DEFAULT_CLUSTER
        return "" if self.cluster == usual else f" -C {self.cluster}"

    def timeout_ms(self, default_ms: int) -> int:
        """Return `--timeout`, or the command's own default."""
        return default_ms if self._timeout_ms is None else self._timeout_ms

    def cluster_file(self) -> ClusterFile:
        """Return the cluster's description; NotRunning when there is no such cluster."""
        from zraft.paths import read_cluster_file

        return read_cluster_file(self.directory)


def make_output(given: Mapping[str, Any], environ: Mapping[str, str]) -> Output:
    """Return where and how to print, from the global flags; ControlError for an unknown form."""
    mode = given.get("output") or "table"
    if given.get("json_"):
        mode = "json"
    if mode not in MODES:
        raise usage_error(f'-o: no form "{mode}"', MODES, mode)
    return Output(
        stdout=sys.stdout,
        stderr=sys.stderr,
        environ=environ,
        mode=mode,
        field=given.get("field"),
        quiet=bool(given.get("quiet")),
        no_color=bool(given.get("no_color")),
    )


def _globals(
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", "-C", metavar="NAME", help="The cluster (env ZRAFT_CLUSTER)."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document (= -o json).")] = False,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FORM", help="table, wide, json, plain.")
    ] = None,
    field: Annotated[
        str | None, typer.Option("--field", metavar="A.B", help="Print one scalar of the document.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No messages; the exit code tells.")
    ] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colour (env NO_COLOR).")] = False,
    no_input: Annotated[bool, typer.Option("--no-input", help="Never ask.")] = False,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="How long to wait: 500ms, 10s.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", "-d", help="Tracebacks of bugs.")] = False,
) -> None:
    """Hold the signature of the global flags."""


_HINTS = typing.get_type_hints(_globals, include_extras=True)
GLOBAL_PARAMETERS = [
    parameter.replace(annotation=_HINTS[name], kind=inspect.Parameter.KEYWORD_ONLY)
    for name, parameter in inspect.signature(_globals).parameters.items()
]
GLOBAL_NAMES = frozenset(_HINTS) - {"return"}
_CONTEXT = inspect.Parameter(
    "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
)


class ZraftCommand(typer.core.TyperCommand):
    """A verb: help with the examples first, and a clear word about flags that come later."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write what it does, examples, then the options."""
        _format_help(self, ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and translate what is unknown."""
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            raise _translate(error, self, ctx) from None


class ZraftGroup(typer.core.TyperGroup):
    """A noun: knows its verbs, also those that come later, and guesses at typos."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write what it is, examples, the verbs, then the options."""
        _format_help(self, ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and translate what is unknown; a noun alone gets its help."""
        try:
            return super().parse_args(ctx, args or ["--help"])
        except UsageError as error:
            raise _translate(error, self, ctx) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the verb; ControlError for one that is unknown or not built yet."""
        word = args[0]
        if self.get_command(ctx, word) is None:
            known = self.list_commands(ctx)
            if word in _LATER_VERBS.get(ctx.command_path, ()):
                raise refuse_not_built(
                    f'"{ctx.command_path} {word}"', instead=(f"{ctx.command_path} --help",)
                )
            meant = did_you_mean(word, known)
            raise ControlError(
                f'"{ctx.command_path}" has no command "{word}"',
                why=f"it has {', '.join(known)}",
                try_=f"did you mean {meant}?" if meant else f"{ctx.command_path} --help",
            )
        return super().resolve_command(ctx, args)


def _format_help(command: Any, ctx: Any, formatter: Any) -> None:
    """Write the text, the examples, the usage, the verbs, then own flags and global ones."""
    formatter.write(f"{inspect.cleandoc(command.help or '')}\n")
    if examples := _EXAMPLES.get(ctx.command_path):
        formatter.write("\nExamples:\n" + "".join(f"  {example}\n" for example in examples))
    formatter.write("\n")
    command.format_usage(ctx, formatter)
    if isinstance(command, typer.core.TyperGroup):
        command.format_commands(ctx, formatter)
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Global": []}
    for parameter in command.get_params(ctx):
        if (record := parameter.get_help_record(ctx)) is None:
            continue
        argument = parameter.param_type_name == "argument"
        shared = parameter.name in GLOBAL_NAMES or parameter.name == "help"
        sections["Arguments" if argument else "Global" if shared else "Options"].append(record)
    for title, records in sections.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def _translate(error: Exception, command: Any, ctx: Any) -> ControlError:
    """Turn the option parser's complaint into ours: what, why, what to try."""
    flag = getattr(error, "option_name", None)
    if flag in (*_LATER.get(ctx.command_path, ()), *_GLOBAL_LATER):
        return refuse_not_built(f'the flag {flag} of "{ctx.command_path}"')
    message = str(getattr(error, "message", "")) or str(error)
    if type(error).__name__ == "NoSuchOption" and flag:
        flags = sorted({option for parameter in command.params for option in parameter.opts})
        meant = did_you_mean(flag, [known for known in flags if known.startswith("--")])
        return ControlError(
            f'"{ctx.command_path}" has no flag {flag}',
            try_=(*([f"did you mean {meant}?"] if meant else []), f"{ctx.command_path} --help"),
        )
    parameter = getattr(error, "param", None)
    name = max(parameter.opts, key=len) if parameter is not None else ""
    if type(error).__name__ == "MissingParameter":
        kind = "argument" if not name.startswith("-") else "flag"
        message = f"the {kind} {name.upper() if kind == 'argument' else name} is missing"
    elif name:
        message = f"{name}: {message}"
    return ControlError(message[:1].lower() + message[1:], try_=f"{ctx.command_path} --help")


def set_later_verbs(path: str, verbs: Sequence[str]) -> None:
    """Name the words after `path` that are published but not built."""
    _LATER_VERBS[path] = verbs


def noun(name: str, text: str, examples: Sequence[str], later: Sequence[str] = ()) -> typer.Typer:
    """Return the group of a noun's verbs. `later`: verbs whose place is reserved."""
    path = f"zraft {name}"
    _EXAMPLES[path] = examples
    _LATER_VERBS[path] = later
    app = typer.Typer(
        name=name,
        cls=ZraftGroup,
        help=text,
        add_completion=False,
        rich_markup_mode=None,
        context_settings=HELP_FLAGS,
    )
    app.callback()(remember_globals)
    return app


def remember_globals(ctx: typer.Context, **given: Any) -> None:
    """Keep global flags that stand before the verb; the verb's own win."""
    ctx.obj = {**(ctx.obj or {}), **_present(given)}


def _present(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value not in (None, False)}


def _set_signature(function: Callable[..., Any], own: Sequence[inspect.Parameter]) -> None:
    """Give typer the signature (context, own parameters, global flags) to read."""
    taken = {parameter.name for parameter in own}
    rest = [parameter for parameter in GLOBAL_PARAMETERS if parameter.name not in taken]
    named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    context = _CONTEXT.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([context, *named, *rest])
    function.__signature__ = signature  # type: ignore[attr-defined]  # what inspect looks for
    function.__annotations__ = {
        parameter.name: parameter.annotation for parameter in signature.parameters.values()
    }


_set_signature(remember_globals, [])


def command(
    app: typer.Typer,
    path: str,
    *,
    examples: Sequence[str] = (),
    later: Sequence[str] = (),
) -> Callable[[Callable[Concatenate[Run, P], int]], Callable[Concatenate[Run, P], int]]:
    """Register a function as the verb `path` ("cluster status") of `app`.

    `later` lists flags of the published command line that this verb will have: they are refused
    by name. The function returns the exit code.
    """
    full = f"zraft {path}"
    _EXAMPLES[full] = examples
    _LATER[full] = later

    def register(
        function: Callable[Concatenate[Run, P], int],
    ) -> Callable[Concatenate[Run, P], int]:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = list(inspect.signature(function).parameters.values())[1:]
        own = [parameter.replace(annotation=hints[parameter.name]) for parameter in parameters]

        def call(ctx: typer.Context, **given: Any) -> int:
            shared = {**(ctx.obj or {})}
            shared |= _present({name: given.pop(name) for name in GLOBAL_NAMES & given.keys()})
            run = Run(shared, os.environ)
            return typing.cast("Callable[..., int]", function)(run, **given)

        _set_signature(call, own)
        call.__doc__ = function.__doc__
        verb = path.rpartition(" ")[2]
        app.command(verb, cls=ZraftCommand, context_settings=HELP_FLAGS, help=function.__doc__)(
            call
        )
        return function

    return register
