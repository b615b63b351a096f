"""A message of its own for each client goes to the worker that runs it, and to no other."""

from __future__ import annotations

import pytest

import fedcl
from tests.ray_house import RayHouse
from tests.tiny import assert_same_runs, tiny


@pytest.mark.ray
def test_messages_of_their_own_reach_clients_on_ray(ray_house: RayHouse) -> None:
    experiment = tiny(method={"name": "tests.engines.plugins_for_ray:Whisper"})
    spread = ray_house.on(experiment, 2, "vectorized")
    assert_same_runs(fedcl.run(spread), fedcl.run(experiment))
