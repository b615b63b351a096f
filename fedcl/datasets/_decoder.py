"""What an encoded image says as an array of bytes, by Pillow; errors say which image it was."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fedcl.core.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Decoder", "Pixels", "Shape", "Sources"]

Pixels: TypeAlias = npt.NDArray[np.uint8]
Shape: TypeAlias = tuple[int, ...]


class Sources(Protocol):
    """Encoded images in their order."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> str | bytes:
        """Returns the path of an image file, or the content of one."""
        ...

    def place(self, row: int, /) -> str:
        """Returns where an image comes from, for errors."""
        ...


@dataclass(frozen=True)
class Decoder:
    size: tuple[int, int] | None
    colour: Literal["RGB", "L"]
    formats: tuple[str, ...]

    def __call__(self, sources: Sources, row: int) -> Pixels:
        """Returns the (channels, height, width) bytes of an image."""
        from PIL.Image import Resampling  # slow to import, and only needed here

        with self._opened(sources, row) as image:
            if image.mode == "P" and "transparency" in image.info:  # as Pillow asks
                image = image.convert("RGBA")
            image = image.convert(self.colour)
            if self.size is not None:
                image = image.resize(self.size[::-1], Resampling.BILINEAR)
            pixels = np.asarray(image)
        return np.ascontiguousarray(np.moveaxis(np.atleast_3d(pixels), 2, 0))

    def shape(self, sources: Sources, row: int) -> Shape:
        """Returns the shape of these bytes; reads no more than the beginning of a file."""
        with self._opened(sources, row) as image:
            return (len(self.colour), *(self.size or image.size[::-1]))

    @contextmanager
    def _opened(self, sources: Sources, row: int) -> Iterator[Image]:
        from PIL import Image, UnidentifiedImageError

        try:
            source = sources[row]
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=self.formats or None) as image:
                frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
                if frames > 1:  # those of a photograph in MPO are previews
                    raise ValueError(f"it is animated or has pages: {frames} images in one")
                if image.mode[0] in "IF":
                    raise ValueError("its channels have more than 8 bits")
                yield image
        except UnidentifiedImageError as error:
            wanted = " or ".join(self.formats) or "image that Pillow knows"
            raise _unusable(sources.place(row), f"its content is no {wanted}") from error
        except Exception as error:  # a damaged file may fail in any way
            raise _unusable(sources.place(row), str(error) or type(error).__name__) from error


def _unusable(place: str, reason: str) -> ConfigError:
    remedy = "save it as one still image of 8 bits a channel, copy it again, or remove it"
    return ConfigError(f"an image cannot be used ({reason}), in {place}; {remedy}")
