"""Walking the tensors of nested values."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedcl.core.client import Model, Reply
from fedcl.core.task import Examples
from fedcl.core.tree import bytes_by_kind, move, nbytes, settle, tensors

CPU = torch.device("cpu")
META = torch.device("meta")


@dataclass(frozen=True)
class Message:
    params: dict[str, Tensor]
    basis: dict[str, Tensor] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    strength: float = 0.5


def nested() -> dict[Any, Any]:
    rows = Examples(torch.ones(2, 3), torch.tensor([0, 1]), {"w": torch.ones(2)})
    message = Message({"w": torch.ones(5)}, {"w": torch.ones(4, 2, dtype=torch.float64)}, ("w",))
    return {"rows": rows, 3: (message, [torch.ones(1, dtype=torch.bool), None]), "n": 1.5}


def test_tensors_come_in_the_order_of_fields_and_keys() -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors(nested())]
    assert shapes == [(2, 3), (2,), (2,), (5,), (4, 2), (1,)]
    assert list(tensors("none")) == list(tensors(None)) == list(tensors(Message)) == []


def test_bytes_of_everything() -> None:
    assert nbytes(nested()) == 24 + 16 + 8 + 20 + 64 + 1
    assert nbytes({"a": 3}) == 0


def test_moving_to_where_all_are_gives_the_value_itself() -> None:
    value = nested()
    assert move(value, CPU) is value
    assert move((), CPU) == ()


def test_moving_moves_every_tensor_and_keeps_the_rest() -> None:
    value = nested()
    moved = move(value, META)
    assert all(tensor.device == META for tensor in tensors(moved))
    assert [t.shape for t in tensors(moved)] == [t.shape for t in tensors(value)]
    assert list(moved) == ["rows", 3, "n"]
    assert isinstance(moved["rows"], Examples)
    message, pair = moved[3]
    assert isinstance(moved[3], tuple)
    assert (message.layers, message.strength, pair[1], moved["n"]) == (("w",), 0.5, None, 1.5)
    assert isinstance(pair, list)
    # The original is left alone.
    assert all(tensor.device == CPU for tensor in tensors(value))


def test_moving_keeps_the_parts_that_are_there_already() -> None:
    here, there = torch.ones(2), torch.ones(2, device=META)
    mixed = move({"a": {"x": here}, "b": there}, META)
    assert mixed["b"] is there


def test_settling_changes_layout_and_nothing_else() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    value = {"t": base.T, "row": base[1], "whole": base}
    settled = settle(value, CPU)
    assert all(torch.equal(settled[key], value[key]) for key in value)
    assert all(t.is_contiguous() and t.data_ptr() % 64 == 0 for t in tensors(settled))
    assert settled["whole"] is base
    assert settle(settled, CPU) is settled


def test_bytes_of_a_message_by_kind_of_payload() -> None:
    message = Message({"w": torch.ones(5)}, {"w": torch.ones(4, 2)}, ("w",))
    assert bytes_by_kind(message) == {"model": 20, "basis": 32}
    assert bytes_by_kind(Model({"w": torch.ones(2, dtype=torch.float64)})) == {"model": 16}
    assert bytes_by_kind(Message({})) == {}
    assert bytes_by_kind({"w": torch.ones(3)}) == {"message": 12}
    assert bytes_by_kind(None) == {}
    assert bytes_by_kind(Reply({"a": torch.ones(1)}, state=torch.ones(2))) == {
        "tensors": 4,
        "state": 8,
    }
