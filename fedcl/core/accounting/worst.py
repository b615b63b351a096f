"""The largest epsilon among many participants, without accounting for each of them.

A loss distribution takes a tenth of a second and more, and every client may have rates of its own.
Two bounds from above spare most of it: the one by Rényi divergences, and that of a participant who
is made up to have the largest rates and numbers of steps of a whole group. A smaller rate and fewer
steps are never worse: a mixture with less of the participant in it, or a part of a composition.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import count

from fedcl.core.accounting.composition import Charge, epsilon, epsilon_rdp

Signature = tuple[tuple[float, float, int], ...]  # (noise multiplier, rate, times), ascending

MOST = 48  # distributions that are worked out in the search for one maximum
_FEW = 4


def charges_of(signature: Signature) -> list[Charge]:
    """Returns a signature as charges."""
    return [Charge(*parts) for parts in signature]


def worst(
    signatures: Iterable[Signature], delta: float, floor: float = 0.0, most: int = MOST
) -> float:
    """Returns the largest `composition.epsilon` of some participants, or `floor` if that is larger.

    It is that maximum to the bit unless the search grows long; then it may lie above it, never
    below.

    Args:
        signatures: What each was part of.
        delta: Above 0 and below 1.
        floor: A value below which nothing is of interest.
        most: Loss distributions to work out at most.
    """
    loose = {s: epsilon_rdp(charges_of(s), delta) for s in set(signatures)}
    if not loose:
        return floor
    best, spent = floor, 0
    turn = count()
    heap: list[tuple[float, int, list[Signature], bool]] = []

    def push(members: list[Signature], bound: float, made_up: bool = False) -> None:
        bound = min(bound, max(loose[s] for s in members))
        if bound > best:
            heapq.heappush(heap, (-bound, next(turn), members, made_up))

    first = max(loose, key=lambda s: (loose[s], s))
    push([first], loose[first])
    for group in _alike(loose.keys() - {first}):
        push(group, loose[first])
    while heap:
        below, _, members, made_up = heapq.heappop(heap)
        bound = -below
        if bound <= best:
            break
        if spent >= most:
            return bound
        if len(members) == 1:
            best, spent = max(best, epsilon(charges_of(members[0]), delta)), spent + 1
        elif len(members) <= _FEW:
            for one in members:
                push([one], bound)
        elif not made_up:
            upper, spent = epsilon(charges_of(_above(members)), delta), spent + 1
            push(members, min(bound, upper), True)
        else:
            half = len(members) // 2
            for part in (members[:half], members[half:]):
                push(part, bound)
    return best


def _alike(signatures: Iterable[Signature]) -> list[list[Signature]]:
    """Returns groups whose noise multipliers are the same, one by one, each in order."""
    groups: dict[tuple[float, ...], list[Signature]] = {}
    for signature in sorted(signatures):
        groups.setdefault(tuple(noise for noise, _, _ in signature), []).append(signature)
    return list(groups.values())


def _above(members: Sequence[Signature]) -> Signature:
    """Returns a signature that is at least as bad as each of a group of alike ones."""
    return tuple(
        (parts[0][0], max(rate for _, rate, _ in parts), max(times for _, _, times in parts))
        for parts in zip(*members, strict=True)
    )
