"""What the conformance tests share: the tiny experiment with each method, its options as given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import pytest

import fedcl
from fedcl.config import Experiment, available, find
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.core.method import Method
from fedcl.record import Record
from tests.tiny import (
    Watching,
    tiny,
    watched,
)

METHODS = available("methods")
# Whose servers train generators or invert gradients do less of it: with their defaults, these four
# would take longer than all others together.
LIGHT: Mapping[str, Mapping[str, Any]] = {
    "glfc": {"images": 4, "iterations": 4},
    "lander": {"images": 32, "rounds": 2, "steps": 4, "width": 8},
    "mfcl": {"steps": 4, "batch": 32, "width": 8},
    "target": {"images": 32, "rounds": 2, "steps": 4, "batch": 32, "width": 8},
}


@dataclass
class Looking:
    """Takes the method's state at the end of each stage (`fedcl.repeated.Look`)."""

    states: list[Any] = field(default_factory=list)

    def at(self, state: Any, stage: int) -> None:
        """Takes a state."""
        self.states.append(state)


every_method = pytest.mark.parametrize("name", METHODS)


def light(name: str) -> dict[str, Any]:
    """Returns the table of a method: its name alone, or with little for its server to do."""
    return {"name": name, **LIGHT.get(name, {})}


def of(name: str, changes: Mapping[str, Any] | None = None, **tables: Any) -> Experiment:
    """Returns the tiny experiment with a method, `light` if not told, and public data if it asks.

    Who asks for single replies may do so with public data alone, which are there then too.
    """
    asks = cls(name).needs_public or cls(name).exposure == "replies"
    public = {"stream.public": 0.1} if asks else {}
    return tiny({**(changes or {}), **public}, **{"method": light(name), **tables})


def cls(name: str) -> type[Method[Any]]:
    """Returns the class of a method."""
    found = find("methods", name)
    assert issubclass(found, Method)
    return found


def run_or_refused(name: str, changes: Mapping[str, Any], **tables: Any) -> Record | None:
    """Runs the tiny experiment; a method may refuse it, if it says so by its name."""
    try:
        return fedcl.run(of(name, changes, **tables))
    except (ConfigError, ExposureError) as error:
        assert name in str(error)
        return None


@cache
def plain(name: str, engine: Literal["serial", "vectorized"] = "serial") -> Record:
    """Returns a run of the tiny experiment."""
    return fedcl.run(of(name, engine={"name": engine}))


@cache
def seen(name: str) -> tuple[Record, Watching]:
    """Returns a run of the tiny experiment, and what its door asked."""
    return watched(of(name))
