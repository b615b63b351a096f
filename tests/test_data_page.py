"""The page docs/data.md: its examples load, from files as it describes, and nothing is left out."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcl.core.data.dataset import Dataset
from fedcl.core.errors import ConfigError
from fedcl.plugins import available, find, plugin
from tests import hub_files, pictures
from tests.commands import ROOT
from tests.hub_files import TRAIN, features

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
EXAMPLES = {
    f"{name} {number}": tomllib.loads(block)["dataset"]
    for name, text in SECTIONS.items()
    for number, block in enumerate(re.findall(r"```toml\n(.*?)```", text, re.S))
}


def archives(data: Path) -> None:
    images = np.zeros((8, 4, 4, 3), np.uint8)
    split = {"x": images, "y": np.arange(8) % 4, "domain": np.arange(8) // 4}
    twice: dict[str, Any] = {
        f"{key}_{part}": value for key, value in split.items() for part in ("train", "test")
    }
    np.savez(data / "pacs32.npz", **twice)
    np.savez(
        data / "windows.npz", x=np.zeros((160, 9)), y=np.arange(160) % 2, subject=np.zeros(160, int)
    )


def idx(data: Path) -> None:
    (data / "mnist").mkdir()
    for split in ("train", "t10k"):
        images = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 5, 6))
        (data / "mnist" / f"{split}-images-idx3-ubyte").write_bytes(images)
        labels = bytes((0, 0, 8, 1, 0, 0, 0, 2, 0, 1))
        (data / "mnist" / f"{split}-labels-idx1-ubyte").write_bytes(labels)


def folders(data: Path) -> None:
    for label in ("ant", "dog"):
        for number in range(4):
            pictures.save(data / "undivided" / label / f"{number}.png", number)
        for split in ("train", "test"):
            for domain in ("art", "photo"):
                pictures.save(data / "pictures" / split / domain / label / "0.jpg")


def saved(data: Path) -> None:
    double = {key: [*values, *values] for key, values in TRAIN.items()}
    hub_files.save(data / "saved", "disk", features(), train=double)


# What must be known of the data sets that the examples name.
KNOWN: dict[str, Callable[[Dataset], Any]] = {
    "digits 0": lambda d: (d.classes, d.shape) == (10, (1, 8, 8)),
    "synthetic 0": lambda d: (len(d.train.labels), d.shape) == (1_000_000, (1, 28, 28)),
    "npz 0": lambda d: (d.shape, set(d.train.columns)) == ((3, 4, 4), {"domain"}),
    "npz 1": lambda d: (d.shape, set(d.test.columns)) == ((9,), {"subject", "position"}),
    "idx 0": lambda d: (d.classes, d.shape) == (2, (1, 1, 1)),
    "folder 0": lambda d: (
        (d.shape, d.train.columns["domain"].tolist()) == ((3, 32, 32), [0, 0, 1, 1])
    ),
    "folder 1": lambda d: (len(d.train.labels), len(d.test.labels)) == (6, 2),
    "hub 1": lambda d: (
        (d.shape, len(d.train.labels), set(d.test.columns)) == ((1, 16, 24), 6, {"domain"})
    ),
    "arrivals 0": lambda d: (
        (d.shape, d.classes, len(d.train.labels), d.source is None) == ((1, 28, 28), 10, 0, False)
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_loads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "arriving").mkdir()
    for make in (archives, idx, folders, saved):
        make(data)
    built, _ = plugin("datasets", EXAMPLES[name], "dataset")
    if name == "hub 0":  # lies on the network, which tests do without
        with pytest.raises(ConfigError, match="Couldn't reach 'uoft-cs/cifar10'"):
            built.load()
    else:
        assert KNOWN[name](built.load())


def test_every_data_set_and_each_of_its_options_is_there() -> None:
    assert list(SECTIONS) == ["digits", "synthetic", "npz", "idx", "folder", "hub", "arrivals"]
    assert set(SECTIONS) == set(available("datasets"))
    common = PAGE[: PAGE.index("## ")]
    for name, text in SECTIONS.items():
        for option in fields(find("datasets", name)):
            assert re.search(rf"\b{option.name}\b", text + common), f"{name}: {option.name}"
