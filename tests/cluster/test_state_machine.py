"""A user's state machine in a cluster of real processes, through the command line."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from examples.bank import Deposit, Transfer
from tests.cluster.supervised import NAME, Home, home
from zraft import Client, InvalidCommand

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROGRAM = str(Path(sys.executable).with_name("zraft"))
ROOT = Path(__file__).parents[2]
NAMES = ["ada", "bob", "cleo"]
encode = msgspec.json.encode

MODULE = """
import examples.bank
class Mine(examples.bank.Bank):
    pass
"""


def zraft(place: Home, cwd: Path, *words: str, expect: int = 0) -> str:
    """Run a command in a directory; return what it says, of an error its JSON."""
    done = subprocess.run(
        [PROGRAM, *words, "--json"],
        env={**place.environ, "ZRAFT_CLUSTER": NAME, "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == expect, (words, done.stdout, done.stderr)
    return (done.stderr if expect else done.stdout).decode()


def test_a_bank_keeps_its_money_through_kills_and_a_restart(tmp_path: Path) -> None:
    """Its class is found where `up` ran; it stays the cluster's; its absence is told in words."""
    module = tmp_path / "mybank.py"
    module.write_text(MODULE)
    with home() as place:
        up = ["cluster", "up", "-n", "3", "--state-machine", "mybank:Mine"]
        assert "no module" in zraft(place, ROOT, *up, expect=78)
        zraft(place, tmp_path, *up)
        rng = random.Random(3)
        with Client(NAME, environ=place.environ) as client:
            for name in NAMES:
                client.command(encode(Deposit(name, 100)))
            for number in range(60):
                source, target = rng.sample(NAMES, 2)
                if number == 30:
                    place.cluster().act("kill", [client.barrier().node])
                transfer = encode(Transfer(source, target, rng.randrange(1, 20)))
                with contextlib.suppress(InvalidCommand):  # not enough money
                    client.command(transfer)
            assert client.query(b"") == b"300"
            balances = {name: client.query(name.encode()) for name in NAMES}
        other = ["cluster", "up", "--state-machine", "zraft.machine.kv:KV"]
        assert "another one can not read them" in zraft(place, ROOT, *other, expect=2)
        place.cluster().down()
        module.rename(tmp_path / "moved.py")
        assert "no module mybank" in zraft(place, ROOT, "cluster", "up", expect=78)
        (tmp_path / "moved.py").rename(module)
        place.up()
        with Client(NAME, environ=place.environ) as client:
            assert {name: client.query(name.encode()) for name in NAMES} == balances
            client.barrier()
