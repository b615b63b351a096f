"""Distillation: its value and gradient by hand, teachers of many, and heads of each scenario."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.client import Client
from fedcl.core.local import Local
from fedcl.core.losses.distillation import (
    ROWS,
    Distilled,
    Taught,
    answers,
    check_distillation,
    distillation,
    distilled,
    known_heads,
    over_heads,
    soft_mean,
    with_teacher,
)
from fedcl.core.model import Net
from fedcl.core.sgd import Settings, batches
from fedcl.core.task import Examples, TaskInfo
from tests.core import toys
from tests.core.blocks import EVERY, PLAIN, SIZES, block_by, clients, mlp

ALL = torch.tensor([True, True, True])
HEADS = torch.tensor([[True, True, False, False], [False, False, False, True]])


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


# --- The value. ---


def test_the_value_by_hand() -> None:
    """T = 2; the teacher's logits (2 ln 3, 0) give p = (3/4, 1/4), the student's (0, 0) q = (1/2,
    1/2): 4 (3/4 ln(3/2) + 1/4 ln(1/2)). A class that is not allowed changes nothing."""
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    teacher = torch.tensor([[2 * math.log(3), 0.0, 9.0]], dtype=torch.float64)
    for other in (-50.0, 0.0, 70.0):
        student = torch.tensor([[0.0, 0.0, other]], dtype=torch.float64)
        found = distillation(student, teacher, torch.tensor([True, True, False]), 2.0)
        assert found.tolist() == pytest.approx([expected], abs=1e-15)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_its_gradient_is_that_of_soft_labels(temperature: float) -> None:
    """d/dz = T (softmax(z/T) - softmax(teacher/T)), that of T^2 times the soft cross-entropy."""
    student, teacher = normal(5, 3).requires_grad_(), normal(5, 3, seed=1)
    distillation(student, teacher, ALL, temperature).sum().backward()
    with torch.no_grad():
        q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    assert student.grad is not None
    assert torch.allclose(student.grad, temperature * (q - p), rtol=0, atol=1e-14)
    soft = student.detach().requires_grad_()
    (temperature**2 * F.cross_entropy(soft / temperature, p, reduction="sum")).backward()
    assert soft.grad is not None
    assert torch.allclose(student.grad, soft.grad, rtol=0, atol=1e-14)


def test_it_is_zero_without_a_gradient_where_both_agree_and_positive_elsewhere() -> None:
    student = normal(6, 3).requires_grad_()
    # The softmax knows no constant.
    teacher = student.detach() + normal(6, 1, seed=3)
    value = distillation(student, teacher, ALL, 2.0)
    value.sum().backward()
    assert student.grad is not None
    assert float(value.detach().abs().max()) < 1e-14
    assert float(student.grad.abs().max()) < 1e-14
    assert distillation(student.detach(), normal(6, 3, seed=4), ALL, 2.0).min() > 1e-3


def test_the_factor_keeps_its_size_as_the_temperature_grows() -> None:
    """For T to infinity it tends to half the variance, over classes, of the logits' difference."""
    student, teacher = normal(4, 3), normal(4, 3, seed=1)
    limit = (teacher - student).var(1, unbiased=False) / 2
    assert torch.allclose(distillation(student, teacher, ALL, 1e4), limit, rtol=1e-3)


def test_masks_may_differ_by_row_and_allow_nothing() -> None:
    student, teacher = normal(3, 3).requires_grad_(), normal(3, 3, seed=1)
    allowed = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    value = distillation(student, teacher, allowed, 2.0)
    value.sum().backward()
    for row in (0, 2):
        own = allowed[row]
        alone = distillation(student[row : row + 1, own], teacher[row : row + 1, own], own[own], 2)
        assert float(value[row].detach()) == pytest.approx(float(alone.detach()), abs=1e-14)
    assert value[1].item() == 0.0
    assert student.grad is not None
    assert student.grad[1].abs().max() == 0.0
    assert student.grad[0, 2] == 0.0


def test_heads_are_added_up_less_what_is_left_out() -> None:
    student, teacher = normal(3, 4), normal(3, 4, seed=1)
    both = [distillation(student, teacher, head, 2.0) for head in HEADS]
    assert torch.equal(over_heads(student, teacher, HEADS, 2.0), both[0] + both[1])
    # One class alone has nothing to distil.
    assert float(both[1].abs().max()) == 0.0
    without = torch.tensor([True, False, False, False])
    assert float(over_heads(student, teacher, HEADS, 2.0, without).abs().max()) == 0.0
    none = over_heads(student, teacher, HEADS[:0], 2.0)
    assert none.tolist() == [0.0, 0.0, 0.0]


# --- Teachers. ---


def test_a_teacher_is_the_message_s_or_the_model_itself() -> None:
    model = mlp()
    params, other = toys.parameters(model), {k: v + 0.5 for k, v in toys.parameters(model).items()}
    data = toys.client(model, 2 * ROWS + 3).data
    heads = torch.ones(1, 3, dtype=torch.bool)
    own = with_teacher(model, Taught(params, heads), data)
    given = with_teacher(model, Taught(params, heads, other), data)
    for found, expected in ((own, params), (given, other)):
        assert torch.equal(found.x, data.x)
        logits = Net(model, expected)(data.x).detach()
        assert toys.distance({"": found.extra["teacher"]}, {"": logits}) < 1e-14
        assert not found.extra["teacher"].requires_grad
    assert toys.distance({"": own.extra["teacher"]}, {"": given.extra["teacher"]}) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_mean_of_soft_answers(temperature: float) -> None:
    logits = [normal(5, 4, seed=k) for k in range(3)]
    found = soft_mean(logits, HEADS, temperature)
    for head in HEADS:
        mean = torch.stack([(z[:, head] / temperature).softmax(1) for z in logits]).mean(0)
        assert torch.allclose((found[:, head] / temperature).softmax(1), mean, rtol=0, atol=1e-14)
    one = soft_mean(logits[:1], HEADS[:1], temperature)
    assert float(distillation(logits[0], one, HEADS[0], temperature).abs().max()) < 1e-14


def test_a_mean_of_certain_answers_is_finite() -> None:
    """In float32 exp(-600) is 0, whose logarithm is not finite."""
    logits = [torch.tensor([[600.0, 0.0]]), torch.tensor([[590.0, 0.0]])]
    found = soft_mean(logits, torch.tensor([[True, True]]), 1.0)
    assert bool(torch.isfinite(found).all())
    value = distillation(torch.zeros(1, 2), found, torch.tensor([True, True]), 1.0)
    assert value.item() == pytest.approx(math.log(2))


# --- Heads. ---


def info(scenario: Any, classes: tuple[int, ...], seen: tuple[int, ...]) -> TaskInfo:
    return TaskInfo(0, classes, seen, scenario)


def test_heads_of_each_scenario() -> None:
    params = {"head.weight": torch.zeros(5, 2)}
    stages = [((0, 1), (0, 1)), ((2, 3), (0, 1, 2, 3)), ((1, 3, 4), (0, 1, 2, 3, 4))]
    expected: dict[Any, list[list[str]]] = {
        "domain": [["11111"]] * 3,
        "class": [["11000"], ["11110"], ["11111"]],
        # In the last stage clients are back in old classes: only class 4 is new.
        "task": [["11000"], ["11000", "00110"], ["11000", "00110", "00001"]],
    }
    for scenario, wanted in expected.items():
        heads: Tensor | None = None
        for (classes, seen), rows in zip(stages, wanted, strict=True):
            heads = known_heads(heads, info(scenario, classes, seen), params)
            assert ["".join(str(int(c)) for c in head) for head in heads] == rows, scenario
            assert heads.dtype == torch.bool
        assert heads is not None
        again = known_heads(heads, info(scenario, (0, 1), (0, 1, 2, 3, 4)), params)
        assert torch.equal(again, heads), "nothing is new"


# --- Training. ---


@pytest.mark.parametrize("path", EVERY)
def test_blocks_of_reviewers_are_the_loop(path: Any) -> None:
    model = mlp()
    heads = torch.tensor([[True, True, True]])
    start = toys.parameters(model)
    teacher = {k: v + 0.3 * normal(*v.shape, seed=9) for k, v in start.items()}
    message = Taught(start, heads, teacher)
    group = []
    for k, client in enumerate(clients(model, SIZES)):
        # Masks differ from client to client, and mean nothing here.
        task = toys.client_task(3, [k % 3])
        data = with_teacher(model, message, client.data)
        group.append(Client(client.id, model, data, task, None, client.seed))
    local = Local(Distilled(0.7, 2.0))
    for client, found in zip(group, block_by(path, local, PLAIN, group, message), strict=True):
        slow = by_hand(model, message, client.data, PLAIN, client.seed, 0.7)
        assert toys.distance(found.params, slow) < 1e-12
        assert toys.distance(found.params, start) > 1e-4


def by_hand(
    model: torch.nn.Module,
    message: Taught,
    data: Examples,
    settings: Settings,
    seed: int,
    strength: float,
) -> dict[str, Tensor]:
    """Gradient steps on strength T^2 KL at T = 2 over the message's first head, written out."""
    params = {k: v.clone().requires_grad_() for k, v in message.params.items()}
    for rows in batches(len(data), settings, seed):
        own = message.heads[0]
        student = torch.func.functional_call(model, params, (data.x[rows],))[:, own] / 2
        teacher = data.extra["teacher"][rows][:, own] / 2
        p = teacher.softmax(1)
        loss = 4 * (p * (teacher.log_softmax(1) - student.log_softmax(1))).sum(1).mean()
        gradients = torch.autograd.grad(strength * loss, list(params.values()))
        params = {
            k: (v - settings.lr * g).detach().requires_grad_()
            for (k, v), g in zip(params.items(), gradients, strict=True)
        }
    return {k: v.detach() for k, v in params.items()}


def test_the_server_distils_the_mean_of_several_models() -> None:
    model = mlp()
    heads = torch.tensor([[True, True, False]])
    start = toys.parameters(model)
    others = [{k: v + normal(*v.shape, seed=s) for k, v in start.items()} for s in (1, 2)]
    data = toys.client(model, 10).data
    logits = [answers(Net(model, params), data.x) for params in others]
    settings = Settings(7, 4, 0.1, steps=7)
    message = Taught(start, heads)
    found = distilled(model, message, data, iter(logits), 2.0, settings, seed=3)
    taught = Examples(data.x, data.y, {"teacher": soft_mean(logits, heads, 2.0)})
    assert toys.distance(found, by_hand(model, message, taught, settings, 3, 1.0)) < 1e-12
    assert toys.distance(found, start) > 1e-3
    other_labels = Examples(data.x, 1 - data.y)
    again = distilled(model, message, other_labels, logits, 2.0, settings, seed=3)
    assert toys.distance(found, again) == 0.0


def test_a_model_that_is_its_own_teacher_stays() -> None:
    model = mlp()
    start, data = toys.parameters(model), toys.client(model, 10).data
    message = Taught(start, torch.ones(1, 3, dtype=torch.bool))
    logits = [answers(Net(model, start), data.x)]
    found = distilled(model, message, data, logits, 2.0, Settings(3, 4, 0.5), seed=3)
    assert toys.distance(found, start) < 1e-13


@pytest.mark.parametrize(
    ("strength", "temperature", "word"),
    [
        (-1.0, 2.0, "strength"),
        (math.inf, 2.0, "strength"),
        (math.nan, 2.0, "strength"),
        (1.0, 0.0, "temperature"),
        (1.0, math.inf, "temperature"),
        (1.0, math.nan, "temperature"),
    ],
)
def test_refuses_options(strength: float, temperature: float, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        check_distillation(strength, temperature)
