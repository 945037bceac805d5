"""What a command prints, and where: stdout is data, stderr is messages, progress and hints.

One `Output` per call of the program decides the form once: a table for people, tab-separated lines
(`-o plain`), one JSON document (`--json`), or one scalar of that document (`--field a.b`). Colour
only where somebody looks at it: `--no-color`, NO_COLOR, FORCE_COLOR, TERM=dumb and the terminal
decide, in this order. It never decides what is said, and never ends the program.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TextIO

import msgspec.json

from zraft import clock
from zraft.errors import ControlError

Mode = Literal["table", "wide", "json", "plain"]
MODES: tuple[Mode, ...] = ("table", "wide", "json", "plain")

Cell = str | tuple[str, str]
"""A text, or a text and a style."""

PROGRESS_AFTER_S = 1.0
PROGRESS_EVERY_S = 0.5
MAX_WIDTH = 1000

_SGR = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
    "bold red": "1;31",
    "bold green": "1;32",
    "bold yellow": "1;33",
}


def wants_color(stream: TextIO, environ: Mapping[str, str], *, no_color: bool) -> bool:
    """Return whether to colour what is written to `stream`."""
    if no_color or environ.get("NO_COLOR"):
        return False
    forced = environ.get("FORCE_COLOR")
    if forced:
        return forced != "0"
    return environ.get("TERM") != "dumb" and stream.isatty()


def printable(text: str) -> str:
    """Return `text` with control characters spelled out, so that it can't steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plural(count: int, noun: str) -> str:
    """Return `1 node`, `2 nodes`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def join_and(names: Sequence[str]) -> str:
    """Return `n1`, `n1 and n2`, `n1, n2 and n3`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def to_json(value: object) -> str:
    """Return JSON on one line, also of texts that are no UTF-8: arguments may hold any byte."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(value)


class Output:
    """Where one call of the program writes, and in which form."""

    def __init__(
        self,
        *,
        stdout: TextIO,
        stderr: TextIO,
        environ: Mapping[str, str],
        mode: Mode = "table",
        field: str | None = None,
        quiet: bool = False,
        no_color: bool = False,
    ) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.mode: Mode = mode
        self.field = field
        self.quiet = quiet
        self.color = wants_color(stdout, environ, no_color=no_color)
        self.color_err = wants_color(stderr, environ, no_color=no_color)
        self.interactive = stderr.isatty() and environ.get("TERM") != "dumb"
        self._progress = ""
        self._progress_shown = False
        self._started_ms = 0

    @property
    def machine(self) -> bool:
        """Return whether a program reads stdout."""
        return self.mode == "json" or self.field is not None

    def paint(self, text: str, style: str) -> str:
        """Return `text` in `style`, if stdout has colour."""
        return _paint(text, style) if self.color and style else text

    def paint_err(self, text: str, style: str) -> str:
        """Return `text` in `style`, if stderr has colour."""
        return _paint(text, style) if self.color_err and style else text

    def result(self, document: Mapping[str, Any], human: Callable[[], None]) -> None:
        """Print a command's result: `--field`, `--json`, or what `human` prints unless `--quiet`.

        Raises:
            ControlError: `--field` names nothing in the document.
        """
        self.clear_progress()
        if self.field is not None:
            self.line(_scalar(_lookup(document, self.field)))
        elif self.mode == "json":
            self.line(to_json(document))
        elif not self.quiet:
            human()

    def line(self, text: str = "") -> None:
        """Write one line of data."""
        self.stdout.write(text + "\n")

    def message(self, text: str) -> None:
        """Tell people something on stderr; silent with `--quiet`."""
        if not self.quiet:
            self.clear_progress()
            self.stderr.write(text + "\n")
            self.stderr.flush()

    def hint(self, text: str) -> None:
        """Suggest something on stderr, only to somebody who sits at a terminal."""
        if self.interactive and not self.machine:
            self.message(self.paint_err(text, "dim"))

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """While something takes long, say what, after a second, on a terminal's last line.

        A timer's signal does it, so that whoever waits need not know; `progress` changes the text.
        """
        if not self.interactive or self.quiet or self.machine:
            yield
            return
        self._progress = text
        self._started_ms = clock.monotonic_ms()
        before = signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, PROGRESS_AFTER_S, PROGRESS_EVERY_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            self.clear_progress()

    def progress(self, text: str) -> None:
        """Say what is being waited for now, once it is time to say anything."""
        self._progress = text

    def clear_progress(self) -> None:
        """Take the line of `working` away; it comes again if the waiting goes on."""
        if self._progress_shown:
            self.stderr.write("\r\x1b[K")
            self.stderr.flush()
            self._progress_shown = False

    def _tick(self, _signal: int, _frame: object) -> None:
        waited_s = (clock.monotonic_ms() - self._started_ms) / 1000
        line = f"\r\x1b[K{self._progress} … {waited_s:.0f}s"
        os.write(self.stderr.fileno(), line.encode())  # the stream may be in use right now
        self._progress_shown = True

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Write a table: drawn by rich on a terminal with colour, aligned by spaces elsewhere."""
        if self.mode == "plain":
            for row in rows:
                self.line("\t".join(_text(cell) for cell in row))
        elif self.color:
            self._rich_table(columns, rows)
        else:
            texts = [list(columns), *([_text(cell) for cell in row] for row in rows)]
            widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
            for row in texts:
                padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
                self.line("  ".join(padded).rstrip())

    def _rich_table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in columns:
            table.add_column(name, no_wrap=True)
        for row in rows:
            table.add_row(
                *(Text(cell) if isinstance(cell, str) else Text(cell[0], cell[1]) for cell in row)
            )
        console = Console(
            file=self.stdout,
            force_terminal=True,
            color_system="standard",
            highlight=False,
            width=MAX_WIDTH,  # a wide table wraps in a narrow terminal; nothing is cut off
        )
        console.print(table)


def _paint(text: str, style: str) -> str:
    return f"\x1b[{_SGR[style]}m{text}\x1b[0m"


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]


def _lookup(document: Mapping[str, Any], path: str) -> object:
    """Follow `a.b.2` or `nodes.n1.role`; an element of a list is found by name, id or place."""
    value: object = document
    walked: list[str] = []
    for part in path.split("."):
        if isinstance(value, Mapping):
            known = [str(key) for key in value]
            found = value.get(part, _MISSING)
        elif isinstance(value, list):
            known = [_element_name(item, place) for place, item in enumerate(value)]
            found = _element(value, part)
        else:
            known, found = [], _MISSING
        if found is _MISSING:
            here = ".".join(walked) or "the document"
            raise ControlError(
                f'--field: there is no "{part}" in {here}',
                why=f"it has {', '.join(known)}" if known else f"{here} is a single value",
                try_="the same command with --json shows every field",
            )
        walked.append(part)
        value = found
    return value


_MISSING = object()


def _element_name(item: object, place: int) -> str:
    if isinstance(item, Mapping):
        return str(item.get("name", item.get("id", place)))
    return str(place)


def _element(items: list[Any], part: str) -> object:
    for place, item in enumerate(items):
        if part in {_element_name(item, place), str(place)}:
            return item
    return _MISSING


def _scalar(value: object) -> str:
    """Return a scalar as a shell wants it: no quotes, nothing for null, JSON for the rest."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return to_json(value)
