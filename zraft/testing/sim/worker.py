"""A process of a campaign: reads seeds, one a line, and answers each with its outcome as JSON.

Run as `python -m zraft.testing.sim.worker --time-s 15 [--bug NAME]`. A planted bug lives and dies
with its process, so no experiment leaks into the next. Processes are how a campaign uses several
cores: there are no threads here, and a seed that brings a process down is only that seed's failure.
"""

from __future__ import annotations

import gc
import sys

import msgspec.json

from zraft.testing.sim.report import to_document
from zraft.testing.sim.runner import run_seed
from zraft.testing.zoo import planted

TRACE_LINES = 300


def main(arguments: list[str]) -> int:
    """Answer until there is nothing more to read."""
    time_s = float(arguments[arguments.index("--time-s") + 1])
    if "--bug" not in arguments:
        return _answer(time_s)
    with planted(arguments[arguments.index("--bug") + 1]):
        return _answer(time_s)


def _answer(time_s: float) -> int:
    gc.freeze()  # what is imported stays: a collection need not look at it again
    for line in sys.stdin:
        outcome = run_seed(int(line), time_s=time_s)
        document = to_document(outcome)
        document["trace"] = outcome.trace[-TRACE_LINES:]
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
        sys.stdout.flush()
        gc.collect()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
