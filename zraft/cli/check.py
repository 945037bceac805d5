"""`zraft check`: does what clients saw have an explanation? Exit 0 yes, 8 no, 9 not decided."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zraft.cli.options import Run, command, noun
from zraft.errors import ControlError

app = noun(
    "check",
    "Judge what clients saw: is there an order of all operations that explains every answer?",
    ["zraft check file history.jsonl", "zraft check file history.jsonl --json"],
    later=("run", "invariants", "show", "replay"),
)

DEFAULT_TIMEOUT_MS = 60_000


@command(
    app,
    "check file",
    examples=["zraft check file history.jsonl", "zraft check file history.jsonl --timeout 5m"],
)
def file(
    run: Run,
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A history: one JSON object a line.")
    ],
) -> int:
    """Judge a recorded history of get, put, delete, cas, append and incr.

    Exit 0: linearizable. Exit 8: it is not, and what cannot be explained is printed. Exit 9: the
    time (--timeout, default 60s) or the memory ran out first.
    """
    from zraft.cli.verdict import EXIT_OF, verdict_document, write_verdict
    from zraft.testing.history import HistoryError, read_history
    from zraft.testing.linearizability import check_history

    with run.out.working(f"judging {path}"):
        try:
            operations = read_history(path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise ControlError(f"{path}: no such file", why=str(error.strerror)) from None
        if not operations:
            raise HistoryError(f"{path} has no operations", why="an empty history proves nothing")
        result = check_history(operations, timeout_ms=run.timeout_ms(DEFAULT_TIMEOUT_MS))
    document = {
        "schema": "zraft.check/1",
        "ok": result.verdict == "linearizable",
        "file": str(path),
        **verdict_document(result),
    }
    run.out.result(document, lambda: write_verdict(run.out, result))
    return EXIT_OF[result.verdict]
