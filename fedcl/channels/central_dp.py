"""Central differential privacy for clients: DP-FedAvg with a fixed, public divisor.

Every client's reply, whatever it is, is clipped as a whole and weighs 1; Gaussian noise joins the
sum; means divide by the expected number of clients (McMahan et al., Learning differentially private
recurrent language models, ICLR 2018, arXiv 1710.06963: the estimator of fixed denominator). The
server adds the noise, so it is trusted; the model and all that is made of it are protected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from fedcl.core.channel import Aggregate, Sending
from fedcl.core.client import Client, Reply
from fedcl.core.clipping import clipped_to_send
from fedcl.core.ledger import Mechanism

__all__ = ["CentralDp"]


@dataclass(frozen=True)
class CentralDp:
    """Clips each client's reply and adds noise to the sum.

    Attributes:
        clip: Largest norm of a client's whole reply.
        noise_multiplier: Standard deviation of the noise over `clip`; 0 protects nothing.
        delta: The delta for which epsilon is told: well below 1 / clients.
        budget: Largest epsilon that may be spent; a release that would exceed it does not happen. 0
            for no limit.
        bands: Above 1, the noise of training is correlated over the rounds of a stage by a banded
            matrix (DP-FTRL, `fedcl.core.banded`): less of it in all, without random sampling, for
            clients who take turns and wait for that many rounds. Statistics get independent noise.
        noise: `secret` draws noise and cohorts from the operating system's randomness; `seeded`
            from the experiment's seed, which anybody can repeat: no epsilon is told then.
    """

    clip: float = 1.0
    noise_multiplier: float = 1.0
    delta: float = 1e-5
    budget: float = 0.0
    bands: int = 1
    noise: Literal["secret", "seeded"] = "secret"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise ValueError(f"clip must be above 0, not {self.clip}")
        if self.bands < 1:
            raise ValueError(f"bands must be at least 1, not {self.bands}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must lie in (0, 1), not {self.delta}")
        for name in ("noise_multiplier", "budget"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be at least 0, not {value}")

    @property
    def hides_replies(self) -> bool:
        """Only the noised sum is protected."""
        return True

    @property
    def bound(self) -> float:
        """Norm that every reply keeps to: the server leaves out what exceeds it."""
        return self.clip

    @property
    def mechanism(self) -> Mechanism:
        """What it does, for the ledger."""
        seeded = self.noise == "seeded"
        return Mechanism(
            self.noise_multiplier, self.clip, self.delta, self.budget, seeded, self.bands
        )

    def init(self) -> None:
        """Has no state."""

    def upload(self, reply: Reply, client: Client, sending: Sending) -> Reply:
        """Clips the reply; its weight and metrics, which depend on data, do not go up."""
        tensors = clipped_to_send(reply.tensors, self.clip)
        return replace(reply, tensors=tensors, weight=1.0, metrics={})

    def receive(self, total: Aggregate, state: Any, seed: int) -> tuple[Aggregate, Any]:
        """Changes nothing: the door adds the noise, after the ledger has been told."""
        return total, state
