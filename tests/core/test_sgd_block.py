"""A block of clients trained as one batched computation equals each of them trained alone."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcl.core.block import Path
from fedcl.core.client import Client, Model
from fedcl.core.local import CrossEntropy, Local, Proximal, cross_entropy
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.replay.memory import RowwiseCrossEntropy, present_rows
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


# --- Projected gradients. ---


@dataclass(frozen=True)
class Turn:
    """Takes the part along the parameters received away, and turns it by a factor.

    It couples all entries of a tensor, and of two tensors, within one client.
    """

    factor: float = 0.5

    def __call__(self, gradients: Params, message: Any) -> dict[str, Tensor]:
        found = {}
        for name, value in gradients.items():
            start = message.params[name]
            along = (value * start).sum() / (1 + start.square().sum())
            found[name] = value - (1 + self.factor) * along * start
        length = sum(value.square().sum() for value in found.values())
        return {name: value / (1 + torch.as_tensor(length).sqrt()) for name, value in found.items()}


projecting = pytest.mark.parametrize("path", ["vmap", "loop", "auto"])


@projecting
@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        FULL,
        Settings(2, 3, 0.2, momentum=0.5, steps=3),
        Settings(1, 12, 0.1, weight_decay=0.5, steps=1),
    ],
    ids=str,
)
def test_projected_gradients(path: Path, options: Settings) -> None:
    check(path, Local(cross_entropy, project=Turn()), options, clients(mlp()))


@projecting
def test_projected_gradients_with_dropout_a_penalty_and_idle_clients(path: Path) -> None:
    model = mlp(input_dropout=0.2, dropout=(0.5,))
    local = Local(cross_entropy, penalty=Proximal(0.4), project=Turn(0.2))
    check(path, local, FULL, clients(model, (7, 0, 12, 1)))


@projecting
def test_projected_gradients_of_a_convolution(path: Path) -> None:
    torch.manual_seed(1)
    model = Cnn((4,), 6, 2, dropout=0.5).build((1, 6, 6), 3).double()
    local = Local(cross_entropy, project=Turn())
    check(path, local, FULL, clients(model, (5, 1, 8), shape=(1, 6, 6)))


@pytest.mark.parametrize("path", ["vmap", "loop"])
def test_a_projection_changes_what_is_learnt_and_the_identity_no_bit(path: Path) -> None:
    some = clients(mlp())
    message = Model(toys.parameters(some[0].model))
    plain, untouched, turned = (
        block_by(path, Local(cross_entropy, project=own), FULL, some, message)
        for own in (None, same_gradients, Turn())
    )
    for one, other, third in zip(plain, untouched, turned, strict=True):
        assert toys.distance(one.params, other.params) == 0.0
        assert toys.distance(one.params, third.params) > 1e-3


def same_gradients(gradients: Params, message: Any) -> Params:
    return gradients


@pytest.mark.parametrize("path", ["fused", "grouped"])
def test_block_layers_have_no_gradient_to_project(path: Path) -> None:
    model = mlp()
    with pytest.raises(ValueError, match=rf'engine.path = "{path}".*the gradient as it is.*"auto"'):
        block_by(
            path,
            Local(cross_entropy, project=same_gradients),
            PLAIN,
            clients(model),
            Model(toys.parameters(model)),
        )


def two_parameters() -> tuple[Client, Model]:
    """One example with the loss 3 a + 5 b, at (a, b) = (2, -1)."""
    model = torch.nn.Linear(2, 1, bias=False).double()
    data = Examples(torch.tensor([[3.0, 5.0]]).double(), torch.zeros(1, dtype=torch.int64))
    client = Client(0, model, data, toys.client_task(2), None, seed=3)
    return client, Model({"weight": torch.tensor([[2.0, -1.0]]).double()})


def linear_loss(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    return net(batch.x)[:, 0]


def second_only(gradients: Params, message: Any) -> dict[str, Tensor]:
    return {"weight": gradients["weight"] * torch.tensor([[0.0, 2.0]]).double()}


@projecting
@pytest.mark.parametrize("stopped", [False, True])
def test_weight_decay_comes_before_a_projection_and_momentum_after(
    path: Path, stopped: bool
) -> None:
    """lr 0.1, weight decay 0.5, momentum 0.5; P = diag(0, 2).

    Step 1: g = (3, 5) + 0.5 (2, -1) = (4, 4.5); P g = (0, 9), v = (0, 9); theta = (2, -1.9).
    Step 2: g = (3, 5) + 0.5 (2, -1.9) = (4, 4.05); P g = (0, 8.1), v = (0, 12.6): (2, -3.16).
    Decay after P would shrink the first entry; momentum before P would give (0, 2 * 6.3).
    """
    client, message = two_parameters()
    options = Settings(
        1 if stopped else 2, 1, 0.1, momentum=0.5, weight_decay=0.5, steps=1 if stopped else None
    )
    (own,) = block_by(path, Local(linear_loss, project=second_only), options, [client], message)
    expected = [2.0, -1.9] if stopped else [2.0, -3.16]
    assert own.params["weight"][0].tolist() == pytest.approx(expected, abs=1e-14)


@dataclass(frozen=True)
class Unfit:
    """Returns what does not fit the gradients, in one way or another."""

    kind: str

    def __call__(self, gradients: Params, message: Any) -> Any:
        name, value = next(iter(gradients.items()))
        return {
            "nothing": None,
            "missing": {k: v for k, v in gradients.items() if k != name},
            "more": {**gradients, "other": value},
            "shape": {**gradients, name: value.sum(0)},
            "broadcast": {**gradients, name: value[:1]},
            "type": {**gradients, name: value.float()},
            "number": {**gradients, name: 0.0},
        }[self.kind]


@projecting
@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("nothing", "fc1.weight"),
        ("missing", "fc1.weight"),
        ("more", "other"),
        ("shape", "fc1.weight"),
        ("broadcast", "fc1.weight"),
        ("type", "fc1.weight"),
        ("number", "fc1.weight"),
    ],
)
def test_a_projection_that_does_not_fit_is_named(path: Path, kind: str, named: str) -> None:
    model = mlp()
    local = Local(cross_entropy, project=Unfit(kind))
    with pytest.raises(ValueError, match=f"project returned no gradient that fits '{named}'"):
        block_by(path, local, PLAIN, clients(model), Model(toys.parameters(model)))
