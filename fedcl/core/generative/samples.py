"""Which of many synthetic images a run writes down, for its report: a few of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from fedcl.core.seeds import torch_generator

EACH = 8  # images of a class
MOST = 512  # images of all classes, as long as one of each is fewer


def few_of_each(labels: Tensor, seed: int) -> Tensor:
    """Returns the rows of a few random examples of each class, class after class.

    They are at most EACH of a class, and fewer where there are so many classes that it would be
    more than MOST. Rows that were chosen by this are all chosen again, in their order.

    Args:
        labels: (n,) int64.
        seed: Decides which.

    Returns:
        (k,) int64 on the CPU: by class ascending, and then by row.
    """
    labels = labels.cpu()
    classes = labels.unique()
    each = max(1, min(EACH, MOST // max(1, len(classes))))
    chosen = [torch.zeros(0, dtype=torch.int64)]
    for label in classes.tolist():
        rows = (labels == label).nonzero().flatten()
        order = torch.randperm(len(rows), generator=torch_generator(seed, label))
        chosen.append(rows[order[:each]].sort().values)
    return torch.cat(chosen)
