"""Which weights of a model have layer inputs, and these inputs as matrices.

Projection, analytic and prototype methods need them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.task import ScenarioKind


def protected_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Returns the layers whose weights have layer inputs, by weight, in order of registration."""
    return {
        f"{name}.weight".removeprefix("."): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


Head = Literal["auto", "protect", "free"]


def guarded_layers(model: nn.Module, head: Head, scenario: ScenarioKind) -> tuple[str, ...]:
    """Returns the weights that a method keeps from forgetting.

    Args:
        model: The architecture.
        head: Whether the last layer is one of them; `auto` means in the domain-incremental
            scenario, where all tasks share its rows.
        scenario: The stream's scenario.
    """
    names = tuple(protected_layers(model))
    if head == "protect" or (head == "auto" and scenario == "domain"):
        return names
    return tuple(name for name in names if name.split(".")[-2:] != ["head", "weight"])


def input_width(layer: nn.Linear | nn.Conv2d) -> int:
    """Returns d, the length of one layer input: the columns of the weight seen as a matrix."""
    return layer.weight[0].numel()


def head_inputs(net: Net, x: Tensor) -> Tensor:
    """Returns the (n, d) features of (n, ...) inputs: what the last layer `head` gets.

    They carry gradients, and dropout where the net does. It works inside `torch.func` transforms; a
    block network refuses, so that a loss with features is trained by vmap.

    Raises:
        ValueError: The model's last layer is not called head.
    """
    head = dict(net.model.named_children()).get("head")
    if head is None:
        raise ValueError("features need a model whose last layer is named head")
    found: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        net(x)
    finally:
        handle.remove()
    return found[0].flatten(1)


def head_answers(net: Net, features: Tensor) -> Tensor:
    """Returns the (n, classes) logits that the last layer `head` makes of (n, d) features."""
    own = net.params or {}
    if "head.weight" in own:
        return F.linear(features, own["head.weight"], own.get("head.bias"))
    return cast("Tensor", net.model.get_submodule("head")(features))


def layer_inputs(model: nn.Module, params: Params, x: Tensor) -> dict[str, Tensor]:
    """Returns the input of every linear and convolution layer for inputs `x`, without dropout.

    A linear layer's inputs are (rows, d). A convolution's are its patches (im2col with the layer's
    own padding, stride and dilation), one row for each place of each example, so that the layer is
    `inputs @ W.T` with W the weight as an (out, d) matrix. The groups of a grouped convolution
    share one space: their patches are stacked.

    Args:
        model: The architecture.
        params: Parameters to run it with.
        x: (n, ...) inputs of the model.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for name, layer in protected_layers(model).items():

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            _append(found, name, _input_rows(module, inputs[0].detach()))

        handles.append(layer.register_forward_pre_hook(keep))
    try:
        with torch.no_grad():
            Net(model, params)(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def layer_signals(
    model: nn.Module, params: Params, x: Tensor, losses: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns each layer's inputs, and the gradients that losses have at its outputs.

    Both are rows as in `layer_inputs`, in the same order: with X (rows, d) the inputs and G (rows,
    out) the gradients at the outputs, `G.T @ X` is the gradient of the weight seen as an (out, d)
    matrix (of a grouped convolution: summed over its groups, each `out / groups` rows high).

    Args:
        model: The architecture.
        params: Parameters to run it with.
        x: (n, ...) inputs of the model.
        losses: (n, classes) logits to any tensor, whose sum is differentiated.
    """
    found: dict[str, Tensor] = {}
    outputs: dict[str, list[Tensor]] = {}
    handles = []
    for name, layer in protected_layers(model).items():

        def keep(
            module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name
        ) -> Tensor:
            _append(found, name, _input_rows(module, inputs[0].detach()))
            outputs.setdefault(name, []).append(output)
            return output.clone()  # what comes next may work in place

        handles.append(layer.register_forward_hook(keep))
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    try:
        with torch.enable_grad():
            value = losses(Net(model, leaves)(x)).sum()
    finally:
        for handle in handles:
            handle.remove()
    places = [(name, output) for name, given in outputs.items() for output in given]
    gradients = torch.autograd.grad(
        value, [output for _, output in places], allow_unused=True, materialize_grads=True
    )
    signals: dict[str, Tensor] = {}
    layers = protected_layers(model)
    for (name, _), gradient in zip(places, gradients, strict=True):
        module = layers[name]
        if isinstance(module, nn.Conv2d):
            grouped = gradient.flatten(2).unflatten(1, (module.groups, -1))
            rows = grouped.permute(0, 3, 1, 2).flatten(0, 2)  # of (n, groups, out, places)
        else:
            rows = gradient.flatten(0, -2)
        _append(signals, name, rows)
    return found, signals


def _input_rows(layer: nn.Module, x: Tensor) -> Tensor:
    return patches(layer, x) if isinstance(layer, nn.Conv2d) else x.flatten(0, -2)


def _append(found: dict[str, Tensor], name: str, rows: Tensor) -> None:
    found[name] = torch.cat([found[name], rows]) if name in found else rows


def patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Returns the (n * places * groups, d) patches that a convolution multiplies with its weights.

    Args:
        layer: The convolution: any kernel, padding (also `same` and the padding modes), stride,
            dilation and groups.
        x: (n, channels, height, width) inputs of the layer.
    """
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    columns = F.unfold(
        x, layer.kernel_size, dilation=layer.dilation, stride=layer.stride
    )  # (n, c*k*k, places)
    grouped: Tensor = columns.unflatten(1, (layer.groups, -1))  # (n, groups, d, places)
    return grouped.permute(0, 3, 1, 2).flatten(0, 2)


def append_one(model: nn.Module, name: str, inputs: Tensor) -> Tensor:
    """Returns layer inputs (rows, d) with a column of ones for the bias, if there is one."""
    if protected_layers(model)[name].bias is None:
        return inputs
    return torch.cat([inputs, inputs.new_ones((len(inputs), 1))], dim=1)
