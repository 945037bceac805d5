"""A state machine whose module makes one node of its cluster a program of the first version.

Its frames end where those of that version ended, and it knows no kind that came later: it says
none, and what it gets of them is to it a kind without a name. What it cut is noted in a file beside
the cluster's directory, once a kind, so that a test can see that it did.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from zraft import wire, wire_entry
from zraft.machine import kv

OLD_NODE = "n2"
UNNAMED = 200
HEADER_LENGTH = 11
LENGTHS = {1: 15, 2: 14, 3: 16, 4: 16, 5: 18, 6: 15, 7: 11, 8: 12, 9: 13}
"""Of the first version's frames, by kind. It had no kind after KIND_HEARD."""
REQUEST_LENGTH = 8
REPLY_LENGTH = 7


def notes(cluster: Path) -> Path:
    """Return the file of what was cut."""
    return cluster.with_name(f"{cluster.name}.first-version")


class Kv(kv.KV):
    """The ordinary machine."""


class FirstVersion:
    """What a program of the first version writes, and sees of what it reads."""

    def __init__(self, notes_at: Path) -> None:
        self._notes_at = notes_at
        self._noted: set[tuple[str, int]] = set()
        self._pack, self._unpack = wire._pack, wire_entry.unpack

    def pack(self, value: Any) -> bytes:
        """Write a frame: nothing of it that came later."""
        packed: bytes = self._pack(self._cut("write", list(value)))
        return packed

    def unpack(self, data: bytes) -> Any:
        """Read a frame: what came later is not seen."""
        fields = self._unpack(data)
        return self._cut("read", fields) if type(fields) is list and len(fields) > 3 else fields

    def _cut(self, verb: str, fields: list[Any]) -> list[Any]:
        kind = fields[1]
        if kind in (wire.KIND_CLIENT_REQUESTS, wire.KIND_CLIENT_REPLIES):
            length = REQUEST_LENGTH if kind == wire.KIND_CLIENT_REQUESTS else REPLY_LENGTH
            old = [*fields[:3], [list(item)[:length] for item in fields[3]]]
            was_cut = any(len(item) > length for item in fields[3])
        elif kind > wire.KIND_HEARD:
            known = wire.KIND_HEARD if verb == "write" else UNNAMED
            old, was_cut = [fields[0], known, *fields[2:HEADER_LENGTH]], True
        else:
            old = fields[: LENGTHS.get(kind, len(fields))]
            was_cut = len(old) < len(fields)
        if was_cut and (verb, kind) not in self._noted:
            self._noted.add((verb, kind))
            with self._notes_at.open("a") as file:
                file.write(f"{verb} {kind}\n")
        return old


def _begin() -> None:
    directory = Path(sys.argv[sys.argv.index("--dir") + 1]) if "--dir" in sys.argv else Path()
    if directory.name == OLD_NODE:
        first = FirstVersion(notes(directory.parent))
        vars(wire).update(_pack=first.pack, unpack=first.unpack)


_begin()
