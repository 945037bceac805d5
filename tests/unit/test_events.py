"""The closed list of events: the list, the code that emits, and docs/EVENTS.md say the same."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import NamedTuple

import pytest

from zraft.event_spec import CONTEXT_FIELDS, RESERVED_FIELDS
from zraft.events import EVENTS, render_events_markdown

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for top in ("zraft", "supervisor") for p in (ROOT / top).rglob("*.py"))
EMITTERS = {"emit", "trace", "_emit", "_trace", "_report"}
OWN_FILES = {ROOT / "zraft" / "telemetry.py", ROOT / "zraft" / "events.py"}

WRITTEN_ELSEWHERE = {
    "trace.suppressed",  # by the telemetry itself
    "stderr",  # by readers, which wrap lines that are no JSON
}


class Emission(NamedTuple):
    """A place in the code that writes an event; `fields` is None when they are not literal."""

    place: str
    event: str | None
    fields: frozenset[str] | None


def emissions(path: Path) -> Iterator[Emission]:
    """Yield every call of an emitter and every class that names its event."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and called_name(node) in EMITTERS and node.args:
            names = [keyword.arg for keyword in node.keywords]
            fields = None if None in names else frozenset(name for name in names if name)
            for event in literals(node.args[0]):
                if event is None and called_name(node) == "_report":
                    continue  # the supervisor reports other things by that name, too
                if event is None or "." in event or "emit" in called_name(node):
                    yield Emission(place, event, fields)  # other things are traced by plain words
        elif isinstance(node, ast.ClassDef):
            attributes = {
                item.target.id: item.value
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
            value = attributes.pop("event", None)
            if isinstance(value, ast.Constant):
                yield Emission(place, str(value.value), frozenset(attributes))


def called_name(call: ast.Call) -> str:
    """Return the last name of what is called."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def literals(node: ast.expr) -> list[str | None]:
    """Return the strings that an argument can be; None where that cannot be read."""
    if isinstance(node, ast.IfExp):
        return literals(node.body) + literals(node.orelse)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    return [None]


@functools.cache
def found() -> list[Emission]:
    """Return every emission of the program, without the telemetry's own calls."""
    return [e for path in SOURCES if path not in OWN_FILES for e in emissions(path)]


def test_emitters_are_called_with_literal_names() -> None:
    """A name that is computed could be outside the list; so every name stands in the call."""
    assert [e.place for e in found() if e.event is None] == []


def test_every_emitted_event_is_in_the_list() -> None:
    """The list is closed: nothing else may stand in a log."""
    assert [(e.place, e.event) for e in found() if e.event and e.event not in EVENTS] == []


def test_every_event_of_the_list_is_emitted() -> None:
    """An event that nobody writes is a promise that nobody keeps."""
    emitted = {e.event for e in found()}
    assert set(EVENTS) - emitted - WRITTEN_ELSEWHERE == set()


def test_every_emission_has_exactly_the_fields_of_its_event() -> None:
    """Fields are part of the contract; a missing or additional one is found before it runs."""
    wrong = [
        (e.place, e.event, sorted(e.fields.symmetric_difference(EVENTS[e.event].fields)))
        for e in found()
        if e.event in EVENTS
        and e.fields is not None
        and e.fields.symmetric_difference(EVENTS[e.event].fields)
    ]
    assert wrong == []


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_event_is_well_formed(name: str) -> None:
    """Names are noun.verb_past, fields are not reserved, and the sentence uses only its fields."""
    spec = EVENTS[name]
    assert name == "stderr" or re.fullmatch(r"[a-z_]+\.[a-z_]+", name)
    assert not RESERVED_FIELDS & set(spec.fields)
    assert len(set(spec.fields)) == len(spec.fields)
    used = {field for _, field, _, _ in Formatter().parse(spec.template) if field}
    assert used <= set(spec.fields)
    assert spec.meaning.endswith(".")


def test_context_and_reserved_fields_are_apart() -> None:
    """What a node adds to each line never hides what every line has."""
    assert not RESERVED_FIELDS & set(CONTEXT_FIELDS)


def test_events_page_is_generated_from_the_list() -> None:
    """docs/EVENTS.md is what `python -m zraft.events` prints."""
    page = (ROOT / "docs" / "EVENTS.md").read_text(encoding="utf-8")
    assert page == render_events_markdown()
