"""Files that arrive: which of them are arrivals, what is held out, and what is refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcl.core.data.arrival import Source
from fedcl.core.data.table import ArrayTable
from fedcl.core.errors import ConfigError
from fedcl.datasets.arrivals import Arrivals
from tests.arriving_data import CLASSES, SHAPE, arrival, arrive, deliver, house


def source(root: Path | str, **options: Any) -> Source:
    plan = {"root": str(root), "shape": SHAPE, "classes": CLASSES, **options}
    found = Arrivals(**plan).load().source
    assert found is not None
    return found


def test_a_server_has_neither_rows_nor_a_folder() -> None:
    data = Arrivals(shape=SHAPE, classes=CLASSES).load()
    assert (data.shape, data.classes) == (SHAPE, CLASSES)
    assert len(data.train.labels) == len(data.test.labels) == 0
    assert data.source is not None and not data.source.here
    assert data.source.names(0) == () and data.source.missing(9) == ()


def test_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing, in dataset.root; set it to"):
        Arrivals(root=str(tmp_path / "nowhere")).load()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="not a folder"):
        Arrivals(root=str(tmp_path / "file")).load()


def test_whole_files_count_in_the_order_of_their_names(tmp_path: Path) -> None:
    data = arrival(0, 0)
    for name in ("b.npz", "a.npz"):
        arrive(tmp_path, name, **data)
    for name in (".c.npz.part", ".d.npz", "notes.txt", "e.npz.tmp"):
        (tmp_path / name).write_bytes(b"half of it")
    (tmp_path / "f.npz").mkdir()
    own = source(tmp_path)
    assert own.here and list(own.names(3)) == ["a.npz", "b.npz"]
    arrive(tmp_path, "aa.npz", **data)
    assert list(own.names(3)) == ["a.npz", "aa.npz", "b.npz"]


def test_a_house_has_a_folder_for_each_client(tmp_path: Path) -> None:
    own = source(house(tmp_path, clients=2, arrivals=1))
    deliver(tmp_path, 1, 5)
    assert list(own.names(0)) == ["000.npz"] and list(own.names(1)) == ["000.npz", "005.npz"]
    assert own.missing(2) == [] and own.missing(4) == [2, 3]


def numbers(table: ArrayTable) -> list[float]:
    """Returns the first number of each row, over 16."""
    return [float(row[0, 0, 0]) / 16 for row in table.rows(np.arange(len(table.labels)))]


def test_a_share_of_each_class_is_held_out_by_client_and_name(tmp_path: Path) -> None:
    values = np.arange(40 * 16, dtype=np.float32).reshape(40, *SHAPE)
    for client in (0, 1):
        for name in ("a.npz", "b.npz"):
            arrive(tmp_path / str(client), name, x=values, y=np.arange(40) % 4)
    own = source(tmp_path, test_fraction=0.25)
    held = {}
    for client in (0, 1):
        for name in ("a.npz", "b.npz"):
            found = own.load(client, name)
            rows = numbers(found.test)
            assert np.bincount(found.test.labels).tolist() == [3, 2, 3, 2]
            assert sorted(rows + numbers(found.train)) == list(range(40))
            held[client, name] = tuple(rows)
    assert len(set(held.values())) == 4
    again = source(tmp_path, test_fraction=0.25).load(1, "b.npz")
    assert tuple(numbers(again.test)) == held[1, "b.npz"]
    assert not len(source(tmp_path, test_fraction=0.0).load(0, "a.npz").test.labels)


def test_inputs_have_the_units_of_all_data_sets(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), 51, np.uint8)
    arrive(tmp_path, "a.npz", x=pixels, y=np.arange(4))
    table = source(tmp_path, mean=0.1, std=0.5, test_fraction=0.0).load(0, "a.npz").train
    assert table.values.shape == (4, 1, 4, 4)
    assert np.allclose(table.rows(np.arange(4)), (51 / 255 - 0.1) / 0.5)


GOOD = {"x": np.zeros((4, *SHAPE)), "y": np.arange(4)}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"x": GOOD["x"]}, "no array y"),
    "another shape": ({**GOOD, "x": np.zeros((4, 1, 5, 5))}, r"shape \(1, 5, 5\), but dataset"),
    "another class": ({**GOOD, "y": np.array([0, 1, 2, 4])}, "label 4, but labels go from 0 to 3"),
    "too few labels": ({**GOOD, "y": np.arange(3)}, r"y has shape \(3,\) but x has 4 rows"),
    "no rows": ({"x": np.zeros((0, *SHAPE)), "y": np.zeros(0, int)}, "no rows"),
    "NaN": ({**GOOD, "x": np.full((4, *SHAPE), np.nan)}, "NaN or infinite in row 0"),
    "objects": ({**GOOD, "x": np.array([None] * 4, dtype=object)}, "no Python objects"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_file_that_cannot_be_used_is_named(fault: str, tmp_path: Path) -> None:
    arrays, why = BAD[fault]
    path = arrive(tmp_path, "a.npz", **arrays)
    with pytest.raises(ConfigError, match=why) as error:
        source(tmp_path).load(0, "a.npz")
    assert str(path) in str(error.value)


def test_a_file_that_is_cut_short_or_gone_is_named(tmp_path: Path) -> None:
    path = arrive(tmp_path, "a.npz", **GOOD)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigError, match=r"a\.npz; save it with numpy.savez, or copy it again"):
        source(tmp_path).load(0, "a.npz")
    path.unlink()
    with pytest.raises(ConfigError, match=r"arrival 'a\.npz' of client 0 is gone"):
        source(tmp_path).load(0, "a.npz")


def test_a_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    arrive(tmp_path, "a.npz", **GOOD)
    own = source(tmp_path)
    first = own.load(0, "a.npz")
    assert own.load(0, "a.npz") is first
    arrive(tmp_path, "a.npz", **{**GOOD, "x": np.ones((4, *SHAPE))})
    second = own.load(0, "a.npz")
    assert second.digest != first.digest and second.train.values.max() == 1
    assert pickle.loads(pickle.dumps(own)).load(0, "a.npz").digest == second.digest


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"shape": ()}, "shape must name"),
        ({"shape": (3, 0)}, "all above 0"),
        ({"classes": 1}, "classes must be at least 2"),
        ({"std": 0.0}, "std must be positive"),
        ({"test_fraction": 1.0}, "test_fraction must lie"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Arrivals(**options)
