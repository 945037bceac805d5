"""What may not grow in a run: descriptors and memory of a node."""

from __future__ import annotations

import os

from zraft.testing.checkrun.resources import MORE_BYTES, MORE_DESCRIPTORS, Resources, grown


def test_growth_beyond_the_bounds_is_named_with_both_numbers() -> None:
    """Each node is compared with itself; one that came or went is not."""
    before = {"n1": Resources(20, 50 << 20), "n2": Resources(20, 50 << 20)}
    fine = Resources(20 + MORE_DESCRIPTORS, (50 << 20) + MORE_BYTES)
    assert grown(before, {"n1": fine, "n3": Resources(999, 1 << 40)}) == []
    leaky = Resources(fine.descriptors + 1, fine.rss_bytes + (1 << 20))
    first, second = grown(before, {"n1": fine, "n2": leaky})
    assert first == "n2 holds 61 descriptors, 20 before"
    assert second == "n2 holds 179 MiB of memory, 50 before"


def test_a_process_is_measured_and_one_that_is_gone_is_not() -> None:
    """The numbers are those of the system."""
    mine = Resources.of(os.getpid())
    assert mine is not None
    assert mine.descriptors >= 3
    assert mine.rss_bytes > 1 << 20
    assert Resources.of(1 << 22) is None
