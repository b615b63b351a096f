"""Views: crops and flips by hand, batches of views, and one behaviour on every path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedcl
from fedcl.core.data.augment import view_draws, viewed
from fedcl.core.errors import ConfigError
from fedcl.core.sgd import Settings, batches, visits
from tests.tiny import CNN, distance, timeless, tiny

SETTINGS = Settings(epochs=1, batch_size=8, lr=0.1)


def test_a_crop_is_the_shifted_image_with_zeros_around() -> None:
    x = torch.arange(1.0, 13.0).view(1, 1, 3, 4)
    # Shifts are the whole parts of 3 times the draws: 0 down and 2 right of a padding of 1.
    found = viewed(x, torch.tensor([[0.1, 0.9, 0.9]]), "crop", 1)
    expected = torch.tensor([[0.0, 0, 0, 0], [2, 3, 4, 0], [6, 7, 8, 0]])
    assert found.equal(expected.view(1, 1, 3, 4))


def test_the_middle_shift_changes_nothing_and_a_flip_mirrors() -> None:
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    draws = torch.tensor([[0.5, 0.5, 0.2], [0.5, 0.5, 0.7]])
    assert viewed(x, draws, "crop", 2).equal(x)
    found = viewed(x, draws, "crop_flip", 2)
    assert found[0].equal(x[0].flip(-1)) and found[1].equal(x[1])


def test_a_flipped_crop_is_the_crop_of_the_flipped_image_mirrored_back() -> None:
    x = torch.randn(4, 2, 6, 5, generator=torch.Generator().manual_seed(1))
    draws = view_draws(4, 7)
    draws[:, 2] = 0.0
    assert viewed(x, draws, "crop_flip", 3).equal(viewed(x, draws, "crop", 3).flip(-1))


@given(st.integers(0, 40), st.integers(1, 5), st.sampled_from([1, 2, 4, 8]), st.integers(0, 30))
def test_views_come_together_and_passes_stay_as_many(
    rows: int, epochs: int, views: int, limit: int
) -> None:
    settings = Settings(epochs, 8, 0.1, steps=limit or None, views=views)
    plain = Settings(epochs, 8, 0.1, steps=limit or None)
    found = visits(rows, settings, 3)
    if not limit:
        assert epochs * rows <= len(found) < epochs * rows + views or rows == 0
    assert len(found) <= len(visits(rows, plain, 3)) + views + 8
    different = found.view(-1, views)
    assert (different == different[:, :1]).all()
    steps = batches(rows, settings, 3)
    assert torch.equal(torch.cat([*steps, torch.zeros(0, dtype=torch.int64)]), found)
    for step in steps:
        # Within a pass no example comes twice: a batch has all views of some examples.
        _, counts = step.unique(return_counts=True)
        assert (counts == views).all() and len(step) <= 8
    if limit:
        assert len(steps) <= limit


def test_one_view_is_what_it_was() -> None:
    generator = fedcl.core.seeds.torch_generator(5, "batches")
    expected = torch.cat([torch.randperm(11, generator=generator) for _ in range(2)])
    assert visits(11, Settings(2, 4, 0.1), 5).equal(expected)


def test_four_views_rest_an_example_four_times_as_long() -> None:
    plain, seldom = (visits(16, Settings(4, 8, 0.1, views=v), 2) for v in (1, 4))
    assert len(plain) == len(seldom) == 64
    assert seldom[::4].sort().values.equal(torch.arange(16))


def test_draws_are_functions_of_the_client_and_the_visit() -> None:
    assert view_draws(5, 1).equal(view_draws(9, 1)[:5])
    assert not view_draws(5, 1).equal(view_draws(5, 2))
    drawn = view_draws(4000, 3)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert (drawn.mean(0) - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [12]}, {**CNN, "dropout": 0.3}])
@pytest.mark.parametrize("local", [{"augment": "crop_flip"}, {"augment": "crop", "view_batch": 4}])
@pytest.mark.parametrize("path", ["auto", "vmap", "grouped"])
def test_every_path_sees_the_same_views(model: Any, local: Any, path: str) -> None:
    changes = {f"training.local.{key}": value for key, value in local.items()}
    changes |= {"training.dtype": "float64", "training.local.epochs": 2}
    changes["training.local.padding"] = 1
    tables = {"model": model}
    serial = fedcl.run(tiny(changes, **tables))
    batched = fedcl.run(tiny(changes, **tables, engine={"name": "vectorized", "path": path}))
    assert distance(serial.params, batched.params) < 1e-9
    assert timeless(serial.costs, alike=False) == timeless(batched.costs, alike=False)
    plain = {key: value for key, value in changes.items() if "augment" not in key}
    assert distance(serial.params, fedcl.run(tiny(plain, **tables)).params) > 1e-4


def test_remembered_examples_are_seen_in_views_too() -> None:
    changes = {"training.local.augment": "crop", "training.dtype": "float64"}
    runs = [
        fedcl.run(tiny(changes, method={"name": "replay"}, engine={"name": engine}))
        for engine in ("serial", "vectorized")
    ]
    assert distance(runs[0].params, runs[1].params) < 1e-9


def test_what_cannot_be_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="must divide batch_size"):
        tiny({"training.local.view_batch": 3})
    with pytest.raises(ConfigError, match=r"'none', 'crop' or 'crop_flip'"):
        tiny({"training.local.augment": "blur"})
    flat = tiny({"training.local.augment": "crop", "dataset.features": [16]})
    with pytest.raises(ConfigError, match=r"training.local.*shifts images.*\(16,\)"):
        fedcl.run(flat)
