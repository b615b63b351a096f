"""A method: a federated continual-learning algorithm, both halves in one frozen dataclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor

from fedcl.core.federation import Federation
from fedcl.core.local import masked_logits
from fedcl.core.model import Net
from fedcl.core.params import Params

S = TypeVar("S")


class Method(ABC, Generic[S]):
    """What a file in `methods/` derives its class from; S is a frozen dataclass with `.params`.

    Attributes:
        family: Kind of method, for listings: baseline, orthogonal, replay, ...
        exposure: `mean` when only aggregates are asked for, `replies` when single replies are.
        needs_borders: Whether it must be told where a task ends.
        needs_public: Whether it needs public data.
        paper: Where it comes from.
        client_half: Names of its functions that run on clients.
    """

    family: ClassVar[str] = "baseline"
    exposure: ClassVar[Literal["mean", "replies"]] = "mean"
    needs_borders: ClassVar[bool] = False
    needs_public: ClassVar[bool] = False
    paper: ClassVar[str] = ""
    client_half: ClassVar[tuple[str, ...]] = ()

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
            state: The method's state.
            net: The network with the parameters to evaluate.
            x: Inputs.
            allowed: (classes,) bool, what the scenario lets a prediction choose from.
        """
        return masked_logits(net(x), allowed)

    def personal(self, state: S, memory: Any) -> Params:
        """Returns the parameters that a client with this memory is evaluated with."""
        params: Params = state.params  # type: ignore[attr-defined]
        return params
