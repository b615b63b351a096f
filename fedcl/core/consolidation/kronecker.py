"""Kronecker-factored Fisher information of layers, and the proximal step that it defines.

The Fisher information of a layer's weight, seen as an (out, d) matrix E, is taken as the product of
the second moment A (d, d) of the layer's inputs and that S (out, out) of the gradients at its
outputs (Martens and Grosse, Optimizing neural networks with Kronecker-factored approximate
curvature, ICML 2015; convolutions: Grosse and Martens, ICML 2016): tr(S E A E^T) is the quadratic
form of E with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.features.layers import append_one, layer_inputs, layer_signals
from fedcl.core.features.spectra import cleaned
from fedcl.core.features.subspace import layer_matrix, map_layers, pack
from fedcl.core.local import masked_logits
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.task import ClientTask, Examples


@dataclass(frozen=True)
class KroneckerMoments:
    """The two moments of each layer as a `Statistic` measures them, with one draw for each row.

    Attributes:
        inputs: Whether the inputs' moments are wanted.
        outputs: Which gradients S is the second moment of. `fisher`: of the log-likelihood of a
            label drawn from the model's own prediction, which makes S a sample of the Fisher
            information. `empirical`: of that of the example's own label. `identity`: none.
    """

    inputs: bool = True
    outputs: Literal["fisher", "empirical", "identity"] = "fisher"

    def __call__(
        self, net: Net, rows: Examples, task: ClientTask, message: Any
    ) -> dict[str, Tensor]:
        """Returns packed `input_moments/<weight>` and `output_moments/<weight>`, and `count/n`.

        Inputs have a constant 1 for the bias. Over the places of a convolution, inputs are added up
        and outputs averaged.

        Args:
            net: The network with the message's parameters.
            rows: Examples, with `draws`.
            task: Its `head` says which classes a prediction chooses from.
            message: Has `layers`, the names of the weights, and `every_class`: whether a prediction
                will later choose from classes too that nobody has met yet.
        """

        def losses(logits: Tensor) -> Tensor:
            head = torch.ones_like(task.head) if message.every_class else task.head
            logits = masked_logits(logits, head)
            labels = rows.y
            if self.outputs == "fisher":
                labels = sampled_labels(logits.detach(), rows.extra["draws"][:, 0])
            return F.cross_entropy(logits, labels, reduction="none")

        found = {"count/n": rows.x.new_tensor(len(rows), dtype=torch.float64)}
        params = net.params or {}
        signals: dict[str, Tensor] = {}
        if self.outputs == "identity":
            inputs = layer_inputs(net.model, params, rows.x)
        else:
            inputs, signals = layer_signals(net.model, params, rows.x, losses)
        for name in message.layers:
            if self.inputs:
                x = append_one(net.model, name, inputs[name].double())
                found[f"input_moments/{name}"] = pack(x.T @ x)
            if name in signals:
                g = signals[name].double()
                found[f"output_moments/{name}"] = pack(g.T @ g) * (len(rows) / max(1, len(g)))
        return found


def sampled_labels(logits: Tensor, draws: Tensor) -> Tensor:
    """Returns (n,) labels, each drawn from the softmax of its row.

    Args:
        logits: (n, classes).
        draws: (n,) uniform numbers in [0, 1).
    """
    shares = torch.softmax(logits.double(), dim=1).cumsum(dim=1)
    # The last sum may fall short of 1 by rounding: a draw is taken as a share of it.
    found = torch.searchsorted(shares, (draws.to(shares) * shares[:, -1])[:, None], right=True)
    # Where rounding has carried a draw past the last class that is possible, that one is meant.
    last = (shares < shares[:, -1:]).sum(1, keepdim=True)
    return torch.minimum(found, last)[:, 0]


@dataclass(frozen=True)
class Factor:
    """A positive semi-definite matrix by its eigenvectors; without any it is the identity.

    Attributes:
        vectors: (d, d) float64 eigenvectors as columns, or (0, 0).
        values: (d,) eigenvalues, at least 0, or (0,).
    """

    vectors: Tensor
    values: Tensor


@dataclass(frozen=True)
class Fisher:
    """Fisher information of a layer: A of its inputs and S of its outputs.

    Attributes:
        inputs: A, of size d, or d + 1 where the layer has a bias.
        outputs: S, of size out (of one group, in a grouped convolution).
    """

    inputs: Factor
    outputs: Factor


def identity(like: Tensor) -> Factor:
    """Returns the identity, which has no fixed size."""
    return Factor(
        like.new_zeros((0, 0), dtype=torch.float64), like.new_zeros(0, dtype=torch.float64)
    )


def grown(factor: Factor | None, packed: Tensor, noise: float = 0.0) -> Factor:
    """Returns a factor with another packed moment added to it.

    What is added may be noisy: eigenvalues below 0, or within noise that is known, are none.
    """
    matrix = cleaned(packed.double(), noise)
    if factor is not None:
        matrix = matrix + (factor.vectors * factor.values) @ factor.vectors.T
    values, vectors = torch.linalg.eigh(matrix)
    return Factor(vectors, values.clamp(min=0.0))


def extended(fisher: Fisher | None, sums: Params, name: str, noise: float = 0.0) -> Fisher:
    """Returns a layer's Fisher information with the mean moments of one more stage added to it.

    Args:
        fisher: That of the stages before, or None.
        sums: Summed `KroneckerMoments`; a moment that was not asked for is the identity.
        name: Name of the weight.
        noise: Standard deviation of the noise in each number.
    """
    # Noise that protects may leave less than one example.
    count = sums["count/n"].clamp(min=max(1.0, 3.0 * noise))

    def factor(kind: str, before: Factor | None) -> Factor:
        if f"{kind}/{name}" not in sums:
            return identity(sums["count/n"])
        return grown(before, sums[f"{kind}/{name}"].double() / count, noise / float(count))

    return Fisher(
        factor("input_moments", None if fisher is None else fisher.inputs),
        factor("output_moments", None if fisher is None else fisher.outputs),
    )


def excess(change: Tensor, fisher: Fisher, mu: float) -> Tensor:
    """Returns what an (..., out, d) change E must lose: E minus the minimiser E' of a quadratic.

    E' minimises |E' - E|^2 / 2 + mu tr(S E' A E'^T) / 2: in the eigenbases of A and S each entry of
    E is divided by 1 + mu s a. It is exactly 0 with mu = 0.
    """
    left, right = fisher.outputs, fisher.inputs
    rotated = change
    if len(left.values):
        rotated = left.vectors.T @ rotated
    if len(right.values):
        rotated = rotated @ right.vectors
    s = left.values[:, None] if len(left.values) else 1.0
    a = right.values[None, :] if len(right.values) else 1.0
    strength = torch.as_tensor(mu * s * a, dtype=change.dtype, device=change.device)
    rotated = rotated * (strength / (1.0 + strength)).nan_to_num(nan=1.0)  # inf / inf is 1
    if len(left.values):
        rotated = left.vectors @ rotated
    if len(right.values):
        rotated = rotated @ right.vectors.T
    return rotated


def anchor_layers(
    params: Params, anchor: Params, fishers: Mapping[str, Fisher], mu: float
) -> dict[str, Tensor]:
    """Returns parameters pulled towards an anchor, each layer as its Fisher information says.

    Args:
        params: Parameters by name; those without Fisher information stay as they are.
        anchor: Parameters at which the Fisher information was taken.
        fishers: By name of the weight; a layer's bias is a last column of its weight.
        mu: Strength of the pull.
    """

    def pulled(name: str, matrix: Tensor) -> Tensor:
        change = matrix.double() - layer_matrix(anchor, name, True).double()
        height = len(fishers[name].outputs.values) or len(change)
        lost = excess(change.unflatten(0, (-1, height)), fishers[name], mu).flatten(0, 1)
        return (matrix.double() - lost).to(matrix.dtype)

    found = map_layers(params, fishers, True, pulled)
    # Columns of a wider matrix would lie otherwise in memory than what comes from a checkpoint.
    return {name: value.contiguous() for name, value in found.items()}
