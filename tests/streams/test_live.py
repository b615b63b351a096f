"""The stream of data that arrive: options, and what it is with other data sets and streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedcl.assembly import build_site
from fedcl.core.errors import ConfigError
from fedcl.streams.live import Live
from tests.arriving_data import house, live
from tests.tiny import tiny


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"clients": 0}, "clients must be at least 1"),
        ({"stages": 0}, "stages must be at least 1"),
        ({"arrivals": -1}, "arrivals must be at least 0"),
        ({"arrivals": 3}, "arrivals = 3, but there are 2 clients"),
        ({"patience": -1.0}, "patience must be at least 0 seconds"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Live(**options)


def test_it_takes_data_that_arrive_and_only_it_does(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r'those of data set .* are there: set dataset.name = "ar'
    ):
        Live().build(tiny().dataset.load(), 0, "live")
    other = tiny({"dataset.name": "arrivals", "dataset.root": str(tmp_path)})
    with pytest.raises(ConfigError, match=r'data set .arrivals. arrive: set stream.name = "live"'):
        build_site(other)


def test_in_a_house_every_client_has_a_folder(tmp_path: Path) -> None:
    root = house(tmp_path, clients=4, arrivals=0)
    with pytest.raises(ConfigError, match=r"5 clients, but .* no folder for client 4: make one"):
        build_site(live(root))
