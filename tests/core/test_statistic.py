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
from fedcl.core.batch import run_batched
from fedcl.core.block import Batching
from fedcl.core.channel import combine
from fedcl.core.errors import ClientError
from fedcl.core.features.moments import InputMoments, input_statistics
from fedcl.core.features.subspace import unpack
from fedcl.core.model import Net
from fedcl.core.request import Position, Request
from fedcl.core.site import Site
from fedcl.core.statistic import Statistic
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
    together = run_batched(site, request, ids, {}, Batching())
    in_parts = run_batched(site, request, ids, {}, Batching(block=4))
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
        run_batched(site, request, range(4), {}, Batching()),
    )
    assert alone.replies is not None and together.replies is not None
    for one, other in zip(alone.replies, together.replies, strict=True):
        assert distance(one.tensors, other.tensors) == 0.0


def test_blocks_add_up_to_the_population() -> None:
    site = build_site(tiny(CHANGES))
    request = asked(site, MEASURES["prototypes"])
    whole = run_batched(site, request, range(9), {}, Batching())
    parts = [run_batched(site, request, ids, {}, Batching()) for ids in site.blocks(range(9))]
    assert whole.total is not None
    total = combine([part.total for part in parts if part.total is not None])
    assert distance(total.total, whole.total.total) < 1e-9


def broken(net: Net, rows: Examples, task: ClientTask, message: Any) -> dict[str, Tensor]:
    return {"sums/x": (rows.x.flatten(1) / (rows.y - 1).clamp(min=0)[:, None]).sum(0)}


def test_nan_names_a_client() -> None:
    site = build_site(tiny(CHANGES))
    with pytest.raises(ClientError, match=r"client 0 failed in stage 0, round 0.*NaN or infinity"):
        run_batched(site, asked(site, Statistic(broken, "broken")), range(9), {}, Batching())


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


# --- Random numbers of rows. ---


def sampled(net: Net, rows: Examples, task: ClientTask, message: Any) -> dict[str, Tensor]:
    """Counts labels that are drawn from the network's own answers, and sums what was drawn."""
    draws = rows.extra["draws"]
    shares = net(rows.x).softmax(1).cumsum(1)
    labels = (draws[:, :1] > shares[:, :-1]).sum(1)
    hot = F.one_hot(labels, shares.shape[1])
    return {
        "counts/drawn": hot.sum(0),
        "sums/inputs": hot.to(rows.x).T @ rows.x.flatten(1),
        "sums/draws": draws.sum(0),
        "products/draws": draws.T @ rows.x.flatten(1).to(draws),
    }


SAMPLED = Statistic(sampled, "sampled", exact=("counts", "products"), draws=2)


@pytest.mark.parametrize("order", ["shared", "shuffled"])
@pytest.mark.parametrize("rows", [128, 7])
def test_draws_are_the_same_alone_and_among_others(order: str, rows: int) -> None:
    site = build_site(tiny({**CHANGES, "stream.order": {"name": order}}))
    request, ids = asked(site, replace(SAMPLED, rows=rows)), range(9)
    alone = site.loop(request, ids, {}).total
    assert alone is not None
    for batching in (Batching(), Batching(block=4), Batching(block=1)):
        found = run_batched(site, request, ids, {}, batching).total
        assert found is not None
        assert torch.equal(found.total["counts/drawn"], alone.total["counts/drawn"])
        assert distance(found.total, alone.total) < 1e-9
    # In other company too.
    for some in ((2, 5), (5,), (0, 5, 8)):
        parts = [site.loop(request, (id,), {}).total for id in some]
        whole = run_batched(site, request, some, {}, Batching()).total
        assert whole is not None
        total = combine([part for part in parts if part is not None])
        assert distance(whole.total, total.total) < 1e-9
    # Nor does it matter how many rows go through a call at once.
    other = site.loop(asked(site, SAMPLED), ids, {}).total
    assert other is not None
    assert distance(other.total, alone.total) < 1e-9


def test_draws_are_functions_of_client_exchange_and_row() -> None:
    site = build_site(tiny(CHANGES))

    def column(id: int, **at: int) -> Tensor:
        """Returns what rows of the client's first stage get at some place of a run."""
        place = {"stage": 0, "round": 0, "exchange": 0, **at}
        request = replace(asked(site, SAMPLED), position=Position(**place))
        (client,) = site.clients(request, [id], {})
        data = SAMPLED.drawn(client.data, [len(client.data)], [client.seed])
        assert torch.equal(data.x, client.data.x) and torch.equal(data.y, client.data.y)
        return data.extra["draws"]

    first = column(0)
    assert first.dtype == torch.float64 and first.shape == (6, 2)
    assert bool(((first >= 0) & (first < 1)).all())
    assert torch.equal(column(0), first), "as often as it is asked"
    assert len(first.flatten().unique()) == first.numel(), "no number twice"
    others = [column(1), column(0, exchange=1), column(0, round=1), column(0, attempt=1)]
    for other in others:
        n = min(len(first), len(other))
        assert n > 3 and not bool((other[:n] == first[:n]).any())


def test_two_clients_with_the_same_data_draw_differently() -> None:
    data = Examples(torch.zeros(6, 3), torch.zeros(6, dtype=torch.int64), {"weight": torch.ones(6)})
    both = Examples(torch.zeros(12, 3), torch.zeros(12, dtype=torch.int64))
    found = SAMPLED.drawn(both, [6, 6], [11, 12]).extra["draws"]
    for part, seed in ((found[:6], 11), (found[6:], 12)):
        own = SAMPLED.drawn(data, [6], [seed])
        assert torch.equal(own.extra["draws"], part)
        assert list(own.extra) == ["weight", "draws"], "further columns stay"
    assert not bool((found[:6] == found[6:]).any())
    # A longer share begins with the numbers of a shorter one.
    longer = SAMPLED.drawn(both, [12], [11]).extra["draws"]
    assert torch.equal(longer[:6], found[:6])


def test_draws_are_uniform_and_independent() -> None:
    """20,000 numbers: the mean's standard deviation is 0.002, and a correlation's 0.01."""
    data = Examples(torch.zeros(10_000, 1), torch.zeros(10_000, dtype=torch.int64))
    numbers = SAMPLED.drawn(data, [10_000], [3]).extra["draws"]
    assert float((numbers.mean(0) - 0.5).abs().max()) < 0.012
    assert float((numbers.var(0) - 1 / 12).abs().max()) < 0.004
    counts = torch.histc(numbers.flatten(), 20, 0.0, 1.0)
    assert float((counts - 1000).abs().max()) < 160  # five standard deviations
    pairs = [numbers.T, torch.stack([numbers[:-1, 0], numbers[1:, 0]])]
    for pair in pairs:
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.04


def test_without_draws_rows_have_no_such_column() -> None:
    data = Examples(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    assert MEASURES["gram"].drawn(data, [2], [1]) is data


def test_a_client_without_examples_draws_nothing() -> None:
    data = Examples(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    found = SAMPLED.drawn(data, [0, 3, 0], [1, 2, 3]).extra["draws"]
    assert torch.equal(found, SAMPLED.drawn(data, [3], [2]).extra["draws"])
    assert SAMPLED.drawn(data.part(0, 0), [0], [1]).extra["draws"].shape == (0, 2)
