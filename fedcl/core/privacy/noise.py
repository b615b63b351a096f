"""Noise that protects: drawn from keys that nobody can guess, a function of where it is added.

A key is made of a secret root of 32 bytes and of a place such as (stage, round, layer), so that two
places never share noise, and a run that is resumed adds the very noise that it added before.
PyTorch's generator on a CPU is of no use here: it takes 32 bits of its seed, which can be searched.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from operator import index

import numpy as np
import torch
from torch import Tensor

ROOT_BYTES = 32
_HELD = 2**14  # numbers of noise that are held at once


def secret_root() -> bytes:
    """Returns a new root from the operating system's source of randomness."""
    return secrets.token_bytes(ROOT_BYTES)


def seeded_root(seed: int) -> bytes:
    """Returns a root that anybody can repeat, for tests: it protects nothing."""
    return hashlib.blake2b(f"seeded/{index(seed)}".encode(), digest_size=ROOT_BYTES).digest()


def key_of(root: bytes, *place: int | str) -> bytes:
    """Returns the 32-byte key of a place below a root; keys of different places are independent.

    Args:
        root: 32 bytes: a root, or the key of a place above.
        place: Integers and words.

    Raises:
        ValueError: The root has another length.
    """
    if len(root) != ROOT_BYTES:
        raise ValueError(f"a root has {ROOT_BYTES} bytes, not {len(root)}")
    text = "/".join(
        f"str:{len(part)}:{part}" if isinstance(part, str) else f"int:{index(part)}"
        for part in place
    )
    return hmac.new(root, text.encode(), hashlib.sha256).digest()


def generator(root: bytes, *place: int | str) -> np.random.Generator:
    """Returns NumPy's Philox generator (counter-based, 128-bit key) of a place below a root."""
    key = int.from_bytes(key_of(root, *place)[:16], "big")
    return np.random.Generator(np.random.Philox(key=key))


def gaussian(
    root: bytes, shape: torch.Size | tuple[int, ...], scale: float, *place: int | str
) -> Tensor:
    """Returns Gaussian noise of a place, on the CPU in float64.

    The proofs are about real numbers. What a double cannot hold is not covered (Mironov, On
    significance of the least significant bits for differential privacy, CCS 2012).

    Args:
        root: 32 bytes: a root, or the key of a place above.
        shape: Shape of the noise.
        scale: Standard deviation of each number.
        place: Where the noise is added.
    """
    drawn = np.asarray(generator(root, *place).standard_normal(tuple(shape)))
    drawn *= scale  # the bits of `normal`, in less time
    return torch.from_numpy(drawn)


def hide(values: Tensor, root: bytes, scale: float, divisor: float, *place: int | str) -> None:
    """Puts the noise of `gaussian` on values and divides by a constant, in place.

    It is computed in float64, a small part at a time: new memory for all of the noise would cost
    more than its numbers.

    Args:
        values: Of any floating type, on any device; they lie one after the other.
        root: 32 bytes: a root, or the key of a place above.
        scale: Standard deviation of each number; 0 for none.
        divisor: What sum and noise are divided by.
        place: Where the noise is added.
    """
    flat = values.view(-1)
    if not scale:
        flat.div_(divisor)
        return
    drawing, held = generator(root, *place), np.empty(min(len(flat), _HELD))
    for part in flat.split(_HELD):
        own = held[: len(part)]
        drawing.standard_normal(out=own)
        own *= scale / divisor
        part.copy_(torch.from_numpy(own).to(part.device).add_(part, alpha=1.0 / divisor))


def seed_below(root: bytes, *place: int | str) -> int:
    """Returns a 63-bit seed of a place below a root, for draws that are to be secret too."""
    return int.from_bytes(key_of(root, *place)[:8], "big") >> 1
