"""Which classes does a client have?: told from the last layer's change, and from counts.

In training, the bias of a class grows if it is present and falls if it is not, since softmax minus
one-hot is negative for the labels alone (iDLG: Zhao, Mopuri and Bilen, 2020). It does so long after
images stop coming back. Some methods send counts of classes as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedcl.auditing.inversion import class_set, f1
from fedcl.auditing.labels import (
    apart,
    guessed_f1,
    guessed_labels,
    head_change,
    label_counts,
    shares_of,
)
from fedcl.audits._originals import candidates_at
from fedcl.audits._payload_watch import PayloadWatch
from fedcl.audits._payloads import kinds
from fedcl.core.attacks.inversion import labels_of
from fedcl.core.audit import Subject
from fedcl.core.features.analytic import Correlations
from fedcl.core.params import Params
from fedcl.core.request import Request
from fedcl.core.task import Examples
from fedcl.core.watch import Finding, Watch

__all__ = ["Classes"]

Array = NDArray[np.float64]
NOTE = (
    "Honest server; the classes compared at a stage are public, which of them a client trained on "
    "is told. Generated images of old classes count for nobody. Where the channel hides replies, "
    "the set is that of all clients of the sum. Beside F1 stand that of a coin for each class and "
    "that of naming all. Payloads without a last layer or counts, and what several rounds tell "
    "together, are not covered."
)


@dataclass(frozen=True)
class Classes:
    """Tells from payloads which classes clients have, how many of each, and who met new ones.

    Attributes:
        rounds: The first so many rounds of each stage are looked at, and what begins or ends it.
    """

    rounds: int = 1

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds must be at least 0, not {self.rounds}")

    def open(self, subject: Subject) -> Watch:
        """Begins to watch a run."""
        return _Classes(self, subject)


def told(tensors: Params, request: Request, candidates: Set[int]) -> Iterator[tuple[str, Any]]:
    """Yields what tells classes: its payload, the set, and shares of labels or None.

    Args:
        tensors: One reply, or a sum.
        request: What was asked.
        candidates: Classes that may be there.
    """
    found = kinds(tensors, request)
    model = found.get("model", {})
    change = head_change(model.get("head.weight"), model.get("head.bias"))
    if change is not None:
        yield "model", (class_set(change) & candidates, shares_of(change, candidates))
    for name, counts in _counts(found, request):
        held = counts.detach().double().cpu().numpy().clip(min=0.0)
        present = frozenset(np.flatnonzero(held > 0.5).tolist()) & candidates
        yield name, (present, held / max(1e-12, float(held.sum())))
    labels = found.get("gradients", {}).get("head.bias")
    if labels is not None:
        kept = [label for label in labels_of(labels).tolist() if label >= 0]
        yield "gradients", (frozenset(kept) & candidates, None)


def _counts(
    found: Mapping[str, Mapping[str, Tensor]], request: Request
) -> Iterator[tuple[str, Tensor]]:
    """Yields numbers of examples by class, as analytic methods send them."""
    if "head" in found.get("counts", {}):
        yield "counts", found["counts"]["head"]
    measure = getattr(request.program, "measure", None)
    # The last regressor is a constant 1 where the head has a bias: its sums are counts.
    constant = isinstance(measure, Correlations) and measure.regressors.constant
    if constant and "head" in found.get("cross", {}):
        yield "cross", found["cross"]["head"][-1]


@dataclass
class _Classes(PayloadWatch):
    rows: dict[tuple[Any, ...], list[dict[str, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    before: dict[tuple[str, str], tuple[frozenset[int], frozenset[int]]] = field(
        default_factory=dict
    )

    def look(self, request: Request, view: str, tensors: Params, truth: Examples) -> None:
        """Tells classes from a payload."""
        at = request.position
        candidates = candidates_at(self.subject, at.stage)
        right = label_counts(truth.y, self.subject.stream.classes)
        present = frozenset(np.flatnonzero(right).tolist())
        for payload, (found, shares) in told(tensors, request, candidates):
            row = {
                "f1": f1(found, present),
                "f1_coin": guessed_f1(len(present), len(candidates)),
                "f1_all": f1(candidates, present),
                "present": float(len(present)),
                "candidates": float(len(candidates)),
            }
            if shares is not None:
                row["labels"] = 1.0 - apart(shares, right)
                row["labels_guessed"] = guessed_labels(candidates, right)
            row |= self._new(payload, view, found, present)
            place = (at.stage, at.round, at.exchange, request.name, payload)
            self.rows[*place, "sum" if view == "sum" else "reply"].append(row)

    def _new(
        self, payload: str, view: str, found: frozenset[int], present: frozenset[int]
    ) -> dict[str, float]:
        """Returns whether it is told rightly that somebody met a class that it had not before."""
        earlier = self.before.get((payload, view))
        seen, had = earlier or (frozenset(), frozenset())
        self.before[payload, view] = (seen | found, had | present)
        if earlier is None:
            return {}
        met = bool(present - had)
        return {"new": float(met), "new_right": float(bool(found - seen) == met)}

    def finish(self, params: Any) -> Finding:
        """Returns what was told, exchange by exchange, as means over clients."""
        names = ("f1", "f1_coin", "f1_all", "present", "candidates", "labels", "labels_guessed")
        table = []
        for key, rows in self.rows.items():
            place = ("stage", "round", "exchange", "program", "payload", "view")
            means = {name: _mean(rows, name) for name in (*names, "new", "new_right")}
            table.append({**dict(zip(place, key, strict=True)), "replies": len(rows), **means})
        numbers: dict[str, Any] = {"exchanges": len(table)}
        if table:
            worst = max(table, key=lambda row: row["f1"] - row["f1_coin"])
            for name in ("payload", "view", "stage", "f1", "f1_coin"):
                numbers[f"worst_{name}"] = worst[name]
            every = [row for rows in self.rows.values() for row in rows]
            for name in ("f1", "f1_coin", "f1_all", "labels", "labels_guessed", "new_right"):
                numbers[name] = _mean(every, name)
        note = NOTE if table else f"No payload had a last layer or counts. {NOTE}"
        return Finding(numbers=numbers, tables={"classes": table}, note=note)


def _mean(rows: list[dict[str, float]], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return float(np.mean(values)) if values else None
