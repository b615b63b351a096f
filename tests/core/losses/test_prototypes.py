"""Prototypes: every formula against a slow loop, and class vectors from a seed or a file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from fedcl.core.errors import ConfigError
from fedcl.core.features.layers import head_inputs
from fedcl.core.losses.prototypes import (
    ClassVectors,
    Over,
    contrast,
    cosines,
    head_rows,
    normalised,
    orthogonal_frame,
    relation_distillation,
)
from fedcl.core.model import Net
from tests.core import toys
from tests.core.blocks import mlp


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of the mean of a function's values."""
    leaf = at.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf).mean(), leaf)
    return found


# --- Features. ---


def by_hand(params: Any, x: Tensor) -> Tensor:
    """The inputs of the head of `mlp(8, 5)`."""
    hidden = F.relu(x @ params["fc1.weight"].T + params["fc1.bias"])
    return F.relu(hidden @ params["fc2.weight"].T + params["fc2.bias"])


def test_head_inputs_are_the_features_with_their_gradient() -> None:
    model, x = mlp(8, 5), draw(4, 6)
    params = {name: 2 * value for name, value in toys.parameters(model).items()}
    found = head_inputs(Net(model, params), x)
    assert float((found - by_hand(params, x)).abs().max()) < 1e-14
    own = head_inputs(Net(model), x).detach()
    assert float((own - by_hand(toys.parameters(model), x)).abs().max()) < 1e-14
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    sums = [head_inputs(Net(model, leaves), x).square().sum(), by_hand(leaves, x).square().sum()]
    slopes = [torch.autograd.grad(s, leaves["fc1.weight"])[0] for s in sums]
    assert float(slopes[1].abs().max()) > 0.01
    assert float((slopes[0] - slopes[1]).abs().max()) < 1e-14
    assert not model.get_submodule("head")._forward_pre_hooks, "nothing stays on the model"


def test_head_inputs_inside_vmap_and_grad() -> None:
    model, x = mlp(8, 5), draw(3, 4, 6)
    params = {name: draw(3, *value.shape) for name, value in toys.parameters(model).items()}

    def loss(own: dict[str, Tensor], rows: Tensor) -> Tensor:
        return head_inputs(Net(model, own), rows).pow(3).sum()

    together = vmap(grad(loss))(params, x)
    for k in range(3):
        own = {name: value[k] for name, value in params.items()}
        alone = grad(lambda p, k=k: by_hand(p, x[k]).pow(3).sum())(own)
        for name, value in alone.items():
            assert torch.allclose(together[name][k], value, rtol=1e-12, atol=1e-12)
    assert bool(together["fc1.weight"].any()) and not bool(together["head.weight"].any())


def test_head_inputs_keep_dropout() -> None:
    model = mlp(8, 5, dropout=(0.5,))
    x, masks = draw(4, 6), [draw(4, 8, seed=1), draw(4, 5, seed=2)]
    params = toys.parameters(model)
    hidden = F.relu(x @ params["fc1.weight"].T + params["fc1.bias"]) * masks[0]
    expected = F.relu(hidden @ params["fc2.weight"].T + params["fc2.bias"]) * masks[1]
    found = head_inputs(Net(model, params, masks), x)
    assert float((found - expected).abs().max()) < 1e-14


def test_a_model_without_a_head_has_no_features() -> None:
    with pytest.raises(ValueError, match="named head"):
        head_inputs(Net(nn.Sequential(nn.Linear(3, 2))), torch.zeros(1, 3))


def test_head_rows_are_the_nets_own_or_the_models() -> None:
    model = mlp(8, 5)
    params = toys.parameters(model)
    rows = params.pop("head.weight")
    assert torch.equal(head_rows(Net(model)), rows)
    assert torch.equal(head_rows(Net(model, params)), rows)
    assert torch.equal(head_rows(Net(model, {**params, "head.weight": rows + 1})), rows + 1)
    x = draw(2, 6)
    assert functional_call(model, params, (x,)).shape == (2, 3)


# --- Directions. ---


def test_rows_of_length_one_by_hand() -> None:
    found = normalised(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -0.5]]))
    assert torch.allclose(found, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]))


def test_a_row_of_zeros_has_a_finite_gradient() -> None:
    rows = torch.zeros(2, 3)
    found = slope(lambda h: normalised(h)[:, 0], rows)
    assert found.tolist() == [[0.5, 0.0, 0.0], [0.5, 0.0, 0.0]]


def test_cosines_are_pytorchs() -> None:
    h, p = draw(5, 4), draw(3, 4, seed=1)
    expected = torch.stack([F.cosine_similarity(h, row[None]) for row in p], dim=1)
    assert float((cosines(h, p) - expected).abs().max()) < 1e-14
    assert float((cosines(7 * h, 0.1 * p) - expected).abs().max()) < 1e-14


# --- Contrast. ---


def slow_contrast(h: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Khosla et al., equation 2, term by term."""
    z = [row / math.sqrt(float((row * row).sum())) for row in h]
    losses = []
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and y[p] == y[i]]
        total = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in range(len(z)) if a != i)
        terms = [-math.log(math.exp(float(z[i] @ z[p]) / temperature) / total) for p in positives]
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrast_is_the_double_loop(temperature: float) -> None:
    h, y = draw(9, 4), torch.tensor([0, 1, 0, 2, 1, 0, 3, 1, 1])
    found = contrast(h, y, temperature)
    assert float((found - slow_contrast(h, y, temperature)).abs().max()) < 1e-12
    assert found[3] == found[6] == 0.0, "alone with their classes"
    assert float(found[[0, 1, 2, 4]].min()) > 0


def test_contrast_by_hand() -> None:
    """z = e1, e1, e2: both anchors of class 0 have -log(e / (e + 1)), with T = 1."""
    h = torch.tensor([[2.0, 0.0], [5.0, 0.0], [0.0, 0.1]], dtype=torch.float64)
    one = math.log(1 + math.exp(-1))
    found = contrast(h, torch.tensor([0, 0, 1]), 1.0)
    assert found.tolist() == pytest.approx([one, one, 0.0], abs=1e-15)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_without_positives_there_is_no_contrast_and_no_gradient(labels: list[int]) -> None:
    h, y = draw(len(labels), 4), torch.tensor(labels)
    assert not bool(contrast(h, y, 0.1).any())
    assert not bool(slope(lambda rows: contrast(rows, y, 0.1), h).any())


def test_contrast_pulls_a_class_together() -> None:
    h, y = draw(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])
    before = float(contrast(h, y, 0.5).mean())
    for _ in range(50):
        h = h - 0.5 * slope(lambda rows: contrast(rows, y, 0.5), h)
    within = cosines(h, h)[:3, :3].min(), cosines(h, h)[3:, 3:].min()
    assert float(contrast(h, y, 0.5).mean()) < before - 0.3
    assert float(cosines(h, h)[:3, 3:].max()) < float(min(within))


# --- Relations. ---


def slow_relations(new: Tensor, old: Tensor, temperature: float) -> float:
    """The divergence of the new distribution over the samples from the old, of each prototype."""
    total = 0.0
    for k in range(new.shape[1]):
        weights = [[math.exp(float(s) / temperature) for s in side[:, k]] for side in (old, new)]
        q, p = ([w / sum(own) for w in own] for own in weights)
        total += sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
    return total / new.shape[1]


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_relations_over_samples_are_the_double_loop(temperature: float) -> None:
    new, old = draw(7, 3), draw(7, 3, seed=1)
    found = relation_distillation(new, old, temperature)
    assert found.shape == (7,)
    assert float(found.mean()) == pytest.approx(slow_relations(new, old, temperature), abs=1e-12)


def test_relations_over_classes_are_the_double_loop_of_the_transposes() -> None:
    new, old = draw(7, 3), draw(7, 3, seed=1)
    found = float(relation_distillation(new, old, 0.5, "classes").mean())
    assert found == pytest.approx(slow_relations(new.T, old.T, 0.5), abs=1e-12)


def test_relations_by_hand() -> None:
    """Old: (2/3, 1/3) from log 2 and 0; new: (1/2, 1/2). 2/3 log 4/3 + 1/3 log 2/3."""
    old = torch.tensor([[math.log(2)], [0.0]], dtype=torch.float64)
    new = torch.zeros(2, 1, dtype=torch.float64)
    expected = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert float(relation_distillation(new, old, 1.0).mean()) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("over", ["samples", "classes"])
def test_an_equal_student_feels_nothing(over: Over) -> None:
    old = draw(6, 4)
    assert not bool(relation_distillation(old, old, 0.1, over).any())
    found = slope(lambda new: relation_distillation(new, old, 0.1, over), old)
    assert float(found.abs().max()) < 1e-14
    other = slope(lambda new: relation_distillation(new, old, 0.1, over), draw(6, 4, seed=1))
    assert float(other.abs().max()) > 0.01


@pytest.mark.parametrize(("over", "shape"), [("samples", (1, 4)), ("classes", (6, 1))])
def test_a_constant_for_a_prototype_or_a_sample_changes_nothing(
    over: Over, shape: tuple[int, int]
) -> None:
    new, old, constant = draw(6, 4), draw(6, 4, seed=1), draw(*shape, seed=2)
    other = draw(*reversed(shape), seed=3).T if over == "classes" else draw(6, 1, seed=3)

    def loss(a: Tensor, b: Tensor) -> float:
        return float(relation_distillation(a, b, 0.3, over).mean())

    plain = loss(new, old)
    assert loss(new + constant, old) == pytest.approx(plain, abs=1e-12)
    assert loss(new, old + constant) == pytest.approx(plain, abs=1e-12)
    across = other if over == "samples" else draw(1, 4, seed=3)
    assert abs(loss(new + across, old) - plain) > 0.01, "a constant for the others matters"
    moved = slope(lambda a: relation_distillation(a + constant, old, 0.3, over), new)
    still = slope(lambda a: relation_distillation(a, old, 0.3, over), new)
    assert float((moved - still).abs().max()) < 1e-14


def test_the_old_side_gets_no_gradient() -> None:
    old = draw(5, 3).requires_grad_()
    new = draw(5, 3, seed=1).requires_grad_()
    relation_distillation(new, old, 0.3).sum().backward()
    assert old.grad is None and new.grad is not None


# --- Vectors of classes. ---


@pytest.mark.parametrize(("rows", "width"), [(4, 4), (3, 7), (7, 3), (1, 1)])
def test_a_frame_is_orthonormal_along_its_shorter_side(rows: int, width: int) -> None:
    frame = orthogonal_frame(rows, width, 5)
    assert frame.shape == (rows, width) and frame.dtype == torch.float64
    short = frame @ frame.T if rows <= width else frame.T @ frame
    assert float((short - torch.eye(min(rows, width))).abs().max()) < 1e-14
    assert torch.equal(frame, orthogonal_frame(rows, width, 5))
    if min(rows, width) > 1:
        assert float((frame - orthogonal_frame(rows, width, 6)).abs().max()) > 0.05


def test_frames_favour_no_direction() -> None:
    """The mean of many random unit rows is near 0; with QR's own signs it would not be."""
    rows = torch.stack([orthogonal_frame(2, 3, seed) for seed in range(400)])
    assert float(rows.mean(0).abs().max()) < 0.1  # 3.5 standard deviations


def test_orthogonal_vectors_of_classes() -> None:
    found = ClassVectors(seed=3)(4, 12)
    assert float((found @ found.T - torch.eye(4)).abs().max()) < 1e-14
    many = ClassVectors()(12, 4)
    assert float((many.norm(dim=1) - 1).abs().max()) < 1e-14


def save(path: Path, rows: Any, name: str = "vectors") -> str:
    if path.suffix == ".npz":
        np.savez(path, **{name: rows})
    else:
        safetensors.numpy.save_file({name: rows}, path)
    return str(path)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_vectors_of_a_file_are_its_rows_at_length_one(
    ending: str, kind: Any, tmp_path: Path
) -> None:
    rows = draw(3, 5).numpy().astype(kind)
    found = ClassVectors(save(tmp_path / f"v.{ending}", rows))(3, 5)
    assert torch.equal(found, normalised(torch.from_numpy(rows.astype(np.float64))))


def test_shorter_vectors_keep_their_angles(tmp_path: Path) -> None:
    rows = draw(6, 5)
    source = save(tmp_path / "v.npz", rows.numpy())
    found = ClassVectors(source, seed=2)(6, 40)
    assert found.shape == (6, 40)
    assert float((cosines(found, found) - cosines(rows, rows)).abs().max()) < 1e-13
    assert float((found - ClassVectors(source, seed=3)(6, 40)).abs().max()) > 0.1


def test_longer_vectors_roughly_keep_their_angles(tmp_path: Path) -> None:
    base = draw(1, 768)
    rows = torch.cat([base, base + 0.3 * draw(1, 768, seed=1), draw(1, 768, seed=2)])
    found = ClassVectors(save(tmp_path / "v.npz", rows.numpy()))(3, 200)
    assert float((found.norm(dim=1) - 1).abs().max()) < 1e-14
    assert float((cosines(found, found) - cosines(rows, rows)).abs().max()) < 0.2


def test_a_file_of_other_classes_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "v.npz", draw(3, 5).numpy())
    with pytest.raises(ConfigError, match="vectors of 3 classes, but the head has 4"):
        ClassVectors(source)(4, 5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 5)), "row of zeros"),
        (np.full((3, 5), np.nan), "NaN"),
        (np.ones(5), r"float64\[5\]"),
        (np.ones((3, 5), dtype=np.int64), "int64"),
        (np.array(["a", "b"], dtype=object), "cannot be read"),
    ],
)
def test_files_that_hold_no_vectors_are_refused(rows: Any, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", vectors=rows)
    with pytest.raises(ValueError, match=message):
        ClassVectors(str(tmp_path / "v.npz"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.ones((2, 2)), b=np.ones((2, 2)))
    np.save(tmp_path / "plain.npy", np.ones((2, 2)))
    (tmp_path / "plain.npy").rename(tmp_path / "plain.npz")
    for name in ("torn.npz", "torn.safetensors"):
        (tmp_path / name).write_bytes(b"no vectors")
    (tmp_path / "words.txt").write_text("cat")
    for name, message in (
        ("two.npz", "one .classes, k. array"),
        ("plain.npz", "cannot be read"),
        ("torn.npz", "cannot be read"),
        ("torn.safetensors", "cannot be read"),
        ("absent.npz", "missing"),
        ("absent.safetensors", "missing"),
        ("words.txt", "orthogonal"),
    ):
        with pytest.raises(ValueError, match=message):
            ClassVectors(str(tmp_path / name))
    with pytest.raises(ValueError, match="seed"):
        ClassVectors(seed=-1)
