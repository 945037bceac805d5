"""Crash points: a closed list, every one in the code, and free when unused."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import timeit
from pathlib import Path

import pytest

from zraft import crashpoints

ROOT = Path(__file__).parents[2]
PASSAGE = re.compile(r'crashpoints\.reach\(f?"([^"]+)"\)')
FREE_NS = 100  # the test of an attribute takes about 5; anything that runs code takes more


def test_the_list_and_the_code_name_the_same_points() -> None:
    """A point that is listed and nowhere passed waits for ever; no other can be armed."""
    found: set[str] = set()
    for path in (ROOT / "zraft").rglob("*.py"):
        for name in PASSAGE.findall(path.read_text(encoding="utf-8")):
            found |= {name.replace("{kind}", kind) for kind in ("vote", "entries")}
    assert found == set(crashpoints.POINTS)
    assert len(found) >= 20


def test_every_passage_asks_first_whether_any_point_is_armed() -> None:
    """`if crashpoints.armed:` stands right before each `reach`: unused, no call is made."""
    for path in (ROOT / "zraft").rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if PASSAGE.search(line):
                assert lines[number - 1].strip() == "if crashpoints.armed:", f"{path}:{number}"


def test_an_unused_point_costs_next_to_nothing() -> None:
    """The test of a plain attribute, in nanoseconds, best of several."""
    count = 100_000
    passed = timeit.repeat(
        "if crashpoints.armed:\n    crashpoints.reach('x')",
        globals={"crashpoints": crashpoints},
        number=count,
        repeat=7,
    )
    assert min(passed) / count * 1e9 < FREE_NS


def test_only_the_armed_point_kills() -> None:
    """Passing another point does nothing; at the armed one the process dies by SIGKILL, saying so
    in its err file and doing nothing after it."""
    program = (
        "from zraft import crashpoints\n"
        "crashpoints.arm('flush.sent')\n"
        "crashpoints.reach('flush.advanced')\n"
        "print('alive', flush=True)\n"
        "crashpoints.reach('flush.sent')\n"
        "print('not dead', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "alive\n")
    assert done.stderr.startswith("crash point flush.sent: ")


def test_an_unknown_point_can_not_be_armed() -> None:
    """A misspelt name is refused; an empty one disarms."""
    with pytest.raises(KeyError):
        crashpoints.arm("flush.snet")
    crashpoints.arm("flush.sent")
    crashpoints.arm("")
    assert crashpoints.armed == ""
