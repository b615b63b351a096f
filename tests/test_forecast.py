"""What a run needs is predicted within a factor of 1.5, and what cannot fit is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedcl
from fedcl.assembly import build_site
from fedcl.config import override, parse
from fedcl.core.errors import ConfigError
from fedcl.forecast import Forecast, disk_room, forecast, show_seconds
from tests.commands import assert_refused, call, write_config
from tests.spending import spent
from tests.tiny import tiny

FACTOR = 1.5
BASE: dict[str, Any] = {
    "dataset": {"name": "synthetic", "features": [784], "train": 320, "test": 100},
    "stream": {"name": "domain_incremental", "tasks": 2, "clients": 16},
    "model": {"name": "mlp", "hidden": [16]},
    "method": {"name": "fedavg"},
    "training": {"rounds": 1, "local": {"name": "sgd", "lr": 0.05, "batch_size": 16}},
    "engine": {"name": "serial"},
    "evaluation": {"every": 0, "clients": 10},
}
IMAGES = {"name": "synthetic", "features": [3, 32, 32], "train": 640, "test": 20}
WIDE = {"name": "mlp", "hidden": [1500, 1500]}
BATCHED = {"name": "vectorized", "block": 16}
# Fifty examples of 3 kB for each of 1,000 clients.
REMEMBERING = {
    "dataset.train": 10_000,
    "stream.clients": 1000,
    "stream.tasks": 5,
    "training.local.batch_size": 50,
    "method.name": "replay",
}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "replies wait for each other": ("16 clients' weights", {}, {"model": WIDE}),
    "every client has its weights": (
        "16 clients' weights",
        {"training.local.momentum": 0.9},
        {"model": WIDE, "engine": {**BATCHED, "path": "vmap"}},
    ),
    "a penalty looks at all weights": (
        "16 clients' weights",
        {"method.name": "l2"},
        {"model": WIDE, "engine": BATCHED},
    ),
    "gradients are projected": (
        "16 clients' weights",
        {"method.name": "gpm"},
        {"model": WIDE, "engine": BATCHED},
    ),
    "weights are stepped in place": (
        "16 clients' weights",
        {
            "dataset.features": [20_000],
            "dataset.test": 20,
            "model.hidden": [100],
            "training.local.epochs": 6,
            "training.local.momentum": 0.9,
        },
        {"engine": BATCHED},
    ),
    "layers put out": (
        "outputs of their layers",
        {"training.local.batch_size": 40},
        {"dataset": IMAGES, "model": {"name": "cnn"}, "engine": BATCHED},
    ),
    "tests are large": (
        "answers to it",
        {"evaluation.batch_size": 1500, "training.cohort": 1, "stream.tasks": 1},
        {"dataset": {**IMAGES, "test": 1500}, "model": {"name": "cnn"}},
    ),
    "clients remember": ("clients' memories", REMEMBERING, {}),
    "matrices are decomposed": (
        "the server at work",
        {"method.name": "fot", "stream.tasks": 1},
        {"model": {"name": "mlp", "hidden": [2500]}, "engine": BATCHED},
    ),
    "two moments of each layer are decomposed": (
        "the server at work",
        {"method.name": "kron", "stream.tasks": 1},
        {"model": {"name": "mlp", "hidden": [2500]}, "engine": BATCHED},
    ),
}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")


def assert_predicted(
    folder: Path, most: str, changes: dict[str, Any], tables: dict[str, Any]
) -> None:
    """Asserts that memory and disk come as predicted, and that `most` takes most of the memory."""
    found = spent(folder, override({**BASE, **tables}, changes))
    assert 1 / FACTOR < found.expected / found.peak < FACTOR, found
    assert 1 / FACTOR < found.written / found.disk < FACTOR, found
    assert max(found.parts, key=lambda what: found.parts[what]) == most, found
    assert found.parts[most] > 100e6, "it would not show"


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_memory_and_disk_come_as_predicted(case: str, tmp_path: Path) -> None:
    assert_predicted(tmp_path, *CASES[case])


@LINUX
@pytest.mark.slow
def test_data_in_memory_are_measured(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.random((60_000, 784), dtype=np.float32)
    np.savez(tmp_path / "large.npz", x=x, y=np.arange(len(x)) % 10)
    dataset = {"name": "npz", "root": str(tmp_path), "file": "large.npz"}
    changes = {"stream.clients": 500, "training.cohort": 4}
    assert_predicted(tmp_path, "the data", changes, {"dataset": dataset})


@LINUX
@pytest.mark.slow
def test_what_has_no_room_in_the_cache_lies_on_disk(tmp_path: Path) -> None:
    found = spent(tmp_path, override(BASE, {**REMEMBERING, "memory.cache": 5_000_000}))
    assert 1 / FACTOR < found.expected / found.peak < FACTOR, found
    assert 1 / FACTOR < found.written / found.disk < FACTOR, found
    assert found.parts["clients' memories"] == 5_000_000
    assert found.disk > 150e6


@LINUX
@pytest.mark.slow
@pytest.mark.ray
def test_processes_and_what_they_share_are_added_up(tmp_path: Path) -> None:
    changes = {"dataset.train": 1280, "stream.clients": 64}
    engine = {"name": "ray", "workers": 2, "inner": "serial"}
    assert_predicted(tmp_path, "16 clients' weights", changes, {"model": WIDE, "engine": engine})


# --- Refusals ---


def limit(more: int) -> int:
    """Returns what this process and so many bytes more need."""
    experiment = tiny()
    return int(forecast(experiment, build_site(experiment), float("inf")).peak) + more


@pytest.mark.parametrize("command", ["run", "show"])
def test_a_run_that_needs_more_memory_than_it_may_is_refused(command: str, tmp_path: Path) -> None:
    changes = {
        "dataset.features": [1, 256, 256],
        "training.local.batch_size": 64,
        "memory.limit": limit(500_000_000),
    }
    assert call("show", write_config(tmp_path, changes)).status == 0
    changes |= {"model.name": "cnn", "model.channels": [256], "model.hidden": 0}
    called = call(command, write_config(tmp_path, changes), "--out", tmp_path / "out")
    assert_refused(
        called, "of memory, but memory.limit allows", "lower training.local.batch_size ("
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "show"])
def test_a_run_that_needs_more_than_the_disk_has_is_refused(command: str, tmp_path: Path) -> None:
    changes = {
        "dataset.features": [1_000_000],
        "dataset.train": 1_000_000,
        "stream.clients": 1_000_000,
        "stream.partition.name": "iid",
        "training.rounds": 10_000_000,
        "method.name": "replay",
        "method.budget": 10**9,
    }
    config = write_config(tmp_path, changes)
    called = call(command, config, "--out", tmp_path / "new" / "out")
    assert_refused(called, "8.43 TB of disk, but the disk of", "stream.clients", "another --out")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "changes"),
    [
        ("model", {"training.cohort": 1}),
        ("training.fold", {"training.fold": 16}),
        ("engine.block", {"engine.name": "vectorized", "engine.path": "vmap"}),
        ("engine.workers", {"engine.name": "ray", "engine.workers": 40}),
    ],
)
def test_the_part_to_lower_is_named(option: str, changes: dict[str, Any]) -> None:
    changes |= {"model.hidden": [20_000, 500], "memory.limit": limit(100_000_000)}
    with pytest.raises(ConfigError, match=rf"lower {option} \(.*B of it is .*\), or raise mem"):
        fedcl.run(tiny(changes))


def test_a_run_that_no_machine_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"this machine has .*, or take a larger machine"):
        fedcl.run(tiny({"engine.name": "ray", "engine.workers": 10**6}))


def test_a_limit_below_python_itself_can_only_be_raised() -> None:
    with pytest.raises(ConfigError, match=r"memory\.limit allows 1\.00 MB: raise memory\.limit"):
        fedcl.run(tiny({"memory.limit": 1_000_000}))


def test_what_lies_in_the_folder_already_counts_as_room(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**12)
    assert 0.9e12 < disk_room(tmp_path) - disk_room(tmp_path / "not" / "there") < 1.1e12


# --- Words ---


def test_show_says_what_a_run_needs_and_what_there_is(tmp_path: Path) -> None:
    called = call("show", write_config(tmp_path, {"memory.limit": 10**12}))
    lines = [line.rstrip() for line in called.out.splitlines()]
    table = lines[lines.index("what a run needs, about") :]
    (memory,) = (line.split("  ") for line in table if line.startswith("memory in all"))
    assert memory[-1] == "1.00 TB are allowed"
    assert any(line.startswith("disk in all") and line.endswith(" here") for line in table)
    assert any(line.startswith("time on one processor") for line in table)
    assert "tune" not in "\n".join(lines[: lines.index("seed = 0")])


def test_show_says_that_a_choice_will_be_measured(tmp_path: Path) -> None:
    changes = {"engine.name": "vectorized", "engine.tune": True}
    called = call("show", write_config(tmp_path, changes))
    assert "engine.tune = true: a run first measures" in called.out


TIMES = {3: "some seconds", 44: "about 40 s", 130: "about 2 min", 7000: "about 2 h"}


@pytest.mark.parametrize(("seconds", "words"), [*TIMES.items(), (300_000, "about 3 days")])
def test_times_are_rough(seconds: float, words: str) -> None:
    assert show_seconds(seconds) == words


@pytest.mark.parametrize(("clients", "same"), [(2, "serial"), (16, "vectorized")])
def test_auto_needs_what_its_choice_needs(clients: int, same: str) -> None:
    runs = [parse(override(BASE, {"stream.clients": clients, "engine.name": same}))]
    runs.append(parse(override(BASE, {"stream.clients": clients, "engine.name": "auto"})))
    own, other = (forecast(run, build_site(run)).memory for run in runs)
    assert own[1:] == other[1:]


def test_whoever_is_never_asked_remembers_nothing() -> None:
    table = override(BASE, {**REMEMBERING, "training.cohort": 10})
    few = parse(table)
    everybody = parse(override(table, {"training.cohort": 0}))
    # In five rounds, ten clients remember their ten examples; else 1,000 remember fifty each.
    found = [_memories(forecast(run, build_site(run))) for run in (few, everybody)]
    assert 0.01 <= found[0] / found[1] < 0.012


def _memories(found: Forecast) -> float:
    return float(next(part.size for part in found.memory if part.what == "clients' memories"))
