"""Runs the clients of a fold block as batched computations, and folds what they answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedcl.core.block import Batching, Block, same_task
from fedcl.core.channel import Aggregate, combine
from fedcl.core.client import Each, Reply, Unchanged
from fedcl.core.errors import ClientError
from fedcl.core.local import Local, change
from fedcl.core.model import Net
from fedcl.core.params import not_finite
from fedcl.core.request import BlockResult, Request, diverged, failure
from fedcl.core.site import Site
from fedcl.core.statistic import Statistic
from fedcl.core.trained import BlockReply, TrainedBlock
from fedcl.core.training.precision import reduced
from fedcl.core.tree import settle


def run_batched(
    site: Site,
    request: Request,
    ids: Sequence[int],
    memories: Mapping[int, Any],
    batching: Batching,
) -> BlockResult:
    """Returns what the clients of a fold block answer.

    Local training and statistics are computed for several clients at once; any other program, and
    messages that differ between clients, run in a loop.

    Raises:
        ClientError: A client's program failed.
    """
    absent = site.absent(request, ids)
    present = [id for id in ids if id not in absent] if absent else ids
    with reduced(site.device, site.precision):
        if not present:
            return replace(site.gather(request, ()), failures=absent)
        result = _together(site, request, present, memories, batching)
    return replace(result, failures={**result.failures, **absent})


def _together(
    site: Site,
    request: Request,
    ids: Sequence[int],
    memories: Mapping[int, Any],
    batching: Batching,
) -> BlockResult:
    program, summed = request.program, _only_sums(site, request)
    # Each client bounds its own rows' parts where single records are protected.
    apart = not summed or site.promise is not None
    if (
        isinstance(request.message, Each)
        or batching.path == "loop"
        or not isinstance(program, Local | Statistic)
        or (isinstance(program, Statistic) and apart)
    ):
        return site.loop(request, ids, memories)
    message = settle(request.message, site.device)
    results = []
    size = batching.size(site.model)
    for start in range(0, len(ids), size):
        block = site.block(request, ids[start : start + size], memories)
        try:
            if isinstance(program, Statistic):
                result = _measure(site, request, block, message)
            else:
                trainer = site.trainer_at(request.position)
                replies = trainer.block(program, block, message, batching)
                if summed and program.report is change:
                    result = _fold(site, request, block, replies)
                else:
                    result = _send_each(site, request, block, message, replies)
        except ClientError:
            raise
        except Exception as error:
            # Whose fault it was shows when each is run alone.
            for id in block.ids:
                site.answer(request, id, memories.get(id), message)
            reason = f'{error} (only with others: engine.path = "loop" takes one after the other)'
            raise failure(request, block.ids[0], reason) from error
        results.append(result)
    return _join(results)


def _only_sums(site: Site, request: Request) -> bool:
    """Whether nobody, the channel included, looks at a single reply's tensors."""
    return not request.reveal and all(
        getattr(step, "leaves_tensors", False) for step in site.channel
    )


def _send_each(
    site: Site, request: Request, block: Block, message: Any, replies: BlockReply
) -> BlockResult:
    """Makes a reply of each client and treats it as the loop does."""
    local, trained, answers = request.program, replies.trained, []
    assert isinstance(local, Local)
    for k in range(len(block)):
        client = block.client(k)
        reply = Reply(
            local.report(client, message, trained.params(k)),
            replies.weights[k],
            replies.metrics[k],
            replies.state(k),
            trained.steps[k],
            replies.examples(k),
            replies.spent[k] if replies.spent else None,
        )
        answers.append(site.send(request, client, reply))
    return replace(site.gather(request, answers), padded=trained.padded)


def _fold(site: Site, request: Request, block: Block, replies: BlockReply) -> BlockResult:
    """Adds up the changes of a block at once."""
    trained = replies.trained
    weights, metrics, uploaded = _weigh(site, request, block, replies.weights, replies.metrics)
    total = settle(trained.change_sums(weights), site.device)
    if not_finite(total) is not None:
        _accuse(request, block, trained)
    size = sum(value.numel() * value.element_size() for value in trained.start.values())
    states = {block.ids[k]: replies.state(k) for k in range(len(block))}
    old = dict(zip(block.ids, block.states, strict=True))
    return BlockResult(
        ids=block.ids,
        total=Aggregate(total, sum(weights), len(block), metrics),
        replies=None,
        memories={
            id: settle(state, torch.device("cpu"))
            for id, state in states.items()
            if state is not old[id] and not isinstance(state, Unchanged)
        },
        uploaded={**uploaded, "model": len(block) * size},
        steps=sum(trained.steps),
        examples=sum(replies.examples(k) for k in range(len(block))),
        padded=trained.padded,
        spent=dict(zip(block.ids, replies.spent, strict=True)) if replies.spent else {},
    )


def _weigh(
    site: Site,
    request: Request,
    block: Block,
    own: Sequence[float],
    measured: Sequence[Mapping[str, float]],
) -> tuple[list[float], dict[str, float], dict[str, int]]:
    """Returns the replies' weights, their summed metrics, and the bytes of both."""
    weights: list[float] = []
    metrics: dict[str, float] = {}
    size = 0
    for k in range(len(block)):
        reply = site.sent(request, block.client(k), Reply({}, own[k], measured[k]))
        weights.append(1.0 if site.equal else reply.weight)
        size += 8 * (1 + len(reply.metrics))
        if weights[-1] > 0:
            for name, number in reply.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + weights[-1] * number
    return weights, metrics, {"metrics": size}


def _accuse(request: Request, block: Block, trained: TrainedBlock) -> None:
    """Raises the error of the first client whose parameters hold NaN or infinity."""
    for k, id in enumerate(block.ids):
        bad = not_finite(dict(trained.params(k)))
        if bad is not None:
            raise failure(request, id, diverged(bad))
    raise failure(request, block.ids[0], "the sum of its block's changes is too large")


def _measure(site: Site, request: Request, block: Block, message: Any) -> BlockResult:
    """Adds up a statistic over the examples of all clients of a block."""
    statistic = request.program
    assert isinstance(statistic, Statistic)
    nothing: list[Mapping[str, float]] = [{}] * len(block)
    weights, metrics, uploaded = _weigh(site, request, block, [1.0] * len(block), nothing)
    net = Net(block.model, message.params)
    total: dict[str, Tensor] = {}
    everyone = statistic.drawn(block.data, block.sizes, block.seeds)
    for first, last in _runs(block):
        data = everyone.part(block.starts[first], block.starts[last])
        sums = statistic.sums(net, data, block.tasks[first], message)
        for name, value in sums.items():
            kind, sent = statistic.kind(name), statistic.sent(name, value, data.x.dtype)
            size = (last - first) * value.numel() * sent.itemsize
            uploaded[kind] = uploaded.get(kind, 0) + size
            total[name] = total[name] + value.double() if name in total else value.double()
    bad = not_finite(total)
    if bad is not None:
        raise ValueError(f"its statistic {bad!r} holds NaN or infinity")
    return BlockResult(
        ids=block.ids,
        total=Aggregate(settle(total, site.device), sum(weights), len(block), metrics),
        replies=None,
        memories={},
        uploaded=uploaded,
        examples=block.examples,
    )


def _runs(block: Block) -> Iterator[tuple[int, int]]:
    """Yields the first and the one after the last of neighbours that share a task."""
    first = 0
    for k in range(1, len(block) + 1):
        if k == len(block) or not same_task(block.tasks[k], block.tasks[first]):
            yield first, k
            first = k


def _join(parts: Sequence[BlockResult]) -> BlockResult:
    """Returns the result of a fold block that was computed in several parts."""
    if len(parts) == 1:
        return parts[0]
    totals = [part.total for part in parts if part.total is not None]
    uploaded: Counter[str] = Counter()
    for part in parts:
        uploaded.update(part.uploaded)
    return BlockResult(
        ids=tuple(id for part in parts for id in part.ids),
        total=combine(totals) if totals else None,
        replies=None if totals else tuple(r for part in parts for r in part.replies or ()),
        memories={id: memory for part in parts for id, memory in part.memories.items()},
        uploaded=dict(uploaded),
        steps=sum(part.steps for part in parts),
        examples=sum(part.examples for part in parts),
        padded=sum(part.padded for part in parts),
        spent={id: spent for part in parts for id, spent in part.spent.items()},
    )
