"""Which records a run was trained on: repeats with and without them, each attacked by the rest."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcl.auditing.membership import confidence_margin
from fedcl.auditing.targets import LEAST, STATISTICS, Cell, coins, judged
from fedcl.core.audit import Records, Repeat, Subject
from fedcl.core.errors import ConfigError
from fedcl.core.params import Params
from fedcl.core.seeds import numpy_generator, seed_of
from fedcl.core.watch import Finding, Watch

__all__ = ["Membership"]

NOTE = (
    "Record level, global model, an attacker that knows the stream and the members of all other "
    "repeats; other attacks may find more. Repeats learn about half of the audited records and are "
    "the targets; the run itself learns all, so that there is nobody to tell its members from. "
    "Intervals leave out that targets attack each other with the same pairs of answers. No epsilon "
    "follows: records of one run depend on each other. Single replies, clients as a unit, and that "
    "the worst of many cells is chosen are not covered."
)


@dataclass(frozen=True)
class Membership:
    """The leak matrix: membership of each task's records, told from the model after each stage.

    The experiment is repeated, each audited record held in or out by a fair coin. Each repeat is
    then the target of likelihood ratios (LiRA: Carlini et al., 2022; one variance for all records
    with fewer than 64 repeats), of RMIA (Zarifzadeh et al., 2024; compared with test records, which
    no repeat learns) and of the confidence alone, by an attacker that knows all other repeats.

    Attributes:
        shadows: Repeats. Each costs a run, on the engine `serial` if the run's is, else
            `vectorized`.
        records: Training records audited of each task, drawn by the seed; 0 for all.
        population: Test records of each task that RMIA compares with; 0 for all.
        workers: Processes that repeat; 1 for this one.
        together: Repeats that train side by side, as one batched computation where that can be
            done: with plain SGD, a cross-entropy without penalty and `vectorized`. They differ from
            repeats one after the other (1) by rounding alone.
        seed: Decides records, coins and the seeds of the repeats.
        keep: Whether to write the margins, coins and populations into audit/membership_cells.npz.
    """

    shadows: int = 16
    records: int = 500
    population: int = 500
    workers: int = 1
    together: int = 16
    seed: int = 0
    keep: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("shadows", LEAST),
            ("records", 0),
            ("population", 0),
            ("workers", 1),
            ("together", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")

    def open(self, subject: Subject) -> Watch:
        """Begins to watch a run, which is repeated at its end."""
        if subject.repeat is None:
            raise ConfigError("membership repeats the run, and this one cannot be repeated")
        if not any(len(task.train) and len(task.test) for task in subject.stream.tasks):
            raise ConfigError("membership needs training and test records, and there are none")
        return _Watch(self, subject, subject.repeat)


@dataclass(frozen=True)
class _Watch(Watch):
    options: Membership
    subject: Subject
    repeat: Repeat

    def finish(self, params: Params) -> Finding:
        """Repeats the run, attacks each repeat, and returns the leak matrix."""
        records, members, kept = self._drawn()
        answers = self._answers(kept, records)
        rows, arrays = [], {}
        for stage in range(len(answers[0])):
            for own in records:
                if own.task not in answers[0][stage]:
                    continue
                logits = torch.stack([answer[stage][own.task] for answer in answers])
                cell, right = self._cell(own, logits, members[:, own.train])
                rows += self._rows(stage, own.task, cell, right)
                for name in ("margins", "members", "population"):
                    arrays[f"{name}_{stage}_{own.task}"] = getattr(cell, name)
        worst = max(rows, key=lambda row: row["auc"])
        return Finding(
            numbers={
                "worst_auc": worst["auc"],
                "worst_auc_low": worst["auc_low"],
                "worst_stage": worst["stage"],
                "worst_task": worst["task"],
                "worst_statistic": worst["statistic"],
                "worst_tpr_1": worst["tpr_1"],
                "negatives": worst["negatives"],
                "shadows": self.options.shadows,
            },
            tables={"membership": rows},
            pictures={"cells": arrays} if self.options.keep else {},
            note=NOTE,
        )

    def _drawn(self) -> tuple[list[Records], NDArray[np.bool_], NDArray[np.bool_]]:
        """Returns the records, and (shadows, N) who is a member and which rows are held.

        A row that several tasks share has one coin: it is in all of them or in none.
        """
        options, stream = self.options, self.subject.stream
        found = []
        for task in stream.tasks:
            if len(task.train) and len(task.test):
                random = numpy_generator(self.subject.seed, "membership", options.seed, task.index)
                found.append(
                    Records(
                        task.index,
                        _some(task.train, options.records, random),
                        _some(task.test, options.population, random),
                    )
                )
        rows = np.unique(np.concatenate([records.train for records in found]))
        kept = np.ones((options.shadows, len(stream.dataset.train.labels)), dtype=np.bool_)
        seed = seed_of(self.subject.seed, "membership", options.seed, "coins")
        kept[:, rows] = coins(options.shadows, len(rows), seed)
        return found, kept.copy(), kept

    def _answers(
        self, kept: NDArray[np.bool_], records: Sequence[Records]
    ) -> list[Sequence[Mapping[int, Tensor]]]:
        start = (self.subject.seed, "membership", self.options.seed, "run")
        seeds, size = [seed_of(*start, run) for run in range(len(kept))], self.options.together
        parts = [slice(first, first + size) for first in range(0, len(kept), size)]
        jobs = [(seeds[part], list(kept[part]), records) for part in parts]
        if self.options.workers == 1:
            return [answer for job in jobs for answer in self.repeat.together(*job)]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.options.workers, context) as pool:
            found = pool.map(self.repeat.together, *zip(*jobs, strict=True))
            return [answer for answers in found for answer in answers]

    def _cell(
        self, records: Records, logits: Tensor, members: NDArray[np.bool_]
    ) -> tuple[Cell, NDArray[np.bool_]]:
        """Returns a cell of (runs, n + m, classes) logits, and which of its answers are right."""
        data, count = self.subject.stream.dataset, len(records.train)
        labels = np.concatenate([data.train.labels[records.train], data.test.labels[records.test]])
        wanted = torch.from_numpy(labels).expand(logits.shape[:2])
        margins = confidence_margin(logits, wanted).numpy()
        right = (logits.argmax(-1) == wanted).numpy()[:, :count]
        return Cell(margins[:, :count], members, margins[:, count:]), right

    def _rows(
        self, stage: int, task: int, cell: Cell, right: NDArray[np.bool_]
    ) -> list[dict[str, Any]]:
        seed = seed_of(self.options.seed, "membership", stage, task)
        accuracy = {
            "accuracy_members": float(right[cell.members].mean()),
            "accuracy_others": float(right[~cell.members].mean()),
        }
        start = {"stage": stage, "task": task}
        return [
            {**start, "statistic": name, **judged(cell, name, seed), **accuracy}
            for name in STATISTICS
        ]


def _some(rows: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Returns so many of the rows, ascending; all for 0 or where there are no more."""
    if not count or count >= len(rows):
        return np.sort(rows)
    return np.sort(random.choice(rows, count, replace=False))
