"""What methods share whose server makes images of old classes and ships them (`known.Shipping`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedcl.core.federation import Federation
from fedcl.core.generative.known import Shipping, known_now
from fedcl.core.generative.pictures import Shipment, pictures
from fedcl.core.generative.samples import few_of_each
from fedcl.core.generative.synthesis import Recipe, synthesise
from fedcl.core.method import Needs, Sizes
from fedcl.core.task import Examples


def shipped(
    state: Shipping,
    fed: Federation,
    recipe: Recipe,
    width: int,
    receive: Callable[..., Any],
    features: bool = False,
) -> Shipping:
    """Makes images of all classes of earlier stages, and sends them to all members.

    Args:
        state: The state at a stage's beginning; in the first stage there is nothing to make.
        fed: The federation.
        recipe: How images are made.
        width: Channels of the generator before its last convolution.
        receive: The program that keeps a `Shipment`.
        features: Whether the teacher's features come along.
    """
    if state.known is None:
        return state
    teacher, seed = fed.net(state.params), fed.seed("generator")
    generator = state.known.generator(len(state.params["head.weight"]), width)
    made, _ = synthesise(teacher, state.first, state.known, generator, recipe, seed)
    images = pictures(teacher, made, features)
    fed.aggregate(receive, Shipment(images, state.known.heads), clients=fed.members)
    return replace(state, pictures=images)


def measured(state: Shipping, fed: Federation) -> Shipping:
    """Measures real data's statistics in the model that will be the teacher, at a stage's end."""
    images = state.pictures.images if state.pictures is not None else None
    return replace(state, known=known_now(fed, state.params, state.known, images))


def some_of(state: Shipping, seed: int) -> Examples | None:
    """Returns a few of the present stage's images for the record, or None without any."""
    if state.pictures is None:
        return None
    few = state.pictures.take(few_of_each(state.pictures.y, seed).to(state.pictures.y.device))
    return Examples(few.images, few.y)


def shipping_needs(sizes: Sizes, recipe: Recipe, width: int, ratio: float, features: bool) -> Needs:
    """Returns what images, the student and the generator's training take, in bytes.

    Args:
        sizes: Of the model and the data.
        recipe: How images are made.
        width: Channels of the generator before its last convolution.
        ratio: Images for each own example in a round.
        features: Whether the teacher's features come along.
    """
    deep, classes = sizes.layers.get("head.weight", (0, 0))
    pixels = sizes.example // sizes.item
    numbers = sizes.item * (classes + (deep if features else 0))
    images = recipe.images * (pixels + 8 + numbers)
    channels = 8 * 2 * (pixels + sum(d for d, _ in sizes.layers.values()))
    # Of each image: 5 maps of the generator's width at full size and 4 at half, kept twice, and
    # what the two networks keep, rows of layer inputs at most.
    kept = 2 * 6 * width * pixels + 2 * sum(
        sizes.rows[name] * d for name, (d, _) in sizes.layers.items()
    )
    held = recipe.images * sizes.example
    return Needs(
        state=sizes.params + images + channels + sizes.stages * classes,
        server=sizes.item * recipe.batch * kept + 4 * sizes.params + held,
        client=int((1 + 2 * ratio) * sizes.share + recipe.images) * (sizes.example + numbers),
        reply=channels,
        memory=images + sizes.stages * classes,
        everyone=True,
    )
