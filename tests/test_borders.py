"""Streams without borders, head rows by their owners, messages for each client: whole runs."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

import fedcl
from fedcl.config import parse
from fedcl.core.client import Client, Each, Reply
from fedcl.core.federation import Federation
from fedcl.core.method import Method
from fedcl.core.params import Params

TINY = {
    "dataset": {"name": "synthetic", "classes": 4, "features": 6, "train": 120, "test": 60},
    "stream": {"name": "class_incremental", "tasks": 2, "clients": 5},
    "model": {"name": "mlp", "hidden": [8]},
    "method": {"name": "fedavg"},
    "training": {"rounds": 2, "local": {"name": "sgd", "batch_size": 8}},
    "engine": {"name": "serial"},
}


@dataclass(frozen=True)
class State:
    params: Params
    heard: tuple[float, ...] = ()
    begun: int = 0


@dataclass(frozen=True)
class Word:
    number: float
    ballast: torch.Tensor


@dataclass(frozen=True)
class Whisper(Method[State]):
    """Sends every client a number of its own and hears the number times its id."""

    missing: int = -1

    client_half: ClassVar[tuple[str, ...]] = ("repeat",)

    def init(self, params: Params) -> State:
        return State(params)

    def begin_task(self, state: State, fed: Federation) -> State:
        assert fed.task.border
        return replace(state, begun=state.begun + 1)

    def round(self, state: State, fed: Federation) -> State:
        words = {id: Word(10.0 + id, torch.zeros(id)) for id in fed.cohort if id != self.missing}
        heard = fed.collect(self.repeat, Each(words))
        numbers = tuple(float(reply.tensors["n"]) for reply in heard)
        params = {name: value + numbers[1] for name, value in state.params.items()}
        return replace(state, heard=numbers, params=params)

    def repeat(self, client: Client, message: Word) -> Reply:
        return Reply({"n": torch.tensor(message.number * client.id)})


def whisper(engine: str, **method: object) -> fedcl.Record:
    experiment = parse({**TINY, "engine": {"name": engine}})
    return fedcl.run(replace(experiment, method=Whisper(**method)))  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_each_client_gets_its_own_message_and_pays_for_it_alone(engine: str) -> None:
    record = whisper(engine)
    down = [row for row in record.costs if row["direction"] == "down"]
    # Client i gets i floats of ballast: 4 * (0 + 1 + 2 + 3 + 4) bytes in each of the 4 rounds.
    assert [row["bytes"] for row in down] == [40] * 4
    assert {row["payload"] for row in down} == {"ballast"}


def test_a_client_without_a_message_of_its_own_is_refused() -> None:
    with pytest.raises(fedcl.ConfigError, match=r"no message for the clients \[3\]"):
        whisper("serial", missing=3)


def test_without_borders_a_method_is_not_told_where_a_stage_begins() -> None:
    """FedAvg needs no borders: the same bits with and without."""
    without = {**TINY["stream"], "borders": False}  # type: ignore[dict-item]
    a, b = fedcl.run(parse(TINY)), fedcl.run(parse({**TINY, "stream": without}))
    assert all(torch.equal(a.params[name], b.params[name]) for name in a.params)


@pytest.mark.parametrize("method", ["fot", "joint"])
def test_methods_that_need_borders_are_refused_without(method: str) -> None:
    stream = {**TINY["stream"], "borders": False}  # type: ignore[dict-item]
    with pytest.raises(fedcl.ConfigError, match="must be told where a task ends"):
        parse({**TINY, "stream": stream, "method": {"name": method}})


def test_head_owners_change_nothing_when_everyone_holds_every_class() -> None:
    stream = {"name": "domain_incremental", "tasks": 1, "clients": 2}
    table = {**TINY, "stream": stream, "training": {"rounds": 1, "dtype": "float64"}}
    plain = fedcl.run(parse(table)).params
    owners = fedcl.run(parse({**table, "channel": [{"name": "head_owners"}]})).params
    for name, value in plain.items():
        torch.testing.assert_close(owners[name], value, rtol=0, atol=1e-12)


def test_head_owners_book_what_they_send() -> None:
    table = {**TINY, "stream": {**TINY["stream"], "partition": {"name": "shards"}}}  # type: ignore[dict-item]
    one = {**table, "channel": [{"name": "head_owners"}]}
    record = fedcl.run(parse({**one, "training": {"rounds": 1}, "evaluation": {"every": 1}}))
    # 4 flags of 4 bytes from each of 5 clients in each of 2 rounds.
    assert record.summary["bytes_by_payload"]["up"]["owners"] == 4 * 4 * 5 * 2


def test_public_data_come_in_the_type_of_the_model() -> None:
    """A method multiplies them with parameters, whatever `training.dtype` is."""

    @dataclass(frozen=True)
    class Look(Method[State]):
        def init(self, params: Params) -> State:
            return State(params)

        def round(self, state: State, fed: Federation) -> State:
            assert fed.task.public is not None
            assert fed.task.public.x.dtype == torch.float64
            assert fed.net(state.params)(fed.task.public.x).shape == (len(fed.task.public), 4)
            return replace(state, heard=(float(fed.seed("draw")), float(fed.attempt)))

    stream = {**TINY["stream"], "public": 0.2}  # type: ignore[dict-item]
    training = {"rounds": 1, "dtype": "float64"}
    experiment = parse({**TINY, "stream": stream, "training": training})
    fedcl.run(replace(experiment, method=Look()))
