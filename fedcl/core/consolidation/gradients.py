"""Sums over examples of what each one's own gradient says: the powers of single gradients.

The square of a batch's gradient is not the sum of squares: what one example pulls up and another
pulls down would cancel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from fedcl.core.model import Net
from fedcl.core.params import Params

HELD = 2**28  # bytes of single examples' gradients that are held together, if more than one is

Values = Callable[[Tensor, Tensor], Tensor]  # (n, classes) logits and (n,) labels to (n,) numbers


def gradient_powers(
    net: Net,
    x: Tensor,
    labels: Tensor,
    values: Values,
    names: Sequence[str],
    power: Literal[1, 2],
    held: int = HELD,
) -> dict[str, Tensor]:
    """Returns sums over examples of |gradient| ** power of each parameter, in float64.

    Args:
        net: The network and its parameters.
        x: (n, ...) inputs.
        labels: (n,) handed on to `values`.
        values: (n, classes) logits and (n,) labels to one number per example, whose gradient is
            meant; no example may touch another one's.
        names: Parameters that are asked for.
        power: 1 or 2.
        held: Bytes of single gradients that may be there at a time; one example's always may.
    """
    params = dict(net.params or net.model.named_parameters())
    found = _by_products(net.at(params), x, labels, values, names, power)
    rest = {name: params[name].detach() for name in names if name not in found}
    if rest:

        def one(free: Params, x: Tensor, label: Tensor) -> Tensor:
            return values(net.at({**params, **free})(x[None]), label[None])[0]

        # Recurrent layers add to hidden states in place, which vmap allows in own copies alone.
        own = any(isinstance(module, nn.RNNBase) for module in net.model.modules())
        alone = vmap(grad(one), in_dims=(0 if own else None, 0, 0))
        together = max(1, held // sum(v.numel() * v.element_size() for v in rest.values()))
        for rows, answers in zip(x.split(together), labels.split(together), strict=True):
            each = {k: v.expand(len(rows), *v.shape) for k, v in rest.items()} if own else rest
            for name, gradients in alone(each, rows, answers).items():
                value = _raised(gradients, power).sum(0).double()
                found[name] = found[name] + value if name in found else value
    return {name: found[name] for name in names}


def _raised(gradients: Tensor, power: Literal[1, 2]) -> Tensor:
    return gradients.square() if power == 2 else gradients.abs()


def _by_products(
    net: Net, x: Tensor, labels: Tensor, values: Values, names: Sequence[str], power: Literal[1, 2]
) -> dict[str, Tensor]:
    """Returns the sums for linear layers that see one row of each example.

    An example's gradient is the product g x^T there, whose entries to a power are products of
    powers: one matrix product does it, and no example's gradient is ever held.
    """
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
    handles = []
    for name, layer in _single_linears(net.model).items():

        def keep(
            module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name
        ) -> Tensor:
            calls.setdefault(name, []).append((inputs[0].detach(), output))
            return output.clone()  # what comes next may work in place

        handles.append(layer.register_forward_hook(keep))
    leaves = {k: v.detach().requires_grad_() for k, v in (net.params or {}).items()}
    try:
        with torch.enable_grad():
            total = values(net.at(leaves)(x), labels).sum()
    finally:
        for handle in handles:
            handle.remove()
    once = {n: c[0] for n, c in calls.items() if len(c) == 1 and c[0][0].shape[:-1] == (len(x),)}
    if not once:
        return {}
    signals = torch.autograd.grad(
        total, [output for _, output in once.values()], allow_unused=True, materialize_grads=True
    )
    found = {}
    for (name, (inputs, _)), signal in zip(once.items(), signals, strict=True):
        g = _raised(signal.double(), power)
        found[f"{name}weight"] = g.T @ _raised(inputs.double(), power)
        found[f"{name}bias"] = g.sum(0)
    return {name: value for name, value in found.items() if name in names}


def _single_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Returns linear layers by name with a dot, without those that share a parameter."""
    owned = [value for module in model.modules() for value in module.parameters(recurse=False)]
    owners = Counter(map(id, owned))
    return {
        f"{name}.".removeprefix("."): module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and all(owners[id(value)] == 1 for value in module.parameters())
    }
