"""Gradient compensation and relation distillation, by hand; what a client keeps by herding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedcl.core.client import Client
from fedcl.core.local import Local
from fedcl.core.losses.compensation import Compensated, Lesson, binary_entropy, compensation
from fedcl.core.model import Net
from fedcl.core.replay.herding import herded_memory
from fedcl.core.replay.memory import Rehearsal
from fedcl.core.task import Examples
from fedcl.methods.replay import Replay
from tests.core import toys
from tests.core.blocks import FULL, block_by, clients, mlp
from tests.tiny import same

TRUE, FALSE = True, False


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def entropy(probability: float, target: float) -> float:
    return -target * math.log(probability) - (1 - target) * math.log(1 - probability)


# --- Weights. ---


def test_weights_have_mean_one_within_each_kind() -> None:
    """Old ones lack 0.2 and 0.6 of their labels, new ones 0.1, 0.3 and 0.5."""
    lacking = [0.2, 0.1, 0.6, 0.3, 0.5]
    right = torch.tensor([logit(1 - g) for g in lacking], dtype=torch.float64)
    old = torch.tensor([TRUE, FALSE, TRUE, FALSE, FALSE])
    expected = [0.5, 1 / 3, 1.5, 1.0, 5 / 3]
    assert compensation(right, old).tolist() == pytest.approx(expected, rel=1e-14)
    # Of one kind alone, the other one has no part in it.
    assert compensation(right[old], old[old]).tolist() == pytest.approx([0.5, 1.5], rel=1e-14)
    assert compensation(right[~old], old[~old]).tolist() == pytest.approx(
        [1 / 3, 1.0, 5 / 3], rel=1e-14
    )


def test_weights_stay_finite_where_nothing_is_left_to_learn() -> None:
    for dtype in (torch.float32, torch.float64):
        right, old = torch.full((3,), 1e4, dtype=dtype), torch.tensor([TRUE, TRUE, FALSE])
        assert compensation(right, old).tolist() == [0.0, 0.0, 0.0]
        # One that is not yet learnt takes the weight of its kind.
        right[0] = 0.0
        assert compensation(right, old).tolist() == [2.0, 0.0, 0.0]
    assert compensation(right[:0], old[:0]).tolist() == []


# --- The loss. ---


def loss(
    options: tuple[bool, float],
    probabilities: list[list[float]],
    labels: list[int],
    stages: list[int],
    heads: list[list[bool]],
    teacher: list[list[float]] | None = None,
    known: list[list[bool]] | None = None,
    index: int = 1,
) -> tuple[list[float], Tensor]:
    """The loss of a network that answers these probabilities; and its gradient for the logits."""
    x = torch.tensor(probabilities, dtype=torch.float64).logit().requires_grad_()
    extra = {"stage": torch.tensor(stages), "head": torch.tensor(heads)}
    if teacher is not None:
        extra["teacher"] = torch.tensor(teacher, dtype=torch.float64).logit()
    message = Lesson({}, False, None if known is None else torch.tensor(known))
    batch = Examples(x, torch.tensor(labels), extra)
    task = toys.client_task(len(heads[0]), index=index)
    losses = Compensated(*options)(Net(nn.Identity()), batch, task, message)
    losses.sum().backward()
    assert x.grad is not None
    return losses.tolist(), x.grad


ALL = [TRUE, TRUE, TRUE]
ROWS = ([[0.8, 0.3, 0.6], [0.4, 0.1, 0.7], [0.2, 0.5, 0.9]], [0, 0, 2], [0, 0, 1])
PLAIN = [
    entropy(0.8, 1) + entropy(0.3, 0) + entropy(0.6, 0),
    entropy(0.4, 1) + entropy(0.1, 0) + entropy(0.7, 0),
    entropy(0.2, 0) + entropy(0.5, 0) + entropy(0.9, 1),
]
WEIGHTS = [0.5, 1.5, 1.0]  # of 0.2 and 0.6, and of 0.1


def test_without_a_teacher_it_is_weighted_binary_cross_entropy_whole() -> None:
    plain, _ = loss((False, 0.7), *ROWS, [ALL] * 3)
    assert plain == pytest.approx(PLAIN, rel=1e-14)
    weighted, gradient = loss((True, 0.7), *ROWS, [ALL] * 3)
    assert weighted == pytest.approx([w * e for w, e in zip(WEIGHTS, PLAIN, strict=True)])
    # The weights have no gradient: each logit's is the weight times what it lacks.
    assert gradient.tolist()[1] == pytest.approx([1.5 * -0.6, 1.5 * 0.1, 1.5 * 0.7], rel=1e-14)


def test_in_a_clients_first_stage_all_weigh_one() -> None:
    rows, labels, _ = ROWS
    found, _ = loss((True, 0.5), rows, labels, [0, 0, 0], [ALL] * 3, index=0)
    assert found == pytest.approx(PLAIN, rel=1e-14)


def test_only_allowed_classes_count() -> None:
    heads = [[TRUE, TRUE, FALSE], [TRUE, FALSE, FALSE], [FALSE, FALSE, TRUE]]
    found, gradient = loss((False, 0.5), *ROWS, heads)
    assert found == pytest.approx(
        [entropy(0.8, 1) + entropy(0.3, 0), entropy(0.4, 1), entropy(0.9, 1)]
    )
    assert gradient[~torch.tensor(heads)].abs().max() == 0.0
    logits = torch.randn(2, 3)
    assert binary_entropy(logits, torch.rand(2, 3), torch.zeros(2, 3) > 0).tolist() == [0.0, 0.0]


TEACHER = [[0.9, 0.2, 0.5], [0.6, 0.3, 0.5], [0.1, 0.4, 0.5]]


def test_relations_are_the_teachers_on_old_classes_and_labels_on_new_ones() -> None:
    """Class-incremental: classes 0 and 1 are old."""
    found, _ = loss((True, 0.25), *ROWS, [ALL] * 3, TEACHER, [[TRUE, TRUE, FALSE]])
    held = [
        entropy(0.8, 0.9) + entropy(0.3, 0.2) + entropy(0.6, 0),
        entropy(0.4, 0.6) + entropy(0.1, 0.3) + entropy(0.7, 0),
        entropy(0.2, 0.1) + entropy(0.5, 0.4) + entropy(0.9, 1),
    ]
    expected = [0.75 * w * e + 0.25 * h for w, e, h in zip(WEIGHTS, PLAIN, held, strict=True)]
    assert found == pytest.approx(expected, rel=1e-14)


def test_relations_over_earlier_heads_and_the_examples_own() -> None:
    """Task-incremental: heads {0} and {1} were before, the present one is {2}."""
    heads = [[TRUE, FALSE, FALSE], [TRUE, FALSE, FALSE], [FALSE, FALSE, TRUE]]
    known = [[TRUE, FALSE, FALSE], [FALSE, TRUE, FALSE]]
    found, _ = loss((False, 1.0), *ROWS, heads, TEACHER, known)
    assert found == pytest.approx(
        [
            entropy(0.8, 0.9) + entropy(0.3, 0.2),
            entropy(0.4, 0.6) + entropy(0.1, 0.3),
            entropy(0.2, 0.1) + entropy(0.5, 0.4) + entropy(0.9, 1),
        ],
        rel=1e-14,
    )


def test_relations_of_a_teacher_that_knows_all_classes() -> None:
    """Domain-incremental: labels have no part in them."""
    found, _ = loss((False, 1.0), *ROWS, [ALL] * 3, TEACHER, [ALL])
    other, _ = loss((False, 1.0), ROWS[0], [1, 1, 1], ROWS[2], [ALL] * 3, TEACHER, [ALL])
    assert found == other
    assert found[0] == pytest.approx(entropy(0.8, 0.9) + entropy(0.3, 0.2) + entropy(0.6, 0.5))


# --- Blocks. ---


def prepared(client: Client) -> Client:
    """The client in its second stage, with every second example of its first one."""
    rows, n = client.data, len(client.data)
    extra = {
        "stage": torch.arange(n) % 2,
        "head": torch.ones(n, 3, dtype=torch.bool),
        "teacher": rows.x[:, :3].clone(),
    }
    task = toys.client_task(3, index=1)
    return replace(client, data=Examples(rows.x, rows.y, extra), task=task)


@pytest.mark.parametrize("path", ["auto", "vmap", "loop"])
@pytest.mark.parametrize("sizes", [(7, 1, 12, 4), (9, 9, 9)])
@pytest.mark.parametrize("taught", [False, True])
def test_blocks_never_weigh_padding(path: Any, sizes: tuple[int, ...], taught: bool) -> None:
    """Batches of 3, some with fewer, some without old examples: each client trains as alone."""
    model = mlp()
    start = toys.parameters(model)
    message = Lesson(start, False, torch.tensor([[TRUE, TRUE, FALSE]]) if taught else None)
    local = Local(Compensated(True, 0.4))
    group = [prepared(client) for client in clients(model, sizes)]
    together = block_by(path, local, FULL, group, message)
    plain = block_by("loop", Local(Compensated(False, 0.4)), FULL, group, message)
    for number, client in enumerate(group):
        (alone,) = block_by("loop", local, FULL, [client], message)
        assert toys.distance(together[number].params, alone.params) < 1e-12
        assert toys.distance(plain[number].params, alone.params) > 1e-3 or len(client.data) == 1


@pytest.mark.parametrize("path", ["fused", "vmap"])
def test_without_compensation_examples_are_apart(path: Any) -> None:
    model = mlp()
    message = Lesson(toys.parameters(model), False, torch.tensor([[TRUE, TRUE, FALSE]]))
    local = Local(Compensated(False, 0.4))
    group = [prepared(client) for client in clients(model)]
    together = block_by(path, local, FULL, group, message)
    for number, client in enumerate(group):
        (alone,) = block_by("loop", local, FULL, [client], message)
        assert toys.distance(together[number].params, alone.params) < 1e-12


# --- Memory. ---


@pytest.mark.parametrize("rows", [0, 1, 5, 100])
def test_a_client_keeps_what_replay_keeps_by_herding(rows: int) -> None:
    model = mlp()
    first, second = toys.client(model, 12), toys.client(model, 9, id=1)
    second = replace(second, task=toys.client_task(3, index=1))
    budget = rows * (6 * 8 + 8 + 8 + 3 + 8) + 7
    replay, params = Replay(budget, "herding"), toys.parameters(model)
    kept, other = None, None
    for client in (first, second):
        kept = herded_memory(replace(client, state=kept), params, budget)
        message = Rehearsal(params, False)
        other = replay.remember(replace(client, state=other), message, params)
        assert same(kept, other)
        assert (kept is None) == (rows == 0)
        assert kept is None or len(kept) <= rows
