"""Simulated nodes: they find their configs in a folder that the simulation writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import tomli_w
from flwr.app import Context
from flwr.clientapp import ClientApp

from fedcl.config import load_config
from fedcl.core import wire
from fedcl.core.errors import ConfigError
from fedcl.flower.node.client_app import make_app
from fedcl.flower.node.home import Home, Own
from fedcl.flower.node.memories import ClientMemory
from fedcl.record import write_text


def simulated_app(folder: Path) -> ClientApp:
    """Returns the app of nodes that find their configs in a folder.

    Args:
        folder: Holds, for each experiment, what `enter` writes.
    """
    return make_app(partial(_find, folder))


@contextmanager
def _find(folder: Path, context: Context, experiment: str) -> Iterator[Home]:
    yield home_of(folder, int(context.node_config["partition-id"]), experiment)


def home_of(folder: Path, id: int, experiment: str) -> Home:
    """Returns the home of a simulated client in an experiment.

    Args:
        folder: Holds, for each experiment, what `enter` writes.
        id: The client.
        experiment: Name of the experiment.
    """
    return Home(id, partial(_own, folder, experiment))


@lru_cache(maxsize=2)
def _own(folder: Path, experiment: str) -> Own:
    """Returns what nodes make of an experiment's config; built once in a process."""
    place = folder / experiment
    if not experiment.isalnum() or not place.is_dir():  # a name, no way out of the folder
        raise ConfigError(f"there is no config of experiment {experiment!r} here: give it one")
    memory = Path((place / "memory.txt").read_text(encoding="utf-8"))
    return Own(load_config(place / "config.toml"), memory)


def enter(folder: Path, experiment: str, resolved: Mapping[str, Any], memory: Path) -> None:
    """Gives nodes their own copy of an experiment's config.

    Args:
        folder: Where they look for it.
        experiment: Name of the experiment.
        resolved: The config with every default filled in.
        memory: Folder for the clients' memories.
    """
    place = folder / experiment
    place.mkdir()
    write_text(place / "config.toml", tomli_w.dumps(dict(resolved)))
    write_text(place / "memory.txt", str(memory.resolve()))


def leave(folder: Path, experiment: str) -> None:
    """Takes the nodes' copy of a config away."""
    shutil.rmtree(folder / experiment, ignore_errors=True)


def recall(memory: Path, id: int, kept: Any, words: wire.Vocabulary) -> Any:
    """Returns a memory that a client keeps: the simulator's own view, which no channel carries."""
    return ClientMemory(memory / str(id), words).read(kept)
