"""A Flower app as a folder: what its pyproject.toml says, and its two halves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.config import (
    flatten_dict,
    fuse_dicts,
    get_metadata_from_config,
    get_project_config,
    parse_config_args,
)
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app

from fedcl.core.errors import ConfigError

A = TypeVar("A", ServerApp, ClientApp)
_PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")  # as Flower reads them


@dataclass(frozen=True)
class AppFolder:
    """A Flower app.

    Attributes:
        name: Publisher and name.
        server: The server half.
        client: The client half.
        config: The run config, changes included.
    """

    name: str
    server: ServerApp
    client: ClientApp
    config: UserConfig


def read_app(folder: Path, changes: Sequence[str] = ()) -> AppFolder:
    """Returns the app in a folder; its modules are imported from there.

    Args:
        folder: Holds pyproject.toml.
        changes: Changes of the run config as `flwr run --run-config` takes them: `key=value` pairs
            in TOML, separated by spaces, or the path of one TOML file.

    Raises:
        ConfigError: There is no such app, it cannot be imported, or a change does not fit it.
    """
    place = folder / "pyproject.toml"
    if not place.is_file():
        raise ConfigError(
            f"{folder} is no folder of a Flower app, it has no pyproject.toml: give the folder "
            "that `flwr run` takes"
        )
    try:
        project = get_project_config(folder)
        config = flatten_dict(project["tool"]["flwr"]["app"].get("config", {}))
    except ValueError as error:  # TOML's own error is one
        raise ConfigError(f"{place} describes no Flower app: {error}; correct it") from error
    parts = project["tool"]["flwr"]["app"]["components"]
    for part in ("serverapp", "clientapp"):
        if not isinstance(parts.get(part), str):
            raise ConfigError(
                f'{place} names no {part}: add {part} = "module:name" to [tool.flwr.app.components]'
            )
    return AppFolder(
        name=get_metadata_from_config(project)[0],
        server=_load(folder, parts["serverapp"], ServerApp),
        client=_load(folder, parts["clientapp"], ClientApp),
        config=_changed(config, changes, place),
    )


def _load(folder: Path, reference: str, kind: type[A]) -> A:
    try:
        found = load_app(reference, ImportError, folder)
    except (Exception, SystemExit) as error:  # an import runs whatever a module holds
        reason = str(error).partition("\n")[0] or "no reason given"
        raise ConfigError(
            f"{reference!r} of the Flower app in {folder} cannot be imported: "
            f"{type(error).__name__}: {reason}; correct it, or install what it needs"
        ) from error
    if not isinstance(found, kind):
        raise ConfigError(
            f"{reference!r} of the Flower app in {folder} is no {kind.__name__} but "
            f"{type(found).__name__}: name the right object"
        )
    return found


def _changed(config: UserConfig, changes: Sequence[str], place: Path) -> UserConfig:
    """Returns a run config with changes."""
    files = len(changes) == 1 and changes[0].endswith(".toml")
    for change in () if files else changes:
        if left := _PAIR.sub("", change).strip():
            raise ConfigError(
                f"--run-config {left!r} is not key=value, such as num-server-rounds=5"
            )
    try:
        return fuse_dicts(config, parse_config_args(list(changes)))
    except click.ClickException as error:
        raise ConfigError(
            f"--run-config {' '.join(changes)!r}: {error.format_message()}"
        ) from error
    except (OSError, ValueError) as error:
        known = ", ".join(config) or "none"
        raise ConfigError(
            f"--run-config {' '.join(changes)!r} does not fit {place}: {error} (known: {known})"
        ) from error
