"""A federation with TLS and authenticated nodes gives the model of the simulation, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fedcl
from fedcl.config import parse
from tests.flower.live import Federation, federation
from tests.tiny import read_csv, timeless

pytestmark = [pytest.mark.flower, pytest.mark.apart]

NODES = 4
EVALUATED = {"fot": "server", "replay": "clients"}  # on whose test data, by method
DIGITS: dict[str, Any] = {
    "seed": 3,
    "dataset": {"name": "digits"},
    "stream": {
        "name": "domain_incremental",
        "transform": "permute",
        "tasks": 2,
        "clients": NODES,
        "partition": {"name": "dirichlet", "alpha": 0.5},
    },
    "model": {"name": "mlp", "hidden": [32]},
    "engine": {"name": "flower", "grace": 300.0},
    "training": {
        "rounds": 1,
        "cohort": 0,
        "local": {"name": "sgd", "epochs": 1, "batch_size": 16, "lr": 0.2},
    },
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Four nodes, each with a key, a config and a state folder of its own."""
    folder = tmp_path_factory.mktemp("same")
    with federation(folder / "live", secure=True) as found:
        for method, where in EVALUATED.items():
            table = {**DIGITS, "method": {"name": method}, "evaluation": {"where": where}}
            (folder / "live" / f"{method}.toml").write_text(tomli_w.dumps(table))
        for id in range(NODES):
            own = folder / f"client-{id}"
            own.mkdir()
            # The config's place is the same word on every node, and its content another file.
            words = found.rightful()
            found.node(
                f"client-{id}", words=words, client=id, config=own / "run.toml", state=own / "state"
            )
        found.await_nodes(NODES)
        yield found


@pytest.mark.parametrize("method", EVALUATED)
def test_it_is_the_model_of_the_simulation_stage_by_stage(
    method: str, live: Federation, tmp_path: Path
) -> None:
    config = live.folder / f"{method}.toml"
    for id in range(NODES):  # each device's own copy
        copy = live.folder.parent / f"client-{id}" / "run.toml"
        copy.write_text(config.read_text())
    run = live.run(config=config, out=tmp_path / "live")
    where = EVALUATED[method]
    table = {**DIGITS, "method": {"name": method}, "evaluation": {"where": where}}
    expected = fedcl.run(parse({**table, "engine": {"name": "serial"}}), tmp_path / "simulated")
    run.finish(600)
    for file in ("model.safetensors", "evaluations.csv"):
        here, there = (tmp_path / place / file for place in ("live", "simulated"))
        assert here.read_bytes() == there.read_bytes(), file
    costs = [timeless(read_csv(tmp_path / place / "costs.csv")) for place in ("live", "simulated")]
    assert costs[0] == costs[1]
    # A loss over all test examples after each stage: the models of stages, not only the last one.
    rows = read_csv(tmp_path / "live" / "evaluations.csv")
    losses = {row["stage"]: row["value"] for row in rows if row["metric"] == "loss"}
    assert len(losses) == 2 and len(set(losses.values())) == 2
    assert expected.summary["accuracy_matrix"][1][1] > 0.1
