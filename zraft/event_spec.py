"""What an event is: its stream, its loudness, its fields, and what it means (`zraft.events`)."""

from __future__ import annotations

from typing import Literal, NamedTuple

Stream = Literal["log", "trace"]
Level = Literal["debug", "info", "warning", "error"]

RESERVED_FIELDS = frozenset(
    {"ts", "level", "event", "msg", "cluster", "node", "pid", "inc", "seq", "mono_ns", "v"}
)
"""Keys that every line has; no event has a field of such a name."""

CONTEXT_FIELDS = ("role", "term", "leader", "commit", "applied", "last")
"""What a node adds to each line; an event's own field of the same name wins."""


class EventSpec(NamedTuple):
    """One event: where it is written, how loud, with which fields, and what it means.

    `template` makes the sentence `msg` out of the fields (`str.format_map`).
    """

    stream: Stream
    level: Level
    fields: tuple[str, ...]
    template: str
    meaning: str


def log_event(level: Level, fields: str, template: str, meaning: str) -> EventSpec:
    """Return an event of the stream `log`; `fields` are separated by blanks."""
    return EventSpec("log", level, tuple(fields.split()), template, meaning)


def trace_event(fields: str, template: str, meaning: str) -> EventSpec:
    """Return an event of the stream `trace`, which is all debug."""
    return EventSpec("trace", "debug", tuple(fields.split()), template, meaning)
