"""LwF: FedAvg plus distillation of the last stage's model, in exact numbers; what goes down."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedcl
from fedcl.config import Experiment
from fedcl.core.client import Client
from fedcl.core.errors import ConfigError
from fedcl.core.local import Local
from fedcl.core.losses.distillation import Taught
from fedcl.core.method import Sizes
from fedcl.core.model import Net
from fedcl.core.task import ClientTask, Examples
from fedcl.methods.lwf import LwF, WithoutForgetting
from tests.core import toys
from tests.core.blocks import EVERY, FULL, block_by, clients, mlp
from tests.tiny import distance, logits, same, scenario, stream_of, tiny, trace, watched

DOUBLE = {"training.dtype": "float64"}
MODEL = 4 * (16 * 12 + 12 + 12 * 4 + 4)  # bytes of the tiny network 16-12-4 in float32
# Every round is one step on all examples of all clients: gradient descent.
CENTRAL = {
    **DOUBLE,
    "training.cohort": 0,
    "training.local": {"name": "sgd", "lr": 0.3, "batch_size": 10_000},
}
KINDS = ("class", "task", "domain")


def lwf(changes: dict[str, Any] | None = None, *, tables: Any = None, **options: Any) -> Experiment:
    """The tiny experiment with LwF."""
    return tiny(changes, method={"name": "lwf", **options}, **(tables or {}))


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("masked", [False, True])
def test_reduces_to_fedavg_with_strength_zero(masked: bool, engine: str) -> None:
    for kind in KINDS:
        changes, tables = scenario(kind), {"engine": {"name": engine}}
        found = fedcl.run(lwf(changes, tables=tables, strength=0.0, masked=masked))
        plain = fedcl.run(tiny(changes, method={"name": "fedavg", "masked": masked}, **tables))
        assert same(dict(found.params), dict(plain.params))
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])
        assert found.summary["bytes_by_payload"] == plain.summary["bytes_by_payload"]


def test_the_first_stage_is_learnt_as_by_fedavg() -> None:
    changes, masked = {**scenario("class"), "stream.tasks": 1}, {"name": "fedavg", "masked": True}
    found, plain = fedcl.run(lwf(changes)), fedcl.run(tiny(changes, method=masked))
    assert same(dict(found.params), dict(plain.params))


# --- The loss. ---


def task(present: list[int], head: list[int]) -> ClientTask:
    masks = [torch.zeros(4, dtype=torch.bool) for _ in range(2)]
    masks[0][present] = True
    masks[1][head] = True
    return ClientTask(torch.tensor(1), torch.tensor(1), masks[0], masks[1], masks[1])


def loss_of(heads: list[list[int]], own: ClientTask, apart: bool, masked: bool = True) -> Tensor:
    """The loss of one example of class 2, with logits (0, 0, 0, 0) and a teacher's of
    (2 ln 3, 0, 2 ln 7, 0)."""
    known = torch.zeros(len(heads), 4, dtype=torch.bool)
    for row, classes in enumerate(heads):
        known[row, classes] = True
    student = torch.zeros(1, 4, dtype=torch.float64)
    teacher = torch.tensor([[2 * math.log(3), 0, 2 * math.log(7), 0]], dtype=torch.float64)
    batch = Examples(student, torch.tensor([2]), {"teacher": teacher})
    loss = WithoutForgetting(masked, 0.5, 2.0, apart)
    return loss(Net(torch.nn.Identity()), batch, own, Taught({}, known))


def kl(*shares: float) -> float:
    """T^2 KL from a uniform distribution, at T = 2, of shares that add up to more than 1."""
    p = [share / sum(shares) for share in shares]
    return 4 * sum(value * math.log(value * len(p)) for value in p)


def test_the_loss_by_hand_class_incremental() -> None:
    """Old classes 0 and 1: p = (3, 1) / 4 at T = 2; cross-entropy over the present 2 and 3."""
    own = task([2, 3], [0, 1, 2, 3])
    expected = math.log(2) + 0.5 * kl(3, 1)
    assert loss_of([[0, 1]], own, True).tolist() == pytest.approx([expected], abs=1e-14)
    unmasked = math.log(4) + 0.5 * kl(3, 1)
    assert loss_of([[0, 1]], own, True, False).tolist() == pytest.approx([unmasked], abs=1e-14)
    # A class that the federation knew and that is present again is learnt, and not held.
    assert loss_of([[0, 1, 2]], own, True).tolist() == pytest.approx([expected], abs=1e-14)


def test_the_loss_by_hand_task_incremental() -> None:
    """Each old head by itself: one of classes 0 and 2, one of 1 alone, which has nothing to say."""
    expected = math.log(1) + 0.5 * (kl(3, 7) + 0.0)
    own = task([3], [3])
    # The example's class 2 is not allowed: 1e9 for a logit that is masked away.
    found = loss_of([[0, 2], [1]], own, True).item() - 1e9
    assert found == pytest.approx(expected, abs=1e-6)
    two = loss_of([[0, 1], [2, 3]], task([2], [2]), True)
    assert two.tolist() == pytest.approx([0.5 * kl(3, 1)], abs=1e-14)


def test_the_loss_by_hand_domain_incremental() -> None:
    own = task([0, 1, 2, 3], [0, 1, 2, 3])
    expected = math.log(4) + 0.5 * kl(3, 1, 7, 1)
    assert loss_of([[0, 1, 2, 3]], own, False).tolist() == pytest.approx([expected], abs=1e-14)


@pytest.mark.parametrize("path", EVERY)
def test_blocks_are_the_loop_with_masks_by_row(path: Any) -> None:
    """Clients of different tasks share a call; the teacher is asked as each client's data are."""
    model = mlp()
    start = toys.parameters(model)
    message = Taught(
        start, torch.tensor([[True, True, False]]), {k: v + 0.1 for k, v in start.items()}
    )
    method = LwF()
    group = [
        Client(c.id, model, c.data, toys.client_task(3, [c.id % 3]), None, c.seed)
        for c in clients(model)
    ]
    local = Local(WithoutForgetting(True, 0.7, 2.0, True), data=method.taught)
    together = block_by(path, local, FULL, group, message)
    for client, found in zip(group, together, strict=True):
        (alone,) = block_by("loop", local, FULL, [client], message)
        assert toys.distance(found.params, alone.params) < 1e-12
        assert toys.distance(found.params, start) > 1e-3


# --- Whole rounds by hand. ---


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_rounds_of_the_second_stage_by_hand(kind: str, engine: str, tmp_path: Path) -> None:
    """In the first round model and teacher agree and distillation has no gradient: FedAvg's step.
    In the second one it pulls back. Both are gradient steps on the union of all examples."""
    changes = {**CENTRAL, **scenario(kind)}
    experiment = lwf(changes, tables={"engine": {"name": engine}}, strength=0.7, temperature=3.0)
    _, states = trace(experiment, tmp_path / "run")
    stream = stream_of(experiment)
    everyone = [stream.train(i, 1) for i in range(5)]
    x, y = torch.cat([d.x for d in everyone]).double(), torch.cat([d.y for d in everyone])
    old, new = {"class": ([0, 1], [2, 3]), "task": ([0, 1], [2, 3])}.get(kind, ([0, 1, 2, 3],) * 2)
    teacher = logits(states[1].params, x)[:, old] / 3
    for before, after, pulls in ((states[1], states[2], False), (states[2], states[3], True)):
        leaves = {k: v.clone().requires_grad_() for k, v in before.params.items()}
        z = logits(leaves, x)
        own = torch.nn.functional.cross_entropy(z[:, new], y - new[0])
        p, logs = teacher.softmax(1), (z[:, old] / 3).log_softmax(1)
        held = 9 * (p * (teacher.log_softmax(1) - logs)).sum(1).mean()
        assert (float(held.detach()) > 1e-4) == pulls
        gradients = torch.autograd.grad(own + 0.7 * held, list(leaves.values()))
        expected = {
            k: v - 0.3 * g for (k, v), g in zip(before.params.items(), gradients, strict=True)
        }
        assert distance(after.params, expected) < 1e-12
    assert same(dict(states[3].teacher), dict(states[3].params)), "a new stage's end, a new teacher"


def test_the_first_round_of_a_stage_has_no_gradient_of_distillation() -> None:
    """One full-batch step from the teacher itself, whatever the strength."""
    changes = {**CENTRAL, **scenario("class"), "training.rounds": 1}
    weak, strong = (fedcl.run(lwf(changes, strength=s)).params for s in (1e-3, 1e3))
    assert distance(weak, strong) < 1e-10


# --- What it costs. ---


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize(
    ("kind", "heads"), [("domain", (1, 1)), ("class", (1, 1)), ("task", (1, 2))]
)
def test_the_teacher_goes_down_where_it_is_not_the_model(
    kind: str, heads: tuple[int, int], engine: str
) -> None:
    """The first round of a stage sends the teacher as its model; later ones send it besides. A
    head is a byte for each of the classes; clients look once more at each own example."""
    changes = {**scenario(kind), "stream.tasks": 3, "training.rounds": 3, "dataset.classes": 6}
    model = MODEL + 4 * 2 * 13
    record, watch = watched(lwf(changes, tables={"engine": {"name": engine}}))
    plain = fedcl.run(tiny(changes, engine={"name": engine}))
    stream = stream_of(lwf(changes))
    asked = {(r.position.stage, r.position.round): ids for r, ids in watch.requests}
    for number in range(9):
        stage, turn = divmod(number, 3)
        rows = [row for row in record.costs if row["round"] == number + 1]
        down = {row["payload"]: row["bytes"] for row in rows if row["direction"] == "down"}
        later = {"heads": 3 * 6 * heads[stage - 1]} if stage else {}
        if stage and turn:
            later["teacher"] = 3 * model
        assert down == {"model": 3 * model, **later}
        (work,) = [row for row in rows if row["direction"] == ""]
        own = sum(len(stream.train(id, stage)) for id in asked[stage, turn])
        assert work["examples"] == (2 if stage else 1) * own
    assert record.summary["bytes_by_payload"]["up"] == plain.summary["bytes_by_payload"]["up"]
    assert record.summary["steps"] == plain.summary["steps"]


def test_needs_are_the_teacher_heads_and_answers() -> None:
    sizes = Sizes(MODEL, {"head.weight": (12, 4)}, {}, 0, 30, 5, 0, 4)
    needs = LwF().needs(sizes)
    assert (needs.state, needs.client) == (MODEL + 5 * 4, 30 * 4 * 4)
    assert (needs.memory, needs.reply, needs.training) == (0, 0, "plain")
    assert LwF(strength=0.0).needs(sizes).state == 0


# --- What it is for. ---


def test_it_forgets_less_than_fedavg() -> None:
    changes = {**scenario("class"), "training.rounds": 6, "training.cohort": 0}
    found, plain = fedcl.run(lwf(changes)), fedcl.run(tiny(changes))
    assert found.summary["average_accuracy"] > plain.summary["average_accuracy"] + 0.2
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.2


@pytest.mark.parametrize("order", ["shuffled", "staggered"])
@pytest.mark.parametrize("kind", KINDS)
def test_clients_with_orders_of_their_own_are_taught(kind: str, order: str) -> None:
    changes = {**DOUBLE, **scenario(kind), "stream.order": {"name": order}}
    runs = [
        fedcl.run(lwf(changes, strength=s, masked=False, tables={"engine": {"name": e}})).params
        for s, e in ((1.0, "serial"), (1.0, "vectorized"), (0.0, "serial"))
    ]
    assert distance(runs[0], runs[1]) < 1e-9
    assert distance(runs[0], runs[2]) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -0.1}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lwf(**options)
