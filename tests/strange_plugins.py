"""Plug-ins from outside that fedcl must refuse, each for one reason."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal

from torch import nn

from fedcl.core.client import Model
from fedcl.core.federation import Federation
from fedcl.core.local import CrossEntropy
from fedcl.core.method import Method
from fedcl.core.params import Params


def network(shape: tuple[int, ...], classes: int, *inner: nn.Module) -> nn.Module:
    """Returns a network of eight hidden units with further layers before its head."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(prod(shape), 8), *inner, nn.ReLU(), nn.Linear(8, classes)
    )


@dataclass(frozen=True)
class WithBatchNorm:
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return network(shape, classes, nn.BatchNorm1d(8))


@dataclass(frozen=True)
class WithTorchDropout:
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return network(shape, classes, nn.Dropout(0.5))


@dataclass(frozen=True)
class WithWrongHead:
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return network(shape, classes + 1)


@dataclass(frozen=True)
class WithWrongWidths:
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return network(shape, classes, nn.Linear(9, 8))


class NoDataclass:
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return network(shape, classes)


@dataclass(frozen=True)
class NoModel:
    width: int = 1


@dataclass(frozen=True)
class OddOption:
    inner: nn.Module | None = None

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return network(shape, classes)


@dataclass(frozen=True)
class State:
    params: Params


@dataclass(frozen=True)
class Unfinished(Method[State]):
    def init(self, params: Params) -> State:
        return State(params)


@dataclass(frozen=True)
class AsksForReplies(Method[State]):
    exposure: ClassVar[Literal["mean", "replies"]] = "replies"

    def init(self, params: Params) -> State:
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        fed.collect(fed.local(CrossEntropy()), Model(state.params))
        return state


@dataclass(frozen=True)
class AsksSecretly(Method[State]):
    """Says that it needs means only, and asks for single replies all the same."""

    def init(self, params: Params) -> State:
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        fed.collect(fed.local(CrossEntropy()), Model(state.params))
        return state


@dataclass(frozen=True)
class NeedsPublic(Method[State]):
    needs_public: ClassVar[bool] = True

    def init(self, params: Params) -> State:
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        assert fed.task.public is not None
        return state


@dataclass(frozen=True)
class Breaks(Method[State]):
    """Fails in a way that fedcl does not know: a mistake of its author."""

    def init(self, params: Params) -> State:
        return State(params)

    def round(self, state: State, fed: Federation) -> State:
        raise ZeroDivisionError("a mistake")


def no_class(**options: Any) -> None:
    """Is a function, not a class."""
