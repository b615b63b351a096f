"""FOT's ranks by hand: one linear layer, whose inputs are the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fot_tools import (
    crafted,
    held_share,
    linear,
    pooled,
    ranks,
    write_domains,
)
from tests.tiny import (
    angles,
    trace,
)

# The second domain: 80 % lie in the first one's single direction, 20 % in sixteen others.
EXAMPLE = [
    [1.0],
    [0.8, 0.050, 0.048, 0.0080, 0.0079, 0.0078, 0.0077, 0.0076, 0.0075, *[0.00695] * 8],
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("rule", "added", "held"), [("energy", 2, 0.898), ("paper_code", 8, 0.9445)]
)
def test_the_two_rules_for_the_rank(
    rule: str, added: int, held: float, dtype: str, tmp_path: Path
) -> None:
    """METHODS.md, 1.4: an old basis holds 80 %, and .87 is asked for. rho^2 = .2, rho = .4472.

    energy: c >= 1 - .13 / .2 = .35 of the rest: .050 is 25 %, .050 + .048 is 49 %: two, and
    .8 + .098 = .898 are held. The code: c >= 1 - .13 / .4472 = .7093: with seven directions
    .1370 / .2 = 68.5 %, with eight .1445 / .2 = 72.25 %, and .9445 are held.
    """
    folder = crafted(tmp_path, EXAMPLE, width=20)
    experiment = linear(folder, energy=0.87, eps_rule=rule, dtype=dtype)
    assert float(sum(EXAMPLE[1])) == pytest.approx(1, abs=2e-3)
    _, states = trace(experiment, tmp_path / "run")
    basis = states[1].basis["head.weight"]
    assert [state.basis["head.weight"].shape[1] for state in states] == [1, 1 + added]
    assert held_share(pooled(experiment, 1).flatten(1), basis) == pytest.approx(held, abs=1e-3)


def test_energy_step_raises_what_is_asked_for(tmp_path: Path) -> None:
    """At stage 1 energy .80 + .07 = .87 asks for two directions, .80 for none, 1.0 for all."""
    folder = crafted(tmp_path, EXAMPLE, width=20)
    for number, (step, added) in enumerate(((0.0, 0), (0.07, 2), (0.5, 16))):
        experiment = linear(folder, energy=0.799, energy_step=step)
        assert ranks(experiment, tmp_path / f"run {number}") == [1, 1 + added]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rule", ["energy", "paper_code"])
@pytest.mark.parametrize("energy", [0.9, 0.99999])
def test_nothing_new_adds_nothing(energy: float, rule: str, dtype: str, tmp_path: Path) -> None:
    """Inputs inside the old span add no direction, not even by the rule that takes at least one."""
    generator = np.random.default_rng(0)
    space = np.linalg.qr(generator.normal(size=(16, 16)))[0][:3]
    x = [np.tile(space, (4, 1)), generator.normal(size=(12, 3)) @ space]
    write_domains(tmp_path, [part.astype(np.float32) for part in x])
    experiment = linear(tmp_path, clients=2, energy=energy, eps_rule=rule, dtype=dtype)
    assert ranks(experiment, tmp_path / "run") == [3, 3]


def test_the_codes_rule_takes_at_least_one_direction(tmp_path: Path) -> None:
    """99 % are held and .9 is asked for: the energy rule adds nothing, the released code one."""
    folder = crafted(tmp_path, [[1.0], [0.99, 0.01]])
    for rule, added in (("energy", 0), ("paper_code", 1)):
        experiment = linear(folder, energy=0.9, eps_rule=rule)
        assert ranks(experiment, tmp_path / rule) == [1, 1 + added]


@pytest.mark.parametrize("rule", ["energy", "paper_code"])
@pytest.mark.parametrize("gpse", ["gram", "sketch"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_whole_energy_is_the_span_and_no_more(
    dtype: str, gpse: str, rule: str, tmp_path: Path
) -> None:
    """Rounded on their way, Gram matrices of rank 3 and 4 have full rank: the noise is left out."""
    generator = np.random.default_rng(0)
    space = np.linalg.qr(generator.normal(size=(16, 16)))[0]
    x = [generator.normal(size=(40, rank)) @ space[:rank] for rank in (3, 4)]
    write_domains(tmp_path, [part.astype(np.float32) for part in x])
    options = {"energy": 1.0, "gpse": gpse, "eps_rule": rule}
    assert ranks(linear(tmp_path, 2, dtype, **options), tmp_path / "run") == [3, 4]


def test_a_wide_sketch_finds_the_gram_matrix_subspace(tmp_path: Path) -> None:
    folder = crafted(tmp_path, [[3.0, 2.5, 2.0, 0.1, 0.1, 0.1], [3.0, 2.5, 2.0, 0.1, 0.1, 0.1]])
    found = {}
    for gpse in ("gram", "sketch"):
        options: dict[str, Any] = {"gpse": gpse, "energy": 0.9}
        if gpse == "sketch":
            options["sketch_columns"] = 200.0
        experiment = linear(folder, clients=2, **options)
        _, states = trace(experiment, tmp_path / gpse)
        found[gpse] = states[0].basis["head.weight"]
    assert found["gram"].shape == found["sketch"].shape == (8, 3)
    assert angles(found["gram"], found["sketch"]) < 0.02
