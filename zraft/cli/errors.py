"""How a failure looks: `error[code]: what`, `why:`, `try:`, or one JSON object on stderr.

It renders; the exit code is the error's own (`zraft.errors`), and the numbers below are what the
command line adds to them. A bug ends here as well: with a report in a file instead of a traceback.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zraft import clock
from zraft._version import __version__
from zraft.cli.output import Output, printable, to_json
from zraft.errors import EXIT_IO, Conflict, ControlError, RequestError, ZraftError

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3
EXIT_CHECK_FAILED = 8
EXIT_INCONCLUSIVE = 9
EXIT_DEGRADED = 10
EXIT_NO_QUORUM = 11
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class CasConflict(Conflict):
    """A cas found another value; `details` has it, for programs."""

    def __init__(self, what: str, *, details: dict[str, Any], why: str, try_: str) -> None:
        super().__init__(what, why=why, try_=try_)
        self.details = details


class SystemFailure(ZraftError):
    """The operating system refused something: a full disk behind stdout, a missing permission."""

    code = "os"
    exit_code = EXIT_IO


class NotBuilt(ControlError):
    """A verb or a flag of the published command line that this version does not have yet."""

    code = "not_built"


def refuse_not_built(what: str, *, instead: tuple[str, ...] = ()) -> NotBuilt:
    """Return the error for a verb or flag whose place is reserved."""
    return NotBuilt(
        f"{what} is not built yet",
        why=f"zraft {__version__} does not have it; nothing was done",
        try_=instead,
    )


def error_document(error: ZraftError) -> dict[str, Any]:
    """Return the JSON form of a failure: a published contract."""
    request = error if isinstance(error, RequestError) else None
    details: dict[str, Any] = getattr(error, "details", {})
    return {
        "ok": False,
        "error": {
            "code": error.code,
            "exit": error.exit_code,
            "message": error.what,
            "why": error.why,
            "try": list(error.try_),
            "retryable": request.retryable if request else False,
            "maybe_applied": request.maybe_applied if request else False,
            "request_id": request.request_id if request else None,
            "leader_hint": request.leader_hint if request else None,
            **details,
        },
    }


def render_error(error: ZraftError, out: Output) -> int:
    """Write a failure to stderr and return the exit code of the program."""
    out.clear_progress()
    if out.mode == "json":
        out.stderr.write(to_json(error_document(error)) + "\n")
        return error.exit_code
    head = out.paint_err(f"error[{error.code}]:", "bold red")
    lines = [f"{head} {_spoken(error.what)}"]
    if error.why:
        lines.append(f"  {out.paint_err('why:', 'bold')} {_spoken(error.why)}")
    for place, suggestion in enumerate(error.try_):
        label = out.paint_err("try:", "bold") if place == 0 else "    "
        lines.append(f"  {label} {_spoken(suggestion)}")
    out.stderr.write("\n".join(lines) + "\n")
    return error.exit_code


def _spoken(text: str) -> str:
    return "\n       ".join(printable(line) for line in text.split("\n"))


def did_you_mean(word: str, known: Sequence[str]) -> str | None:
    """Return the known word that a typo meant, None when nothing is close."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return close[0] if close else None


def render_bug(error: BaseException, arguments: Sequence[str], out: Output, directory: Path) -> int:
    """Write a crash report into `directory` (or a temporary one), say where, and return 1."""
    report = "\n".join(
        [
            f"zraft {__version__}, Python {sys.version}",
            f"arguments: {list(arguments)!r}",
            f"time: {_now():%Y-%m-%dT%H:%M:%SZ}",
            "",
            "".join(traceback.format_exception(error)),
        ]
    )
    path = write_report(report, directory)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in last)
    bug = ZraftError(
        "this is a bug in zraft",
        why=f"{type(error).__name__}{where}: {error}",
        try_=f"send {path} to the makers of zraft",
    )
    document = error_document(bug)
    if out.mode == "json":
        document["error"] |= {"code": "internal", "report": str(path)}
        out.stderr.write(to_json(document) + "\n")
        return EXIT_INTERNAL
    head = out.paint_err("error[internal]:", "bold red")
    out.stderr.write(f"{head} {bug.what}\n  why: {_spoken(bug.why)}\n  try: {bug.try_[0]}\n")
    return EXIT_INTERNAL


def _now() -> datetime:
    return datetime.fromtimestamp(clock.wall_time_ns() / 1e9, UTC)


def write_report(report: str, directory: Path) -> Path:
    """Write a report where it stays, else into the temporary directory; return its path."""
    name = f"zraft-crash-{_now():%Y%m%dT%H%M%S}-{os.getpid()}.txt"
    for place in (directory, Path(tempfile.gettempdir())):
        path = place / name
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError:
            continue
        with os.fdopen(descriptor, "w", errors="backslashreplace") as file:
            file.write(report)
        return path
    return Path("(the report could not be written)")


def usage_error(what: str, known: Mapping[str, str] | Sequence[str], word: str) -> ControlError:
    """Return the error for a word nobody knows, with the nearest one that is known."""
    meant = did_you_mean(word, list(known))
    return ControlError(
        what,
        why=f"known are {', '.join(known)}",
        try_=f"did you mean {meant}?" if meant else (),
    )
