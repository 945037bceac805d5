"""An exception of a state machine is a result, the same on every node, and never a crash."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from zraft.machine.apply import apply_safely, query_safely
from zraft.machine.base import CommandError, Ctx, StateMachine
from zraft.machine.kv import KV
from zraft.machine.kv_codec import encode_get, encode_put

CTX = Ctx(7, 2, 1000)


class Raising:
    """A state machine that raises what it was given."""

    def __init__(self, error: BaseException | None, result: object = b"") -> None:
        self.error = error
        self.result = result

    def apply(self, ctx: Ctx, command: bytes) -> bytes:
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # a machine may be wrong about it

    query = apply

    def snapshot(self) -> Iterable[bytes]:
        return ()

    def restore(self, chunks: Iterable[bytes]) -> None:
        return

    def digest(self) -> None:
        return None


@pytest.mark.parametrize("run", [apply_safely, query_safely])
def test_a_refusal_is_a_result_with_its_text(run: type[object]) -> None:
    """A CommandError depends on command and state only: its text is replicated."""
    seen: list[Exception] = []
    machine: StateMachine = Raising(CommandError("no such account: é \udc80"))
    ok, result = apply_safely(machine, CTX, b"", lambda _ctx, error: seen.append(error))
    assert (ok, result) == (False, "no such account: é ".encode() + b"\\udc80")
    assert seen == []


def test_of_any_other_exception_only_the_name_is_replicated() -> None:
    """Its message may differ between nodes; it goes to this node's own diagnostics."""
    seen: list[tuple[Ctx, str]] = []
    results = set()
    for address in ("0x7f01", "0x7f02"):
        machine = Raising(KeyError(f"object at {address}"))
        for run in (apply_safely, query_safely):
            results.add(run(machine, CTX, b"", lambda ctx, error: seen.append((ctx, str(error)))))
    assert results == {(False, b"the state machine raised KeyError")}
    assert seen == [(CTX, "'object at 0x7f01'")] * 2 + [(CTX, "'object at 0x7f02'")] * 2
    assert apply_safely(Raising(ZeroDivisionError()), CTX, b"")[0] is False


@pytest.mark.parametrize("result", [None, "text", 7, bytearray(b"x")])
def test_a_result_that_is_no_bytes_is_an_error_result(result: object) -> None:
    """Otherwise it would break the reply on some later line, and the node with it."""
    assert apply_safely(Raising(None, result), CTX, b"") == (
        False,
        b"the state machine raised TypeError",
    )


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), KeyboardInterrupt()])
def test_a_condition_of_the_process_is_no_result(error: BaseException) -> None:
    """Another node would have answered differently: it passes through and stops this one."""
    for run in (apply_safely, query_safely):
        with pytest.raises(type(error)):
            run(Raising(error), CTX, b"")


def test_poison_commands_leave_the_store_as_it_was_and_the_next_one_works() -> None:
    """Pitfall: a command that raises must give the same error everywhere, and go by."""
    stores = [KV(), KV()]
    for kv in stores:
        assert apply_safely(kv, Ctx(1, 1, 0), encode_put(b"x", b"1"))[0]
        for index, poison in enumerate((b"", b"\xc1", b"\x91" * 100_000, b"\x92\x01\x02"), 2):
            ok, text = apply_safely(kv, Ctx(index, 1, 0), poison)
            assert not ok
            assert text
        assert apply_safely(kv, Ctx(6, 1, 0), encode_put(b"x", b"2")) == (True, b"\x91\x03")
        assert query_safely(kv, Ctx(6, 1, 0), encode_get(b"x"))[0]
    assert stores[0].digest() == stores[1].digest()
