"""The configuration: precedence, refusals, and the files in configs/."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from zraft.config import KEYS, RULES, Config, load_config, to_jsonable, to_toml
from zraft.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


def write(directory: Path, text: str) -> Path:
    """Write a configuration file and return its path."""
    path = directory / "z.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_hold_when_nothing_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without file, environment and flags every value is the default and says so."""
    monkeypatch.chdir(tmp_path)
    config, origins = load_config(None, {}, {})
    assert config == Config()
    assert set(origins) == set(KEYS)
    assert set(origins.values()) == {"default"}


def test_election_timeout_defaults_to_150_to_300_ms() -> None:
    """The paper's interval is the default (Raft §9.3)."""
    timing = Config().timing
    assert (timing.election_min_ms, timing.election_max_ms, timing.heartbeat_ms) == (150, 300, 50)


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    """Each layer wins over the ones below it, key by key, and is named as the origin."""
    path = write(tmp_path, "[timing]\nelection_max_ms=400\nelection_min_ms=200\nheartbeat_ms=60\n")
    environ = {"ZRAFT_TIMING_ELECTION_MIN_MS": "210", "ZRAFT_TIMING_HEARTBEAT_MS": "61"}
    config, origins = load_config(path, environ, {"timing.heartbeat_ms": 62})
    assert config.timing.election_max_ms == 400
    assert config.timing.election_min_ms == 210
    assert config.timing.heartbeat_ms == 62
    assert config.timing.pre_vote is True
    assert origins["timing.election_max_ms"] == str(path)
    assert origins["timing.election_min_ms"] == "ZRAFT_TIMING_ELECTION_MIN_MS"
    assert origins["timing.heartbeat_ms"] == "flag"
    assert origins["timing.pre_vote"] == "default"


def test_file_of_the_working_directory_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """./zraft.toml is read when no file is given, and not when another one is."""
    (tmp_path / "zraft.toml").write_text("[logging]\ntrace = 'off'\n")
    monkeypatch.chdir(tmp_path)
    config, origins = load_config(None, {}, {})
    assert config.logging.trace == "off"
    assert origins["logging.trace"] == "zraft.toml"
    config, _ = load_config(write(tmp_path, ""), {}, {})
    assert config.logging.trace == "auto"


def test_environment_text_becomes_the_type_of_the_key() -> None:
    """Variables are text; numbers and booleans are understood, other variables are left alone."""
    environ = {
        "ZRAFT_TIMING_PRE_VOTE": "false",
        "ZRAFT_SUPERVISOR_CRASH_LIMIT": "7",
        "ZRAFT_LOGGING_TRACE": "full",
        "ZRAFT_CLUSTER": "elsewhere",
        "ZRAFT_HOME": "/nowhere",
    }
    config, _ = load_config(None, environ, {})
    assert config.timing.pre_vote is False
    assert config.supervisor.crash_limit == 7
    assert config.logging.trace == "full"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[timing]\nelection_ms = 5\n", ["timing.election_ms", "5", "timing.election_min_ms"]),
        ("[timings]\nheartbeat_ms = 5\n", ["timings", "sections are"]),
        ("heartbeat_ms = 5\n", ["heartbeat_ms", "not a section"]),
        ("[timing]\nheartbeat_ms = 0\n", ["timing.heartbeat_ms", "0", ">= 1"]),
        ("[timing]\nheartbeat_ms = '50'\n", ["timing.heartbeat_ms", "'50'", "int"]),
        ("[timing]\nheartbeat_ms = true\n", ["timing.heartbeat_ms", "True", "int"]),
        ("[timing]\nheartbeat_ms = 50.5\n", ["timing.heartbeat_ms", "50.5", "int"]),
        ("[timing]\npre_vote = 1\n", ["timing.pre_vote", "1", "bool"]),
        ("[timing]\nelection_max_ms = 99999999\n", ["timing.election_max_ms", "<= 3600000"]),
        ("[logging]\ntrace = 'loud'\n", ["logging.trace", "'loud'"]),
        ("[storage]\nsegment_bytes = 65535\n", ["storage.segment_bytes", ">= 65536"]),
        ("[limits]\nmax_request_bytes = 1048576\n", ["limits.max_request_bytes", "<= 1044480"]),
        ("[timing\n", ["not TOML"]),
    ],
)
def test_wrong_file_is_refused_with_file_key_value_and_rule(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    """A refusal names where it stands, what stands there, and what is allowed."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {}, {})
    message = str(caught.value)
    for part in [str(path), *parts]:
        assert part in message
    assert caught.value.exit_code == 78
    assert caught.value.try_


IMPOSSIBLE: list[tuple[dict[str, object], list[str]]] = [
    (
        {"timing.election_min_ms": 300, "timing.election_max_ms": 299},
        ["timing.election_min_ms = 300", "timing.election_min_ms ≤ timing.election_max_ms"],
    ),
    ({"timing.heartbeat_ms": 76}, ["timing.heartbeat_ms = 76 (flag)", "election_min_ms / 2"]),
    ({"replication.max_batch_bytes": 2 << 20}, ["max_batch_bytes", "max_inflight_bytes"]),
    ({"storage.segment_bytes": 65536}, ["prealloc_bytes = 262144 (default)", "segment_bytes"]),
    ({"limits.max_waiting_requests": 10}, ["max_parked_requests ≤"]),
    ({"snapshot.held_bytes": 4096}, ["trailing_bytes ≤"]),
    ({"supervisor.backoff_min_ms": 20000}, ["backoff_min_ms ≤"]),
    (
        {"reads.lease": True, "timing.check_quorum": False},
        ["reads.lease needs timing.check_quorum"],
    ),
    ({"limits.max_request_bytes": 4096}, ["max_key_bytes ≤"]),
]


@pytest.mark.parametrize(("overrides", "parts"), IMPOSSIBLE)
def test_impossible_combination_is_refused_with_values_origins_and_rule(
    overrides: dict[str, object], parts: list[str]
) -> None:
    """Rules between keys name both keys, both values and where these came from."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, {}, overrides)
    for part in parts:
        assert part in str(caught.value)


def test_every_rule_between_keys_is_broken_by_a_case() -> None:
    """The cases above cover every rule; a new rule needs a new case."""
    refusals = []
    for overrides, _ in IMPOSSIBLE:
        with pytest.raises(ConfigError) as caught:
            load_config(None, {}, overrides)
        refusals.append(caught.value.why)
    assert {f"the rule is: {rule.sentence}" for rule in RULES} == set(refusals)


def test_misspelt_key_is_refused_with_the_nearest_one() -> None:
    """A flag of a key that does not exist says which one was probably meant."""
    with pytest.raises(ConfigError, match=r"did you mean timing\.heartbeat_ms\?"):
        load_config(None, {}, {"timing.hartbeat_ms": 1})


def test_unknown_variable_of_a_section_is_refused() -> None:
    """A misspelt variable is as wrong as a misspelt key."""
    with pytest.raises(ConfigError, match="ZRAFT_TIMING_HEARTBEAT"):
        load_config(None, {"ZRAFT_TIMING_HEARTBEAT": "50"}, {})


def test_equal_election_bounds_are_allowed() -> None:
    """election_min_ms = election_max_ms is how split votes are shown."""
    overrides = {"timing.election_min_ms": 200, "timing.election_max_ms": 200}
    config, _ = load_config(None, {}, overrides)
    assert config.timing.election_min_ms == config.timing.election_max_ms == 200


def test_unreadable_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    """A file that was asked for and isn't there is an error, not a silent default."""
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "missing.toml", {}, {})


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are reported as such."""
    path = tmp_path / "z.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(path, {}, {})


def test_toml_text_reads_back_equal(tmp_path: Path) -> None:
    """What `to_toml` writes is what `load_config` reads, for values that are not the defaults."""
    overrides = {"timing.pre_vote": False, "logging.trace": "full", "limits.apply_slice_ms": 9}
    config, _ = load_config(None, {}, overrides)
    again, _ = load_config(write(tmp_path, to_toml(config)), {}, {})
    assert again == config
    assert to_jsonable(config)["limits"]["apply_slice_ms"] == 9


def test_config_is_frozen_and_checks_itself() -> None:
    """Nobody can make or change a Config so that it breaks a rule."""
    config = Config()
    with pytest.raises(AttributeError):
        config.timing.heartbeat_ms = 1  # type: ignore[misc]
    bad = msgspec.structs.replace(config.timing, heartbeat_ms=100)
    with pytest.raises(ConfigError):
        Config(timing=bad)


def test_default_toml_has_every_key_with_its_default_and_nothing_else() -> None:
    """configs/default.toml is the documentation of the defaults, so it must equal them."""
    tree = tomllib.loads((CONFIGS / "default.toml").read_text(encoding="utf-8"))
    assert tree == to_jsonable(Config())


def test_default_toml_explains_every_key_with_its_unit() -> None:
    """Above each key stand its unit or choice and one sentence of consequence."""
    text = (CONFIGS / "default.toml").read_text(encoding="utf-8")
    units = (
        r"(Milliseconds|Seconds|Bytes|Messages|Requests|Entries|Events|Files|Crashes|Sessions"
        r"|Percent|true or|\")"
    )
    for key in KEYS:
        name = key.partition(".")[2]
        assert re.search(rf"\n# {units}[^\n]*\n(# [^\n]+\n)+{name} = ", text), key


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configuration_is_valid(path: Path) -> None:
    """Every file in configs/ loads and says something."""
    _, origins = load_config(path, {}, {})
    assert str(path) in origins.values()


def test_classroom_is_forty_times_slower() -> None:
    """configs/classroom.toml slows each of Raft's timers 40-fold."""
    slow, _ = load_config(CONFIGS / "classroom.toml", {}, {})
    normal = Config().timing
    for name in ("election_min_ms", "election_max_ms", "heartbeat_ms"):
        assert getattr(slow.timing, name) == 40 * getattr(normal, name)
