"""Repeats of an experiment without some records, and what they are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcl.assembly import build_model, build_site
from fedcl.config import Experiment, parse
from fedcl.core.audit import Records
from fedcl.core.data.fetch import fetch
from fedcl.core.data.stream import Stream
from fedcl.core.evaluate import predicted
from fedcl.core.site import Site
from fedcl.core.training.sidebyside import Joined, Meeting, side_by_side


def repeated(
    table: Mapping[str, Any], seed: int, kept: NDArray[np.bool_]
) -> tuple[Experiment, Site]:
    """Returns an experiment with another seed, and its site with the same stream but for some rows.

    It runs in this process: one after the other where the config says `serial`, else in blocks.

    Args:
        table: The resolved config.
        seed: Of all that is drawn but the stream.
        kept: (N,) which rows of the training split clients hold.

    Raises:
        ConfigError: Data, stream and model do not go together.
    """
    own = {"audit": [], "evaluation": {**table["evaluation"], "decompose": 0}}
    if table["engine"]["name"] != "serial":
        own["engine"] = {"name": "vectorized"}
    experiment = parse({**table, **own})
    site = build_site(experiment)
    stream = site.population.stream.keeping(kept)  # type: ignore[attr-defined]
    experiment = replace(experiment, seed=seed)
    data = stream.dataset
    model = build_model(experiment, data.shape, data.classes)
    return experiment, replace(
        site,
        population=replace(site.population, stream=stream),  # type: ignore[type-var]
        model=model.to(site.device, next(site.model.parameters()).dtype),
        seed=seed,
    )


@dataclass
class Look:
    """Asks a run about records at the end of each stage.

    Attributes:
        experiment: Its method says how to predict.
        site: Where the model computes.
        records: The records.
        found: Logits by task, stage by stage.
    """

    experiment: Experiment
    site: Site
    records: Sequence[Records]
    found: list[Mapping[int, Tensor]] = field(default_factory=list)

    @property
    def stream(self) -> Stream:
        """Who holds what, when."""
        stream: Stream = self.site.population.stream  # type: ignore[attr-defined]
        return stream

    def at(self, state: Any, stage: int) -> None:
        """Asks about the records of the tasks that were met up to a stage."""
        met = {task for earlier in range(stage + 1) for task in self.stream.present(earlier)}
        asked = [records for records in self.records if records.task in met]
        self.found.append({r.task: self._logits(state, r, stage) for r in asked})

    def _logits(self, state: Any, records: Records, stage: int) -> Tensor:
        data, transform = self.stream.dataset, self.stream.tasks[records.task].transform
        parts = ((data.train, records.train), (data.test, records.test))
        x = torch.cat([fetch(table, rows, transform).x for table, rows in parts])
        experiment, allowed = self.experiment, self.stream.head(records.task, stage)
        batch = experiment.evaluation.batch_size
        return predicted(experiment.method, state, self.site.model, x, allowed, batch)


@dataclass(frozen=True)
class Repeats:
    """Runs a resolved config once more; see `fedcl.core.audit.Repeat`.

    Attributes:
        table: The resolved config.
        run: Runs an experiment at a site, and asks at the end of each stage.
    """

    table: Mapping[str, Any]
    run: Callable[[Experiment, Site, Look], None]

    def __call__(
        self, seed: int, kept: NDArray[np.bool_], records: Sequence[Records]
    ) -> Sequence[Mapping[int, Tensor]]:
        """Returns what one run says of the records."""
        return self._run(None, seed, kept, records)

    def together(
        self, seeds: Sequence[int], kept: Sequence[NDArray[np.bool_]], records: Sequence[Records]
    ) -> list[Sequence[Mapping[int, Tensor]]]:
        """Returns what several runs say, side by side."""

        def job(seed: int, own: NDArray[np.bool_]) -> Callable[[Meeting], Any]:
            return lambda meeting: self._run(meeting, seed, own, records)

        return side_by_side([job(*pair) for pair in zip(seeds, kept, strict=True)])

    def _run(
        self,
        meeting: Meeting | None,
        seed: int,
        kept: NDArray[np.bool_],
        records: Sequence[Records],
    ) -> Sequence[Mapping[int, Tensor]]:
        experiment, site = repeated(self.table, seed, kept)
        # Runs that wait within each other's reduced precision would mix it up; a private trainer
        # promises what a site must see.
        if meeting is not None and site.precision == "full" and not site.trainer.private:
            site = replace(site, trainer=Joined(site.trainer, meeting))
        look = Look(experiment, site, records)
        self.run(experiment, site, look)
        return look.found
