"""Randomness as a function of position: a draw's seed says where it happens, not what ran before.

So results do not depend on the number of workers, and a resumed run needs no saved generator.
"""

from __future__ import annotations

import hashlib
from operator import index

import numpy as np
import numpy.typing as npt
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def seed_of(*position: int | str) -> int:
    """Returns a 63-bit seed of a position such as `(experiment, stage, round, exchange, client)`.

    Args:
        position: Integers and words; different positions give independent seeds.
    """
    # NumPy's integers count as integers: ids come from arrays as well as from ranges.
    text = "/".join(
        f"str:{part}" if isinstance(part, str) else f"int:{index(part)}" for part in position
    )
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(*position: int | str) -> torch.Generator:
    """Returns a CPU generator seeded by a position: CPU, so that draws agree between devices."""
    return torch.Generator().manual_seed(seed_of(*position))


def numpy_generator(*position: int | str) -> np.random.Generator:
    """Returns a NumPy generator seeded by a position."""
    return np.random.default_rng(seed_of(*position))


def hashes(seed: int, places: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Overwrites the places with a seed's independent 64-bit draws at these places; returns them.

    SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA
    2014): a draw costs nanoseconds and needs none of the draws before it.
    """
    places *= _GOLDEN
    places += np.uint64(seed % 2**64)
    for shift, factor in _ROUNDS:
        places ^= places >> np.uint64(shift)
        places *= np.uint64(factor)
    places ^= places >> np.uint64(31)
    return places


def uniforms(seed: int, items: npt.NDArray[np.integer], draws: int) -> npt.NDArray[np.float64]:
    """Returns (len(items), draws) numbers in [0, 1): functions of the seed, the item and the draw.

    Args:
        seed: A seed, as `seed_of` makes them.
        items: (n,) numbers of clients or rows, from 0.
        draws: Draws for each; the same for all calls that are to agree.
    """
    first = items.astype(np.uint64) * np.uint64(draws)
    bits = hashes(seed, np.add.outer(first, np.arange(draws, dtype=np.uint64)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
