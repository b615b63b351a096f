"""Distributed differential privacy: clients add the noise, and a secure sum hides each one's reply.

No server is trusted with a reply: each client clips, rounds and noises its own, and an ideal secure
sum (`fedcl.core.sealed`) hands out nothing but the sum modulo a power of two. Kairouz, Liu and
Steinke, The distributed discrete Gaussian mechanism for federated learning with secure aggregation,
ICML 2021 (arXiv 2102.06387); Agarwal, Kairouz and Liu, The Skellam mechanism for differentially
private federated learning, NeurIPS 2021 (arXiv 2110.04995). Without their random rotation: the
modulus has room for replies that agree in one number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from fedcl.core.accounting.ledger import Mechanism
from fedcl.core.channel import Aggregate, Sending
from fedcl.core.client import Client, Reply
from fedcl.core.errors import ConfigError
from fedcl.core.privacy.distributed import Kind, Plan, Shares, encoded, plan

__all__ = ["DistributedDp"]


@dataclass(frozen=True)
class DistributedDp:
    """Clips and rounds each client's reply, and adds its share of discrete noise.

    Attributes:
        clip: Largest norm of a client's whole reply.
        clips: Largest norm by the name of the program that makes the reply (`train`, `gram`, ...),
            for programs whose replies are of another size.
        noise_multiplier: Standard deviation over the clip of the noise of as many clients as must
            answer: of all together. 0 protects nothing.
        survivors: Share of the clients asked who must answer. With fewer nothing is handed out, and
            the round is skipped or repeated as `training.shortfall` says; the noise of more is not
            credited. Clients who could not be trusted with their noise are to be left out of it.
        distribution: Of the noise: `discrete_gaussian` or `skellam`.
        bits: Numbers are sent modulo 2**bits: more make the grid finer.
        delta: The delta for which epsilon is told: well below 1 / clients.
        budget: Largest epsilon that may be spent; a release that would exceed it does not happen. 0
            for no limit.
        noise: `secret` draws noise and cohorts from the operating system's randomness; `seeded`
            from the experiment's seed, which anybody can repeat: no epsilon is told then.
        least: Fewest clients whose sum is handed out.
    """

    clip: float = 1.0
    clips: Mapping[str, float] = field(default_factory=dict)
    noise_multiplier: float = 1.0
    survivors: float = 1.0
    distribution: Kind = "discrete_gaussian"
    bits: int = 20
    delta: float = 1e-5
    budget: float = 0.0
    noise: Literal["secret", "seeded"] = "secret"

    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        own = {f"clips.{program}": value for program, value in self.clips.items()}
        for name, value in {"clip": self.clip, **own}.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, not {value}")
        if not 0 < self.survivors <= 1:
            raise ValueError(f"survivors must lie in (0, 1], not {self.survivors}")
        if not 4 <= self.bits <= 32:
            raise ValueError(f"bits must lie between 4 and 32, not {self.bits}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must lie in (0, 1), not {self.delta}")
        for name in ("noise_multiplier", "budget"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be at least 0, not {value}")

    @property
    def hides_replies(self) -> bool:
        """Only the sum carries enough noise."""
        return True

    @property
    def mechanism(self) -> Mechanism:
        """What it does, for the ledger."""
        seeded, shares = self.noise == "seeded", self._shares
        own = (self.delta, self.budget, seeded)
        programs = tuple(self.clips)
        return Mechanism(self.noise_multiplier, self.clip, *own, programs=programs, shares=shares)

    def mechanism_at(self, program: str, state: Any, expected: int) -> Mechanism:
        """What it does in an exchange.

        Raises:
            ConfigError: So few bits hold no sum of so many clients.
        """
        return replace(self.mechanism, sensitivity=self._plan(program, expected).clip)

    @property
    def _shares(self) -> Shares:
        return Shares(self.distribution, self.bits, self.survivors)

    def _plan(self, program: str, expected: int) -> Plan:
        clip = self.clips.get(program, self.clip)
        return plan(self._shares, clip, self.noise_multiplier, expected)

    def init(self) -> None:
        """Has no state."""

    def tells(self, program: str, state: Any, expected: int) -> int:
        """Returns how many clients are asked, from which each one's share of the noise follows."""
        return expected

    def upload(self, reply: Reply, client: Client, sending: Sending) -> Reply:
        """Clips, rounds and noises the reply; its weight and metrics do not go up."""
        if client.key is None:
            raise ConfigError(f"client {client.id} has no key to draw its noise from")
        own = self._plan(sending.program, sending.told)
        return replace(
            reply, tensors=encoded(own, reply.tensors, client.key), weight=1.0, metrics={}
        )

    def receive(self, total: Aggregate, state: Any, seed: int) -> tuple[Aggregate, Any]:
        """Changes nothing: the door unwraps the sum, after the ledger has been told."""
        return total, state
