"""How many examples a client has is known without fetching any."""

from __future__ import annotations

import pytest
import torch

from fedcl.assembly import build_site
from tests.tiny import tiny


@pytest.mark.parametrize("order", ["shared", "shuffled", "staggered"])
def test_sizes_are_those_of_the_clients_that_are_built(order: str) -> None:
    changes = {"stream.order": {"name": order}, "stream.clients": 8}
    site = build_site(tiny(changes))
    ids = (1, 2, 4, 7)
    for stage in range(2):
        expected = []
        for id in ids:
            try:
                client = site.population.client(id, stage, site.model, None, seed=0)
                expected.append(len(client.data))
            except ValueError:
                expected.append(0)
        assert site.population.sizes(ids, stage).tolist() == expected
    assert site.population.sizes((), 0).tolist() == []


def test_a_population_moves_to_a_device_without_its_data() -> None:
    site = build_site(tiny())
    elsewhere = site.population.on(torch.device("meta"))
    client = elsewhere.client(0, 0, site.model, None, seed=0)
    assert client.data.x.device.type == "meta"
    assert site.population.client(0, 0, site.model, None, seed=0).data.x.device.type == "cpu"
