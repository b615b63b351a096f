"""Simulated nodes and devices, asked without Flower between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from flwr.app import Context, RecordDict, UserConfigValue

from fedcl.config import Experiment
from fedcl.core.client import Kept, Model
from fedcl.core.request import Request
from fedcl.core.vocabulary import vocabulary
from fedcl.flower.device import at_home
from fedcl.flower.node.client_app import Find
from fedcl.flower.node.home import Home
from fedcl.flower.protocol.agreement import fingerprints
from fedcl.flower.protocol.messages import Coded, Question
from fedcl.flower.simulation.nodes import home_of

EXPERIMENT = "0123456789abcdef"


def simulated(folder: Path, id: int) -> Find:
    """Returns how a simulated node finds its home."""

    @contextmanager
    def find(experiment: str) -> Iterator[Home]:
        yield home_of(folder, id, experiment)

    return find


def device(config: Path, state: Path, /, node: int = 1, **own: UserConfigValue) -> Find:
    """Returns how a device finds its home: client 0, unless its node config says otherwise."""
    told = {"client": 0, "config": str(config), "state": str(state), **own}
    return partial(at_home, context(node, **told))


def context(node: int = 1, /, **own: UserConfigValue) -> Context:
    """Returns Flower's context of a node with this node config."""
    return Context(1, node, dict(own), RecordDict(), {})


def question_of(
    experiment: Experiment, request: Request, base: Kept | None = None, name: str = EXPERIMENT
) -> Question:
    """Returns a request as a client is asked it."""
    words = vocabulary(experiment.method)
    message = request.message
    assert isinstance(message, Model) or not hasattr(message, "messages"), "one for all"
    coded = Coded.of((request.program, message, request.told), words)
    config = fingerprints(experiment.resolved)
    return Question(
        name, config, coded, request.position, base, request.committed, blank=request.blank
    )
