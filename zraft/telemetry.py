"""What a process writes about itself: two files of JSON lines, `log.jsonl` and `trace.jsonl`.

    emit(event, **fields)   decisions   → log.jsonl     always written
    trace(event, **fields)  messages    → trace.jsonl   off | auto (so many a second) | full
    notice(fact)            the core's typed facts      → the stream that `zraft.events` names

It owns both files: it buffers lines (at most 64, at most 100 ms, none at warning and above),
rotates the files by size, and is their only writer, so there is nothing to race with. It never
blocks on anybody: no pipe, no socket, no lock. It never stops a process either: a diagnostic that
the disk refuses is counted (`dropped_lines`) and forgotten. A wrong name or field is a bug in the
program and is an assert; tests/unit/test_events.py finds it before.

structlog does the binding and the processing (one cached logger per file; a module-level lazy proxy
costs twice as much), msgspec the encoding. The file is opened with O_APPEND and written with one
`write` per flush, so a kill -9 loses at most the buffered lines and cuts none in two.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec.json

from zraft import clock
from zraft.event_spec import EventSpec
from zraft.events import EVENTS, render_events_markdown

__all__ = ["EVENTS", "EventSpec", "Fact", "Telemetry", "TraceMode", "render_events_markdown"]

TraceMode = Literal["off", "auto", "full"]

LINE_VERSION = 1
BUFFER_LINES = 64
BUFFER_MS = 100
TRACE_WINDOW_NS = 1_000_000_000
MEMBER_FIELDS = frozenset(
    {"peer", "leader", "target", "votes", "heard", "voters", "outgoing", "learners", "joining"}
)
"""Fields of the core's facts that hold member ids; people read labels."""

_FIELDS = {name: frozenset(spec.fields) for name, spec in EVENTS.items()}
_SPOKEN_FIELDS = MEMBER_FIELDS | {"names"}


class Fact(Protocol):
    """A typed fact with the name of its event; the attributes are the event's fields."""

    @property
    def event(self) -> str:
        """Return the name of the event."""
        ...


def _no_context() -> Mapping[str, object]:
    return {}


def _label(member: int) -> str:
    return f"{member:016x}"


def _spoken(value: object) -> object:
    """Return what a sentence says for a name or a list of names."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "nobody"
    return value or "nobody"


class Moment(NamedTuple):
    """When a line was said, and the fields of that moment."""

    seq: int
    wall_ns: int
    mono_ns: int
    context: Mapping[str, object]


class Held(NamedTuple):
    """A line of the trace that is not rendered yet."""

    level: str
    event: str
    fields: dict[str, object]
    moment: Moment


class Telemetry:
    """The two diagnostic streams of one process.

    `context` is called for each line and returns the fields of the moment (role, term, leader,
    commit, applied, last); `label` turns a member id of a fact into the node's name. Both are set
    by the owner once it has something to say. `inc` may be set late with `identify`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        node: str,
        cluster: str,
        incarnation: int = 0,
        trace: TraceMode = "auto",
        trace_events_per_s: int = 300,
        rotate_bytes: int = 16 << 20,
        rotate_files: int = 5,
        monotonic_ns: Callable[[], int] = clock.monotonic_ns,
        wall_time_ns: Callable[[], int] = clock.wall_time_ns,
    ) -> None:
        """Open nothing yet; the files appear with the first flush."""
        self.context: Callable[[], Mapping[str, object]] = _no_context
        self.label: Callable[[int], str] = _label
        self.mode: TraceMode = trace
        self.tracing = trace != "off"
        self.seq = 0
        self._identity: dict[str, object] = {
            "cluster": cluster,
            "node": node,
            "pid": os.getpid(),
            "inc": incarnation,
        }
        self._monotonic_ns = monotonic_ns
        self._wall_time_ns = wall_time_ns
        self._second, self._second_text = -1, ""
        self._encode = msgspec.json.Encoder(enc_hook=str).encode
        self._log = LineFile(directory / "log.jsonl", rotate_bytes, rotate_files)
        self._trace = LineFile(directory / "trace.jsonl", rotate_bytes, rotate_files)
        self._write_log = self._methods(self._log)
        self._write_trace = self._methods(self._trace)
        self._trace_limit = sys.maxsize if trace == "full" else trace_events_per_s
        self._window_start_ns = 0
        self._window_count = 0
        self._suppressed: dict[str, int] = {}
        self._waiting_since_ms: int | None = None
        self._held: list[Held] = []
        self._moment: Moment | None = None

    @property
    def dropped_lines(self) -> int:
        """Return how many lines the disk refused since the start."""
        return self._log.dropped_lines + self._trace.dropped_lines

    def identify(self, *, incarnation: int) -> None:
        """Put the boot counter of the data directory on every line from now on."""
        self._identity["inc"] = incarnation

    def emit(self, event: str, /, **fields: object) -> None:
        """Write one event of the closed list, with exactly its fields, to the stream it belongs to.

        At warning and above the line is in the file when this returns.
        """
        spec = EVENTS.get(event)
        assert spec is not None, f"event {event!r} is not in zraft/events.py"
        assert fields.keys() == _FIELDS[event], (
            f"event {event!r} has the fields {spec.fields}, got {tuple(fields)}"
        )
        if spec.stream == "trace":
            self._count_trace(event, spec, fields)
            return
        self._write_log[spec.level](event, **fields)
        if spec.level in {"warning", "error"}:
            self._log.flush()

    def trace(self, event: str, /, **fields: object) -> None:
        """Write one event of the trace stream, unless traces are off or over their limit.

        A hot caller tests `tracing` first and saves the cost of the arguments.
        """
        if self.tracing:
            self.emit(event, **fields)

    def notice(self, fact: Fact) -> None:
        """Write a typed fact of the core, with member ids turned into labels."""
        spec = EVENTS.get(fact.event)
        assert spec is not None, f"event {fact.event!r} is not in zraft/events.py"
        if spec.stream == "trace" and not self.tracing:
            return
        self.report(fact.event, **{name: getattr(fact, name) for name in spec.fields})

    def report(self, event: str, /, **fields: object) -> None:
        """Write an event whose members are ids; people read labels."""
        for name in MEMBER_FIELDS & fields.keys():
            value = fields[name]
            if isinstance(value, int):
                fields[name] = self.label(value) if value else ""
            elif isinstance(value, tuple | list):
                fields[name] = [self.label(member) for member in value]
        self.emit(event, **fields)

    def notices(self, facts: Iterable[Fact]) -> None:
        """Write all facts of one `Ready`, in order."""
        for fact in facts:
            self.notice(fact)

    def flush(self, now_ms: int) -> None:
        """Write what has waited for 100 ms; called once a turn of the loop, last of all.

        Args:
            now_ms: the loop's time, from any clock that never goes back.
        """
        if self._suppressed:
            self._report_suppressed(self._monotonic_ns())
        if not self._log.lines and not self._trace.lines and not self._held:
            self._waiting_since_ms = None
        elif self._waiting_since_ms is None:
            self._waiting_since_ms = now_ms
        elif now_ms - self._waiting_since_ms >= BUFFER_MS:
            self.write_out()

    def next_deadline_ms(self) -> int | None:
        """Return when `flush` must be called next, in the time given to `flush`; None: no need."""
        return None if self._waiting_since_ms is None else self._waiting_since_ms + BUFFER_MS

    def write_out(self) -> None:
        """Write all buffered lines now: before an exit, a deliberate crash, a core dump."""
        self._render_held()
        self._log.flush()
        self._trace.flush()
        self._waiting_since_ms = None

    def reopen(self) -> None:
        """Write what is buffered and open the files anew, for whoever moved them away."""
        self.write_out()
        self._log.close()
        self._trace.close()

    def close(self) -> None:
        """Write everything, also the last count of suppressed traces, and close the files."""
        if self._suppressed:
            self._window_start_ns = self._monotonic_ns() - TRACE_WINDOW_NS
            self._report_suppressed(self._monotonic_ns())
        self.write_out()
        self._log.close()
        self._trace.close()

    def _methods(self, sink: LineFile) -> dict[str, Callable[..., Any]]:
        structlog = _import_structlog()
        logger = structlog.wrap_logger(
            sink,
            processors=[self._render],
            wrapper_class=structlog.make_filtering_bound_logger(0),
            cache_logger_on_first_use=True,
        ).bind()
        return {name: getattr(logger, name) for name in ("debug", "info", "warning", "error")}

    def _render(self, _logger: object, level: str, fields: dict[str, Any]) -> bytes:
        """Turn an event into its line: the structlog processor, the only one."""
        event = fields.pop("event")
        spoken = fields
        if not _SPOKEN_FIELDS.isdisjoint(fields):
            spoken = {**fields}
            for name in _SPOKEN_FIELDS & fields.keys():
                spoken[name] = _spoken(fields[name])
        seq, wall_ns, mono_ns, context = self._moment or self._now()
        line = {
            "ts": self._timestamp(wall_ns),
            "level": level,
            "event": event,
            "msg": EVENTS[event].template.format_map(spoken),
            **self._identity,
            "seq": seq,
            "mono_ns": mono_ns,
            **context,
            **fields,
            "v": LINE_VERSION,
        }
        return self._encode(line)

    def _now(self) -> Moment:
        self.seq += 1
        return Moment(self.seq, self._wall_time_ns(), self._monotonic_ns(), self.context())

    def _hold(self, level: str, event: str, fields: dict[str, object]) -> None:
        """Keep a line of the trace as values; it is rendered with all others, 100 ms later.

        One line at a time costs an idle node seven times as much: the code for it has left the
        processor's cache each time (measured: 42 against 6 µs).
        """
        self._held.append(Held(level, event, fields, self._now()))
        if len(self._held) >= BUFFER_LINES:
            self._render_held()

    def _render_held(self) -> None:
        held, self._held = self._held, []
        for level, event, fields, moment in held:
            self._moment = moment
            self._write_trace[level](event, **fields)
        self._moment = None

    def _timestamp(self, wall_ns: int) -> str:
        second, nanos = divmod(wall_ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._second_text = f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"
        return f"{self._second_text}.{nanos // 1000:06d}Z"

    def _count_trace(self, event: str, spec: EventSpec, fields: dict[str, object]) -> None:
        if not self.tracing:
            return
        now_ns = self._monotonic_ns()
        if now_ns - self._window_start_ns >= TRACE_WINDOW_NS:
            if self._suppressed:
                self._report_suppressed(now_ns)
            self._window_start_ns = now_ns
            self._window_count = 0
        self._window_count += 1
        if self._window_count > self._trace_limit:
            self._suppressed[event] = self._suppressed.get(event, 0) + 1
            return
        self._hold(spec.level, event, fields)

    def _report_suppressed(self, now_ns: int) -> None:
        if now_ns - self._window_start_ns < TRACE_WINDOW_NS:
            return
        kinds, self._suppressed = self._suppressed, {}
        count = sum(kinds.values())
        self._hold("debug", "trace.suppressed", {"count": count, "kinds": kinds})


class LineFile:
    """One file of lines: buffered, appended with one `write`, rotated by size to `.1` … `.N`.

    structlog calls the method named like the level; all of them append the line to the buffer.
    """

    def __init__(self, path: Path, rotate_bytes: int, rotate_files: int) -> None:
        """Remember where to write; the file is opened by the first flush."""
        self.path = path
        self.lines: list[bytes] = []
        self.dropped_lines = 0
        self._rotate_bytes = rotate_bytes
        self._rotate_files = rotate_files
        self._descriptor = -1
        self._size_bytes = 0
        self._cut = False

    def msg(self, line: bytes) -> None:
        """Buffer one line; the 64th writes them all."""
        self.lines.append(line)
        if len(self.lines) >= BUFFER_LINES:
            self.flush()

    debug = info = warning = error = msg

    def flush(self) -> None:
        """Write the buffer to the file, or count its lines as dropped."""
        if not self.lines:
            return
        count, data = len(self.lines), b"\n".join(self.lines) + b"\n"
        self.lines.clear()
        try:
            if self._descriptor < 0:
                self._open()
            if self._cut:
                data = b"\n" + data  # the rest of a cut line must not swallow the next one
            written = os.write(self._descriptor, data)
            self._size_bytes += written
            self._cut = written < len(data)
            if self._cut:
                raise OSError(errno.ENOSPC, "short write")
        except OSError:
            self.dropped_lines += count
            return
        if self._size_bytes >= self._rotate_bytes:
            with contextlib.suppress(OSError):  # the next flush opens the file and tries again
                self._rotate()

    def close(self) -> None:
        """Close the file; the next flush opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o600)
        self._size_bytes = os.fstat(self._descriptor).st_size
        last = os.pread(self._descriptor, 1, self._size_bytes - 1) if self._size_bytes else b"\n"
        self._cut = last != b"\n"

    def _rotate(self) -> None:
        """Rename `.4` to `.5` … and the file to `.1`; the next flush opens a new one."""
        self.close()
        for number in range(self._rotate_files - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            if older.exists():
                older.replace(self.path.with_name(f"{self.path.name}.{number + 1}"))
        self.path.replace(self.path.with_name(f"{self.path.name}.1"))


def _import_structlog() -> Any:
    """Import structlog without `rich`, which only its development renderer wants.

    That import is half of structlog's cost at the start of every node (measured: 40 of 85 ms). A
    process that already has either keeps it as it is.
    """
    hide = "structlog" not in sys.modules and "rich" not in sys.modules
    if hide:
        sys.modules["rich"] = None  # type: ignore[assignment]  # None: "cannot be imported"
    try:
        import structlog
    finally:
        if hide:
            del sys.modules["rich"]
    return structlog
