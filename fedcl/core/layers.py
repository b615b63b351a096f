"""Which weights of a model have layer inputs, and these inputs as matrices.

Projection and analytic methods need them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.model import Net
from fedcl.core.params import Params


def protected_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Returns the layers whose weights have layer inputs, by weight, in order of registration."""
    return {
        f"{name}.weight".removeprefix("."): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def input_width(layer: nn.Linear | nn.Conv2d) -> int:
    """Returns d, the length of one layer input: the columns of the weight seen as a matrix."""
    return layer.weight[0].numel()


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
            value = inputs[0].detach()
            rows = patches(module, value) if isinstance(module, nn.Conv2d) else value.flatten(0, -2)
            found[name] = torch.cat([found[name], rows]) if name in found else rows

        handles.append(layer.register_forward_pre_hook(keep))
    try:
        with torch.no_grad():
            Net(model, params)(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


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
