"""Task-incremental learning: each task brings new classes, and the task is known when predicting.

van de Ven, Tuytelaars and Tolias, Three types of incremental learning, Nature Machine Intelligence,
2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedcl.core.data.dataset import Dataset
from fedcl.core.task import ScenarioKind
from fedcl.streams._scenario import Cut, Scenario, class_groups, cuts_by_class

__all__ = ["TaskIncremental"]


@dataclass(frozen=True, kw_only=True)
class TaskIncremental(Scenario):
    """Equal groups of classes, one a task.

    Attributes:
        shuffle_classes: Whether classes are grouped in a random order of the experiment's seed.
    """

    kind: ClassVar[ScenarioKind] = "task"

    shuffle_classes: bool = False

    def cut(self, dataset: Dataset, seed: int) -> Sequence[Cut]:
        """Returns one task for each group of classes."""
        return cuts_by_class(dataset, class_groups(dataset, self.tasks, self.shuffle_classes, seed))
