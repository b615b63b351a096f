"""What payloads give away in closed form, checked on small cases and against the slow way."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedcl.auditing.candidates import (
    direction_images,
    gram_images,
    layer_images,
    plausible,
    sketch_images,
)
from fedcl.auditing.inversion import f1
from fedcl.auditing.labels import (
    apart,
    guessed_f1,
    guessed_labels,
    head_change,
    label_counts,
    shares_of,
    whole_counts,
)
from fedcl.auditing.reconstruction import each_mean_image, psnr, ssim
from fedcl.auditing.sketches import span_auc


def test_likely_images_come_first_and_none_twice() -> None:
    rows = [[0.5, 0.5], [2.0, 0.0], [0.0, 0.0], [0.51, 0.5], [1.05, 0.2], [math.nan, 0.3]]
    assert plausible(rows, 9).tolist() == [[0.5, 0.5], [1.0, 0.2], [1.0, 0.0]]
    assert plausible(rows, 1).tolist() == [[0.5, 0.5]]
    assert plausible(np.zeros((0, 2)), 3).shape == (0, 2)


def test_squares_of_gradients_give_an_example_that_alone_reached_an_output() -> None:
    """A diagonal Fisher matrix is no harmless number: its ratio is the squared input."""
    torch.manual_seed(5)
    x = torch.rand(2, 6, dtype=torch.float64)
    by = torch.tensor([[0.5, 0.0, 0.2], [0.0, -0.3, 0.1]], dtype=torch.float64)
    squares, ends = by.square().T @ x.square(), by.square().sum(0)
    found = layer_images(squares, ends, power=2)
    np.testing.assert_allclose(found[1:3], x, atol=1e-12)
    mixed = ((0.04 * x[0] ** 2 + 0.01 * x[1] ** 2) / 0.05).sqrt()
    np.testing.assert_allclose(found[3], mixed, atol=1e-12)


def test_a_gradient_without_a_bias_gives_inputs_but_their_size() -> None:
    x = torch.tensor([0.25, 0.0, 1.0])
    found = direction_images(torch.outer(torch.tensor([-2.0, 0.5, 0.0]), x), top=1.0)
    np.testing.assert_allclose(found[:2], [x.tolist()] * 2, atol=1e-7)
    assert not found[2].any()


def test_one_example_stands_bare_in_its_gram_matrix_and_in_any_sketch() -> None:
    random = np.random.default_rng(31)
    x = random.random(12)
    x[3] = 1.0
    name, found = gram_images(np.outer(x, x), 1, most=8, seed=0)
    assert name == "one direction"
    np.testing.assert_allclose(found[0], x, atol=1e-12)
    sketch = np.outer(x, random.standard_normal(20))
    np.testing.assert_allclose(sketch_images(sketch, 1, 0, top=1.0)[0], x, atol=1e-12)


def test_a_span_tells_members_until_it_is_everything() -> None:
    random = np.random.default_rng(32)
    members, others = random.random((4, 10)), random.random((6, 10))
    assert span_auc(members.T @ random.standard_normal((4, 10)), members, others) == 1.0
    assert span_auc(members.T @ members, members, others) == 1.0
    assert span_auc(np.eye(10), random.random((10, 10)), others) is None
    noise = random.standard_normal((10, 10))
    areas = [span_auc(noise, random.random((4, 10)), random.random((300, 10))) for _ in range(200)]
    # 4 members each: the mean of 200 areas spreads by about .29 / sqrt(4 * 200).
    assert abs(np.mean([a for a in areas if a is not None]) - 0.5) < 0.03


def test_similarity_is_the_published_formula() -> None:
    random = np.random.default_rng(33)
    x, y = random.random((2, 9, 8)), random.random((2, 9, 8))
    values = []
    for c, i, j in product(range(2), range(3), range(2)):
        a, b = (image[c, i : i + 7, j : j + 7].ravel() for image in (x, y))
        both = np.cov(a, b)
        top = (2 * a.mean() * b.mean() + 1e-4) * (2 * both[0, 1] + 9e-4)
        low = (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (both[0, 0] + both[1, 1] + 9e-4)
        values.append(top / low)
    assert ssim(x, y) == pytest.approx(np.mean(values), abs=1e-12)
    assert ssim(x, x) == pytest.approx(1.0)
    assert ssim(x[:, :6], y[:, :6]) is None
    assert each_mean_image(x[0], y).tolist() == pytest.approx([psnr(x[0], row) for row in y])


def test_shares_of_labels_come_from_the_last_bias() -> None:
    torch.manual_seed(6)
    net = nn.Linear(5, 6).double()
    x = torch.rand(40, 5, dtype=torch.float64)
    y = torch.tensor([0] * 18 + [2] * 12 + [5] * 10)
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    assert net.bias.grad is not None and net.weight.grad is not None
    shares = shares_of(-net.bias.grad, frozenset(range(6)))
    right = label_counts(y, 6)
    assert apart(shares, right) < 0.05
    assert whole_counts(shares, 40).sum() == 40
    # Without a bias the weights tell, since inputs are at least 0.
    weights = head_change(-net.weight.grad, None)
    assert weights is not None and set((weights > 0).nonzero().flatten().tolist()) == {0, 2, 5}
    assert head_change(-net.weight.grad, torch.zeros(6)) is not None
    assert head_change(None, None) is None
    assert not shares_of(-torch.ones(3), frozenset(range(3))).any()


def test_what_coins_score() -> None:
    for present, candidates in ((0, 2), (1, 1), (2, 2), (2, 5), (3, 3)):
        right = frozenset(range(present))
        values = [
            f1(frozenset(k for k, coin in enumerate(coins) if coin), right)
            for coins in product((0, 1), repeat=candidates)
        ]
        assert guessed_f1(present, candidates) == pytest.approx(np.mean(values))


def test_what_a_guess_of_labels_scores() -> None:
    # A quarter of each candidate: half of class 0 and all of 1 and 4.
    right = np.array([0.5, 0.25, 0.0, 0.0, 0.25])
    assert guessed_labels({0, 1, 2, 4}, right) == 0.75
    assert guessed_labels({1}, right) == 0.25
