"""How many bytes the parts of a run take: formulas over its sizes, which `fedcl.forecast` adds up.

They count the tensors that are alive together in the moments of a run: clients at work, the
server's sums, evaluation. What no formula knows has been measured and stands here as constants.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, prod

from torch import nn

from fedcl.core.block import Batching
from fedcl.core.training.blockmodel import block_model
from fedcl.core.training.blockweights import as_products
from fedcl.planned import Planned

_TESTS = 256 * 2**20  # test sets that a stream holds ready: its cache
_OUTPUTS = 1.5  # what layers have put out is kept for the way back, where half of it is made anew
_AHEAD = 4  # results for each worker of Ray that may wait for their turn
_RAY = 370_000_000  # Ray's own processes, and what it adds to this one
_WORKER = 200_000_000  # a worker with PyTorch and fedcl, without the libraries that all share
_FLOWER = 60_000_000  # what Flower adds to a process
_COMPILER = 350_000_000  # torch.compile with its processes


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


def total(parts: Iterable[Part]) -> float:
    """Returns the bytes of parts that are there together."""
    return sum(part.size for part in parts)


def kept(run: Planned) -> list[Part]:
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


def evaluation(run: Planned) -> list[Part]:
    """Returns what evaluating a task takes."""
    tests, item = _tests(run), run.sizes.item
    copies = (item // 4) * (1 if max(tests) <= _TESTS else 2)
    longest = max(len(task.test) for task in run.stream.tasks)
    batch = min(run.experiment.evaluation.batch_size, longest)
    return [
        Part("the largest test set at work", copies * max(tests), "dataset"),
        Part("answers to it", batch * run.network.widest * item, "evaluation.batch_size"),
    ]


def _tests(run: Planned) -> list[int]:
    one = 4 * prod(run.stream.dataset.shape) + 8
    return [one * len(task.test) for task in run.stream.tasks]


def server(run: Planned) -> list[Part]:
    """Returns what adding up replies, the method's server half or a commit takes."""
    params = run.sizes.params
    # The old sum, a block's and theirs. Encoded, the next state is there three times more: its
    # tensors' bytes, all of them, and SQLite's own copy; the round's sum is still there.
    sums, commit = 3 * run.sums + params, 4 * (params + run.needs.state) + run.sums
    if not run.summed:
        sums += run.cohort * params
    if run.experiment.aggregation.needs_replies:
        # All replies twice in float64; beside them one parameter of all and what becomes of it.
        sums += run.cohort * (2 * run.sums + 3 * 8 * run.largest)
    half = run.needs.server + run.needs.state
    return [Part("the server at work", max(sums, commit, half), "model")]


def statistics(run: Planned) -> list[Part]:
    """Returns what another program of the method than training takes."""
    waiting = 1 if run.batched else run.together
    size = run.needs.client + waiting * run.needs.reply
    return [Part("the method's statistics", size, "training.fold")]


def training(run: Planned) -> list[Part]:
    """Returns what a fold block takes while its clients train, or are added up."""
    return max((_training(run, batching) for batching in run.placement.batchings), key=total)


def _training(run: Planned, batching: Batching) -> list[Part]:
    loop = batching.path == "loop"
    count = 1 if loop else min(run.together, batching.size(run.site.model))
    weighed = run.together if loop else count
    weights = _looped(run) if loop else _batched(run, batching)
    mean = float(run.shares[0].mean())
    own = (run.sizes.share + (count - 1) * mean) * run.sizes.example
    # Fetched, and by single clients laid out; joined with what is remembered and what will be.
    examples = (2 if loop else 1) * own
    if run.needs.memory:
        examples += own + 3 * count * run.needs.memory
    outputs = count * run.batch * sum(run.network.outputs) * run.sizes.item
    fewer = ("training.fold" if loop else "engine.block") if weighed > 1 else ""
    parts = [
        Part(f"{weighed} clients' weights", weights, fewer or "model"),
        Part(f"{count} clients' examples", examples, fewer or "dataset"),
        Part("outputs of their layers", _OUTPUTS * outputs, "training.local.batch_size"),
    ]
    if batching.path == "compiled":
        parts.append(Part("the compiler", _COMPILER, "engine.path"))
    return parts


def _adding(run: Planned) -> float:
    """Returns the bytes of sums while a block's replies are added up."""
    # A tensor in float64, and weighted; the sum of earlier blocks, and that of the last one.
    earlier = 2 * run.sums if run.cohort > run.together else 0
    return run.sums + 2 * 8 * run.largest + earlier


def _looped(run: Planned) -> float:
    # The replies of a fold block wait to be added up.
    steps = (1 + run.momentum + run.decay) * run.sizes.params
    return run.together * run.sizes.params + max(steps, _adding(run))


def _batched(run: Planned, batching: Batching) -> float:
    count, item = min(run.together, batching.size(run.site.model)), run.sizes.item
    names = dict(run.site.model.named_parameters())
    fused = batching.path in ("auto", "fused", "grouped")
    trains = run.needs.training
    fused = fused and trains != "projected" and block_model(run.site.model, names) is not None
    plain = fused and trains == "plain"
    ways = [_fused(run, name) if plain else _vmapped(run, name) for name in names]
    steps, after = (count * sum(way[moment] for way in ways) for moment in (0, 1))
    if not fused:
        steps += count * run.largest * item  # a gradient on its way
    # Sums of the blocks that the fold block is cut into.
    after += _adding(run) + (ceil(run.together / count) * run.sums if run.together > count else 0)
    if not run.summed:
        after += 2 * count * run.sizes.params
    return max(steps, after)


def _vmapped(run: Planned, name: str) -> tuple[float, float]:
    """Returns the bytes of a client's parameter while it trains, and afterwards."""
    own = run.site.model.get_parameter(name).numel() * run.sizes.item
    # Itself, its gradient and the last step's; what a penalty makes of it and its own gradient, or
    # what projecting makes of the gradient.
    more = {"plain": 0, "penalty": 3, "projected": 2}[run.needs.training]
    return (3 + more + run.momentum + run.decay) * own, (2 + run.momentum) * own


def _fused(run: Planned, name: str) -> tuple[float, float]:
    """Returns the same where block layers hold the parameter."""
    own = run.site.model.get_parameter(name).numel() * run.sizes.item
    layer, _, kind = name.rpartition(".")
    if not isinstance(run.site.model.get_submodule(layer), nn.Linear):
        return (2 + run.momentum + run.decay) * own, (1 + run.momentum) * own
    weight = name.removesuffix(kind) + "weight"
    width, out = run.sizes.layers[weight]
    products = run.visits * (width + out)
    if run.network.rows[weight] > 1 or not as_products(run.visits, width, out):
        return (1 + run.momentum) * own, (1 + run.momentum) * own
    if kind != "weight":
        return 0.0, 0.0
    # Outer products of its inputs and what changes its outputs, which is weighed twice.
    weighed = products + 2 * run.visits * out
    return products * run.sizes.item, weighed * run.sizes.item


def workers(run: Planned) -> list[Part]:
    """Returns what other processes take, clients at work among it."""
    place, params = run.placement, run.sizes.params
    blocks = ceil(run.cohort / run.together)
    busy = min(place.workers, blocks)
    # Flower's nodes make their data anew; Ray's share those of its object store.
    flower = place.engine == "flower"
    if run.experiment.resolved["engine"].get("address"):
        # What other machines have is not known here.
        return [Part("Ray's share of this process, and the data", _RAY + run.arrays, "dataset")]
    own = _WORKER + 2 * params + (_FLOWER + run.arrays if flower else 0)
    waiting = params + min(blocks, _AHEAD * place.workers) * run.sums
    shared = _RAY + waiting + (_FLOWER if flower else run.arrays)
    return [
        Part("Ray, with what its processes share", shared, "dataset"),
        Part(f"{place.workers} workers", place.workers * own, "engine.workers"),
        *(replace(part, size=busy * part.size) for part in training(run)),
    ]
