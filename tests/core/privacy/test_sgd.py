"""Private SGD of one client: formula, noise, batches, and what one example may change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2, chisquare
from torch import Tensor, nn
from torch.nn import functional as F

from fedcl.auditing.residuals import dependences, judged
from fedcl.core.client import Client, Model
from fedcl.core.errors import ExposureError
from fedcl.core.local import Local, Proximal, cross_entropy
from fedcl.core.model import Net, dropouts
from fedcl.core.params import Params
from fedcl.core.privacy import bookkeeping, noise
from fedcl.core.privacy import draws as privatedraws
from fedcl.core.privacy import sgd as private
from fedcl.core.privacy.draws import PrivateSettings, coins, row_masks
from fedcl.core.privacy.sgd import train_private
from fedcl.core.sgd import Settings, train_one
from fedcl.core.task import ClientTask, Examples
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from tests.core import toys
from tests.core.keyed import FULL, PLAIN, ROOT, SEEN, clients, keyed, slow, sums

HOSTILE = (0.0, math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-300, 1e6)


def mlp(*hidden: int, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    return Mlp(hidden or (8, 5), **options).build((6,), 3).double()


def train(local: Local, settings: PrivateSettings, client: Client, message: Any) -> Params:
    return train_private(local, settings, client, message).params


def halved(gradients: Params, message: Any) -> dict[str, Tensor]:
    """Projects: takes half of the first layer."""
    return {k: v * (0.5 if k.startswith("fc1") else 1.0) for k, v in gradients.items()}


def around(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    """Looks at parameters beside their layers: no book-keeping sees it."""
    assert net.params is not None
    pull = (batch.x @ net.params["fc1.weight"].T).square().sum(1)
    return F.cross_entropy(net(batch.x), batch.y, reduction="none") + 0.1 * pull


LOCALS = {
    "plain": Local(cross_entropy),
    "around": Local(around),
    "pulled": Local(cross_entropy, penalty=Proximal(0.4)),
    "projected": Local(cross_entropy, penalty=Proximal(0.4), project=halved),
}


# --- The formula. ---


@pytest.mark.parametrize("kind", list(LOCALS))
@pytest.mark.parametrize("settings", [PLAIN, FULL])
def test_training_is_what_the_formula_says(settings: PrivateSettings, kind: str) -> None:
    for client in clients(mlp(), (9, 1, 14)):
        message = Model(toys.parameters(client.model))
        found = train_private(LOCALS[kind], settings, client, message)
        assert found.rows == len(client.data)
        expected = slow(LOCALS[kind], settings, client, message)
        assert toys.distance(found.params, expected) < 1e-12
        assert toys.distance(found.params, message.params) > 1e-2
        assert toys.distance(message.params, toys.parameters(client.model)) == 0.0


@pytest.mark.parametrize("kind", list(LOCALS))
def test_without_noise_clip_and_sampling_it_is_gradient_descent(kind: str) -> None:
    (client,) = clients(mlp(), (9,))
    message = Model(toys.parameters(client.model))
    options = replace(FULL, clip=1e6, noise_multiplier=0.0, batch_size=11, epochs=5)
    plain = Settings(5, 11, options.lr, options.momentum, options.weight_decay)
    expected = train_one(LOCALS[kind], plain, client, message)
    found = train_private(LOCALS[kind], options, client, message).params
    assert toys.distance(found, expected.params) < 1e-12
    assert toys.distance(found, message.params) > 1e-2


def test_a_divisor_by_the_true_batch_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    (client,) = clients(mlp(), (9,))
    message = Model(toys.parameters(client.model))
    held: list[int] = []
    right, drawn = bookkeeping.clipped_sum, noise.hide

    def counted(model: nn.Module, params: Params, losses: Any, rows: int, *more: Any) -> Any:
        held.append(rows)
        return right(model, params, losses, rows, *more)

    def divided(values: Tensor, root: bytes, scale: float, _: float, *place: int | str) -> None:
        drawn(values, root, scale, max(1, held[-1]), *place)

    monkeypatch.setattr(private, "clipped_sum", counted)
    monkeypatch.setattr(noise, "hide", divided)
    found = train_private(LOCALS["plain"], PLAIN, client, message).params
    monkeypatch.undo()
    assert toys.distance(found, slow(LOCALS["plain"], PLAIN, client, message)) > 1e-3


def test_no_examples_take_no_step() -> None:
    (client,) = clients(mlp(), (0,))
    message = Model(toys.parameters(client.model))
    found = train_private(LOCALS["plain"], PLAIN, client, message)
    assert found.rows == 0 and toys.distance(found.params, message.params) == 0.0


# --- The noise. ---


def wide(rows: int, id: int = 0) -> Client:
    torch.manual_seed(2)
    model = Mlp((200,)).build((100,), 10).double()  # 22 210 numbers
    return keyed(toys.client(model, rows, (100,), 10, id=id))


def residuals(settings: PrivateSettings, client: Client) -> list[dict[str, Tensor]]:
    """Returns the noise of each step, as releases and clean sums of the same batches tell it."""
    found, scale = [], settings.noise_multiplier * settings.clip
    released = sums(train, Local(cross_entropy), settings, client)
    way, draws = [dict(seen) for seen in SEEN], coins(client.key or b"", len(client.data), settings)
    for params, total, rows in zip(way, released, draws, strict=True):
        batch = client.data.take(rows)

        def losses(own: Params, places: Tensor, batch: Examples = batch) -> Tensor:
            part = batch.take(places)
            return F.cross_entropy(Net(client.model, own)(part.x), part.y, reduction="none")

        clean = bookkeeping.clipped_sum(
            client.model, params, losses, len(rows), settings.clip, "vmap"
        ).total
        found.append({name: (total[name] - clean[name]) / scale for name in total})
    return found


NOISY = PrivateSettings(clip=0.4, noise_multiplier=1.3, batch_size=5, epochs=1, lr=0.05)


def test_the_noise_of_every_step_is_the_claimed_one() -> None:
    for part in residuals(NOISY, wide(14)):
        for verdict in judged(part, level=1e-4):
            assert not verdict.faults, verdict


def test_noise_of_steps_and_clients_is_independent() -> None:
    """T5: clients of one seed, too; a simulator that seeds noise by it would add the same twice."""
    parts: dict[str, Params] = {}
    for id in (0, 1):
        client = replace(wide(14, id), seed=7)
        parts |= {f"{id}/{k}": own for k, own in enumerate(residuals(NOISY, client))}
    assert len(parts) == 6
    assert all(pair.independent for pair in dependences(parts))


@pytest.mark.parametrize("fault", ["half", "shared", "each step"])
def test_wrong_noise_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = noise.hide

    def wrong(values: Tensor, root: bytes, scale: float, divisor: float, *place: int | str) -> None:
        if fault == "half":
            right(values, root, scale / 2, divisor, *place)
        elif fault == "shared":
            right(values, ROOT, scale, divisor, *place)
        else:
            right(values, root, scale, divisor, *place[2:])

    monkeypatch.setattr(noise, "hide", wrong)
    parts: dict[str, Params] = {}
    for id in (0, 1):
        parts |= {f"{id}/{k}": own for k, own in enumerate(residuals(NOISY, wide(14, id)))}
    if fault == "half":
        assert all("too little noise" in judged(own)[0].faults for own in parts.values())
    else:
        assert not all(pair.independent for pair in dependences(parts))


def test_noise_that_is_a_little_small_is_found() -> None:
    """T4: a deficit of 2 % in one release of 40 000 numbers."""
    found, scale = 0, NOISY.noise_multiplier * NOISY.clip
    for number in range(50):
        key = noise.key_of(ROOT, "deficit", number)
        total = torch.zeros(200, 200, dtype=torch.float64)
        privatedraws.hide(total, key, 0, "w", 5, NOISY)
        size = float((total * 5 / scale).square().sum())
        assert 1e-4 < chi2.sf(size, 40_000) < 1 - 1e-4
        found += chi2.sf(size * 0.98**2, 40_000) > 1 - 1e-3
    assert found >= 45


def test_an_empty_batch_adds_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    client = wide(14)
    nobody = torch.zeros(0, dtype=torch.int64)
    monkeypatch.setattr(private, "coins", lambda key, rows, settings: [nobody] * 3)
    for total in sums(train, Local(cross_entropy), NOISY, client):
        scale = NOISY.noise_multiplier * NOISY.clip
        own = {name: value / scale for name, value in total.items()}
        assert not judged(own, level=1e-4)[0].faults


def test_a_run_again_repeats_its_bits_and_another_exchange_does_not() -> None:
    client = clients(mlp(), (9,))[0]
    message = Model(toys.parameters(client.model))
    one = train_private(LOCALS["plain"], PLAIN, client, message).params
    two = train_private(LOCALS["plain"], PLAIN, client, message).params
    assert toys.distance(one, two) == 0.0
    other = keyed(client, noise.seeded_root(6))
    assert toys.distance(one, train_private(LOCALS["plain"], PLAIN, other, message).params) > 1e-2


# --- The batches (T6). ---


def test_batches_are_poisson_samples() -> None:
    settings = replace(PLAIN, batch_size=6, epochs=400)
    drawn = list(coins(noise.key_of(ROOT, "T6"), 20, settings))
    assert len(drawn) == 400 * 4
    sizes = np.array([len(rows) for rows in drawn])
    expected = binom.pmf(np.arange(21), 20, 0.3) * len(drawn)
    counts = np.bincount(sizes, minlength=21)
    low, high = 2, 12  # bins that expect enough
    pooled = np.array([counts[: low + 1].sum(), *counts[low + 1 : high], counts[high:].sum()])
    wanted = np.array([expected[: low + 1].sum(), *expected[low + 1 : high], expected[high:].sum()])
    assert chisquare(pooled, wanted).pvalue > 1e-4
    member = np.zeros((len(drawn), 20))
    for step, rows in enumerate(drawn):
        member[step, rows.numpy()] = 1.0
        assert rows.tolist() == sorted(set(rows.tolist()))
    assert abs(member.mean(0) - 0.3).max() < 5 * math.sqrt(0.21 / len(drawn))
    together = np.asarray(np.corrcoef(member.T))[np.triu_indices(20, 1)]
    assert abs(together).max() < 5 / math.sqrt(len(drawn))


def test_small_clients_are_in_every_step_and_large_ones_may_be_in_none() -> None:
    assert [len(rows) for rows in coins(ROOT, 3, PLAIN)] == [3, 3]
    sizes = [len(rows) for rows in coins(ROOT, 400, replace(PLAIN, batch_size=1, epochs=3))]
    assert min(sizes) == 0 and max(sizes) > 1 and len(sizes) == 1200


# --- What one example may change (T3). ---


def one_step(client: Client, settings: PrivateSettings) -> dict[str, Tensor]:
    return sums(train, Local(cross_entropy), settings, client)[0]


def with_row(client: Client, row: Tensor) -> Client:
    x = client.data.x.clone()
    x[2] = row
    return replace(client, data=replace(client.data, x=x))


QUIET = PrivateSettings(clip=0.3, noise_multiplier=0.0, batch_size=50, epochs=1, lr=1.0)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_example_moves_a_sum_by_more_than_the_clip(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    shape = (6,) if kind == "mlp" else (2, 8, 8)
    model = (
        Mlp((8, 5)).build(shape, 3) if kind == "mlp" else Cnn((4, 6), 5, groups=2).build(shape, 3)
    ).to(dtype)
    client = keyed(toys.client(model, 7, shape, dtype=dtype))
    # The sum is read off rounded parameters.
    rounding = 1e-6 if dtype == torch.float64 else 1e-4
    generator = torch.Generator().manual_seed(4)
    rows = [torch.full(shape, value, dtype=torch.float64) for value in HOSTILE]
    for scale in torch.logspace(-3, 4, 100 if kind == "mlp" else 20).tolist():
        rows.append(torch.randn(shape, generator=generator, dtype=torch.float64) * scale)
    nothing = one_step(with_row(client, torch.tensor(math.nan)), QUIET)
    found = [apart(one_step(with_row(client, row), QUIET), nothing) for row in rows]
    assert max(found) <= 0.3 * (1 + rounding)
    assert max(found) > 0.3 * (1 - 1e-3), "the clip is at work"


def apart(a: Params, b: Params) -> float:
    return math.sqrt(sum(float((a[k] - b[k]).double().square().sum()) for k in a))


def test_a_clip_that_is_left_out_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookkeeping, "factors", lambda norms, clip, dtype: torch.ones_like(norms))
    (client,) = clients(mlp(), (7,))
    there, rest = (one_step(with_row(client, torch.tensor(v)), QUIET) for v in (1e6, 0.0))
    assert apart(there, rest) > 1.0


def test_an_example_does_not_change_the_masks_of_others() -> None:
    layers = dropouts(mlp(dropout=(0.4,)))
    many = row_masks(layers, 9, 3, torch.tensor([1, 4, 6]), torch.float64)
    few = row_masks(layers, 9, 3, torch.tensor([6]), torch.float64)
    assert [tuple(mask.shape) for mask in many] == [(3, 8), (3, 5)]
    assert all(torch.equal(a[2:], b) for a, b in zip(many, few, strict=True))
    later = row_masks(layers, 9, 4, torch.tensor([6]), torch.float64)
    assert not all(torch.equal(a, b) for a, b in zip(few, later, strict=True))
    wide = row_masks(layers, 9, 3, torch.arange(4000), torch.float64)
    for mask in wide:
        assert set(mask.unique().tolist()) == {0.0, 1.0 / 0.6}
        assert float((mask > 0).double().mean()) == pytest.approx(0.6, abs=0.02)


# --- What is refused. ---


def test_without_a_key_nothing_is_trained() -> None:
    client = toys.client(mlp(), 5)
    with pytest.raises(ExposureError, match="secret key, and it has none: ask through the door"):
        train_private(LOCALS["plain"], PLAIN, client, Model(toys.parameters(client.model)))


def centred(net: Net, batch: Examples, task: ClientTask, message: Any) -> Tensor:
    own = F.cross_entropy(net(batch.x), batch.y, reduction="none")
    return own - own.mean().detach() + own / len(batch)


def test_a_loss_that_mixes_unsaid_is_refused() -> None:
    (client,) = clients(mlp(), (5,))
    with pytest.raises(ValueError, match="depends on the other examples of its batch"):
        train_private(Local(centred), PLAIN, client, Model(toys.parameters(client.model)))


def test_batch_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).double()
    (client,) = clients(model, (5,))
    with pytest.raises(ValueError, match="'1' is a BatchNorm1d"):
        train_private(LOCALS["plain"], PLAIN, client, Model(toys.parameters(model)))


def test_products_of_reduced_precision_are_refused() -> None:
    (client,) = clients(mlp(), (5,))
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ExposureError, match=r'training\.precision = "full"'),
    ):
        train_private(LOCALS["plain"], PLAIN, client, Model(toys.parameters(client.model)))


def test_the_cost_that_is_told_is_public() -> None:
    options: Mapping[int, tuple[int, int]] = {0: (0, 0), 3: (2, 6), 4: (2, 8), 9: (6, 24)}
    for rows, (steps, visits) in options.items():
        assert (PLAIN.steps(rows), PLAIN.visits(rows)) == (steps, visits)
