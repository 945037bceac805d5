"""`zraft config`: the settings a cluster runs with, and where each value came from."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zraft.cli.errors import EXIT_OK
from zraft.cli.options import Run, command, noun
from zraft.cli.output import plural
from zraft.errors import ConfigError, ControlError, NotRunning

if TYPE_CHECKING:
    from zraft.config import Machine

app = noun(
    "config",
    "Write, check and look at the settings of a cluster.",
    ["zraft config init", "zraft config validate zraft.toml", "zraft config show --origin"],
)

READY_MADE = ("default", "dev", "classroom", "wan")

Settings = dict[str, dict[str, object]]


def cluster_settings(
    run: Run, file: Path | None, faults: bool | None, machine: str | None
) -> dict[str, dict[str, int | bool | str]] | None:
    """Return the settings that `up` was given, None when none were: then recorded ones stay.

    `faults` (of --faults or --no-faults) and `machine` (--state-machine) alone change nothing else
    of what is recorded. The state machine of a cluster that exists stays, whatever is given.

    Raises:
        ConfigError: impossible settings, or a state machine that can not be had.
        ControlError: the cluster has another state machine.
    """
    import msgspec

    from zraft.config import Config, load_config, to_jsonable

    overrides = {} if machine is None else {"machine.name": machine}
    config, origins = load_config(file, run.environ, overrides)
    wanted = config.machine
    if origins["machine.name"] != "default":
        wanted = _found_machine(config.machine)
    given = file is not None or any(
        origin not in {"default", "flag"} for origin in origins.values()
    )
    if faults is None and not given and machine is None:
        return None
    recorded = None
    with contextlib.suppress(NotRunning):  # there is no such cluster yet
        recorded = msgspec.convert(run.cluster_file().settings, Config)
    if recorded is not None:
        if origins["machine.name"] != "default" and wanted.name != recorded.machine.name:
            raise _other_machine(run, wanted.name, recorded.machine.name)
        if origins["machine.name"] == "default":
            wanted = recorded.machine
        if not given:
            config = recorded
    settings = to_jsonable(config)
    settings["machine"] = {"name": wanted.name, "directory": wanted.directory}
    if faults is not None:
        settings["testing"]["faults"] = "allowed" if faults else "refused"
    return settings


def _found_machine(machine: Machine) -> Machine:
    """Look for the machine here and now; return it with the directory where nodes will find it."""
    from zraft.config import BUILT_IN_MACHINE, Machine
    from zraft.machine.load import directory_of, load_machine

    if machine.name == BUILT_IN_MACHINE:
        return machine
    made = load_machine(machine.name, machine.directory or str(Path.cwd()))
    return Machine(machine.name, directory_of(made))


def _other_machine(run: Run, wanted: str, recorded: str) -> ControlError:
    return ControlError(
        f'cluster "{run.cluster}" replicates {recorded}, not {wanted}',
        why="its log holds the commands of that machine, and another one can not read them",
        try_=(
            f"zraft cluster up -C NEW --state-machine {wanted}",
            f"zraft cluster down{run.suffix} --purge  (deletes its data), then the same again",
        ),
    )


def effective_settings(run: Run, file: Path | None) -> tuple[Settings, dict[str, str], str]:
    """Return the settings, the origin of each dotted key, and a sentence about what they are.

    Settings that were given here (a file, the environment) are what `up` would use now; without
    any, a cluster that exists keeps those that it was made with.
    """
    from zraft.config import load_config, to_jsonable

    config, origins = load_config(file, run.environ, {})
    here: Settings = {section: {**keys} for section, keys in to_jsonable(config).items()}
    if any(origin != "default" for origin in origins.values()):
        return here, origins, "what cluster up would use here and now"
    try:
        recorded = run.cluster_file().settings
    except NotRunning:
        return here, origins, f'the defaults: there is no cluster "{run.cluster}" yet'
    told = {f"{section}.{key}" for section, keys in recorded.items() for key in keys}
    path = str(run.directory / "cluster.toml")
    merged = {section: {**keys, **recorded.get(section, {})} for section, keys in here.items()}
    return (
        merged,
        {key: path if key in told else "default" for key in origins},
        f'what cluster "{run.cluster}" runs with',
    )


@command(
    app,
    "config show",
    examples=[
        "zraft config show --origin",
        "zraft config show --config configs/classroom.toml",
        "zraft config show --field settings.timing.election_min_ms",
    ],
)
def show(
    run: Run,
    origin: Annotated[
        bool, typer.Option("--origin", help="Say where each value came from.")
    ] = False,
    file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="A TOML file to read.")
    ] = None,
) -> int:
    """Print every key with the value that holds: flags > environment > ./zraft.toml > defaults."""
    settings, origins, about = effective_settings(run, file)
    document = {
        "schema": "zraft.config.show/1",
        "ok": True,
        "cluster": run.cluster,
        "about": about,
        "settings": settings,
        "origins": origins,
    }

    def human() -> None:
        run.out.message(run.out.paint_err(f"# {about}", "dim"))
        if origin:
            rows = [
                (f"{section}.{key}", _toml(value), origins[f"{section}.{key}"])
                for section, keys in settings.items()
                for key, value in keys.items()
            ]
            run.out.table(("KEY", "VALUE", "ORIGIN"), rows)
            return
        for place, (section, keys) in enumerate(settings.items()):
            run.out.line(f"{'' if place == 0 else chr(10)}[{section}]")
            for key, value in keys.items():
                run.out.line(f"{key} = {_toml(value)}")

    run.out.result(document, human)
    return EXIT_OK


@command(
    app,
    "config init",
    examples=["zraft config init", "zraft config init --from classroom slow.toml"],
)
def init(
    run: Run,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="What to write (zraft.toml).")
    ] = None,
    source: Annotated[
        str, typer.Option("--from", metavar="NAME", help="default, dev, classroom or wan.")
    ] = "default",
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> int:
    """Write a file of settings with every key explained; `up` reads ./zraft.toml by itself.

    The keys of the default are commented out: a later version's defaults hold for what you leave.
    """
    from zraft.cli.errors import usage_error
    from zraft.config import DEFAULT_FILE

    if source not in READY_MADE:
        raise usage_error(f'--from: no settings "{source}"', READY_MADE, source)
    path = file or Path(DEFAULT_FILE)
    text = _ready_made(source)
    if source == "default":
        text = "\n".join(_commented(line) for line in text.splitlines()) + "\n"
    try:
        with path.open("w" if force else "x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as error:
        raise ControlError(
            f"{path} exists", why="it may hold your settings", try_="--force replaces it"
        ) from error
    document = {"schema": "zraft.config.init/1", "ok": True, "file": str(path), "from": source}
    told = f"wrote {path}; change it, then: zraft config validate {path}"
    run.out.result(document, lambda: run.out.line(told))
    return EXIT_OK


def _commented(line: str) -> str:
    is_key = bool(line) and not line.startswith(("#", "["))
    return f"#{line}" if is_key else line


def _ready_made(name: str) -> str:
    """Return a file of configs/, which lies in the package, or beside it in a checkout."""
    import zraft

    package = Path(zraft.__file__).parent
    for place in (package / "configs", package.parent / "configs"):
        if (path := place / f"{name}.toml").is_file():
            return path.read_text(encoding="utf-8")
    raise ConfigError(
        f"the ready-made settings {name} are missing",
        why=f"this installation has no {package / 'configs'}",
        try_="install zraft again",
    )


@command(
    app,
    "config validate",
    examples=["zraft config validate", "zraft config validate slow.toml --json"],
)
def validate(
    run: Run,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="What to check (zraft.toml).")
    ] = None,
) -> int:
    """Check a file of settings by itself, without the environment; exit 78 says what is wrong."""
    from zraft.config import DEFAULT_FILE, load_config, to_jsonable

    path = file or Path(DEFAULT_FILE)
    config, origins = load_config(path, {}, {})
    _found_machine(config.machine)
    flat = {
        f"{section}.{key}": value
        for section, keys in to_jsonable(config).items()
        for key, value in keys.items()
    }
    given = {key: flat[key] for key, origin in origins.items() if origin != "default"}
    document = {
        "schema": "zraft.config.validate/1",
        "ok": True,
        "file": str(path),
        "settings": given,
    }

    def human() -> None:
        for key, value in given.items():
            run.out.line(f"{key} = {_toml(value)}")
        run.out.message(f"{path} is valid; it sets {plural(len(given), 'key')}")

    run.out.result(document, human)
    return EXIT_OK


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)
