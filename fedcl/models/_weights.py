"""Weights of published networks in NumPy archives: read, checked, batch norms folded in."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["Weights", "locate", "read"]


@dataclass(frozen=True)
class Weights:
    """Named arrays of one file.

    Attributes:
        path: The file.
        arrays: Its arrays.
    """

    path: Path
    arrays: Mapping[str, npt.NDArray[Any]]

    def take(self, key: str, *shape: int) -> Tensor:
        """Returns an array as a float64 tensor; raises ValueError for one that does not fit."""
        remedy = "name the file of this backbone in model.file"
        if key not in self.arrays:
            raise ValueError(f"the weight {key!r} is missing, in {self.path}; {remedy}")
        found = self.arrays[key]
        if found.shape != shape or found.dtype.kind != "f":
            raise ValueError(
                f"the weight {key!r} is {found.dtype} of shape {found.shape}, not numbers of shape "
                f"{shape}, in {self.path}; {remedy}"
            )
        value = torch.from_numpy(found.astype(np.float64))
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"the weight {key!r} holds NaN or infinity, in {self.path}; copy it again"
            )
        return value

    def convolution(
        self, layer: nn.Conv2d, name: str, norm: str, epsilon: float = 1e-5
    ) -> nn.Conv2d:
        """Returns the layer in float64 with a convolution's weights and those of its batch norm.

        In evaluation a batch norm is `(y - mean) / sqrt(var + epsilon) * weight + bias`: a factor
        and a shift of each channel, which the convolution takes over.

        Args:
            layer: A convolution with a bias.
            name: Name of its weights in the file, without `.weight`.
            norm: Name of the batch norm behind it.
            epsilon: Of that batch norm.
        """
        weight = self.take(f"{name}.weight", *layer.weight.shape)
        kinds = ("weight", "bias", "running_mean", "running_var")
        scale, shift, mean, variance = (self.take(f"{norm}.{k}", len(weight)) for k in kinds)
        factor = scale / (variance + epsilon).sqrt()
        layer.weight = nn.Parameter(weight * factor[:, None, None, None])
        layer.bias = nn.Parameter(shift - mean * factor)
        return layer


def locate(root: str, file: str) -> Path:
    """Returns the path of a file of weights; raises ValueError where there is none."""
    if not root:
        raise ValueError(
            f"the weights {file} need a folder: set model.root, e.g. --set model.root=FOLDER"
        )
    path = Path(root).expanduser()
    path = path if path.is_file() else path / file
    if not path.is_file():
        raise ValueError(
            f"the weights {file} are missing, in {path.parent}: put them there, or set model.root "
            "to their folder and model.file to their name"
        )
    return path


def read(path: Path, sha256: str = "") -> Weights:
    """Reads a file of weights; nothing is ever unpickled.

    Args:
        path: An .npz file.
        sha256: What the file's SHA-256 must begin with.

    Raises:
        ValueError: The file is damaged, or another one.
    """
    try:
        content = path.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    # A file of another kind, a damaged one, one with Python objects in it.
    except (OSError, EOFError, ValueError, AttributeError, BadZipFile, zlib.error) as error:
        raise ValueError(
            f"the weights {path} cannot be read ({error}): save them with numpy.savez, or copy "
            "them again"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(sha256.lower()):
        raise ValueError(
            f"the SHA-256 of {path} is {found}, not {sha256}: these are other weights; restore "
            "the file, or set model.sha256 to what it is"
        )
    return Weights(path, arrays)
