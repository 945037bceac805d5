"""Faults of the links, over random frames and seeds: what each promises, and nothing else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from zraft import wire, wire_entry
from zraft.core.messages import AppendEntries, AppendEntriesResponse, Message, RequestVote
from zraft.core.model import Command, Entries, EntryType
from zraft.errors import DecodeError
from zraft.transport.fault_kinds import (
    REORDER_MS,
    Corrupt,
    Delay,
    Drop,
    Duplicate,
    Reorder,
    SomeFrames,
)
from zraft.transport.filter import HeaderFilter, Refused
from zraft.transport.links import Cut, HeldFrames, Links

ME, PEER, OTHER = 101, 202, 303
CLUSTER = b"cluster8"
SEEDS = st.integers(0, 2**32)
RATES = st.floats(0.05, 1.0)


def make_links(*faults: SomeFrames) -> Links:
    links = Links(random.Random(0))
    for fault in faults:
        links.add(fault)
    return links


def pass_all(links: Links, count: int, *, dst: int = PEER, kind: int = 3) -> list[tuple[int, int]]:
    """Send numbered frames, one a millisecond; return (arrival, number) in order of arrival."""
    held = HeldFrames()
    for number in range(count):
        for at_ms, frame in links.outgoing(dst, 0, kind, number.to_bytes(4, "big"), number):
            held.add(at_ms, dst, frame)
    found: list[tuple[int, int]] = []
    while (due_ms := held.next_deadline_ms()) is not None:
        found += [(due_ms, int.from_bytes(frame, "big")) for _, frame in held.due(due_ms)]
    return found


@given(SEEDS, RATES, st.integers(0, 500), st.integers(0, 500), st.booleans())
def test_delay_and_reorder_never_lose_nor_double(
    seed: int, rate: float, delay_ms: int, jitter_ms: int, normal: bool
) -> None:
    """Every frame arrives once, never before it was sent, and not later than the rules allow."""
    delay = Delay(
        "f1",
        [PEER],
        rate=rate,
        random=random.Random(seed),
        delay_ms=delay_ms,
        jitter_ms=jitter_ms,
        normal=normal,
    )
    reorder = Reorder("f2", [PEER], rate=rate, random=random.Random(seed + 1))
    arrived = pass_all(make_links(delay, reorder), 200)
    assert sorted(number for _, number in arrived) == list(range(200))
    most_ms = delay_ms + (6 if normal else 1) * jitter_ms + REORDER_MS
    assert all(number <= at_ms <= number + most_ms for at_ms, number in arrived)
    assert reorder.hits > 0 or rate < 0.5


@given(SEEDS, st.integers(1, 1000))
def test_a_delay_without_jitter_keeps_the_order(seed: int, delay_ms: int) -> None:
    """All frames are exactly so late, in the order in which they were sent."""
    delay = Delay("f1", [PEER], rate=1.0, random=random.Random(seed), delay_ms=delay_ms)
    assert pass_all(make_links(delay), 50) == [(n + delay_ms, n) for n in range(50)]


def test_reordered_frames_are_overtaken() -> None:
    """Frames sent one a millisecond arrive in another order."""
    reorder = Reorder("f1", [PEER], rate=0.3, random=random.Random(1))
    numbers = [number for _, number in pass_all(make_links(reorder), 100)]
    assert numbers != sorted(numbers)


@given(SEEDS, RATES)
def test_duplicate_doubles_exactly_what_it_counts(seed: int, rate: float) -> None:
    """Each frame arrives once or twice; the hits are the second copies."""
    double = Duplicate("f1", [PEER], rate=rate, random=random.Random(seed))
    copies = Counter(number for _, number in pass_all(make_links(double), 200))
    assert sorted(copies) == list(range(200))
    assert set(copies.values()) <= {1, 2}
    assert sum(copies.values()) - 200 == double.hits
    always = Duplicate("f1", [PEER], rate=1.0, random=random.Random(seed))
    assert len(pass_all(make_links(always), 200)) == 400


@given(SEEDS, RATES)
def test_drop_loses_about_its_rate_and_counts_it(seed: int, rate: float) -> None:
    """What arrived and what was counted add up; the rate is kept within five deviations."""
    drop = Drop("f1", [PEER], rate=rate, random=random.Random(seed))
    count = 2000
    arrived = pass_all(make_links(drop), count)
    assert len(arrived) + drop.hits == count
    spread = 5 * (count * rate * (1 - rate)) ** 0.5
    assert abs(drop.hits - count * rate) <= spread + 1e-9


@given(SEEDS)
def test_a_seed_repeats_what_a_rule_does(seed: int) -> None:
    """The same seed loses the same frames of the same traffic."""
    runs = [
        pass_all(make_links(Drop("f1", [PEER], rate=0.3, random=random.Random(seed))), 100)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_a_rule_leaves_other_members_and_other_messages_alone() -> None:
    """Only frames to its members, and only of its kinds."""
    drop = Drop("f1", [PEER], rate=1.0, random=random.Random(1), kinds=[wire.KIND_REQUEST_VOTE])
    links = make_links(drop)
    assert len(pass_all(links, 10, dst=OTHER, kind=wire.KIND_REQUEST_VOTE)) == 10
    assert len(pass_all(links, 10, kind=wire.KIND_APPEND_ENTRIES)) == 10
    assert pass_all(links, 10, kind=wire.KIND_REQUEST_VOTE) == []
    assert links.incoming(PEER, 0, wire.KIND_REQUEST_VOTE, b"x", 7) == [(7, b"x")]
    assert drop.hits == 10


def test_a_cut_is_one_way_or_both() -> None:
    """What leaves and what arrives are cut apart; forwarded requests ask the same rule."""
    links = Links(random.Random(1))
    fault = links.add(Cut("f1", to=[PEER], from_=[OTHER], kind="one-way"))
    assert links.outgoing(PEER, 0, 3, b"x", 0) == []
    assert links.incoming(PEER, 0, 3, b"x", 0) == [(0, b"x")]
    assert links.outgoing(OTHER, 0, 3, b"x", 0) == [(0, b"x")]
    assert links.incoming(OTHER, 0, 3, b"x", 0) == []
    assert links.cut(PEER, outgoing=True)
    assert not links.cut(PEER, outgoing=False)
    assert fault.hits == 3


def entries(bodies: Sequence[bytes]) -> Entries:
    codec = wire_entry.EntryCodec()
    payloads = [
        codec.encode(Command(body, EntryType.COMMAND), term=3, log_time_ms=9) for body in bodies
    ]
    return Entries(8, [3] * len(payloads), payloads)


MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        lambda bodies, term: AppendEntries(ME, PEER, 3 + term, 7, 3, 7, 5, entries(bodies)),
        st.lists(st.binary(max_size=40), max_size=5),
        st.integers(0, 2**40),
    ),
    st.builds(lambda n: AppendEntriesResponse(ME, PEER, 3, True, n, n, n, n), st.integers(0, 9999)),
    st.builds(lambda n: RequestVote(ME, PEER, 4, False, 4, n, 3), st.integers(0, 2**50)),
)


def encode(message: Message) -> bytes:
    return wire.encode_message(
        message, lane=0, cluster=CLUSTER, incarnation=2, epoch=1, seq=(2 << 32) + 5, heard=0
    )


@settings(max_examples=400)
@given(MESSAGES, SEEDS)
def test_a_damaged_frame_is_refused_by_filter_or_codec(message: Message, seed: int) -> None:
    """No damaged frame becomes a message, and none moves what the filter remembers."""
    corrupt = Corrupt("f1", [PEER], rate=1.0, random=random.Random(seed))
    links = make_links(corrupt)
    frame = encode(message)
    ((_, damaged),) = links.outgoing(PEER, 0, 3, frame, 0)
    assert damaged != frame
    receiver = HeaderFilter(me=PEER, cluster=CLUSTER, peers=[ME, OTHER], lane=0)
    checked = receiver.check([b"id", damaged])
    if not isinstance(checked, Refused):
        header, fields = checked
        assert header == wire.decode_header(frame)[0]
        try:
            wire.decode_message(header, fields)
        except DecodeError:
            return
        raise AssertionError("a damaged frame was read as a message")
    assert receiver.heard(ME) == 0
