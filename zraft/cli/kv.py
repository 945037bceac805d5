"""`zraft kv`: read and write the store of a running cluster. Never starts anything.

stdout carries values only, byte for byte; what to think of them is on stderr and in the exit code:
4 no such key, 5 the condition was false, 6 certainly not applied, 7 perhaps applied.
"""

from __future__ import annotations

import base64
import binascii
import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from zraft.cli.durations import parse_duration_ms
from zraft.cli.errors import EXIT_OK, CasConflict, usage_error
from zraft.cli.kv_clients import connected, writing
from zraft.cli.options import Run, command, noun
from zraft.cli.output import Cell, Output, printable
from zraft.errors import ControlError, NotFound

if TYPE_CHECKING:
    from zraft.client.kv import ReadConsistency
    from zraft.client.sync import Info
    from zraft.machine.kv_results import KeyValue

app = noun(
    "kv",
    "Read and write the replicated key-value store.",
    ["zraft kv put hello world", "zraft kv get hello", "zraft kv scan user/"],
    later=("incr", "watch", "txn", "import", "export", "shell"),
)

ENCODINGS = ("utf8", "base64", "hex", "raw")
LEVELS = ("linearizable", "lease", "stale")

Key = Annotated[str, typer.Argument(metavar="KEY")]
At = Annotated[
    str | None,
    typer.Option("--at", "--from", metavar="NODE", help="Ask this node only (n2, leader)."),
]
RequestId = Annotated[
    str | None,
    typer.Option(
        "--request-id",
        metavar="ID",
        help="Send again what was sent under this id: it is applied once.",
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option("--encoding", metavar="KIND", help="How values are written: utf8, base64, hex."),
]
Level = Annotated[
    str,
    typer.Option(
        "--consistency",
        metavar="LEVEL",
        help="linearizable (default); lease: by the leader's clock; stale: any node's own.",
    ),
]
Bound = Annotated[
    str | None,
    typer.Option(
        "--max-staleness", metavar="TIME", help="With stale: refuse what may be older (500ms, 2s)."
    ),
]

_READS_LATER = ("--explain",)


def _level(name: str) -> ReadConsistency:
    if name not in LEVELS:
        raise usage_error(f'--consistency: no level "{name}"', LEVELS, name)
    return cast("ReadConsistency", name)


def _bound_s(text: str | None, level: str) -> float | None:
    """Return the seconds of `--max-staleness`, None without one."""
    if text is None:
        return None
    if level != "stale":
        raise ControlError(
            f"--max-staleness does not fit --consistency {level}",
            why="it bounds how old a stale read may be; other reads are never old",
            try_="--consistency stale --max-staleness 2s",
        )
    return parse_duration_ms(text, "--max-staleness") / 1000


def _age(level: str, info: Info | None) -> dict[str, Any]:
    """Return the field that says how old a stale read was; null when its node can't know."""
    return {"staleness_ms": info.staleness_ms} if level == "stale" and info is not None else {}


# ------------------------------------------------------------------------------- values as text


def to_bytes(text: str) -> bytes:
    """Return the bytes that were typed."""
    return os.fsencode(text)


def parse_value(text: str, encoding: str | None) -> bytes:
    """Return the value of an argument, or of stdin for `-`; ControlError for bad base64 or hex."""
    data = sys.stdin.buffer.read() if text == "-" else to_bytes(text)
    match _checked_encoding(encoding):
        case "base64" | "hex" as kind:
            try:
                compact = b"".join(data.split())
                if kind == "hex":
                    return binascii.unhexlify(compact)
                return base64.b64decode(compact, validate=True)
            except binascii.Error as error:
                raise ControlError(f"the value is not {kind}", why=str(error)) from None
        case _:
            return data


def _checked_encoding(encoding: str | None) -> str | None:
    if encoding is not None and encoding not in ENCODINGS:
        raise usage_error(f'--encoding: no encoding "{encoding}"', ENCODINGS, encoding)
    return encoding


def spell(data: bytes, encoding: str | None) -> tuple[str, str]:
    """Return a value as text and the name of the encoding: UTF-8 if it is that, else base64."""
    if encoding == "hex":
        return data.hex(), "hex"
    if encoding != "base64":
        try:
            return data.decode(), "utf8"
        except UnicodeDecodeError:
            pass
    return base64.b64encode(data).decode(), "base64"


def write_value(out: Output, data: bytes, encoding: str | None) -> None:
    """Write a value to stdout and a newline; `raw` writes no newline, binary goes out as it is."""
    if encoding in {"hex", "base64"}:
        out.line(spell(data, encoding)[0])
        return
    out.stdout.flush()
    binary = getattr(out.stdout, "buffer", None)
    ending = b"" if encoding == "raw" else b"\n"
    if binary is None:
        out.stdout.write((data + ending).decode(errors="backslashreplace"))
        return
    if out.stdout.isatty() and spell(data, None)[1] != "utf8":
        data = data.decode(errors="backslashreplace").encode()
    binary.write(data + ending)
    binary.flush()


def _shown(data: bytes) -> str:
    return printable(data.decode(errors="backslashreplace"))


def _served(info: Info | None) -> dict[str, Any]:
    """Return the fields that say who answered."""
    if info is None:
        return {}
    return {"served_by": info.node, "via": info.via, "term": info.term, "index": info.index}


def _key(data: bytes) -> dict[str, Any]:
    """Return the fields of a key; the encoding is said when it is not UTF-8."""
    key, encoding = spell(data, None)
    return {"key": key} if encoding == "utf8" else {"key": key, "key_encoding": encoding}


def _item(item: KeyValue, encoding: str | None, keys_only: bool = False) -> dict[str, Any]:
    fields = _key(item.key)
    if not keys_only:
        fields["value"], fields["encoding"] = spell(item.value, encoding)
    fields |= {
        "rev": item.mod_revision,
        "create_rev": item.create_revision,
        "version": item.version,
    }
    return fields


# --------------------------------------------------------------------------------------- verbs


@command(
    app,
    "kv put",
    examples=["zraft kv put hello world", "zraft kv put config - < config.json"],
    later=("--explain", "--if-absent", "--if-version", "--ttl"),
)
def put(
    run: Run,
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="The value; - reads stdin.")],
    at: At = None,
    encoding: Encoding = None,
    request_id: RequestId = None,
) -> int:
    """Write a key: durable on a majority when this returns, and applied once."""
    data = parse_value(value, encoding)
    again = f"zraft kv put {shlex.quote(key)} {shlex.quote(value)}"
    with writing(run, at, request_id, again) as (kv, client, target):
        result = kv.put(to_bytes(key), data, at=target)
        info = client.info
    document = {
        "schema": "zraft.kv.put/1",
        "ok": True,
        **_key(to_bytes(key)),
        "rev": result.revision,
        **_served(info),
    }
    run.out.result(document, lambda: run.out.line(f"OK  rev {result.revision}"))
    return EXIT_OK


@command(
    app,
    "kv get",
    examples=["zraft kv get hello", "zraft kv get hello --consistency stale --from n3 --json"],
    later=_READS_LATER,
)
def get(
    run: Run,
    key: Key,
    consistency: Level = "linearizable",
    max_staleness: Bound = None,
    at: At = None,
    encoding: Encoding = None,
) -> int:
    """Print the value of a key, and nothing else. Exit 4 when there is no such key."""
    level = _level(consistency)
    bound_s = _bound_s(max_staleness, level)
    _checked_encoding(encoding)
    with connected(run, at) as (client, target):
        item = client.kv.entry(to_bytes(key), consistency=level, max_staleness=bound_s, at=target)
        info = client.info
    assert info is not None
    if item is None:
        who = f"{level} read at index {info.index}, answered by {info.node}"
        raise NotFound(f'no key "{printable(key)}" ({who})', try_=f"zraft kv scan{run.suffix}")
    document = {
        "schema": "zraft.kv.get/1",
        "ok": True,
        **_item(item, encoding),
        **_served(info),
        "consistency": level,
        **_age(level, info),
        "read_index": info.index,
        "revision": info.revision,
    }
    run.out.result(document, lambda: write_value(run.out, item.value, encoding))
    return EXIT_OK


@command(app, "kv delete", examples=["zraft kv delete hello"], later=("--explain",))
def delete(run: Run, key: Key, at: At = None, request_id: RequestId = None) -> int:
    """Delete a key. Exit 4 when there is none."""
    again = f"zraft kv delete {shlex.quote(key)}"
    with writing(run, at, request_id, again) as (kv, client, target):
        deleted = kv.delete(to_bytes(key), at=target)
        info = client.info
    assert info is not None
    if not deleted:
        raise NotFound(f'no key "{printable(key)}"; nothing changed')
    document = {
        "schema": "zraft.kv.delete/1",
        "ok": True,
        **_key(to_bytes(key)),
        "rev": info.revision,
        **_served(info),
    }
    run.out.result(document, lambda: run.out.line(f"OK  rev {info.revision}"))
    return EXIT_OK


@command(
    app,
    "kv cas",
    examples=["zraft kv cas x --expect 2 --set 3", "zraft kv cas x --expect-absent --set 1"],
    later=("--explain",),
)
def cas(
    run: Run,
    key: Key,
    new: Annotated[str, typer.Option("--set", metavar="VALUE", help="The new value.")],
    expect: Annotated[
        str | None, typer.Option("--expect", metavar="VALUE", help="The value it must have now.")
    ] = None,
    absent: Annotated[
        bool, typer.Option("--expect-absent", help="There must be no such key now.")
    ] = False,
    at: At = None,
    encoding: Encoding = None,
    request_id: RequestId = None,
) -> int:
    """Write a key if it has the expected value now. Exit 5, and the actual value, if not."""
    if (expect is None) != absent:
        raise ControlError(
            "say what is expected",
            why="either --expect VALUE or --expect-absent",
            try_=f"zraft kv cas {key} --expect 2 --set 3",
        )
    expected = None if expect is None else parse_value(expect, encoding)
    data = parse_value(new, encoding)
    wanted = "--expect-absent" if expect is None else f"--expect {shlex.quote(expect)}"
    again = f"zraft kv cas {shlex.quote(key)} {wanted} --set {shlex.quote(new)}"
    with writing(run, at, request_id, again) as (kv, client, target):
        result = kv.compare_and_set(to_bytes(key), expect=expected, set=data, at=target)
        info = client.info
    if not result.succeeded:
        raise _conflict(key, expected, result.current, encoding)
    document = {
        "schema": "zraft.kv.cas/1",
        "ok": True,
        **_key(to_bytes(key)),
        "rev": result.revision,
        **_served(info),
    }
    run.out.result(document, lambda: run.out.line(f"OK  rev {result.revision}"))
    return EXIT_OK


def _conflict(
    key: str, expected: bytes | None, current: KeyValue | None, encoding: str | None
) -> CasConflict:
    name = printable(key)
    details: dict[str, Any]
    if current is None:
        found = "there is no such key"
        details = {**_key(to_bytes(key)), "actual": None}
    else:
        found = f'its value is "{_shown(current.value)}" (rev {current.mod_revision})'
        details = {**_key(to_bytes(key)), "actual": _item(current, encoding)}
    wanted = "no key" if expected is None else f'"{_shown(expected)}"'
    return CasConflict(
        f'"{name}" is not as expected; nothing changed',
        why=f"expected {wanted}, but {found}",
        try_=f"zraft kv get {name}",
        details=details,
    )


@command(
    app,
    "kv scan",
    examples=["zraft kv scan user/ --limit 100", "zraft kv scan --keys-only"],
    later=_READS_LATER,
)
def scan(
    run: Run,
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]", help="What keys start with.")] = "",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most so many keys.")
    ] = None,
    keys_only: Annotated[bool, typer.Option("--keys-only", help="Without values.")] = False,
    consistency: Level = "linearizable",
    max_staleness: Bound = None,
    at: At = None,
    encoding: Encoding = None,
) -> int:
    """List the keys that start with a prefix, in order."""
    level = _level(consistency)
    bound_s = _bound_s(max_staleness, level)
    _checked_encoding(encoding)
    with connected(run, at) as (client, target):
        items = client.kv.scan(
            to_bytes(prefix),
            limit=limit,
            keys_only=keys_only,
            consistency=level,
            max_staleness=bound_s,
            at=target,
        )
        info = client.info
    document = {
        "schema": "zraft.kv.scan/1",
        "ok": True,
        "prefix": prefix,
        "items": [_item(item, encoding, keys_only) for item in items],
        "consistency": level,
        **_age(level, info),
        **_served(info),
    }

    def human() -> None:
        if not items:
            run.out.message("no keys")
        elif keys_only:
            for item in items:
                run.out.line(_shown(item.key))
        else:
            rows: list[list[Cell]] = [
                [_shown(item.key), str(item.mod_revision), _value_cell(item.value, encoding)]
                for item in items
            ]
            run.out.table(("KEY", "REV", "VALUE"), rows)

    run.out.result(document, human)
    return EXIT_OK


def _value_cell(value: bytes, encoding: str | None) -> str:
    return spell(value, encoding)[0] if encoding in {"hex", "base64"} else _shown(value)


FATES = {
    "applied": "applied at index {index}",
    "withdrawn": "not applied, and now it never will be",
    "forgotten": "its client had its answer, and the cluster keeps it no more",
}


@command(app, "kv resolve", examples=["zraft kv resolve 1f-3"])
def resolve_request(
    run: Run,
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="Of a write.")],
) -> int:
    """Tell what became of a write whose outcome was unknown; one not applied is withdrawn."""
    with connected(run, None) as (client, _):
        found = client.resolve(request_id)
        info = client.info
    fate = found.fate.name.lower()
    document = {
        "schema": "zraft.kv.resolve/1",
        "ok": True,
        "request_id": request_id,
        "fate": fate,
        "applied_index": found.index or None,
        "refused": bool(found.code),
        **_served(info),
    }
    refused = ", and refused by the state machine" if found.code else ""
    run.out.result(document, lambda: run.out.line(FATES[fate].format(index=found.index) + refused))
    return EXIT_OK
