"""Small data sets saved in the formats of the package `datasets`, for tests without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.pictures import picture

Rows = Mapping[str, Sequence[Any]]
CLASSES = ["cat", "ant", "dog"]


def pictures(numbers: Sequence[int], labels: Sequence[int], **columns: Sequence[Any]) -> Rows:
    """Returns the columns of a split of pictures with labels of three classes."""
    return {"image": [picture(n) for n in numbers], "label": list(labels), **columns}


TRAIN = pictures([1, 2, 3, 4], [0, 2, 1, 0], domain=["photo", "art", "photo", "art"])
TEST = pictures([5, 6], [1, 2], domain=["sketch", "art"])


def features(**changes: Any) -> dict[str, Any]:
    """Returns the types of the columns of `pictures`, with changes; None leaves one out."""
    from datasets import ClassLabel, Image, Value

    kinds = {"image": Image(), "label": ClassLabel(names=CLASSES), "domain": Value("string")}
    return {key: kind for key, kind in {**kinds, **changes}.items() if kind is not None}


def save(
    folder: Path,
    form: str = "disk",
    kinds: Mapping[str, Any] | None = None,
    **splits: Rows,
) -> Path:
    """Writes splits by `save_to_disk`, as parquet files or as one split without a name ("one")."""
    import datasets

    types = datasets.Features(kinds) if kinds is not None else None
    made = {
        name: datasets.Dataset.from_dict(dict(rows), features=types)
        for name, rows in splits.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    if form == "parquet":
        for name, split in made.items():
            split.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    elif form == "one":
        (split,) = made.values()
        split.save_to_disk(folder)
    else:
        datasets.DatasetDict(made).save_to_disk(folder)
    return folder
