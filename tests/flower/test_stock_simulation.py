"""The app on Flower's own simulation, as `flwr run` starts it: the model of the plain loop."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fedcl
from fedcl.config import override, parse
from tests.flower.live import federation
from tests.tiny import TABLE

pytestmark = [pytest.mark.flower, pytest.mark.ray, pytest.mark.apart]

CHANGES: dict[str, Any] = {
    "stream.clients": 2,
    "training.cohort": 0,
    "training.rounds": 1,
    "method.name": "replay",
    "evaluation.where": "clients",
}


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of its own, whose name is short: Ray's sockets lie there."""
    with tempfile.TemporaryDirectory(prefix="f-") as name:
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


def test_flowers_own_simulation_gives_the_model_of_the_plain_loop(
    tmp_path: Path, room: Path
) -> None:
    table = override(TABLE, CHANGES)
    config = tmp_path / "run.toml"
    config.write_text(tomli_w.dumps(table), encoding="utf-8")
    with federation(tmp_path / "live", simulated=2) as live:
        # Without `out`: a new folder below the one where the SuperLink was started.
        live.run(config=config).finish(500)
    (out,) = (tmp_path / "live" / "runs").iterdir()
    fedcl.run(parse(table), tmp_path / "plain")
    for file in ("model.safetensors", "evaluations.csv"):
        assert (out / file).read_bytes() == (tmp_path / "plain" / file).read_bytes(), file
    (kept,) = room.glob("fedcl-simulation-*")
    assert not list(kept.iterdir()), "nothing of a client stays"
