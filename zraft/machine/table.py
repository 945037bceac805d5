"""A dict of keys that grows in small steps.

A dict that is full moves into one twice as large, all of it at once: with 1,400,000 keys that was
85 ms, and for a leader it is a heartbeat missed. Here keys are spread over `PARTS` dicts by their
hash, so that each move is a small one: 0.3 ms with 1,400,000 keys. Everything else is a dict's.

The part is told by the high bits of the hash. The low ones are those by which a dict finds a slot:
keys that share them all would meet in a few slots of their part.
"""

from __future__ import annotations

from typing import Generic, TypeVar

V = TypeVar("V")

PARTS = 256  # a power of two
_SHIFT = 54  # hashes have 64 bits, the highest is the sign
_MASK = PARTS - 1


class Table(Generic[V]):
    """A mapping of bytes to anything. It has no order, so it can't be iterated."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[dict[bytes, V]] = [{} for _ in range(PARTS)]

    def part(self, key: bytes) -> dict[bytes, V]:
        """Return the dict in which a key is, or would be: for one that is used more than once."""
        return self._parts[hash(key) >> _SHIFT & _MASK]

    def get(self, key: bytes) -> V | None:
        """Return what belongs to a key, None when there is no such key."""
        return self._parts[hash(key) >> _SHIFT & _MASK].get(key)

    def __getitem__(self, key: bytes) -> V:
        return self._parts[hash(key) >> _SHIFT & _MASK][key]

    def __setitem__(self, key: bytes, value: V) -> None:
        self._parts[hash(key) >> _SHIFT & _MASK][key] = value

    def __delitem__(self, key: bytes) -> None:
        del self._parts[hash(key) >> _SHIFT & _MASK][key]

    def __contains__(self, key: bytes) -> bool:
        return key in self._parts[hash(key) >> _SHIFT & _MASK]

    def __len__(self) -> int:
        return sum(map(len, self._parts))
