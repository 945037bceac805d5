"""Find the state machine that a cluster replicates, by its name `package.module:Class`.

`cluster up` looks before anything is started, and each node again when it starts: both with the
same words, so that a module that has gone meanwhile is refused as clearly as one that never was.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import cast

from zraft.errors import ConfigError
from zraft.machine.base import StateMachine

METHODS = ("apply", "query", "snapshot", "restore", "digest")


def load_machine(name: str, directory: str = "") -> StateMachine:
    """Import the class and return a new machine, in its first state.

    Args:
        name: `package.module:Class`; the class takes no arguments.
        directory: where to look for the package after everything that is installed, "": nowhere.

    Raises:
        ConfigError: the name is no name, the import failed, or the class does not fit.
    """
    module_name, _, class_name = name.partition(":")
    words = [*module_name.split("."), class_name]
    if not all(word.isidentifier() for word in words):
        raise ConfigError(
            f'"{name}" does not name a state machine',
            why="it is written package.module:Class, as in an import",
            try_="--state-machine examples.bank:Bank",
        )
    if directory and directory not in sys.path:
        sys.path.append(directory)
    found = _find(_import(module_name, directory), module_name, class_name)
    return _made(found, name)


def directory_of(machine: StateMachine) -> str:
    """Return the directory in which the package of a machine's class lies, "" when it has none."""
    module_name = type(machine).__module__
    file = getattr(sys.modules[module_name], "__file__", None)
    if file is None:
        return ""
    above = module_name.count(".") + (Path(file).name == "__init__.py")
    return str(Path(file).resolve().parents[above])


def _import(module_name: str, directory: str) -> object:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _import_failed(module_name, error) from error
        raise ConfigError(
            f"there is no module {module_name}",
            why=f"{error.name} is neither installed nor in {directory or 'a directory given'}",
            try_="run this in the directory that holds the package, or install it",
        ) from error
    except Exception as error:
        raise _import_failed(module_name, error) from error


def _import_failed(module_name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"the module {module_name} can not be imported",
        why=_told(error),
        try_=f'{Path(sys.executable).name} -c "import {module_name}"',
    )


def _told(error: Exception) -> str:
    """Return an exception in a line, with the last place in the user's code."""
    said = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if "importlib" not in frame.filename]
    last = theirs[-1] if theirs else None
    if last is None or last.filename == __file__:
        return said
    return f"{said} ({last.filename}, line {last.lineno})"


def _find(module: object, module_name: str, class_name: str) -> type:
    found = getattr(module, class_name, None)
    if isinstance(found, type):
        return found
    classes = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module_name and hasattr(value, "apply")
    ]
    why = f"{class_name} is a {type(found).__name__}" if found is not None else "no such name"
    raise ConfigError(
        f"{module_name} has no class {class_name}",
        why=f"{why}; its state machines are {', '.join(classes) or 'none'}",
        try_=tuple(f"--state-machine {module_name}:{name}" for name in classes[:1]),
    )


def _made(found: type, name: str) -> StateMachine:
    """Return a machine of this class, if it fits. A stub of the contract counts as missing."""
    contract = vars(StateMachine)
    missing = [
        method
        for method in METHODS
        if not callable(getattr(found, method, None))
        or (method != "digest" and getattr(found, method) is contract[method])
    ]
    if missing:
        raise ConfigError(
            f"{name} is not a state machine",
            why=f"it has no {', no '.join(missing)}",
            try_="zraft.StateMachine is the contract, examples/bank.py an example",
        )
    try:
        machine = cast(StateMachine, found())
    except Exception as error:
        raise ConfigError(
            f"{name} can not be made",
            why=f"it is called without arguments: {_told(error)}",
            try_="give every argument of __init__ a default",
        ) from error
    _check_digest(machine, name)
    return machine


def _check_digest(machine: StateMachine, name: str) -> None:
    """Ask once: nodes ask after every entry, and can not go on without an answer."""
    what = f"the digest() of {name} gives neither a number nor None"
    hint = "return a hash of the state as an int, or None for no hash"
    try:
        digest = machine.digest()
    except Exception as error:
        raise ConfigError(what, why=_told(error), try_=hint) from error
    if digest is not None and type(digest) is not int:
        raise ConfigError(what, why=f"it returned {digest!r:.40}", try_=hint)
