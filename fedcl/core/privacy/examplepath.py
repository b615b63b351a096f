"""By which path a program's clipped sums are computed: decided on made-up examples.

Looking at a client's own examples would make the path, and with it the last bits of what is
released, a function of them; and two engines that look at different clients might differ.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedcl.core.local import Local, check_losses
from fedcl.core.model import Net, dropouts
from fedcl.core.params import Params
from fedcl.core.privacy.bookkeeping import Path, check_separable, clipped_sum
from fedcl.core.seeds import torch_generator
from fedcl.core.task import ClientTask, Examples
from fedcl.core.training.blockmodel import strange_params
from fedcl.core.training.blocknet import SealedNet

_ROWS = 4
# Of each model the last answer: the clients of an exchange share a message and ask the same.
_LAST: WeakKeyDictionary[nn.Module, tuple[weakref.ref[Any], Hashable, Path]] = WeakKeyDictionary()


def path_of(local: Local, model: nn.Module, data: Examples, message: Any) -> Path:
    """Returns `books` where book-keeping is right for a model and a loss, else `vmap`.

    It is a function of the program, the model, the message and the form of the examples, whose
    values are not looked at. Under `vmap` each example's loss is computed alone, whatever it does.

    Args:
        local: The parts of local training.
        model: The architecture.
        data: Examples to train on.
        message: What the client received.

    Raises:
        ValueError: The model or the loss mixes examples.
    """
    columns = tuple((k, v.shape[1:], v.dtype) for k, v in data.extra.items())
    key = local.key, data.x.shape[1:], data.x.dtype, columns
    known = _LAST.get(model)
    if known is not None and known[0]() is message and known[1] == key:
        return known[2]
    check_separable(model)
    found = _tried(local, model, data, message)
    _LAST[model] = weakref.ref(message), key, found
    return found


def _tried(local: Local, model: nn.Module, data: Examples, message: Any) -> Path:
    params = {
        name: value[0]
        for name, value in strange_params(
            {
                name: torch.full_like(value, max(1, value[0].numel() if value.ndim else 1) ** -0.5)
                for name, value in message.params.items()
            },
            1,
        ).items()
    }
    first = next(iter(params.values()))
    generator = torch_generator("made-up examples")
    with torch.no_grad():
        classes = len(Net(model, params)(_made_up(data.x, generator))[0])
    batch = Examples(
        _made_up(data.x, generator),
        torch.arange(_ROWS, device=data.y.device) % classes,
        {name: _made_up(column, generator) for name, column in data.extra.items()},
    )
    everything = torch.ones(classes, dtype=torch.bool, device=first.device)
    index = torch.zeros((), dtype=torch.int64, device=first.device)
    task = ClientTask(index, index, everything, everything, everything)
    masks = [
        layer.draw(_ROWS, generator, first.dtype).to(first.device) for layer in dropouts(model)
    ]

    def losses(params: Params, places: Tensor) -> Tensor:
        net = Net(model, params, [mask.index_select(0, places) for mask in masks])
        found = local.loss(SealedNet(net, len(places)), batch.take(places), task, message)
        check_losses(found, len(places))
        return found

    places = torch.arange(_ROWS, device=first.device)
    try:
        found = clipped_sum(model, params, losses, _ROWS, 1.0).path
        if found != "books":
            return "vmap"
        together = losses(params, places).detach()
        alone = torch.cat([losses(params, place).detach() for place in places.split(1)])
    except Exception:  # whatever it is, training tells if the loss itself is at fault
        return "vmap"
    if not torch.allclose(alone, together, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ValueError(
            "the loss of an example depends on the other examples of its batch: let each value "
            "depend on its own example alone, or train without example-level privacy"
        )
    return "books"


def _made_up(column: Tensor, generator: torch.Generator) -> Tensor:
    """Returns rows of a column's shape and type: numbers in [0, 1), also valid as words."""
    drawn = torch.rand((_ROWS, *column.shape[1:]), generator=generator)
    return (drawn > 0.5 if column.dtype == torch.bool else drawn).to(column)
