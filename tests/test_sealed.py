"""T14: the server's code holds sums, and no client's tensor, weight or metric (PRIVACY.md 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

import fedcl
from fedcl.config import Experiment
from fedcl.core.client import Each, Model
from fedcl.core.errors import ConfigError, ExposureError, FedclError
from fedcl.core.request import BlockResult, Position, Request
from fedcl.core.sealed import Sealed
from tests.ray_house import RayHouse
from tests.sealing import Looks, betrayed, looked, spied
from tests.tiny import assert_same_runs, same, tiny, watched

SECURE = {"name": "secure_aggregation"}


def summed(cohort: int, changes: Mapping[str, Any] | None = None, **step: Any) -> Experiment:
    """Returns an experiment whose last fold block has one client where the cohort has 17."""
    sizes = {
        "stream.clients": 18,
        "stream.tasks": 1,
        "dataset.train": 400,
        "training.cohort": cohort,
        "training.fold": 16,
        "evaluation.every": 0,
        "evaluation.clients": 0,
    }
    channel = [{**SECURE, **step}]
    return tiny({**sizes, **(changes or {})}, model={"name": "mlp", "hidden": [6]}, channel=channel)


@pytest.fixture
def on(request: pytest.FixtureRequest) -> Any:
    """Puts an experiment on an engine."""

    def placed(experiment: Experiment, engine: str) -> Experiment:
        if engine == "ray":
            house = request.getfixturevalue("ray_house")
            assert isinstance(house, RayHouse)
            return house.on(experiment, 2, "serial")
        made = tiny({"engine.name": engine})
        return replace(experiment, engine=made.engine)

    return placed


def assert_nothing_of_one_client(looks: Looks, experiment: Experiment) -> None:
    sent = spied(experiment)
    assert sent and len(looks.method) > 1 and looks.received
    assert betrayed(looks.everything, sent) == []
    exchanges = [request.position for request, _ in looks.results]
    assert len(set(exchanges)) == len(exchanges), "one total an exchange"
    weights = {reply.weight for reply in sent.values()}
    for _, result in looks.results:
        assert result.replies is None and result.total is not None
        assert not result.memories and not result.total.metrics
        assert result.total.weight > max(weights)


ENGINES = ["serial", "vectorized", pytest.param("ray", marks=pytest.mark.ray)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cohort", [2, 17])
def test_nothing_that_the_server_reaches_is_one_clients(
    engine: str, cohort: int, on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = on(summed(cohort), engine)
    assert_nothing_of_one_client(looked(experiment, monkeypatch), experiment)


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_without_the_seal_the_last_block_is_one_clients_reply(
    engine: str, on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the look is sharp: 17 clients in fold blocks of 16."""
    experiment = on(summed(17), engine)
    looks = looked(experiment, monkeypatch, broken=True)
    found = betrayed([result for _, result in looks.results], spied(experiment))
    assert len(found) == 2 * 4, "two rounds, four tensors"
    last = {(request.position, result.ids[-1]) for request, result in looks.results[1::2]}
    assert {key for key, _ in found} == last
    assert betrayed(looks.method, spied(experiment)) == [], "the method got the sum even so"


def test_a_seal_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = summed(17, {"training.fold": 3}, least=2)
    bare = replace(experiment, channel=(), resolved={**experiment.resolved, "channel": []})
    sealed = fedcl.run(experiment)
    assert same(dict(sealed.params), dict(fedcl.run(bare).params))
    assert_same_runs(sealed, looked(experiment, monkeypatch, broken=True).record)


def test_audits_look_from_below_the_seal() -> None:
    """They are the simulator's own view: they see replies, and the run does not change."""
    experiment = summed(5)
    sent = spied(experiment)
    assert len(sent) == 2 * 5
    plain, engine = watched(experiment)
    assert not any(request.reveal for request, _ in engine.requests)
    assert plain.summary["epsilon"] is None


# --- Sums of too few. ---


def test_one_client_has_no_sum() -> None:
    with pytest.raises(ConfigError, match=r"cohort = 1 is smaller than the 2 clients"):
        summed(1)
    with pytest.raises(ConfigError, match=r"least must be at least 2, not 1: .* is its reply"):
        summed(3, least=1)
    alone = summed(0, {"stream.clients": 3}, least=4)
    with pytest.raises(ConfigError, match=r"\[channel\] least = 4 .* the 3 clients .* stage 0"):
        fedcl.run(alone)


def test_a_sum_of_too_few_answers_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rare = {"training.availability": 0.5, "training.rounds": 12}
    experiment = summed(4, rare, least=3)
    looks = looked(experiment, monkeypatch)
    few = [result for _, result in looks.results if len(result.ids) < 3]
    assert 2 < len(few) < 12 and all(result.total is None for result in few)
    assert all(r.total is not None for _, r in looks.results if len(r.ids) >= 3)
    told = looks.record.summary["skipped_or_repeated_rounds"]
    assert len(told) == len(few)
    assert {event["why"].partition("; ")[2] for event in told} == {"the channel's least is 3"}
    assert len(looks.received) == 12 - len(few)
    assert betrayed(looks.everything, spied(experiment)) == []


def test_rounds_that_never_have_enough_end_with_an_error() -> None:
    rare = {"training.availability": 0.01, "training.shortfall": "repeat"}
    with pytest.raises(FedclError, match=r"the channel's least is 2.*availability"):
        fedcl.run(summed(2, rare))


# --- What cannot be asked. ---


def test_single_replies_are_refused_by_the_seal_itself() -> None:
    class Nothing:
        def run(self, *words: Any) -> list[BlockResult]:
            raise AssertionError("asked")

    request = Request(Position(0, 0, 0), lambda client, message: None, None, reveal=True)  # type: ignore[arg-type]
    with pytest.raises(ExposureError, match=r"single replies, which never reach the server"):
        next(Sealed(Nothing()).run(request, (0, 1), None))  # type: ignore[arg-type]


def test_few_clients_and_messages_of_their_own_are_refused() -> None:
    from fedcl.channels.secure_aggregation import SecureAggregation
    from fedcl.core.exposure import check_sum

    channel = [SecureAggregation(least=3)]
    check_sum(channel, "train", Model({}), (1, 2, 3))
    check_sum(channel, "train", Model({}), None)
    with pytest.raises(ExposureError, match=r"'train' asks 2 clients, .* fewer than 3"):
        check_sum(channel, "train", Model({}), (1, 2, 2))
    own = Each({1: "a", 2: "b", 3: "c"})
    with pytest.raises(ExposureError, match=r"'train' has a message of its own for each client"):
        check_sum(channel, "train", own, (1, 2, 3))
    check_sum([], "train", own, (1,))
