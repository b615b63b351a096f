"""Privacy against accuracy against forgetting, over several groups of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from fedcl.reporting.group_figures import legend_below, marking
from fedcl.reporting.groups import Estimate
from fedcl.reporting.style import WIDTH, accuracy_axis, page, png, whole_ticks


@png
def bounds(above: Sequence[float], below: Sequence[float]) -> Figure:
    """Draws epsilon after each stage: what accounting proves at most, what audits found at least.

    Args:
        above: By stage; those without a bound are left out.
        below: By stage; empty where no audit ran.
    """
    figure = page(WIDTH, 3.4)
    axes = figure.add_subplot()
    known = [(stage, value) for stage, value in enumerate(above, 1) if math.isfinite(value)]
    axes.plot(*zip(*known, strict=True), label="at most, by accounting", **marking(0))
    if below:
        stages = range(1, len(below) + 1)
        axes.plot(stages, below, label="at least, by canaries", **marking(1))
        if len(below) == len(above) == len(known):
            axes.fill_between(stages, below, [v for _, v in known], alpha=0.1, linewidth=0)
    axes.set(xlabel="after stage", ylabel="ε", ylim=(0, None))
    whole_ticks(axes)
    legend_below(figure, axes)
    return figure


@dataclass(frozen=True)
class Spending:
    """One group of runs of equal settings.

    Attributes:
        epsilon: What it spends; infinite without a bound.
        accuracy: Average accuracy, a fraction.
        forgetting: Forgetting, a fraction.
    """

    epsilon: float
    accuracy: Estimate
    forgetting: Estimate


@png
def spending(methods: Mapping[str, Sequence[Spending]]) -> Figure:
    """Draws accuracy and forgetting against epsilon, a line a method; no bound stands far right.

    Args:
        methods: Groups by method, in any order; at least one of them has a finite epsilon.
    """
    figure = page(WIDTH, 4.4 + 0.1 * len(methods))
    left, right = figure.subplots(1, 2)
    found = [s.epsilon for groups in methods.values() for s in groups]
    finite = [epsilon for epsilon in found if math.isfinite(epsilon)]
    beyond = 3.0 * max(finite)
    for index, (method, groups) in enumerate(methods.items()):
        ordered = sorted(groups, key=lambda s: s.epsilon)
        for axes, values in (
            (left, [s.accuracy for s in ordered]),
            (right, [s.forgetting for s in ordered]),
        ):
            points = [
                (min(s.epsilon, beyond), value)
                for s, value in zip(ordered, values, strict=True)
                if value.mean is not None
            ]
            axes.errorbar(
                [x for x, _ in points],
                [100 * (value.mean or 0.0) for _, value in points],
                yerr=[100 * (value.std or 0.0) for _, value in points],
                label=method,
                capsize=3,
                markersize=6,
                **marking(index),
            )
    for axes in (left, right):
        axes.set_xscale("log")
        ticks = sorted({float(f"{epsilon:.2g}") for epsilon in finite})
        ends = [beyond] if len(finite) < len(found) else []
        axes.set_xticks([*ticks, *ends], [*(f"{t:g}" for t in ticks), *("∞" for _ in ends)])
        axes.minorticks_off()
        axes.set_xlabel("ε of the whole run")
    accuracy_axis(left)
    left.set_ylabel("average accuracy [%]")
    right.set_ylabel("forgetting [pp]")
    legend_below(figure, left)
    return figure
