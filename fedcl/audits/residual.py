"""Is the noise of every release what the mechanism promises?: its size, shape and independence.

The simulator knows each sum before its noise. What the noise turned out to be is tested against
what was promised, tensor by tensor and over all releases together, and for each two releases
whether they share it. Two percent less noise shows in one release of some ten thousand numbers,
which no attack from outside could find.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.special import betainc
from scipy.stats import chi2
from torch import Tensor

from fedcl.auditing.residuals import TOTAL, judged, residual
from fedcl.core.audit import Subject
from fedcl.core.errors import ConfigError
from fedcl.core.params import Params
from fedcl.core.privacy.banded import coefficients
from fedcl.core.seeds import numpy_generator
from fedcl.core.watch import Finding, Release, Watch

__all__ = ["Residual"]


@dataclass(frozen=True)
class Residual:
    """Tests the noise of releases under differential privacy.

    Attributes:
        level: Probability of a false alarm in a whole run whose noise is right.
        coordinates: Numbers of each release that are kept, to compare its noise with that of the
            others: 5 / sqrt(coordinates) is the least correlation that shows.
        releases: Releases whose numbers are kept; later ones replace earlier ones at random.
    """

    level: float = 1e-3
    coordinates: int = 4096
    releases: int = 256

    def __post_init__(self) -> None:
        if not 0 < self.level < 0.5:
            raise ValueError(f"level must lie in (0, 0.5), not {self.level}")
        for name in ("coordinates", "releases"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, not {getattr(self, name)}")

    def open(self, subject: Subject) -> Watch:
        """Begins to watch a run."""
        if subject.mechanism is None:
            raise ConfigError(
                "no step of [[channel]] adds noise that could be tested: leave it out"
            )
        if subject.mechanism.shares is not None:
            raise ConfigError(
                "clients add the noise themselves, and nobody knows a sum without it: not covered, "
                "leave it out"
            )
        if subject.mechanism.noise_multiplier == 0:
            raise ConfigError("noise_multiplier is 0, so there is no noise to test: raise it")
        return _Residuals(self, subject.seed)


@dataclass
class _Residuals(Watch):
    options: Residual
    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    kept: list[tuple[str, np.ndarray]] = field(default_factory=list)
    earlier: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)
    squares: float = 0.0
    numbers: int = 0
    seen: int = 0

    def released(self, release: Release) -> None:
        """Tests one release, and keeps some of its noise."""
        if release.scale <= 0:
            return
        noise = residual(release.released, release.clean, release.scale)
        if release.draw.bands > 1:
            noise = self._decorrelated(release, noise)
        if not any(part.numel() for part in noise.values()):
            return
        at = release.position
        name = f"stage {at.stage} round {at.round} exchange {at.exchange}"
        for verdict in judged(noise):
            if verdict.layer == TOTAL:
                self.squares += verdict.spread**2 * verdict.numbers
                self.numbers += verdict.numbers
            place = {"stage": at.stage, "round": at.round, "exchange": at.exchange}
            tests = {
                "numbers": verdict.numbers,
                "ratio": verdict.spread,
                "p_chi_square": 2 * min(verdict.chi_square, 1 - verdict.chi_square),
                "p_kolmogorov_smirnov": verdict.kolmogorov_smirnov,
            }
            what = {"program": release.program, "tensor": verdict.layer}
            self.rows.append({**place, **what, **tests})
        self._keep(name, noise)

    def _decorrelated(self, release: Release, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the independent noise behind correlated noise: z_t = sum_j c_j x_(t-j).

        After a resume the first rounds' noise is not known; then nothing is tested.
        """
        at, column = release.position, coefficients(release.draw.bands)
        self.earlier = {k: v for k, v in self.earlier.items() if k[0] == at.stage}
        self.earlier[at.stage, at.round] = noise
        self.earlier.pop((at.stage, at.round - len(column)), None)
        found = {name: value.clone() for name, value in noise.items()}
        for back in range(1, min(len(column), at.round + 1)):
            before = self.earlier.get((at.stage, at.round - back), {})
            if before.keys() != noise.keys():
                return {}
            for name, value in before.items():
                found[name] += column[back] * value
        return found

    def _keep(self, name: str, noise: Mapping[str, Tensor]) -> None:
        flat = torch.cat([part.flatten() for part in noise.values()]).numpy()
        kept = (name, flat[: self.options.coordinates].copy())
        self.seen += 1
        if len(self.kept) < self.options.releases:
            self.kept.append(kept)
            return
        # Each release is as likely to be kept as any other; the latest ones are compared anyway.
        place = int(numpy_generator(self.seed, "residual", self.seen).integers(self.seen))
        if place < self.options.releases:
            self.kept[place] = kept

    def finish(self, params: Params) -> Finding:
        """Returns whether all tests together contradict the promise."""
        pairs = list(_correlations(self.kept))
        tests = 2 * len(self.rows) + len(pairs) + 1
        each = self.options.level / max(1, tests)
        bad = [r for r in self.rows if min(r["p_chi_square"], r["p_kolmogorov_smirnov"]) < each]
        shared = [pair for pair in pairs if pair[3] < each]
        both = 1.0
        if self.numbers and math.isfinite(self.squares):
            low = float(chi2.cdf(self.squares, self.numbers))
            both = 2 * min(low, 1 - low)
        elif self.numbers:
            both = 0.0
        ratio = math.sqrt(self.squares / self.numbers) if self.numbers else None
        found = [r[key] for r in self.rows for key in ("p_chi_square", "p_kolmogorov_smirnov")]
        failed = bool(bad or shared or both < each)
        return Finding(
            numbers={
                "releases": self.seen,
                "tests": tests,
                "noise_over_promised": ratio,
                "smallest_p": min([*found, both, *(pair[3] for pair in pairs)], default=None),
                "largest_correlation": max((abs(pair[2]) for pair in pairs), default=None),
            },
            tables={"residual": self.rows},
            note=self._note(failed, bad, shared, both < each),
            failed=failed,
        )

    def _note(self, failed: bool, bad: list[dict[str, Any]], shared: list[Any], all_: bool) -> str:
        if not self.seen:
            return "nothing was released with noise: not covered"
        if not failed:
            return (
                "size, shape and independence of the noise are as promised; how much a client may "
                "change a sum is not covered"
            )
        words = []
        if bad:
            at = bad[0]
            place = f"stage {at['stage']}, round {at['round']}, exchange {at['exchange']}"
            words.append(f"{len(bad)} tensors differ, the first {at['tensor']!r} at {place}")
        if shared:
            words.append(f"{len(shared)} pairs of releases share noise, {shared[0][:2]} first")
        if all_:
            words.append("all noise together has another size than promised")
        return "the noise is not what is promised: " + "; ".join(words)


def _correlations(kept: list[tuple[str, np.ndarray]]) -> list[tuple[str, str, float, float]]:
    """Returns correlation and its two-sided p-value of each two releases of the same size."""
    found = []
    for size in sorted({len(numbers) for _, numbers in kept}):
        names = [name for name, numbers in kept if len(numbers) == size]
        rows = np.stack([numbers for _, numbers in kept if len(numbers) == size])
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = rows / np.where(lengths > 0, lengths, 1.0)
        cosines = unit @ unit.T
        for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
            # The cosine of two independent directions, squared, follows a beta distribution.
            found.append((names[i], names[j], float(cosines[i, j]), _p(cosines[i, j], size)))
    return found


def _p(cosine: float, size: int) -> float:
    if size < 2:
        return 1.0
    return float(betainc((size - 1) / 2, 0.5, max(0.0, 1.0 - float(cosine) ** 2)))
