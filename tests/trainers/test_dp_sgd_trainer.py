"""The private trainer: options, programs and replies; the training is tested with the core."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedcl.config import parse
from fedcl.core.block import Batching, block_of
from fedcl.core.client import Client, Model, Spent
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.core.local import Local, cross_entropy
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.privacy.examples import ExampleMechanism
from fedcl.core.privacy.sgd import train_private
from fedcl.core.task import ClientTask, Examples
from fedcl.models.mlp import Mlp
from fedcl.plugins import plugin
from fedcl.trainers.dp_sgd import DpSgd
from tests.core import toys
from tests.core.keyed import clients
from tests.tiny import TABLE

TRAINER = DpSgd(clip=0.5, noise_multiplier=0.7, batch_size=3, epochs=2, lr=0.2, momentum=0.5)


def some(*sizes: int) -> tuple[list[Client], Model]:
    torch.manual_seed(0)
    model = Mlp((5,), dropout=(0.5,)).build((6,), 3).double()
    own = [replace(c, state={"kept": c.id}) for c in clients(model, sizes)]
    return own, Model(toys.parameters(model))


def test_it_promises_what_it_is_told() -> None:
    told = DpSgd(2.0, 0.9, delta=1e-6, budget=3.0, noise="seeded", clips={"gram": 4.0})
    assert told.private
    assert told.protection == ExampleMechanism(0.9, 2.0, {"gram": 4.0}, 1e-6, 3.0, True)
    assert DpSgd().protection == ExampleMechanism(1.0, 1.0)
    assert pickle.loads(pickle.dumps(told)) == told
    assert hash(told) == hash(replace(told))
    assert told != replace(told, clips={})
    assert told.scaled(0.5) == replace(told, lr=0.05)


def test_a_config_builds_it() -> None:
    table = {"name": "dp_sgd", "clip": 0.3, "clips": {"gram": 2, "fisher": 0.5}}
    built, resolved = plugin("trainers", table, "training.local")
    assert built == DpSgd(clip=0.3, clips={"gram": 2.0, "fisher": 0.5})
    assert resolved["clips"] == {"gram": 2.0, "fisher": 0.5} and resolved["noise"] == "secret"
    training = {**TABLE["training"], "local": table}
    experiment = parse({**TABLE, "training": training})
    assert experiment.training.local == built
    again = parse(experiment.resolved)
    assert again.training.local == built and again.toml == experiment.toml
    assert "gram = 2.0" in experiment.toml


def test_a_reply_tells_the_change_and_no_loss() -> None:
    (client,), message = some(8)
    reply = TRAINER(Local(cross_entropy))(client, message)
    trained = train_private(Local(cross_entropy), TRAINER.settings, client, message)
    change = {k: v - message.params[k] for k, v in trained.params.items()}
    assert list(reply.tensors) == list(message.params)
    assert all(torch.equal(reply.tensors[k], change[k]) for k in change)
    assert (reply.weight, reply.steps, reply.examples) == (8.0, 6, 18)
    assert reply.metrics == {}
    assert reply.state is client.state
    assert reply.spent == Spent(0.7, 3 / 8, 6, earlier=False)


def keep(client: Client, message: Model, params: Params) -> Any:
    return {"params": params, "was": client.state}


def twice(client: Client, message: Model) -> Examples:
    return client.data.take(torch.arange(len(client.data)).repeat(2))


def passes(client: Client, message: Model) -> int:
    return 100


def test_parts_decide_what_is_trained_and_kept() -> None:
    (_, client), message = some(4, 4)
    local = Local(cross_entropy, data=twice, keep=keep, passes=passes)
    reply = TRAINER(local)(client, message)
    trained = train_private(local, TRAINER.settings, client, message)
    assert toys.distance(reply.state["params"], trained.params) == 0.0
    assert reply.state["was"] == {"kept": 1}
    # Its weight is the number of its own examples, whatever it trains on.
    assert (reply.weight, reply.steps, reply.examples) == (4.0, 6, 118)
    assert reply.spent == Spent(0.7, 3 / 8, 6, earlier=True)


def test_a_block_answers_as_its_clients_alone() -> None:
    own, message = some(7, 1, 4)
    local = Local(cross_entropy, keep=keep, passes=passes)
    reply = TRAINER.block(local, block_of(own), message, Batching())
    for k, client in enumerate(own):
        alone = TRAINER(local)(client, message)
        tensors = local.report(client, message, reply.trained.params(k))
        assert toys.distance(tensors, alone.tensors) < 1e-12
        assert toys.distance(reply.state(k)["params"], alone.state["params"]) < 1e-12
        assert (reply.weights[k], reply.trained.steps[k], reply.examples(k)) == (
            alone.weight,
            alone.steps,
            alone.examples,
        )
        assert (reply.metrics[k], reply.spent[k]) == ({}, alone.spent)
        assert math.isnan(reply.trained.losses[k])


def report(client: Client, message: Model, params: Params) -> Params:
    return {"mean": client.data.x.mean(0)}


class Mixing:
    mixes = True

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
        return net(batch.x).sum(1)


@pytest.mark.parametrize(
    ("local", "words"),
    [
        (Local(Mixing(), name="pairs"), "'pairs': its loss mixes examples"),
        (Local(cross_entropy, report=report), "'train' reports other things than the change"),
    ],
)
def test_parts_that_cannot_be_protected_are_refused(local: Local, words: str) -> None:
    own, message = some(4)
    with pytest.raises(ExposureError, match=words):
        TRAINER(local)
    with pytest.raises(ExposureError, match=words):
        TRAINER.block(local, block_of(own), message, Batching())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"lr": 0.0}, "lr must be above 0, not 0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), not 1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, not -1"),
        ({"clip": 0.0}, "clip must be above 0, not 0"),
        ({"clip": math.inf}, "clip must be above 0, not inf"),
        ({"noise_multiplier": -0.1}, "noise_multiplier must be at least 0, not -0.1"),
        ({"budget": -1.0}, "budget must be at least 0, not -1"),
        ({"delta": 0.0}, r"delta must lie in \(0, 1\), not 0"),
        ({"clips": {"gram": -2.0}}, r"clips\.gram must be above 0, not -2"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DpSgd(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clips": {"gram": "much"}}, r"training\.local\.clips must be .*number, not 'much'"),
        ({"clips": [1.0]}, r"training\.local\.clips must be"),
        ({"noise": "none"}, r"training\.local\.noise must be"),
        ({"noise": "seeded", "lr": -1.0}, "lr must be above 0"),
    ],
)
def test_a_config_that_is_wrong_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plugin("trainers", {"name": "dp_sgd", **options}, "training.local")
