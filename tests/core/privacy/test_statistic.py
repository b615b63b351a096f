"""Statistics under example-level privacy: what one row can change, and the noise of each client."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from scipy.stats import chi2, kstest, norm
from torch import Tensor, nn

from fedcl.core.client import Client, Model, Spent
from fedcl.core.consolidation.importance import OutputSensitivity, Question, SquaredGradients
from fedcl.core.consolidation.kronecker import KroneckerMoments
from fedcl.core.features.analytic import Correlations, Regressors
from fedcl.core.features.moments import InputMoments, Inputs, LossMoments
from fedcl.core.generative.datafree import ChannelMoments
from fedcl.core.local import CrossEntropy
from fedcl.core.model import Net
from fedcl.core.privacy import statistic as privatestatistic
from fedcl.core.privacy.clipping import clipped
from fedcl.core.privacy.clipping import norm as size_of
from fedcl.core.privacy.examples import ExampleMechanism
from fedcl.core.privacy.noise import gaussian, key_of, seeded_root
from fedcl.core.privacy.rowparts import weighed
from fedcl.core.privacy.statistic import PrivateStatistic, bounded_sums, noise_in
from fedcl.core.statistic import Statistic
from fedcl.core.task import ClientTask, Examples

CLASSES = 3
ROOT = seeded_root(0)
EVERY = torch.ones(CLASSES, dtype=torch.bool)
TASK = ClientTask(torch.tensor(0), torch.tensor(0), EVERY, EVERY, EVERY)


class Small(nn.Module):
    """Two convolutions, one of them wide, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 2, 3, padding=1)
        self.two = nn.Conv2d(2, 12, 3)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return cast("Tensor", self.head(x.flatten(1)))


class Twice(nn.Module):
    """One layer that is passed twice: its inputs do not stand example by example."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.head(self.inner(torch.relu(self.inner(x.flatten(1))))))


@dataclass(frozen=True)
class Whole:
    """A measure of whole numbers, one of them hidden in a count."""

    def __call__(
        self, net: Net, rows: Examples, task: ClientTask, message: Any
    ) -> dict[str, Tensor]:
        return {"counts": torch.bincount(rows.y, minlength=CLASSES), "n": torch.tensor(len(rows))}


def model_of(kind: type[nn.Module] = Small) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def rows_of(n: int = 7) -> Examples:
    generator = torch.Generator().manual_seed(1)
    x = 3.0 * torch.randn(n, 1, 4, 4, generator=generator)
    draws = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return Examples(x, torch.arange(n) % CLASSES, {"draws": draws})


def cases() -> dict[str, tuple[Any, Any]]:
    params = dict(model_of().named_parameters())
    layers = ("one.weight", "two.weight", "head.weight")
    basis = {"two.weight": torch.linalg.qr(torch.randn(18, 4, dtype=torch.float64))[0]}
    names = tuple(params)
    return {
        "inputs": (InputMoments(), Inputs(params, basis, layers)),
        "inputs with biases": (InputMoments(True), Inputs(params, {}, layers)),
        "some layers": (InputMoments(), Inputs(params, {}, layers[1:])),
        "correlations": (Correlations(Regressors(), spread=True), Model(params)),
        "projected": (Correlations(Regressors(20)), Model(params)),
        "loss": (LossMoments(CrossEntropy(), inputs=True), Inputs(params, {}, layers)),
        "channels": (ChannelMoments(), Model(params)),
        "squares": (SquaredGradients(), Question(params, names)),
        "sensitivity": (OutputSensitivity(), Question(params, names)),
        "kron": (KroneckerMoments(), Kron(params, layers, False)),
        "whole numbers": (Whole(), Model(params)),
    }


@dataclass(frozen=True)
class Kron:
    """What `KroneckerMoments` looks at."""

    params: Mapping[str, Tensor]
    layers: tuple[str, ...]
    every_class: bool


def sums(measure: Any, message: Any, data: Examples, clip: float, kind: Any = Small) -> Any:
    net = Net(model_of(kind), message.params)
    return bounded_sums(Statistic(measure, rows=3), net, data, TASK, message, clip)


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return size_of({name: a[name] - b[name] for name in a})


# --- T3: what one row can change. ---


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("clip", [0.3, 1e4])
def test_sums_are_those_of_the_clipped_parts_of_single_rows(case: str, clip: float) -> None:
    measure, message = cases()[case]
    data = rows_of()
    slow: dict[str, Any] = {}
    net = Net(model_of(), message.params)
    for row in range(len(data)):
        part = {
            k: v.double() for k, v in measure(net, data.part(row, row + 1), TASK, message).items()
        }
        for name, value in clipped(part, clip).items():
            slow[name] = slow.get(name, 0.0) + value
    found = sums(measure, message, data, clip)
    assert difference(found, slow) <= 1e-6 * size_of(slow)
    whole = {k: v.double() for k, v in measure(net, data, TASK, message).items()}
    if clip > 1e3:
        assert difference(found, whole) <= 1e-5 * size_of(whole)


HOSTILE = (0.0, math.nan, math.inf, -math.inf, 1e30, 1e-30, 1e6, -7.0)


@pytest.mark.parametrize("case", cases())
def test_no_row_changes_a_sum_by_more_than_the_clip(case: str) -> None:
    measure, message = cases()[case]
    clip, data = 0.3, rows_of()
    absent = sums(measure, message, data.take(torch.tensor([0, 1, 2, 4, 5, 6])), clip)
    largest = 0.0
    for value in (*HOSTILE, None):
        x = data.x.clone()
        if value is None:
            x[3, 0, 1, 2] = math.nan
        else:
            x[3] = value
        present = sums(measure, message, Examples(x, data.y, data.extra), clip)
        assert all(bool(torch.isfinite(found).all()) for found in present.values())
        largest = max(largest, difference(present, absent))
    assert largest <= clip * (1 + 1e-6)
    if case not in ("loss", "squares", "sensitivity"):  # whose gradients may vanish
        assert largest > clip * (1 - 1e-5), "it is clipped, not thrown away"


def test_the_measures_of_large_matrices_need_no_part_of_a_row() -> None:
    for case in ("inputs", "inputs with biases", "correlations", "projected"):
        measure, message = cases()[case]
        net = Net(model_of(), message.params)
        assert weighed(measure, net, rows_of(), TASK, message, torch.ones_like) is not None


def test_a_layer_that_is_passed_twice_goes_row_by_row() -> None:
    params = dict(model_of(Twice).named_parameters())
    message = Inputs(params, {}, ("inner.weight", "head.weight"))
    net = Net(model_of(Twice), params)
    assert weighed(InputMoments(), net, rows_of(), TASK, message, torch.ones_like) is None
    found = sums(InputMoments(), message, rows_of(), 1e6, Twice)
    whole = InputMoments()(net, rows_of(), TASK, message)
    assert difference(found, whole) <= 1e-6 * size_of(whole)


# --- T4, T5: the noise. ---


def reply(client: int = 0, exchange: int = 0, z: float = 2.0, n: int = 7) -> Any:
    measure, message = cases()["inputs with biases"]
    promise = ExampleMechanism(z, 9.0, {"gram": 0.25})
    own = Client(client, model_of(), rows_of(n), TASK, None, 5, key=key_of(ROOT, exchange, client))
    statistic = Statistic(measure, "gram", exact=("gram", "norms"))
    return PrivateStatistic(statistic, promise)(own, message)


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def residual(client: int = 0, exchange: int = 0, z: float = 2.0) -> Tensor:
    noised, clean = (reply(client, exchange, given).tensors for given in (z, 0.0))
    return (flat(noised) - flat(clean)) / (2.0 * 0.25)


def fits(found: Tensor) -> bool:
    tail = float(chi2.sf(float(found.square().sum()), len(found)))
    return 1e-4 < tail < 1 - 1e-4 and float(kstest(found.numpy(), norm.cdf).pvalue) > 1e-4


def test_the_noise_has_the_claimed_size_and_is_each_clients_own() -> None:
    found = [residual(), residual(client=1), residual(exchange=1)]
    assert all(fits(one) for one in found)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        correlation = float(torch.corrcoef(torch.stack([found[a], found[b]]))[0, 1])
        assert abs(correlation) < 5 / math.sqrt(len(found[0]))
    assert not fits(residual(z=1.7)), "noise that is too small is found"


def test_a_reply_says_what_was_spent_and_has_noise_without_a_row() -> None:
    assert reply().spent == Spent(2.0, 1.0, 1)
    nothing = reply(n=0)
    assert fits(flat(nothing.tensors) / (2.0 * 0.25))
    assert {k: v.shape for k, v in nothing.tensors.items()} == {
        k: v.shape for k, v in reply().tensors.items()
    }


def test_numbers_travel_in_their_type_and_noise_is_told() -> None:
    measure, message = cases()["inputs"]
    statistic = Statistic(measure, "gram", exact=("norms",))
    own = Client(0, model_of(), rows_of(), TASK, None, 5, key=key_of(ROOT, 0))
    promise = ExampleMechanism(2.0, 0.5)
    tensors = PrivateStatistic(statistic, promise)(own, message).tensors
    assert {v.dtype for k, v in tensors.items() if k.startswith("gram/")} == {torch.float32}
    assert {v.dtype for k, v in tensors.items() if k.startswith("norms/")} == {torch.float64}
    assert noise_in(promise, statistic, 9) == pytest.approx(3.0)
    assert noise_in(None, statistic, 9) == noise_in(promise, "training", 9) == 0.0


def test_without_a_key_nothing_is_sent() -> None:
    measure, message = cases()["inputs"]
    own = Client(0, model_of(), rows_of(), TASK, None, 5)
    with pytest.raises(ValueError, match="secret key"):
        PrivateStatistic(Statistic(measure), ExampleMechanism(1.0, 1.0))(own, message)


# --- That it would be noticed. ---


@pytest.mark.parametrize("fault", ["a larger clip", "no clip", "NaN passes", "a clip by tensor"])
def test_a_broken_clip_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_tensor(part: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
        return {k: v for name in part for k, v in clipped({name: part[name]}, bound).items()}

    def lets_pass(part: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
        factor = min(1.0, bound / size_of(part))
        return {name: value * factor for name, value in part.items()}

    broken = {
        "a larger clip": lambda part, bound: clipped(part, bound * 1.001),
        "no clip": lambda part, bound: clipped(part, 1e30),
        "NaN passes": lets_pass,
        "a clip by tensor": by_tensor,
    }[fault]
    monkeypatch.setattr(privatestatistic, "clipped", broken)
    with pytest.raises(AssertionError):
        test_no_row_changes_a_sum_by_more_than_the_clip("kron")


@pytest.mark.parametrize("fault", ["half", "none", "the same for all"])
def test_broken_noise_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(root: bytes, shape: Any, scale: float, *place: int | str) -> Tensor:
        if fault == "the same for all":
            return gaussian(ROOT, shape, scale, *place)
        return gaussian(root, shape, scale * {"half": 0.5, "none": 0.0}[fault], *place)

    monkeypatch.setattr(privatestatistic, "gaussian", broken)
    with pytest.raises(AssertionError):
        test_the_noise_has_the_claimed_size_and_is_each_clients_own()
