"""Classes as directions of the feature space: cosine answers, contrast, relations, frozen vectors.

A prototype is a row of a (classes, d) matrix; only its direction counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.errors import ConfigError
from fedcl.core.model import Net
from fedcl.core.seeds import numpy_generator

Over = Literal["samples", "classes"]

# Damaged files, files of another kind, Python objects, and types that NumPy does not know.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    BadZipFile,
    SafetensorError,
)


def normalised(rows: Tensor) -> Tensor:
    """Returns (..., d) rows of length 1; a row of zeros stays one, with a finite gradient."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0)


def cosines(features: Tensor, prototypes: Tensor) -> Tensor:
    """Returns the (n, classes) cosines of (n, d) features with (classes, d) prototypes."""
    return normalised(features) @ normalised(prototypes).T


def head_rows(net: Net) -> Tensor:
    """Returns the (classes, d) weight of a net's head: the prototypes that training moves."""
    if net.params is not None and "head.weight" in net.params:
        return net.params["head.weight"]
    return net.model.get_parameter("head.weight")


def contrast(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns (n,) contrastive losses: same labels attract, all others repel.

    With z the normalised features, P(i) the other examples of i's label and A(i) all other
    examples, it is the mean over p in P(i) of -log(exp(z_i z_p / T) / sum_A(i) exp(z_i z_a / T)):
    Khosla et al., Supervised contrastive learning, NeurIPS 2020, L_out with one view of each
    example. An anchor without a positive has a loss of 0.

    Args:
        features: (n, d).
        labels: (n,) classes.
        temperature: T, above 0.
    """
    z = normalised(features)
    alone = torch.eye(len(z), dtype=torch.bool, device=z.device)
    # Finite, so that a batch of one example has no NaN.
    likelihoods = F.log_softmax((z @ z.T / temperature).masked_fill(alone, -1e9), dim=1)
    positive = ((labels[:, None] == labels[None, :]) & ~alone).to(z.dtype)
    sums = (likelihoods * positive).sum(1)
    return -sums / positive.sum(1).clamp(min=1.0)


def relation_distillation(
    new: Tensor, old: Tensor, temperature: float, over: Over = "samples"
) -> Tensor:
    """Returns (n,) values whose mean is the divergence of new relations from old ones.

    Over `samples`: each prototype's similarities to the n examples of a batch, over T, become a
    distribution over the examples by softmax; the result's mean is the Kullback-Leibler divergence
    of the new one from the old one, averaged over the prototypes. What adds the same to all of a
    prototype's similarities changes nothing. Over `classes`: the softmax is over the prototypes,
    and the mean is over the examples, as in plain distillation.

    Args:
        new: (n, prototypes) similarities that are trained.
        old: (n, prototypes) similarities to stay near, constants.
        temperature: T, above 0.
        over: What the distributions are over.
    """
    dim = 0 if over == "samples" else 1
    wanted = F.log_softmax(old.detach() / temperature, dim=dim)
    found = F.log_softmax(new / temperature, dim=dim)
    values = (wanted.exp() * (wanted - found)).sum(1)
    return values * (len(new) / new.shape[1]) if over == "samples" else values


def orthogonal_frame(rows: int, width: int, seed: int) -> Tensor:
    """Returns a random (rows, width) float64 matrix with orthonormal rows, a function of the seed.

    Where there are more rows than columns, the columns are orthonormal instead.
    """
    tall = max(rows, width), min(rows, width)
    drawn = numpy_generator(seed, "orthogonal frame", rows, width).standard_normal(tall)
    q, r = np.linalg.qr(drawn)
    q *= np.where(np.diag(r) < 0, -1.0, 1.0)  # QR leaves the signs open
    return torch.from_numpy(np.ascontiguousarray(q.T if rows < width else q))


@dataclass(frozen=True)
class ClassVectors:
    """A fixed unit vector for each class, which everybody can work out and nobody sends.

    Attributes:
        source: `orthogonal`, or an .npz or .safetensors file with one (classes, k) array, row c for
            class c, from any model of language. Where k is not the width of the features, a random
            orthogonal projection takes the vectors there: with k below the width it keeps all
            their angles, else roughly.
        seed: Seed of the frame and of the projection.
    """

    source: str = "orthogonal"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"the vectors' seed must be at least 0, not {self.seed}")
        if self.source != "orthogonal":
            read_vectors(self.source)

    def __call__(self, classes: int, width: int) -> Tensor:
        """Returns (classes, width) float64 rows of length 1; orthogonal ones where they fit.

        Raises:
            ConfigError: The file has another number of classes.
        """
        return _class_vectors(self, classes, width)


@lru_cache(maxsize=8)
def _class_vectors(vectors: ClassVectors, classes: int, width: int) -> Tensor:
    if vectors.source == "orthogonal":
        return normalised(orthogonal_frame(classes, width, vectors.seed))
    rows = read_vectors(vectors.source)
    if len(rows) != classes:
        raise ConfigError(
            f"{vectors.source} holds vectors of {len(rows)} classes, but the head has {classes}: "
            "save one row for each class, in the order of the labels"
        )
    if rows.shape[1] != width:
        rows = rows @ orthogonal_frame(rows.shape[1], width, vectors.seed)
    return normalised(rows)


@lru_cache(maxsize=8)
def read_vectors(path: str) -> Tensor:
    """Returns the one (classes, k) array of a file as float64, rows as they are.

    Raises:
        ValueError: There is no such file, or not one array of vectors in it.
    """
    file = Path(path).expanduser()
    remedy = "save one (classes, k) array with numpy.savez or safetensors"
    if file.suffix not in (".npz", ".safetensors"):
        raise ValueError(f'vectors must be "orthogonal", an .npz or a .safetensors, not {path!r}')
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                arrays = [archive[name] for name in archive.files]
        else:
            arrays = list(safetensors.numpy.load_file(file).values())
    except FileNotFoundError as error:
        raise ValueError(f"the vectors {path} are missing: {remedy}") from error
    except _UNREADABLE as error:
        raise ValueError(f"the vectors {path} cannot be read ({error}): {remedy}") from error
    if len(arrays) != 1 or arrays[0].ndim != 2 or arrays[0].dtype.kind != "f":
        found = ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays)
        raise ValueError(f"{path} holds {found or 'nothing'}: {remedy}")
    rows = torch.from_numpy(arrays[0].astype(np.float64))
    lengths = torch.linalg.vector_norm(rows, dim=1)
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
        raise ValueError(f"{path} holds NaN, infinity or a row of zeros: no direction for a class")
    return rows
