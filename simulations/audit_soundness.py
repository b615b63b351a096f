"""Do audits keep to their confidence, and do they find what is broken on purpose?

Run: python simulations/audit_soundness.py [--seeds 0 1 2 ...] [--runs 40]

Each row is a fault of the mechanism, over many short runs under client-level privacy at two levels
of noise. A run is flagged where one of its audits contradicts the claim. Without a fault nearly
none may be; each fault should nearly always be. Beside it stands the estimate of the canaries.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from runner import arguments
from study_tables import show

import fedcl
from fedcl.channels.central_dp import CentralDp
from fedcl.config import parse
from fedcl.core import release
from fedcl.core.accounting.calibration import multiplier
from fedcl.core.accounting.composition import Charge
from fedcl.core.privacy.noise import gaussian

ROUNDS, TASKS, DELTA = 5, 2, 1e-5
SMOKE: Mapping[str, Any] = {
    "stream": {"name": "class_incremental", "tasks": TASKS, "clients": 4},
    "model": {"name": "mlp", "hidden": [10]},
    "audit": [{"name": "residual"}, {"name": "canaries", "canaries": 20, "guesses": 0.5}],
}
Patch = Callable[[], Any]


def main(words: list[str]) -> None:
    """Runs every fault and prints the table."""
    parser = arguments(__doc__ or "", "audit_soundness", seeds=(1000,))
    parser.add_argument("--runs", type=int, default=40, help="runs of each row")
    args = parser.parse_args(words)
    epsilons, runs = ((3.0, 8.0), args.runs) if not args.smoke else ((3.0,), 2)
    changes = SMOKE if args.smoke else {}
    with tempfile.TemporaryDirectory() as folder:
        lines = list(study(epsilons, runs, args.seeds[0], changes))
        headings = ["epsilon", "fault", "runs", "flagged", "by residual", "by canaries"]
        more = ["above the claim: rigorous", "if independent", "estimate: median", "min to max"]
        title = f"{TASKS} tasks of {ROUNDS} rounds, all clients, 500 canaries, 95 %"
        show(title, [*headings, *more], lines, Path(folder) if args.smoke else args.out)


def study(
    epsilons: tuple[float, ...], runs: int, first: int, changes: Mapping[str, Any]
) -> Iterator[list[str]]:
    """Yields a row for each epsilon and fault."""
    for epsilon in epsilons:
        z = multiplier(lambda z: [Charge(z, 1.0, ROUNDS * TASKS)], epsilon, DELTA)
        for name, fault in FAULTS.items():
            found = []
            for seed in range(first, first + runs):
                with fault():
                    found.append(fedcl.run(parse({**_table(seed, z), **changes})).summary["audits"])
            residual = [one["residual"]["failed"] for one in found]
            canaries = [one["canaries"] for one in found]
            flagged = [a or b["failed"] for a, b in zip(residual, canaries, strict=True)]
            rigorous = sum(c["epsilon_lower"] > c["epsilon_claimed"] for c in canaries)
            single = sum(c["epsilon_lower_if_independent"] > c["epsilon_claimed"] for c in canaries)
            told = [float(c["epsilon_estimate"]) for c in canaries]
            yield [
                f"{epsilon:g}",
                name,
                str(runs),
                str(sum(flagged)),
                str(sum(residual)),
                str(sum(c["failed"] for c in canaries)),
                str(rigorous),
                str(single),
                f"{statistics.median(told):.2f}",
                f"{min(told):.2f} to {max(told):.2f}",
            ]


def _table(seed: int, z: float) -> dict[str, Any]:
    """Returns a short run on made-up data; its noise is secret, so every run draws its own."""
    return {
        "seed": seed,
        "dataset": {"name": "synthetic", "features": [60], "classes": 4, "train": 120, "test": 20},
        "stream": {"name": "class_incremental", "tasks": TASKS, "clients": 20},
        "model": {"name": "mlp", "hidden": [200]},
        "method": {"name": "fedavg"},
        "training": {"rounds": ROUNDS},
        "engine": {"name": "vectorized"},
        "evaluation": {"every": 0},
        "channel": [{"name": "central_dp", "noise_multiplier": z, "delta": DELTA}],
        "audit": [{"name": "residual"}, {"name": "canaries"}],
    }


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _noise(broken: Callable[..., Any]) -> Patch:
    return lambda: mock.patch.object(release, "gaussian", broken)


def _heavy() -> Any:
    right = CentralDp.upload
    return mock.patch.object(
        CentralDp,
        "upload",
        lambda self, reply, client, sending: replace(
            right(self, reply, client, sending), weight=3.0
        ),
    )


def _unclipped() -> Any:
    right = CentralDp.upload
    return mock.patch.object(
        CentralDp,
        "upload",
        lambda self, *asked: right(replace(self, clip=3 * self.clip), *asked),
    )


FAULTS: dict[str, Patch] = {
    "none": _nothing,
    "half the noise": _noise(lambda *place: 0.5 * gaussian(*place)),
    "10 % less noise": _noise(lambda *place: 0.9 * gaussian(*place)),
    "no noise": _noise(lambda *place: 0.0 * gaussian(*place)),
    "no noise in one of ten rounds": _noise(
        lambda *place: gaussian(*place) * (place[4:6] != (1, 2))
    ),
    "the same noise every round": _noise(
        lambda root, shape, scale, *place: gaussian(root, shape, scale, place[-1])
    ),
    "clients weigh three times": _heavy,
    "clip three times too large": _unclipped,
}


if __name__ == "__main__":
    main(sys.argv[1:])
