"""What an exchange may ask for, so that no single client's reply shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedcl.core.channel import Channel, hides_replies, least_of, mechanism, mechanism_at
from fedcl.core.client import Each
from fedcl.core.errors import ConfigError, ExposureError


def least_answers(channel: Channel, states: Sequence[Any], program: str, expected: int) -> int:
    """Returns the fewest replies whose sum is handed out; 0 for any number.

    Args:
        channel: The steps.
        states: Their server halves' states.
        program: Name of the program whose replies are summed.
        expected: Clients asked on average.
    """
    protection = mechanism_at(channel, states, program, expected)
    if protection is None or protection.shares is None:
        return least_of(channel)
    return max(least_of(channel), protection.shares.least(expected))


def check_each(program: str, message: Any, asked: Sequence[int]) -> None:
    """Raises ConfigError where a client that is asked has no message of its own."""
    missing = set(asked) - set(message.messages) if isinstance(message, Each) else ()
    if missing:
        raise ConfigError(
            f"program {program!r} is sent with Each, which has no message for the clients "
            f"{sorted(missing)}: give one to every client that is asked"
        )


def check_sum(channel: Channel, program: str, message: Any, clients: Sequence[int] | None) -> None:
    """Raises ExposureError where a sum that is asked for could show a single client's reply.

    Args:
        channel: The steps.
        program: Name of the program whose replies are summed.
        message: What is asked.
        clients: Those whom the method names; None for the cohort.
    """
    least = least_of(channel)
    if clients is not None and len(set(clients)) < least:
        raise ExposureError(
            f"program {program!r} asks {len(set(clients))} clients, but the channel hands out no "
            f"sum of fewer than {least}: ask more"
        )
    if isinstance(message, Each) and hides_replies(channel) and mechanism(channel) is None:
        raise ExposureError(
            f"program {program!r} has a message of its own for each client, by which their replies "
            "could be told apart in a sum: send all the same, or take a channel with noise"
        )
