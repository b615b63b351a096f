"""What a ServerApp makes of a run config, and what it refuses before anybody is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedcl.config import override
from fedcl.core.errors import ConfigError
from fedcl.flower.server.policy import check_live
from fedcl.flower.server_app import read
from tests.tiny import TABLE, tiny


def written(folder: Path, changes: dict[str, Any] | None = None) -> str:
    """Writes the tiny config and returns its path."""
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(override(TABLE, changes or {})), encoding="utf-8")
    return str(path)


def test_the_engine_is_flower_with_the_options_that_it_had(tmp_path: Path) -> None:
    path = written(tmp_path, {"engine": {"name": "flower", "timeout": 7.0, "workers": 3}})
    engine = read({"config": path}, live=True).resolved["engine"]
    assert (engine["name"], engine["timeout"], engine["workers"]) == ("flower", 7.0, 3)
    words = {"config": path, "set": "engine.grace=1.5 training.rounds=5"}
    experiment = read(words, live=True)
    assert experiment.resolved["engine"] == {**engine, "grace": 1.5}
    assert experiment.training.rounds == 5
    other = read({"config": written(tmp_path)}, live=True).resolved["engine"]
    assert (other["name"], other["timeout"]) == ("flower", 0.0)


def test_with_devices_bad_replies_are_left_out_and_every_round_is_committed(tmp_path: Path) -> None:
    path = written(tmp_path, {"checkpoint.seconds": 9.0})
    simulated, live = (read({"config": path}, live) for live in (False, True))
    assert (simulated.replies.bad, simulated.checkpoint.seconds) == ("stop", 9.0)
    assert (live.replies.bad, live.checkpoint.seconds) == ("reject", 0.0)
    assert read({"config": path, "set": "replies.bad=stop"}, live=True).replies.bad == "stop"
    path = written(tmp_path, {"replies.bad": "stop"})
    assert read({"config": path}, live=True).replies.bad == "stop"


def test_without_a_config_it_says_how_to_name_one() -> None:
    with pytest.raises(ConfigError, match=r"names no config: add --run-config 'config="):
        read({"config": "", "set": "", "out": "", "resume": False}, live=True)


@pytest.mark.parametrize(
    ("changes", "tables", "told"),
    [
        (
            {},
            {"channel": [{"name": "secure_aggregation"}]},
            '"secure_aggregation" is the simulator',
        ),
        ({}, {"channel": [{"name": "distributed_dp"}]}, '"distributed_dp" is the simulator'),
        (
            {"training.sampling": "round_robin", "training.cohort": 1},
            {"channel": [{"name": "central_dp", "bands": 2}]},
            "bands = 2.*set bands = 1",
        ),
        ({"training.availability": 0.5}, {}, "availability below 1.*set it to 1"),
        ({"adversary.attack": "nan", "adversary.share": 0.2}, {}, "clients who lie.*remove it"),
        ({}, {"audit": [{"name": "membership"}]}, "single clients hold.*audit a simulation"),
        ({"evaluation.decompose": 1}, {}, "decompose trains clients.*set it to 0"),
    ],
)
def test_what_only_a_simulator_can_keep_is_refused(
    changes: dict[str, Any], tables: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        check_live(tiny(changes, **tables))


@pytest.mark.parametrize("name", ["central_dp", "head_owners"])
def test_what_a_trusted_server_can_keep_is_not(name: str) -> None:
    check_live(tiny(channel=[{"name": name}]))
