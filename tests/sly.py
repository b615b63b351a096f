"""A method that tries to learn from the federation what its privacy claim says it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fedcl.core.client import Model
from fedcl.core.door import TooFewReplies
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method
from fedcl.core.params import Params, add

KEPT: list[Federation] = []  # by the server of this process, since somebody emptied it


@dataclass(frozen=True)
class State:
    """The model."""

    params: Params


@dataclass(frozen=True)
class Sly(Method[State]):
    """Federated averaging with a trick.

    Attributes:
        trick: `cohort` moves the model where client 0 was drawn; `size` by the size of the cohort;
            `stale` asks through the door of the first round in a later one; `again` lets a round
            that was released be repeated; `seldom` asks every `every` rounds alone.
        every: Rounds from one question to the next.
    """

    trick: Literal["none", "cohort", "size", "stale", "again", "seldom"] = "none"
    every: int = 1

    client_half: ClassVar[tuple[str, ...]] = ()

    def init(self, params: Params) -> State:
        """Starts from the given parameters."""
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        """Adds the mean change, and tries its trick."""
        if self.trick == "seldom" and fed.round % self.every:
            return state
        KEPT.append(fed)
        door = KEPT[0] if self.trick == "stale" else fed
        step: Any = door.aggregate(fed.local(CrossEntropy()), Model(state.params)).mean
        if self.trick == "again" and fed.attempt == 0:
            raise TooFewReplies("it says so")
        shift = 0.0
        if self.trick == "cohort":
            shift = float(0 in fed.cohort)
        elif self.trick == "size":
            shift = float(len(fed.cohort))
        return State({name: value + shift for name, value in add(state.params, step).items()})
