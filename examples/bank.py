"""A bank as a replicated state machine: accounts, deposits, and transfers that are all or nothing.

Commands and queries are JSON, checked by types before anything changes. The results are the same
on every node: nothing here reads a clock, draws a random number or iterates over a set.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

from msgspec import DecodeError, Struct, json

import zraft


class Deposit(Struct, tag="deposit", forbid_unknown_fields=True):
    """Add money to an account, which is opened by its first deposit."""

    account: str
    amount: int


class Transfer(Struct, tag="transfer", forbid_unknown_fields=True):
    """Move money between two accounts, or refuse."""

    source: str
    target: str
    amount: int


class Bank(zraft.StateMachine):
    """`apply` returns the balances of the accounts that it touched, `query` one balance."""

    def __init__(self) -> None:
        self.balances: dict[str, int] = {}
        self._hash = 0  # the sum of a hash per account: a transfer changes two terms of it

    def apply(self, ctx: zraft.Ctx, command: bytes) -> bytes:
        try:
            order = json.decode(command, type=Deposit | Transfer)
        except DecodeError as error:
            raise zraft.CommandError(f"not a command of the bank: {error}") from error
        if order.amount <= 0:
            raise zraft.CommandError("an amount is positive")
        if isinstance(order, Deposit):
            changes = {order.account: self.balances.get(order.account, 0) + order.amount}
        else:
            changes = self._transferred(order)
        for account, balance in changes.items():
            self._set(account, balance)
        return json.encode(changes)

    def _transferred(self, order: Transfer) -> dict[str, int]:
        missing = [name for name in (order.source, order.target) if name not in self.balances]
        if missing or order.source == order.target:
            raise zraft.CommandError(f"no account {missing[0]}" if missing else "the same account")
        if self.balances[order.source] < order.amount:
            raise zraft.CommandError(f"{order.source} has only {self.balances[order.source]}")
        return {
            order.source: self.balances[order.source] - order.amount,
            order.target: self.balances[order.target] + order.amount,
        }

    def _set(self, account: str, balance: int) -> None:
        if account in self.balances:
            self._hash -= _hash_of(account, self.balances[account])
        self.balances[account] = balance
        self._hash += _hash_of(account, balance)

    def query(self, ctx: zraft.Ctx, request: bytes) -> bytes:
        """Return the balance of the account named by `request`, of all together if it is empty."""
        if not request:
            return json.encode(sum(self.balances.values()))
        return json.encode(self.balances.get(request.decode(errors="replace")))

    def snapshot(self) -> Iterable[bytes]:
        return [json.encode(self.balances)]  # made now: later commands do not change it

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.balances, self._hash = {}, 0
        for account, balance in json.decode(b"".join(chunks), type=dict[str, int]).items():
            self._set(account, balance)

    def digest(self) -> int:
        return self._hash & 0xFFFF_FFFF_FFFF_FFFF


def _hash_of(account: str, balance: int) -> int:
    return crc32(f"{account}={balance}".encode()) << 16
