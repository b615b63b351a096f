"""Audits watch a run without changing it, and see what leaves the clients."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedcl
from fedcl.config import parse
from fedcl.core.audit import Subject
from fedcl.core.client import Reply
from fedcl.core.errors import ConfigError
from fedcl.core.exchange import Exchange
from fedcl.core.params import Params
from fedcl.core.request import Request
from fedcl.core.task import Examples
from fedcl.core.watch import Finding, Predict, Release, Watch
from fedcl.reporting.findings import failures
from tests.tiny import Interrupted, interrupt_after

LOOKS: list[Look] = []


class Look(Watch):
    """Keeps all that it is shown."""

    def __init__(self, subject: Subject, options: Looker) -> None:
        self.subject, self.options = subject, options
        self.replies: list[tuple[Request, int, Reply]] = []
        self.releases: list[Release] = []
        self.exchanges: list[Exchange] = []
        self.ends: list[tuple[int, Examples, Tensor]] = []

    def wants(self, request: Request) -> bool:
        return self.options.replies

    def sent(self, request: Request, replies: Mapping[int, Reply]) -> None:
        self.replies.extend((request, id, reply) for id, reply in replies.items())

    def join(self, request: Request, form: Mapping[str, Tensor]) -> list[Reply]:
        joined = {name: torch.full_like(v, 1.0) for name, v in form.items()}
        return [Reply(joined)] * self.options.joining if form else []

    def released(self, release: Release) -> None:
        self.releases.append(release)

    def observe(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)

    def stage_ended(self, stage: int, predict: Predict) -> None:
        stream = self.subject.stream
        held_out, head = stream.held_out(0, "test"), stream.head(0, stage)
        self.ends.append((stage, held_out, predict(held_out.x, head)))

    def finish(self, params: Params) -> Finding:
        bound = math.inf if self.options.bound < 0 else self.options.bound
        numbers = {"seen": len(self.replies), "epsilon_lower": bound}
        tables = {"rows": [{"client": id, "round": r.position.round} for r, id, _ in self.replies]}
        pictures = {"images": {"found": torch.zeros(2, 3).numpy()}}
        return Finding(numbers, tables, pictures, "a note", self.options.fails)


@dataclass(frozen=True)
class Looker:
    """Options of a watch for tests."""

    replies: bool = True
    joining: int = 0
    bound: float = 0.0
    fails: bool = False
    refuses: bool = False

    def open(self, subject: Subject) -> Watch:
        if self.refuses:
            raise ConfigError("there is nothing to look at: take another run")
        LOOKS.append(Look(subject, self))
        return LOOKS[-1]


def table(engine: str = "serial", **others: Any) -> dict[str, Any]:
    return {
        "seed": 3,
        "dataset": {"name": "synthetic", "features": [6], "classes": 4, "train": 80, "test": 40},
        "stream": {"name": "class_incremental", "tasks": 2, "clients": 5},
        "model": {"name": "mlp", "hidden": [5]},
        "method": {"name": "fedavg"},
        "training": {"rounds": 2, "cohort": 3, "fold": 2},
        "engine": {"name": engine},
        **others,
    }


def audit(**options: Any) -> dict[str, Any]:
    return {"name": "tests.test_watching:Looker", **options}


def same(a: Params, b: Params) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_looked_at_is_what_is_summed_and_nothing_changes() -> None:
    plain = fedcl.run(parse(table()))
    seen = fedcl.run(parse(table(audit=[audit()])))
    assert same(plain.params, seen.params), "to the bit, on an engine that loops"
    look = LOOKS[-1]
    assert [e.answered for e in look.exchanges] == [
        tuple(id for r, id, _ in look.replies if r.position == e.position) for e in look.exchanges
    ]
    for exchange in look.exchanges:
        own = [reply for r, _, reply in look.replies if r.position == exchange.position]
        assert exchange.total is not None
        for name, value in exchange.total.total.items():
            expected = sum(reply.weight * reply.tensors[name].double() for reply in own)
            assert torch.allclose(value, torch.as_tensor(expected), atol=1e-12)
    numbers = ("accuracy_matrix", "bytes_up", "bytes_down", "steps")
    assert [plain.summary[k] for k in numbers] == [seen.summary[k] for k in numbers]


@pytest.mark.parametrize("replies", [False, True])
def test_batched_blocks_change_by_rounding_alone(replies: bool) -> None:
    plain = fedcl.run(parse(table("vectorized"))).params
    seen = fedcl.run(parse(table("vectorized", audit=[audit(replies=replies)]))).params
    assert same(plain, seen) or replies
    for name, value in plain.items():
        assert torch.allclose(value, seen[name], atol=1e-6)


def test_clients_that_join_are_summed_and_not_counted() -> None:
    fedcl.run(parse(table(audit=[audit(joining=2)])))
    look = LOOKS[-1]
    for exchange in look.exchanges:
        own = [reply for r, _, reply in look.replies if r.position == exchange.position]
        assert exchange.total is not None and exchange.total.count == len(own) + 2
        assert len(exchange.answered) == len(own) == 3
        for name, value in exchange.total.total.items():
            honest = sum(reply.weight * reply.tensors[name].double() for reply in own)
            assert torch.allclose(value - honest, torch.full_like(value, 2.0), atol=1e-12)


def test_releases_are_shown_with_the_noise_that_was_promised() -> None:
    private = {"name": "central_dp", "clip": 0.5, "noise_multiplier": 2.0}
    fedcl.run(parse(table(channel=[private], audit=[audit()])))
    look = LOOKS[-1]
    assert [r.position for r in look.releases] == [e.position for e in look.exchanges]
    for release, exchange in zip(look.releases, look.exchanges, strict=True):
        own = [reply for r, _, reply in look.replies if r.position == release.position]
        assert release.scale == 1.0 and exchange.total is not None
        for name, clean in release.clean.items():
            expected = sum(reply.tensors[name].double() for reply in own)
            assert torch.allclose(clean, torch.as_tensor(expected), atol=1e-12)
            assert torch.equal(release.released[name], exchange.total.total[name])
            assert not torch.equal(clean, release.released[name])
    assert look.subject.spent() > 0


@pytest.mark.parametrize("method", ["fedavg", "analytic"])
def test_at_each_stage_end_the_model_can_be_asked_as_it_is_evaluated(method: str) -> None:
    """`analytic` answers with a head of its own, which is in its state alone."""
    changed = table(method={"name": method}, audit=[audit()], evaluation={"every": 0})
    record = fedcl.run(parse(changed))
    look = LOOKS[-1]
    assert [stage for stage, _, _ in look.ends] == [0, 1]
    matrix = record.summary["accuracy_matrix"]
    for stage, data, logits in look.ends:
        right = (logits.argmax(1) == data.y).double().mean()
        assert float(right) == pytest.approx(matrix[stage][0], abs=1e-12)


def test_a_resumed_run_shows_the_stages_that_were_left(tmp_path: Path) -> None:
    experiment = parse(table(audit=[audit()], checkpoint={"seconds": 0}))
    with pytest.raises(Interrupted):
        fedcl.run(experiment, tmp_path / "run", watch=interrupt_after(2))
    fedcl.run(experiment, tmp_path / "run", resume=True)
    assert [stage for stage, _, _ in LOOKS[-1].ends] == [1]


def test_a_run_keeps_what_its_audits_found(tmp_path: Path) -> None:
    audits = [audit(bound=0.5), audit(bound=-1.0, fails=True, replies=False)]
    fedcl.run(parse(table(audit=audits)), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["epsilon_lower"] == "inf" and set(summary["audits"]) == {"Looker", "Looker_2"}
    assert summary["audits"]["Looker"]["seen"] == 12
    assert summary["audits"]["Looker_2"]["epsilon_lower"] == "inf"
    assert failures(summary) == ["Looker_2"]
    rows = (tmp_path / "run" / "audit" / "Looker_rows.csv").read_text().splitlines()
    assert rows[0] == "client,round" and len(rows) == 13
    assert (tmp_path / "run" / "audit" / "Looker_images.npz").exists()
    plain = fedcl.run(parse(table())).summary
    assert plain["epsilon_lower"] is None and plain["audits"] is None


def test_an_audit_that_does_not_fit_is_refused_by_place_and_leaves_nothing(tmp_path: Path) -> None:
    experiment = parse(table(audit=[audit(), audit(refuses=True)]))
    with pytest.raises(ConfigError, match=r"\[audit\[1\]\] there is nothing to look at"):
        fedcl.run(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"write \[\[audit\]\]"):
        parse(table(audit={"name": "residual"}))
    with pytest.raises(ConfigError, match="unknown key 'reply'"):
        parse(table(audit=[audit(reply=True)]))
