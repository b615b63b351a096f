"""Sums of clipped rows' parts without writing out a part, for measures whose norms are known.

The part of an example with layer inputs r is a Gram matrix, whose norm is |r|^2: so a batch's sum
of clipped parts is one product of the inputs with themselves, weighed. All norms are in float64.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.features.analytic import Correlations
from fedcl.core.features.layers import append_one, layer_inputs, protected_layers
from fedcl.core.features.moments import InputMoments
from fedcl.core.features.subspace import pack, residual
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.task import ClientTask, Examples

Factors = Callable[[Tensor], Tensor]


@singledispatch
def weighed(
    measure: Any, net: Net, rows: Examples, task: ClientTask, message: Any, factors: Factors
) -> Params | None:
    """Returns the sums over rows of factor times part, or None where the norms are not known.

    A row whose factor is 0 adds zeros, whatever it holds. Others may register their measures.

    Args:
        measure: The measure of a statistic.
        net: The network with the message's parameters.
        rows: Examples.
        task: As the measure gets it.
        message: As the measure gets it.
        factors: (n,) float64 squared norms of the rows' parts -> (n,) float64 factors.
    """
    return None


@weighed.register
def _(
    measure: InputMoments,
    net: Net,
    rows: Examples,
    task: ClientTask,
    message: Any,
    factors: Factors,
) -> Params | None:
    n = len(rows)
    if not n or not used_once(net, rows.x):
        return None
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    squares = rows.x.new_zeros(n, dtype=torch.float64)
    for name, x in layer_inputs(net.model, net.params or {}, rows.x).items():
        if name not in message.layers:
            continue
        x = append_one(net.model, name, x.double()) if measure.biases else x.double()
        rest = residual(x, message.basis.get(name)).reshape(n, -1, x.shape[1])
        sizes = torch.stack([rest.new_ones(n), _sizes(x.reshape(n, -1)), _sizes(rest)])
        squares = squares + gram_squares(rest) + sizes.square().sum(0)
        layers[name] = rest, sizes
    own = factors(squares)
    found: dict[str, Tensor] = {}
    for name, (rest, sizes) in layers.items():
        kept = torch.where(own[:, None, None] > 0, rest, 0.0)
        scaled = (kept * own[:, None, None]).flatten(0, 1)
        found[f"gram/{name}"] = pack(kept.flatten(0, 1).T @ scaled)
        three = torch.where(own > 0, sizes, 0.0) @ own
        found[f"norms/{name}"] = torch.cat([three, three.new_zeros(1)])
    return found


@weighed.register
def _(
    measure: Correlations,
    net: Net,
    rows: Examples,
    task: ClientTask,
    message: Any,
    factors: Factors,
) -> Params | None:
    h = measure.regressors(net, rows.x)
    hot = F.one_hot(rows.y, len(task.present)).to(h)
    squares = gram_squares(h[:, None]) + _sizes(h)
    if measure.spread:
        squares = squares + 1.0 + h.square().square().sum(1)
    own = factors(squares)[:, None]
    h, hot = torch.where(own > 0, h, 0.0), hot * own
    found = {"gram/head": pack(h.T @ (h * own)), "cross/head": h.T @ hot}
    if measure.spread:
        found |= {"counts/head": hot.sum(0), "squares/head": h.square().T @ hot}
    return found


def gram_squares(rows: Tensor) -> Tensor:
    """Returns the (n,) squared norms of the packed Gram matrices of (n, places, d) rows.

    Packed, an entry off the diagonal counts once and not twice.
    """
    if rows.shape[1] == 1:
        full = _sizes(rows).square()
    else:
        small = rows if rows.shape[1] <= rows.shape[2] else rows.mT
        full = torch.stack([(one @ one.mT).square().sum() for one in small])
    return (full + rows.square().sum(1).square().sum(1)) / 2


def used_once(net: Net, x: Tensor) -> bool:
    """Returns whether a model passes each of its layers at most once, so that rows keep apart."""
    calls: Counter[str] = Counter()
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: calls.update([name]))
        for name, layer in protected_layers(net.model).items()
    ]
    try:
        with torch.no_grad():
            net(torch.zeros_like(x[:1]))
    finally:
        for handle in handles:
            handle.remove()
    return max(calls.values(), default=0) <= 1


def _sizes(rows: Tensor) -> Tensor:
    """Returns the (n,) squared norms of (n, ...) rows."""
    return rows.flatten(1).square().sum(1)
