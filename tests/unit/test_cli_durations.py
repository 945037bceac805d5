"""Durations on the command line: what is understood, what is refused, how they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zraft.cli.durations import format_ms, parse_duration_ms
from zraft.errors import ControlError


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("150ms", 150),
        ("2s", 2000),
        ("1.5s", 1500),
        ("1m", 60_000),
        ("1m30s", 90_000),
        ("2h", 7.2e6),
    ],
)
def test_units_are_understood(text: str, expected_ms: int) -> None:
    """A duration is one or more numbers with units."""
    assert parse_duration_ms(text, "--for") == expected_ms


@pytest.mark.parametrize("text", ["", "s", "10 apples", "-3s", "1s2", "10sms", "9999999h"])
def test_nonsense_is_refused(text: str) -> None:
    """What is not a duration is a usage error that names the flag."""
    with pytest.raises(ControlError) as caught:
        parse_duration_ms(text, "--for")
    assert "--for" in caught.value.what
    assert caught.value.exit_code == 2


def test_number_without_unit_is_refused_with_both_readings() -> None:
    """Nobody guesses whether 10 means seconds or milliseconds."""
    with pytest.raises(ControlError) as caught:
        parse_duration_ms("10", "--timeout")
    assert "--timeout 10s" in caught.value.try_[0]
    assert "--timeout 10ms" in caught.value.try_[0]


@pytest.mark.parametrize(
    ("value_ms", "text"),
    [(0, "0ms"), (999, "999ms"), (12_300, "12.3s"), (62_000, "1m02s"), (7_500_000, "2h05m")],
)
def test_durations_are_shown_short(value_ms: int, text: str) -> None:
    """People read two units at most."""
    assert format_ms(value_ms) == text


@given(st.integers(min_value=0, max_value=10**9))
def test_milliseconds_survive_the_round_trip(value_ms: int) -> None:
    """What is written in ms is read back exactly."""
    assert parse_duration_ms(f"{value_ms}ms", "--for") == value_ms
