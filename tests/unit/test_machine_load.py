"""Finding a state machine by its name, and what is said when that fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zraft.config import BUILT_IN_MACHINE
from zraft.errors import ConfigError
from zraft.machine.kv import KV
from zraft.machine.load import directory_of, load_machine

MODULE = '''
"""Machines that fit, and some that do not."""
import zraft

class Whole(zraft.StateMachine):
    def apply(self, ctx, command): return b""
    def query(self, ctx, request): return b""
    def snapshot(self): return []
    def restore(self, chunks): pass

class Duck:
    apply = query = snapshot = restore = digest = lambda self, *given: None

class Half(zraft.StateMachine):
    def apply(self, ctx, command): return b""

class Wanting(Whole):
    def __init__(self, size): self.size = size

class Text(Whole):
    def digest(self): return "text"

class Never(Whole):
    def digest(self): raise LookupError("no hash")

NUMBER = 7
'''


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    """A directory with modules, forgotten afterwards."""
    package = tmp_path / "shop_for_tests"
    package.mkdir()
    (package / "machines.py").write_text(MODULE)
    (package / "broken.py").write_text("LIMIT = 1\nLIMIT.nothing\n")
    (package / "hungry.py").write_text("import no_such_library_at_all\n")
    before, known = list(sys.path), set(sys.modules)
    yield str(tmp_path)
    sys.path[:] = before
    for name in set(sys.modules) - known:
        del sys.modules[name]


def refused(name: str, directory: str = "") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_machine(name, directory)
    assert caught.value.exit_code == 78
    assert caught.value.why
    return caught.value


def test_the_built_in_store_is_found_by_its_name() -> None:
    """As any other class."""
    assert isinstance(load_machine(BUILT_IN_MACHINE), KV)


@pytest.mark.parametrize("name", ["Whole", "Duck"])
def test_a_class_in_the_given_directory_is_found_and_made(place: str, name: str) -> None:
    """By inheritance or by its methods; `digest` may be left to the contract. Its directory too."""
    machine = load_machine(f"shop_for_tests.machines:{name}", place)
    assert type(machine).__name__ == name
    assert directory_of(machine) == str(Path(place).resolve())
    assert machine.digest() is None


@pytest.mark.parametrize(
    "name", ["", "bank", "bank:", ":Bank", "a:b:c", "a b:C", "a..b:C", "a/b:C"]
)
def test_what_is_no_name_is_refused_with_an_example(name: str) -> None:
    """Nothing is imported."""
    assert "package.module:Class" in refused(name).why


def test_a_missing_module_is_told_from_one_that_misses_another(place: str) -> None:
    """The first is a wrong name, the second a failed import."""
    assert "neither installed nor in" in refused("shop_for_tests.nothing:X", place).why
    assert refused("nowhere_at_all:X").what == "there is no module nowhere_at_all"
    error = refused("shop_for_tests.hungry:X", place)
    assert "can not be imported" in error.what
    assert "no_such_library_at_all" in error.why


def test_a_failed_import_names_the_exception_and_the_line(place: str) -> None:
    """The user's line, not the import machinery's."""
    error = refused("shop_for_tests.broken:X", place)
    assert "AttributeError" in error.why
    assert "broken.py, line 2" in error.why


def test_a_wrong_class_is_answered_with_those_that_are_there(place: str) -> None:
    """A missing name, and a name of something else."""
    error = refused("shop_for_tests.machines:Wole", place)
    assert "Whole, Duck, Half, Wanting, Text, Never" in error.why
    assert "NUMBER is a int" in refused("shop_for_tests.machines:NUMBER", place).why


def test_a_class_that_does_not_fit_is_told_what_it_lacks(place: str) -> None:
    """Stubs that it inherits from the contract are missing methods."""
    assert refused("shop_for_tests.machines:Half", place).why == (
        "it has no query, no snapshot, no restore"
    )
    assert "no apply" in refused("zraft.errors:ZraftError").why
    assert "TypeError" in refused("shop_for_tests.machines:Wanting", place).why


def test_a_digest_that_is_no_number_is_found_before_anything_starts(place: str) -> None:
    """Nodes ask for it after every entry, and would stop there."""
    assert refused("shop_for_tests.machines:Text", place).why == "it returned 'text'"
    assert "LookupError: no hash" in refused("shop_for_tests.machines:Never", place).why
