"""The header filter: which frames are accepted, and the counter of each refusal."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from zraft import wire, wire_entry
from zraft.core.messages import RequestVote
from zraft.transport.filter import HeaderFilter, Refused

CLUSTER = b"cluster8"
ME, PEER, STRANGER = 1, 2, 77


def make_filter() -> HeaderFilter:
    return HeaderFilter(me=ME, cluster=CLUSTER, peers={PEER: "", 3: ""}, lane=0)


def frame(
    *, src: int = PEER, dst: int = ME, incarnation: int = 5, epoch: int = 1, **changes: Any
) -> bytes:
    fields: dict[str, Any] = {"lane": 0, "cluster": CLUSTER, "seq": 100, "heard": 0}
    message = RequestVote(src, dst, 1, False, 1, 0, 0)
    return wire.encode_message(message, incarnation=incarnation, epoch=epoch, **(fields | changes))


def check(filter_: HeaderFilter, *parts: bytes) -> str:
    """Return "accepted" or the counter of the refusal."""
    result = filter_.check([b"\0conn", *parts])
    return result.counter if isinstance(result, Refused) else "accepted"


def newer_version() -> bytes:
    fields = msgpack.unpackb(frame())
    packed: bytes = msgpack.packb([fields[0] + 1, *fields[1:]])
    return packed


@pytest.mark.parametrize(
    ("parts", "counter"),
    [
        ((), "dropped_parts"),
        ((b"", frame()), "dropped_parts"),
        ((b"a", b"b", b"c", b"d", b"e"), "dropped_parts"),
        ((b"\xc6" + bytes(wire_entry.MAX_FRAME_BYTES),), "dropped_size"),
        ((b"hello",), "dropped_garbage"),
        ((b"\x91" * 500,), "dropped_garbage"),
        ((newer_version(),), "dropped_version"),
        ((frame(cluster=b"another8"),), "dropped_cluster"),
        ((frame(dst=3),), "dropped_dst"),
        ((frame(src=STRANGER),), "dropped_src"),
        ((frame(src=ME),), "dropped_src"),
        ((frame(lane=1),), "dropped_lane"),
        ((frame(),), "accepted"),
    ],
)
def test_each_reason_to_drop_has_its_own_counter(parts: tuple[bytes, ...], counter: str) -> None:
    """The first rule that a frame breaks names the counter."""
    assert check(make_filter(), *parts) == counter


def test_a_refused_frame_leaves_no_trace() -> None:
    """A frame of another cluster can not make the real peer's frames look old."""
    filter_ = make_filter()
    check(filter_, frame(cluster=b"another8", incarnation=999, seq=1 << 60))
    check(filter_, frame(dst=3, incarnation=999, seq=1 << 60))
    assert filter_.incarnation(PEER) == 0
    assert filter_.heard(PEER) == 0
    assert check(filter_, frame()) == "accepted"


def test_older_lives_and_sockets_of_a_peer_are_stale() -> None:
    """After (incarnation 5, epoch 2) was heard, everything below it is dropped."""
    filter_ = make_filter()
    assert check(filter_, frame(incarnation=5, epoch=2)) == "accepted"
    assert check(filter_, frame(incarnation=5, epoch=1)) == "dropped_stale"
    assert check(filter_, frame(incarnation=4, epoch=9)) == "dropped_stale"
    assert check(filter_, frame(incarnation=5, epoch=2)) == "accepted"
    assert check(filter_, frame(incarnation=6, epoch=1)) == "accepted"
    assert check(filter_, frame(incarnation=5, epoch=2)) == "dropped_stale"
    assert filter_.incarnation(PEER) == 6


def test_staleness_is_per_peer() -> None:
    """One peer's restarts say nothing about another."""
    filter_ = make_filter()
    assert check(filter_, frame(src=PEER, incarnation=9)) == "accepted"
    assert check(filter_, frame(src=3, incarnation=1)) == "accepted"


def test_duplicates_and_reordered_frames_pass() -> None:
    """`seq` is not part of the filter, or faults that double and reorder would test nothing."""
    filter_ = make_filter()
    for seq in (100, 102, 101, 101, 1):
        assert check(filter_, frame(seq=seq)) == "accepted"
    assert filter_.heard(PEER) == 102


def test_only_a_lower_incarnation_is_reported_as_an_older_life() -> None:
    """An older epoch is a replaced socket; an older incarnation may be a rolled-back disk."""
    filter_ = make_filter()
    check(filter_, frame(incarnation=5, epoch=2))
    assert filter_.check([b"c", frame(incarnation=5, epoch=1)]) == ("dropped_stale", PEER, 0)
    assert filter_.check([b"c", frame(incarnation=4, epoch=1)]) == ("dropped_stale", PEER, 4)
