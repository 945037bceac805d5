"""The configuration: TOML files, environment and flags become frozen structs that obey every rule.

    flags  >  environment  >  the file given, or ./zraft.toml  >  defaults

It reads one file and nothing else; it never guesses and never ignores. An unknown section or key
and a value that breaks a rule are refused with the place, the key, the value and the rule, before
any process starts. Every key is written down with its consequence in configs/default.toml, which a
test compares with the defaults below.

Keys are `section.name`. The environment variable of `timing.election_min_ms` is
`ZRAFT_TIMING_ELECTION_MIN_MS`. Units are the last part of a name.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from msgspec import Meta, Struct, field

from zraft.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB
DEFAULT_FILE = "zraft.toml"
BUILT_IN_MACHINE = "zraft.machine.kv:KV"

Millis = Annotated[int, Meta(ge=1, le=3_600_000)]
Seconds = Annotated[int, Meta(ge=1, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Bytes = Annotated[int, Meta(ge=1, le=1024 * MIB)]
RequestBytes = Annotated[int, Meta(ge=4 * KIB, le=MIB - 4 * KIB)]
SegmentBytes = Annotated[int, Meta(ge=64 * KIB, le=1024 * MIB)]
BlockBytes = Annotated[int, Meta(ge=4 * KIB, le=16 * MIB)]

Origins = dict[str, str]
"""Dotted key → where its value came from, for people: `default`, a file, a variable, a flag."""


class Timing(Struct, frozen=True, forbid_unknown_fields=True):
    """Raft's timers and the rules that depend on them."""

    election_min_ms: Millis = 150
    election_max_ms: Millis = 300
    heartbeat_ms: Millis = 50
    pre_vote: bool = True
    check_quorum: bool = True
    disconnect_hint: bool = True
    stall_grace: bool = True


class Replication(Struct, frozen=True, forbid_unknown_fields=True):
    """How much a leader sends ahead of the answers of one follower."""

    max_inflight_messages: Annotated[int, Meta(ge=1, le=10_000)] = 64
    max_inflight_bytes: Bytes = MIB
    max_batch_bytes: Annotated[int, Meta(ge=4 * KIB, le=16 * MIB)] = 256 * KIB


class Storage(Struct, frozen=True, forbid_unknown_fields=True):
    """The write-ahead log on disk."""

    segment_bytes: SegmentBytes = 16 * MIB
    prealloc_bytes: BlockBytes = 256 * KIB


class Snapshot(Struct, frozen=True, forbid_unknown_fields=True):
    """When snapshots are taken, what of the log stays behind them, how fast they are sent."""

    min_log_bytes: Annotated[int, Meta(ge=4 * KIB, le=16 * 1024 * MIB)] = 64 * MIB
    size_percent: Annotated[int, Meta(ge=1, le=10_000)] = 100
    slice_ms: Annotated[int, Meta(ge=1, le=1_000)] = 1
    trailing_entries: Annotated[int, Meta(ge=0, le=10_000_000)] = 10_000
    trailing_bytes: Annotated[int, Meta(ge=0, le=1024 * MIB)] = 16 * MIB
    held_bytes: Annotated[int, Meta(ge=0, le=1024 * MIB)] = 64 * MIB
    chunk_bytes: Annotated[int, Meta(ge=KIB, le=512 * KIB)] = 256 * KIB
    window_chunks: Annotated[int, Meta(ge=1, le=1_000)] = 4
    max_bytes_per_s: Annotated[int, Meta(ge=64 * KIB, le=100 * 1024 * MIB)] = 64 * MIB


class Sessions(Struct, frozen=True, forbid_unknown_fields=True):
    """The terms under which a leader opens a client's session; they stand in the log then."""

    ttl_ms: Millis = 1_800_000
    max_sessions: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    max_bytes: Annotated[int, Meta(ge=MIB, le=1024 * MIB)] = 64 * MIB


class Reads(Struct, frozen=True, forbid_unknown_fields=True):
    """Which reads are allowed to trust what."""

    lease: bool = False
    clock_drift_percent: Annotated[int, Meta(ge=1, le=90)] = 10


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds of what one node holds and does at a time."""

    max_waiting_requests: Count = 10_000
    max_parked_requests: Count = 1_000
    max_session_requests: Count = 4_000
    max_uncommitted_bytes: Bytes = 64 * MIB
    max_request_bytes: RequestBytes = MIB - 4 * KIB
    max_key_bytes: Annotated[int, Meta(ge=1, le=64 * KIB)] = 8 * KIB
    apply_slice_ms: Annotated[int, Meta(ge=1, le=1_000)] = 5
    apply_batch_entries: Annotated[int, Meta(ge=1, le=100_000)] = 1_000
    apply_batch_bytes: Bytes = MIB


class Machine(Struct, frozen=True, forbid_unknown_fields=True):
    """The state machine that is replicated; it stays the same for a cluster's whole life."""

    name: Annotated[str, Meta(min_length=1, max_length=200)] = BUILT_IN_MACHINE
    directory: Annotated[str, Meta(max_length=1000)] = ""


class Logging(Struct, frozen=True, forbid_unknown_fields=True):
    """The two diagnostic streams of each process."""

    trace: Literal["off", "auto", "full"] = "auto"
    trace_events_per_s: Count = 300
    rotate_bytes: Annotated[int, Meta(ge=64 * KIB, le=1024 * MIB)] = 16 * MIB
    rotate_files: Annotated[int, Meta(ge=1, le=100)] = 5


class Supervisor(Struct, frozen=True, forbid_unknown_fields=True):
    """When crashed nodes are started again, and how long starting and stopping may take."""

    restart: bool = True
    backoff_min_ms: Millis = 100
    backoff_max_ms: Millis = 10_000
    crash_limit: Annotated[int, Meta(ge=1, le=1_000)] = 5
    crash_window_s: Seconds = 60
    healthy_after_s: Seconds = 30
    start_timeout_s: Seconds = 10
    stop_timeout_s: Seconds = 3


class Testing(Struct, frozen=True, forbid_unknown_fields=True):
    """What a node lets itself be done to by those who test it."""

    faults: Literal["allowed", "refused"] = "allowed"


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be configured, checked: a `Config` that exists obeys all rules."""

    timing: Timing = field(default_factory=Timing)
    replication: Replication = field(default_factory=Replication)
    storage: Storage = field(default_factory=Storage)
    snapshot: Snapshot = field(default_factory=Snapshot)
    sessions: Sessions = field(default_factory=Sessions)
    reads: Reads = field(default_factory=Reads)
    limits: Limits = field(default_factory=Limits)
    machine: Machine = field(default_factory=Machine)
    logging: Logging = field(default_factory=Logging)
    supervisor: Supervisor = field(default_factory=Supervisor)
    testing: Testing = field(default_factory=Testing)

    def __post_init__(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            ConfigError: a rule between two keys is broken.
        """
        values = dict(_flatten(self))
        for rule in RULES:
            if not rule.holds(values):
                _refuse_rule(rule, values, origins={})


class Rule(Struct, frozen=True):
    """A rule between keys: the sentence, the keys it names, and the test."""

    sentence: str
    keys: tuple[str, ...]
    holds: Callable[[Mapping[str, Any]], bool]


def _at_most(lower: str, upper: str) -> Rule:
    return Rule(f"{lower} ≤ {upper}", (lower, upper), lambda v: v[lower] <= v[upper])


RULES = (
    _at_most("timing.election_min_ms", "timing.election_max_ms"),
    Rule(
        "timing.heartbeat_ms ≤ timing.election_min_ms / 2 (or one lost heartbeat is an election)",
        ("timing.heartbeat_ms", "timing.election_min_ms"),
        lambda v: 2 * v["timing.heartbeat_ms"] <= v["timing.election_min_ms"],
    ),
    Rule(
        "reads.lease needs timing.check_quorum (a lease rests on what makes voters wait)",
        ("reads.lease", "timing.check_quorum"),
        lambda v: v["timing.check_quorum"] or not v["reads.lease"],
    ),
    _at_most("replication.max_batch_bytes", "replication.max_inflight_bytes"),
    _at_most("storage.prealloc_bytes", "storage.segment_bytes"),
    _at_most("snapshot.trailing_bytes", "snapshot.held_bytes"),
    _at_most("limits.max_parked_requests", "limits.max_waiting_requests"),
    _at_most("limits.max_key_bytes", "limits.max_request_bytes"),
    _at_most("supervisor.backoff_min_ms", "supervisor.backoff_max_ms"),
)
"""Everything that one key's own bounds cannot say."""


def _sections() -> dict[str, type[Struct]]:
    return {entry.name: entry.type for entry in msgspec.structs.fields(Config)}


KEYS: dict[str, Any] = {
    f"{section}.{entry.name}": entry.type
    for section, struct in _sections().items()
    for entry in msgspec.structs.fields(struct)
}
"""Every dotted key with its type and bounds."""


def load_config(
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
) -> tuple[Config, Origins]:
    """Return the configuration that holds now, and where each value came from.

    Args:
        path: the TOML file to read; None reads ./zraft.toml if there is one.
        environ: the environment; only `ZRAFT_<SECTION>_…` of a known section is looked at.
        overrides: dotted key → value, from flags; text is understood like an environment variable.

    Raises:
        ConfigError: a file cannot be read or parsed, a key is unknown, or a value breaks a rule.
    """
    values = dict(_flatten(Config()))
    origins: Origins = dict.fromkeys(values, "default")
    file = path if path is not None else Path(DEFAULT_FILE)
    if path is not None or file.is_file():
        for key, value in _read_file(file):
            values[key] = _checked(key, value, origin=str(file), strict=True)
            origins[key] = str(file)
    for variable, key, text in _from_environment(environ):
        values[key] = _checked(key, text, origin=variable, strict=False)
        origins[key] = variable
    for key, value in overrides.items():
        values[key] = _checked(key, value, origin="flag", strict=False)
        origins[key] = "flag"
    for rule in RULES:
        if not rule.holds(values):
            _refuse_rule(rule, values, origins)
    return _nested(values), origins


def to_jsonable(config: Config) -> dict[str, dict[str, int | bool | str]]:
    """Return the configuration as plain dicts, section by section, every key."""
    plain: dict[str, dict[str, int | bool | str]] = msgspec.to_builtins(config)
    return plain


def to_toml(config: Config) -> str:
    """Return the configuration as TOML with every key, which `load_config` reads back."""
    blocks = []
    for section, values in to_jsonable(config).items():
        lines = [f"{name} = {_toml_value(value)}" for name, value in values.items()]
        blocks.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def _toml_value(value: int | bool | str) -> str:
    return json.dumps(value)  # the three kinds that we have look alike in JSON and TOML


def _flatten(config: Config) -> Iterator[tuple[str, Any]]:
    for section in _sections():
        struct = getattr(config, section)
        for name in struct.__struct_fields__:
            yield f"{section}.{name}", getattr(struct, name)


def _nested(values: Mapping[str, Any]) -> Config:
    tree: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    return msgspec.convert(tree, Config)


def _read_file(path: Path) -> Iterator[tuple[str, object]]:
    """Yield every dotted key of a TOML file with its value; refuse what is not section and key."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: the configuration file cannot be read",
            why=error.strerror or str(error),
            try_="check the path, or leave it out to use ./zraft.toml and the defaults",
        ) from error
    except ValueError as error:  # tomllib's errors, and bytes that are not UTF-8
        raise ConfigError(
            f"{path}: the configuration file is not TOML",
            why=str(error),
            try_="compare it with configs/default.toml",
        ) from error
    sections = _sections()
    for section, content in tree.items():
        if section not in sections or not isinstance(content, dict):
            raise ConfigError(
                f"{path}: {section!r} is not a section",
                why=f"the sections are {', '.join(sections)}",
                try_="write keys below a section, as in configs/default.toml",
            )
        for name, value in content.items():
            yield f"{section}.{name}", value


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (variable, dotted key, text) of each variable that belongs to a section."""
    for section in _sections():
        prefix = f"ZRAFT_{section.upper()}_"
        for variable in sorted(environ):
            if variable.startswith(prefix):
                name = variable.removeprefix(prefix).lower()
                yield variable, f"{section}.{name}", environ[variable]


def _checked(key: str, value: object, *, origin: str, strict: bool) -> Any:
    """Return the value with its key's type and within its bounds; `strict` refuses text for it."""
    if key not in KEYS:
        raise ConfigError(
            f"{origin}: unknown configuration key {key!r} (value {value!r})",
            why="no such key exists, and a key that is ignored would be a trap",
            try_=_similar(key),
        )
    try:
        return msgspec.convert(value, KEYS[key], strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{origin}: {key} = {value!r} is not possible",
            why=f"the rule is: {error}",
            try_="see configs/default.toml for what the key means and its unit",
        ) from error


def _similar(key: str) -> str:
    import difflib  # 5 ms that only a misspelt key is worth

    close = difflib.get_close_matches(key, KEYS, n=1)
    return f"did you mean {close[0]}?" if close else "see configs/default.toml for every key"


def _refuse_rule(rule: Rule, values: Mapping[str, Any], origins: Origins) -> NoReturn:
    told = [
        f"{key} = {values[key]}" + (f" ({origins[key]})" if key in origins else "")
        for key in rule.keys
    ]
    raise ConfigError(
        f"impossible configuration: {', '.join(told)}",
        why=f"the rule is: {rule.sentence}",
        try_="change one of them; configs/default.toml says what each does",
    )
