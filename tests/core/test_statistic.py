"""Statistics: sums over examples, taken client by client or over several clients at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import fedcl
from fedcl.assembly import build_site
from fedcl.core.block import Batching
from fedcl.core.channel import combine
from fedcl.core.engine import Position, Request
from fedcl.core.errors import ClientError
from fedcl.core.model import Net
from fedcl.core.moments import InputMoments, input_statistics
from fedcl.core.site import Site
from fedcl.core.statistic import Statistic
from fedcl.core.subspace import unpack
from fedcl.core.task import ClientTask, Examples
from tests.tiny import CNN, distance, tiny

CHANGES: dict[str, Any] = {
    "training.dtype": "float64",
    "stream.clients": 9,
    "stream.partition": {"name": "quantity", "exponent": 1.2},
}


@dataclass(frozen=True)
class Question:
    """What goes down for the statistics here."""

    params: Any
    basis: Any
    layers: tuple[str, ...]


def prototypes(net: Net, rows: Examples, task: ClientTask, message: Any) -> dict[str, Tensor]:
    """Sums of logits and numbers of rows by class."""
    logits = net(rows.x)
    hot = F.one_hot(rows.y, logits.shape[1])
    return {"sums/logits": hot.to(logits).T @ logits, "counts/classes": hot.sum(0)}


def fisher(net: Net, rows: Examples, task: ClientTask, message: Any) -> dict[str, Tensor]:
    """Sums of squared gradients of each example's loss."""

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(net.model, params, (x[None],))
        return F.cross_entropy(logits.masked_fill(~task.head, -1e9), y[None])

    assert net.params is not None
    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(dict(net.params), rows.x, rows.y)
    return {f"fisher/{name}": value.square().sum(0) for name, value in gradients.items()}


def asked(site: Site, statistic: Statistic, reveal: bool = False, stage: int = 0) -> Request:
    params = {name: value.detach() for name, value in site.model.named_parameters()}
    names = tuple(name for name in params if name.endswith("weight"))
    return Request(Position(stage, 0, 0), statistic, Question(params, {}, names), reveal)


MEASURES = {
    "gram": Statistic(InputMoments(), "gram", exact=("norms",)),
    "gram with biases": Statistic(InputMoments(biases=True), "gram", exact=("norms",), rows=7),
    "prototypes": Statistic(prototypes, "prototypes", exact=("counts",)),
    "fisher": Statistic(fisher, "fisher", rows=5),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [12]}, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("order", ["shared", "shuffled"])
def test_several_clients_at_once_give_the_sum_of_each(
    measure: Statistic, model: dict[str, Any], order: str
) -> None:
    changes = {**CHANGES, "stream.order": {"name": order}}
    site = build_site(tiny(changes, model=model))
    request, ids = asked(site, measure), range(9)
    alone = site.loop(request, ids, {})
    together = site.batch(request, ids, {}, Batching())
    in_parts = site.batch(request, ids, {}, Batching(block=4))
    for found in (together, in_parts):
        assert found.total is not None and alone.total is not None
        assert found.ids == alone.ids and found.total.weight == alone.total.weight == 9.0
        assert distance(found.total.total, alone.total.total) < 1e-9
        assert (found.uploaded, found.examples) == (alone.uploaded, alone.examples)


def test_counts_are_exact_and_the_rest_travels_in_the_type_of_the_inputs() -> None:
    site = build_site(tiny({**CHANGES, "training.dtype": "float32"}))
    result = site.loop(asked(site, MEASURES["prototypes"], reveal=True), range(9), {})
    assert result.replies is not None
    for reply in result.replies:
        assert reply.tensors["counts/classes"].dtype == torch.int64
        assert reply.tensors["sums/logits"].dtype == torch.float32
        assert int(reply.tensors["counts/classes"].sum()) == reply.examples
    assert result.uploaded["counts"] == 9 * 4 * 8 and result.uploaded["sums"] == 9 * 16 * 4


def test_moments_are_those_that_a_client_sends_by_itself() -> None:
    site = build_site(tiny(CHANGES))
    request = asked(site, MEASURES["gram with biases"])
    (client,) = site.clients(request, [3], {})
    message = request.message
    own = MEASURES["gram with biases"](client, message).tensors
    other = input_statistics(client, message.params, {}, message.layers, True, None)
    for name, value in other.items():
        if name.startswith("gram"):
            assert torch.allclose(unpack(own[name]), unpack(value), rtol=0, atol=1e-10)
        else:
            assert torch.allclose(own[name][:3], value[:3], rtol=1e-12)
            assert own[name][3] == 0.0


def test_revealed_replies_are_single_ones_on_every_path() -> None:
    site = build_site(tiny(CHANGES))
    request = asked(site, MEASURES["gram"], reveal=True)
    alone, together = (
        site.loop(request, range(4), {}),
        site.batch(request, range(4), {}, Batching()),
    )
    assert alone.replies is not None and together.replies is not None
    for one, other in zip(alone.replies, together.replies, strict=True):
        assert distance(one.tensors, other.tensors) == 0.0


def test_blocks_add_up_to_the_population() -> None:
    site = build_site(tiny(CHANGES))
    request = asked(site, MEASURES["prototypes"])
    whole = site.batch(request, range(9), {}, Batching())
    parts = [site.batch(request, ids, {}, Batching()) for ids in site.blocks(range(9))]
    assert whole.total is not None
    total = combine([part.total for part in parts if part.total is not None])
    assert distance(total.total, whole.total.total) < 1e-9


def broken(net: Net, rows: Examples, task: ClientTask, message: Any) -> dict[str, Tensor]:
    return {"sums/x": (rows.x.flatten(1) / (rows.y - 1).clamp(min=0)[:, None]).sum(0)}


def test_nan_names_a_client() -> None:
    site = build_site(tiny(CHANGES))
    with pytest.raises(ClientError, match=r"client 0 failed in stage 0, round 0.*NaN or infinity"):
        site.batch(asked(site, Statistic(broken, "broken")), range(9), {}, Batching())


def test_fot_measures_its_gram_matrices_through_blocks() -> None:
    changes = {**CHANGES, "method.name": "fot"}
    serial = fedcl.run(tiny({**changes, "engine.name": "serial"}))
    batched = fedcl.run(tiny({**changes, "engine.name": "vectorized"}))
    assert distance(serial.params, batched.params) < 1e-9
    ends = [
        [row for row in record.costs if row["payload"] in ("gram", "norms")]
        for record in (serial, batched)
    ]
    assert [{**row, "seconds": None} for row in ends[0]] == [
        {**row, "seconds": None} for row in ends[1]
    ]
    # What only each client can send takes the other way, to the same model.
    paper = tiny({**changes, "method.eps_rule": "paper_code"})
    own = fedcl.run(replace(paper, engine=tiny({"engine.name": "vectorized"}).engine))
    assert distance(fedcl.run(paper).params, own.params) < 1e-9
