"""A simulated file keeps what was synced and nothing else, however it was written and cut."""

from __future__ import annotations

from pathlib import Path
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from zraft.testing.disk import SECTOR_BYTES, SimulatedDisk

PATH = Path("/file")
WRITES = st.tuples(st.just("write"), st.integers(0, 2000), st.binary(max_size=1500))
CUTS = st.tuples(st.just("cut"), st.integers(0, 2000), st.just(b""))
SYNCS = st.tuples(st.just("sync"), st.just(0), st.just(b""))
LOSSES = st.tuples(st.just("power"), st.integers(0, 1 << 16), st.just(b""))


def lose(seen: bytes, durable: bytes, random: Random) -> bytes:
    """Return what a power cut leaves of a file: the rule, over all of its sectors."""
    left, share = bytearray(durable), random.random() * 1.2 - 0.1
    for at in range(0, max(len(seen), len(durable)), SECTOR_BYTES):
        piece = seen[at : at + SECTOR_BYTES]
        if piece != left[at : at + SECTOR_BYTES] and random.random() < share:
            left.extend(bytes(max(0, at - len(left))))
            left[at : at + len(piece)] = piece
    return bytes(left)


@given(st.lists(st.one_of(WRITES, CUTS, SYNCS, LOSSES), max_size=30))
def test_a_sync_makes_the_whole_file_durable(steps: list[tuple[str, int, bytes]]) -> None:
    """What a process sees, and what a power cut leaves, is what whole copies would give."""
    disk = SimulatedDisk()
    disk.put(PATH, b"")
    fd = disk.open(PATH, 0)
    seen = durable = b""
    for step, number, data in steps:
        if step == "write":
            disk.pwrite(fd, data, number)
            before = seen.ljust(number, b"\0")
            seen = before[:number] + data + before[number + len(data) :]
        elif step == "cut":
            disk.truncate(fd, number)
            seen = seen[:number]
        elif step == "sync":
            disk.fsync(fd)
            durable = seen
        else:
            draws = Random(number)
            draws.random()  # the directory's
            seen = durable = lose(seen, durable, draws)
            disk.cut_power(Random(number))
            fd = disk.open(PATH, 0)
        assert disk.read(PATH) == seen
