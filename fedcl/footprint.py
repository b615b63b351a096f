"""How many bytes the parts of a run take: formulas over sizes, which `fedcl.forecast` adds up.

They count the tensors that are alive together in the moments of a run: clients at work, the
server's sums, evaluation. What no formula knows has been measured and stands here as constants.
"""

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

from fedcl.config import Experiment
from fedcl.core.block import Batching
from fedcl.core.blockmodel import block_model
from fedcl.core.dataset import ArrayTable
from fedcl.core.layers import input_width, protected_layers
from fedcl.core.method import Needs, Sizes
from fedcl.core.site import Site
from fedcl.core.stream import Stream
from fedcl.workload import training_flops

_GROUPS = 64  # groups of clients of about the same size whose memories are worked out together
_TESTS = 256 * 2**20  # test sets that a stream holds ready: its cache
_AHEAD = 4  # results for each worker of Ray that may wait for their turn
_RAY = 420_000_000  # Ray's own processes, and what it adds to this one
_FLOWER = 150_000_000  # what Flower adds to that
_WORKER = 230_000_000  # a worker with PyTorch and fedcl, without the libraries that all share
_COMPILER = 500_000_000  # torch.compile with its processes


@dataclass(frozen=True)
class Part:
    """One thing that needs room.

    Attributes:
        what: In words.
        size: Bytes.
        options: Options of the config that make it smaller.
    """

    what: str
    size: float
    options: str = ""


def total(parts: list[Part]) -> float:
    """Returns the bytes of parts that are there together."""
    return sum(part.size for part in parts)


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
class Run:
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
    def shares(self) -> tuple[npt.NDArray[np.float64], int]:
        """The (clients,) mean number of examples of each at a stage, and the largest share."""
        sums, largest = np.zeros(self.stream.clients), 0
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
        if name == "auto":
            chosen: Any = self.experiment.engine
            launch = {
                **self.experiment.resolved, "clients": self.stream.clients, "flops": self.flops
            }
            inner, workers, _ = chosen.choose(self.site, launch)
            name = "ray" if workers else inner
        elif name in ("ray", "flower"):
            workers = engine["workers"] or os.cpu_count() or 1
        if inner != "vectorized":
            return Placement((Batching("loop", self.together),), workers, name)
        if engine.get("tune"):
            ways = ("loop", "fused", "vmap")
            return Placement(tuple(Batching(way, 64) for way in ways), workers, name)
        one = Batching(engine.get("path", "auto"), engine.get("block", 16))
        return Placement((one,), workers, name)

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

    @cached_property
    def visits(self) -> int:
        """Examples that a client passes in a round at most."""
        local: dict[str, Any] = self.experiment.resolved["training"]["local"]
        visits: int = self.sizes.share * local.get("epochs", 1)
        steps = local.get("steps", 0) * local.get("batch_size", 1)
        return min(visits, steps) if steps else visits

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


def kept(run: Run) -> list[Part]:
    """Returns what stays in memory once it is there."""
    tests = _tests(run)
    # The first parameters stay until the end, a round's old ones until it is over.
    state = 2 * run.sizes.params + run.needs.state
    memories = min(run.remembered, run.experiment.memory.cache)
    return [
        Part("the method's state", state, "model"),
        Part("clients' memories", memories, "memory.cache"),
        Part("test sets held ready", min(sum(t for t in tests if t <= _TESTS), _TESTS), "dataset"),
    ]


def evaluation(run: Run) -> list[Part]:
    """Returns what evaluating a task takes."""
    tests, item = _tests(run), run.sizes.item
    copies = (item // 4) * (1 if max(tests) <= _TESTS else 2)
    longest = max(len(task.test) for task in run.stream.tasks)
    batch = min(run.experiment.evaluation.batch_size, longest)
    return [
        Part("the largest test set at work", copies * max(tests), "dataset"),
        Part("answers to it", batch * run.network.widest * item, "evaluation.batch_size"),
    ]


def _tests(run: Run) -> list[int]:
    one = 4 * prod(run.stream.dataset.shape) + 8
    return [one * len(task.test) for task in run.stream.tasks]


def server(run: Run) -> list[Part]:
    """Returns what adding up replies, the method's server half and a commit take."""
    params = run.sizes.params
    state = params + run.needs.state
    # The old sum, a block's and theirs. Encoded, a state is there three times: its tensors' bytes,
    # all of them, and SQLite's own copy.
    moments = [3 * run.sums + params, 3 * state, run.needs.server + run.needs.state]
    if not run.summed:
        moments.append(run.cohort * params + 3 * run.sums)
    return [Part("the server's sums", max(moments), "model")]


def statistics(run: Run) -> list[Part]:
    """Returns what another program of the method than training takes."""
    waiting = 1 if run.batched else run.together
    size = run.needs.client + waiting * run.needs.reply
    return [Part("the method's statistics", size, "training.fold")]


def training(run: Run) -> list[Part]:
    """Returns what a fold block takes while its clients train, or are added up."""
    return max((_training(run, batching) for batching in run.placement.batchings), key=total)


def _training(run: Run, batching: Batching) -> list[Part]:
    local: dict[str, Any] = run.experiment.resolved["training"]["local"]
    loop = batching.path == "loop"
    count = 1 if loop else min(run.together, batching.block)
    batch = max(1, min(local.get("batch_size", 1), run.sizes.share))
    mean, outputs = float(run.shares[0].mean()), sum(run.network.outputs) * run.sizes.item
    own = (run.sizes.share + (count - 1) * mean) * run.sizes.example
    # Fetched, and by single clients laid out; joined with what is remembered and will be.
    examples = (2 if loop else 1) * own
    if run.needs.memory:
        examples += own + 3 * count * run.needs.memory
    many = "engine.block" if count > 1 else ""
    if loop and run.together > 1:
        many = "training.fold"
    return [
        Part(f"weights of {run.together if loop else count} clients",
             _looped(run) if loop else _batched(run, batching), many or "model"),
        Part("their examples", examples, many or "dataset"),
        Part("outputs of their layers", 3 * count * batch * outputs, "training.local.batch_size"),
    ]


def _extra(run: Run) -> int:
    """Returns the number of tensors of each weight besides itself and its gradient."""
    local: dict[str, Any] = run.experiment.resolved["training"]["local"]
    return bool(local.get("momentum")) + bool(local.get("weight_decay"))


def _adding(run: Run) -> float:
    """Returns the bytes of sums while a block's replies are added up."""
    # A tensor in float64, and weighted; the sum of earlier blocks, and the last one of them.
    earlier = 2 * run.sums if run.cohort > run.together else 0
    return run.sums + 2 * run.largest * 8 + earlier


def _looped(run: Run) -> float:
    # The replies of a fold block wait to be added up.
    at_work = (1 + _extra(run)) * run.sizes.params
    return run.together * run.sizes.params + max(at_work, _adding(run))


def _batched(run: Run, batching: Batching) -> float:
    sizes, names = run.sizes, dict(run.site.model.named_parameters())
    count = min(run.together, batching.block)
    fused = batching.path in ("auto", "fused", "grouped")
    fused = fused and block_model(run.site.model, names) is not None
    at_work = after = 0.0
    for name, value in names.items():
        layer, _, kind = name.rpartition(".")
        own = count * value.numel() * sizes.item
        if not fused or not isinstance(run.site.model.get_submodule(layer), nn.Linear):
            at_work, after = at_work + (2 + _extra(run)) * own, after + (1 + _extra(run)) * own
            continue
        weight = name.removesuffix(kind) + "weight"
        width, out = sizes.layers[weight]
        if run.network.rows[weight] > 1 or run.visits > out:
            stepped = (1 + (_extra(run) > 0)) * own
        else:
            # Outer products, and at the end twice more what changes the outputs.
            stepped = count * run.visits * (width + 3 * out) * sizes.item if kind == "weight" else 0
        at_work, after = at_work + stepped, after + stepped
    blocks = ceil(run.together / count)
    after += _adding(run) + (blocks * run.sums if blocks > 1 else 0)
    if not run.summed:
        after += 2 * count * sizes.params
    return max(at_work, after)


def workers(run: Run) -> list[Part]:
    """Returns what other processes take, clients at work among it."""
    place = run.placement
    arrays = sum(
        table.values.nbytes
        for table in (run.stream.dataset.train, run.stream.dataset.test)
        if isinstance(table, ArrayTable)
    )
    params, blocks = run.sizes.params, ceil(run.cohort / run.together)
    waiting = min(blocks, _AHEAD * place.workers) * params * 8 // run.sizes.item
    busy = min(place.workers, blocks)
    return [
        Part("Ray with the data", _RAY + arrays + params + waiting, "engine"),
        Part(f"{place.workers} workers", place.workers * (_WORKER + 2 * params), "engine.workers"),
        *(replace(part, size=busy * part.size) for part in training(run)),
    ]
