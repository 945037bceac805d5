"""House rules that no linter knows: sizes, purity, clocks, what tests may not do.

Each rule is one test that lists every place where it is broken. An exception is made here, by name,
with its reason, or not at all.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = ("zraft", "supervisor")
FILE_LINES = 500
FUNCTION_LINES = 70
LINE_COLUMNS = 100

PURE_MODULES = frozenset(
    """__future__ abc array bisect collections contextlib copy dataclasses enum functools heapq
    itertools math operator struct types typing zlib""".split()
)
"""Modules of the standard library that the core may import: none of them reaches outside."""

IMPURE_CALLS = frozenset({"open", "print", "input", "exec", "eval", "__import__", "breakpoint"})

BANNED_MODULES = frozenset(
    """pickle cPickle marshal shelve dill threading _thread queue multiprocessing concurrent
    unittest.mock mock""".split()
)

BANNED_BUT_HERE = {
    ("zraft/client/sync.py", "threading"): "get_ident, to refuse calls of a thread not its own",
}

CLOCK_READERS = frozenset({"time"})
CLOCK_FILE = "zraft/clock.py"

CATCH_ALL = {
    "zraft/node/loop.py": "the top of the node's loop",
    "zraft/node/__main__.py": "the top of the node's loop, before and after it runs",
    "supervisor/zraft_supervisor/supervisor.py": "the top of the supervisor's loop",
    "supervisor/zraft_supervisor/__main__.py": "the same, before and after it runs",
    "zraft/machine/load.py": "a user's module may raise anything; it becomes a ConfigError",
    "zraft/machine/apply.py": "a machine's exception is a replicated result, never a crash",
}


@cache
def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file, parsed once."""
    return ast.parse(path.read_text(encoding="utf-8"))


def sources(*tops: str) -> list[Path]:
    """Return all Python files below the given directories."""
    return sorted(p for top in tops for p in (ROOT / top).rglob("*.py"))


def place(path: Path, line: int) -> str:
    """Return how an editor finds a line."""
    return f"{path.relative_to(ROOT)}:{line}"


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method of a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every imported module with its line; `from a import b` is both a and a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"relative import in {place(path, node.lineno)}"
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def calls(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every call with its line and the last name of what is called."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node.lineno, node.func.attr
            elif isinstance(node.func, ast.Name):
                yield node.lineno, node.func.id


def within(name: str, banned: Iterable[str]) -> bool:
    """Tell whether a module is one of these, or inside one."""
    return any(name == module or name.startswith(module + ".") for module in banned)


EVERYTHING = sources(*PROGRAM, "tests", "scripts")


def test_files_are_at_most_500_lines() -> None:
    """A longer file holds two ideas."""
    counts = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in EVERYTHING}
    assert {name: count for name, count in counts.items() if count > FILE_LINES} == {}


def test_functions_are_at_most_70_lines() -> None:
    """A longer function cannot be seen at once."""
    long = [
        (place(path, node.lineno), node.name, length)
        for path in EVERYTHING
        for node in functions(path)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert long == []


def test_lines_are_at_most_100_columns() -> None:
    """Two files stand beside each other on one screen."""
    scripts = [p for p in (ROOT / "scripts").iterdir() if p.is_file()]
    wide = [
        place(path, number)
        for path in {*EVERYTHING, *scripts}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > LINE_COLUMNS
    ]
    assert wide == []


def test_nothing_is_left_to_do() -> None:
    """Work that is not done is an issue, not a comment or an exception."""
    words = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|Not" r"ImplementedError)\b")
    bare = re.compile(r"#\s*type:\s*ignore(?!\[)|#\s*no" r"qa(?!:)")
    left = [
        place(path, number)
        for path in EVERYTHING
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line) or bare.search(line)
    ]
    assert left == []


def test_every_module_says_what_it_owns() -> None:
    """The docstring of a module is its theory of operation."""
    assert [str(path) for path in EVERYTHING if not ast.get_docstring(tree(path))] == []


def test_no_threads_and_no_pickle() -> None:
    """One thread per process; bytes are decoded, never executed; fakes instead of mocks."""
    found = [
        (place(path, line), name)
        for path in EVERYTHING
        for line, name in imports(path)
        if within(name, BANNED_MODULES)
        and (str(path.relative_to(ROOT)), name.partition(".")[0]) not in BANNED_BUT_HERE
    ]
    assert found == []


def test_nothing_sleeps() -> None:
    """A loop waits for a deadline in poll; a test waits for a condition with a deadline."""
    found = [
        place(path, line)
        for path in EVERYTHING
        for line, name in calls(path)
        if name == "sleep" and path != Path(__file__)
    ]
    assert found == []


def test_only_the_clock_module_reads_a_clock() -> None:
    """Time comes from zraft.clock, so that everybody means the same clock and tests can set it."""
    found = [
        (place(path, line), name)
        for path in sources(*PROGRAM)
        if str(path.relative_to(ROOT)) != CLOCK_FILE
        for line, name in imports(path)
        if within(name, CLOCK_READERS)
    ]
    found += [
        (place(path, line), name)
        for path in sources(*PROGRAM)
        for line, name in calls(path)
        if name in {"utcnow", "today"}
    ]
    assert found == []


def test_core_imports_only_what_is_pure() -> None:
    """The core has no clock, socket, file, thread, logger or global randomness."""
    allowed = {"zraft", "zraft.errors", "zraft.core"}
    found = [
        (place(path, line), name)
        for path in sources("zraft/core")
        for line, name in imports(path)
        if name not in allowed
        and not within(name, {"zraft.core", "zraft.errors"})
        and name.partition(".")[0] not in PURE_MODULES
    ]
    assert found == []


def test_core_calls_nothing_that_reaches_outside() -> None:
    """Built-in functions reach outside without an import; the core does not call these."""
    found = [
        (place(path, node.lineno), node.func.id)
        for path in sources("zraft/core")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in IMPURE_CALLS
    ]
    assert found == []


def test_core_never_depends_on_the_order_of_a_set() -> None:
    """Same seed, same trace, on every machine: no loop runs over a set display or a set call."""
    found = []
    for path in sources("zraft/core"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.For | ast.comprehension):
                source = node.iter
                if isinstance(source, ast.Set | ast.SetComp) or (
                    isinstance(source, ast.Call)
                    and isinstance(source.func, ast.Name)
                    and source.func.id in {"set", "frozenset"}
                ):
                    found.append(place(path, source.lineno))
    assert found == []


def test_only_the_loops_catch_everything() -> None:
    """`except Exception` hides bugs; it stands at the top of the two loops."""
    found = [
        place(path, node.lineno)
        for path in EVERYTHING
        if str(path.relative_to(ROOT)) not in CATCH_ALL
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and catches_all(node.type)
    ]
    assert found == []


def catches_all(caught: ast.expr | None) -> bool:
    """Tell whether an except clause catches Exception or more."""
    if caught is None:
        return True
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(isinstance(k, ast.Name) and k.id in {"Exception", "BaseException"} for k in kinds)


def test_every_test_states_its_fact() -> None:
    """The docstring of a test is the fact that it tests."""
    found = [
        place(path, node.lineno)
        for path in sources("tests")
        for node in functions(path)
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert found == []


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    """A test that does not run tests nothing."""
    names = {"skip", "skipif", "xfail", "importorskip", "SkipTest"}
    found = [
        place(path, node.lineno)
        for path in sources("tests")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in names
    ]
    assert found == []


def test_supervisor_directory_is_not_a_package() -> None:
    """An installed package `supervisor` would overwrite the well-known Supervisor project."""
    assert not (ROOT / "supervisor" / "__init__.py").exists()


def test_nothing_names_a_place_outside() -> None:
    """A checkout stands alone: no path and no page that its readers do not have."""
    names = re.compile(
        r"/wo"
        r"rk/|/tmp/br"
        r"ief|\.\./sha"
        r"red|\bissue [0-9]+\b|\bdesign §"
        r"|\b(design|zeromq|pitfalls|python-api|ux-anchors|style|cli|testing)\.m"
        r"d\b"
    )
    tops = ("zraft", "supervisor", "tests", "scripts", "configs", "docs", ".ci")
    files = [p for top in tops for p in (ROOT / top).rglob("*") if p.is_file()]
    files += [ROOT / name for name in ("README.md", "CHANGELOG.md", "pyproject.toml")]
    found = [
        place(path, number)
        for path in files
        if path.suffix in {"", ".py", ".md", ".toml", ".txt", ".sh", ".typed"}
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if names.search(line)
    ]
    assert found == []


@pytest.fixture
def project() -> dict[str, object]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_development_extra_and_group_are_the_same(project: dict[str, dict[str, object]]) -> None:
    """pip knows extras, newer tools know groups; nobody gets different tools."""
    extras = project["project"]["optional-dependencies"]
    assert isinstance(extras, dict)
    assert extras["dev"] == project["dependency-groups"]["dev"]


def test_every_module_has_its_layer(project: dict[str, dict[str, object]]) -> None:
    """A module that no contract names could import upwards unseen."""
    tool = project["tool"]["importlinter"]
    assert isinstance(tool, dict)
    layers = " ".join(tool["contracts"][0]["layers"])
    named = set(re.findall(r"[a-z_.]+", layers))
    modules = {f"zraft.{p.stem}" for p in (ROOT / "zraft").glob("*.py") if p.stem[0] != "_"}
    modules |= {f"zraft.{p.parent.name}" for p in (ROOT / "zraft").glob("*/__init__.py")}
    assert modules - named == set()
