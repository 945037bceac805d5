"""What `import zraft` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import zraft

HEAVY = ("zmq", "msgpack", "msgspec", "sortedcontainers", "structlog", "typer", "rich", "psutil")


def test_importing_zraft_imports_nothing_heavy() -> None:
    """ZeroMQ, MessagePack and the rest come when they are first used."""
    script = f"import sys, zraft; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", zraft.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Lazy or not: it can be had, it is listed, and it is documented."""
    value = getattr(zraft, name)
    assert name in dir(zraft)
    assert isinstance(value, str) or value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = zraft.Nonsense  # type: ignore[attr-defined]  # that is the point
    assert not hasattr(zraft, "nonsense")


def test_the_lazy_names_are_the_real_classes() -> None:
    """The type checker and the program see the same."""
    from zraft.client.sync import Client
    from zraft.machine.kv_results import KeyValue

    assert zraft.Client is Client
    assert zraft.KeyValue is KeyValue
