"""Synthetic images as they travel and are remembered, and how a client rehearses them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.client import Client
from fedcl.core.generative.datafree import look
from fedcl.core.local import masked_logits
from fedcl.core.losses.distillation import ROWS, Taught, answers, over_heads
from fedcl.core.model import Net
from fedcl.core.seeds import torch_generator
from fedcl.core.task import ClientTask, Examples, join

_LEVELS = 255


@dataclass(frozen=True)
class Pictures:
    """Images at a byte for each number, as image files are, and what a teacher says to them.

    Attributes:
        codes: (n, channels, height, width) uint8.
        low: () what code 0 stands for, in the units of the data.
        step: () the difference of two codes.
        y: (n,) int64 labels.
        logits: (n, classes) the teacher's.
        features: (n, d) what the teacher's last layer got, or None where nobody asks for it.
    """

    codes: Tensor
    low: Tensor
    step: Tensor
    y: Tensor
    logits: Tensor
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def images(self) -> Tensor:
        """The (n, channels, height, width) images, in the type of `low`."""
        return self.low + self.step * self.codes.to(self.low)

    def take(self, rows: Tensor) -> Pictures:
        """Returns the chosen rows, in the order given."""
        features = self.features[rows] if self.features is not None else None
        chosen = {"codes": self.codes[rows], "y": self.y[rows], "logits": self.logits[rows]}
        return replace(self, **chosen, features=features)


@dataclass(frozen=True)
class Shipment:
    """What goes down once a stage, and what a client remembers.

    Attributes:
        pictures: The images.
        heads: (heads, classes) bool, what their teacher compares: see `known_heads`.
    """

    pictures: Pictures
    heads: Tensor


def pictures(teacher: Net, rows: Examples, features: bool = False) -> Pictures:
    """Returns images in bytes from their lowest to their highest number, with a teacher's answers.

    The teacher looks at what the bytes stand for, so its answers are what a receiver's would be.

    Args:
        teacher: The network.
        rows: Images with labels.
        features: Whether the teacher's features come along.
    """
    low, high = rows.x.min(), rows.x.max()
    step = (high - low).clamp(min=torch.finfo(low.dtype).tiny) / _LEVELS
    codes = ((rows.x - low) / step).round().clamp(0, _LEVELS).to(torch.uint8)
    found = Pictures(codes, low, step, rows.y, rows.y)
    if not features:
        return replace(found, logits=answers(teacher, found.images))
    with torch.no_grad():
        seen = [look(teacher, x) for x in found.images.split(ROWS)]
    logits, inner = (torch.cat([getattr(s, k) for s in seen]) for k in ("logits", "features"))
    return replace(found, logits=logits, features=inner)


@dataclass(frozen=True)
class Rehearsed:
    """Cross-entropy of own rows and distillation of synthetic ones, by the columns of `beside`.

    Attributes:
        masked: Compare only the classes of the present task in the cross-entropy.
        strength: Factor of the distillation.
        temperature: Its T.
    """

    rowwise: ClassVar[bool] = True

    masked: bool
    strength: float
    temperature: float

    def __call__(self, net: Net, batch: Examples, task: ClientTask, message: Taught) -> Tensor:
        """Returns (n,) losses."""
        logits = net(batch.x)
        allowed = task.present if self.masked else task.head
        own = F.cross_entropy(masked_logits(logits, allowed), batch.y, reduction="none")
        old = over_heads(logits, batch.extra["teacher"], message.heads, self.temperature)
        return batch.extra["own"] * own + self.strength * batch.extra["old"] * old


def beside(client: Client, heads: Tensor, ratio: float, width: int = 0) -> Examples:
    """Returns a client's own examples and as many synthetic ones, drawn anew in each exchange.

    Columns are `teacher`, the logits of the images' teacher (own rows have 0), and the weights
    `own` and `old`: 0 for rows of the other kind, and so that a mean over all rows is the sum of
    the mean over own rows and that over synthetic ones; with a width also `features` (n, width).

    Args:
        client: Remembers a `Shipment`. One of other heads is out of date: then, and where there is
            none, it has its own examples alone.
        heads: (heads, classes) bool, what the present teacher compares.
        ratio: Synthetic images for each own example; as long as there are enough, none is twice
            there.
        width: Numbers of a feature, where images come with features; 0 for no such column.
    """
    own, kept = client.data, client.state
    none, plain = (own.x.new_zeros((len(own), size)) for size in (heads.shape[1], width))
    if kept is None or not torch.equal(kept.heads, heads):
        return _weighed(own, none, plain, 1.0, 0.0)
    size, count = len(kept.pictures), max(1, round(ratio * len(own)))
    draws = torch_generator(client.seed, "images")
    order = [torch.randperm(size, generator=draws) for _ in range(-(-count // size))]
    drawn = kept.pictures.take(torch.cat(order)[:count].to(own.y.device))
    old = Examples(drawn.images.to(own.x), drawn.y)
    features = own.x.new_zeros((count, 0)) if drawn.features is None else drawn.features.to(own.x)
    every = len(own) + count
    return join(
        [
            _weighed(own, none, plain, every / max(1, len(own)), 0.0),
            _weighed(old, drawn.logits.to(own.x), features, 0.0, every / count),
        ]
    )


def _weighed(rows: Examples, teacher: Tensor, features: Tensor, own: float, old: float) -> Examples:
    columns = {"teacher": teacher}
    if features.shape[1]:
        columns["features"] = features
    for name, value in (("own", own), ("old", old)):
        columns[name] = rows.x.new_full((len(rows),), value)
    return Examples(rows.x, rows.y, columns)
