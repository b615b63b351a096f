"""What a config may not combine with example-level privacy; all of it is known at start."""

from __future__ import annotations

from typing import Any

from fedcl.core.channel import Channel, mechanism
from fedcl.core.errors import ConfigError, ExposureError
from fedcl.core.method import Method
from fedcl.core.privacy.examples import ExampleMechanism


def check_records(
    method: Method[Any], name: str, channel: Channel, promise: ExampleMechanism
) -> None:
    """Refuses methods and channels that would let records out unprotected.

    Args:
        method: The method.
        name: Its name in the config.
        channel: Transforms on the wire.
        promise: What the trainer promises to single records.

    Raises:
        ExposureError: The method, or a step of the channel, uses records as no proof covers.
        ConfigError: Noise of one kind can be repeated and that of the other cannot.
    """
    coverage = method.records()
    if coverage.kind == "refused":
        raise ExposureError(
            f"method {name!r} asks for more than example-level privacy covers: {coverage.reason}"
        )
    for index, step in enumerate(channel):
        if getattr(step, "reads_examples", False):
            raise ExposureError(
                f"[channel[{index}]] adds what it reads off single examples to each reply, which "
                "training.local does not protect: leave the step out, or take a trainer that is "
                "not private"
            )
    protection = mechanism(channel)
    if protection is not None and protection.seeded != promise.seeded:
        raise ConfigError(
            "noise of [training.local] and of [[channel]] must be of one kind: make both "
            '"secret", or both "seeded"'
        )
