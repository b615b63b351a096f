"""Which layers of a model change most from stage to stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedcl.core.params import Params


def layers_of(params: Params) -> dict[str, list[str]]:
    """Returns the names of each layer's parameters by the layer's name, in order."""
    found: dict[str, list[str]] = {}
    for name in params:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def relative_changes(params: Params, before: Params) -> dict[str, float]:
    """Returns sum |after - before| / sum |before| of each layer's parameters.

    Args:
        params: The model.
        before: An earlier one with the same parameters, or nothing, which gives nothing.
    """
    if not before:
        return {}

    def total(values: Sequence[Tensor]) -> float:
        return sum(float(value.double().abs().sum()) for value in values)

    return {
        layer: total([params[n] - before[n] for n in names])
        / max(total([before[n] for n in names]), 1e-30)
        for layer, names in layers_of(params).items()
    }


def chosen_layers(
    params: Params,
    before: Params,
    changes: Mapping[str, float],
    layers: Sequence[str],
    share: float,
) -> tuple[str, ...]:
    """Returns the parameters of the named layers, or of the most plastic ones.

    Args:
        params: The model now.
        before: The model at the last stage's end.
        changes: Sums of relative changes over the stages between ends, by layer.
        layers: Names of layers, or `["auto"]` for those that changed most, the present stage
            counting as far as it has come.
        share: Share of the layers that `auto` takes, at least one; the last of equal ones first.

    Raises:
        ValueError: The model has no layer of such a name.
    """
    named = layers_of(params)
    if tuple(layers) == ("auto",):
        now = relative_changes(params, before)
        # All sums are over the same stages, so that their order is that of the means.
        size = {layer: changes.get(layer, 0.0) + now[layer] for layer in named}
        ranked = sorted(reversed(named), key=size.__getitem__, reverse=True)
        layers = ranked[: max(1, round(share * len(named)))]
    for layer in layers:
        if layer not in named:
            raise ValueError(f"the model has no layer {layer!r}; it has {', '.join(named)}")
    return tuple(name for layer, names in named.items() if layer in layers for name in names)
