"""Which attacks fit which payload: names of tensors decide, as methods send them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.auditing.candidates import (
    direction_images,
    gram_images,
    layer_images,
    plausible,
    sketch_images,
)
from fedcl.auditing.inversion import inverted
from fedcl.audits._originals import Known
from fedcl.audits._payloads import BESIDE, first_layer, kinds
from fedcl.core.client import Reply
from fedcl.core.features.subspace import unpack
from fedcl.core.generative.monitor import reconstruct
from fedcl.core.local import Local, masked_logits
from fedcl.core.model import Net
from fedcl.core.params import Params
from fedcl.core.request import Request

Array = NDArray[np.float64]
_SQUARED = ("fisher",)  # sums of squared gradients
_SIZES = ("sensitivity",)  # sums of sizes of gradients


@dataclass(frozen=True)
class Options:
    """How much an attack may cost; see `fedcl.audits.inversion.Inversion`."""

    iterations: int
    smoothness: float
    images: int
    components: int
    seed: int


@dataclass(frozen=True)
class Sent:
    """One reply or one sum, and what is known beside it.

    Attributes:
        tensors: What was sent.
        number: Examples behind it.
        labels: (number,) labels that the payload tells, for a search by gradient.
        allowed: (classes,) bool, what training compares.
        request: What was asked.
        model: The architecture.
        shape: Of an input.
        known: What is known without it.
    """

    tensors: Params
    number: int
    labels: Tensor
    allowed: Tensor
    request: Request
    model: nn.Module
    shape: tuple[int, ...]
    known: Known

    @property
    def message(self) -> Any:
        """What went down."""
        return self.request.message


@dataclass(frozen=True)
class Tried:
    """What one attack made of one payload.

    Attributes:
        payload: Kind of payload, as it is booked.
        attack: Name of the attack.
        images: (m, d) reconstructions in [0, 1], m at most the number of examples; none where the
            payload says nothing of single inputs.
        span: (d, k) columns that span the inputs, or None: whether a record is in it tells members.
        basis: (d, r) directions of inputs that were left out of the span, or None.
        constant: Whether inputs have a constant 1 at their end.
    """

    payload: str
    attack: str
    images: Array
    span: Array | None = None
    basis: Array | None = None
    constant: bool = False


def attacks(sent: Sent, options: Options) -> Iterator[Tried]:
    """Yields what each attack that fits makes of each payload; one without images where none does.

    Args:
        sent: What was sent, and what is known beside it.
        options: What attacks may cost.
    """
    layer = first_layer(sent.model, sent.shape)
    for kind, tensors in kinds(sent.tensors, sent.request).items():
        if kind in BESIDE:
            continue
        tried = list(_ATTACKS.get(kind, _gradient)(kind, tensors, layer, sent, options))
        yield from tried or [Tried(kind, "none fits", np.zeros((0, math.prod(sent.shape))))]


Attack = Callable[[str, Mapping[str, Tensor], "str | None", Sent, Options], Iterator[Tried]]


def _gradient(
    kind: str, tensors: Mapping[str, Tensor], layer: str | None, sent: Sent, options: Options
) -> Iterator[Tried]:
    """Attacks what is shaped like parameters: changes, gradients, sums of their squares."""
    weight, bias = tensors.get(f"{layer}.weight"), tensors.get(f"{layer}.bias")
    if weight is not None and weight.shape[1:] != (math.prod(sent.shape),):
        weight = None  # another statistic of that layer
    if weight is not None and bias is not None:
        power = 2 if kind in _SQUARED else 1
        if kind in _SQUARED + _SIZES:
            weight, bias = weight.abs(), bias.abs()
        rows = layer_images(weight, bias, power)
        # Of one example all outputs together know it best; of several they mix them.
        yield _tried(kind, "linear layer", rows[:1] if sent.number == 1 else rows[1:], sent)
    elif weight is not None:
        rows = direction_images(weight, sent.known.high)
        yield _tried(kind, "linear layer, no bias", rows, sent)
    if isinstance(sent.request.program, Local) and sent.number <= options.images:
        yield from _searched(kind, tensors, sent, options)


def _searched(
    kind: str, tensors: Mapping[str, Tensor], sent: Sent, options: Options
) -> Iterator[Tried]:
    """Seeks images whose gradient points where the change does."""
    start: Params = sent.message.params
    names = [name for name in start if name in tensors]
    if not options.iterations or not sent.number or len(sent.labels) != sent.number or not names:
        return
    others = {name: value for name, value in start.items() if name not in names}
    known = sent.known
    labels, allowed = (t.to(start[names[0]].device) for t in (sent.labels, sent.allowed))

    def loss(values: Any, images: Tensor) -> Tensor:
        net = Net(sent.model, {**others, **dict(zip(names, values, strict=True))})
        logits = net((known.low + (known.high - known.low) * images).to(start[names[0]]))
        return F.cross_entropy(masked_logits(logits, allowed), labels)

    found = inverted(
        loss,
        [start[name] for name in names],
        [-tensors[name] for name in names],
        (sent.number, *sent.shape),
        options.seed,
        options.iterations,
        smoothness=options.smoothness,
    )
    rows = found.double().cpu().numpy().reshape(sent.number, -1)
    yield Tried(kind, "search by cosine", plausible(rows, sent.number))


def _sketch(
    kind: str, tensors: Mapping[str, Tensor], layer: str | None, sent: Sent, options: Options
) -> Iterator[Tried]:
    value = tensors.get(f"{layer}.weight")
    if value is None or not sent.number:
        return
    matrix, d = _numbers(value), math.prod(sent.shape)
    basis = _basis(sent, f"{layer}.weight")
    if sent.number > min(options.components, *matrix.shape):
        yield Tried(kind, "span", np.zeros((0, d)), matrix[:d], basis, len(matrix) > d)
        return
    rows = sketch_images(matrix, sent.number, options.seed, sent.known.high)[:, :d]
    images = _tried(kind, "ICA", _whole(rows, basis, sent), sent).images
    yield Tried(kind, "ICA", images, matrix, basis, len(matrix) > d)


def _gram(
    kind: str, tensors: Mapping[str, Tensor], layer: str | None, sent: Sent, options: Options
) -> Iterator[Tried]:
    value = tensors.get(f"{layer}.weight")
    if value is None or not sent.number:
        return
    matrix, d = _numbers(unpack(value)), math.prod(sent.shape)
    basis, constant = _basis(sent, f"{layer}.weight"), len(matrix) > d
    name, rows = gram_images(matrix[:d, :d], sent.number, options.components, options.seed)
    images = _tried(kind, name, _whole(rows, basis, sent), sent).images
    yield Tried(kind, name, images, matrix, basis, constant)
    if constant and kind == "input_moments":
        yield _tried(kind, "mean", matrix[None, d, :d] / max(1, sent.number), sent)


def _moments(
    kind: str, tensors: Mapping[str, Tensor], layer: str | None, sent: Sent, options: Options
) -> Iterator[Tried]:
    """Takes the mean of inputs, which is an image by itself."""
    value = tensors.get("input")
    if value is not None and value[0].numel() == math.prod(sent.shape):
        rows = _numbers(value[0]).reshape(1, -1) / max(1, sent.number)
        yield _tried(kind, "mean", rows, sent)


def _gradients(
    kind: str, tensors: Mapping[str, Tensor], layer: str | None, sent: Sent, options: Options
) -> Iterator[Tried]:
    """Inverts gradients of single examples in the random network that GLFC's clients share."""
    if "head.bias" not in tensors or not hasattr(sent.message, "seed"):
        return
    reply = Reply(sent.tensors)
    rows, classes = len(tensors["head.bias"]), len(sent.allowed)
    found = reconstruct([reply], classes, sent.message.seed, rows, options.iterations)
    if found is not None:
        images = found.x.double().cpu().numpy().reshape(len(found), -1)
        yield _tried(kind, "search by distance (iDLG)", images, sent)


_ATTACKS: Mapping[str, Attack] = {
    "sketch": _sketch,
    "gram": _gram,
    "input_moments": _gram,
    "moments": _moments,
    "gradients": _gradients,
}


def _numbers(value: Tensor) -> Array:
    return np.asarray(value.detach().double().cpu().numpy(), dtype=np.float64)


def _basis(sent: Sent, name: str) -> Array | None:
    basis = getattr(sent.message, "basis", {}).get(name)
    return None if basis is None or not basis.shape[1] else _numbers(basis)


def _whole(rows: Array, basis: Array | None, sent: Sent) -> Array:
    """Returns inputs of which only what is outside a basis was found: along it, the mean's part."""
    if basis is None:
        return rows
    known = basis[: rows.shape[1]] @ (basis[: rows.shape[1]].T @ sent.known.mean)
    return np.asarray(rows + known, dtype=np.float64)


def _tried(kind: str, attack: str, rows: Array, sent: Sent) -> Tried:
    return Tried(kind, attack, plausible(sent.known.unit(rows), sent.number))
