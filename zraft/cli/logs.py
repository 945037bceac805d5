"""`zraft logs`: what all processes of a cluster wrote down, merged into one story.

It reads files and never starts anything; only targets by role ask the nodes who they are. Order:
`zraft.cli.merge`. Files: `zraft.cli.logfiles`.
"""

from __future__ import annotations

import fnmatch
import random
import select
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, NamedTuple

import typer

from zraft import clock
from zraft.cli.durations import parse_duration_ms
from zraft.cli.errors import EXIT_OK, did_you_mean, usage_error
from zraft.cli.logfiles import SUPERVISOR, LogFiles
from zraft.cli.merge import Line, Link, Merger, received_link, sent_link
from zraft.cli.options import Run, command, noun
from zraft.cli.output import Output, printable
from zraft.cli.where import Condition, parse_where
from zraft.errors import ControlError, ZraftError
from zraft.events import EVENTS

app = noun(
    "logs",
    "Read what all processes wrote down, merged into one story.",
    ["zraft logs tail -f", "zraft logs tail leader -n 20", "zraft logs tail -e 'election.*'"],
    later=("export", "events", "path"),
)

DEFAULT_LINES = 40
POLL_MS = 100
DISCOVER_EVERY = 10  # polls
FIRST_BUDGET_BYTES = 256 << 10
LAST_BUDGET_BYTES = 64 << 20
FOLD_EVERY_NS = 5_000_000_000
REMEMBERED_ANSWERS = 10_000

WAIT_TIMEOUT_MS = 30_000

LEVELS = ("trace", "debug", "info", "warning", "error")
_RANK = {level: rank for rank, level in enumerate(LEVELS)} | {"debug": 1}
_ROLES = {"follower": "FOLL", "pre-candidate": "PREC", "candidate": "CAND", "leader": "LEAD"}
_ROLE_STYLES = {"leader": "bold green", "candidate": "bold yellow", "pre-candidate": "yellow"}
_LEVEL_STYLES = {"warning": "yellow", "error": "red", "debug": "dim"}


class NotSeen(ZraftError):
    """An event that was waited for did not come in time."""

    code = "not_seen"
    exit_code = 6


class Filters(NamedTuple):
    """Which lines are wanted; None and empty mean all."""

    level: str = "debug"
    events: tuple[str, ...] = ()
    not_events: tuple[str, ...] = ()
    term: int | None = None
    since_ns: int | None = None
    where: Condition | None = None

    def wants(self, line: Line) -> bool:
        """Return whether the line passes every filter; heartbeats are another question."""
        fields = line.fields
        event = str(fields.get("event"))
        if _RANK.get(str(fields.get("level")), 1) < _RANK[self.level]:
            return False
        if self.since_ns is not None and (line.old or line.mono_ns < self.since_ns):
            return False
        if self.term is not None and fields.get("term") != self.term:
            return False
        if self.events and not _matches(event, self.events):
            return False
        if self.where is not None and not self.where(fields):
            return False
        return not _matches(event, self.not_events)


class Heartbeats:
    """Tells heartbeats, and the answers to heartbeats, from messages that carry something.

    An answer does not say what it answers: it is taken for one to the last AppendEntries that its
    sender had from that leader. A dropped one does not say what it carried: nearly all are
    heartbeats to a node that is down or cut off. Lines must come in merged order.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], bool] = {}
        self._answers: OrderedDict[Link, bool] = OrderedDict()

    def is_one(self, line: Line) -> bool:
        """Return whether the line tells of an empty AppendEntries or of the answer to one."""
        fields = line.fields
        beat = fields.get("heartbeat") is True
        kind, peer = fields.get("kind"), str(fields.get("peer"))
        if kind == "AppendEntries" and fields.get("event") == "rpc.received":
            self._last[line.node, peer] = beat
        if fields.get("event") == "rpc.dropped":
            return kind in {"AppendEntries", "AppendEntriesResponse"}
        if kind != "AppendEntriesResponse":
            return beat
        if (link := sent_link(line)) is not None:
            beat = self._answers[link] = self._last.get((line.node, peer), True)
            if len(self._answers) > REMEMBERED_ANSWERS:
                self._answers.popitem(last=False)
        elif (link := received_link(line)) is not None:
            beat = self._answers.pop(link, True)
        return beat


def _matches(event: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(event, glob) for glob in globs)


class Story:
    """Prints lines in order, counts what it hides."""

    def __init__(self, out: Output, filters: Filters, *, heartbeats: bool, width: int) -> None:
        self._out = out
        self._filters = filters
        self._heartbeats = heartbeats
        self._width = width
        self._beats = Heartbeats()
        self._hidden = 0
        self._folded_ns = 0

    def select(self, lines: Sequence[Line]) -> list[Line]:
        """Return the lines to show, and count the heartbeats among the others."""
        wanted = []
        for line in lines:
            beat = self._beats.is_one(line)
            if not self._filters.wants(line):
                continue
            if beat and not self._heartbeats:
                self._hidden += 1
            else:
                wanted.append(line)
        return wanted

    def forget_hidden(self) -> None:
        """Start anew: the lines were only looked at."""
        self._hidden = 0
        self._beats = Heartbeats()

    def show(self, lines: Sequence[Line], *, fold: bool) -> None:
        """Print lines; with `fold`, say how many heartbeats were hidden, now and then."""
        now_ns = clock.monotonic_ns()
        if fold and lines and now_ns - self._folded_ns > FOLD_EVERY_NS:
            self.fold()
            self._folded_ns = now_ns
        for line in lines:
            self._show_line(line)
        if lines:
            self._out.stdout.flush()

    def fold(self) -> None:
        """Print the count of hidden heartbeats, to people."""
        if self._hidden and not self._out.machine and self._out.mode != "plain":
            text = f"── {self._hidden} heartbeats hidden (show: --heartbeats) ──"
            self._out.line(" " * 13 + self._out.paint(text, "dim"))
            self._out.stdout.flush()
        self._hidden = 0

    def _show_line(self, line: Line) -> None:
        if self._out.field is not None:
            value = line.fields.get(self._out.field)
            self._out.line("" if value is None else str(value))
        elif self._out.mode == "json":
            self._out.line(line.raw.decode("utf-8", "replace"))
        else:
            self._out.line(self._sentence(line))

    def _sentence(self, line: Line) -> str:
        fields, out = line.fields, self._out
        role = str(fields.get("role") or "")
        level = str(fields.get("level"))
        event = str(fields.get("event"))
        term = fields.get("term")
        style = _LEVEL_STYLES.get(level, "")
        message = printable(str(fields.get("msg", "")))
        return " ".join(
            (
                out.paint(local_time(str(fields.get("ts", ""))), "dim"),
                f"{short_name(line.node):<{self._width}}",
                out.paint(f"{_ROLES.get(role, role[:4].upper()):<4}", _ROLE_STYLES.get(role, "")),
                f"{'' if term is None else f't{term}':<4}",
                out.paint(f"{event:<20}", "red" if level == "error" else "cyan"),
                out.paint(message, style),
            )
        ).rstrip()


def local_time(ts: str) -> str:
    """Return the local time of day of a timestamp, in milliseconds."""
    try:
        moment = datetime.fromisoformat(ts.replace("Z", "+00:00")).astimezone()
    except ValueError:
        return f"{ts[:12]:<12}"
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"


def short_name(node: str) -> str:
    """Return a name that keeps the columns narrow."""
    return "sup" if node == SUPERVISOR else node


def read_last(
    files: LogFiles, wanted: Callable[[Sequence[Line]], list[Line]], count: int | None, since: int
) -> list[Line]:
    """Return all lines of a part of the files that holds the last `count` wanted ones, merged.

    It reads more and more of the ends of the files, until what was not read can't be among them.
    """
    budget = FIRST_BUDGET_BYTES
    while True:
        lines, cut = files.tails(budget)
        merger = Merger()
        merger.add(lines)
        merged = merger.drain()
        if not cut or budget >= LAST_BUDGET_BYTES:
            return merged
        edge = max(line.when for line in cut)
        if count is None:
            enough = all(not line.old and line.mono_ns < since for line in cut) and since > 0
        else:
            enough = sum(line.when > edge for line in wanted(merged)) >= count
        if enough:
            return merged
        budget *= 4


@command(
    app,
    "logs tail",
    examples=[
        "zraft logs tail -f",
        "zraft logs tail n1 n5 -e 'election.*,vote.*' --term 2 --since 30s",
        "zraft logs tail -f --json | jq -c 'select(.event==\"election.won\")'",
    ],
    later=(
        "--columns",
        "--index",
        "--req",
        "--client",
        "--peer",
        "--rpc",
        "--until",
        "--raw",
        "--merge",
    ),
)
def tail(
    run: Run,
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET]...", help="Nodes: n1, leader, all …")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on; follows restarts, rotation, new nodes.")
    ] = False,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", min=0, help="The last so many lines (40).")
    ] = None,
    level: Annotated[
        str, typer.Option("--level", "-l", help="At least: trace, debug, info, warning, error.")
    ] = "trace",
    event: Annotated[
        list[str] | None, typer.Option("--event", "-e", metavar="GLOBS", help="Only such events.")
    ] = None,
    not_event: Annotated[
        list[str] | None, typer.Option("--not-event", metavar="GLOBS", help="No such events.")
    ] = None,
    term: Annotated[int | None, typer.Option("--term", help="Only lines of this term.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only the last 30s, 5m …")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", metavar="EXPR", help='Only if: role == "leader".')
    ] = None,
    heartbeats: Annotated[
        bool, typer.Option("--heartbeats", help="Show heartbeats as well.")
    ] = False,
) -> int:
    """Print the last lines of all nodes in one order: never a receive before its send."""
    if level not in LEVELS:
        raise usage_error(f'-l: no level "{level}"', LEVELS, level)
    since_ns = None if since is None else _ago_ns(since)
    filters = Filters(
        level,
        _globs(event, "-e"),
        _globs(not_event, "--not-event"),
        term,
        since_ns,
        None if where is None else parse_where(where),
    )
    names = run.cluster_file().names
    nodes = _chosen(run, targets or [], names)
    files = LogFiles(run.directory, nodes)
    width = max(len(short_name(name)) for name in (*names, SUPERVISOR))
    story = Story(run.out, filters, heartbeats=heartbeats, width=width)
    count = DEFAULT_LINES if lines is None and since is None else lines
    try:
        first = read_last(files, story.select, count, since_ns or 0)
        story.forget_hidden()
        if not follow:
            _show_last(story, story.select(first), count)
            story.fold()
            return EXIT_OK
        follow_files(files, story, first, count, nodes is None)
    finally:
        files.close()
    return EXIT_OK


def _show_last(story: Story, wanted: list[Line], count: int | None) -> None:
    first = 0 if count is None else max(0, len(wanted) - count)
    story.show(wanted[first:], fold=False)


def follow_files(
    files: LogFiles, story: Story, first: list[Line], count: int | None, discover: bool
) -> None:
    """Print what is there, then what comes, until stdout is closed or the user stops."""
    merger = Merger()
    merger.add(first)
    _show_last(story, story.select(merger.ready(clock.monotonic_ns())), count)
    reader_gone = _reader_gone()
    polls = 0
    while not reader_gone.poll(POLL_MS):
        polls += 1
        if discover and polls % DISCOVER_EVERY == 0:
            files.discover()
        merger.add(files.read_new())
        story.show(story.select(merger.ready(clock.monotonic_ns())), fold=True)


@command(
    app,
    "logs wait",
    examples=[
        "zraft logs wait election.won --timeout 5s",
        "zraft logs wait 'role.*' leader --where 'role == \"leader\" and term > 3'",
        "zraft logs wait process.crashed supervisor --since 1m --json",
    ],
)
def wait(
    run: Run,
    event: Annotated[str, typer.Argument(metavar="EVENT", help="Globs: 'election.*,vote.*'.")],
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[TARGET]...", help="Nodes: n1, leader, all …")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", metavar="EXPR", help='Only if: role == "leader".')
    ] = None,
    term: Annotated[int | None, typer.Option("--term", help="Only in this term.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Also if in the last 30s, 5m …")
    ] = None,
) -> int:
    """Wait for an event from now on, and print it. Exit 6 when it does not come in time."""
    since_ns = clock.monotonic_ns() if since is None else _ago_ns(since)
    condition = None if where is None else parse_where(where)
    filters = Filters("trace", _globs([event], "EVENT"), (), term, since_ns, condition)
    names = run.cluster_file().names
    files = LogFiles(run.directory, _chosen(run, targets or [], names))
    timeout_ms = run.timeout_ms(WAIT_TIMEOUT_MS)
    reader_gone = _reader_gone()

    def pause() -> None:
        if reader_gone.poll(POLL_MS):
            raise BrokenPipeError

    try:
        with run.out.working(f"waiting for {event}"):
            line = wait_for_line(files, filters, timeout_ms, pause)
    finally:
        files.close()
    if line is None:
        raise NotSeen(
            f"{event} was not seen within {timeout_ms / 1000:g}s",
            why=f"no line of {', '.join(targets or ['any process'])} matched since {_start(since)}",
            try_="zraft logs tail -n 20, or --since 1m if it came before",
        )
    width = max(len(short_name(name)) for name in (*names, SUPERVISOR))
    Story(run.out, filters, heartbeats=True, width=width).show([line], fold=False)
    return EXIT_OK


def _start(since: str | None) -> str:
    return "this command began" if since is None else f"{since} before it"


def wait_for_line(
    files: LogFiles, filters: Filters, timeout_ms: int, pause: Callable[[], object]
) -> Line | None:
    """Return the first line that passes the filters, None when none comes in time.

    Lines of different processes that are read together are compared by their time. `pause` lets
    some time pass between two looks.
    """
    deadline_ms = clock.monotonic_ms() + timeout_ms
    lines = read_last(files, lambda merged: [], None, filters.since_ns or 0)
    while True:
        found = [line for line in lines if filters.wants(line)]
        if found:
            return min(found, key=lambda line: line.when)
        if clock.monotonic_ms() >= deadline_ms:
            return None
        pause()
        files.discover()
        lines = files.read_new()


def _ago_ns(text: str) -> int:
    return clock.monotonic_ns() - parse_duration_ms(text, "--since") * 1_000_000


def _reader_gone() -> select.poll:
    """Return what tells, when polled, that nobody reads stdout any more."""
    gone = select.poll()
    try:
        gone.register(1, 0)  # POLLERR comes unasked when nobody reads a pipe any more
    except OSError:
        return select.poll()
    return gone


def _chosen(run: Run, targets: list[str], names: Sequence[str]) -> list[str] | None:
    """Return the names of directories to read, None for all; roles are asked for."""
    if not targets or targets == ["all"]:
        return None
    from zraft.cli.targets import NodeView, needs_roles, resolve, views

    parts = [part for word in targets for part in word.split(",") if part]
    extra = [part for part in parts if part == SUPERVISOR]
    words = [part for part in parts if part != SUPERVISOR]
    if not words:
        return extra
    if needs_roles(words, names):
        from zraft.client.control import Cluster

        cluster = Cluster.open(run.cluster, run.environ)
        seen = views(cluster.statuses(), cluster.table())
    else:
        seen = [NodeView(name, False, False) for name in names]
    chosen = resolve(words, seen, random.Random())
    if needs_roles(words, names):
        run.out.message(f"{', '.join(words)}: {', '.join(chosen) or 'nobody'}")
    return chosen + extra


def _globs(given: Sequence[str] | None, flag: str) -> tuple[str, ...]:
    """Return the globs of an option; one that no event can match is a typo."""
    globs = tuple(part.strip() for text in given or () for part in text.split(",") if part.strip())
    known: list[str] = [*EVENTS, "stderr"]
    for glob in globs:
        if not any(fnmatch.fnmatchcase(name, glob) for name in known):
            meant = did_you_mean(glob, known)
            raise ControlError(
                f'{flag}: no event matches "{glob}"',
                try_=f"did you mean {meant}?" if meant else "the events are in docs/EVENTS.md",
            )
    return globs
