"""What attackers send: named attacks on what goes up, by their formulas.

An attack acts on what leaves its client, behind the channel's `upload` steps. Where a step bounds
each reply's norm, `clipped` decides whether the attacker keeps to the bound (it knows that more is
rejected) or sends what it likes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import torch
from torch import Tensor

from fedcl.core.attacks.adversary import Adversary
from fedcl.core.client import Reply
from fedcl.core.local import Local, change
from fedcl.core.params import Params
from fedcl.core.privacy.clipping import clipped
from fedcl.core.request import Answer, Request
from fedcl.core.seeds import torch_generator


@dataclass(frozen=True)
class Attackers:
    """The attackers of a run.

    Attributes:
        adversary: What they do.
        clients: Registered clients.
        seed: Seed of the experiment.
    """

    adversary: Adversary
    clients: int
    seed: int

    @cached_property
    def ids(self) -> frozenset[int]:
        """Who attacks."""
        return self.adversary.ids(self.clients, self.seed)

    def act(self, request: Request, answers: Sequence[Answer], bound: float) -> list[Answer]:
        """Returns the answers with those of attackers replaced.

        Args:
            request: What was asked.
            answers: What all clients answered, honestly.
            bound: Norm that the channel promises for every reply; 0 for none.
        """
        own, at = self.adversary, request.position
        mine = [answer for answer in answers if answer.id in self.ids]
        if not mine or not own.active(at.stage):
            return list(answers)
        known = [a.reply.tensors for a in (answers if own.omniscient else mine)]
        sent: list[Answer] = []
        for answer in answers:
            if answer.id not in self.ids:
                sent.append(answer)
                continue
            place = (self.seed, at.stage, at.round, at.exchange, answer.id, "attack")
            noise = torch_generator(*place)
            reply = _attacked(own, answer.reply, known, len(answers), len(mine), noise)
            if own.attack == "backdoor" and _trains(request):
                reply = _scaled(reply, own.boost)
            if bound and own.clipped and (own.attack in _VALUES or own.poisons):
                room = 1.0 - 1e-6  # rounding must not lift it above the bound
                small = clipped(reply.tensors, bound * room)
                tensors = {k: v.to(answer.reply.tensors[k].dtype) for k, v in small.items()}
                reply = replace(reply, tensors=tensors)
            sent.append(replace(answer, reply=reply))
            if own.attack == "duplicate":
                sent.append(sent[-1])
        return sent


def alie_factor(clients: int, attackers: int) -> float:
    """Returns z of "a little is enough": how far from the mean enough honest clients lie.

    z = Phi^-1((n - m - s) / (n - m)) with s = floor(n / 2 + 1) - m (Baruch et al., equation 3);
    never below 0, and where attackers are the majority the quantile of one honest client.
    """
    honest = max(1, clients - attackers)
    supporters = max(0, clients // 2 + 1 - attackers)
    chance = min(max((honest - supporters) / honest, 0.5), 1 - 0.5 / honest)
    return max(0.0, NormalDist().inv_cdf(chance))


def _attacked(
    own: Adversary,
    reply: Reply,
    known: Sequence[Params],
    clients: int,
    attackers: int,
    noise: torch.Generator,
) -> Reply:
    if own.attack in _FORMS:
        return _FORMS[own.attack](reply)
    if own.attack not in _VALUES:
        return reply
    strength = own.strength or _VALUES[own.attack]
    mean, spread = _moments(known)
    if own.attack == "alie":
        strength = own.strength or alie_factor(clients, attackers)
    elif own.attack == "min_max":
        strength = own.strength or _farthest(known, mean, spread)
    made: dict[str, Tensor] = {}
    for name, value in reply.tensors.items():
        if not value.is_floating_point():
            made[name] = value
            continue
        if own.attack in ("sign_flip", "scale"):
            new = value.double() * (-strength if own.attack == "sign_flip" else strength)
        elif own.attack == "gaussian":
            drawn = torch.randn(value.shape, generator=noise, dtype=torch.float64)
            new = drawn.to(value.device) * strength
        elif own.attack == "ipm":
            new = -strength * mean[name]
        else:
            new = mean[name] - strength * spread[name]
        made[name] = new.to(value.dtype)
    return replace(reply, tensors=made)


def _trains(request: Request) -> bool:
    """Returns whether replies are changes of the model."""
    return isinstance(request.program, Local) and request.program.report is change


def _scaled(reply: Reply, factor: float) -> Reply:
    tensors = {
        name: (value.double() * factor).to(value.dtype) if value.is_floating_point() else value
        for name, value in reply.tensors.items()
    }
    return replace(reply, tensors=tensors)


def _moments(known: Sequence[Params]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    stacked = {
        name: torch.stack([params[name].double() for params in known])
        for name, value in known[0].items()
        if value.is_floating_point()
    }
    means = {name: value.mean(0) for name, value in stacked.items()}
    return means, {name: value.std(0, correction=0) for name, value in stacked.items()}


def _farthest(known: Sequence[Params], mean: Params, spread: Params) -> float:
    """Returns the largest g, by halving, at which mean - g spread is no farther than replies are.

    The distance of mean - g spread to each reply is convex in g, so the bound holds up to one g.
    """
    flat = torch.stack([torch.cat([p[name].double().flatten() for name in mean]) for p in known])
    centre = torch.cat([mean[name].flatten() for name in mean])
    away = torch.cat([spread[name].flatten() for name in mean])
    limit = float(torch.cdist(flat, flat).max())
    if not limit or not float(away.norm()):
        return 0.0
    low, high = 0.0, 2 * limit / float(away.norm())
    for _ in range(60):
        middle = (low + high) / 2
        fits = float((flat - (centre - middle * away)).norm(dim=1).max()) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return low


def _each(change: Callable[[Tensor], Tensor]) -> Callable[[Reply], Reply]:
    def attack(reply: Reply) -> Reply:
        return replace(reply, tensors={k: change(v) for k, v in reply.tensors.items()})

    return attack


def _one_nan(value: Tensor) -> Tensor:
    first = torch.arange(value.numel(), device=value.device).view(value.shape) == 0
    return torch.where(first, torch.nan, value) if value.is_floating_point() else value


def _permuted(reply: Reply) -> Reply:
    names, values = list(reply.tensors), list(reply.tensors.values())
    return replace(reply, tensors=dict(zip(names, values[1:] + values[:1], strict=True)))


# The honest names of values that fit, with their own strength.
_VALUES: Mapping[str, float] = {
    "sign_flip": 1.0,
    "scale": 1e6,
    "gaussian": 1.0,
    "alie": 0.0,
    "ipm": 0.5,
    "min_max": 0.0,
}
_FORMS: Mapping[str, Callable[[Reply], Reply]] = {
    "nan": _each(lambda v: torch.full_like(v, math.nan) if v.is_floating_point() else v),
    "one_nan": _each(_one_nan),
    "inf": _each(lambda v: torch.full_like(v, math.inf) if v.is_floating_point() else v),
    "shape": _each(lambda v: v.new_zeros(v.numel() + 1)),
    "broadcast": _each(lambda v: v.new_ones(1)),
    # Costs an attacker's wire a gigabyte for each tensor; here it has one number's memory.
    "huge": _each(lambda v: v.new_zeros(1).expand(2**28)),
    "integers": _each(lambda v: v.to(torch.int64)),
    "missing": lambda r: replace(r, tensors=dict(list(r.tensors.items())[:-1])),
    "extra": lambda r: replace(r, tensors={**r.tensors, "extra": torch.zeros(3)}),
    "permuted": _permuted,
    "heavy": lambda r: replace(r, weight=1e9),
    "negative_weight": lambda r: replace(r, weight=-1000.0),
    "nan_weight": lambda r: replace(r, weight=math.nan),
    "nan_metric": lambda r: replace(r, metrics={**r.metrics, "loss": math.nan}),
    "duplicate": lambda r: r,
}
