"""How often something took long: counted by limits, so that two looks tell what was in between.

A maximum since the start says nothing about the last minute; counters that only rise do. Whatever
is short, which is nearly everything, costs one comparison.
"""

from __future__ import annotations

LIMITS_MS = (10, 20, 50, 75, 125)


class Lengths:
    """Counts lengths of time by the limits that they exceed."""

    def __init__(self, name: str) -> None:
        """Count under `<name>_over_<limit>ms`."""
        self.count = 0
        self.worst_ms = 0.0
        self._name = name
        self._over = [0] * len(LIMITS_MS)

    def add(self, length_ms: float) -> None:
        """Count one."""
        self.count += 1
        if length_ms <= LIMITS_MS[0]:
            return
        self.worst_ms = max(self.worst_ms, length_ms)
        for place, limit_ms in enumerate(LIMITS_MS):
            if length_ms > limit_ms:
                self._over[place] += 1

    def counters(self) -> dict[str, int]:
        """Return how many exceeded each limit."""
        names = (f"{self._name}_over_{limit_ms}ms" for limit_ms in LIMITS_MS)
        return dict(zip(names, self._over, strict=True))
