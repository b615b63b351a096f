"""Repeats of an experiment without some records, and what they are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcl.assembly import build_model, build_site
from fedcl.config import Experiment, parse
from fedcl.core.audit import Records
from fedcl.core.evaluate import predicted
from fedcl.core.fetch import fetch
from fedcl.core.site import Site
from fedcl.core.stream import Stream


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
