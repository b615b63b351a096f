"""Methods that put workers to the test: clients that kill them, messages for one client alone."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from fedcl.core.client import Client, Each, Model, Reply
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method
from fedcl.core.params import Params, add
from fedcl.core.task import Examples


@dataclass(frozen=True)
class State:
    """The global model."""

    params: Params


@dataclass(frozen=True)
class Mortal(Method[State]):
    """FedAvg, but a client kills its process a few times; then it trains as if nothing had been.

    Attributes:
        client: Which client.
        times: How often, in the whole run.
        folder: Where the deaths are counted; nobody dies without one.
    """

    family: ClassVar[str] = "test"
    client_half: ClassVar[tuple[str, ...]] = ("data",)

    client: int = 1
    times: int = 1
    folder: str = ""

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change of the cohort."""
        local = fed.local(CrossEntropy(), data=self.data)
        change = fed.aggregate(local, Model(state.params)).mean
        return replace(state, params=add(state.params, change))

    def data(self, client: Client, message: object) -> Examples:
        """Trains on its own examples, if it lives."""
        if self.folder and client.id == self.client:
            for death in range(self.times):
                try:
                    (Path(self.folder) / str(death)).touch(exist_ok=False)
                except FileExistsError:
                    continue
                os.kill(os.getpid(), signal.SIGKILL)
        return client.data


@dataclass(frozen=True)
class Whisper(Method[State]):
    """Tells each client something else, and goes on with the mean of what they say."""

    family: ClassVar[str] = "test"
    client_half: ClassVar[tuple[str, ...]] = ("repeat",)

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Takes the mean of the answers as the last bias."""
        bias = state.params["head.bias"]
        words = {id: Model({"head.bias": bias + id}) for id in fed.cohort}
        said = fed.aggregate(self.repeat, Each(words)).mean
        return State({**state.params, "head.bias": said["head.bias"].to(bias.dtype)})

    def repeat(self, client: Client, message: Model) -> Reply:
        """Says what it was told, times its number."""
        return Reply({"head.bias": message.params["head.bias"] * client.id})
