"""A model as a network of block layers, when it can be one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.seeds import torch_generator
from fedcl.core.training.blocklayers import BlockLayer, has_block_form
from fedcl.core.training.blockweights import Step

_FOUND: WeakKeyDictionary[nn.Module, dict[Any, BlockModel | None]] = WeakKeyDictionary()
_ROWS = 3  # rows of each client in the trial


@dataclass
class BlockModel:
    """A network of block layers.

    Attributes:
        net: The network: (clients * rows, ...) inputs to (clients * rows, classes) logits.
        layers: Its block layers by name.
    """

    net: nn.Module
    layers: Mapping[str, BlockLayer]

    def hold(self, params: Params) -> None:
        """Gives all layers (clients, ...) parameters, by their names in the model."""
        for layer in self.layers.values():
            layer.own = {kind: params[name] for kind, name in layer.names.items()}

    def begin(self, step: Step) -> None:
        """Tells every layer where training is."""
        for layer in self.layers.values():
            layer.step = step

    def end(self) -> None:
        """Drops what belonged to one block."""
        for layer in self.layers.values():
            layer.reset()


def block_model_of(model: nn.Module, params: Params, x: Tensor) -> BlockModel | None:
    """Returns a model as a network of block layers; kept, and tried out when first built.

    Args:
        model: The architecture.
        params: Parameters that are trained; only their shapes and types count.
        x: (n, ...) inputs; only their shape and type count.
    """
    known = _FOUND.setdefault(model, {})
    shapes = tuple((name, value.shape, value.dtype) for name, value in params.items())
    key = shapes, x.shape[1:], x.dtype, model.training
    if key not in known:
        net = block_model(model, params)
        known[key] = net if net is not None and _works(net, model, params, x) else None
    return known[key]


def block_model(model: nn.Module, names: Params) -> BlockModel | None:
    """Returns a model as a network of block layers, or None where a layer has no such form.

    Args:
        model: The architecture.
        names: The parameters that are trained, by name.
    """
    try:
        copied = copy.deepcopy(model)
    except RuntimeError:  # PyTorch copies no tensor that was computed from others.
        return None
    layers: dict[str, BlockLayer] = {}
    for name, module in list(copied.named_modules(remove_duplicate=False)):
        own = [kind for kind, _ in module.named_parameters(recurse=False)]
        if has_block_form(module):
            # On the device "meta" a forward pass that takes a weight past its layer fails.
            names_of = {kind: f"{name}.{kind}".removeprefix(".") for kind in own}
            layers[name] = BlockLayer(module.to("meta"), names_of)
        elif own:
            return None
    held = [name for layer in layers.values() for name in layer.names.values()]
    # A weight that two layers share has one name only.
    if sorted(held) != sorted(names):
        return None
    if "" in layers:
        return BlockModel(layers[""], layers)
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        copied.get_submodule(parent)._modules[last] = layer
    return BlockModel(copied, layers)


def strange_params(params: Params, clients: int) -> dict[str, Tensor]:
    """Returns parameters near the given ones, but other ones for each client: (clients, ...)."""
    generator = torch_generator("strange parameters")
    strange = {}
    for name, value in params.items():
        # Layers that begin with zeros must differ, too.
        size = float(value.detach().double().square().mean().sqrt().clamp(min=0.01))
        noise = torch.randn((clients, *value.shape), generator=generator, dtype=torch.float64)
        strange[name] = value.detach() + (size * noise).to(value)
    return strange


def _works(net: BlockModel, model: nn.Module, params: Params, x: Tensor) -> bool:
    """Whether two clients get from block layers what each gets from the model, and who is called.

    It is a function of the architecture alone: weights and inputs are random, and a forward pass
    that knows more of its layers than how to call them fails or answers otherwise.
    """
    trial = strange_params(
        {
            name: torch.full_like(value, max(1, value[0].numel()) ** -0.5)
            for name, value in params.items()
        },
        2,
    )
    # Within [0, 1): also valid as the rows of an embedding.
    rows = torch.rand((2 * _ROWS, *x.shape[1:]), generator=torch_generator("trial")).to(x)
    taken: dict[str, list[int]] = {name: [] for name in net.layers}

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
        taken[name].append(inputs[0].shape[:-1].numel())

    handles = [
        layer.register_forward_pre_hook(partial(count, name=name))
        for name, layer in net.layers.items()
    ]
    net.hold(trial)
    net.begin(Step(2, 0, _ROWS, rows.new_zeros(())))
    try:
        with torch.no_grad():
            expected = torch.cat(
                [
                    Net(model, {name: value[k] for name, value in trial.items()})(own)
                    for k, own in enumerate(rows.split(_ROWS))
                ]
            )
            difference = (net.net(rows) - expected).abs().max()
            works = bool(difference <= 1e-3 * expected.abs().max())
    except Exception:  # whatever it is, training tells if the model itself is at fault
        works = False
    finally:
        net.end()
        for handle in handles:
            handle.remove()
    for name, layer in net.layers.items():
        once = len(taken[name]) == 1 and taken[name][0] % (2 * _ROWS) == 0
        layer.rows = taken[name][0] // (2 * _ROWS) if once else 0
    return works
