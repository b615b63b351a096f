"""A block of clients trained as one batched computation equals each of them trained alone."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcl.core.block import Path
from fedcl.core.client import Client, Model
from fedcl.core.local import CrossEntropy, Local, Proximal, cross_entropy
from fedcl.core.memory import RowwiseCrossEntropy, present_rows
from fedcl.core.model import Net
from fedcl.core.sgd import Settings, train_one
from fedcl.core.task import ClientTask, Examples
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from tests.core import toys
from tests.core.blocks import EVERY, FULL, PLAIN, SIZES, block_by, check, clients, mlp

paths = pytest.mark.parametrize("path", EVERY)


@paths
@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        FULL,
        Settings(2, 3, 0.2, momentum=0.5, steps=3),
        Settings(3, 100, 0.3),
        Settings(1, 1, 0.1, momentum=0.9),
        Settings(1, 12, 0.1, weight_decay=0.5, steps=1),
    ],
    ids=str,
)
def test_uneven_clients(path: Path, options: Settings) -> None:
    check(path, Local(cross_entropy), options, clients(mlp()))


@paths
def test_dropout(path: Path) -> None:
    check(path, Local(cross_entropy), FULL, clients(mlp(input_dropout=0.2, dropout=(0.5,))))


@paths
def test_dropout_with_batches_larger_than_any_share(path: Path) -> None:
    check(path, Local(cross_entropy), Settings(3, 64, 0.3), clients(mlp(dropout=(0.5,))))


@paths
def test_a_convolution_with_group_norm_and_dropout(path: Path) -> None:
    torch.manual_seed(1)
    model = Cnn((4,), 6, 2, dropout=0.5).build((1, 6, 6), 3).double()
    check(path, Local(cross_entropy), FULL, clients(model, (5, 1, 8), shape=(1, 6, 6)))


@paths
def test_a_penalty(path: Path) -> None:
    check(path, Local(cross_entropy, penalty=Proximal(0.7)), FULL, clients(mlp()))


@paths
def test_clients_of_two_tasks_with_heads_of_their_own(path: Path) -> None:
    model = mlp()
    mixed = [
        toys.client(model, n, id=k, head=[0, 1] if k % 2 else [1, 2]) for k, n in enumerate(SIZES)
    ]
    for loss in (cross_entropy, CrossEntropy(masked=True)):
        check(path, Local(loss), FULL, mixed)


def extra_columns(client: Client, message: object) -> Examples:
    """Gives each row a weight and a remembered vector of logits."""
    n = len(client.data)
    generator = torch.Generator().manual_seed(client.id)
    extra = {
        "weight": torch.rand(n, generator=generator, dtype=torch.float64),
        "logits": torch.randn(n, 3, generator=generator, dtype=torch.float64),
    }
    return Examples(client.data.x, client.data.y, extra)


def distill(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Mixes cross-entropy with the distance to remembered logits, by each row's weight."""
    own = cross_entropy(net, batch, task, message)
    logits = net.at(message.params)(batch.x)
    return own * batch.extra["weight"] + (logits - batch.extra["logits"]).square().mean(1)


@paths
def test_extra_columns_and_a_teacher(path: Path) -> None:
    check(path, Local(distill, data=extra_columns), FULL, clients(mlp(dropout=(0.3,))))


@paths
def test_remembered_rows_with_heads_of_their_own(path: Path) -> None:
    def data(client: Client, message: object) -> Examples:
        return present_rows(client)

    check(path, Local(RowwiseCrossEntropy(), data=data), FULL, clients(mlp()))


@paths
def test_columns_must_agree(path: Path) -> None:
    def data(client: Client, message: object) -> Examples:
        return present_rows(client) if client.id else client.data

    model = mlp()
    with pytest.raises(ValueError, match="different extra columns"):
        block_by(
            path,
            Local(cross_entropy, data=data),
            PLAIN,
            clients(model),
            Model(toys.parameters(model)),
        )


@paths
@pytest.mark.parametrize("sizes", [(5, 0, 2), (0, 0), (0,)])
def test_clients_without_examples(path: Path, sizes: tuple[int, ...]) -> None:
    check(path, Local(cross_entropy), FULL, clients(mlp(dropout=(0.2,)), sizes))
    model = mlp()
    message = Model(toys.parameters(model))
    trained = block_by(path, Local(cross_entropy), FULL, clients(model, sizes), message)
    for size, own in zip(sizes, trained, strict=True):
        assert math.isnan(own.loss) == (size == 0)


@paths
def test_float32_agrees_to_rounding(path: Path) -> None:
    model = mlp(dropout=(0.5,)).float()
    message = Model(toys.parameters(model))
    some = clients(model, dtype=torch.float32)
    block = block_by(path, Local(cross_entropy), FULL, some, message)
    for client, together in zip(some, block, strict=True):
        alone = train_one(Local(cross_entropy), FULL, client, message)
        assert together.params["fc1.weight"].dtype == torch.float32
        assert toys.distance(together.params, alone.params) < 1e-5


@paths
def test_place_and_company_do_not_matter(path: Path) -> None:
    model = mlp(input_dropout=0.2, dropout=(0.5,))
    message = Model(toys.parameters(model))
    a, b, c, d = clients(model)
    alone = block_by(path, Local(cross_entropy), FULL, [a], message)[0]
    for block in ([a, b, c, d], [d, c, b, a], [c, a], [a, a]):
        trained = block_by(path, Local(cross_entropy), FULL, block, message)
        own = trained[block.index(a)]
        assert toys.distance(own.params, alone.params) < 1e-12
    # Twice the same client: not only close, but the same masks and rows.
    twins = block_by(path, Local(cross_entropy), FULL, [a, a], message)
    assert toys.distance(twins[0].params, twins[1].params) == 0.0


@paths
def test_the_same_block_gives_the_same_bits(path: Path) -> None:
    model = mlp(dropout=(0.5,))
    message = Model(toys.parameters(model))
    first, second = (
        block_by(path, Local(cross_entropy), FULL, clients(model), message) for _ in range(2)
    )
    for one, two in zip(first, second, strict=True):
        assert toys.distance(one.params, two.params) == 0.0


@paths
def test_each_client_owns_its_parameters(path: Path) -> None:
    model = mlp()
    message = Model(toys.parameters(model))
    for own in block_by(path, Local(cross_entropy), PLAIN, clients(model), message):
        for value in own.params.values():
            # A view would carry the whole block along wherever it is kept or sent.
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
            assert not value.requires_grad


@settings(max_examples=60)
@given(
    path=st.sampled_from(EVERY),
    hidden=st.sampled_from([(4,), (64, 64)]),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    batch=st.integers(1, 5),
    epochs=st.integers(1, 2),
    limit=st.none() | st.integers(1, 4),
    momentum=st.sampled_from([0.0, 0.9]),
    rate=st.sampled_from([0.0, 0.5]),
)
def test_any_block_equals_its_clients_alone(
    path: Path,
    hidden: tuple[int, ...],
    sizes: list[int],
    batch: int,
    epochs: int,
    limit: int | None,
    momentum: float,
    rate: float,
) -> None:
    torch.manual_seed(0)
    model = Mlp(hidden, dropout=(rate,)).build((6,), 3).double()
    options = Settings(epochs, batch, 0.2, momentum, 0.01, limit)
    for penalty in (None, Proximal(0.1)):
        check(path, Local(cross_entropy, penalty), options, clients(model, sizes), least=0.0)
