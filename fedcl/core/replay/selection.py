"""Which examples a client keeps when they do not all fit into a budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.task import Examples

_EQUAL = 1e-9  # squared distances, of features of length 1


def room(rows: Examples, budget: int) -> int:
    """Returns how many examples like these, of which there is one at least, fit into a budget.

    Args:
        rows: Examples with every column that is to be kept.
        budget: Bytes of all columns together.
    """
    return budget // max(1, rows.nbytes // len(rows))


def share_equally(sizes: Sequence[int], places: int) -> list[int]:
    """Returns how many of each group get a place: equally many, and small groups leave theirs.

    What cannot be divided goes to the larger groups, the last of those that are equal first.

    Args:
        sizes: How many each group has.
        places: How many get a place, at most.
    """
    quotas = [0] * len(sizes)
    # Small groups first, so that what they leave over goes to the larger ones.
    smallest = sorted(range(len(sizes)), key=sizes.__getitem__)
    for left, group in zip(range(len(sizes), 0, -1), smallest, strict=True):
        quotas[group] = min(sizes[group], places // left)
        places -= quotas[group]
    return quotas


def by_stage(rows: Examples, budget: int, order: Tensor) -> Tensor:
    """Returns the (m,) places of as many rows as fit, equally many of each stage that has them.

    Args:
        rows: Rows with the column `stage`.
        budget: Bytes of all columns together.
        order: (n,) a permutation: rows early in it are kept first.
    """
    if len(rows) == 0:
        return order
    groups = _groups(rows.extra["stage"], order)
    quotas = share_equally([len(group) for group in groups], room(rows, budget))
    chosen = [group[:quota] for group, quota in zip(groups, quotas, strict=True)]
    return torch.cat(chosen).sort().values


def by_class(rows: Examples, budget: int, order: Tensor) -> Tensor:
    """Returns the (m,) places of as many rows as fit, equally many of each class that has them.

    The places of a class are shared equally by the stages at which it was met, so that neither
    the first nor the last of them takes all. Arguments are those of `by_stage`.
    """
    if len(rows) == 0:
        return order
    classes = _groups(rows.y, order)
    quotas = share_equally([len(group) for group in classes], room(rows, budget))
    chosen: list[Tensor] = []
    for own, quota in zip(classes, quotas, strict=True):
        stages = _groups(rows.extra["stage"], own)
        shares = share_equally([len(group) for group in stages], quota)
        chosen += [group[:share] for group, share in zip(stages, shares, strict=True)]
    return torch.cat(chosen).sort().values


def by_key(rows: Examples, budget: int) -> Tensor:
    """Returns the (m,) places of the rows with the smallest keys, as many as fit.

    With independent uniform keys they are a uniform sample of all rows; and the sample of some of
    them and further ones is one of all, in whichever order they come. So rows that have no place
    need not be remembered: a reservoir (Vitter, ACM TOMS 1985), with keys instead of a counter.

    Args:
        rows: Rows with the column `key` (n,).
        budget: Bytes of all columns together.
    """
    if len(rows) == 0:
        return rows.y
    return rows.extra["key"].argsort(stable=True)[: room(rows, budget)].sort().values


def herd(features: Tensor, count: int) -> Tensor:
    """Returns the (count,) rows whose running mean stays nearest to the mean of all rows.

    Each step takes the row that brings it nearest, of those not yet taken (iCaRL, algorithm 4:
    Rebuffi et al., CVPR 2017). So the first of them are what a smaller count gives. Of rows that
    are equal but for rounding the first is taken: of two rows either is as near to their mean.

    Args:
        features: (n, d) features; they are scaled to length 1 here.
        count: Rows to take, at most n.
    """
    unit = F.normalize(features.double(), dim=1)
    mean, total = unit.mean(0), torch.zeros_like(unit[0])
    squares = unit.square().sum(1)
    taken: list[Tensor] = []
    for step in range(1, count + 1):
        # |total + f - step mean|^2 without what is the same for all f: n d operations a step.
        distance = squares + 2.0 * (unit @ (total - step * mean))
        if taken:
            distance[torch.stack(taken)] = torch.inf
        taken.append(torch.nonzero(distance <= distance.min() + _EQUAL)[0, 0])
        total = total + unit[taken[-1]]
    if not taken:
        return torch.zeros(0, dtype=torch.int64, device=features.device)
    return torch.stack(taken)


def herded(features: Tensor, labels: Tensor, most: int) -> Tensor:
    """Returns each row's (n,) int64 rank in the herding order of its class, from 0.

    Args:
        features: (n, d) features.
        labels: (n,) classes.
        most: Ranks that matter: later rows of a class all have this one.
    """
    ranks = torch.full_like(labels, most)
    for label in torch.unique(labels).tolist():
        own = torch.nonzero(labels == label).flatten()
        chosen = own[herd(features[own], min(most, len(own)))]
        ranks[chosen] = torch.arange(len(chosen), device=labels.device)
    return ranks


def _groups(values: Tensor, order: Tensor) -> list[Tensor]:
    """Returns the places in `order` by their value, ascending, each in that order."""
    ordered = values[order]
    return [order[ordered == value] for value in torch.unique(ordered).tolist()]
