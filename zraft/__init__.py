"""zraft: Raft for Python, one operating-system process per node.

The public names. Importing this costs next to nothing: what needs ZeroMQ or MessagePack is imported
when it is first used.
"""

from typing import TYPE_CHECKING

from zraft._version import __version__
from zraft.errors import (
    Busy,
    Conflict,
    InvalidCommand,
    NotFound,
    OutcomeUnknown,
    SessionExpired,
    Unavailable,
    Withdrawn,
    ZraftError,
)

if TYPE_CHECKING:
    from zraft.client.aio import AsyncClient
    from zraft.client.sync import Client
    from zraft.machine.base import CommandError, Ctx, StateMachine
    from zraft.machine.kv_results import KeyValue

__all__ = [
    "AsyncClient",
    "Busy",
    "Client",
    "CommandError",
    "Conflict",
    "Ctx",
    "InvalidCommand",
    "KeyValue",
    "NotFound",
    "OutcomeUnknown",
    "SessionExpired",
    "StateMachine",
    "Unavailable",
    "Withdrawn",
    "ZraftError",
    "__version__",
]

_LAZY = {
    "AsyncClient": "zraft.client.aio",
    "Client": "zraft.client.sync",
    "CommandError": "zraft.machine.base",
    "Ctx": "zraft.machine.base",
    "KeyValue": "zraft.machine.kv_results",
    "StateMachine": "zraft.machine.base",
}


if not TYPE_CHECKING:  # a type checker would believe that every name exists

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562)."""
        module = _LAZY.get(name)
        if module is None:
            raise AttributeError(f"module 'zraft' has no attribute {name!r}")
        from importlib import import_module

        value: object = getattr(import_module(module), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
