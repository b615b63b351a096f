"""What a run leaves in its folder: tables, model, summary.

The CSV files are exports of the checkpoint (`fedcl.store`), written whole and renamed;
`summary.json` comes last and marks completion.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.torch
from torch import Tensor

from fedcl.core.task import Examples

EVALUATIONS = (
    "round",
    "stage",
    "client",
    "client_stage",
    "model",
    "task",
    "split",
    "metric",
    "value",
    "n",
)
COSTS = (
    "round",
    "stage",
    "client",
    "direction",
    "payload",
    "bytes",
    "steps",
    "examples",
    "padded",
    "seconds",
)
REJECTED = ("round", "stage", "exchange", "program", "client", "reason")
PRIVACY = ("channel", "mechanism", "unit", "epsilon", "delta", "note")

Row = Mapping[str, Any]


@dataclass
class Record:
    """What a run leaves: the long tables and the summary.

    Attributes:
        evaluations: Rows of evaluations.csv (METRICS.md, section 1).
        costs: Rows of costs.csv.
        summary: Contents of summary.json; empty while the run goes on.
        params: The final global model.
        folder: Where the files lie, or None.
    """

    evaluations: list[Row] = field(default_factory=list)
    costs: list[Row] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    params: Mapping[str, Tensor] = field(default_factory=dict)
    folder: Path | None = None


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that gets its name when it is whole, so that no reader meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as file:
        yield file
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Writes a file, whole or not at all."""
    with _whole(path) as file:
        file.write(text.encode())


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Writes a CSV file, whole or not at all; missing values are empty."""
    with _whole(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow(["" if row[column] is None else row[column] for column in columns])


def export(
    folder: Path, evaluations: Iterable[Row], costs: Iterable[Row], privacy: Iterable[Row]
) -> None:
    """Writes the CSV files of a run's folder."""
    write_rows(folder / "evaluations.csv", EVALUATIONS, evaluations)
    write_rows(folder / "costs.csv", COSTS, costs)
    write_rows(folder / "privacy.csv", PRIVACY, privacy)


def write_samples(folder: Path, stage: int, images: Examples) -> None:
    """Writes synthetic images of a stage: `images` in the units of the data, and their `labels`.

    The same images give the same bytes: NumPy's archives hold no time.
    """
    pixels = images.x.detach().float().cpu().numpy()
    arrays = {"images": pixels, "labels": images.y.cpu().numpy()}
    write_arrays(folder / "samples" / f"stage_{stage}.npz", arrays)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes a compressed archive of arrays, whole or not at all."""
    with _whole(path) as file:
        np.savez_compressed(file, **arrays)


def finish(record: Record) -> None:
    """Writes the final model and, last of all, the summary."""
    assert record.folder is not None
    tensors = {name: value.detach().cpu().contiguous() for name, value in record.params.items()}
    with _whole(record.folder / "model.safetensors") as file:
        file.write(safetensors.torch.save(tensors))
    write_text(
        record.folder / "summary.json", json.dumps(record.summary, indent=2, allow_nan=False) + "\n"
    )
