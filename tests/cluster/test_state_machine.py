"""A user's state machine in a cluster of real processes, through the command line."""

from __future__ import annotations

import contextlib
import json
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

class Whole(Mine):
    def apply(self, ctx, command):
        if command == b"twice as much":
            raise LookupError("no such thing")
        return super().apply(ctx, command)
    def query(self, ctx, request):
        return b"x" * 5_000_000 if request == b"all of it" else super().query(ctx, request)
    def snapshot(self):
        yield b"half of it"
        raise LookupError("the other half")
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


def test_a_machine_that_breaks_its_contract_is_named_and_its_nodes_serve_on(tmp_path: Path) -> None:
    """No snapshot of it, and no answer that is too long: a reason, at once, and nobody dies."""
    (tmp_path / "mybank.py").write_text(MODULE)
    with home() as place:
        zraft(place, tmp_path, "cluster", "up", "-n", "3", "--state-machine", "mybank:Whole")
        before = place.cluster().statuses()
        with Client(NAME, environ=place.environ) as client:
            client.command(encode(Deposit("ada", 100)))
            error = json.loads(zraft(place, tmp_path, "snapshot", "take", "leader", expect=1))
            assert "LookupError: the other half" in error["error"]["why"]
            with pytest.raises(InvalidCommand, match="5000000 bytes"):
                client.query(b"all of it")
            with pytest.raises(InvalidCommand, match="what it changed before") as caught:
                client.command(b"twice as much")
            assert "the state machine raised LookupError" in caught.value.why
            client.command(encode(Deposit("ada", 1)))
            assert client.query(b"ada") == b"101"
        after = place.cluster().statuses()
        for name, status in before.items():
            then = after[name]
            assert status is not None
            assert then is not None
            assert then.pid == status.pid
