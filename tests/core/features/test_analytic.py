"""Ridge regression from sums: the slow way, the published law of merging, pseudo-examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcl.core.features.analytic import (
    Correlations,
    Regressors,
    add_sums,
    balanced,
    head_of,
    ridge,
    with_head,
)
from fedcl.core.features.subspace import unpack
from fedcl.core.model import Net
from fedcl.core.task import ClientTask, Examples

CLASSES = 3
IDENTITY = nn.Sequential()
IDENTITY.add_module("head", nn.Linear(4, CLASSES).double())


def draw(rows: int, seed: int, counts: Sequence[int] = ()) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, 4), generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (rows,), generator=generator)
    if counts:
        y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Examples(x * (1 + torch.arange(4)) + y[:, None], y)


def measured(data: Examples, spread: bool = False, **options: Any) -> dict[str, Tensor]:
    some = torch.ones(CLASSES, dtype=torch.bool)
    task = ClientTask(torch.tensor(0), torch.tensor(0), some, some, some)
    return Correlations(Regressors(**options), spread)(Net(IDENTITY), data, task, None)


def joint(h: Tensor, y: Tensor, gamma: float) -> npt.NDArray[np.float64]:
    """Ridge regression by least squares on the stacked regressors: no Gram matrix."""
    rows = np.vstack([h.numpy(), gamma**0.5 * np.eye(h.shape[1])])
    hot = np.vstack([np.eye(CLASSES)[y.numpy()], np.zeros((h.shape[1], CLASSES))])
    found: npt.NDArray[np.float64] = np.linalg.lstsq(rows, hot, rcond=None)[0]
    return found


def error(found: Tensor, wanted: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found.numpy() - wanted) / np.linalg.norm(wanted))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 15), min_size=1, max_size=7).filter(any),
    st.integers(0, 10**6),
    st.sampled_from([0.01, 1.0, 30.0]),
    st.sampled_from([0, 6]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_any_split_in_any_order_gives_joint_ridge_regression(
    sizes: list[int], seed: int, gamma: float, projection: int, constant: bool, shuffle: object
) -> None:
    data = draw(sum(sizes), seed)
    options: dict[str, Any] = {"projection": projection, "seed": seed, "constant": constant}
    places = list(torch.arange(len(data)).split(sizes))
    shuffle.shuffle(places)  # type: ignore[attr-defined]
    sums: dict[str, Tensor] = {}
    for place in places:
        sums = add_sums(sums, measured(data.take(place), **options))
    h = Regressors(**options)(Net(IDENTITY), data.x)
    assert h.shape == (len(data), (projection or 4) + constant)
    assert error(ridge(sums, gamma), joint(h, data.y, gamma)) < 1e-8


def test_regressors_by_hand() -> None:
    x = draw(300, 1).x  # more than pass the network together
    ones = torch.ones(300, 1, dtype=torch.float64)
    net = Net(IDENTITY)
    assert torch.equal(Regressors()(net, x), torch.cat([x, ones], dim=1))
    assert torch.equal(Regressors(constant=False)(net, x), x)
    drawn = Regressors(projection=9, seed=3)(net, x)
    assert (drawn.shape, float(drawn.min())) == ((300, 10), 0.0)
    assert torch.equal(drawn, Regressors(projection=9, seed=3)(net, x))
    assert not torch.equal(drawn, Regressors(projection=9, seed=4)(net, x))
    # relu(x P) is linear in |x| along a line, and x P can be found from relu(x P) - relu(-x P).
    both = drawn[:, :-1] - Regressors(projection=9, seed=3)(net, -x)[:, :-1]
    p = torch.linalg.lstsq(x, both).solution
    assert torch.allclose(x @ p, both, atol=1e-9)
    wide = Regressors(projection=20_000, constant=False)(net, torch.eye(4, dtype=torch.float64))
    # An entry of relu(P) with P of variance 1/4 has the mean square 1/8.
    assert wide.square().mean(1).tolist() == pytest.approx([1 / 8] * 4, rel=0.05)


def test_a_head_without_a_bias_gets_no_constant() -> None:
    model = nn.Sequential()
    model.add_module("head", nn.Linear(4, CLASSES, bias=False).double())
    x = draw(5, 0).x
    assert torch.equal(Regressors()(Net(model), x), x)


def test_a_model_without_a_linear_head_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with pytest.raises(ValueError, match="last layer is a linear one named head"):
        head_of(model)


def test_pairwise_merging_and_taking_penalties_away_gives_the_same() -> None:
    """AFL's law of aggregation (He et al., CVPR 2025), which our sum replaces."""
    gamma, clients = 1.0, 6
    data = draw(240, 5)
    eye = torch.eye(5, dtype=torch.float64)
    weights = matrix = None
    total: dict[str, Tensor] = {}
    for place in torch.arange(len(data)).split(len(data) // clients):
        own = measured(data.take(place))
        total = add_sums(total, own)
        c = unpack(own["gram/head"]) + gamma * eye
        w = torch.linalg.inv(c) @ own["cross/head"]
        if weights is None or matrix is None:
            weights, matrix = w, c
            continue
        a, b = matrix, c
        both = torch.linalg.inv(a + b)
        ra, rb = torch.linalg.inv(a), torch.linalg.inv(b)
        weights = (eye - ra @ b + ra @ b @ both @ b) @ weights
        weights = weights + (eye - rb @ a + rb @ a @ both @ a) @ w
        matrix = a + b
    assert weights is not None and matrix is not None
    # Each client's penalty is in the sum: all but one are taken away.
    merged = torch.linalg.inv(matrix - (clients - 1) * gamma * eye) @ matrix @ weights
    assert float((merged - ridge(total, gamma)).abs().max()) < 1e-10


def test_a_solution_becomes_the_head() -> None:
    params = {"fc.weight": torch.ones(2, 2), "head.weight": torch.zeros(3, 4)}
    weights = torch.arange(15, dtype=torch.float64).reshape(5, 3)
    found = with_head({**params, "head.bias": torch.ones(3)}, weights)
    assert torch.equal(found["head.weight"], weights[:4].T.float())
    assert torch.equal(found["head.bias"], weights[4].float())
    assert torch.equal(found["fc.weight"], params["fc.weight"])
    assert "head.bias" not in with_head(params, weights[:4])
    without = with_head({**params, "head.bias": torch.ones(3)}, weights[:4])
    assert torch.equal(without["head.bias"], torch.zeros(3))


def test_a_penalty_that_rounding_hides_is_refused() -> None:
    data = draw(3, 0)  # fewer examples than regressors
    with pytest.raises(ValueError, match=r"gamma = 1e-40 is lost in the rounding.*: raise it"):
        ridge(measured(data), 1e-40)


# Pseudo-examples.


def test_expected_pseudo_examples_by_hand() -> None:
    """Class 0 has x = 1, 3 in its first feature: mean 2, variance 1, mean square 5; class 1 has
    x = 7 alone and lacks one; class 2 was never met."""
    x = torch.zeros(3, 4, dtype=torch.float64)
    x[:, 0] = torch.tensor([1.0, 3.0, 7.0])
    data = Examples(x, torch.tensor([0, 0, 1]))
    found = balanced(measured(data, spread=True), "expected")
    gram = unpack(found["gram/head"])
    assert float(gram[0, 0]) == 1 + 9 + 49 + 49
    assert float(gram[4, 4]) == 4 and float(gram[0, 4]) == 1 + 3 + 7 + 7
    assert found["cross/head"][0].tolist() == [4, 14, 0]
    assert found["cross/head"][4].tolist() == [2, 2, 0]
    # Now class 1 has three: class 0 lacks one, whose expected square is 5.
    more = Examples(torch.cat([x, x[2:], x[2:]]), torch.tensor([0, 0, 1, 1, 1]))
    found = balanced(measured(more, spread=True), "expected")
    assert float(unpack(found["gram/head"])[0, 0]) == 1 + 9 + 3 * 49 + 5
    assert found["cross/head"][0].tolist() == [6, 21, 0]


def test_drawn_pseudo_examples_are_the_expected_ones_in_the_mean() -> None:
    sums = measured(draw(210, 2, counts=(140, 60, 10)), spread=True)
    wanted = balanced(sums, "expected")
    drawn = []
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        found = balanced(sums, "drawn", generator)
        drawn.append(torch.cat([found["gram/head"], found["cross/head"].flatten()]))
    found_all = torch.stack(drawn)
    exact = torch.cat([wanted["gram/head"], wanted["cross/head"].flatten()])
    spread = found_all.std(0) / len(found_all) ** 0.5
    away = (found_all.mean(0) - exact).abs()
    assert bool((away <= 5 * spread + 1e-9).all())
    assert float(found_all.std(0).max()) > 1.0
    # The constant's own entries are no draws.
    assert float(found_all[:, 14].std()) == 0.0 and float(exact[14]) == 3 * 140


@pytest.mark.parametrize("how", ["expected", "drawn"])
def test_balanced_classes_get_no_pseudo_examples(how: str) -> None:
    sums = measured(draw(60, 3, counts=(30, 30)), spread=True)  # class 2 was never met
    found = balanced(sums, how, torch.Generator())  # type: ignore[arg-type]
    assert all(torch.equal(found[name], value) for name, value in sums.items())


def test_pseudo_examples_bring_back_a_rare_class() -> None:
    """Class 1 is one in forty and overlaps: plain ridge regression hardly ever answers it."""
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 800 + [1] * 20)
    x = torch.randn((820, 4), generator=generator, dtype=torch.float64)
    data = Examples(x + 1.5 * y[:, None], y)
    sums = measured(data, spread=True)
    h = Regressors()(Net(IDENTITY), data.x)
    recall = {
        how: float((h @ ridge(found, 1.0)).argmax(1)[800:].double().mean())
        for how, found in (("none", sums), ("expected", balanced(sums, "expected")))
    }
    assert recall["none"] < 0.7 < 0.85 < recall["expected"], recall
