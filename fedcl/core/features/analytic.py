"""Ridge regression on a network's features from sums over examples, in closed form.

With H (n, m) the regressors of all examples and Y (n, classes) their classes as ones and zeros, the
weights W of least `|H W - Y|^2 + gamma |W|^2` need no more than the sums `H^T H` and `H^T Y`. So it
makes no difference who holds which example, and when it comes (He et al., AFL, CVPR 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.core.features.layers import head_inputs
from fedcl.core.features.spectra import above_noise, noise_edge, significant
from fedcl.core.features.subspace import pack, unpack
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.seeds import torch_generator
from fedcl.core.task import ClientTask, Examples

ROWS = 128  # examples that pass the network together, and pseudo-examples that are drawn together


@dataclass(frozen=True)
class Regressors:
    """What the answer is linear in: the inputs of the model's head, or a random expansion of them.

    The expansion is `relu(phi P)` (RanPAC: McDonnell et al., NeurIPS 2023). P is a function of
    `seed`, so that everybody can draw it and it never travels. Its entries have variance 1 / width
    (published: 1), which only scales gamma.

    Attributes:
        projection: Columns of P; 0 takes the head's inputs as they are.
        seed: Seed of P.
        constant: Whether a constant 1 joins them where the head has a bias.
    """

    projection: int = 0
    seed: int = 0
    constant: bool = True

    def __call__(self, net: Net, x: Tensor) -> Tensor:
        """Returns the (n, m) float64 regressors of (n, ...) inputs."""
        head = head_of(net.model)
        with torch.no_grad():
            h = torch.cat([head_inputs(net, part) for part in x.split(ROWS)]).double()
        if self.projection:
            h = F.relu(h @ _random(h.shape[1], self.projection, self.seed).to(h.device))
        if self.constant and head.bias is not None:
            h = torch.cat([h, h.new_ones((len(h), 1))], dim=1)
        return h


@dataclass(frozen=True)
class Correlations:
    """The sums that ridge regression needs, as a `Statistic` measures them.

    Attributes:
        regressors: What the answer is linear in.
        spread: Whether each class's number of examples and sums of squares are added, from which
            `balanced` knows how the class is spread.
    """

    regressors: Regressors
    spread: bool = False

    def __call__(
        self, net: Net, rows: Examples, task: ClientTask, message: Any
    ) -> dict[str, Tensor]:
        """Returns `gram` (packed H^T H) and `cross` (H^T Y); `counts` and `squares` if asked for.

        Args:
            net: The network with the message's parameters.
            rows: Examples.
            task: Says how many classes there are.
            message: Not looked at.
        """
        h = self.regressors(net, rows.x)
        hot = F.one_hot(rows.y, len(task.present)).to(h)
        found = {"gram/head": pack(h.T @ h), "cross/head": h.T @ hot}
        if self.spread:
            found |= {"counts/head": hot.sum(0), "squares/head": h.square().T @ hot}
        return found

    def needs(self, features: int, classes: int, rows: int, item: int) -> dict[str, Any]:
        """Returns the `Needs` of a method that adds these sums up and solves `ridge`, by name.

        Args:
            features: Inputs of the head.
            classes: All classes.
            rows: Examples of a call.
            item: Bytes of a number on its way.
        """
        columns = self.regressors.projection
        m = (columns or features) + self.regressors.constant
        square, drawn = 8 * m * m, 8 * features * columns
        numbers = m * (m + 1) // 2 + m * classes + (m + 1) * classes * self.spread
        return dict(
            state=8 * numbers + 8 * m * classes * (columns > 0),
            # Sums of a block, of those before, and of all; the matrix with the places of its
            # entries or with its factor, and a packed one more where there are pseudo-examples.
            server=(3 + self.spread) * 8 * numbers + 2 * square + drawn,
            # The projection, regressors of a call, its matrix with the places of its entries, sums.
            client=drawn + 3 * 8 * rows * m + 2 * square + 2 * 8 * numbers,
            reply=item * numbers,
        )


def head_of(model: nn.Module) -> nn.Linear:
    """Returns a model's last layer; raises ValueError where it is no linear layer."""
    head = dict(model.named_children()).get("head")
    if not isinstance(head, nn.Linear):
        raise ValueError("a closed form needs a model whose last layer is a linear one named head")
    return head


def add_sums(sums: Params, more: Params) -> dict[str, Tensor]:
    """Returns the sums over the examples of both; the first may be empty."""
    return {name: sums[name] + value if name in sums else value for name, value in more.items()}


def ridge(sums: Params, gamma: float, noise: float = 0.0) -> Tensor:
    """Returns the (m, classes) weights W that solve (H^T H + gamma I) W = H^T Y.

    Noise that protects clients may leave a Gram matrix with negative eigenvalues, which no examples
    have: they count as 0, and so do all that noise alone may have. The penalty is then at least as
    strong as these, since what it leaves of the correlation with the classes is noise too.

    Args:
        sums: What `Correlations` measured.
        gamma: Strength of the penalty, above 0.
        noise: Standard deviation of the noise in each number of the sums.

    Raises:
        ValueError: Rounding hides the penalty, so that there is no one solution.
    """
    gram = unpack(sums["gram/head"].double())
    gamma = max(gamma, noise_edge(noise, len(gram)))
    gram.diagonal().add_(gamma)
    factor, failed = torch.linalg.cholesky_ex(gram)
    # A pivot is what its regressor has beside the others, at least gamma.
    least = len(gram) * torch.finfo(gram.dtype).eps * gram.diagonal()
    if noise or int(failed) or bool((factor.diagonal().square() <= least).any()):
        values, vectors = torch.linalg.eigh(gram)
        # The sum of examples has no eigenvalue below gamma but by rounding.
        if (
            noise
            or values[0] < gamma - len(gram) * torch.finfo(gram.dtype).eps * values.abs().max()
        ):
            turned = vectors.T @ sums["cross/head"].double()
            sizes = values.clamp(min=gamma)
            if noise:
                sizes = above_noise(values - gamma, noise) + gamma
            solved: Tensor = vectors @ (turned / sizes[:, None])
            return solved
        raise ValueError(
            f"gamma = {gamma} is lost in the rounding of the features' Gram matrix: raise it"
        )
    return torch.cholesky_solve(sums["cross/head"].double(), factor)


def balanced(
    sums: Params,
    how: Literal["expected", "drawn"],
    generator: torch.Generator | None = None,
    noise: float = 0.0,
) -> dict[str, Tensor]:
    """Returns sums in which every class that was met has as many examples as the largest.

    What a class lacks is filled with Gaussian pseudo-examples that have its mean and, feature by
    feature, its variance (AEF-OCL: Zhuang et al., 2024).

    Args:
        sums: What `Correlations` measured with `spread`.
        how: `drawn` adds drawn pseudo-examples, `expected` what they give in expectation: for a
            class that lacks r examples, r (diag(variance) + mean mean^T) and r mean.
        generator: Where to draw from, on the CPU.
        noise: Standard deviation of the noise in each number: a class that it may have made up
            counts as not met.
    """
    counts, cross = sums["counts/head"], sums["cross/head"].clone()
    gram = unpack(sums["gram/head"])
    # Of a noisy number of examples nothing below one is a class that was met.
    for c in (significant(counts, noise) >= 1).nonzero().flatten().tolist():
        lacking = round(float(counts.max() - counts[c]))
        mean = sums["cross/head"][:, c] / counts[c]
        variance = (sums["squares/head"][:, c] / counts[c] - mean.square()).clamp(min=0.0)
        if how == "expected":
            gram += lacking * (torch.diag(variance) + torch.outer(mean, mean))
            cross[:, c] += lacking * mean
            continue
        for start in range(0, lacking, ROWS):
            shape = min(ROWS, lacking - start), len(mean)
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(mean.device)
            h = mean + variance.sqrt() * drawn
            gram += h.T @ h
            cross[:, c] += h.sum(0)
    return {**sums, "gram/head": pack(gram), "cross/head": cross}


def with_head(params: Params, weights: Tensor) -> dict[str, Tensor]:
    """Returns parameters whose head is a solution; the last row is the constant's, if there is one.

    Args:
        params: The model.
        weights: (m, classes) weights of the head's inputs, and perhaps of a constant 1.
    """
    own = params["head.weight"]
    head = {"head.weight": weights[: own.shape[1]].T.to(own).contiguous()}
    if "head.bias" in params:
        rest = weights[own.shape[1] :].sum(0)  # zeros where there is no constant
        head["head.bias"] = rest.to(own)
    return {**params, **head}


def without_head(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the parameters that features depend on: all but the head's."""
    return {name: value for name, value in params.items() if not name.startswith("head.")}


@lru_cache(maxsize=2)
def _random(width: int, columns: int, seed: int) -> Tensor:
    generator = torch_generator(seed, "random projection", width, columns)
    drawn = torch.randn((width, columns), generator=generator, dtype=torch.float64)
    return drawn.div_(width**0.5)
