"""Importance of parameters: its measures by hand, its pull, and sums over clients."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.assembly import build_site
from fedcl.core.batch import run_batched
from fedcl.core.block import Batching
from fedcl.core.client import Client
from fedcl.core.consolidation.elastic import grown_importance, guarded_parameters
from fedcl.core.consolidation.gradients import HELD
from fedcl.core.consolidation.importance import (
    ROWS,
    OutputSensitivity,
    Question,
    SquaredGradients,
    Weighted,
    WeightedPull,
    importance_needs,
    weighted,
)
from fedcl.core.local import Local, masked_logits
from fedcl.core.model import Net
from fedcl.core.request import Position, Request
from fedcl.core.sgd import Settings, train_one
from fedcl.core.statistic import Statistic
from fedcl.core.task import ClientTask, Examples
from fedcl.methods.l2 import Anchored, Pull
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from tests.core import toys
from tests.core.blocks import block_by
from tests.tiny import CNN, distance, scenario, tiny

PATHS: tuple[Any, ...] = ("fused", "vmap", "loop")


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ask(measure: Any, weight: Any, x: Any, y: list[int], head: list[int] | None = None) -> Any:
    """Measures a linear layer without bias."""
    weight = double(weight)
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    task = toys.client_task(len(weight), head)
    net = Net(model, {"weight": weight})
    rows = Examples(double(x), torch.tensor(y))
    return measure(net, rows, task, Question(net.params or {}, ("weight",)))


# --- Measures by hand. ---


def test_squared_gradients_of_logistic_regression() -> None:
    """p = (1/4, 3/4) at x = 1 and W = (0, log 3): g = (p - onehot) x. For y = 0 its squares are
    (9/16, 9/16), for y = 1 (1/16, 1/16); x = 2 with y = 1 has p = (1/10, 9/10) and 4/100 each."""
    found = ask(SquaredGradients(), [[0.0], [math.log(3)]], [[1.0], [1.0], [2.0]], [0, 1, 1])
    assert float(found["count/n"]) == 3.0
    expected = 9 / 16 + 1 / 16 + 4 / 100
    assert found["fisher/weight"].flatten().tolist() == pytest.approx([expected] * 2, abs=1e-15)


def test_sampled_labels_give_the_fisher_information() -> None:
    """Draws 1/8, 3/8, 5/8, 7/8 meet the classes as often as p = (1/4, 3/4) says, so that the mean
    is the expectation p0 p1 x^2 = 3/16, whatever the examples' own labels are."""
    model = nn.Linear(1, 2, bias=False).double()
    net = Net(model, {"weight": double([[0.0], [math.log(3)]])})
    draws = {"draws": double([[0.125], [0.375], [0.625], [0.875]])}
    for label in (0, 1):
        rows = Examples(double([[1.0]] * 4), torch.full((4,), label), draws)
        question = Question(net.params or {}, ("weight",))
        found = SquaredGradients("sampled")(net, rows, toys.client_task(2), question)
        assert (found["fisher/weight"] / 4).flatten().tolist() == pytest.approx([3 / 16] * 2)


def test_output_sensitivity_of_a_linear_layer() -> None:
    """||Wx||^2 has the gradient 2 (Wx) x^T. W = ((1, 2), (0, -1)): x = (1, 1) gives Wx = (3, -1)
    and sizes ((6, 6), (2, 2)); x = (-1, 0) gives (-1, 0) and ((2, 0), (0, 0))."""
    weight = [[1.0, 2.0], [0.0, -1.0]]
    found = ask(OutputSensitivity(), weight, [[1.0, 1.0], [-1.0, 0.0]], [0, 0])
    assert found["sensitivity/weight"].tolist() == [[8.0, 6.0], [2.0, 2.0]]
    assert float(found["count/n"]) == 2.0


def test_output_sensitivity_looks_at_no_label() -> None:
    found = [
        ask(OutputSensitivity(), [[1.0, 2.0], [0.5, -1.0]], [[1.0, 3.0]], y) for y in ([0], [1])
    ]
    assert torch.equal(*(sums["sensitivity/weight"] for sums in found))


@pytest.mark.parametrize("measure", [SquaredGradients(), OutputSensitivity()])
def test_classes_that_are_not_compared_have_no_importance(measure: Any) -> None:
    weight = [[1.0, 2.0], [0.5, -1.0], [0.3, 0.1], [0.2, 0.4]]
    (found,) = [
        value
        for name, value in ask(measure, weight, [[1.0, 3.0]], [2], head=[0, 2]).items()
        if name != "count/n"
    ]
    assert (found.sum(1) > 0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("kind", [SquaredGradients, OutputSensitivity])
def test_masked_measures_take_the_present_classes(kind: Any) -> None:
    model = nn.Linear(2, 3, bias=False).double()
    net = Net(model, toys.parameters(model))
    task = toys.client_task(3)
    task = ClientTask(task.index, task.task, torch.tensor([True, False, True]), *[task.head] * 2)
    rows = Examples(double([[1.0, 3.0]]), torch.tensor([2]))
    (found,) = [
        value
        for name, value in kind(masked=True)(
            net, rows, task, Question(net.params or {}, ("weight",))
        ).items()
        if name != "count/n"
    ]
    assert (found.sum(1) > 0).tolist() == [True, False, True]


# --- Over clients. ---


def slow(model: nn.Module, params: Any, client: Client, fisher: bool) -> dict[str, Tensor]:
    """One backward pass for each example."""
    sums = {name: torch.zeros_like(value) for name, value in params.items()}
    for row in range(len(client.data)):
        one = client.data.part(row, row + 1)
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        logits = Net(model, leaves)(one.x)
        if fisher:
            value = F.cross_entropy(masked_logits(logits, client.task.head), one.y)
        else:
            value = logits[:, client.task.head].square().sum()
        gradients = torch.autograd.grad(value, list(leaves.values()))
        for own, g in zip(sums.values(), gradients, strict=True):
            own += g.square() if fisher else g.abs()
    return sums


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [12]}, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("fisher", [True, False])
def test_sums_over_uneven_clients_are_those_of_one_example_after_the_other(
    model: dict[str, Any], fisher: bool
) -> None:
    changes = {
        **scenario("class"),
        "training.dtype": "float64",
        "stream.clients": 6,
        "stream.order": {"name": "shuffled"},
    }
    site = build_site(tiny(changes, model=model))
    params = {name: value.detach() for name, value in site.model.named_parameters()}
    measure = SquaredGradients() if fisher else OutputSensitivity()
    statistic = Statistic(measure, "importance", exact=("count",), rows=7)
    request = Request(Position(0, 0, 0), statistic, Question(params, tuple(params)), False)
    clients = [client for client in site.clients(request, range(6), {}) if len(client.data)]
    ids = [client.id for client in clients]
    expected = {name: torch.zeros_like(value) for name, value in params.items()}
    for client in clients:
        for name, value in slow(site.model, params, client, fisher).items():
            expected[name] += value
    for result in (site.loop(request, ids, {}), run_batched(site, request, ids, {}, Batching())):
        assert result.total is not None
        total = dict(result.total.total)
        assert float(total.pop("count/n")) == sum(len(client.data) for client in clients)
        kind = "fisher" if fisher else "sensitivity"
        found = {name.removeprefix(f"{kind}/"): value for name, value in total.items()}
        scale = max(float(value.max()) for value in expected.values())
        assert distance({name: found[name] for name in expected}, expected) < 1e-12 * scale


def test_importance_is_the_mean_over_examples_and_old_ones_fade() -> None:
    sums = {"count/n": double(4.0), "fisher/a": double([2.0, 6.0]), "other/a": double([9.0, 9.0])}
    first = grown_importance({}, sums, "fisher")
    assert {name: value.tolist() for name, value in first.items()} == {"a": [0.5, 1.5]}
    second = grown_importance({"a": double([4.0, 0.0])}, sums, "fisher", decay=0.25)
    assert second["a"].tolist() == [1.5, 1.5]


# --- The pull. ---


def quadratic(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """The loss of each example is sum_i h_i / 2 (theta_i - x_i)^2, with h = (2, 0.5)."""
    assert net.params is not None
    return 0.5 * ((net.params["weight"][0] - batch.x).square() * double([2.0, 0.5])).sum(1)


def two_parameters(importance: list[float], start: list[float]) -> tuple[Client, Weighted]:
    """One client whose two examples have the mean (1, -3), and anchor (4, -1)."""
    model = nn.Linear(2, 1, bias=False).double()
    examples = Examples(double([[0.0, -2.0], [2.0, -4.0]]), torch.zeros(2, dtype=torch.int64))
    client = Client(0, model, examples, toys.client_task(2), None, seed=1)
    params, anchor, factors = (
        {"weight": double([values])} for values in (start, [4.0, -1.0], importance)
    )
    return client, Weighted(params, anchor, factors)


@pytest.mark.parametrize("path", ["loop", "vmap"])
def test_one_step_by_hand(path: Any) -> None:
    """theta = (2, 2): g = (2 (2 - 1), 0.5 (2 + 3)) = (2, 2.5). With importance (3, 0) the change is
    -0.1 (2 + 3 (2 - 4), 2.5) = (0.4, -0.25)."""
    client, message = two_parameters([3.0, 0.0], [2.0, 2.0])
    (one,) = block_by(
        path, Local(quadratic, penalty=WeightedPull()), Settings(1, 2, 0.1), [client], message
    )
    assert one.params["weight"][0].tolist() == pytest.approx([2.4, 1.75], abs=1e-15)


def test_the_fixed_point_of_a_quadratic_loss() -> None:
    """(h_i theta_1 + c_i theta*_i) / (h_i + c_i), number by number."""
    client, message = two_parameters([3.0, 0.25], [0.0, 0.0])
    found = train_one(
        Local(quadratic, penalty=WeightedPull()), Settings(400, 2, 0.2), client, message
    ).params["weight"][0]
    expected = [(2 * 1 + 3 * 4) / 5, (0.5 * -3 + 0.25 * -1) / 0.75]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_even_importance_is_the_pull_of_l2(path: Any) -> None:
    torch.manual_seed(1)
    model = Mlp((8, 5)).build((6,), 3).double()
    clients = [toys.client(model, rows, id=k) for k, rows in enumerate((7, 3))]
    params = toys.parameters(model)
    anchor = {name: value + 0.3 for name, value in params.items()}
    even = {name: torch.full_like(value, 0.7) for name, value in params.items()}
    options = Settings(2, 3, 0.1)
    ours = block_by(
        path,
        Local(quadratic_free, WeightedPull()),
        options,
        clients,
        Weighted(params, anchor, even),
    )
    theirs = block_by(
        path, Local(quadratic_free, Pull(0.7)), options, clients, Anchored(params, anchor)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert toys.distance(a.params, b.params) < 1e-14
        assert a.loss == pytest.approx(b.loss, abs=1e-13)


def quadratic_free(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Cross-entropy of all classes."""
    return F.cross_entropy(net(batch.x), batch.y, reduction="none")


def test_a_cap_keeps_steps_from_overshooting() -> None:
    """lr (h + c) must stay below 2: c = 100 diverges at lr = 0.2, capped at 5 it has the fixed
    point of 5; what is below the cap is as it was."""
    importance = {"weight": double([[50.0, 0.25]])}
    client, message = two_parameters([0.0, 0.0], [0.0, 0.0])
    local, options = Local(quadratic, penalty=WeightedPull()), Settings(400, 2, 0.2)
    ends = []
    for cap in (math.inf, 5.0):
        sent = weighted(message.params, message.anchor, importance, 2.0, cap)
        assert sent.importance["weight"].tolist() == [[min(100.0, cap), 0.5]]
        ends.append(train_one(local, options, client, sent).params["weight"][0].tolist())
    assert not math.isfinite(ends[0][0]) or abs(ends[0][0]) > 1e6
    expected = [(2 * 1 + 5 * 4) / 7, (0.5 * -3 + 0.5 * -1) / 1.0]
    assert ends[1] == pytest.approx(expected, abs=1e-12)


def test_factors_travel_in_the_type_of_the_model() -> None:
    params = {"a": torch.ones(2), "b": torch.ones(1)}
    sent = weighted(params, {"a": torch.zeros(2)}, {"a": double([1e-60, 3.0])}, 1.0, 2.0)
    assert sent.importance["a"].dtype == torch.float32
    assert sent.importance["a"].tolist() == [0.0, 2.0]


# --- What is guarded, and what it takes. ---


@pytest.mark.parametrize("kind", ["domain", "class", "task"])
@pytest.mark.parametrize("head", ["auto", "protect", "free"])
def test_all_but_a_free_head_is_guarded(
    kind: Any, head: Literal["auto", "protect", "free"]
) -> None:
    model = Cnn((4,), hidden=6, groups=2).build((1, 6, 6), 3)
    everything = {name for name, _ in model.named_parameters()}
    protected = head == "protect" or (head == "auto" and kind == "domain")
    found = set(guarded_parameters(model, head, kind))
    assert everything - found == (set() if protected else {"head.weight", "head.bias"})


def test_needs_of_products_and_of_single_gradients() -> None:
    """A network 6-8-3 with biases needs no single gradients; one with convolutions does."""
    mlp = importance_needs(
        4 * 83, 4, {"a.weight": (6, 8), "b.weight": (8, 3)}, {"a.weight": 1, "b.weight": 1}
    )
    outputs = ROWS * (4 * (6 + 16 + 8 + 6) + 32 * 22)
    assert mlp == {
        "state": 12 * 83,
        "server": 48 * 83,
        "client": outputs + 16 * 83,
        "reply": 4 * 83 + 8,
    }
    layers, rows = {"a.weight": (9, 4), "b.weight": (8, 3)}, {"a.weight": 36, "b.weight": 1}
    cnn = importance_needs(4 * 67, 4, layers, rows)
    outputs = ROWS * (4 * (36 * 17 + 14) + 32 * 36 * 17)
    assert cnn["client"] == outputs + 2 * ROWS * 4 * (67 - 24) + 16 * 67
    large = importance_needs(2**27, 4, layers, rows)
    assert large["client"] == outputs + 2 * max(HELD, 2**27 - 96) + 16 * 2**25
