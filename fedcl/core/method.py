"""A method: a federated continual-learning algorithm, both halves in one frozen dataclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor

from fedcl.core.client import Model
from fedcl.core.coverage import UNDECLARED, Coverage
from fedcl.core.federation import Federation
from fedcl.core.local import masked_logits
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.task import Examples

S = TypeVar("S")


@dataclass(frozen=True)
class Sizes:
    """What a method's needs are worked out from, before a run begins.

    Attributes:
        params: Bytes of the model.
        layers: Length of a layer input and number of outputs of each weight that has them, by name.
        rows: Layer inputs that such a weight takes of one example.
        example: Bytes of one example as a client remembers it.
        share: Examples of the largest share of a client at one stage.
        stages: Stages of the stream.
        examples: Examples of all clients in all stages.
        item: Bytes of a number.
    """

    params: int
    layers: Mapping[str, tuple[int, int]]
    rows: Mapping[str, int]
    example: int
    share: int
    stages: int
    examples: int
    item: int


@dataclass(frozen=True)
class Needs:
    """What a method needs beyond what averaging a model does, at most, in bytes.

    Attributes:
        state: Its state besides the model.
        server: Working memory of its server half.
        client: Working memory of its client half, local training aside.
        reply: What a client sends where that is more than a model.
        memory: What one client remembers.
        everyone: Whether all clients remember, and not only those that were in a cohort.
        training: What its local training does besides following losses: a `penalty` or `projected`
            gradients look at all of a client's weights.
    """

    state: int = 0
    server: int = 0
    client: int = 0
    reply: int = 0
    memory: int = 0
    everyone: bool = False
    training: Literal["plain", "penalty", "projected"] = "plain"


class Method(ABC, Generic[S]):
    """What a file in `methods/` derives its class from; S is a frozen dataclass with `.params`.

    Attributes:
        family: Kind of method, for listings: baseline, orthogonal, replay, ...
        exposure: `mean` when only aggregates are asked for, `replies` when single replies are.
        needs_borders: Whether it must be told where a task ends.
        needs_public: Whether it needs public data.
        travels: What crosses the wire besides the model and its change, for listings.
        paper: Where it comes from.
        client_half: Names of its functions that run on clients.
        coverage: What these do with single records, where no option changes it.
    """

    family: ClassVar[str] = "baseline"
    exposure: ClassVar[Literal["mean", "replies"]] = "mean"
    needs_borders: ClassVar[bool] = False
    needs_public: ClassVar[bool] = False
    travels: ClassVar[str] = "nothing"
    paper: ClassVar[str] = ""
    client_half: ClassVar[tuple[str, ...]] = ()
    coverage: ClassVar[Coverage] = UNDECLARED

    @abstractmethod
    def init(self, params: Params) -> S:
        """Returns the first state, from freshly initialised parameters."""

    def begin_task(self, state: S, fed: Federation) -> S:
        """Returns the state after the beginning of a stage, before its first round."""
        return state

    @abstractmethod
    def round(self, state: S, fed: Federation) -> S:
        """Returns the state after one round."""

    def end_task(self, state: S, fed: Federation) -> S:
        """Returns the state after the end of a stage, after its last round."""
        return state

    def predict(self, state: S, net: Net, x: Tensor, allowed: Tensor) -> Tensor:
        """Returns (n, classes) logits of (n, ...) inputs.

        Args:
            state: The method's state, or what `for_prediction` makes of it.
            net: The network with the parameters to evaluate.
            x: Inputs.
            allowed: (classes,) bool, what the scenario lets a prediction choose from.
        """
        return masked_logits(net(x), allowed)

    def synthetic(self, state: S, seed: int) -> Examples | None:
        """Returns images that the state holds or can draw, for the record; None without any.

        It is asked at each stage's end, for a few of each class: see
        `fedcl.core.generative.samples`.

        Args:
            state: The method's state.
            seed: Decides which.
        """
        return None

    def records(self) -> Coverage:
        """Returns what its client half does with single records; see `fedcl.core.coverage`.

        Under example-level privacy a method that does not say may ask for plain local training and
        statistics alone.
        """
        return self.coverage

    def needs(self, sizes: Sizes) -> Needs:
        """Returns what it needs besides the model, so that a run that cannot fit is refused."""
        return Needs()

    def for_prediction(self, state: S) -> Any:
        """Returns what `predict` and `personal` need of the state: all of it that clients get.

        It has `.params`, and can travel as a message can. A method whose `predict` looks at more of
        its state than the parameters says what.
        """
        params: Params = state.params  # type: ignore[attr-defined]
        return Model(params)

    def personal(self, state: S, memory: Any) -> Params:
        """Returns the parameters that a client with this memory is evaluated with.

        Args:
            state: The method's state, or what `for_prediction` makes of it.
            memory: What the client remembers, or None.
        """
        params: Params = state.params  # type: ignore[attr-defined]
        return params
