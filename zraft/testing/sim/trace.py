"""What happened: a hash over everything, and the last steps in the words of interaction files.

The hash covers every step with its time, so two runs with the same hash are the same run. Steps are
kept as values, and become bytes for the hash many at a time, and text only when somebody reads it.
"""

from __future__ import annotations

import re
from collections import deque
from hashlib import blake2b
from typing import Any

import msgpack

from zraft.core.messages import Message
from zraft.core.ready import Ready
from zraft.testing.compact import message_text, ready_text

STEPS_KEPT = 400
HASHED_AT_ONCE = 512
_PADDING = re.compile(r"\.{4,}")


class Violation(AssertionError):
    """A property that must hold was found broken; the text says which, and how."""


class Trace:
    """See the module."""

    def __init__(self, steps: int = STEPS_KEPT) -> None:
        """Keep the last `steps` steps for people."""
        self._hash = blake2b(digest_size=16)
        self._steps: deque[tuple[int, str, object]] = deque(maxlen=steps)
        self._keep = self._steps.append
        self._unhashed: list[Any] = []
        self._pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack

    def message(self, now_us: int, verb: str, message: Message) -> None:
        """Note that a message was delivered, lost or doubled."""
        step = (now_us, verb, message)
        self._keep(step)
        self._unhashed.append(step)

    def ready(self, now_us: int, member_id: int, ready: Ready) -> None:
        """Note that a node handles a Ready. The states it leads to are noted by `state`."""
        self._keep((now_us, "ready", (member_id, ready)))

    def state(self, *numbers: int) -> None:
        """Add numbers to the hash alone; a node does so at the end of each of its turns."""
        self._unhashed.append(numbers)
        if len(self._unhashed) >= HASHED_AT_ONCE:
            self._hash_all()

    def step(self, now_us: int, text: str) -> None:
        """Note anything else, as it stands in an interaction file."""
        step = (now_us, text, None)
        self._keep(step)
        self._unhashed.append(step)

    def hexdigest(self) -> str:
        """Return the hash of all so far."""
        self._hash_all()
        return self._hash.hexdigest()

    def _hash_all(self) -> None:
        """Values are never mutated, so their bytes may wait; one call makes all of them."""
        self._hash.update(self._pack(self._unhashed))
        self._unhashed.clear()

    def lines(self) -> list[str]:
        """Return the steps that are kept, as text."""
        lines: list[str] = []
        shown_ms = -1
        for now_us, verb, value in self._steps:
            if now_us // 1000 != shown_ms:
                shown_ms = now_us // 1000
                lines.append(f"at {shown_ms}ms")
            if verb == "ready":
                assert isinstance(value, tuple)
                lines += ready_text(value[0], value[1])
            elif value is None:
                lines.append(verb)
            else:
                lines.append(f"{verb} {message_text(value)}")  # type: ignore[arg-type]  # a message
        return [_printable(line) for line in lines]


def _printable(line: str) -> str:
    """Return a line with a dot for each byte of a command that is no text, and short paddings."""
    text = "".join(c if c.isprintable() and c != "\ufffd" else "·" for c in line)
    return _PADDING.sub("…", text)
