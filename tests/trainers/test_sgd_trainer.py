"""The SGD plug-in: options, programs and replies; the training itself is tested with the core."""

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from fedcl.core.block import Batching, block_of
from fedcl.core.client import Client, Model
from fedcl.core.local import Local, cross_entropy
from fedcl.core.params import Params
from fedcl.core.sgd import Settings, train_one
from fedcl.models.mlp import Mlp
from fedcl.trainers.sgd import Sgd
from tests.core import toys

TRAINER = Sgd(epochs=2, batch_size=3, lr=0.2, momentum=0.5, weight_decay=0.01)


def some(*sizes: int) -> tuple[list[Client], Model]:
    torch.manual_seed(0)
    model = Mlp((5,), dropout=(0.5,)).build((6,), 3).double()
    clients = [toys.client(model, n, id=k, state={"kept": k}) for k, n in enumerate(sizes)]
    return clients, Model(toys.parameters(model))


def test_settings_are_the_options() -> None:
    assert TRAINER.settings == Settings(2, 3, 0.2, 0.5, 0.01, None)
    assert Sgd(steps=7).settings.steps == 7
    assert Sgd().settings == Settings(epochs=1, batch_size=16, lr=0.1)
    assert not TRAINER.private
    assert pickle.loads(pickle.dumps(TRAINER)) == TRAINER


def test_a_reply_reports_the_change_and_the_work() -> None:
    (client,), message = some(8)
    reply = TRAINER(Local(cross_entropy))(client, message)
    trained = train_one(Local(cross_entropy), TRAINER.settings, client, message)
    change = {k: v - message.params[k] for k, v in trained.params.items()}
    assert list(reply.tensors) == list(message.params)
    assert all(torch.equal(reply.tensors[k], change[k]) for k in change)
    assert (reply.weight, reply.steps, reply.examples) == (8.0, 6, 16)
    assert reply.metrics == {"loss": trained.loss}
    assert reply.state is client.state


def keep(client: Client, message: Model, params: Params) -> Any:
    return {"params": params, "was": client.state}


def report(client: Client, message: Model, params: Params) -> dict[str, Tensor]:
    return {f"head/{k}": v * client.id for k, v in params.items() if k.startswith("head")}


def twice(client: Client, message: Model) -> Any:
    return client.data.take(torch.arange(len(client.data)).repeat(2))


def test_parts_decide_what_is_trained_kept_and_reported() -> None:
    clients, message = some(4, 4)
    local = Local(cross_entropy, data=twice, keep=keep, report=report)
    reply = TRAINER(local)(clients[1], message)
    trained = train_one(local, TRAINER.settings, clients[1], message)
    assert list(reply.tensors) == ["head/head.weight", "head/head.bias"]
    assert torch.equal(reply.tensors["head/head.bias"], trained.params["head.bias"])
    assert toys.distance(reply.state["params"], trained.params) == 0.0
    assert reply.state["was"] == {"kept": 1}
    # Its weight is the number of its own examples, whatever it trains on.
    assert (reply.weight, reply.examples) == (4.0, 16)


def test_a_block_answers_as_its_clients_alone() -> None:
    clients, message = some(7, 1, 4)
    local = Local(cross_entropy, keep=keep)
    reply = TRAINER.block(local, block_of(clients), message, Batching())
    for k, client in enumerate(clients):
        alone = TRAINER(local)(client, message)
        tensors = local.report(client, message, reply.trained.params(k))
        assert toys.distance(tensors, alone.tensors) < 1e-12
        assert toys.distance(reply.state(k)["params"], alone.state["params"]) < 1e-12
        assert (reply.weights[k], reply.trained.steps[k], reply.trained.visits[k]) == (
            alone.weight,
            alone.steps,
            alone.examples,
        )
        assert reply.metrics[k]["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-12)


def test_no_examples_have_no_weight_and_no_loss() -> None:
    (client,), message = some(0)
    reply = TRAINER(Local(cross_entropy))(client, message)
    assert (reply.weight, reply.steps, reply.examples) == (0.0, 0, 0)
    assert math.isnan(reply.metrics["loss"])
    assert all(bool((value == 0).all()) for value in reply.tensors.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"lr": 0.0}, "lr must be above 0, not 0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), not 1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, not -1"),
        ({"steps": -1}, "steps must be at least 0, not -1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sgd(**options)
