"""A real federation under faults: nothing is lost, nothing false gets in, and the run ends."""

from __future__ import annotations

import json
import shutil
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from safetensors.torch import load_file

from fedcl.config import override, parse
from tests.flower.live import APP, Federation, federation, told
from tests.flower.parts import Part, until
from tests.flower.proxy import proxy
from tests.flower.test_live import simulated
from tests.tiny import TABLE, read_csv, same

pytestmark = [pytest.mark.flower, pytest.mark.apart]

LIES = ["nan", "stale", "oversized"]  # one a round; of all others `test_live` tells
CUT = 30.0  # seconds that a device is cut off
WITHIN = 600.0  # seconds for whatever is waited for: a busy machine is slow


def configured(folder: Path) -> Path:
    """Writes the experiment's config: four clients, one of whom will lie, and three rounds."""
    changes = {
        "stream.clients": 4,
        "stream.tasks": 1,
        "training.rounds": 3,
        "training.cohort": 0,
        "method.name": "replay",
        "evaluation.every": 0,
        "engine.name": "flower",
        "engine.grace": 300.0,
        "engine.patience": WITHIN,
        "engine.limit": 100_000,
    }
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(override(TABLE, changes)), encoding="utf-8")
    return path


def sly(folder: Path) -> Path:
    """Returns the app with a client half that lies where it is told to."""
    app = folder / "app"
    shutil.copytree(APP, app)
    file = app / "pyproject.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("fedcl.flower.device:app", "tests.flower.sly_device:app"))
    return app


def is_asking(out: Path, done: int) -> Callable[[], bool]:
    """Returns whether a round is under way after so many others."""

    def asking() -> bool:
        now = told(out)
        return bool(now["done"] == done and now["waiting"].endswith("to answer"))

    return asking


def test_nothing_is_lost_and_the_run_ends(tmp_path: Path) -> None:
    config, out = configured(tmp_path), tmp_path / "run"
    with federation(tmp_path / "live", durable=True) as live, proxy(live.port) as way:
        nodes = [_node(live, config, id) for id in range(2)]
        _node(live, config, 2, port=way.port)
        _node(live, config, 3, lies=" ".join(LIES))
        live.await_nodes(4)
        app, words = sly(tmp_path), {"config": str(config), "out": str(out)}
        run = live.run(app, **words)
        # In the middle of a round one device loses power, and another one is cut off for a while.
        until(is_asking(out, 1), "the second round is asked", WITHIN)
        way.cut()
        since, reached = time.monotonic(), way.taken
        nodes[1].kill()
        nodes[1].start()
        until(lambda: told(out)["answered"] >= 2, "others have answered", WITHIN)
        until(lambda: time.monotonic() - since > CUT, "it was cut off for long enough", WITHIN)
        assert way.taken == reached
        way.mend()
        # The server loses power, and goes on from its checkpoint.
        until(is_asking(out, 2), "the third round is asked", WITHIN)
        live.superlink.kill("flwr-serverapp")
        run = live.run(app, resume=True, **words)
        run.finish(WITHIN)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["rounds"] == 3
    assert summary["skipped_or_repeated_rounds"] == []
    experiment = parse({**override(TABLE, {}), **_table(out)})
    honest = simulated(experiment, without=[3])
    found = load_file(out / "model.safetensors")
    assert same(dict(sorted(found.items())), dict(sorted(honest.params.items())))
    rejected = read_csv(out / "rejected.csv")
    assert [(row["round"], row["client"]) for row in rejected] == [
        (str(n), "3") for n in range(1, 4)
    ]


def _node(live: Federation, config: Path, id: int, lies: str = "", port: int = 0) -> Part:
    state = live.folder / f"state-{id}"
    return live.node(port=port, client=id, config=str(config), state=str(state), lies=lies)


def _table(out: Path) -> dict[str, Any]:
    return tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))
