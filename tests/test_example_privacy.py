"""Private training of single examples in whole runs: engines, resume, and the noise sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fedcl
from fedcl.assembly import build_site
from fedcl.auditing.residuals import dependences, judged
from fedcl.core.block import Path as TrainingPath
from fedcl.core.errors import ClientError
from fedcl.core.params import Params
from fedcl.core.privacy import noise
from fedcl.tuning import tuned
from tests.ray_house import RayHouse
from tests.tiny import (
    CNN,
    Interrupted,
    assert_same_folders,
    assert_same_runs,
    distance,
    interrupt_after,
    same,
    timeless,
    tiny,
    watched,
)

LOCAL = {
    "name": "dp_sgd",
    "clip": 0.5,
    "noise_multiplier": 0.6,
    "noise": "seeded",  # so that two runs can be compared
    "batch_size": 6,
    "epochs": 2,
    "lr": 0.1,
    "momentum": 0.6,
    "weight_decay": 0.01,
}
HARD: dict[str, Any] = {
    "training.dtype": "float64",
    "stream.clients": 9,
    "stream.partition": {"name": "quantity", "exponent": 1.5},
    "training.cohort": 7,
    "training.fold": 4,
    "training.local": LOCAL,
}
DEEP = {"name": "mlp", "hidden": [12, 8], "input_dropout": 0.1, "dropout": [0.3, 0.2]}


def hard(
    engine: Mapping[str, Any], changes: Mapping[str, Any] | None = None, **tables: Any
) -> fedcl.Experiment:
    return tiny({**HARD, **(changes or {})}, engine=engine, **tables)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("auto", {}),
        ("fused", {"model": DEEP}),
        ("fused", {"model": CNN}),
        ("grouped", {"model": CNN}),
        ("loop", {"model": DEEP}),
        ("auto", {"method": {"name": "replay"}}),
        ("auto", {"method": {"name": "lwf"}}),
        ("auto", {"method": {"name": "fot"}}),
    ],
)
def test_engines_agree(path: TrainingPath, options: dict[str, Any]) -> None:
    serial = fedcl.run(hard({"name": "serial"}, **options))
    for block in (2, 3):
        engine = {"name": "vectorized", "path": path, "block": block}
        other = fedcl.run(hard(engine, **options))
        assert distance(serial.params, other.params) < 1e-9
        assert timeless(serial.costs, alike=False) == timeless(other.costs, alike=False)
        assert serial.summary["epsilon"] == other.summary["epsilon"]


@pytest.mark.ray
@pytest.mark.parametrize("options", [{"model": DEEP}, {"method": {"name": "fot"}}])
def test_ray_gives_the_bits_of_its_inner_engine(
    options: dict[str, Any], ray_house: RayHouse
) -> None:
    ray_house.start()
    experiment = hard({"name": "serial"}, **options)
    assert_same_runs(fedcl.run(experiment), fedcl.run(ray_house.on(experiment, 2, "serial")))


@pytest.mark.parametrize("noise", ["seeded", "secret"])
def test_a_resumed_run_repeats_its_noise(noise: str, tmp_path: Path) -> None:
    experiment = hard({"name": "serial"}, {"training.local": {**LOCAL, "noise": noise}})
    with pytest.raises(Interrupted):
        fedcl.run(experiment, tmp_path / "a", watch=interrupt_after(3))
    resumed = fedcl.run(experiment, tmp_path / "a", resume=True)
    whole = fedcl.run(experiment, tmp_path / "b")
    assert same(dict(resumed.params), dict(whole.params)) == (noise == "seeded")
    if noise == "seeded":
        assert_same_folders(tmp_path / "a", tmp_path / "b")


def test_no_loss_is_told() -> None:
    record, engine = watched(hard({"name": "vectorized"}))
    assert all(result.total is not None and not result.total.metrics for result in engine.results)
    assert all(row["metric"] != "loss" or row["split"] == "test" for row in record.evaluations)


# --- T4 and T5: the noise in what the clients of a run sent. ---

# One step a round with everybody's examples in it, whose part is a hundredth of the noise's.
LOUD = {
    "name": "dp_sgd",
    "clip": 1e-3,
    "noise_multiplier": 100.0,
    "batch_size": 64,
    "lr": 0.1,
}
WIDE = {
    "training.local": LOUD,
    "training.dtype": "float64",
    "training.fold": 1,
    "training.cohort": 0,
    "stream.clients": 3,
    "stream.tasks": 1,
    "training.rounds": 2,
    "model.hidden": [400, 60],
    "dataset.train": 60,
    "evaluation.every": 0,
    "stream.partition": {"name": "iid"},
}


def sent(engine: str, changes: Mapping[str, Any] | None = None) -> dict[str, Params]:
    """Returns the noise of each client and round, in units of what is claimed."""
    given = {**WIDE, "engine.name": engine, **(changes or {})}
    _, watching = watched(tiny(given))
    found: dict[str, Params] = {}
    for number, result in enumerate(watching.results):
        assert result.total is not None and len(result.ids) == 1
        rows = result.total.weight  # which also weighs the reply
        scale = LOUD["lr"] * LOUD["clip"] * LOUD["noise_multiplier"]  # type: ignore[operator]
        change = {name: value / rows for name, value in result.total.total.items()}
        name = f"client {result.ids[0]}, round {number // 3}"
        found[name] = {name: value * rows / scale for name, value in change.items()}
    assert len(found) == 6
    return found


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
def test_what_clients_send_holds_the_claimed_noise(engine: str) -> None:
    """T4, and T5: clients under one seed, and rounds."""
    found = sent(engine)
    for part in found.values():
        assert sum(value.numel() for value in part.values()) > 30_000
        for verdict in judged(part, level=1e-4):
            assert not verdict.faults, verdict
    assert all(pair.independent for pair in dependences(found))


def test_runs_of_one_seed_share_no_noise_unless_it_is_seeded() -> None:
    """T5: an experiment's seed is no secret."""
    two = sent("serial"), sent("serial")
    together = {
        f"{run} {name}": part for run, found in enumerate(two) for name, part in found.items()
    }
    assert all(pair.independent for pair in dependences(together))
    seeded = {"training.local": {**LOUD, "noise": "seeded"}}
    assert same(sent("serial", seeded), sent("serial", seeded))


@pytest.mark.parametrize("fault", ["half", "one key for all"])
def test_wrong_noise_would_show(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, root = noise.hide, noise.secret_root()

    def wrong(values: Any, key: bytes, scale: float, *more: Any) -> None:
        half = fault == "half"
        right(values, key if half else root, scale / 2 if half else scale, *more)

    monkeypatch.setattr(noise, "hide", wrong)
    found = sent("serial")
    if fault == "half":
        assert all("too little noise" in judged(part)[0].faults for part in found.values())
    else:
        assert not all(pair.independent for pair in dependences(found))


# --- What is refused. ---


def test_a_path_for_other_trainers_is_refused() -> None:
    with pytest.raises(ClientError, match=r'engine\.path = "vmap" is not for private training'):
        fedcl.run(hard({"name": "vectorized", "path": "vmap"}))


def test_an_engine_tunes_private_training() -> None:
    experiment = hard({"name": "vectorized", "tune": True})
    found = tuned(experiment, build_site(experiment), None).resolved["engine"]
    assert found["path"] in ("loop", "fused", "grouped") and not found["tune"]
