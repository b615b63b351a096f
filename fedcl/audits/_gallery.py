"""The best reconstructions of each payload and attack, beside what they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Picture:
    """One reconstruction, its original, and where it is from."""

    found: Array
    original: Array
    psnr: float
    baseline: float
    stage: int
    view: str


@dataclass
class Gallery:
    """Keeps few pictures of each payload and attack: those of the highest PSNR.

    Attributes:
        shown: How many.
        shape: Of an input; what is no image, (channels, height, width), is not kept.
    """

    shown: int
    shape: tuple[int, ...]
    kept: dict[tuple[str, str], list[Picture]] = field(default_factory=dict)

    def add(
        self,
        payload: str,
        attack: str,
        place: Mapping[str, Any],
        pairs: Sequence[tuple[Array, Array]],
        psnr: Array,
        baseline: Array,
    ) -> None:
        """Adds reconstructions with their originals, both in [0, 1]."""
        if len(self.shape) != 3 or not self.shown:
            return
        own = self.kept.setdefault((payload, attack), [])
        own += [
            Picture(found, original, float(p), float(b), place["stage"], place["view"])
            for (found, original), p, b in zip(pairs, psnr, baseline, strict=True)
        ]
        own.sort(key=lambda picture: -picture.psnr)
        del own[self.shown :]

    def arrays(self) -> dict[str, Any]:
        """Returns all pictures as arrays of one length; nothing without any."""
        rows = [(*key, picture) for key, own in self.kept.items() for picture in own]
        if not rows:
            return {}
        return {
            "payload": np.array([payload for payload, _, _ in rows]),
            "attack": np.array([attack for _, attack, _ in rows]),
            "view": np.array([picture.view for *_, picture in rows]),
            "stage": np.array([picture.stage for *_, picture in rows]),
            "found": np.stack([p.found for *_, p in rows]).astype(np.float32),
            "original": np.stack([p.original for *_, p in rows]).astype(np.float32),
            "psnr": np.array([picture.psnr for *_, picture in rows]),
            "baseline": np.array([picture.baseline for *_, picture in rows]),
        }
