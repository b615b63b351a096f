"""What a model knows at a stage's end, and what real data looked like to it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedcl.core.client import Model
from fedcl.core.errors import ConfigError
from fedcl.core.federation import Federation
from fedcl.core.generative.datafree import INPUT, ChannelMoments, means, mixed, moments_of
from fedcl.core.generative.generator import Generator
from fedcl.core.generative.pictures import Pictures
from fedcl.core.losses.distillation import known_heads
from fedcl.core.params import Params
from fedcl.core.statistic import Statistic


@dataclass(frozen=True)
class Known:
    """What a model knows at a stage's end: what images can be made of.

    Attributes:
        heads: (heads, classes) bool, disjoint: what it compares; see `known_heads`.
        classes: What it has seen.
        moments: Statistics of real data in its layers, as `datafree.means` gives them.
        examples: How many real examples these are of.
    """

    heads: Tensor
    classes: tuple[int, ...]
    moments: Params
    examples: float

    def generator(self, classes: int, width: int) -> Generator:
        """Returns a generator of such images as the moments are of, with so many labels."""
        channels, height, across = self.moments[INPUT].shape[1:]
        return Generator((channels, height, across), classes, width=width)


def known_now(
    fed: Federation, params: Params, before: Known | None, images: Tensor | None
) -> Known:
    """Asks all members for statistics of their data, and returns what the model knows now.

    Of earlier stages' data there is no more than their images: these stand in for them, with the
    weight of as many examples as the real ones were. Pixels depend on no model: theirs are exact.

    Args:
        fed: The federation, at a stage's end.
        params: The model.
        before: What it returned at the last stage's end, or None.
        images: (n, ...) images of what was known then, or None.

    Raises:
        ConfigError: The inputs are no images.
    """
    statistic = Statistic(ChannelMoments(), "moments", exact=("count",))
    sums = fed.aggregate(statistic, Model(params), clients=fed.members).sum
    count, found, heads = max(1.0, float(sums["count/examples"])), means(sums), None
    if found[INPUT].dim() != 4:
        raise ConfigError(
            "generative replay draws images (channels, height, width), but this stream's inputs "
            f"have shape {tuple(found[INPUT].shape[1:])}: choose a data set of images, or another "
            "method"
        )
    if before is not None and images is not None:
        heads = before.heads
        old = {**moments_of(fed.net(params), images), INPUT: before.moments[INPUT]}
        found = mixed([(count, found), (before.examples, old)])
        count += before.examples
    return Known(known_heads(heads, fed.task, params), fed.task.seen, found, count)


@dataclass(frozen=True)
class Shipping:
    """State of a server that ships images.

    Attributes:
        params: The model.
        first: The freshly initialised one, from which students start.
        known: What the model of the last stage's end knows.
        pictures: The present stage's images.
    """

    params: Params
    first: Params
    known: Known | None = None
    pictures: Pictures | None = None
