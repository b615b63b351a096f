"""Plasticity of layers, by hand."""

from __future__ import annotations

import pytest
import torch

from fedcl.core.consolidation.plasticity import chosen_layers, layers_of, relative_changes

BEFORE = {
    "a.weight": torch.tensor([[1.0, -1.0]]),
    "a.bias": torch.tensor([2.0]),
    "b.weight": torch.tensor([[4.0, 4.0]]),
    "scale": torch.tensor([1.0]),
    "head.weight": torch.zeros(1, 2),
}
AFTER = {
    "a.weight": torch.tensor([[1.5, -1.0]]),
    "a.bias": torch.tensor([1.5]),
    "b.weight": torch.tensor([[3.0, 5.0]]),
    "scale": torch.tensor([1.0]),
    "head.weight": torch.zeros(1, 2),
}


def test_layers_are_parameters_with_a_common_name() -> None:
    assert layers_of(BEFORE) == {
        "a": ["a.weight", "a.bias"],
        "b": ["b.weight"],
        "": ["scale"],
        "head": ["head.weight"],
    }


def test_relative_changes_by_hand() -> None:
    """a: (0.5 + 0.5) / 4; b: 2 / 8; a layer of zeros that stays has no change."""
    assert relative_changes(AFTER, BEFORE) == {"a": 0.25, "b": 0.25, "": 0.0, "head": 0.0}
    assert relative_changes(AFTER, {}) == {}


def test_the_most_plastic_layers_are_chosen() -> None:
    a, b = ("a.weight", "a.bias"), ("b.weight",)
    assert chosen_layers(AFTER, BEFORE, {"a": 0.1}, ("auto",), 0.25) == a
    assert chosen_layers(AFTER, BEFORE, {"b": 0.1}, ("auto",), 0.25) == b
    assert chosen_layers(AFTER, BEFORE, {}, ("auto",), 0.25) == b, "the last of equal ones"
    assert chosen_layers(AFTER, BEFORE, {}, ("auto",), 0.5) == (*a, *b)
    assert chosen_layers(AFTER, BEFORE, {"head": 9.0}, ("auto",), 0.01) == ("head.weight",)
    assert chosen_layers(AFTER, BEFORE, {}, ("auto",), 1.0) == tuple(BEFORE)


def test_named_layers_are_chosen_in_the_models_order() -> None:
    assert chosen_layers(AFTER, BEFORE, {}, ("head", "a"), 0.1) == (
        "a.weight",
        "a.bias",
        "head.weight",
    )
    with pytest.raises(ValueError, match="no layer 'fc9'; it has a, b"):
        chosen_layers(AFTER, BEFORE, {}, ("fc9",), 0.1)
