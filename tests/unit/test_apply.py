"""An exception of a state machine is a result, the same on every node, and never a crash."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest

from zraft.errors import DecodeError, MachineError
from zraft.machine.apply import apply_safely, query_safely, restore_safely, snapshot_safely
from zraft.machine.base import CommandError, Ctx, StateMachine
from zraft.machine.kv import KV
from zraft.machine.kv_codec import encode_get, encode_put
from zraft.wire import MAX_RESULT_BYTES

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


def test_a_result_that_no_frame_can_carry_is_an_error_result() -> None:
    """Its client would lose the connection instead of an answer, with every try."""
    for run in (apply_safely, query_safely):
        longest = bytes(MAX_RESULT_BYTES)
        assert run(Raising(None, longest), CTX, b"") == (True, longest)
        ok, text = run(Raising(None, longest + b"x"), CTX, b"")
        assert not ok
        assert b"returned 4190209 bytes, at most 4190208 fit" in text


class Frozen(KV):
    """A store whose snapshot, and whose way back from one, are what a test wants them to be."""

    def __init__(self, chunks: Callable[[], Iterable[object]]) -> None:
        super().__init__()
        self.chunks = chunks

    def snapshot(self) -> Iterator[bytes]:
        return self.chunks()  # type: ignore[return-value]  # a machine may be wrong about it

    def restore(self, chunks: Iterable[bytes]) -> None:
        if list(chunks) == [b"a"]:
            raise KeyError("a")


def raising(error: Exception, *before: object) -> Iterator[object]:
    """Yield some chunks, then raise."""
    yield from before
    raise error


def test_chunks_of_a_snapshot_are_handed_on_as_they_are() -> None:
    """Empty ones, too: they say that the next one is not ready yet."""
    assert list(snapshot_safely(Frozen(lambda: [b"a", b"", b"b"]))) == [b"a", b"", b"b"]
    assert list(snapshot_safely(Frozen(lambda: ()))) == []


@pytest.mark.parametrize(
    ("chunks", "why"),
    [
        (lambda: raising(ValueError("half"), b"a"), "ValueError: half"),
        (lambda: [b"a", None, b"b"], "TypeError: a chunk is NoneType, not bytes"),
        (lambda: [b"a", "text"], "TypeError: a chunk is str, not bytes"),
        (lambda: [b"a", bytearray(b"x")], "TypeError: a chunk is bytearray, not bytes"),
    ],
)
def test_a_snapshot_that_raises_or_is_no_bytes_fails_as_a_whole(
    chunks: Callable[[], Iterable[object]], why: str
) -> None:
    """And says so after what came before: a part of it is never taken for the whole."""
    parts = snapshot_safely(Frozen(chunks))
    assert next(parts) == b"a"
    with pytest.raises(MachineError, match=r"snapshot\(\) failed") as caught:
        next(parts)
    assert list(parts) == []
    assert caught.value.why == why


def test_a_snapshot_that_can_not_be_begun_fails_at_once() -> None:
    """The state is to be frozen when the call returns, so nothing waits for the first chunk."""

    def refuses() -> Iterable[object]:
        raise OSError("no")

    for chunks, why in ((refuses, "OSError: no"), (lambda: 7, "TypeError: 'int' object")):
        with pytest.raises(MachineError) as caught:
            snapshot_safely(Frozen(chunks))  # type: ignore[arg-type]  # a machine may be wrong
        assert caught.value.why.startswith(why)


def test_a_restore_that_raises_is_the_machine_s_unless_the_bytes_are_wrong() -> None:
    """What is found wrong with a snapshot keeps its name, wherever it is found."""
    machine = Frozen(lambda: ())
    restore_safely(machine, [b"b"])
    with pytest.raises(MachineError, match=r"restore\(\) failed") as caught:
        restore_safely(machine, [b"a"])
    assert caught.value.why == "KeyError: 'a'"
    assert caught.value.exit_code == 70
    with pytest.raises(DecodeError):
        restore_safely(machine, raising(DecodeError("damaged")))  # type: ignore[arg-type]


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
