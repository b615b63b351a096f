"""Releases of sums under differential privacy: charged first, then noised, by public constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedcl.core.accounting.ledger import Draw, Event, Mechanism
from fedcl.core.channel import Aggregate
from fedcl.core.door import Door
from fedcl.core.errors import ConfigError
from fedcl.core.privacy.banded import coefficients, correlated, inverse, separation_of
from fedcl.core.privacy.distributed import decoded, plan
from fedcl.core.privacy.noise import gaussian
from fedcl.core.request import Position
from fedcl.core.watch import Release


def expected_of(door: Door, members: Sequence[int], clients: Sequence[int] | None) -> int:
    """Returns how many clients an exchange asks on average: a public constant.

    Args:
        door: Says how large cohorts are.
        members: Clients with data at this stage.
        clients: Those whom the method names; None for the cohort.
    """
    total = len(members)
    return min(door.size or total, total) if clients is None else len(set(clients))


def draw_of(
    door: Door,
    members: Sequence[int],
    rounds: int,
    position: Position,
    clients: Sequence[int] | None,
    program: str,
    bands: int = 1,
) -> Draw:
    """Returns how the clients of an exchange came to be asked.

    Args:
        door: Says how cohorts are drawn.
        members: Clients with data at this stage.
        rounds: Rounds of the stage.
        position: Where in the run.
        clients: Those whom the method names; None for the cohort.
        program: Name of the program, for errors.
        bands: Bands of the matrix that correlates the noise of training; 1 for independent noise.

    Raises:
        ConfigError: The method names some clients of its own: what they are a sample of is not
            known. Or a client's turn comes sooner than correlated noise allows.
    """
    total = len(members)
    # What begins or ends a stage asks the cohort of its first or last round again.
    number = min(max(position.round, 0), rounds - 1)
    if clients is not None:
        if len(set(clients)) != total or not all(id in set(clients) for id in members):
            raise ConfigError(
                f"program {program!r} asks clients of its own choice, and no proof of privacy "
                "covers that: ask the cohort or all members, or leave out the channel that "
                "protects clients"
            )
        return Draw("all", total, total, number)
    expected = expected_of(door, members, clients)
    if bands > 1 and position.exchange == 0 and position.round == number:
        if door.sampling != "round_robin" or separation_of(total, expected) < bands:
            raise ConfigError(
                f"[[channel]] bands = {bands} needs clients who wait for {bands} rounds, but a "
                f"cohort of {expected} of {total} clients by training.sampling = "
                f'"{door.sampling}" does not guarantee that: take "round_robin" and a cohort of at '
                f"most {total // bands}, or fewer bands"
            )
        return Draw("round_robin", total, expected, number, bands, rounds)
    return Draw("all" if expected == total else door.sampling, total, expected, number)


def release(
    door: Door, mechanism: Mechanism, draw: Draw, position: Position, program: str, total: Aggregate
) -> Aggregate:
    """Charges the sum of clipped replies to the ledger, then adds noise, or unwraps what has it.

    How many clients answered is not told: weight and count are the expected number.

    Args:
        door: Holds the ledger and the secret root.
        mechanism: What bounds the replies.
        draw: How the clients came to be asked.
        position: Where in the run.
        program: Name of the program.
        total: The sum, of however many replies.

    Raises:
        ConfigError: It would exceed the budget; nothing is released.
    """
    at = (position.stage, position.round, position.exchange)
    own = (mechanism.noise_multiplier, mechanism.sensitivity)
    event = Event(*at, program, *own, draw, position.attempt)
    if mechanism.shares is not None:
        # No watch is told: nobody, the simulator included, knows this sum without its noise.
        made = plan(mechanism.shares, own[1], own[0], draw.expected)
        size = sum(value.numel() for value in total.total.values())
        door.ledger.intend(replace(event, discrete=made.discrete(size)), mechanism)
        tensors = decoded(made, total.total)
        return Aggregate(tensors, float(draw.expected), draw.expected, noise=own[0] * own[1])
    _check_banded(door, event)
    door.ledger.intend(event, mechanism)
    assert door.root is not None
    scale = mechanism.noise_multiplier * mechanism.sensitivity
    noised: dict[str, Tensor] = {}
    for name, value in total.total.items():
        noise = _noise(door.root, value.shape, scale, draw, position, name)
        noised[name] = value.to(torch.float64) + noise.to(value.device)
    seen = Release(position, program, total.total, noised, scale, mechanism, draw)
    for watch in door.watches:
        watch.released(seen)
    spread = math.hypot(scale * _growth(draw, position), total.noise)
    return Aggregate(noised, float(draw.expected), draw.expected, noise=spread)


def _check_banded(door: Door, event: Event) -> None:
    """Raises ConfigError where rounds of one stage with correlated noise have unequal clips.

    Noise of earlier rounds, which takes part in it, is drawn again with one scale for all.
    """
    for other in door.ledger.events.values():
        if (
            event.draw.bands > 1 < other.draw.bands
            and other.stage == event.stage
            and other.sensitivity != event.sensitivity
        ):
            raise ConfigError(
                f"[[channel]] bands = {event.draw.bands} correlates the noise of "
                f"{other.channel!r} and {event.channel!r}, which have clips of their own: give "
                "both the same one in clips, or set bands = 1"
            )


def _growth(draw: Draw, at: Position) -> float:
    """Returns the standard deviation of a release's noise over that of independent noise."""
    if draw.bands == 1:
        return 1.0
    return math.hypot(*inverse(coefficients(draw.bands), at.round + 1))


def _noise(
    root: bytes, shape: torch.Size, scale: float, draw: Draw, at: Position, name: str
) -> Tensor:
    if draw.bands > 1:
        # Earlier rounds' noise is drawn again from its keys.
        return correlated(
            coefficients(draw.bands),
            at.round,
            lambda number: gaussian(root, shape, scale, "banded", at.stage, number, name),
        )
    place = at.numbers
    return gaussian(root, shape, scale, "release", *place, name)


def nothing_of(total: Aggregate) -> Aggregate:
    """Returns the sum of no replies that has the form of another one."""
    return Aggregate({name: torch.zeros_like(v) for name, v in total.total.items()}, 0.0, 0)
