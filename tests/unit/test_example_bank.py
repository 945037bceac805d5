"""The example: a bank in which money is neither made nor lost, and equal histories are equal."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.bank import Bank
from zraft.machine.apply import apply_safely
from zraft.machine.base import Ctx

NAMES = ["ada", "bob", "cleo"]
deposits = st.fixed_dictionaries(
    {"type": st.just("deposit"), "account": st.sampled_from(NAMES), "amount": st.integers(-2, 50)}
)
transfers = st.fixed_dictionaries(
    {
        "type": st.just("transfer"),
        "source": st.sampled_from(NAMES),
        "target": st.sampled_from(NAMES),
        "amount": st.integers(-2, 50),
    }
)


def run(bank: Bank, order: dict[str, Any]) -> tuple[bool, bytes]:
    return apply_safely(bank, Ctx(1, 1, 0), msgspec.json.encode(order))


@settings(max_examples=50, deadline=None)
@given(st.lists(deposits | transfers, max_size=40))
def test_money_is_conserved_and_a_restored_bank_goes_on_like_the_first(
    orders: list[dict[str, Any]],
) -> None:
    """The sum is that of the accepted deposits; nobody owes; same answers after a snapshot."""
    bank, other = Bank(), Bank()
    deposited = 0
    for place, order in enumerate(orders):
        if place == len(orders) // 2:
            other = Bank()
            other.restore(bank.snapshot())
        before = dict(bank.balances)
        ok, result = run(bank, order)
        assert run(other, order) == (ok, result) or place < len(orders) // 2
        assert ok or bank.balances == before
        deposited += order["amount"] if ok and order["type"] == "deposit" else 0
    assert int(bank.query(Ctx(1, 1, 0), b"")) == deposited
    assert all(balance >= 0 for balance in bank.balances.values())
    fresh = Bank()
    fresh.restore(bank.snapshot())
    assert fresh.digest() == bank.digest()
    assert fresh.balances == bank.balances


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (b"", "not a command of the bank"),
        (b"\xff\xfe", "not a command of the bank"),
        (b"[" * 100_000, "not a command of the bank"),
        (b'{"type":"deposit","account":' + b"[" * 100_000, "not a command of the bank"),
        (b'{"type":"deposit","account":"ada","amount":1,"more":1}', "not a command of the bank"),
        (b'{"type":"transfer","source":"ada","target":"bob","amount":1}', "no account ada"),
    ],
)
def test_what_is_no_order_is_refused_in_words(order: bytes, words: str) -> None:
    """A refusal is a replicated result; nothing stops a node."""
    ok, text = apply_safely(Bank(), Ctx(1, 1, 0), order)
    assert not ok
    assert words in text.decode()
