"""What a report says of metrics and scenarios: formulas, sources, and why a value is missing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fedcl.reporting.results import Run

DIFFERENCES = (
    "forgetting",
    "forgetting_first_last",
    "forgetting_clipped",
    "backward_transfer",
    "forward_transfer",
)
_SCENARIOS = {
    "task-incremental": "the task is known when predicting: only its own classes compete",
    "class-incremental": "the task is not known when predicting: all classes seen so far compete",
    "domain-incremental": "the classes stay the same, the inputs change from task to task",
}


class Metric(NamedTuple):
    """A named formula of METRICS.md; tasks and stages count from 1 in it, as in the papers."""

    name: str
    formula: str
    source: str

    @property
    def is_difference(self) -> bool:
        """Whether it is a difference of accuracies, in percentage points."""
        return self.name in DIFFERENCES or self.name == "intransigence"


METRICS = (
    Metric("average_accuracy", "(1/T) Σⱼ R[T, j]", "Lopez-Paz & Ranzato 2017"),
    Metric("pooled_accuracy", "accuracy on the union of all tasks' examples", "TARGET, LANDER"),
    Metric("average_incremental_accuracy", "mean over stages of the accuracy so far", "iCaRL 2017"),
    Metric("anytime_accuracy", "mean over all evaluated rounds of the same", "i-Blurry 2022"),
    Metric("learning_accuracy", "(1/T) Σᵢ R[i, i]", "Riemer et al. 2019"),
    Metric(
        "forgetting",
        "mean over j < T of (max of R[l, j] over l < T) − R[T, j]",
        "Chaudhry et al. 2018, eq. 3",
    ),
    Metric("forgetting_first_last", "mean over j < T of R[j, j] − R[T, j]", "FOT 2024; = −BWT"),
    Metric(
        "forgetting_clipped",
        "mean over j < T of (max of R[l, j] over l ≤ T) − R[T, j]",
        "PyCIL, Mammoth",
    ),
    Metric("backward_transfer", "mean over i < T of R[T, i] − R[i, i]", "Lopez-Paz & Ranzato 2017"),
    Metric("forward_transfer", "mean over i ≥ 2 of R[i−1, i] − bᵢ", "Lopez-Paz & Ranzato 2017"),
    Metric("intransigence", "a*_T − R[T, T], a* of joint training", "Chaudhry et al. 2018"),
)


def scenario(run: Run) -> str:
    """Returns the scenario's name as the literature writes it, such as class-incremental."""
    name = str(run.summary["scenario"]).replace("_", "-")
    return f"{name}-incremental" if name in ("task", "class", "domain") else name


def scenarios(runs: Iterable[Run]) -> dict[str, str]:
    """Returns what each scenario means, by its name."""
    return {name: _SCENARIOS.get(name, "") for name in dict.fromkeys(map(scenario, runs))}


def reason(run: Run, name: str) -> str:
    """Returns why a metric has no value, as far as the run tells."""
    if name == "forward_transfer" and scenario(run) == "class-incremental":
        return "means nothing in class-incremental: a task's classes are masked before its stage"
    if name in DIFFERENCES and run.matrix is not None and len(run.matrix) < 2:
        return "needs two tasks"
    if run.matrix is None and name in DIFFERENCES[:4]:
        return "no client that was evaluated met two tasks"
    if run.matrix is None:
        return "needs one task order that all clients share"
    if name == "intransigence":
        return "needs the accuracies of a joint run"
    return "not evaluated"
