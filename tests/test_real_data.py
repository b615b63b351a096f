"""The shipped configs of real streams, run for a round or two, where real data are at hand."""

from pathlib import Path

import numpy as np
import pytest

import fedcl
from fedcl.assembly import build_site
from fedcl.core.data.stream import Stream

CONFIGS = Path(__file__).parent.parent / "configs"


def load(name: str, root: Path, **changes: object) -> fedcl.Experiment:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return fedcl.load_config(CONFIGS / f"{name}.toml", {"dataset.root": str(root), **dotted})


def stream_of(experiment: fedcl.Experiment) -> Stream:
    stream: Stream = build_site(experiment).population.stream  # type: ignore[attr-defined]
    return stream


@pytest.mark.parametrize(
    "name", ["split_mnist", "pacs_domains", "uci_har_people", "electricity", "fot_pmnist"]
)
def test_a_shipped_config_runs_on_its_data(name: str, data_root: Path) -> None:
    small = {"training__rounds": 1, "training__cohort": 2, "engine__name": "serial"}
    own: dict[str, dict[str, object]] = {
        "fot_pmnist": {"stream__tasks": 2},
        "pacs_domains": {"model__channels": [8, 16], "model__hidden": 16},
    }
    record = fedcl.run(load(name, data_root, **small, **own.get(name, {}), evaluation__clients=3))
    summary = record.summary
    matrix = np.array(summary["accuracy_matrix"])
    assert matrix.shape == (summary["rounds"], summary["rounds"])
    assert np.isfinite(matrix).all()
    assert summary["clients"]["average_accuracy"]["count"] == 3


def test_split_mnist_has_two_digits_a_task(data_root: Path) -> None:
    stream = stream_of(load("split_mnist", data_root))
    assert (stream.scenario, stream.clients, stream.stages) == ("class", 10, 5)
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert sum(len(task.test) for task in stream.tasks) == 10_000


def test_pacs_has_four_domains_of_seven_classes(data_root: Path) -> None:
    stream = stream_of(load("pacs_domains", data_root))
    assert (stream.scenario, len(stream.tasks)) == ("domain", 4)
    assert all(task.classes == tuple(range(7)) for task in stream.tasks)
    assert sum(len(task.train) for task in stream.tasks) == 7993


def test_each_person_goes_through_their_own_time(data_root: Path) -> None:
    """Every part lies after the one before, and no window of a part overlaps a test window."""
    stream = stream_of(load("uci_har_people", data_root))
    assert (stream.clients, stream.stages) == (30, 6)
    people, times = (stream.dataset.train.columns[key] for key in ("subject", "position"))
    for client in range(stream.clients):
        last = -1
        for stage in range(stream.stages):
            own = stream.rows(client, stage)
            assert len(own) and set(people[own]) == {stream.natural_ids()[client]}
            assert times[own].min() > last
            last = int(times[own].max())
    tested, owners = (stream.dataset.test.columns[key] for key in ("position", "subject"))
    for person in stream.natural_ids():
        # Neighbours in a person's recording share half of their samples.
        test, train = tested[owners == person], times[people == person]
        near = np.concatenate([test - 1, test, test + 1])
        assert len(test) and len(np.intersect1d(near, train)) == 0


def test_electricity_drifts_without_borders(data_root: Path) -> None:
    """Parts follow each other in time, and no training row lies within a day of a test row."""
    stream = stream_of(load("electricity", data_root))
    assert (stream.scenario, stream.borders, stream.clients, stream.stages) == (
        "domain",
        False,
        20,
        10,
    )
    train, test = (
        table.columns["position"] for table in (stream.dataset.train, stream.dataset.test)
    )
    near = np.searchsorted(train, test - 48), np.searchsorted(train, test + 48, side="right")
    assert np.array_equal(*near)
    borders = [0, *(train[task.train].min() for task in stream.tasks[1:]), 45_312]
    for task, begin, end in zip(stream.tasks, borders[:-1], borders[1:], strict=True):
        for times in (train[task.train], test[task.test]):
            assert begin <= times.min() and times.max() < end
        assert {int(size) for size in stream.sizes(task.index)} <= {168, 169}


@pytest.mark.parametrize(
    ("name", "middle", "most"), [("fot_pmnist", 10, 10), ("fot_pmnist_noniid", 2, 4)]
)
def test_permuted_mnist_is_fots_protocol(
    name: str, middle: int, most: int, data_root: Path
) -> None:
    """125 clients with 480 images each; two shards of 240 hold at most two labels each."""
    experiment = load(name, data_root)
    stream = stream_of(experiment)
    assert (stream.clients, len(stream.tasks)) == (125, 10)
    assert (experiment.training.cohort, experiment.training.rounds) == (64, 200)
    counts = np.array([stream.label_counts(client, 3) for client in range(125)])
    assert (counts.sum(1) == 480).all()
    held = (counts > 0).sum(1)
    assert (np.median(held), held.max() <= most) == (middle, True)
    assert stream.tasks[0].transform is None and stream.tasks[1].transform is not None
