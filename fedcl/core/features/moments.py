"""Second moments of layer inputs: what clients send of them, and the basis that their sum extends.

Gradients of the loss may come with them. Every layer's residual inputs R (rows, d), those outside
the basis so far, give a Gram matrix R^T R, or a sketch R^T G with a random matrix G (rows, columns)
that the client draws and never shows. Both only need to be summed (Bakman et al., ICLR 2024,
section 4.2; the Gram matrix is exact).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fedcl.core.client import Client
from fedcl.core.features.layers import append_one, layer_inputs
from fedcl.core.features.spectra import above_noise, above_noise_singular, seen_rank
from fedcl.core.features.subspace import extend, layer_matrix, needed_rank, pack, residual, unpack
from fedcl.core.local import CrossEntropy
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.seeds import torch_generator
from fedcl.core.task import ClientTask, Examples

ROWS = 128  # examples whose layer inputs are looked at together


@dataclass(frozen=True)
class Sketch:
    """A random matrix to sketch with.

    Attributes:
        columns: Its columns as a multiple of the layer's input width.
        noise: Its entries: `normal`, or `uniform` on [-1, 1].
    """

    columns: float = 1.0
    noise: Literal["normal", "uniform"] = "normal"

    def draw(self, rows: int, width: int, generator: torch.Generator) -> Tensor:
        """Returns a (rows, columns) float64 matrix."""
        shape = (rows, max(1, round(self.columns * width)))
        if self.noise == "normal":
            return torch.randn(shape, generator=generator, dtype=torch.float64)
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


@dataclass(frozen=True)
class Inputs:
    """What goes down for moments: the model, the bases so far, and which layers.

    Attributes:
        params: Parameters to run the model with.
        basis: (d, k) basis by name of the weight; inputs along it are left out.
        layers: Names of the weights.
    """

    params: Params
    basis: Mapping[str, Tensor]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class InputMoments:
    """Gram matrices of the layer inputs' residual, as a `Statistic` measures them.

    Attributes:
        biases: Whether inputs get a constant 1 for the bias.
    """

    biases: bool = False

    def __call__(
        self, net: Net, rows: Examples, task: ClientTask, message: Any
    ) -> dict[str, Tensor]:
        """Returns what `input_statistics` sends, with 0 for the sum that is none over examples.

        Args:
            net: The network with the message's parameters.
            rows: Examples.
            task: Not looked at.
            message: Has `basis` and `layers` as in `input_statistics`.
        """
        found: dict[str, Tensor] = {}
        for name, x in layer_inputs(net.model, net.params or {}, rows.x).items():
            if name not in message.layers:
                continue
            x = append_one(net.model, name, x.double()) if self.biases else x.double()
            rest = residual(x, message.basis.get(name))
            found[f"gram/{name}"] = pack(rest.T @ rest)
            sizes = [x.square().sum(), rest.square().sum()]
            ends = [x.new_tensor(float(len(rows))), x.new_tensor(0.0)]
            found[f"norms/{name}"] = torch.stack([ends[0], *sizes, ends[1]])
        return found


@dataclass(frozen=True)
class LossMoments:
    """Gradients of the loss, and Gram matrices of layer inputs, as a `Statistic` measures them.

    Attributes:
        loss: The training loss.
        biases: Whether a layer's bias counts as the weight of a constant input.
        inputs: Whether Gram matrices are wanted.
    """

    loss: CrossEntropy
    biases: bool = False
    inputs: bool = False

    def __call__(
        self, net: Net, rows: Examples, task: ClientTask, message: Any
    ) -> dict[str, Tensor]:
        """Returns sums: `gradient/<weight>` (out, d) and, if asked, packed `gram/<weight>`.

        Args:
            net: The network with the message's parameters.
            rows: Examples.
            task: Its masks say which classes are compared.
            message: As `Inputs`.
        """
        leaves = {k: v.detach().requires_grad_() for k, v in (net.params or {}).items()}
        with torch.enable_grad():
            total = self.loss(net.at(leaves), rows, task, message).sum()
        values = torch.autograd.grad(
            total, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        gradients = dict(zip(leaves, values, strict=True))
        found = {f"gradient/{n}": layer_matrix(gradients, n, self.biases) for n in message.layers}
        inputs = InputMoments(self.biases)(net, rows, task, message) if self.inputs else {}
        return found | {name: value for name, value in inputs.items() if name.startswith("gram/")}


def input_statistics(
    client: Client,
    params: Params,
    basis: Mapping[str, Tensor],
    layers: Sequence[str],
    biases: bool,
    sketch: Sketch | None,
) -> dict[str, Tensor]:
    """Returns a client's statistics: `gram/<weight>` or `sketch/<weight>`, and `norms/<weight>`.

    A Gram matrix is packed (d(d+1)/2 numbers), a sketch is (d, columns). The norms are [n, |X|^2,
    |R|^2, n |R|/|X|] with n the number of examples, X the inputs and R their residual.

    Args:
        client: Whose data.
        params: Parameters to run the model with.
        basis: (d, k) basis so far, by name of the weight.
        layers: Names of the weights.
        biases: Whether inputs get a constant 1 for the bias.
        sketch: How to sketch; None means Gram matrices.
    """
    generator = torch_generator(client.seed, "sketch")
    found: dict[str, Tensor] = {}
    norms = {name: torch.zeros(2, dtype=torch.float64) for name in layers}
    for batch in client.data.x.split(ROWS):
        for name, x in layer_inputs(client.model, params, batch).items():
            if name not in norms:
                continue
            x = append_one(client.model, name, x.double()) if biases else x.double()
            rest = residual(x, basis.get(name))
            norms[name] += torch.stack([x.square().sum(), rest.square().sum()]).cpu()
            other = rest
            if sketch is not None:
                other = sketch.draw(len(rest), rest.shape[1], generator).to(rest.device)
            found[name] = found[name] + rest.T @ other if name in found else rest.T @ other
    tensors = {}
    for name, value in found.items():
        kind, sent = ("gram", pack(value)) if sketch is None else ("sketch", value)
        tensors[f"{kind}/{name}"] = sent.to(client.data.x.dtype)
        n, (inputs, rest) = len(client.data), norms[name].tolist()
        four = [n, inputs, rest, n * (rest / inputs) ** 0.5 if inputs else 0.0]
        tensors[f"norms/{name}"] = torch.tensor(four, dtype=torch.float64, device=value.device)
    return tensors


def extended_basis(
    sums: Params,
    name: str,
    basis: Tensor | None,
    energy: float,
    rule: Literal["energy", "paper_code"],
    rounding: float,
    noise: float = 0.0,
) -> Tensor:
    """Returns a layer's basis, extended until it holds a share of the new inputs' energy.

    With rho the residual's share, a fraction 1 - (1 - energy) / rho of the residual's energy is
    asked for. The `energy` rule takes rho = |R|^2 / |X|^2; `paper_code` the mean of |R| / |X| over
    examples, and at least one direction.

    Args:
        sums: Summed statistics of `input_statistics`.
        name: Name of the weight.
        basis: (d, k) basis so far, or None.
        energy: Share of the inputs' energy that the basis must hold.
        rule: What rho is.
        rounding: Relative rounding of what travelled.
        noise: Deviation of the noise in each number, above which only the `energy` rule is taken.
    """
    count, inputs, rest, rho = sums[f"norms/{name}"].double().tolist()
    if f"gram/{name}" in sums:
        values, vectors = torch.linalg.eigh(unpack(sums[f"gram/{name}"].double()))
        values, vectors, power = above_noise(values, noise).flip(0), vectors.flip(1), 1
    else:
        vectors, values, _ = torch.linalg.svd(sums[f"sketch/{name}"].double(), full_matrices=False)
        values, power = above_noise_singular(values, noise, *sums[f"sketch/{name}"].shape), 2
    # What travels is rounded: values this small are noise, in nobody's directions.
    values = values * (values > rounding * values.norm())
    old = basis if basis is not None else vectors[:, :0]
    if noise:
        known = float(power == 1)  # the scale of a sketch is another one
        rank = seen_rank(values**power, known * rest, known * inputs, energy)
        return extend(old, vectors[:, :rank])
    # Rounding leaves a residual of about 1e-7 of the norm: that is nothing new.
    if rest <= 1e-10 * inputs:
        return old
    part, whole = (rest, inputs) if rule == "energy" else (rho, count)
    if part <= 0 or whole <= 0:
        return old
    rank = needed_rank(values**power, 1.0 - (1.0 - energy) / (part / whole))
    if rule == "paper_code":
        rank = max(rank, 1)
    return extend(old, vectors[:, :rank])


def grown_basis(
    gram: Tensor, basis: Tensor | None, energy: float, rounding: float, noise: float = 0.0
) -> Tensor:
    """Returns what `extended_basis` does, from a Gram matrix of whole inputs instead of residuals.

    A server that asks for these needs to send no basis.

    Args:
        gram: (d, d) float64 Gram matrix of a layer's inputs.
        basis: (d, k) basis so far, or None.
        energy: Share of the inputs' energy that the basis must hold.
        rounding: Relative rounding of what travelled.
        noise: Standard deviation of the noise in each packed entry.
    """
    rest = gram
    if basis is not None and basis.shape[1]:
        half = gram - basis @ (basis.T @ gram)
        rest = half - (half @ basis) @ basis.T
        # It is the whole matrix that was rounded; taking away its part along the basis rounds too.
        size = float(rest.norm())
        rounding *= 10 * float(gram.norm()) / size if size else 1.0
    traces = [1.0, float(gram.trace()), max(0.0, float(rest.trace())), 0.0]
    sums = {"gram/own": pack((rest + rest.T) / 2), "norms/own": gram.new_tensor(traces)}
    return extended_basis(sums, "own", basis, energy, "energy", rounding, noise)


def own_space(gram: Tensor, basis: Tensor, energy: float) -> Tensor:
    """Returns the fewest directions in the span of a basis that hold a share of inputs' energy.

    Args:
        gram: (d, d) float64 Gram matrix of a layer's inputs.
        basis: (d, k) orthonormal columns that hold at least the share.
        energy: Share of the inputs' energy.

    Returns:
        (d, r) orthonormal columns, r at most k.
    """
    values, vectors = torch.linalg.eigh(basis.T @ gram @ basis)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    held = float(values.sum())
    rank = needed_rank(values, energy * float(gram.trace()) / held) if held > 0 else 0
    space: Tensor = basis @ vectors[:, :rank]
    return space


def gram_needs(
    widths: Mapping[str, int], rows: Mapping[str, int], item: int, sent: float = 0.5
) -> dict[str, int]:
    """Returns the bytes that an exchange of second moments takes: server, client and reply.

    Args:
        widths: Length of a layer input by name of the weight, with the constant for the bias.
        rows: Layer inputs of one example by name of the weight.
        item: Bytes of a number that travels.
        sent: Numbers that travel for each entry of a Gram matrix: half of them, when packed.
    """
    squares = [width * width for width in widths.values()]
    inputs = [rows[name] * width for name, width in widths.items()]
    largest = max(squares, default=0)
    return {
        # Sums of a block, of those before, and of all; the matrix, a copy, its eigenvectors and
        # twice that for LAPACK.
        "server": int(3 * 8 * sent * sum(squares)) + 5 * 8 * largest,
        # All layers' inputs, the widest ones in float64 three times; sums, and one that is packed.
        "client": ROWS * (item * sum(inputs) + 3 * 8 * max(inputs, default=0))
        + 2 * 8 * sum(squares)
        + 2 * 8 * largest,
        "reply": int(sent * sum(squares)) * item,
    }
