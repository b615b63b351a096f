"""Attacks find what is in the open, and find nothing where noise hides it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.auditing.inversion import (
    class_set,
    f1,
    inverted,
    linear_input,
    neuron_inputs,
    single_label,
)
from fedcl.auditing.reconstruction import matched, mean_image, psnr
from fedcl.auditing.sketches import outside_span, unmixed
from fedcl.core.privacy.clipping import clipped
from fedcl.core.privacy.noise import gaussian, seeded_root

ROOT = seeded_root(11)


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Returns the (1797, 64) digits in [0, 1] and their labels."""
    found = load_digits()
    return torch.from_numpy(found.data / 16.0), torch.from_numpy(found.target).long()


@functools.cache
def large() -> Tensor:
    """Returns 300 digits of 28 x 28 pixels, flat."""
    small = digits()[0][:300].view(-1, 1, 8, 8)
    return F.interpolate(small, size=(28, 28), mode="bilinear").clamp(0, 1).flatten(1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double()


def gradients(net: nn.Sequential, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    loss = F.cross_entropy(net(x), y)
    names, params = zip(*net.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, params), strict=True))


def noisy(tensors: dict[str, Tensor], multiplier: float) -> dict[str, Tensor]:
    """Returns what differential privacy sends at a clip of 1."""
    return {
        name: value + gaussian(ROOT, value.shape, multiplier, name)
        for name, value in clipped(tensors, 1.0).items()
    }


def test_a_linear_layer_gives_its_input_away_until_there_is_noise() -> None:
    x, y = digits()
    net, baseline = network(), mean_image(x[100:], x[:20])
    labels, found, hidden = 0, [], []
    for i in range(20):
        given = gradients(net, x[i : i + 1], y[i : i + 1])
        found.append(psnr(linear_input(given["0.weight"], given["0.bias"]), x[i]))
        labels += single_label(given["2.bias"]) == int(y[i])
        private = noisy(given, 1.0)
        hidden.append(psnr(linear_input(private["0.weight"], private["0.bias"]), x[i]))
    assert min(found) > 100 and labels == 20
    assert np.mean(hidden) < baseline
    only = noisy(gradients(net, x[:1], y[:1]), 0.0)  # a clip alone hides nothing
    assert psnr(linear_input(only["0.weight"], only["0.bias"]), x[0]) > 100


def test_a_neuron_that_one_example_reached_gives_that_example() -> None:
    x = digits()[0][:2]
    by = torch.tensor([[0.5, 0.0, 0.2, 0.0], [0.0, -0.3, 0.1, 0.0]], dtype=torch.float64)
    found = neuron_inputs(by.T @ x, by.sum(0))
    torch.testing.assert_close(found[:2], x)
    torch.testing.assert_close(found[2], (0.2 * x[0] + 0.1 * x[1]) / 0.3)
    assert not found[3].any()
    assert not linear_input(torch.zeros(3, 4), torch.zeros(3)).any()


def test_the_classes_present_are_those_whose_bias_grew() -> None:
    x, y = digits()
    for present in ({0, 1}, {3, 5, 8}, {9}):
        rows = torch.isin(y, torch.tensor(sorted(present)))
        net = network()
        head = dict(net.named_parameters())["2.bias"]
        before = head.detach().clone()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for start in range(0, 60, 20):
            optimizer.zero_grad()
            batch = slice(start, start + 20)
            F.cross_entropy(net(x[rows][batch]), y[rows][batch]).backward()
            optimizer.step()
        found = class_set(head.detach() - before)
        assert f1(found, frozenset(present)) == 1.0
    assert f1(frozenset({1, 2}), frozenset({2, 3, 4})) == pytest.approx(0.4)
    assert f1(frozenset(), frozenset()) == 1.0 and f1(frozenset({1}), frozenset()) == 0.0


def test_a_uniform_sketch_gives_its_ten_images_away_and_a_private_gram_does_not() -> None:
    images = large()[:10].numpy()
    random = np.random.default_rng(0)
    uniform = images.T @ random.uniform(-1, 1, (10, 784))
    baseline = mean_image(large()[100:], images)
    places, quality = matched(unmixed(uniform, 10, seed=0), images)
    assert quality.mean() > 25 > baseline
    assert sorted(places) == list(range(10))
    # Each image to norm 1; symmetric noise of multiplier 1 on their Gram matrix.
    short = images / np.maximum(1.0, np.linalg.norm(images, axis=1, keepdims=True))
    drawn = np.triu(gaussian(ROOT, (784, 784), 1.0, "gram").numpy())
    private = short.T @ short + drawn + np.triu(drawn, 1).T
    _, hidden = matched(unmixed(private, 10, seed=0, starts=1), images)
    assert hidden.mean() < baseline
    # Gaussian coefficients cannot be told from their mixtures.
    mixed = images.T @ random.standard_normal((10, 784)) / math.sqrt(3)
    assert matched(unmixed(mixed, 10, seed=0, starts=1), images)[1].mean() < 20


def test_what_a_matrix_spans_tells_members_until_there_is_noise() -> None:
    rows = large().numpy()
    members, others = rows[:20], rows[20:]
    gram = members.T @ members
    for spanned in (gram, members.T @ np.random.default_rng(0).standard_normal((20, 784))):
        assert outside_span(spanned, members).max() < 1e-6 < outside_span(spanned, others).min()
    drawn = np.triu(gaussian(ROOT, (784, 784), 1.0, "gram").numpy())
    private = gram / np.square(members).sum(1).max() + drawn + np.triu(drawn, 1).T
    inside, outside = (outside_span(private, part, rank=20) for part in (members, others))
    assert abs(inside.mean() - outside.mean()) < 0.01 and inside.min() > 0.9
    exact = outside_span(np.eye(3)[:, :1], [[2.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
    np.testing.assert_allclose(exact, [0.0, 0.8], atol=1e-15)


def test_a_search_finds_an_image_by_the_direction_of_its_gradient() -> None:
    x, y = digits()[0][:1].view(1, 1, 8, 8), digits()[1][:1]
    net = network()
    net[1] = nn.Sigmoid()
    params = [value.detach() for value in net.parameters()]

    def loss(values: Sequence[Tensor], images: Tensor) -> Tensor:
        inner = F.linear(images.flatten(1), values[0], values[1]).sigmoid()
        return F.cross_entropy(F.linear(inner, values[2], values[3]), y)

    given = gradients(net, x.flatten(1), y)
    found = inverted(loss, params, list(given.values()), x.shape, 0, 300, smoothness=1e-4)
    assert psnr(found, x) > 25
    private = list(noisy(given, 1.0).values())
    hidden = inverted(loss, params, private, x.shape, 0, 300, smoothness=1e-4)
    assert psnr(hidden, x) < mean_image(digits()[0][100:], x.flatten(1))
    assert found.min() >= 0 and found.max() <= 1 and not found.requires_grad


def test_decibels_by_hand_and_the_best_match_of_all() -> None:
    assert psnr([0.1, 0.1], [0.0, 0.0]) == pytest.approx(20.0)
    assert psnr([5.0, -3.0], [1.0, 0.0]) == math.inf
    assert psnr([math.nan, 0.0], [1.0, 1.0]) == 0.0
    assert mean_image([[0.0], [1.0]], [[0.4], [0.6]]) == pytest.approx(20.0)
    random = np.random.default_rng(2)
    found, originals = random.random((4, 6)), random.random((5, 6))
    costs = [
        sum(np.square(found[i] - originals[j]).mean() for i, j in enumerate(order))
        for order in permutations(range(5), 4)
    ]
    places, quality = matched(found, originals)
    assert (10 ** (-quality / 10)).sum() == pytest.approx(min(costs))
    assert quality[2] == pytest.approx(psnr(found[2], originals[places[2]]))
    with pytest.raises(ValueError, match="more reconstructions"):
        matched(originals, found)


def test_a_sketch_of_more_than_it_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="no sketch"):
        unmixed(np.ones((3, 2)), 3, seed=0)
