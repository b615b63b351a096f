"""Elastic consolidation: parameters are pulled to their last values as hard as they matter.

What EWC and MAS share, whatever the measure of importance: at a stage's end importances are summed
over all members, and in every later round they weigh a pull to the model of that moment.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from fedcl.core.client import Model
from fedcl.core.consolidation.importance import Consolidated, Question, WeightedPull, weighted
from fedcl.core.features.layers import Head, guarded_layers, protected_layers
from fedcl.core.features.spectra import significant
from fedcl.core.federation import Federation
from fedcl.core.local import Loss
from fedcl.core.params import Params
from fedcl.core.statistic import Statistic
from fedcl.core.task import ScenarioKind


def guarded_parameters(model: nn.Module, head: Head, scenario: ScenarioKind) -> tuple[str, ...]:
    """Returns a model's parameters, those of the last layer only as `guarded_layers` has it."""
    free = protected_layers(model).keys() - set(guarded_layers(model, head, scenario))
    layers = {name.rpartition(".")[0] for name in free}
    names = (name for name, _ in model.named_parameters())
    return tuple(name for name in names if name.rpartition(".")[0] not in layers)


def grown_importance(
    old: Params, sums: Params, kind: str, decay: float = 1.0, noise: float = 0.0
) -> dict[str, Tensor]:
    """Returns `decay * old` plus the mean over all examples of what was measured, in float64.

    What is measured may be noisy: below 0 nothing matters, and a count is of one example at least.

    Args:
        old: Importance so far; without any it is 0.
        sums: Sums over clients, with `count/n`.
        kind: What was measured: the tensors `kind/<parameter>`.
        decay: How much of the old one stays.
        noise: Standard deviation of the noise in each number: what it may have made up counts as 0.
    """
    count = sums["count/n"].double().clamp(min=max(1.0, 3.0 * noise))
    new = {
        name.removeprefix(f"{kind}/"): significant(value.double().clamp(min=0.0), noise) / count
        for name, value in sums.items()
        if name.startswith(f"{kind}/")
    }
    return {name: decay * old[name] + value if old else value for name, value in new.items()}


def check_pull(strength: float, cap: float) -> None:
    """Raises ValueError for factors that no pull has."""
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength must be at least 0 and finite, not {strength}")
    if not cap > 0:
        raise ValueError(f"cap must be above 0, not {cap}")


def pulled_change(
    state: Consolidated, fed: Federation, loss: Loss, strength: float, cap: float
) -> Params:
    """Returns the mean change of the cohort, which is pulled if there is an anchor."""
    if not state.anchor:
        return fed.aggregate(fed.local(loss), Model(state.params)).mean
    message = weighted(state.params, state.anchor, state.importance, strength, cap)
    return fed.aggregate(fed.local(loss, penalty=WeightedPull()), message).mean


def consolidated(
    state: Consolidated,
    fed: Federation,
    statistic: Statistic,
    names: tuple[str, ...],
    decay: float = 1.0,
) -> Consolidated:
    """Returns the state after a stage: its importances added, the present model as the anchor.

    Args:
        state: The state before.
        fed: The federation, whose members are all asked.
        statistic: Measures importance; its name is the kind of its sums.
        names: Parameters that are pulled; without any the state stays.
        decay: How much of the old importance stays.
    """
    if not names:
        return state
    found = fed.aggregate(statistic, Question(state.params, names), clients=fed.members)
    importance = grown_importance(state.importance, found.sum, statistic.name, decay, found.noise)
    anchor = {name: state.params[name] for name in names}
    return replace(state, anchor=anchor, importance=importance)
