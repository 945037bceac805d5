"""The WAL on a real file system: kill -9 while it writes, and files that may not grow."""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wal_logs import CONFIGURATION, IDENTITY
from zraft.storage.wal import Wal

WRITER = """
import random, sys
from pathlib import Path
from zraft.core.model import Entries, HardState
from zraft.storage.base import Identity
from zraft.storage.wal import Wal

seed, directory, *identity = sys.argv[1:]
draws = random.Random(int(seed))
wal = Wal(Path(directory), Identity(*map(int, identity)), segment_bytes=16384)
recovered = wal.load()
index, term = recovered.entries.last_index, recovered.hard_state.term + 1
print("loaded", index, term - 1, flush=True)
while True:
    count = draws.choice((1, 1, 3, 20))
    payloads = [b"%d " % (index + 1 + i) + bytes(draws.randrange(700)) for i in range(count)]
    wal.save(HardState(term, 7), Entries(index + 1, [term] * count, payloads))
    wal.sync()
    index += count
    print("synced", index, term, flush=True)
    term += draws.random() < 0.1
    if draws.random() < 0.5:
        wal.prepare(4096)
"""


def run_writer(directory: Path, seed: int, lines: int) -> tuple[int, int]:
    """Run a writer, kill it after so many lines, return the last index and term it announced."""
    command = [sys.executable, "-c", WRITER, str(seed), str(directory), *map(str, IDENTITY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        output = b""
        while output.count(b"\n") < lines:
            assert select.select([writer.stdout], [], [], 30)[0], f"seed {seed}: {output!r}"
            piece = os.read(writer.stdout.fileno(), 1 << 16)
            assert piece, f"seed {seed}: the writer ended by itself: {output!r}"
            output += piece
        writer.send_signal(signal.SIGKILL)
        output += writer.stdout.read()
    _, index, term = output[: output.rindex(b"\n")].split(b"\n")[-1].split()
    return int(index), int(term)


@pytest.mark.cluster
@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_announced(tmp_path: Path) -> None:
    """Writers are killed in a row at random moments; each finds all of the one before."""
    directory = tmp_path / "wal"
    Wal.create(directory, IDENTITY, CONFIGURATION)
    seed = random.SystemRandom().randrange(1 << 32)
    draws = random.Random(seed)
    for round_number in range(8):
        index, term = run_writer(directory, seed + round_number, draws.randrange(1, 120))
        wal = Wal(directory, IDENTITY, segment_bytes=16384)
        recovered = wal.load()
        hard_state, entries = recovered.hard_state, recovered.entries
        wal.close()
        where = f"seed {seed}, round {round_number}"
        assert entries.last_index >= index, where
        assert hard_state.term >= term, where
        for number, payload in enumerate(entries.payloads, 1):
            assert payload.startswith(b"%d " % number), where
    assert len(list(directory.glob("*.wal"))) > 3, "segments were rotated"


LIMITED = """
import sys
from pathlib import Path
from zraft.core.model import Entries, HardState
from zraft.errors import StorageError
from zraft.storage.base import Identity
from zraft.storage.wal import Wal

wal = Wal(Path(sys.argv[1]), Identity(*map(int, sys.argv[2:])), segment_bytes=1 << 20)
wal.load()
wal.save(HardState(1, 7), None)
index = 0
try:
    while True:
        index += 1
        wal.save(None, Entries(index, [1], [bytes([index]) * 700]))
        wal.sync()
        print(index, flush=True)
except StorageError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.cluster
@pytest.mark.parametrize(("limit_bytes", "torn"), [(20_000, True), (20_480, True), (19_968, False)])
def test_full_disk_cuts_a_write_and_the_log_is_repaired(
    tmp_path: Path, limit_bytes: int, torn: bool
) -> None:
    """RLIMIT_FSIZE makes a real short write, then EFBIG: exit 74; the next start drops the rest."""
    directory = tmp_path / "wal"
    Wal.create(directory, IDENTITY, CONFIGURATION)
    command = [sys.executable, "-c", LIMITED, str(directory), *map(str, IDENTITY)]
    limits = (limit_bytes, limit_bytes)
    done = subprocess.run(
        command,
        capture_output=True,
        timeout=30,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )
    assert done.returncode == 74, done.stderr
    assert b"File too large" in done.stderr
    announced = int(done.stdout.split()[-1])
    wal = Wal(directory, IDENTITY)
    entries = wal.load().entries
    repaired = wal.stats().repaired_bytes
    wal.close()
    assert entries.payloads == [bytes([index]) * 700 for index in range(1, announced + 1)]
    assert (repaired > 0) == torn
