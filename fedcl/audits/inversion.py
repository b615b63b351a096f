"""What do payloads show of the examples behind them?: images are reconstructed from what was sent.

Each kind of payload is attacked by what fits it: changes and gradients of a first linear layer in
closed form (Phong et al., 2017; Geiping et al., Inverting gradients, 2020), few images by a search,
sketches and Gram matrices by independent component analysis and their span, single gradients as
their method does (GLFC), means as images by themselves. Where the channel hides replies, the
attacker has the sum that the server received, after its noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedcl.auditing.labels import (
    apart,
    guessed_labels,
    head_change,
    label_counts,
    shares_of,
    whole_counts,
)
from fedcl.auditing.reconstruction import each_mean_image, matched, ssim
from fedcl.auditing.sketches import span_auc
from fedcl.audits._attacks import Options, Sent, Tried, attacks
from fedcl.audits._gallery import Gallery
from fedcl.audits._originals import (
    Known,
    candidates_at,
    drawn,
    known_at,
)
from fedcl.audits._payload_watch import PayloadWatch
from fedcl.audits._payloads import kinds
from fedcl.core.audit import Subject
from fedcl.core.params import Params
from fedcl.core.request import Request
from fedcl.core.seeds import numpy_generator, seed_of
from fedcl.core.task import Examples, class_mask
from fedcl.core.watch import Finding, Watch

__all__ = ["Inversion"]

Array = NDArray[np.float64]
_MOST = 2000  # examples behind a sum that reconstructions are compared with
NOTE = (
    "An honest server that knows how many examples stand behind a payload, test records of the "
    "stage's tasks and the range of inputs, and attacks each exchange by itself; `sum` is the sum "
    "that it received, after noise. Reconstructions are matched to the true examples, which no "
    "attacker has: PSNR in dB beside that of the mean test image. That no image comes back shows "
    "nothing: labels and membership leak long after. Replayed examples are sought, generated "
    "images are not. Malicious servers, several rounds together and learnt priors are not covered."
)


@dataclass(frozen=True)
class Inversion:
    """Reconstructs the inputs behind the payloads of some exchanges.

    Attributes:
        clients: Clients of an exchange whose replies are attacked, drawn by the seed; 0 for all.
        rounds: The first so many rounds of each stage are attacked, and what begins or ends it.
        iterations: Of a search for images; 0 leaves searches out.
        smoothness: Weight of the total variation in a search: larger images bear more.
        images: Examples behind a change of the model at most, for a search to be tried.
        components: Examples behind a sketch or a Gram matrix at most, to be sought one by one.
        shown: Best reconstructions of each payload and attack that are kept as pictures.
        seed: Decides clients and where searches start.
    """

    clients: int = 3
    rounds: int = 1
    iterations: int = 300
    smoothness: float = 0.01
    images: int = 4
    components: int = 32
    shown: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, not {value}")

    def open(self, subject: Subject) -> Watch:
        """Begins to watch a run."""
        return _Inversions(self, subject)


@dataclass
class _Inversions(PayloadWatch):
    rows: list[dict[str, Any]] = field(default_factory=list)
    known: dict[int, Known] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gallery = Gallery(self.options.shown, self.subject.stream.dataset.shape)

    def picked(self, request: Request, ids: Sequence[int]) -> Sequence[int]:
        """Returns some of the clients whose replies are seen; all whose sum is."""
        if self.hidden:
            return ids
        at = request.position
        place = (self.options.seed, "inversion", at.stage, at.round, at.exchange)
        return drawn(ids, self.options.clients, numpy_generator(self.subject.seed, *place))

    def look(self, request: Request, view: str, tensors: Params, truth: Examples) -> None:
        """Attacks a payload."""
        if not tensors or not len(truth):
            return
        at, stream = request.position, self.subject.stream
        if at.stage not in self.known:
            self.known = {at.stage: known_at(self.subject, at.stage)}
        known, candidates = self.known[at.stage], candidates_at(self.subject, at.stage)
        told = self._labels(tensors, request, candidates, len(truth))
        sent = Sent(
            tensors,
            len(truth),
            torch.from_numpy(np.repeat(np.arange(len(told)), told)),
            class_mask(sorted(candidates), stream.classes),
            request,
            self.subject.site.model,
            stream.dataset.shape,
            known,
        )
        seed = seed_of(self.subject.seed, "inversion", self.options.seed)
        own = self.options
        options = Options(own.iterations, own.smoothness, own.images, own.components, seed)
        right = label_counts(truth.y, stream.classes)
        place = {"stage": at.stage, "round": at.round, "exchange": at.exchange, "view": view}
        for tried in attacks(sent, options):
            labels: float | None = None
            if tried.payload == "model" and told.sum():
                labels = 1.0 - apart(told / told.sum(), right)
            quality = self._judged(tried, known, truth, {**place, "program": request.name})
            names = {"labels": labels, "labels_guessed": guessed_labels(candidates, right)}
            what = {"program": request.name, "payload": tried.payload, "attack": tried.attack}
            self.rows.append({**place, **what, "examples": len(truth), **quality, **names})

    def _labels(
        self, tensors: Params, request: Request, candidates: frozenset[int], number: int
    ) -> NDArray[np.int64]:
        """Returns how many labels of each class a change of the model tells; zeros for nothing."""
        model = kinds(tensors, request).get("model", {})
        change = head_change(model.get("head.weight"), model.get("head.bias"))
        if change is None:
            return np.zeros(self.subject.stream.classes, dtype=np.int64)
        if number == 1 and bool(change.any()):
            shares = np.zeros(len(change))
            shares[int(change.argmax())] = 1.0
        else:
            shares = shares_of(change, candidates)
        return whole_counts(shares, number)

    def _judged(
        self, tried: Tried, known: Known, truth: Examples, place: Mapping[str, Any]
    ) -> dict[str, float | int | None]:
        """Returns how good the reconstructions are, and how well the span tells members."""
        shape = self.subject.stream.dataset.shape
        originals = known.unit(truth.x.double().numpy())[:_MOST]
        base = each_mean_image(known.unit(known.mean[None])[0], originals)
        found: dict[str, float | int | None] = {
            "images": len(tried.images),
            **dict.fromkeys(("psnr_mean", "psnr_best", "ssim")),
            "baseline_psnr": float(base.mean()),
            "baseline_best": float(base.max()),
            "recovered_20": 0.0,
            "recovered_25": 0.0,
            "membership_auc": self._members(tried, known, truth),
        }
        if not len(tried.images):
            return found
        places, quality = matched(tried.images, originals)
        pairs = [
            (image.reshape(shape), originals[k].reshape(shape))
            for image, k in zip(tried.images, places, strict=True)
        ]
        alike = [ssim(*pair) for pair in pairs]
        self.gallery.add(tried.payload, tried.attack, place, pairs, quality, base[places])
        found |= {
            "psnr_mean": float(quality.mean()),
            "psnr_best": float(quality.max()),
            "ssim": None if None in alike else float(np.mean([a for a in alike if a is not None])),
            "recovered_20": float((quality > 20).sum() / len(originals)),
            "recovered_25": float((quality > 25).sum() / len(originals)),
        }
        return found

    def _members(self, tried: Tried, known: Known, truth: Examples) -> float | None:
        if tried.span is None:
            return None
        parts = []
        for rows in (truth.x.double().numpy().reshape(len(truth), -1), _flat(known.x)[:_MOST]):
            if tried.constant:
                rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
            if tried.basis is not None:
                rows = rows - (rows @ tried.basis) @ tried.basis.T
            parts.append(rows)
        return span_auc(tried.span, parts[0], parts[1])

    def finish(self, params: Params) -> Finding:
        """Returns what was reconstructed, and from which payload most examples came back."""
        tried = [row for row in self.rows if row["psnr_best"] is not None]
        numbers: dict[str, Any] = {
            "payloads": sorted({row["payload"] for row in self.rows}),
            "not_attacked": sorted(
                {r["payload"] for r in self.rows} - {r["payload"] for r in tried}
            ),
            "attacks": len(tried),
        }
        if tried:
            worst = max(
                tried, key=lambda r: (r["recovered_25"], r["psnr_best"] - r["baseline_best"])
            )
            for key in ("payload", "attack", "view", "psnr_best", "baseline_best", "recovered_25"):
                numbers[f"worst_{key}"] = worst[key]
            numbers["largest_psnr"] = max(row["psnr_best"] for row in tried)
        areas = [r["membership_auc"] for r in self.rows if r["membership_auc"] is not None]
        numbers["largest_span_auc"] = max(areas, default=None)
        pictures = self.gallery.arrays()
        return Finding(
            numbers=numbers,
            tables={"inversion": self.rows},
            pictures={"pictures": pictures} if pictures else {},
            note=NOTE if self.rows else f"Nothing was sent that could be attacked. {NOTE}",
        )


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)
