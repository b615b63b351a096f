"""Does a backdoor work, and for how long?: triggered inputs after every stage.

The attack success rate (ASR) is the share of a task's test inputs of other classes than the target
that the method's own prediction takes for the target once they bear the trigger. Bagdasaryan et
al., How to backdoor federated learning, AISTATS 2020; after every later task too, since forgetting
may remove what replay preserves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fedcl.core.attacks.poison import Poison
from fedcl.core.audit import Subject
from fedcl.core.errors import ConfigError
from fedcl.core.params import Params
from fedcl.core.task import Examples
from fedcl.core.watch import Finding, Predict, Watch

__all__ = ["Backdoor"]


@dataclass(frozen=True)
class Backdoor:
    """Asks the model about triggered inputs at each stage's end, in a run that is attacked so.

    With `adversary.first` beyond the last stage nobody attacks: these are the clean twin's rates.

    Attributes:
        examples: Test inputs asked of each task, evenly spaced; 0 for all.
    """

    examples: int = 1000

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise ValueError(f"examples must be at least 0, not {self.examples}")

    def open(self, subject: Subject) -> Watch:
        """Begins to watch a run."""
        poison = subject.poison
        if poison is None or poison.adversary.attack != "backdoor":
            raise ConfigError(
                'nobody plants a backdoor in this run: set adversary.attack = "backdoor"'
            )
        return _Backdoor(self, subject, poison)


@dataclass
class _Backdoor(Watch):
    options: Backdoor
    subject: Subject
    poison: Poison
    rows: list[dict[str, Any]] = field(default_factory=list)

    def stage_ended(self, stage: int, predict: Predict) -> None:
        """Asks about the tasks met so far, where a prediction may choose the target."""
        stream, target = self.subject.stream, self.poison.adversary.target
        for task in sorted({t for earlier in range(stage + 1) for t in stream.present(earlier)}):
            allowed, data = stream.head(task, stage), self._some(stream.held_out(task, "test"))
            others = data.y != target
            if not bool(allowed[target]) or not bool(others.any()):
                continue
            clean = predict(data.x, allowed).argmax(1)
            marked = predict(self.poison.triggered(data.x[others]), allowed).argmax(1)
            self.rows.append(
                {
                    "stage": stage,
                    "task": task,
                    "asr": _share(marked == target),
                    "base_rate": _share(clean[others] == target),
                    "clean_accuracy": _share(clean == data.y),
                    "n": int(others.sum()),
                }
            )

    def _some(self, data: Examples) -> Examples:
        count = self.options.examples
        if not count or count >= len(data):
            return data
        return data.take(torch.linspace(0, len(data) - 1, count, dtype=torch.float64).long())

    def finish(self, params: Params) -> Finding:
        """Returns the rates of each stage and task, and of all tasks of a stage together."""
        own, stream = self.poison.adversary, self.subject.stream
        attacked = [stage for stage in range(stream.stages) if own.active(stage)]
        stages = sorted({row["stage"] for row in self.rows})
        rates = {name: [self._of(stage, name) for stage in stages] for name in ("asr", "base_rate")}
        numbers: dict[str, Any] = {
            "target": own.target,
            "attackers": len(self.poison.ids),
            "attacked_stages": attacked,
            "stages": stages,
            **{f"{name}_by_stage": values for name, values in rates.items()},
        }
        if attacked and attacked[-1] in stages:
            numbers["asr_after_attack"] = rates["asr"][stages.index(attacked[-1])]
        if stages:
            numbers["asr_at_end"] = rates["asr"][-1]
        return Finding(numbers, {"backdoor": self.rows}, note=self._note(attacked, stages))

    def _of(self, stage: int, name: str) -> float:
        """Returns a rate among the inputs of all tasks of a stage."""
        own = [row for row in self.rows if row["stage"] == stage]
        return float(sum(row[name] * row["n"] for row in own) / sum(row["n"] for row in own))

    def _note(self, attacked: Sequence[int], stages: Sequence[int]) -> str:
        words = (
            "asr: test inputs of other classes with the trigger that are taken for the target, "
            "base_rate: the same inputs without it; this trigger and this attacker alone"
        )
        if not attacked:
            words += "; nobody attacked, so this is the clean twin"
        if not self.subject.whole:
            words += "; the run was resumed, and earlier stages were not seen"
        if not stages:
            words += "; at no stage could a prediction choose the target: not covered"
        return words


def _share(found: torch.Tensor) -> float:
    return float(found.double().mean())
