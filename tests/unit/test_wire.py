"""The codec: what goes in comes out, and bytes from a stranger raise ProtocolError or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zraft import wire, wire_entry
from zraft.api import PROTOCOL_VERSION, Reply, Request
from zraft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    DigestPurpose,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    StateDigest,
    TimeoutNow,
)
from zraft.core.model import Command, Configuration, Entries, EntryType, MemberInfo
from zraft.errors import DecodeError, ProtocolError, VersionError

CLUSTER = b"cluster8"
CODEC = wire_entry.EntryCodec()

naturals = st.integers(0, wire_entry.MAX_U64)
terms = st.integers(1, wire.MAX_COUNT)
members = st.integers(1, wire_entry.MAX_U64)


@st.composite
def appends(draw: st.DrawFn) -> AppendEntries:
    """Draw an AppendEntries as a leader can send it: terms never fall, none passes its own."""
    found = sorted(draw(st.lists(terms, max_size=6)))
    term = draw(st.integers(found[-1] if found else 0, wire.MAX_COUNT))
    prev_term = draw(st.integers(0, found[0] if found else term))
    prev_index = draw(st.integers(1, 1 << 40)) if prev_term else 0
    payloads = [
        CODEC.encode(Command(draw(st.binary(max_size=40))), term=entry_term, log_time_ms=5)
        for entry_term in found
    ]
    entries = Entries(prev_index + 1, found, payloads)
    return AppendEntries(
        draw(members),
        draw(members),
        term,
        prev_index,
        prev_term,
        draw(naturals),
        draw(naturals),
        entries,
    )


@st.composite
def votes(draw: st.DrawFn) -> RequestVote:
    """A RequestVote that somebody could send: its log fits its term."""
    term, pre_vote = draw(terms), draw(st.booleans())
    last_term = draw(st.integers(0, term))
    last_index = draw(st.integers(1, wire.MAX_COUNT)) if last_term else 0
    head = (draw(members), draw(members), term, pre_vote, term + pre_vote)
    return RequestVote(*head, last_index, last_term, draw(st.booleans()))


@st.composite
def snapshots(draw: st.DrawFn) -> InstallSnapshot | InstallSnapshotResponse:
    term = draw(st.integers(1, wire.MAX_COUNT))
    last_term, last_index = draw(st.integers(1, term)), draw(st.integers(1, wire.MAX_COUNT))
    head = (draw(members), draw(members), term, last_index, last_term)
    if draw(st.booleans()):
        return InstallSnapshotResponse(*head, draw(naturals), draw(st.booleans()))
    data, offset = draw(st.binary(max_size=64)), draw(st.integers(0, 1 << 40))
    size_bytes = offset + len(data) + draw(st.integers(0, 1 << 20))
    return InstallSnapshot(*head, size_bytes, draw(naturals), offset, draw(naturals), data)


messages: st.SearchStrategy[Message] = st.one_of(
    appends(),
    st.builds(
        AppendEntriesResponse,
        members,
        members,
        terms,
        st.booleans(),
        naturals,
        naturals,
        naturals,
        naturals,
    ),
    votes(),
    snapshots(),
    st.builds(TimeoutNow, members, members, terms),
    st.builds(ReadIndex, members, members, terms, naturals),
    st.builds(ReadIndexResponse, members, members, terms, naturals, naturals),
    st.builds(
        lambda src, dst, term, first, digests: StateDigest(
            src,
            dst,
            term,
            DigestPurpose.PAGE,
            first + len(digests) - 1,
            digests[-1],
            first,
            digests,
        ),
        members,
        members,
        terms,
        st.integers(1, 1 << 40),
        st.lists(naturals, min_size=1, max_size=20),
    ),
    st.builds(RequestVoteResponse, members, members, terms, st.booleans(), naturals, st.booleans()),
)


def encode(message: Message, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "lane": 0,
        "cluster": CLUSTER,
        "incarnation": 3,
        "epoch": 4,
        "seq": 5,
        "heard": 6,
    }
    return wire.encode_message(message, **(fields | changes))


def decode(frame: bytes) -> Message:
    return wire.decode_message(*wire.decode_header(frame))


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(frame: bytes) -> list[Any]:
    fields: list[Any] = msgpack.unpackb(frame, raw=False)
    return fields


A_VOTE = RequestVote(1, 2, 7, True, 8, 9, 7)
AN_APPEND = AppendEntries(
    1, 2, 7, 10, 6, 9, 3, Entries(11, [7], [CODEC.encode(Command(b"x"), term=7, log_time_ms=1)])
)
EXAMPLES: list[Message] = [
    A_VOTE,
    RequestVoteResponse(1, 2, 7, False, 7, True),
    AN_APPEND,
    AppendEntriesResponse(1, 2, 7, True, 11, 0, 0, 3),
    InstallSnapshot(1, 2, 7, 9, 6, 100, 5, 10, 6, b"data"),
    InstallSnapshotResponse(1, 2, 7, 9, 6, 14, False),
    ReadIndex(1, 2, 7, 3),
    ReadIndexResponse(1, 2, 7, 3, 9),
    StateDigest(1, 2, 7, DigestPurpose.REPORT, 1024, 5, 0, []),
]


NEWER_FIELDS: dict[type, int] = {RequestVote: 1}
"""How many fields of a message a decoder has a default for: they came after the first format."""


def test_a_field_that_is_newer_has_a_default() -> None:
    """A node that does not know of transfers is understood: it asks for an ordinary vote."""
    assert decode(pack(unpack(encode(A_VOTE._replace(transfer=True)))[:-1])) == A_VOTE


@given(messages, naturals, naturals, naturals, naturals)
def test_every_message_comes_back_as_it_was(
    message: Message, incarnation: int, epoch: int, seq: int, heard: int
) -> None:
    """Header and message survive encoding, for all values a u64 can hold."""
    frame = encode(message, incarnation=incarnation, epoch=epoch, seq=seq, heard=heard)
    header, fields = wire.decode_header(frame)
    assert wire.decode_message(header, fields) == message
    assert header[0] == PROTOCOL_VERSION
    assert header[2:] == (
        *(0, CLUSTER, message.src, message.dst),
        *(incarnation, epoch, seq, heard, message.term),
    )


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_longer_array_is_read_and_its_rest_ignored(message: Message) -> None:
    """A newer program appends fields; an older one reads what it knows."""
    assert decode(pack([*unpack(encode(message)), "new", [1, 2]])) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_every_shorter_array_is_refused(message: Message) -> None:
    """No field of version 1 has a default: a frame cut anywhere is a DecodeError."""
    fields = unpack(encode(message))
    newer = NEWER_FIELDS.get(type(message), 0)
    for length in range(len(fields) - newer):
        with pytest.raises(DecodeError):
            decode(pack(fields[:length]))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_no_field_takes_a_value_of_another_type(message: Message) -> None:
    """Each place refuses nil, text, a float, a negative number, a nested array."""
    fields = unpack(encode(message))
    for place in range(len(fields)):
        for wrong in (None, "text", 1.5, -1, [[1]]):
            frame = pack([*fields[:place], wrong, *fields[place + 1 :]])
            with pytest.raises(ProtocolError):
                decode(frame)


def test_a_boolean_is_not_a_number_and_a_number_not_a_boolean() -> None:
    """MessagePack keeps them apart, Python does not: True == 1 must not slip through."""
    fields = unpack(encode(A_VOTE))
    for place, wrong in ((10, True), (11, 1)):
        with pytest.raises(DecodeError):
            decode(pack([*fields[:place], wrong, *fields[place + 1 :]]))


def test_a_frame_of_a_newer_version_is_told_apart_from_garbage() -> None:
    """`ver` is the lowest version that can read the frame; a higher one is a VersionError."""
    fields = unpack(encode(A_VOTE))
    with pytest.raises(VersionError):
        decode(pack([PROTOCOL_VERSION + 1, *fields[1:]]))


def test_an_unknown_kind_has_an_error_of_its_own() -> None:
    """A kind of a newer program is counted apart: it is nobody's mistake."""
    fields = unpack(encode(A_VOTE))
    with pytest.raises(wire.UnknownKind):
        decode(pack([fields[0], 99, *fields[2:]]))


@pytest.mark.parametrize(
    "entry_terms",
    [[0], [8], [6, 5], [3], [7, 8]],
    ids=["zero", "above", "falling", "below prev", "rising above"],
)
def test_terms_of_entries_must_fit_the_log_that_sends_them(entry_terms: list[int]) -> None:
    """Terms fall nowhere, start at or after prev_log_term (4) and never pass the sender's (7)."""
    payloads = [CODEC.encode(Command(b""), term=t, log_time_ms=0) for t in entry_terms]
    message = AppendEntries(1, 2, 7, 10, 4, 0, 0, Entries(11, entry_terms, payloads))
    with pytest.raises(DecodeError):
        decode(encode(message))


@pytest.mark.parametrize(
    "message",
    [
        AN_APPEND._replace(prev_log_index=0),  # index 0 has term 0
        AN_APPEND._replace(prev_log_term=0),
        AN_APPEND._replace(prev_log_term=8, entries=Entries(11, [], [])),  # later than the sender
        A_VOTE._replace(last_log_index=0),
        A_VOTE._replace(last_log_term=8),
        A_VOTE._replace(vote_term=9),  # a pre-vote asks about the next term
        A_VOTE._replace(pre_vote=False),  # a vote about the sender's own
        A_VOTE._replace(term=wire_entry.MAX_U64),  # no term comes after it
        RequestVoteResponse(1, 2, wire_entry.MAX_U64, False, 1, True),
    ],
)
def test_what_no_member_can_say_is_refused(message: Message) -> None:
    """A place that no log has, or a term out of reach, would break an invariant of the core."""
    with pytest.raises(DecodeError):
        decode(encode(message))


def test_an_entry_comes_back_as_it_was() -> None:
    """Each of the seven fields of an entry survives."""
    command = Command(b"body", EntryType.CONFIG, session=3, sequence=4, ack_below=2)
    payload = CODEC.encode(command, term=9, log_time_ms=123)
    assert wire_entry.decode_entry(payload) == (3, 9, 123, 3, 4, 2, b"body")
    assert CODEC.log_time_ms(payload) == 123


def test_rejected_comes_back_as_it_was_and_has_no_term() -> None:
    """Reason and incarnation survive; Raft's term has no part in a refusal of the transport."""
    rejected = wire.Rejected(1, 2, wire.REJECTED_ROLLED_BACK, 17)
    frame = wire.encode_rejected(
        rejected, lane=0, cluster=CLUSTER, incarnation=3, epoch=4, seq=5, heard=6
    )
    header, fields = wire.decode_header(frame)
    assert wire.decode_rejected(header, fields) == rejected
    assert (header.kind, header.term, header.seq) == (wire.KIND_REJECTED, 0, 5)
    for length in (11, 12):
        with pytest.raises(DecodeError):
            wire.decode_rejected(header, fields[:length])


def test_heard_is_a_header_and_nothing_else() -> None:
    """The transport's acknowledgement carries `heard`, and is no message of Raft."""
    frame = wire.encode_heard(
        src=1, dst=2, lane=0, cluster=CLUSTER, incarnation=3, epoch=4, seq=5, heard=6
    )
    header, fields = wire.decode_header(frame)
    assert header == (PROTOCOL_VERSION, wire.KIND_HEARD, 0, CLUSTER, 1, 2, 3, 4, 5, 6, 0)
    with pytest.raises(wire.UnknownKind):
        wire.decode_message(header, fields)


requests = st.builds(Request, *[naturals] * 7, st.binary(), naturals)
replies = st.builds(Reply, *[naturals] * 6, st.binary(), naturals, naturals)


@given(st.lists(requests, max_size=5), st.lists(replies, max_size=5))
def test_requests_and_replies_come_back_as_they_were(
    some_requests: list[Request], some_replies: list[Reply]
) -> None:
    """A frame of clients carries many requests or replies, and each one unchanged."""
    frame = wire.encode_requests(CLUSTER, some_requests)
    assert wire.decode_requests(frame) == (CLUSTER, some_requests)
    frame = wire.encode_replies(CLUSTER, some_replies)
    assert wire.decode_replies(frame) == (CLUSTER, some_replies)


def test_requests_are_not_taken_for_replies() -> None:
    """The kind is checked: a request that is sent back to its client is no answer."""
    with pytest.raises(wire.UnknownKind):
        wire.decode_replies(wire.encode_requests(CLUSTER, []))


DECODERS = (decode, wire_entry.decode_entry, wire.decode_requests, wire.decode_replies)


def check_only_protocol_errors(data: bytes) -> None:
    """Feed `data` to every decoder; anything but a value or a ProtocolError escapes."""
    for decoder in DECODERS:
        try:
            decoder(data)
        except ProtocolError:
            continue


@given(st.binary(max_size=300))
@example(b"")
@example(b"\xc1")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\xd6\xff\x00\x00\x00\x00")
@example(b"\xc7\x00\xff")
@example(b"\x81\x90\x01")
@example(b"\x92\xa1\xff\x01")
def test_arbitrary_bytes_raise_protocol_errors_or_nothing(data: bytes) -> None:
    """Whatever a stranger sends, the loop sees a ProtocolError, never another exception."""
    check_only_protocol_errors(data)


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), wire_entry.MAX_U64)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9)
    | st.just(CLUSTER)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=9))
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=14) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=30,
)


@given(values)
def test_arbitrary_values_raise_protocol_errors_or_nothing(value: object) -> None:
    """Well-formed MessagePack of any shape raises nothing else either."""
    check_only_protocol_errors(pack(value))


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """Draw a configuration that keeps its own rules."""
    ids = draw(st.lists(members, min_size=1, max_size=8, unique=True))
    voters = tuple(sorted(ids[: draw(st.integers(1, len(ids)))]))
    learners = tuple(sorted(set(ids) - set(voters)))
    joining = tuple(member for member in learners if draw(st.booleans()))
    outgoing = tuple(sorted(draw(st.sets(st.sampled_from(ids)))))
    infos = tuple(MemberInfo(member, f"n{i}", "") for i, member in enumerate(ids))
    return Configuration(voters, 0, outgoing, learners, joining, infos)


@given(configurations(), st.integers(0, 3))
def test_configurations_are_found_among_other_entries(made: Configuration, before: int) -> None:
    """The core learns of a configuration by its entry, wherever it stands in a batch."""
    body = CODEC.encode_configuration(made)
    entry = CODEC.encode(Command(body, EntryType.CONFIG), term=3, log_time_ms=4)
    others = [CODEC.encode(Command(b"\x03"), term=3, log_time_ms=3) for _ in range(before)]
    assert CODEC.configurations([*others, entry, *others]) == [(before, made)]


@pytest.mark.parametrize(
    "fields",
    [
        [[1, 2], [], [2], [], []],  # a voter that is a learner
        [[2, 1], [], [], [], []],  # not sorted
        [[1, 1], [], [], [], []],
        [[0], [], [], [], []],
        [[], [], [1], [], []],  # nobody votes
        [[1], [], [], [2], []],  # joins without being a learner
        [[1], [], [], [], [[1, b"\xff", b""]]],
        [[1], [], []],
        [[1], [], [], [], 5],
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(fields: list[Any]) -> None:
    """What stands in the log decides who votes, so it is checked like everything else."""
    with pytest.raises(DecodeError):
        wire_entry.decode_configuration(pack(fields))


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_real_frame_with_one_changed_field_raises_protocol_errors_or_nothing(
    message: Message, data: st.DataObject
) -> None:
    """Near misses reach the checks behind the header, and these hold too."""
    fields = unpack(encode(message))
    place = data.draw(st.integers(0, len(fields) - 1))
    fields[place] = data.draw(values)
    check_only_protocol_errors(pack(fields))


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_real_frame_with_one_changed_byte_raises_protocol_errors_or_nothing(
    message: Message, data: st.DataObject
) -> None:
    """A flipped byte may change a value; it never makes another exception."""
    frame = bytearray(encode(message))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    check_only_protocol_errors(bytes(frame))


@pytest.mark.parametrize("depth", [20, 500, 1023, 1025, 5000])
@pytest.mark.parametrize("head", [b"\x91", b"\x81\x01", b"\xdd\x00\x00\x00\x01"])
def test_deep_nesting_raises_protocol_errors(depth: int, head: bytes) -> None:
    """Arrays and maps nested without end are refused, without recursion of ours."""
    check_only_protocol_errors(head * depth + b"\xc0")
    frame = unpack(encode(AN_APPEND))
    with pytest.raises(ProtocolError):
        decode(b"\x9c" + b"".join(pack(field) for field in frame[:11]) + head * depth + b"\xc0")


def test_nested_heads_that_promise_much_cost_no_memory() -> None:
    """An array has no more items than its frame has bytes: a lie is refused before it is made."""
    with pytest.raises(DecodeError):
        wire.decode_header(b"\xdd\x00\x00\xff\xff" * 500 + b"\xc0")


PAGE_CLUSTER = bytes.fromhex("0011223344556677")
PAGE_EXAMPLES = {
    "pre-vote": encode(
        RequestVote(1, 2, 7, True, 8, 9, 7),
        cluster=PAGE_CLUSTER,
        incarnation=3,
        epoch=1,
        seq=(3 << 32) + 5,
        heard=(2 << 32) + 9,
    ),
    "entry": CODEC.encode(Command(b"x"), term=7, log_time_ms=1500),
    "request": wire.encode_requests(PAGE_CLUSTER, [Request(1, 0, 0, 0, 5000, 0, 0, b"x")]),
    "reply": wire.encode_replies(PAGE_CLUSTER, [Reply(1, 0, 2, 7, 11, 0, b"ok")]),
}


@pytest.mark.parametrize("name", PAGE_EXAMPLES)
def test_the_examples_of_the_protocol_page_are_what_is_sent(name: str) -> None:
    """The bytes in docs/PROTOCOL.md are version 1: a change of them is a change of the protocol."""
    page = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")
    assert PAGE_EXAMPLES[name].hex(" ") in " ".join(page.split())


def test_the_protocol_page_names_every_kind_and_its_number() -> None:
    """A kind that is added to the codec is added to the page."""
    page = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")
    for number, name in wire.KIND_NAMES.items():
        assert f"| {number} | {name} |" in page
