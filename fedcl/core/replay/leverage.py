"""Leverage scores of features that lie with many clients, and a draw by them (FedCBDR).

The leverage of row j of a stack X of features is `|e_j^T U|^2` with U the left singular vectors of
X: how much of a direction in feature space hangs on this row. Scores add up to the rank of X. They
stay when X is multiplied by an orthogonal matrix from the right, and when one from the left mixes
the rows of a client, if U is unmixed after.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedcl.core.seeds import torch_generator


def rotation(width: int, *position: int | str) -> Tensor:
    """Returns a (width, width) float64 orthogonal matrix, uniform (Haar) as the position is.

    The R of a Gaussian matrix's QR decomposition is made positive, without which Q would not be
    uniform (Mezzadri, How to generate random matrices from the classical compact groups, 2007).
    """
    generator = torch_generator(*position)
    drawn = torch.randn((width, width), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(drawn)
    fixed: Tensor = q * torch.sign(torch.diagonal(r))
    return fixed


def masked(features: Tensor, height: int, own: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `X' = P_k X_k Q`, and what takes rows of its singular vectors back to X's rows.

    Of more rows than columns only the triangular factor R of `X = Z R` is mixed, since Z takes it
    back: the server gets the same inner products `X'^T X'`, and so the same singular values and
    vectors on the right, from a small matrix. Fewer rows than `height` are filled up with zeros
    before they are mixed, so that the matrix does not tell how many there are.

    Args:
        features: (n, d) float64.
        height: Rows of X': at least the smaller of n and d.
        own: (height, height) orthogonal P_k.
        shared: (d, d) orthogonal Q.

    Returns:
        (height, d) X' and (n, height) B, with `X = B X' Q^T` and `B^T B` a projection.
    """
    back = own.T[: len(features)]
    if len(features) > height:
        basis, features = torch.linalg.qr(features)
        back = basis @ own.T[: len(features)]
    return own[:, : len(features)] @ features @ shared, back


def directions(stack: Tensor, rounding: float) -> Tensor:
    """Returns the (rows, rank) float64 left singular vectors of a stack of masked features.

    Args:
        stack: (rows, d).
        rounding: Relative precision of its numbers: smaller singular values are noise.
    """
    left, values, _ = torch.linalg.svd(stack.double(), full_matrices=False)
    least = max(stack.shape) * rounding * float(values.max()) if len(values) else 0.0
    kept: Tensor = left[:, values > least]
    return kept


def draw(scores: Tensor, samples: int, start: float) -> Tensor:
    """Returns the (m,) places of a sample whose rows are in it with probability ∝ their scores.

    It is systematic (Madow, 1949): the rows lie in line, each as long as its probability, and those
    are taken in which one of the points `start`, `start + 1`, ... lies. So none comes twice, and
    the number of rows of any stretch, such as one client's, is its expected number up to less than
    1. Rows whose probability would exceed 1 are taken for certain.

    Args:
        scores: (n,) at least 0; rows with 0 are never taken.
        samples: Rows of the sample, if so many have a score above 0.
        start: Uniform in [0, 1).
    """
    scores, start = scores.double(), min(start, 1.0 - 2.0**-20)  # clear of the next point
    certain = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    while True:
        left, rest = samples - int(certain.sum()), scores.masked_fill(certain, 0.0)
        total = float(rest.sum())
        if left <= 0 or total <= 0.0:
            return certain.nonzero().flatten()
        chance = rest * (left / total)
        more = chance >= 1.0 - 1e-9  # else rounding might put two points into one row
        if not bool(more.any()):
            break
        certain |= more
    ends = chance.cumsum(0).clamp(max=float(left))
    ends[int(rest.nonzero().max()) :] = left  # no digit of a sum makes the sample smaller
    points = torch.ceil(ends - start)  # that lie before each end
    taken = points.diff(prepend=points.new_zeros(1)) > 0
    return (certain | taken).nonzero().flatten()
