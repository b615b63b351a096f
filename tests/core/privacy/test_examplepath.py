"""Which path computes clipped sums is a function of what is public."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.client import Client, Model
from fedcl.core.local import Local, cross_entropy
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.privacy import examplepath
from fedcl.core.privacy.examplepath import path_of
from fedcl.core.task import ClientTask, Examples
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from tests.core import toys
from tests.core.privacy.test_bookkeeping import Tied, Words
from tests.core.privacy.test_sgd import around


def asked(model: nn.Module, loss: Any, client: Client | None = None) -> str:
    """Returns the path for a model and a loss."""
    own = toys.client(model.double(), 5) if client is None else client
    return path_of(Local(loss), model, own.data, Model(toys.parameters(model)))


def weighted(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Uses columns beside inputs and labels."""
    own = F.cross_entropy(net(batch.x), batch.y, reduction="none")
    near = (net.at(message.params)(batch.x).detach() - batch.extra["logits"]).square().sum(1)
    return torch.where(batch.extra["old"], near, own * batch.extra["weight"])


def indexed(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Fails on made-up columns: there is no such row."""
    return torch.ones(3)[batch.extra["place"] - 1] * F.cross_entropy(
        net(batch.x), batch.y, reduction="none"
    )


def test_losses_on_outputs_keep_books() -> None:
    assert asked(Mlp((8,), dropout=(0.5,)).build((6,), 3), cross_entropy) == "books"
    model = Cnn((4, 6), 5, groups=2).build((2, 8, 8), 3).double()
    assert asked(model, cross_entropy, toys.client(model, 5, (2, 8, 8))) == "books"
    words = Words().double()
    assert asked(words, cross_entropy, toys.client(words, 5, (4,))) == "books"


@pytest.mark.parametrize("kind", ["around", "twice", "unknown"])
def test_models_that_go_around_their_layers_do_not(kind: str) -> None:
    assert asked(Tied(kind), cross_entropy) == "vmap"


def test_a_loss_that_looks_at_parameters_does_not() -> None:
    assert asked(Mlp((8,)).build((6,), 3), around) == "vmap"


def test_columns_are_made_up_too() -> None:
    model = Mlp((8,)).build((6,), 3).double()
    client = toys.client(model, 5)
    columns = {
        "logits": torch.zeros(5, 3, dtype=torch.float64),
        "old": torch.zeros(5, dtype=torch.bool),
        "weight": torch.ones(5, dtype=torch.float64),
    }
    own = replace(client, data=replace(client.data, extra=columns))
    assert asked(model, weighted, own) == "books"
    places = {"place": torch.ones(5, dtype=torch.int64)}
    own = replace(client, data=replace(client.data, extra=places))
    assert asked(model, indexed, own) in ("books", "vmap")


def test_values_and_clients_do_not_matter() -> None:
    model = Mlp((8,)).build((6,), 3).double()
    client = toys.client(model, 5)
    bad = Examples(torch.full_like(client.data.x, math.nan), client.data.y * 0)
    assert asked(model, cross_entropy, replace(client, data=bad)) == "books"
    nothing = replace(client, data=client.data.take(torch.zeros(0, dtype=torch.int64)))
    assert asked(model, cross_entropy, nothing) == "books"
    # Where all is zero, every gradient is, and book-keeping would seem right for anything.
    zeros = Model({name: torch.zeros_like(v) for name, v in toys.parameters(model).items()})
    assert path_of(Local(around), model, client.data, zeros) == "vmap"


@dataclass(frozen=True)
class Told:
    """A message that may hold what changes the loss."""

    params: Params
    pull: bool


def pulled(net: Net, batch: Examples, task: ClientTask, message: Told) -> Tensor:
    return (around if message.pull else cross_entropy)(net, batch, task, message)


def test_each_message_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Mlp((8,)).build((6,), 3).double()
    client, tries = toys.client(model, 5), list[Any]()
    tried = examplepath._tried

    def counted(*given: Any) -> Any:
        tries.append(given)
        return tried(*given)

    monkeypatch.setattr(examplepath, "_tried", counted)
    plain, pull = (Told(toys.parameters(model), way) for way in (False, True))
    for message, path in ((plain, "books"), (plain, "books"), (pull, "vmap"), (pull, "vmap")):
        assert path_of(Local(pulled), model, client.data, message) == path
    assert len(tries) == 2
    assert path_of(Local(cross_entropy), model, client.data, pull) == "books"
    assert len(tries) == 3
    del pull, message
    gc.collect()  # a later message may lie at the same address
    assert path_of(Local(cross_entropy), model, client.data, plain) == "books"
    assert len(tries) == 4
