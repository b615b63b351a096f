"""Clients that attack: who, when, and how, for simulations of hostile federations.

What they do to replies is in `fedcl.core.attacks.lies`, what they do to their own data in
`fedcl.core.attacks.poison`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedcl.core.seeds import numpy_generator

Attack = Literal[
    "none",
    "sign_flip",
    "scale",
    "gaussian",
    "alie",
    "ipm",
    "min_max",
    "nan",
    "one_nan",
    "inf",
    "shape",
    "broadcast",
    "huge",
    "integers",
    "missing",
    "extra",
    "permuted",
    "heavy",
    "negative_weight",
    "nan_weight",
    "nan_metric",
    "duplicate",
    "label_flip",
    "backdoor",
]


@dataclass(frozen=True)
class Adversary:
    """The table `[adversary]`.

    Attributes:
        attack: What attackers send. u is a client's honest reply, s the strength. Values:
            `sign_flip` -s u (s = 1); `scale` s u (s = 1e6); `gaussian` N(0, s^2) (s = 1). Attackers
            who share their honest replies, with mean m and deviation d by coordinate: `alie`
            m - s d (Baruch et al., NeurIPS 2019; s = 0 takes the paper's z for the cohort), `ipm`
            -s m (Xie et al., UAI 2019; s = 0.5), `min_max` m - g d with the largest g at which it
            is no farther from any of their replies than these are from each other (Shejwalkar and
            Houmansadr, NDSS 2021). What does not fit: `nan`, `one_nan`, `inf`; `shape` (one number
            more), `broadcast` (shape (1,)), `huge`, `integers`; a tensor `missing`, `extra`, or all
            `permuted`; `heavy` (weight 1e9), `negative_weight` (-1000), `nan_weight`, `nan_metric`;
            `duplicate` (a second answer). What is done to an attacker's own examples: `label_flip`,
            other labels; `backdoor`, a trigger and the label `target` (Bagdasaryan et al., AISTATS
            2020).
        share: Share of all clients that attack, drawn from the seed.
        clients: Ids of the attackers, instead of a share.
        strength: s above; 0 takes the attack's own.
        first: First stage of the attack.
        last: Its last stage; -1 for the stream's end.
        clipped: Whether attackers keep to a bound of the channel.
        omniscient: Whether those who share their replies know everybody's in the cohort.
        poisoned: Share of an attacker's examples of each stage that are changed, drawn from the
            seed; 0 takes the attack's own: all for `label_flip`, half for `backdoor`.
        flips: Pairs of a label and what stands instead; none turns y into classes - 1 - y.
        target: What a backdoor makes of triggered inputs.
        size: Side of the trigger: a square in the last rows and columns of an image, or the last
            features of other inputs, set to the largest value of the data.
        boost: Factor of a backdoor's change of the model, so that it outlasts the mean: about
            clients over attackers replaces the model.
    """

    attack: Attack = "none"
    share: float = 0.0
    clients: tuple[int, ...] = ()
    strength: float = 0.0
    first: int = 0
    last: int = -1
    clipped: bool = True
    omniscient: bool = False
    poisoned: float = 0.0
    flips: tuple[tuple[int, int], ...] = ()
    target: int = 0
    size: int = 3
    boost: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in [0, 1], not {self.share}")
        if self.share and self.clients:
            raise ValueError("share and clients both say who attacks: set one of them")
        if self.attack != "none" and not (self.share or self.clients):
            raise ValueError(f'nobody attacks with attack = "{self.attack}": set share or clients')
        if any(id < 0 for id in self.clients) or self.first < 0 or self.last < -1:
            raise ValueError("clients, first and last count from 0")
        if not 0 <= self.poisoned <= 1:
            raise ValueError(f"poisoned must lie in [0, 1], not {self.poisoned}")
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if not (math.isfinite(self.boost) and self.boost > 0):
            raise ValueError(f"boost must be above 0, not {self.boost}")
        if self.target < 0 or any(label < 0 for pair in self.flips for label in pair):
            raise ValueError("target and flips are labels, which count from 0")
        if len({label for label, _ in self.flips}) < len(self.flips):
            raise ValueError(f"flips names a label twice: {list(map(list, self.flips))}")

    @property
    def poisons(self) -> bool:
        """Whether attackers change their own examples."""
        return self.attack in ("label_flip", "backdoor")

    @property
    def lies(self) -> bool:
        """Whether attackers change their replies."""
        if self.poisons:
            return self.attack == "backdoor" and self.boost != 1.0
        return self.attack != "none"

    def active(self, stage: int) -> bool:
        """Returns whether attackers attack at a stage."""
        return stage >= self.first and (self.last < 0 or stage <= self.last)

    def ids(self, clients: int, seed: int) -> frozenset[int]:
        """Returns the attackers among the registered clients."""
        if self.clients:
            return frozenset(self.clients)
        count = int(self.share * clients + 1e-9)
        draw = numpy_generator(seed, "adversary").choice(clients, count, replace=False)
        return frozenset(int(id) for id in draw)
