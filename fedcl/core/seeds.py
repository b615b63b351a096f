"""Randomness as a function of position: a draw's seed says where it happens, not what ran before.

So results do not depend on the number of workers, and a resumed run needs no saved generator.
"""

from __future__ import annotations

import hashlib
from operator import index

import numpy as np
import torch


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
