"""The study of kron: which runs it has, and what is known of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kron_rows import (
    PHASES,
    ROWS,
    SETTINGS,
    SIGMAS,
    SMOKE_CIFAR,
    SMOKE_MNIST,
)
from ladder import TUNING_SEED, Queue, Search, climb
from runner import Cell

from fedcl.config import available


@dataclass(frozen=True)
class Study:
    """The study in one folder.

    Attributes:
        out: Its folder.
        root: Folder of the data.
        streams: Those that are run and shown.
        rows: Those that are run and shown.
        grid: Values tried at first.
        smoke: Whether data are synthetic and tiny.
    """

    out: Path
    root: str
    streams: tuple[str, ...] = tuple(SETTINGS)
    rows: tuple[str, ...] = tuple(ROWS)
    grid: int = 5
    smoke: bool = False

    @cached_property
    def queue(self) -> Queue:
        """The runs in its folder."""
        return Queue(self.out)

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """Returns a finished cell's summary, or None."""
        return self.queue.summary(cell)

    def cell(self, stream: str, row: str, value: float | None, seed: int, split: str) -> Cell:
        """Returns one run."""
        setting, own = SETTINGS[stream], ROWS[row]
        method = dict(own.method)
        if value is not None:
            method[own.option] = value
        if setting.masked and row != "joint":
            method["masked"] = True
        changes = {**setting.changes, "method": method, "seed": seed}
        changes |= {"evaluation.splits": [split], "checkpoint.seconds": 60}
        if self.smoke:
            changes |= SMOKE_MNIST if setting.mnist else SMOKE_CIFAR
        else:
            changes["dataset.root"] = str(self.out / "data") if setting.mnist else self.root
        words = [stream, row, *([] if value is None else [f"{own.option}={value:g}"])]
        name = ["tune", *words] if split == "validation" else [*words, str(seed)]
        return Cell("-".join(name), setting.config, changes)

    def noisy(self, stream: str, sigma: float, seed: int) -> Cell | None:
        """Returns kron's final run with noise on its moments, once its mu is known."""
        final = self.final(stream, "kron", seed)
        if final is None or not sigma:
            return final
        channel = [{"name": "noise:MomentNoise", "sigma": sigma}]
        return final.but(name=f"noise={sigma:g}-{final.name}", changes={"channel": channel})

    def search(self, stream: str, row: str) -> Search:
        """Returns how far a row's search is; it only reads."""
        own = ROWS[row]
        if not own.option:
            return Search()

        def candidate(value: float) -> Cell:
            return self.cell(stream, row, value, TUNING_SEED, "validation")

        return climb(self.queue, own.ladder, own.first, self.grid, candidate, self.smoke)

    def final(self, stream: str, row: str, seed: int) -> Cell | None:
        """Returns a run with the value that did best, or None until that is known."""
        found = self.search(stream, row)
        if found.place is None:
            return None
        return self.cell(stream, row, found.chosen, seed, "test")

    def plan(self) -> Iterator[Cell]:
        """Yields what could be run now, the most important first, what is finished too."""
        for phase in PHASES:
            streams = [name for name in phase.streams if name in self.streams]
            rows = [name for name in phase.rows if name in self.rows]
            pairs = [(s, r) for s in streams for r in rows if possible(s, r)]
            if self.smoke and streams != ["pmnist-iid"]:
                pairs = [(s, r) for s, r in pairs if s == "pmnist-iid" or r in ("fot", "kron")]
            for stream, row in pairs:
                yield from self.search(stream, row).tried
            for seed in range(1 if self.smoke else phase.seeds):
                for stream, row in pairs:
                    cells = [self.final(stream, row, seed)]
                    if phase.noise:
                        cells = [self.noisy(stream, sigma, seed) for sigma in SIGMAS]
                    yield from (cell for cell in cells if cell is not None)


def possible(stream: str, row: str) -> bool:
    """Returns whether a row exists and differs from others in a stream."""
    known = ROWS[row].method["name"] in available("methods")
    return known and SETTINGS[stream].scenario in ROWS[row].scenarios
