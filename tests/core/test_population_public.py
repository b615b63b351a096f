"""Public data: everyone has the same rows, wherever it runs, laid out as what is computed with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import fedcl
from fedcl.assembly import build_site
from fedcl.config import Experiment
from tests.ray_house import RayHouse
from tests.tiny import assert_same_runs, distance, same, scenario, stream_of, tiny, trace


def looking(changes: dict[str, Any], engine: str = "serial") -> Experiment:
    """The tiny experiment whose server checks what each client shows."""
    return tiny(changes, method={"name": "tests.core.looking:Looking"}, engine={"name": engine})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_client_alone_and_in_a_block_has_what_the_stream_has(dtype: str) -> None:
    experiment = tiny({"stream.public": 0.2, "training.dtype": dtype})
    site, stream = build_site(experiment), stream_of(experiment)
    for stage, rows in ((0, 32), (1, 64)):
        public = stream.public(stage)
        assert public is not None
        assert len(public) == rows
        block = site.population.block((0, 3), stage, site.model, (None, None), (1, 2))
        alone = site.population.client(3, stage, site.model, None, 2)
        for found in (alone.public, block.public, block.client(1).public):
            assert found is not None
            assert same(found.x, public.x.to(getattr(torch, dtype)))
            assert same(found.y, public.y)


def test_nobody_holds_a_public_row() -> None:
    experiment = tiny({"stream.public": 0.2})
    stream = stream_of(experiment)
    public = stream.public(0)
    assert public is not None
    held = {x.numpy().tobytes() for k in range(5) for x in stream.train(k, 0).x}
    assert len(held) == 128
    assert held.isdisjoint({x.numpy().tobytes() for x in public.x})


@pytest.mark.parametrize("share", [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45])
def test_public_data_lie_as_what_is_computed_with(share: float) -> None:
    """On borders of 64 bytes: NumPy's own may lie otherwise in another process, and give other
    bits there."""
    site = build_site(tiny({"stream.public": share}))
    for stage in (0, 1):
        public = site.population.client(0, stage, site.model, None, 1).public
        assert public is not None
        assert public.x.is_contiguous()
        assert [public.x.data_ptr() % 64, public.y.data_ptr() % 64] == [0, 0]


@pytest.mark.parametrize("kind", ["class", "task", "domain", "temporal"])
def test_serial_and_vectorized_clients_see_the_server_s_rows(kind: str, tmp_path: Path) -> None:
    changes = {**scenario(kind), "stream.public": 0.2, "training.dtype": "float64"}
    runs = []
    for engine in ("serial", "vectorized"):
        record, states = trace(looking(changes, engine), tmp_path / engine)
        stream = stream_of(looking(changes))
        expected = [stream.public(stage) for stage in (0, 0, 1, 1)]
        assert [state.rows for state in states] == [len(rows or ()) for rows in expected]
        assert states[-1].rows > 0
        runs.append(record.params)
    assert distance(*runs) < 1e-9


def test_without_public_data_clients_have_none(tmp_path: Path) -> None:
    record, states = trace(looking({}), tmp_path / "run")
    assert {state.rows for state in states} == {0}
    assert same(dict(record.params), dict(fedcl.run(tiny()).params)) is False, "other exchanges"


@pytest.mark.ray
@pytest.mark.parametrize("inner", ["serial", "vectorized"])
def test_ray_workers_see_the_server_s_rows(
    inner: Literal["serial", "vectorized"], ray_house: RayHouse
) -> None:
    experiment = looking({"stream.public": 0.2}, inner)
    assert_same_runs(fedcl.run(ray_house.on(experiment, 2, inner)), fedcl.run(experiment))
