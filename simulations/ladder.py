"""Hyper-parameters from a ladder of values, and a queue that carries on while choices are open.

Some neighbours on the ladder are tried with a seed of their own on validation data; while the best
is the first or the last that was tried, the next value is tried too. Several processes may work on
one folder: what one of them finishes opens further runs to all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner import Cell, summary_of, work

TUNING_SEED = 100  # none of those that results are reported with


@dataclass(frozen=True)
class Queue:
    """The runs of a study in one folder.

    Attributes:
        out: The folder.
    """

    out: Path
    _known: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """Returns a finished cell's summary, which never changes, or None."""
        if cell.name not in self._known:
            found = summary_of(cell, self.out)
            if found is None:
                return None
            self._known[cell.name] = found
        return self._known[cell.name]

    def failed(self, cell: Cell) -> bool:
        """Returns whether a cell has failed; remove its file in failed/ to try again."""
        return (self.out / "failed" / cell.name).exists()

    def step(self, plan: Iterable[Cell]) -> bool:
        """Runs the first cell that is neither finished, taken nor failed.

        Args:
            plan: What could be run now, the most important first; finished cells may be among it.

        Returns:
            Whether anything may be left to do.
        """
        waiting = False
        for cell in plan:
            if self.failed(cell) or self.summary(cell) is not None:
                continue
            try:
                work([cell], self.out)
            except SystemExit as error:
                # Else one method would stop the study of all.
                (self.out / "failed").mkdir(exist_ok=True)
                (self.out / "failed" / cell.name).write_text(f"{error}\n", encoding="utf-8")
                return True
            if self.summary(cell) is not None:
                return True
            waiting = True
        if waiting:  # for another process, whose result may open more cells
            time.sleep(10)
        return waiting

    def validated(self, cell: Cell) -> float:
        """Returns a finished candidate's average accuracy on validation data.

        Raises:
            ValueError: It is not finished, or has looked at the test set.
        """
        found = self.summary(cell)
        if found is None or found["split"] != "validation":
            raise ValueError(f"candidate {cell.name} has no accuracy on validation data")
        accuracy: float = found["average_accuracy"]
        return accuracy


@dataclass(frozen=True)
class Search:
    """How far the choice of a value is.

    Attributes:
        tried: One cell for each value, ascending; none where there is no option.
        values: The values.
        place: Which did best; None until all are known.
        open: Whether the best is at an end of the ladder, so that a better one may lie beyond.
    """

    tried: tuple[Cell, ...] = ()
    values: tuple[float, ...] = ()
    place: int | None = 0
    open: bool = False

    @property
    def chosen(self) -> float | None:
        """The best value, if there is an option and all of its values are known."""
        return self.values[self.place] if self.values and self.place is not None else None


def climb(
    queue: Queue,
    ladder: Sequence[float],
    first: float,
    count: int,
    make: Callable[[float], Cell],
    still: bool = False,
    most: int = 1000,
) -> Search:
    """Returns how far a search on a ladder is; it only reads.

    Args:
        queue: Knows what is finished.
        ladder: Values, ascending.
        first: The least of those that are tried at first.
        count: How many are tried at first.
        make: Returns the candidate with a value.
        still: Whether no further values are tried, as in a smoke test.
        most: Values tried at most: a plateau ends nowhere.
    """
    low = ladder.index(first)
    high = min(low + count, len(ladder))
    while True:
        values = tuple(ladder[low:high])
        tried = tuple(make(value) for value in values)
        done = [cell for cell in tried if queue.summary(cell) is not None]
        if not done or any(c not in done and not queue.failed(c) for c in tried):
            return Search(tried, values, None)
        place = tried.index(max(done, key=queue.validated))
        if still:
            return Search(tried, values, place)
        full = len(tried) >= most
        if place == 0 and low > 0 and not full:
            low -= 1
        elif place == len(tried) - 1 and high < len(ladder) and not full:
            high += 1
        else:
            return Search(tried, values, place, place in (0, len(tried) - 1))
