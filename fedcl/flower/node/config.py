"""What a node is told of itself when it is started: the node config, and in a simulation more."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcl.config import Experiment, load_config
from fedcl.core.errors import ConfigError, FedclError

_TOLD = 'say --node-config \'client=0 config="run.toml" state="/var/lib/fedcl"\''


@dataclass(frozen=True)
class NodeConfig:
    """What a node is told.

    Attributes:
        client: Which client it is.
        config: Path of its own copy of the config.
        changes: KEY=VALUE words that change values of it, as `fedcl run --set` takes them.
        data: Folder of its data, which stands for `dataset.root`; nothing to leave that as it is.
        state: Folder of all that it keeps.
        budget: Bytes of memory that it may keep; 0 for no bound.
        simulated: Whether it is a node of Flower's own simulation.
    """

    client: int
    config: Path
    changes: str
    data: str
    state: Path
    budget: int = 0
    simulated: bool = False

    def load(self) -> Experiment:
        """Returns the experiment of the node's config, without what only servers do.

        Raises:
            ConfigError: The config cannot work.
        """
        changes: dict[str, Any] = {}
        if self.changes:
            from fedcl.flower.runconfig import settings  # it brings the command line with it

            changes = settings(self.changes)
        changes = {key: value for key, value in changes.items() if not _is_servers(key)}
        # Engines and audits may need packages that a device does not have.
        changes |= {"engine": {"name": "serial"}, "audit": []}
        if self.data:
            changes["dataset.root"] = self.data
        try:
            return load_config(self.config, changes)
        except FedclError as error:
            raise type(error)(f"client {self.client}: {error}") from error


def _is_servers(key: str) -> bool:
    return key.partition(".")[0] in ("engine", "audit")


def read(node: Mapping[str, Any], run: Mapping[str, Any]) -> NodeConfig:
    """Returns what a node is told.

    Args:
        node: Flower's node config. In Flower's own simulation it names a partition, and no client.
        run: Flower's run config. A device takes nothing from it; a simulated node its config.

    Raises:
        ConfigError: Something is missing, or of another type.
    """
    if "client" not in node and "partition-id" in node:
        return _simulated(node, run)
    client = _whole(node, "client")
    config, state = _text(node, "config"), _text(node, "state")
    for key, value, what in (
        ("config", config, "its own copy of the config"),
        ("state", state, "the folder for all that it keeps"),
    ):
        if not value:
            raise ConfigError(f"the node config of client {client} names no {key}, {what}: {_TOLD}")
    return NodeConfig(
        client,
        Path(config).absolute(),
        _text(node, "set"),
        _text(node, "data"),
        Path(state).absolute(),
        _whole(node, "budget", 0),
    )


def _simulated(node: Mapping[str, Any], run: Mapping[str, Any]) -> NodeConfig:
    config, out = _text(run, "config"), _text(run, "out")
    if not config:
        raise ConfigError("the run config names no config: say --run-config 'config=\"run.toml\"'")
    state = Path(out).absolute() / "checkpoint" / "clients" if out else temporary()
    return NodeConfig(
        _whole(node, "partition-id"),
        Path(config).absolute(),
        " ".join(filter(None, (_text(run, "set"), _text(node, "set")))),
        _text(node, "data"),
        state,
        _whole(node, "budget", 0),
        simulated=True,
    )


def temporary() -> Path:
    """Returns a folder of this user for simulations whose server has not told where it writes.

    Raises:
        ConfigError: It is somebody else's.
    """
    folder = Path(tempfile.gettempdir()) / f"fedcl-simulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"folder {folder} is somebody else's: set TMPDIR to another folder")
    return folder


def _whole(table: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = table.get(key, default)
    if value is None:
        raise ConfigError(f"the node config names no {key}: {_TOLD}")
    if type(value) is not int or value < 0:
        raise ConfigError(
            f"the node config's {key} must be a whole number of at least 0, not {value!r}: {_TOLD}"
        )
    return value


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise ConfigError(f"{key} in the node config or run config is text, not {value!r}: {_TOLD}")
    return value
