"""Durations as people write them: `150ms`, `2s`, `1m`, `1m30s`, `2h`. Everything inside is ms.

A number without a unit is refused: nobody agrees on whether 10 means seconds or milliseconds.
"""

from __future__ import annotations

import re

from zraft.errors import ControlError

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_LIMIT_MS = 100 * 86_400_000


def parse_duration_ms(text: str, flag: str) -> int:
    """Return the milliseconds that `text` means; ControlError names the flag and the rule."""
    compact = text.strip().lower()
    parts = _PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        bare = compact.replace(".", "", 1).isdigit()
        raise ControlError(
            f'{flag}: "{text}" is not a duration',
            why="it has no unit" if bare else "a duration is a number and ms, s, m, h or d",
            try_=f"{flag} {compact}s   or   {flag} {compact}ms" if bare else f"{flag} 10s",
        )
    total_ms = round(sum(float(number) * _UNITS_MS[unit] for number, unit in parts))
    if total_ms > _LIMIT_MS:
        raise ControlError(f'{flag}: "{text}" is too long', why="the limit is 100 days")
    return total_ms


def optional_ms(text: str | None, flag: str, default_ms: int) -> int:
    """Return the milliseconds of an option that may be absent."""
    return default_ms if text is None else parse_duration_ms(text, flag)


def format_ms(value_ms: float) -> str:
    """Return a duration for people: 142ms, 12.3s, 1m02s, 2h05m, 3d04h."""
    if value_ms < 1000:
        return f"{value_ms:.0f}ms"
    seconds = value_ms / 1000
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"
