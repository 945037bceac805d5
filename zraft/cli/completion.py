"""`zraft completion`: scripts for bash, zsh and fish, and the answer to what they ask.

A script asks `zraft completion words -- WORD…` at every Tab; the last word is the one that is being
typed. The answer comes from the command tree itself, so that it can not fall behind, and from the
cluster's files: names of clusters and nodes. Only the ids of faults are asked for over a socket.
What fails is no suggestion, and never a message in the middle of somebody's prompt.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from zraft.cli.errors import EXIT_OK
from zraft.cli.options import Run, command, noun
from zraft.cli.output import MODES
from zraft.errors import ZraftError
from zraft.paths import cluster_dir, read_cluster_file, state_root

app = noun(
    "completion",
    "Completion of commands, flags, nodes, faults and events in your shell.",
    ['eval "$(zraft completion bash)"', "zraft completion fish | source"],
)

BASH = r"""
_zraft() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("${line%%$'\t'*}")
    done < <(zraft completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    case "${COMPREPLY[*]}" in
        *[=:]) compopt -o nospace ;;
    esac
}
complete -o default -F _zraft zraft
"""

ZSH = r"""
#compdef zraft
_zraft() {
    local line text
    local -a found
    while IFS= read -r line; do
        text=${line%%$'\t'*}
        text=${text//:/\\:}
        found+=("$text:${line#*$'\t'}")
    done < <(zraft completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( ${#found} )); then
        _describe zraft found
    else
        _files
    fi
}
compdef _zraft zraft
"""

FISH = r"""
function __zraft_words
    set -l given (commandline -opc)
    set -e given[1]
    set -l token (commandline -ct)
    set -l found (zraft completion words -- $given "$token" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path "$token"
    end
end
complete -c zraft -f -a '(__zraft_words)'
"""


class Word(NamedTuple):
    """A suggestion, and what it means."""

    text: str
    help: str = ""


class Moment(NamedTuple):
    """Where somebody is when they press Tab: the command, its place in it, the cluster meant."""

    command: Any  # a click command
    positionals: int  # given so far
    option: Any | None  # one that waits for its value
    cluster: str | None


@command(app, "completion bash", examples=['eval "$(zraft completion bash)"'])
def bash(run: Run) -> int:
    """Print the script for bash; put the example into ~/.bashrc."""
    return _print_script(run, "bash", BASH)


@command(app, "completion zsh", examples=["zraft completion zsh > ~/.zfunc/_zraft"])
def zsh(run: Run) -> int:
    """Print the script for zsh: a file of a directory in $fpath, or eval it after compinit."""
    return _print_script(run, "zsh", ZSH)


@command(app, "completion fish", examples=["zraft completion fish | source"])
def fish(run: Run) -> int:
    """Print the script for fish; keep it as ~/.config/fish/completions/zraft.fish."""
    return _print_script(run, "fish", FISH)


def _print_script(run: Run, shell: str, script: str) -> int:
    document = {"schema": "zraft.completion/1", "ok": True, "shell": shell, "script": script}
    run.out.result(document, lambda: run.out.line(script.strip()))
    return EXIT_OK


@command(app, "completion words", examples=["zraft completion words -- node kill ''"])
def words(
    run: Run,
    typed: Annotated[
        list[str] | None, typer.Argument(metavar="WORD...", help="The last one is incomplete.")
    ] = None,
) -> int:
    """Print what may come next, one suggestion a line. The scripts of the shells ask this."""
    from zraft.cli.main import make_program

    given = typed or [""]
    found = list(suggest(make_program(), given, run.environ))
    document = {
        "schema": "zraft.completion.words/1",
        "ok": True,
        "words": [{"word": word.text, "help": word.help} for word in found],
    }

    def human() -> None:
        for word in found:
            run.out.line(f"{word.text}\t{word.help}")

    run.out.result(document, human)
    return EXIT_OK


# ---------------------------------------------------------------------------------------- the tree


def suggest(program: Any, typed: Sequence[str], environ: Mapping[str, str]) -> Iterator[Word]:
    """Yield what the last of the typed words may become."""
    *before, incomplete = typed
    moment = _walk(program, before)
    if moment is None:
        return
    head = ""
    option, _, rest = incomplete.partition("=")
    if moment.option is None and option.startswith("--") and option != incomplete:
        moment = moment._replace(option=_option(moment.command, option))
        head, incomplete = f"{option}=", rest
    if moment.option is None and incomplete.startswith("-"):
        found: Iterable[Word] = _flags(moment.command)
    elif moment.option is None and hasattr(moment.command, "list_commands"):
        found = _commands(moment.command)
    else:
        found = _values(moment, incomplete, environ)
    for word in found:
        if word.text.startswith(incomplete):
            yield Word(head + word.text, word.help)


def _walk(program: Any, before: Sequence[str]) -> Moment | None:
    """Follow the finished words through the tree; None when one of them leads nowhere."""
    moment = Moment(program, 0, None, None)
    literal = False
    for word in before:
        if moment.option is not None:
            cluster = word if moment.option.name == "cluster" else moment.cluster
            moment = moment._replace(option=None, cluster=cluster)
        elif word == "--" and not literal:
            literal = True
        elif word.startswith("-") and word != "-" and not literal:
            option = _option(moment.command, word.partition("=")[0])
            if option is not None and not option.is_flag and "=" not in word:
                moment = moment._replace(option=option)
        elif hasattr(moment.command, "get_command"):
            below = moment.command.get_command(None, word)
            if below is None:
                return None
            moment = moment._replace(command=below)
        else:
            moment = moment._replace(positionals=moment.positionals + 1)
    return moment


def _option(command: Any, flag: str) -> Any | None:
    for parameter in command.params:
        if flag in (*parameter.opts, *parameter.secondary_opts):
            return parameter
    return None


def _flags(command: Any) -> Iterator[Word]:
    for parameter in command.params:
        if parameter.param_type_name == "option":
            for flag in (*parameter.opts, *parameter.secondary_opts):
                if flag.startswith("--"):
                    yield Word(flag, parameter.help or "")
    yield Word("--help", "Examples and every flag.")


def _commands(group: Any) -> Iterator[Word]:
    for name in group.list_commands(None):
        below = group.get_command(None, name)
        yield Word(name, (below.help or "").partition("\n")[0])


# ------------------------------------------------------------------------------------- the values


def _values(moment: Moment, incomplete: str, environ: Mapping[str, str]) -> Iterator[Word]:
    """Yield the values of a flag or an argument, by the word that its help has for it."""
    parameter = moment.option
    if parameter is None:
        arguments = [p for p in moment.command.params if p.param_type_name == "argument"]
        if not arguments:
            return
        parameter = arguments[min(moment.positionals, len(arguments) - 1)]
    kinds = str(parameter.metavar or "").split()  # "TARGET [POINT]": one after the other
    kind = kinds[min(moment.positionals, len(kinds) - 1)].strip("[].") if kinds else ""
    cluster = moment.cluster or environ.get("ZRAFT_CLUSTER") or None
    if (find := _BY_KIND.get(kind)) is not None:
        yield from find(cluster, environ)
    elif kind in {"TARGET", "GROUP", "NODE", "FROM:TO"}:
        head = incomplete[: max(incomplete.rfind(","), incomplete.rfind(":")) + 1]
        yield from (Word(head + text, told) for text, told in _targets(cluster, environ))
    elif parameter.name == "cluster":
        yield from _clusters(environ)


def _targets(cluster: str | None, environ: Mapping[str, str]) -> Iterator[Word]:
    from zraft.cli.targets import WORDS

    with contextlib.suppress(ZraftError):
        file = read_cluster_file(cluster_dir(cluster or "default", environ))
        yield from (Word(name, "a node") for name in file.names)
    yield from (Word(word, "who that is when the command runs") for word in WORDS)


def _clusters(environ: Mapping[str, str]) -> Iterator[Word]:
    root = state_root(environ)
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(root)):
            if (Path(root) / name / "cluster.toml").exists():
                yield Word(name, "a cluster")


def _faults(cluster: str | None, environ: Mapping[str, str]) -> Iterator[Word]:
    from zraft.client.control import Cluster

    with contextlib.suppress(ZraftError):
        for fault in Cluster.open(cluster or "default", environ).faults.list():
            yield Word(fault.id, fault.kind)


def _events(cluster: str | None, environ: Mapping[str, str]) -> Iterator[Word]:
    from zraft.events import EVENTS

    yield from (Word(name, event.meaning) for name, event in EVENTS.items())


def _points(cluster: str | None, environ: Mapping[str, str]) -> Iterator[Word]:
    from zraft.crashpoints import POINTS

    yield from (Word(name, text) for name, text in POINTS.items())


def _fixed(*texts: str) -> Callable[[str | None, Mapping[str, str]], Iterator[Word]]:
    return lambda cluster, environ: (Word(text) for text in texts)


_BY_KIND: dict[str, Callable[[str | None, Mapping[str, str]], Iterator[Word]]] = {
    "ID": _faults,
    "EVENT": _events,
    "GLOBS": _events,
    "POINT": _points,
    "FORM": _fixed(*MODES),
    "LEVEL": _fixed("linearizable", "lease", "stale"),
    "CONDITION": _fixed("leader", "converged", "up="),
    "PART": _fixed("meta", "wal", "snapshot"),
}
