"""A block of clients that train in private: each as alone, but for rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.block import Batching, Path, block_of
from fedcl.core.client import Client, Model
from fedcl.core.errors import ExposureError
from fedcl.core.local import CrossEntropy, Local, Proximal, cross_entropy
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.privacy import block as privateblock
from fedcl.core.privacy.block import train_private_block
from fedcl.core.privacy.draws import PrivateSettings, hide
from fedcl.core.privacy.sgd import train_private
from fedcl.core.task import ClientTask, Examples
from fedcl.core.trained import BlockReply
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from tests.core import toys
from tests.core.keyed import FULL, PLAIN, clients, slow
from tests.core.privacy.test_bookkeeping import Words
from tests.core.privacy.test_sgd import around, halved

SIZES = (17, 1, 40, 0, 9)  # uneven; one with an example in every step, one without any


def mlp(**options: Any) -> nn.Module:
    torch.manual_seed(1)
    return Mlp((8, 5), **options).build((6,), 3).double()


def cnn() -> nn.Module:
    torch.manual_seed(1)
    return Cnn((4, 6), 5, groups=2).build((2, 8, 8), 3).double()


def words() -> nn.Module:
    torch.manual_seed(1)
    return Words().double()


def cohort(kind: str, sizes: Sequence[int] = SIZES, **options: Any) -> list[Client]:
    if kind == "words":
        own = clients(words(), sizes, shape=(4,), **options)
        x = [(c.data.x.abs() * 3).clamp(max=6).floor() for c in own]
        return [replace(c, data=replace(c.data, x=rows)) for c, rows in zip(own, x, strict=True)]
    if kind == "cnn":
        return clients(cnn(), sizes, shape=(2, 8, 8), **options)
    return clients(mlp(dropout=(0.4,) if kind == "dropout" else ()), sizes, **options)


def together(
    path: Path, local: Local, settings: PrivateSettings, own: Sequence[Client]
) -> tuple[BlockReply, Model]:
    message = Model(toys.parameters(own[0].model))
    return train_private_block(local, settings, block_of(own), message, Batching(path)), message


def check(path: Path, local: Local, settings: PrivateSettings, own: Sequence[Client]) -> None:
    reply, message = together(path, local, settings, own)
    for k, client in enumerate(own):
        alone = train_private(local, settings, client, message)
        found = reply.trained.params(k)
        assert toys.distance(dict(found), alone.params) < 1e-12
        assert toys.distance(dict(found), message.params) > 1e-3 or not alone.rows
        assert reply.trained.steps[k] == settings.steps(alone.rows)
        assert reply.examples(k) == settings.visits(alone.rows)
        assert (reply.weights[k], reply.metrics[k]) == (float(len(client.data)), {})
        assert reply.spent[k] == settings.spent(local, alone.rows)
    assert not toys.distance(toys.parameters(own[0].model), message.params)


@pytest.mark.parametrize("kind", ["mlp", "dropout", "cnn", "words"])
@pytest.mark.parametrize("path", ["auto", "fused", "grouped", "loop"])
def test_a_block_trains_as_its_clients_alone(path: Path, kind: str) -> None:
    check(path, Local(cross_entropy), FULL, cohort(kind))


@pytest.mark.parametrize("path", ["fused", "loop"])
def test_penalty_and_projection_are_those_of_each(path: Path) -> None:
    check(path, Local(cross_entropy, penalty=Proximal(0.4), project=halved), FULL, cohort("mlp"))


def test_the_formula_holds_in_a_block() -> None:
    own = cohort("mlp", (9, 5))
    reply, message = together("fused", Local(cross_entropy), PLAIN, own)
    for k, client in enumerate(own):
        expected = slow(Local(cross_entropy), PLAIN, client, message)
        assert toys.distance(dict(reply.trained.params(k)), expected) < 1e-12


def test_clients_of_different_tasks_share_a_pass() -> None:
    own = cohort("mlp", (9, 5))
    own[1] = replace(own[1], task=toys.client_task(3, [0, 2]))
    check("fused", Local(CrossEntropy(masked=True)), PLAIN, own)


def both(client: Client, message: Any) -> Examples:
    return client.data.take(torch.arange(len(client.data)).repeat(2))


def remembered(client: Client, message: Any, params: Params) -> Any:
    return {"bias": params["head.bias"]}


@pytest.mark.parametrize("path", ["fused", "loop"])
def test_parts_decide_what_is_trained_and_kept(path: Path) -> None:
    local, own = Local(cross_entropy, data=both, keep=remembered), cohort("mlp", (9, 5))
    check(path, local, PLAIN, own)
    reply, message = together(path, local, PLAIN, own)
    assert [spent.earlier for spent in reply.spent] == [True, True]
    assert [spent.rate for spent in reply.spent] == [4 / 18, 4 / 10]
    for k, client in enumerate(own):
        alone = train_private(local, PLAIN, client, message).params
        assert torch.allclose(reply.state(k)["bias"], alone["head.bias"], atol=1e-12)


def test_steps_in_which_nobody_is_pass() -> None:
    settings = replace(PLAIN, batch_size=1, epochs=1)
    check("fused", Local(cross_entropy), settings, cohort("mlp", (12, 7)))


def teacher(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Keeps to the received answers; the teacher's layers are not its own."""
    with torch.no_grad():
        target = net.at(message.params)(batch.x)
    answers = net(batch.x)
    own = F.cross_entropy(answers, batch.y, reduction="none")
    return own + (answers - 0.5 * target).square().sum(1)


def untouched(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Does not depend on the network."""
    return net(batch.x).detach().sum(1)


def mirrored(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    return F.cross_entropy(net(batch.x) + net(batch.x.flip(1)), batch.y, reduction="none")


@pytest.mark.parametrize("loss", [around, mirrored, teacher, untouched])
def test_losses_of_other_kinds_are_trained_as_alone(loss: Any) -> None:
    check("auto", Local(loss), PLAIN, cohort("mlp", (9, 5)))


@pytest.mark.parametrize(
    ("path", "loss", "words"),
    [
        ("vmap", cross_entropy, 'engine.path = "vmap" is not for private training: use "auto"'),
        ("compiled", cross_entropy, "is not for private training"),
        ("fused", around, 'path = "fused": book-keeping is not right .*; use "auto" or "loop"'),
        ("grouped", mirrored, 'path = "grouped": book-keeping is not right'),
    ],
)
def test_a_path_that_cannot_apply_is_refused(path: Path, loss: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        together(path, Local(loss), PLAIN, cohort("mlp", (9, 5)))


def test_a_block_without_keys_trains_nobody() -> None:
    own = [replace(client, key=None) for client in cohort("mlp", (9, 5))]
    with pytest.raises(ExposureError, match="secret key, and it has none"):
        together("auto", Local(cross_entropy), PLAIN, own)


# --- What one example may change (T3), also where its row pads a batch. ---

QUIET = replace(PLAIN, noise_multiplier=0.0, epochs=1, lr=1.0, clip=0.3)


def sums(kind: str, row: float, place: int) -> list[dict[str, Tensor]]:
    """Returns the sums of three clients with one step; an example of the second is replaced."""
    own = cohort(kind, (4, 3, 4))
    x = own[1].data.x.clone()
    x[place] = row
    own[1] = replace(own[1], data=replace(own[1].data, x=x))
    reply, message = together("fused", Local(cross_entropy), QUIET, own)
    return [
        {
            name: (start - reply.trained.params(k)[name]) * len(client.data)
            for name, start in message.params.items()
        }
        for k, client in enumerate(own)
    ]


def size(a: Params, b: Params) -> float:
    return math.sqrt(sum(float((a[k] - b[k]).square().sum()) for k in a))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("place", [0, 2])  # the first row also pads
@pytest.mark.parametrize("row", [0.0, math.inf, 1e300, 1e-300, 1e6])
def test_no_example_moves_more_than_its_clients_sum_by_the_clip(
    kind: str, place: int, row: float
) -> None:
    there, nothing = sums(kind, row, place), sums(kind, math.nan, place)
    assert size(there[1], nothing[1]) <= 0.3 * (1 + 1e-6)
    assert [size(there[k], nothing[k]) for k in (0, 2)] == [0.0, 0.0]
    assert all(bool(v.isfinite().all()) for total in there for v in total.values())
    if row in (0.0, 1e-300):
        assert size(there[1], nothing[1]) > 0.3 * (1 - 1e-3), "it is clipped, not thrown away"


def test_padding_that_counts_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    own = cohort("mlp", (9, 5))
    real = torch.zeros

    def present(*shape: Any, **options: Any) -> Tensor:
        ones = options.get("dtype") == torch.float64 and len(shape) == 1 and len(shape[0]) == 2
        return torch.ones(*shape, **options) if ones else real(*shape, **options)

    monkeypatch.setattr(torch, "zeros", present)
    reply, message = together("fused", Local(cross_entropy), PLAIN, own)
    monkeypatch.undo()
    assert reply.trained.padded > 0
    gaps = [
        toys.distance(
            dict(reply.trained.params(k)),
            train_private(Local(cross_entropy), PLAIN, client, message).params,
        )
        for k, client in enumerate(own)
    ]
    assert max(gaps) > 1e-3


def test_one_noise_for_all_clients_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    own = cohort("mlp", (9, 5))

    def shared(total: Tensor, key: bytes, *place: Any) -> None:
        hide(total, own[0].key or b"", *place)

    monkeypatch.setattr(privateblock, "hide", shared)
    with pytest.raises(AssertionError):
        check("fused", Local(cross_entropy), PLAIN, own)
