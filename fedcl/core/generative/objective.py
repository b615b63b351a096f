"""What images that a generator draws shall be like: the losses that it is trained by, without data.

DAFL (Chen et al., ICCV 2019), DeepInversion (Yin et al., CVPR 2020), TARGET (Zhang et al., ICCV
2023), MFCL (Babakniya et al., NeurIPS 2023) and LANDER (Tran et al., CVPR 2024) are sums of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.generative.datafree import look
from fedcl.core.local import masked_logits
from fedcl.core.losses.anchors import beyond
from fedcl.core.losses.distillation import distillation
from fedcl.core.model import Net
from fedcl.core.params import Params

_EDGE = 1e-3  # share of a layer's mean variance that counts as none


@dataclass(frozen=True)
class Weights:
    """How much each loss counts.

    Attributes:
        labels: Cross-entropy with the labels that were asked for.
        moments: Distance from real data's statistics in the teacher's layers.
        adversarial: The student's disagreement, which is to be large.
        variety: How unevenly the teacher's answers to a batch are spread over classes.
        roughness: How far images are from their blurred selves.
        anchors: Distance of features from their class's anchor.
    """

    labels: float = 0.5
    moments: float = 10.0
    adversarial: float = 0.0
    variety: float = 0.0
    roughness: float = 0.0
    anchors: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise ValueError(f"{field.name} must be at least 0 and finite")


@dataclass(frozen=True)
class Objective:
    """The sum of weighted losses of a batch of images.

    Attributes:
        teacher: The network that knows the classes.
        heads: (heads, classes) bool, disjoint: what it compares.
        moments: Statistics of real data, as `datafree.means` gives them.
        weights: How much each loss counts; one of 0 is not worked out.
        anchors: (classes, d) where features of a class shall be, or None.
        radius: Distance from an anchor, in squares a number, that is near enough.
    """

    teacher: Net
    heads: Tensor
    moments: Mapping[str, Tensor]
    weights: Weights
    anchors: Tensor | None = None
    radius: float = 0.0

    def __call__(self, images: Tensor, labels: Tensor, pupil: Net | None = None) -> Tensor:
        """Returns a scalar; without a pupil nobody disagrees."""
        own, weights = look(self.teacher, images), self.weights
        allowed = allowed_of(self.heads, labels)
        total = weights.labels * label_loss(own.logits, labels, allowed)
        if weights.moments:
            found = {name: value / len(images) for name, value in own.sums.items()}
            total = total + weights.moments * moments_distance(found, self.moments)
        if weights.variety:
            total = total + weights.variety * sameness(own.logits, allowed)
        if weights.roughness:
            total = total + weights.roughness * roughness(images)
        if weights.anchors and self.anchors is not None:
            away = beyond(own.features, self.anchors[labels], self.radius).mean()
            total = total + weights.anchors * away
        if weights.adversarial and pupil is not None:
            against = disagreement(own.logits, pupil(images), allowed)
            total = total - weights.adversarial * against
        return total


def allowed_of(heads: Tensor, labels: Tensor) -> Tensor:
    """Returns (n, classes) bool: the head of each label, of disjoint (heads, classes)."""
    return heads[heads[:, labels].int().argmax(0)]


def label_loss(logits: Tensor, labels: Tensor, allowed: Tensor) -> Tensor:
    """Returns the mean cross-entropy over the logits that (n, classes) `allowed` lets in."""
    return F.cross_entropy(masked_logits(logits, allowed), labels)


def disagreement(teacher: Tensor, student: Tensor, allowed: Tensor) -> Tensor:
    """Returns the mean over rows of KL(teacher || student), 0 where both name the same class.

    It is to be large (TARGET's boundary support, eq. 5 to 7): images then lie between the
    decision boundaries of the two. Gradients go through both networks.
    """
    rows = distillation(student, teacher, allowed, 1.0)
    names = [masked_logits(logits, allowed).argmax(1) for logits in (teacher, student)]
    return (rows * (names[0] != names[1])).mean()


def moments_distance(found: Params, wanted: Mapping[str, Tensor]) -> Tensor:
    """Returns how far means and standard deviations of channels are apart, mean over layers.

    Each layer gives the mean over channels of the two squared distances, over the mean variance of
    its channels: a number without a unit, 0 where all agree. Papers add the Euclidean distances of
    means and of variances, whose sizes differ from layer to layer.

    Args:
        found: `moments/...`, means (not sums) over a batch, with gradients.
        wanted: Those of real data.
    """
    terms = []
    for name, (mean, square) in wanted.items():
        variance = (square - mean.square()).clamp(min=0)
        scale = variance.mean().clamp(min=1e-12)
        own_mean, own_square = found[name]
        own = (own_square - own_mean.square()).clamp(min=0)
        edge = _EDGE * scale  # the root of 0 has no gradient
        spreads = (own + edge).sqrt() - (variance + edge).sqrt()
        terms.append(((own_mean - mean).square() + spreads.square()).mean() / scale)
    return torch.stack(terms).mean()


def sameness(logits: Tensor, allowed: Tensor) -> Tensor:
    """Returns 1 - H / log K: 0 where the K classes' mean probabilities are equal, 1 for one class.

    H is the entropy of the softmax's mean over rows (DAFL's information entropy). One class alone
    has nothing to be spread over, and gives 0.

    Args:
        logits: (n, classes).
        allowed: (n, classes) bool, what each row's softmax is over; their union are the K classes.
    """
    count = int(allowed.any(0).sum())
    if count < 2:
        return logits.new_zeros(())
    mean = F.softmax(masked_logits(logits, allowed), dim=1).mean(0)
    entropy: Tensor = torch.special.entr(mean.clamp(min=1e-30)).sum()
    return 1.0 - entropy / math.log(count)


def roughness(images: Tensor) -> Tensor:
    """Returns the mean squared difference of images and their blurred selves (MFCL's prior).

    The blur is Gaussian, 3 by 3 with a deviation of 1 pixel, edges repeated.
    """
    line = torch.exp(-0.5 * torch.tensor([-1.0, 0.0, 1.0]).square()).to(images)
    kernel = torch.outer(line, line) / line.sum().square()
    channels = images.shape[1]
    wide = F.pad(images, (1, 1, 1, 1), mode="replicate")
    blurred = F.conv2d(wide, kernel.expand(channels, 1, 3, 3), groups=channels)
    return (images - blurred).square().mean()
