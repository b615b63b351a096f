"""FedCBDR: FedAvg without samples, the global sample, and the bytes of every payload."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedcl
from fedcl.config import Experiment
from fedcl.core.client import Each
from fedcl.core.errors import ConfigError
from fedcl.core.losses.tempered import TemperedCrossEntropy
from fedcl.core.method import Sizes
from fedcl.core.replay.globalsample import Asked, Cached
from fedcl.methods.fedcbdr import FedCBDR
from tests.tiny import CNN, TABLE, Watching, same, scenario, stream_of, tiny, watched

PLAIN = {"temperature_old": 1.0, "temperature_new": 1.0, "weight_old": 1.0, "weight_new": 1.0}
PARAMS = 4 * (16 * 12 + 12 + 12 * 4 + 4)
WIDTH = 12  # inputs of the head
END = TABLE["training"]["rounds"]


def cbdr(changes: dict[str, Any] | None = None, **options: Any) -> Experiment:
    return tiny({**(changes or {}), **{f"method.{k}": v for k, v in options.items()}} | NAME)


NAME = {"method.name": "fedcbdr"}


def borders(engine: Watching, program: str) -> list[tuple[Any, dict[int, Any], dict[int, Any]]]:
    """Returns message, replies' tensors and memories by client of a program at each stage's end."""
    found: dict[int, tuple[Any, dict[int, Any], dict[int, Any]]] = {}
    results = iter(engine.results)
    for request, ids in engine.requests:
        replies: dict[int, Any] = {}
        memories: dict[int, Any] = {}
        left = len(ids)
        while left:
            result = next(results)
            left -= len(result.ids)
            for id, reply in zip(result.ids, result.replies or [None] * 99, strict=False):
                replies[id] = reply and dict(reply.tensors)
            memories.update(result.memories)
        if request.name == program:
            assert request.position.round == END
            # The last attempt is the one that counts.
            found[request.position.stage] = (request.message, replies, memories)
    return [found[stage] for stage in sorted(found)]


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("means", ["joint", "separate"])
def test_reduces_to_fedavg_without_samples_and_factors(engine: str, means: str) -> None:
    for kind, model in (("class", TABLE["model"]), ("task", TABLE["model"]), ("domain", CNN)):
        tables = {"model": model, "engine": {"name": engine}}
        plain = fedcl.run(tiny(scenario(kind), **tables))
        method = {"name": "fedcbdr", "samples": 0, "means": means, **PLAIN}
        found = fedcl.run(tiny(scenario(kind), method=method, **tables))
        assert same(dict(found.params), dict(plain.params)), kind
        assert same([*map(dict, found.evaluations)], [*map(dict, plain.evaluations)])
        assert found.summary["bytes_by_payload"]["up"] == plain.summary["bytes_by_payload"]["up"]


def hidden(params: Any, x: Tensor) -> Tensor:
    return F.relu(x.double().flatten(1) @ params["fc1.weight"].T + params["fc1.bias"])


def test_scores_are_the_leverage_of_all_clients_features() -> None:
    """Against the singular vectors of the plain stack at the last model, which nobody has."""
    experiment = cbdr({"training.dtype": "float64"})
    record, engine = watched(experiment)
    stream = stream_of(experiment)
    _, replies, _ = borders(engine, "scores")[1]
    x = [hidden(record.params, stream.train(client, 1).x) for client in range(5)]
    left, values, _ = torch.linalg.svd(torch.cat(x), full_matrices=False)
    left = left[:, values > 1e-10 * values[0]]
    for client, own in enumerate(left.square().sum(1).split([len(part) for part in x])):
        sent = replies[client]["scores/rows"]
        assert len(sent) == max(map(len, x))
        assert float((sent[: len(own)] - own).abs().max()) < 1e-10
        assert not sent[len(own) :].any()


def test_masks_and_secrets_change_no_score_and_no_choice() -> None:
    changes = {"training.dtype": "float64"}
    runs = [watched(cbdr(changes, secret=secret)) for secret in (0, 1)]
    features, scores = (
        [borders(engine, program) for _, engine in runs] for program in ("features", "scores")
    )
    for stage in range(2):
        for client in range(5):
            sent = [f[stage][1][client]["features/rows"] for f in features]
            assert float((sent[0] - sent[1]).abs().max()) > 1e-2
            one, other = (s[stage][1][client]["scores/rows"] for s in scores)
            assert float((one - other).abs().max()) < 1e-10
    assert same(dict(runs[0][0].params), dict(runs[1][0].params))


@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_what_stays_is_the_global_sample_of_each_stage(kind: str) -> None:
    experiment = cbdr(scenario(kind), samples=11)
    stream = stream_of(experiment)
    _, engine = watched(experiment)
    kept, scored = borders(engine, "keep"), borders(engine, "scores")
    before: dict[int, Any] = {}
    for stage, (message, _, memories) in enumerate(kept):
        assert isinstance(message, Each)
        numbers = {id: own.rows.tolist() for id, own in message.messages.items()}
        assert sum(map(len, numbers.values())) == 11
        scores = {id: reply["scores/rows"].double() for id, reply in scored[stage][1].items()}
        total = sum(float(own.sum()) for own in scores.values())
        for client in range(5):
            share, rows = stream.train(client, stage), numbers[client]
            assert len(set(rows)) == len(rows)
            assert all(0 <= row < len(share) for row in rows)
            assert abs(len(rows) - 11 * float(scores[client].sum()) / total) < 1
            memory = memories[client]
            assert isinstance(memory, Cached)
            assert memory.unmask.numel() == 0
            if memory.rows is None:
                assert not rows
                continue
            new = memory.rows.extra["stage"] == stage
            assert same(memory.rows.x[new], share.x[rows])
            assert same(memory.rows.y[new], share.y[rows])
            earlier = before.get(client)
            assert int((~new).sum()) == (len(earlier) if earlier is not None else 0)
        before = {client: memories[client].rows for client in range(5)}


def test_bytes_of_every_payload() -> None:
    """Cohorts of 3 in 4 rounds; 5 members at 2 stages' ends; 12 features, float32."""
    experiment = cbdr(scenario("class"), samples=11)
    record, engine = watched(experiment)
    stream = stream_of(experiment)
    widest = [max(len(stream.train(client, stage)) for client in range(5)) for stage in range(2)]
    assert min(widest) > WIDTH, "the masked matrix is as high as there are features"
    ranks = [m.messages[0].vectors.shape[1] for m, _, _ in borders(engine, "scores")]
    found = record.summary["bytes_by_payload"]
    assert found["up"] == {
        "model": 12 * PARAMS,
        "metrics": 12 * 16 + 4 * 10 * 8,
        "client": 3 * 10 * 8,
        "count": 10 * 8,
        "features": 10 * WIDTH * WIDTH * 4,
        "scores": 5 * sum(widest) * 4,
    }
    assert found["down"] == {
        "model": (12 + 10) * PARAMS,
        "vectors": 5 * WIDTH * sum(ranks) * 4,
        "rows": 2 * 11 * 8,
    }


def test_a_few_rows_make_a_small_matrix() -> None:
    """No share has as many rows as there are features."""
    record, engine = watched(cbdr({"model.hidden": [64]}))
    for message, replies, _ in borders(engine, "features"):
        assert isinstance(message, Asked)
        widest = message.height
        assert 1 < widest < 64
        assert all(reply["features/rows"].shape == (widest, 64) for reply in replies.values())
    assert record.summary["average_accuracy"] > 0.5


def test_examples_passed_for_the_features_are_booked() -> None:
    experiment = cbdr()
    record = fedcl.run(experiment)
    stream = stream_of(experiment)
    booked = [row["examples"] for row in record.costs if row["payload"] == "features"]
    booked = [number for number in booked if number]
    held = [sum(len(stream.train(client, stage)) for client in range(5)) for stage in range(2)]
    assert booked == held


def test_it_trains_with_temperatures_and_weights() -> None:
    _, engine = watched(cbdr(scenario("class"), temperature_old=0.8, temperature_new=1.2))
    losses = [request.program.loss for request, _ in engine.requests if request.name == "train"]  # type: ignore[union-attr]
    assert losses == [TemperedCrossEntropy(0.8, 1.2)] * 4


def test_clients_that_do_not_answer_are_left_out() -> None:
    """Half of the answers are missing: whoever sent scores may be drawn, and nobody else."""
    experiment = cbdr({"training.availability": 0.6, "stream.tasks": 3}, samples=9)
    _, engine = watched(experiment)
    stream = stream_of(experiment)
    sizes = []
    for stage, (message, _, _) in enumerate(borders(engine, "keep")):
        scored = borders(engine, "scores")[stage][1]
        assert set(message.messages) == set(scored)
        for client, chosen in message.messages.items():
            assert all(0 <= row < len(stream.train(client, stage)) for row in chosen.rows.tolist())
        sizes.append(len(scored))
    assert len(sizes) == 3
    assert min(sizes) < 5


def test_needs() -> None:
    layers = {"fc1.weight": (16, 12), "head.weight": (12, 4)}
    sizes = Sizes(PARAMS, layers, {}, 100, share=40, stages=3, examples=300, item=4)
    found = FedCBDR(samples=30).needs(sizes)
    assert found.memory == 30 * 3 * 100 + 8 * 40 * 12
    assert found.everyone
    assert found.reply == 4 * 12 * 12
    assert found.server == 4 * 8 * 100 * 12
    assert FedCBDR(samples=0).needs(sizes).memory == 0


def test_it_forgets_less_than_fedavg() -> None:
    changes = {**scenario("class"), "training.rounds": 6, "training.cohort": 0}
    plain = fedcl.run(tiny(changes))
    found = fedcl.run(tiny(changes, method={"name": "fedcbdr"}))
    assert found.summary["forgetting"] < plain.summary["forgetting"] - 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": -1}, "samples"),
        ({"temperature_old": 0.0}, "temperature_old"),
        ({"weight_new": -0.1}, "weight_new"),
        ({"means": "both"}, "means"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(method={"name": "fedcbdr", **options})
