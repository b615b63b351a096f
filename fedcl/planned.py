"""A run's sizes, from its config and its data: what `fedcl.footprint` makes bytes of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedcl.assembly import is_live
from fedcl.config import Experiment
from fedcl.core.block import Batching
from fedcl.core.data.stream import Stream
from fedcl.core.data.table import ArrayTable
from fedcl.core.features.layers import input_width, protected_layers
from fedcl.core.method import Needs, Sizes
from fedcl.core.site import Site
from fedcl.workload import training_flops

_GROUPS = 64  # groups of clients of about the same size whose memories are worked out together


@dataclass(frozen=True)
class Network:
    """What a model makes of one example.

    Attributes:
        outputs: Numbers in the output of each layer, in order.
        rows: Layer inputs that each weight takes, by name.
    """

    outputs: tuple[int, ...]
    rows: Mapping[str, int]

    @property
    def widest(self) -> int:
        """Numbers in the largest input and output of a layer together."""
        return max(map(sum, zip((0, *self.outputs), self.outputs, strict=False)), default=0)


@dataclass(frozen=True)
class Placement:
    """Where and how clients run.

    Attributes:
        batchings: How a block may be batched: one way, or those that are going to be compared.
        workers: Processes besides this one; 0 for none.
        engine: Name of the engine that has these.
    """

    batchings: tuple[Batching, ...]
    workers: int
    engine: str


@dataclass(frozen=True)
class Planned:
    """What a run's parts are worked out from; data, stream and model have been built.

    Attributes:
        experiment: The experiment.
        site: Where its clients run.
    """

    experiment: Experiment
    site: Site

    @property
    def stream(self) -> Stream:
        """Who holds what, when."""
        stream: Stream = self.site.population.stream  # type: ignore[attr-defined]
        return stream

    @property
    def cohort(self) -> int:
        """Clients of a round at most."""
        clients = self.stream.clients
        return min(self.experiment.training.cohort or clients, clients)

    @property
    def together(self) -> int:
        """Clients of a fold block at most."""
        return min(self.cohort, self.site.fold)

    @cached_property
    def arrays(self) -> int:
        """Bytes of the data set that lie in memory."""
        tables = (self.stream.dataset.train, self.stream.dataset.test)
        return sum(table.values.nbytes for table in tables if isinstance(table, ArrayTable))

    @cached_property
    def shares(self) -> tuple[npt.NDArray[np.float64], int]:
        """The (clients,) mean number of examples of each at a stage, and the largest share.

        All are 0 where nobody knows them.
        """
        sums, largest = np.zeros(self.stream.clients), 0
        if self.stream.elsewhere:
            return sums, largest
        for task in self.stream.tasks:
            sizes = self.stream.sizes(task.index)
            sums += sizes
            largest = max(largest, int(sizes.max()))
        return sums / len(self.stream.tasks), largest

    @cached_property
    def sizes(self) -> Sizes:
        """What a method's needs are worked out from."""
        item = 4 if self.experiment.training.dtype == "float32" else 8
        layers = protected_layers(self.site.model)
        return Sizes(
            params=sum(p.numel() for p in self.site.model.parameters()) * item,
            layers={k: (input_width(v), len(v.weight)) for k, v in layers.items()},
            rows=self.network.rows,
            example=prod(self.stream.dataset.shape) * item + 8 + 8 + self.stream.classes,
            share=self.shares[1],
            stages=self.stream.stages,
            examples=ceil(self.shares[0].sum() * self.stream.stages),
            item=item,
        )

    @cached_property
    def needs(self) -> Needs:
        """What the method needs, with the memory of the client that holds most."""
        return self.experiment.method.needs(self.sizes)

    @cached_property
    def network(self) -> Network:
        """What the model makes of one example."""
        names = {module: name for name, module in self.site.model.named_modules()}
        outputs: list[int] = []
        rows: dict[str, int] = {}

        def look(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            outputs.append(output[0].numel())
            if isinstance(module, nn.Linear | nn.Conv2d):
                name = f"{names[module]}.weight".removeprefix(".")
                groups = module.groups if isinstance(module, nn.Conv2d) else 1
                rows[name] = rows.get(name, 0) + outputs[-1] * groups // len(module.weight)

        leaves = [module for module in names if not list(module.children())]
        handles = [leaf.register_forward_hook(look) for leaf in leaves]
        first = next(self.site.model.parameters())
        try:
            with torch.no_grad():
                self.site.model(torch.zeros(1, *self.stream.dataset.shape).to(first))
        finally:
            for handle in handles:
                handle.remove()
        return Network(tuple(outputs), rows)

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of all local training, about."""
        return training_flops(self.experiment, self.site, self.stream)

    @cached_property
    def placement(self) -> Placement:
        """Where and how clients run."""
        engine: dict[str, Any] = self.experiment.resolved["engine"]
        name, inner, workers = engine["name"], engine.get("inner", engine["name"]), 0
        choose = getattr(self.experiment.engine, "choose", None)
        if choose is not None:
            sizes = {"clients": self.stream.clients, "flops": self.flops}
            inner, workers, _ = choose(self.site, {**self.experiment.resolved, **sizes})
            name = "ray" if workers else inner
        elif name == "ray" or (name == "flower" and not is_live(self.experiment)):
            workers = engine["workers"] or os.cpu_count() or 1
        if inner != "vectorized":
            return Placement((Batching("loop", self.together),), workers, name)
        if engine.get("tune"):
            return Placement((Batching("fused", 64), Batching("vmap", 64)), workers, name)
        given = {key: engine[key] for key in ("path", "block") if key in engine}
        return Placement((Batching(**given),), workers, name)

    @property
    def batched(self) -> bool:
        """Whether clients are batched."""
        return any(batching.path != "loop" for batching in self.placement.batchings)

    @property
    def sums(self) -> int:
        """Bytes of a sum of parameters, which is in float64."""
        return self.sizes.params * 8 // self.sizes.item

    @cached_property
    def largest(self) -> int:
        """Numbers in the largest parameter."""
        return max(value.numel() for value in self.site.model.parameters())

    @property
    def _local(self) -> Mapping[str, Any]:
        local: Mapping[str, Any] = self.experiment.resolved["training"]["local"]
        return local

    @property
    def batch(self) -> int:
        """Examples of a step at most."""
        batch: int = self._local.get("batch_size", 1)
        return max(1, min(batch, self.sizes.share))

    @property
    def visits(self) -> int:
        """Examples that a client passes in a round at most."""
        visits: int = self.sizes.share * self._local.get("epochs", 1)
        steps = self._local.get("steps", 0) * self._local.get("batch_size", 1)
        return min(visits, steps) if steps else visits

    @property
    def momentum(self) -> bool:
        """Whether local training has momentum."""
        return bool(self._local.get("momentum"))

    @property
    def decay(self) -> bool:
        """Whether it has weight decay."""
        return bool(self._local.get("weight_decay"))

    @cached_property
    def summed(self) -> bool:
        """Whether nobody looks at a single reply."""
        experiment = self.experiment
        return (
            experiment.method.exposure == "mean"
            and not experiment.aggregation.needs_replies
            and all(getattr(step, "leaves_tensors", False) for step in experiment.channel)
        )

    @cached_property
    def remembered(self) -> float:
        """Bytes of what all clients remember in the end, about."""
        if not self.needs.memory:
            return 0.0
        met, nobody = 0.0, 1.0
        for stage in range(self.stream.stages):
            members = len(self.stream.members(stage))
            asked = members / self.stream.clients * self._chance(members)
            met, nobody = met + asked, nobody * (1.0 - asked)
        found, stages = 0.0, max(1, round(met / max(1e-9, 1.0 - nobody)))
        for group in np.array_split(np.sort(self.shares[0]), min(_GROUPS, self.stream.clients)):
            share = ceil(float(group.mean()) * met / max(1e-9, 1.0 - nobody) / stages)
            own = self.experiment.method.needs(replace(self.sizes, share=share, stages=stages))
            found += len(group) * (1.0 - nobody) * own.memory
        return found

    def _chance(self, members: int) -> float:
        """Returns the chance that a member is asked in a stage."""
        training = self.experiment.training
        if self.needs.everyone or not members:
            return 1.0
        share = min(training.cohort or members, members) / members * training.availability
        if training.sampling == "round_robin":
            return min(1.0, share * training.rounds)
        return 1.0 - float(1.0 - share) ** training.rounds
