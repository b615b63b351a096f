"""How much does a client's membership show?: canaries in one run bound epsilon from below.

Made-up clients, each included by a coin, send a random direction of the largest norm that the
channel lets pass; the releases then say how well one can tell which were included. Andrew et al.,
One-shot empirical privacy estimation for federated learning, ICLR 2024 (arXiv 2302.03098); Steinke,
Nasr and Jagielski, Privacy auditing with one (1) training run, NeurIPS 2023 (arXiv 2305.08846).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcl.auditing.canaries import (
    estimated_epsilon,
    gaussian_one_run_bound,
    guessed,
    one_run_bound,
)
from fedcl.auditing.thresholds import gdp_bound
from fedcl.core.audit import Subject
from fedcl.core.client import Reply
from fedcl.core.errors import ConfigError
from fedcl.core.params import Params
from fedcl.core.population import sample
from fedcl.core.request import Position, Request
from fedcl.core.seeds import numpy_generator
from fedcl.core.watch import Finding, Release, Watch

__all__ = ["Canaries"]

_LOUD = 1e4  # so that every channel clips it
_KEPT = 2**26  # numbers of directions that are kept instead of being drawn again

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Canaries:
    """Adds clients that are easy to find, and looks whether the releases give them away.

    They take part in sums like any other client, so that the model learns worse: audit a repeat.

    Attributes:
        canaries: How many; a coin includes each. Many more than d z² / 50, of d parameters, hide
            each other.
        confidence: Probability with which a right claim stands.
        guesses: Share of the canaries that are guessed about: half of them to be included.
    """

    canaries: int = 500
    confidence: float = 0.95
    guesses: float = 0.1

    def __post_init__(self) -> None:
        if self.canaries < 20:
            raise ValueError(f"canaries must be at least 20, not {self.canaries}")
        for name in ("confidence", "guesses"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in (0, 1), not {getattr(self, name)}")

    def open(self, subject: Subject) -> Watch:
        """Begins to watch a run."""
        if subject.mechanism is None:
            raise ConfigError("no step of [[channel]] claims an epsilon to be tested: leave it out")
        if subject.mechanism.shares is not None:
            raise ConfigError(
                "clients add the noise themselves, and canaries have no keys for theirs: not "
                "covered, leave it out"
            )
        return _Canaries(self, subject)


@dataclass
class _Canaries(Watch):
    options: Canaries
    subject: Subject
    _directions: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    _joined: dict[Position, Tensor] = field(default_factory=dict)
    _sampled: bool = False
    _dimension: int = 0

    def __post_init__(self) -> None:
        count = self.options.canaries
        self.included = self._coins("included").random(count) < 0.5
        self.total: Scores = np.zeros(count)
        self.largest: Scores = np.full(count, -np.inf)
        self.by_stage: dict[int, Scores] = {}

    def _coins(self, *place: int | str) -> np.random.Generator:
        return numpy_generator(self.subject.seed, "canaries", *place)

    def join(self, request: Request, form: Mapping[str, Tensor]) -> Sequence[Reply]:
        """Returns the replies of the canaries that take part."""
        at = request.position
        present = self.included & self._drawn(at)
        if not form:
            return ()
        lines = self._lines({name: value.shape for name, value in form.items()})
        stage = self.subject.stream.members(at.stage)
        client = self.subject.site.clients(request, (stage[0],), {})[0]
        replies: list[Reply] = []
        joined = torch.zeros(lines.shape[1], dtype=torch.float64)
        for k in np.flatnonzero(present):
            parts = lines[k].split([value.numel() for value in form.values()])
            tensors = {
                name: (_LOUD * part).view(value.shape).to(value.device, torch.float32)
                for (name, value), part in zip(form.items(), parts, strict=True)
            }
            reply = self.subject.site.sent(request, client, Reply(tensors))
            replies.append(reply)
            flat = torch.cat([reply.tensors[name].flatten().cpu() for name in form])
            joined += reply.weight * flat.double()
        self._joined[at] = joined
        return replies

    def _drawn(self, at: Position) -> NDArray[np.bool_]:
        """Returns who takes part, by the law of real clients; one draw for all of a round.

        A cohort of fixed size is stood in for by coins of the same rate.
        """
        members = len(self.subject.stream.members(at.stage))
        rate = min(1.0, (self.subject.cohort or members) / members)
        self._sampled |= rate < 1
        number = min(max(at.round, 0), self.subject.rounds - 1)
        if self.subject.sampling == "round_robin":
            turn = at.stage * self.subject.rounds + number
            cohort = sample(range(members), self.subject.cohort, "round_robin", 0, turn)
            return np.isin(np.arange(self.options.canaries) % members, cohort)
        return self._coins("drawn", at.stage, number).random(self.options.canaries) < rate

    def _lines(self, form: Mapping[str, torch.Size]) -> Tensor:
        """Returns (canaries, d) directions of length 1 for sums of this form."""
        key = tuple((name, tuple(shape)) for name, shape in form.items())
        if key not in self._directions:
            size = sum(shape.numel() for shape in form.values())
            drawn = self._coins("directions", repr(key)).standard_normal(
                (self.options.canaries, size), dtype=np.float32
            )
            lines = torch.from_numpy(drawn)
            lines /= lines.norm(dim=1, keepdim=True)
            if sum(v.numel() for v in self._directions.values()) + lines.numel() > _KEPT:
                self._directions.clear()
            self._directions[key] = lines
        return self._directions[key]

    def released(self, release: Release) -> None:
        """Scores each canary by a release from which all other clients' replies are taken away.

        Who attacks may know them: the claim is about a client among others that are known.
        """
        lines = self._lines({name: value.shape for name, value in release.clean.items()})
        pairs = ((release.released[name], value) for name, value in release.clean.items())
        seen = torch.cat(
            [(after.double() - before.double()).flatten().cpu() for after, before in pairs]
        )
        joined = self._joined.pop(release.position, None)
        if joined is not None:
            seen += joined
        scores = (lines @ (seen / release.mechanism.sensitivity).float()).double().numpy()
        self.total = self.total + scores
        self.largest = np.maximum(self.largest, scores)
        self.by_stage[release.position.stage] = self.total
        self._dimension = max(self._dimension, lines.shape[1])

    def finish(self, params: Params) -> Finding:
        """Returns bounds from below, and the estimate."""
        if not self.by_stage:
            return Finding(note="nothing was released with noise: not covered")
        if not self.subject.whole:
            return Finding(
                note="the run was resumed, so its first releases were not seen: no bound"
            )
        assert self.subject.mechanism is not None
        delta, spent = self.subject.mechanism.delta, self.subject.spent()
        lower = max(self._bound(scores, delta, 2) for scores in (self.total, self.largest))
        seen, unseen = self.total[self.included], self.total[~self.included]
        wide = 1 - (1 - self.options.confidence) / 2
        alone = max(
            gdp_bound(scores[self.included], scores[~self.included], delta, wide)
            for scores in (self.total, self.largest)
        )
        rows = [
            {"canary": k, "included": int(known), "total": total, "largest": largest}
            for k, (known, total, largest) in enumerate(
                zip(self.included, self.total, self.largest, strict=True)
            )
        ]
        return Finding(
            numbers={
                "canaries": self.options.canaries,
                "confidence": self.options.confidence,
                "epsilon_lower": lower,
                "epsilon_lower_if_independent": alone,
                "epsilon_estimate": estimated_epsilon(seen, unseen, delta),
                "epsilon_claimed": spent,
                "epsilon_lower_by_stage": [row["epsilon_lower"] for row in self._stages(delta)],
            },
            tables={"canaries": rows, "by_stage": self._stages(delta)},
            note=self._note(max(lower, alone) > spent),
            failed=max(lower, alone) > spent,
        )

    def _bound(self, scores: Scores, delta: float, shared: int) -> float:
        """Returns an epsilon that one statistic of several rejects, at their joint confidence."""
        half = max(1, round(self.options.canaries * self.options.guesses / 2))
        made = guessed(scores, self.included, half, half)
        kinds = 1 if self._sampled else 2
        level = 1 - (1 - self.options.confidence) / (shared * kinds)
        found = one_run_bound(made, delta, level)
        # Under sampling the trade-off curve is no Gaussian's: this one would be an estimate.
        return found if self._sampled else max(found, gaussian_one_run_bound(made, delta, level))

    def _stages(self, delta: float) -> list[dict[str, Any]]:
        return [
            {"stage": stage, "epsilon_lower": self._bound(scores, delta, 1)}
            for stage, scores in sorted(self.by_stage.items())
        ]

    def _note(self, failed: bool) -> str:
        words = "a client that is added or removed, known replies of all others; " + (
            "the claim is REFUTED" if failed else "the claim is not refuted"
        )
        if self.subject.sampling == "fixed" and self._sampled:
            words += "; cohorts of canaries are coins of the same rate, which is an approximation"
        z = self.subject.mechanism.noise_multiplier if self.subject.mechanism else 0.0
        if self.options.canaries > max(1.0, self._dimension * z**2 / 50):
            words += "; so many canaries hide each other: fewer would show more"
        return words
