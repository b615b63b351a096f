"""The fast path against plain PyTorch, and with losses that ask much of it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedcl.core.block import Batching, Path, block_of
from fedcl.core.client import Client, Model
from fedcl.core.local import Local, Proximal, cross_entropy
from fedcl.core.model import Net
from fedcl.core.sgd import Settings
from fedcl.core.task import ClientTask, Examples
from fedcl.core.training.together import train_block
from fedcl.models.cnn import Cnn
from tests.core import toys
from tests.core.blocks import FULL, PLAIN, block_by, by_pytorch, check, clients, mlp

ROOT = File(__file__).parents[3]
both = pytest.mark.parametrize("path", ["fused", "grouped"])


def cnn(**options: Any) -> nn.Module:
    torch.manual_seed(1)
    return Cnn((4,), 6, 2, **options).build((1, 6, 6), 3).double()


@both
@pytest.mark.parametrize(
    "options",
    [
        PLAIN,
        FULL,
        Settings(1, 3, 0.2, weight_decay=0.3),
        Settings(3, 5, 0.2, momentum=0.5, steps=4),
        Settings(2, 1, 0.05, momentum=0.9, weight_decay=0.1),
        Settings(2, 100, 0.4, momentum=0.9),
        Settings(5, 4, 0.1, steps=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("hidden", [(8, 5), (150, 120), (150, 4)], ids=str)
def test_equals_pytorch(path: Path, options: Settings, hidden: tuple[int, ...]) -> None:
    some = clients(mlp(*hidden), (12, 0, 5, 1, 8))
    message = Model(toys.parameters(some[0].model))
    trained = block_by(path, Local(cross_entropy), options, some, message)
    for client, own in zip(some, trained, strict=True):
        assert toys.distance(own.params, by_pytorch(options, client)) < 1e-12


@pytest.mark.parametrize(
    ("rows", "batch", "held"),
    [
        (24, 24, ["fc2"]),
        (24, 5, ["fc2"]),
        (66, 11, ["fc2"]),
        (66, 8, []),
        (67, 67, []),
        (5, 5, ["fc1", "fc2"]),
    ],
)
def test_layers_are_outer_products_while_these_are_smaller(
    rows: int, batch: int, held: list[str]
) -> None:
    """A weight of 150 columns and 120 rows against 270 numbers for each visit; padding counts."""
    model = mlp(150, 120)
    some = block_of(clients(model, (rows, 2)))
    options = Settings(1, batch, 0.1)
    trained = train_block(
        Local(cross_entropy), options, some, Model(toys.parameters(model)), Batching("fused")
    ).trained
    assert list(trained.low_rank) == held


@both
def test_dropout_in_a_wide_network(path: Path) -> None:
    some = clients(mlp(150, 120, input_dropout=0.2, dropout=(0.5, 0.3)), (12, 0, 5, 1))
    check(path, Local(cross_entropy), FULL, some)
    check(path, Local(cross_entropy, Proximal(0.3)), PLAIN, some)
    check(path, Local(cross_entropy), FULL, clients(cnn(dropout=0.5), (5, 8), shape=(1, 6, 6)))


# --- One client's trouble stays its own. ---


def logarithm(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Is infinite, with a gradient that is no number, where a column is 0."""
    return (
        cross_entropy(net, batch, task, message)
        + (batch.extra["column"] * net(batch.x)[:, 0]).log().abs()
    )


def with_zeros(client: Client, message: Any) -> Examples:
    """Gives client 1's first row a 0; padding repeats first rows."""
    column = torch.ones(len(client.data), dtype=torch.float64)
    if client.id == 1:
        column[0] = 0.0
    return Examples(client.data.x.abs(), client.data.y, {"column": column})


class Positive(nn.Module):
    """Has positive logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.head = (
            nn.Linear(6, width),
            nn.Linear(width, width),
            nn.Linear(width, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns exponentials."""
        y: Tensor = self.head(self.b(self.a(x).tanh()).tanh()).exp()
        return y


@pytest.mark.parametrize("width", [5, 150])
@pytest.mark.parametrize("path", ["fused", "vmap", "loop"])
def test_one_client_without_numbers_leaves_the_others_alone(path: Path, width: int) -> None:
    torch.manual_seed(1)
    model = Positive(width).double()
    some = clients(model, (7, 4, 12))
    message = Model(toys.parameters(model))
    local = Local(logarithm, data=with_zeros)
    trained = train(path, local, some, message)
    assert [bool(own["head.weight"].isfinite().all()) for own in trained] == [True, False, True]
    for k in (0, 2):
        (alone,) = train("loop", local, [some[k]], message)
        assert toys.distance(trained[k], alone) < 1e-12


def train(
    path: Path, local: Local, some: Sequence[Client], message: Any
) -> list[dict[str, Tensor]]:
    options = replace(PLAIN, lr=0.02)
    trained = train_block(local, options, block_of(some), message, Batching(path)).trained
    return [dict(trained.params(k)) for k in range(len(some))]


# --- Bits. ---


def bits() -> str:
    """Returns a digest of what blocks of every form have learnt."""
    digest = hashlib.sha256()
    blocks: list[tuple[Path, list[Client]]] = [
        ("fused", clients(mlp(150, 120, dropout=(0.5,)).float(), (9, 4, 7), dtype=torch.float32)),
        ("grouped", clients(cnn().float(), (5, 8), shape=(1, 6, 6), dtype=torch.float32)),
        ("fused", clients(cnn().float(), (5, 8), shape=(1, 6, 6), dtype=torch.float32)),
        ("vmap", clients(mlp().float(), (9, 4, 7), dtype=torch.float32)),
    ]
    for path, some in blocks:
        message = Model(toys.parameters(some[0].model))
        for own in block_by(path, Local(cross_entropy), FULL, some, message):
            for value in own.params.values():
                digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def test_another_process_computes_the_same_bits() -> None:
    program = """
import torch
torch.set_num_threads(1)
from tests.core.training.test_fused import bits
print(bits())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == bits() == bits(), done.stderr
