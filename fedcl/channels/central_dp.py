"""Central differential privacy for clients: DP-FedAvg with a fixed, public divisor.

Every client's reply, whatever it is, is clipped as a whole and weighs 1; Gaussian noise joins the
sum; means divide by the expected number of clients (McMahan et al., Learning differentially private
recurrent language models, ICLR 2018, arXiv 1710.06963: the estimator of fixed denominator). The
server adds the noise, so it is trusted; the model and all that is made of it are protected.

With a `quantile` clips follow the replies (`fedcl.core.privacy.adaptive`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from fedcl.core.accounting.ledger import Mechanism
from fedcl.core.channel import Aggregate, Sending
from fedcl.core.client import Client, Reply
from fedcl.core.privacy.adaptive import count_weight, followed, unclipped_share
from fedcl.core.privacy.clipping import clipped_to_send, norm

__all__ = ["CentralDp"]

_COUNT = "clipping/"  # and the name of the program: what says whether a reply was clipped


@dataclass(frozen=True)
class CentralDp:
    """Clips each client's reply and adds noise to the sum.

    Attributes:
        clip: Largest norm of a client's whole reply; with a `quantile` that of the first one.
        clips: Largest norm by the name of the program that makes the reply (`train`, `gram`, ...),
            for programs whose replies are of another size; these stay as they are.
        noise_multiplier: Standard deviation of the noise over the largest norm of what a client
            sends; 0 protects nothing.
        delta: The delta for which epsilon is told: well below 1 / clients.
        budget: Largest epsilon that may be spent; a release that would exceed it does not happen. 0
            for no limit.
        bands: Above 1, the noise of training is correlated over the rounds of a stage by a banded
            matrix (DP-FTRL, `fedcl.core.privacy.banded`): less of it in all, without random
            sampling, for clients who take turns and wait for that many rounds. Statistics get
            independent noise.
        quantile: Share of the replies that are not to be clipped: each program's clip that `clips`
            does not name follows that quantile of its replies' norms. 0 keeps `clip`.
        clip_rate: How fast: a clip changes by a factor of exp(clip_rate) in a round at most, but
            for noise.
        count_noise: Standard deviation of the noise in the number of unclipped replies: above half
            the noise multiplier. 0 for a twentieth of the clients asked on average.
        noise: `secret` draws noise and cohorts from the operating system's randomness; `seeded`
            from the experiment's seed, which anybody can repeat: no epsilon is told then.
    """

    clip: float = 1.0
    clips: Mapping[str, float] = field(default_factory=dict)
    noise_multiplier: float = 1.0
    delta: float = 1e-5
    budget: float = 0.0
    bands: int = 1
    quantile: float = 0.0
    clip_rate: float = 0.2
    count_noise: float = 0.0
    noise: Literal["secret", "seeded"] = "secret"

    def __post_init__(self) -> None:
        own = {f"clips.{program}": value for program, value in self.clips.items()}
        for name, value in {"clip": self.clip, **own}.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.bands < 1:
            raise ValueError(f"bands must be at least 1, not {self.bands}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must lie in (0, 1), not {self.delta}")
        if not 0 <= self.quantile < 1:
            raise ValueError(f"quantile must lie in [0, 1), not {self.quantile}")
        if self.quantile and self.bands > 1:
            raise ValueError(
                "bands above 1 correlates noise of one size, but with a quantile clips change, and "
                "no proof covers both: set one of them"
            )
        for name in ("noise_multiplier", "budget", "clip_rate", "count_noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be at least 0, not {value}")

    @property
    def hides_replies(self) -> bool:
        """Only the noised sum is protected."""
        return True

    @property
    def keeps_form(self) -> bool:
        """Whether nothing is added to a reply."""
        return self.quantile == 0

    @property
    def mechanism(self) -> Mechanism:
        """What it does, for the ledger."""
        seeded, z = self.noise == "seeded", self.noise_multiplier
        own = (self.delta, self.budget, seeded, self.bands, tuple(self.clips))
        return Mechanism(z, self.clip, *own)

    def init(self) -> dict[str, float]:
        """Returns the clips that have changed, by name of the program: none yet."""
        return {}

    def tells(
        self, program: str, state: Mapping[str, float], expected: int
    ) -> tuple[float, float] | None:
        """Returns the clip of an exchange, and the weight of its count; None where clips stay."""
        if not self.quantile or program in self.clips:
            return None
        clip, spread = state.get(program, self.clip), self.count_noise or expected / 20
        return clip, count_weight(clip, self.noise_multiplier, spread)

    def mechanism_at(self, program: str, state: Any, expected: int) -> Mechanism:
        """What it does in an exchange: a client's count is a part of what it sends."""
        clip, weight = self._told(Sending(program, self.tells(program, state, expected)))
        return replace(self.mechanism, sensitivity=math.hypot(clip, weight / 2))

    def bound(self, sending: Sending) -> float:
        """Returns the norm that a reply keeps to: the server leaves out what exceeds it."""
        clip, weight = self._told(sending)
        return math.hypot(clip, weight / 2)

    def _told(self, sending: Sending) -> tuple[float, float]:
        return sending.told or (self.clips.get(sending.program, self.clip), 0.0)

    def upload(self, reply: Reply, client: Client, sending: Sending) -> Reply:
        """Clips the reply; its weight and metrics, which depend on data, do not go up."""
        clip, weight = self._told(sending)
        own = {name: v for name, v in reply.tensors.items() if not name.startswith(_COUNT)}
        tensors = clipped_to_send(own, clip)
        if weight:
            size, device = norm(own), next((v.device for v in own.values()), None)
            # What is not finite goes up as zeros, which nobody had to shorten.
            count = -weight / 2 if math.isfinite(size) and size > clip else weight / 2
            # In float64, so that no rounding adds to the norm.
            tensors[f"{_COUNT}{sending.program}"] = torch.tensor(
                count, dtype=torch.float64, device=device
            )
        return replace(reply, tensors=tensors, weight=1.0, metrics={})

    def receive(self, total: Aggregate, state: Any, seed: int) -> tuple[Aggregate, Any]:
        """Takes the count out of the sum, to which the door has added noise, and follows it."""
        name = next((name for name in total.total if name.startswith(_COUNT)), None)
        if name is None:
            return total, state
        program, tensors = name.removeprefix(_COUNT), dict(total.total)
        clip, weight = self._told(Sending(program, self.tells(program, state, total.count)))
        share = unclipped_share(float(tensors.pop(name)), weight, total.count)
        after = followed(clip, share, self.quantile, self.clip_rate)
        return replace(total, total=tensors), {**state, program: after}
